-- Columns are only ever added at the end.

CREATE OR REPLACE VIEW catvec.failures AS
SELECT i.product_id, i.url, f.stage, f.code, f.detail, f.attempts, f.is_retryable, m.name AS model, p.catalog,
       f.first_at, f.last_at, f.kind, f.next_try_at,
       substring(i.url FROM '^[Hh][Tt][Tt][Pp][Ss]?://(?:[^/?#]*@)?([^/?#]+)') AS host
  FROM catvec_store.failures f
  JOIN catvec_store.images i ON i.image_id = f.image_id
  JOIN catvec_store.products p ON p.product_id = i.product_id
  JOIN catvec_store.models m ON m.model_id = f.model_id
 WHERE i.active
   AND i.missing_since IS NULL
UNION ALL
SELECT b.product_id, coalesce(b.url, 'row ' || b.row_number), 'catalog', b.code, b.detail, 1, false, NULL, b.catalog,
       b.read_at, b.read_at, 'permanent', NULL, NULL
  FROM catvec_store.bad_rows b;

CREATE OR REPLACE VIEW catvec.run_status AS
SELECT r.run_id, m.name AS model, r.catalog, r.state, r.started_at, r.heartbeat_at, r.finished_at, r.host, r.pid,
       r.seen, r.unchanged, r.reused, r.embedded, r.failed, r.removed, r.error,
       (r.summary ->> 'pending')::bigint AS pending,
       (r.summary ->> 'checked')::bigint AS checked,
       (r.summary ->> 'changed')::bigint AS changed,
       (r.summary ->> 'deferred')::bigint AS deferred,
       (r.summary ->> 'forgotten')::bigint AS forgotten,
       (r.summary ->> 'seconds')::double precision AS seconds,
       (r.summary ->> 'images_per_s')::double precision AS images_per_s,
       r.summary ->> 'stopped_by' AS stopped_by,
       r.summary
  FROM catvec_store.runs r
  LEFT JOIN catvec_store.models m ON m.model_id = r.model_id;
