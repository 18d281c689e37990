-- Columns are only ever added at the end.

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
       r.summary,
       r.shard
  FROM catvec_store.runs r
  LEFT JOIN catvec_store.models m ON m.model_id = r.model_id;
