-- The public views. Columns are only ever added at the end.

CREATE VIEW catvec.models AS
SELECT name, source, revision, dims, has_text, state, state = 'active' AS is_active, created_at, activated_at,
       model_id, location, fingerprint
  FROM catvec_store.models;

-- which release's contract this is; readers ask before they trust it
CREATE VIEW catvec.schema_version AS
SELECT version_num AS version
  FROM catvec_store.alembic_version;

CREATE VIEW catvec.products AS
SELECT product_id, title, category, brand, price, attrs, active, updated_at
  FROM catvec_store.products;

-- empty until the first model becomes active
CREATE VIEW catvec.image_embeddings AS
SELECT i.product_id, i.image_id, i.url, i.position, NULL::@VECTOR@.halfvec AS embedding, i.checked_at AS embedded_at
  FROM catvec_store.images i
 WHERE false;

CREATE VIEW catvec.failures AS
SELECT i.product_id, i.url, f.stage, f.code, f.detail, f.attempts, f.is_retryable, m.name AS model, p.catalog,
       f.first_at, f.last_at
  FROM catvec_store.failures f
  JOIN catvec_store.images i ON i.image_id = f.image_id
  JOIN catvec_store.products p ON p.product_id = i.product_id
  JOIN catvec_store.models m ON m.model_id = f.model_id
 WHERE i.active
UNION ALL
SELECT b.product_id, coalesce(b.url, 'row ' || b.row_number), 'catalog', b.code, b.detail, 1, false, NULL, b.catalog,
       b.read_at, b.read_at
  FROM catvec_store.bad_rows b;

CREATE VIEW catvec.run_status AS
SELECT r.run_id, m.name AS model, r.catalog, r.state, r.started_at, r.heartbeat_at, r.finished_at, r.host, r.pid,
       r.seen, r.unchanged, r.reused, r.embedded, r.failed, r.removed, r.error
  FROM catvec_store.runs r
  LEFT JOIN catvec_store.models m ON m.model_id = r.model_id;
