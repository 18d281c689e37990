-- Columns are only ever added at the end.

CREATE OR REPLACE VIEW catvec.models AS
SELECT m.name, m.source, m.revision, m.dims, m.has_text, m.state, m.state = 'active' AS is_active, m.created_at,
       m.activated_at, m.model_id, m.location, m.fingerprint, m.storage, m.index_kind, m.ef_search, m.tuned_at,
       m.retired_at, m.index_m, m.index_ef_construction,
       -- the server's own estimate; exact counts would read the whole table with every search
       greatest(0, (SELECT c.reltuples
                      FROM pg_class c
                     WHERE c.relname = 'emb_' || m.name
                       AND c.relnamespace = (SELECT n.oid FROM pg_namespace n WHERE n.nspname = 'catvec_store'))
               )::bigint AS vectors
  FROM catvec_store.models m;

DO $$
DECLARE
  active text := (SELECT name FROM catvec_store.models WHERE state = 'active');
BEGIN
  IF active IS NOT NULL THEN
    PERFORM catvec_store.activate_model(active);
  ELSE
    CREATE OR REPLACE VIEW catvec.image_embeddings AS
    SELECT i.product_id, i.image_id, i.url, i.position, NULL::@VECTOR@.halfvec AS embedding,
           i.checked_at AS embedded_at, i.content_sha256
      FROM catvec_store.images i
     WHERE false;
  END IF;
END
$$;

-- Stored texts with their vector under each model.
CREATE VIEW catvec.queries AS
SELECT q.name, q.text, m.name AS model, m.state = 'active' AS is_active, v.embedding, v.encoded_at
  FROM catvec_store.queries q
  LEFT JOIN catvec_store.query_vectors v ON v.name = q.name
  LEFT JOIN catvec_store.models m ON m.model_id = v.model_id;

-- The neighbours of the active model, as built last. What has left the catalog since is left out at once.
CREATE VIEW catvec.neighbours AS
SELECT n.product_id, near.rank::integer AS rank, near.neighbour_id, near.similarity, n.built_at
  FROM catvec_store.neighbours n
 CROSS JOIN LATERAL unnest(n.neighbour_ids, n.similarities) WITH ORDINALITY AS near (neighbour_id, similarity, rank)
  JOIN catvec_store.products p ON p.product_id = near.neighbour_id
 WHERE n.model_id = (SELECT m.model_id FROM catvec_store.models m WHERE m.state = 'active')
   AND p.active;
