-- What the public contract of release 2 stands on: storage and index of a model are chosen per model, models can be
-- retired, texts and neighbours are kept for apps that cannot make them.

ALTER TABLE catvec_store.models
  ADD COLUMN storage               text NOT NULL DEFAULT 'halfvec' CHECK (storage IN ('halfvec', 'vector')),
  ADD COLUMN index_kind            text NOT NULL DEFAULT 'hnsw' CHECK (index_kind IN ('hnsw', 'binary')),
  ADD COLUMN index_m               integer NOT NULL DEFAULT 16 CHECK (index_m BETWEEN 2 AND 100),
  -- pgvector's own default is 64: 128 builds 1.6 times as long and leaves out half as many neighbours
  ADD COLUMN index_ef_construction integer NOT NULL DEFAULT 128 CHECK (index_ef_construction BETWEEN 4 AND 1000),
  ADD COLUMN ef_search             integer NOT NULL DEFAULT 100 CHECK (ef_search BETWEEN 10 AND 1000),
  ADD COLUMN tuned_at              timestamptz,
  ADD COLUMN retired_at            timestamptz;

-- what the indexes of the first release were made with
UPDATE catvec_store.models SET index_ef_construction = 64;

-- A text that apps search for by a name, and its vector under each model that has encoded it.
CREATE TABLE catvec_store.queries (
  name       text PRIMARY KEY CHECK (name <> ''),
  text       text NOT NULL CHECK (text <> ''),
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE catvec_store.query_vectors (
  name       text NOT NULL REFERENCES catvec_store.queries ON DELETE CASCADE,
  model_id   smallint NOT NULL REFERENCES catvec_store.models ON DELETE CASCADE,
  embedding  @VECTOR@.halfvec NOT NULL CHECK (@VECTOR@.l2_norm(embedding) BETWEEN 0.99 AND 1.01),
  encoded_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (name, model_id)
);

-- The nearest products of each product, found beforehand: one row, so that reading them is one lookup.
CREATE TABLE catvec_store.neighbours (
  model_id      smallint NOT NULL REFERENCES catvec_store.models ON DELETE CASCADE,
  product_id    text NOT NULL REFERENCES catvec_store.products ON DELETE CASCADE,
  contents      bytea NOT NULL,                    -- digest of the product's images when its neighbours were found
  neighbour_ids text[] NOT NULL,                   -- nearest first
  similarities  real[] NOT NULL,
  wanted        integer NOT NULL,                  -- k at the time; fewer are there when fewer products exist
  is_stale      boolean NOT NULL DEFAULT false,    -- a product near to this one changed
  built_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (model_id, product_id),
  CHECK (cardinality(neighbour_ids) = cardinality(similarities))
);

CREATE OR REPLACE FUNCTION catvec_store.create_model_table(p_name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  m catvec_store.models;
BEGIN
  SELECT * INTO STRICT m FROM catvec_store.models WHERE name = p_name;
  EXECUTE format($q$
    CREATE TABLE catvec_store.%1$I (
      content_sha256 bytea PRIMARY KEY CHECK (octet_length(content_sha256) = 32),
      embedding      %2$s(%3$s) NOT NULL CHECK (%4$s(embedding) BETWEEN 0.99 AND 1.01),
      run_id         bigint NOT NULL,
      embedded_at    timestamptz NOT NULL DEFAULT now()
    ) WITH (
      parallel_workers = 4,                        -- else wide, TOASTed rows make every index build serial
      autovacuum_vacuum_scale_factor = 0.05,       -- dead rows cost recall in HNSW
      autovacuum_analyze_scale_factor = 0.02
    )$q$, 'emb_' || m.name, m.storage, m.dims, CASE m.storage WHEN 'vector' THEN 'vector_norm' ELSE 'l2_norm' END);
  PERFORM catvec_store.create_model_view(m.name);
END
$$;

-- The embedding is halfvec without a type modifier whatever is stored, so that the active view can be replaced
-- across dimensions and storages, and its expression is the one that the index is made on.
CREATE FUNCTION catvec_store.create_model_view(p_name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  m catvec_store.models;
BEGIN
  SELECT * INTO STRICT m FROM catvec_store.models WHERE name = p_name;
  EXECUTE format($q$
    CREATE OR REPLACE VIEW catvec.%1$I AS
    SELECT i.product_id, i.image_id, i.url, i.position, e.embedding%3$s::halfvec AS embedding, e.embedded_at,
           e.content_sha256%4$s
      FROM catvec_store.%2$I e
      JOIN catvec_store.images i ON i.content_sha256 = e.content_sha256
     WHERE i.active$q$,
    'image_embeddings_' || m.name, 'emb_' || m.name,
    CASE m.storage WHEN 'vector' THEN format('::halfvec(%s)', m.dims) ELSE '' END,
    CASE m.storage WHEN 'vector' THEN ', e.embedding::vector AS embedding_fp32' ELSE '' END);
END
$$;

-- What the public view shows is switched in one transaction. The lock on models lets one switch happen at a time;
-- readers of the view wait for no more than the caller's lock_timeout.
CREATE OR REPLACE FUNCTION catvec_store.activate_model(p_name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  m catvec_store.models;
BEGIN
  LOCK TABLE catvec_store.models IN SHARE ROW EXCLUSIVE MODE;
  SELECT * INTO m FROM catvec_store.models WHERE name = p_name;
  IF m.name IS NULL THEN
    RAISE EXCEPTION 'no model %', quote_literal(p_name) USING ERRCODE = 'undefined_object';
  ELSIF m.state = 'retired' THEN
    RAISE EXCEPTION 'model "%" was retired on %, its vectors are gone', p_name, m.retired_at::date
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'a run with this model makes them anew';
  ELSIF m.state NOT IN ('ready', 'active') THEN
    RAISE EXCEPTION 'model "%" is %, expected ready', p_name, m.state
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'finish a run with this model first';
  END IF;
  EXECUTE format($q$
    CREATE OR REPLACE VIEW catvec.image_embeddings AS
    SELECT product_id, image_id, url, position, embedding, embedded_at, content_sha256
      FROM catvec.%I$q$, 'image_embeddings_' || p_name);
  UPDATE catvec_store.models SET state = 'ready' WHERE state = 'active' AND name <> p_name;
  UPDATE catvec_store.models SET state = 'active', activated_at = now() WHERE name = p_name AND state <> 'active';
END
$$;

-- Takes the vectors of a model away and leaves its name, so that apps that still ask for it are told.
CREATE FUNCTION catvec_store.retire_model(p_name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  m catvec_store.models;
BEGIN
  LOCK TABLE catvec_store.models IN SHARE ROW EXCLUSIVE MODE;
  SELECT * INTO m FROM catvec_store.models WHERE name = p_name;
  IF m.name IS NULL THEN
    RAISE EXCEPTION 'no model %', quote_literal(p_name) USING ERRCODE = 'undefined_object';
  ELSIF m.state = 'active' THEN
    RAISE EXCEPTION 'model "%" is active: apps read it', p_name
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'activate another model first';
  END IF;
  DELETE FROM catvec_store.failures WHERE model_id = m.model_id;
  DELETE FROM catvec_store.query_vectors WHERE model_id = m.model_id;
  DELETE FROM catvec_store.neighbours WHERE model_id = m.model_id;
  EXECUTE format('DROP VIEW IF EXISTS catvec.%I', 'image_embeddings_' || m.name);
  EXECUTE format('DROP TABLE IF EXISTS catvec_store.%I', 'emb_' || m.name);
  UPDATE catvec_store.models SET state = 'retired', retired_at = now() WHERE model_id = m.model_id;
END
$$;

-- A finished load makes a model ready. A writer may do this much, and nothing else, to the row of a model.
CREATE FUNCTION catvec_store.mark_ready(p_model_id smallint) RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
  UPDATE catvec_store.models SET state = 'ready' WHERE model_id = p_model_id AND state = 'loading'
$$;
REVOKE EXECUTE ON FUNCTION catvec_store.mark_ready(smallint) FROM PUBLIC;

-- models of the first release: their views gain a column
SELECT catvec_store.create_model_view(name) FROM catvec_store.models;
