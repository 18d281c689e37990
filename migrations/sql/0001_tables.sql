-- The private tables. They may change between releases; apps use schema catvec.
--
-- A product has images (references, in order); an image has content (bytes, known by their SHA-256); content has
-- at most one vector under each model. So the same bytes are encoded once however many products show them, a URL
-- that moves costs nothing, and what changes nightly (etag, checked_at, price) never touches a vector table, where
-- a rewritten row would cost a new entry in the HNSW graph (measured: 100 times slower).

CREATE SCHEMA IF NOT EXISTS catvec_store;   -- exists already: Alembic keeps its version there
CREATE SCHEMA catvec;

CREATE TABLE catvec_store.models (
  model_id     smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name         text NOT NULL UNIQUE CHECK (name ~ '^[a-z][a-z0-9_]{0,39}$'),
  source       text NOT NULL,                                  -- Hub id, or 'folder'
  revision     text NOT NULL,                                  -- Hub commit, or sha256:… of a folder's weights
  location     text NOT NULL,                                  -- where it was loaded from last; no part of its identity
  preprocess   jsonb NOT NULL,
  fingerprint  text NOT NULL,                                  -- of preprocess
  dims         integer NOT NULL CHECK (dims BETWEEN 1 AND 4000),   -- 4000: limit of HNSW on halfvec
  has_text     boolean NOT NULL,
  state        text NOT NULL DEFAULT 'loading' CHECK (state IN ('loading', 'ready', 'active', 'retired')),
  created_at   timestamptz NOT NULL DEFAULT now(),
  activated_at timestamptz,
  UNIQUE (source, revision, fingerprint)                       -- one vector space, one name
);
CREATE UNIQUE INDEX models_one_active ON catvec_store.models ((true)) WHERE state = 'active';

CREATE TABLE catvec_store.products (
  product_id text PRIMARY KEY,
  catalog    text NOT NULL,
  title      text,
  category   text,
  brand      text,
  price      numeric,
  attrs      jsonb NOT NULL DEFAULT '{}',
  active     boolean NOT NULL DEFAULT true,
  updated_at timestamptz NOT NULL DEFAULT now(),
  removed_at timestamptz
);
CREATE INDEX products_catalog ON catvec_store.products (catalog);
CREATE INDEX products_category ON catvec_store.products (category);
CREATE INDEX products_brand ON catvec_store.products (brand);
CREATE INDEX products_price ON catvec_store.products (price);
CREATE INDEX products_attrs ON catvec_store.products USING gin (attrs jsonb_path_ops);

CREATE TABLE catvec_store.images (
  image_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  product_id     text NOT NULL REFERENCES catvec_store.products ON DELETE CASCADE,
  url            text NOT NULL,                                -- URL, path under the image root, or data URI
  position       integer NOT NULL,                             -- 0 is the product's first image
  active         boolean NOT NULL DEFAULT true,                -- inactive images are in no search result
  content_sha256 bytea CHECK (octet_length(content_sha256) = 32),   -- null: never fetched
  size_bytes     bigint,
  mime           text,
  width          integer,
  height         integer,
  etag           text,                                         -- echoed back verbatim as If-None-Match
  last_modified  text,                                         -- the same for If-Modified-Since
  checked_at     timestamptz
) WITH (fillfactor = 85);                                      -- room for HOT updates: etag, checked_at are not indexed
-- a hash, because a data URI is longer than an index entry may be
CREATE UNIQUE INDEX images_product_url ON catvec_store.images (product_id, hashtextextended(url, 0));
CREATE INDEX images_content ON catvec_store.images (content_sha256);

CREATE TABLE catvec_store.runs (
  run_id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  model_id     smallint REFERENCES catvec_store.models,
  catalog      text NOT NULL,
  state        text NOT NULL DEFAULT 'running'
               CHECK (state IN ('running', 'finished', 'stopped', 'failed', 'lost')),
  started_at   timestamptz NOT NULL DEFAULT now(),
  heartbeat_at timestamptz NOT NULL DEFAULT now(),
  finished_at  timestamptz,
  host         text NOT NULL,
  pid          integer NOT NULL,
  version      text NOT NULL,
  seen         bigint NOT NULL DEFAULT 0,
  unchanged    bigint NOT NULL DEFAULT 0,
  reused       bigint NOT NULL DEFAULT 0,
  embedded     bigint NOT NULL DEFAULT 0,
  failed       bigint NOT NULL DEFAULT 0,
  removed      bigint NOT NULL DEFAULT 0,
  error        text,
  last_write   uuid                                             -- the last transaction that counted here
) WITH (fillfactor = 50);                                      -- the counters are rewritten with every batch

-- why an image has no vector under a model; deleted by the transaction that writes the vector
CREATE TABLE catvec_store.failures (
  image_id     bigint NOT NULL REFERENCES catvec_store.images ON DELETE CASCADE,
  model_id     smallint NOT NULL REFERENCES catvec_store.models ON DELETE CASCADE,
  run_id       bigint NOT NULL,
  stage        text NOT NULL CHECK (stage IN ('fetch', 'decode', 'encode', 'store')),
  code         text NOT NULL,
  detail       text NOT NULL,
  is_retryable boolean NOT NULL,
  attempts     integer NOT NULL DEFAULT 1,
  first_at     timestamptz NOT NULL DEFAULT now(),
  last_at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (image_id, model_id)
);

-- what the last reading of a catalog could not use
CREATE TABLE catvec_store.bad_rows (
  catalog    text NOT NULL,
  row_number bigint NOT NULL,
  product_id text,
  url        text,
  code       text NOT NULL,
  detail     text NOT NULL,
  read_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX bad_rows_catalog ON catvec_store.bad_rows (catalog);

-- One table and one view per model: the only shape in which a plain ORDER BY embedding <=> $1 LIMIT k uses HNSW
-- and the dimension is checked by the type.
CREATE FUNCTION catvec_store.create_model_table(p_name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  dims integer;
BEGIN
  SELECT m.dims INTO STRICT dims FROM catvec_store.models m WHERE m.name = p_name;
  EXECUTE format($q$
    CREATE TABLE catvec_store.%1$I (
      content_sha256 bytea PRIMARY KEY CHECK (octet_length(content_sha256) = 32),
      embedding      halfvec(%2$s) NOT NULL CHECK (l2_norm(embedding) BETWEEN 0.99 AND 1.01),
      run_id         bigint NOT NULL,
      embedded_at    timestamptz NOT NULL DEFAULT now()
    ) WITH (
      parallel_workers = 4,                        -- else wide, TOASTed rows make every index build serial
      autovacuum_vacuum_scale_factor = 0.05,       -- dead rows cost recall in HNSW
      autovacuum_analyze_scale_factor = 0.02
    )$q$, 'emb_' || p_name, dims);
  -- no type modifier on the embedding: the active view can then be replaced across dimensions
  EXECUTE format($q$
    CREATE VIEW catvec.%1$I AS
    SELECT i.product_id, i.image_id, i.url, i.position, e.embedding::halfvec AS embedding, e.embedded_at
      FROM catvec_store.%2$I e
      JOIN catvec_store.images i ON i.content_sha256 = e.content_sha256
     WHERE i.active$q$, 'image_embeddings_' || p_name, 'emb_' || p_name);
END
$$;

CREATE FUNCTION catvec_store.activate_model(p_name text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  m catvec_store.models;
BEGIN
  SELECT * INTO m FROM catvec_store.models WHERE name = p_name FOR UPDATE;
  IF m.name IS NULL THEN
    RAISE EXCEPTION 'no model %', quote_literal(p_name) USING ERRCODE = 'undefined_object';
  ELSIF m.state NOT IN ('ready', 'active') THEN
    RAISE EXCEPTION 'model "%" is %, expected ready', p_name, m.state
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'finish a run with this model first';
  END IF;
  EXECUTE format($q$
    CREATE OR REPLACE VIEW catvec.image_embeddings AS
    SELECT product_id, image_id, url, position, embedding, embedded_at FROM catvec.%I$q$, 'image_embeddings_' || p_name);
  UPDATE catvec_store.models SET state = 'ready' WHERE state = 'active' AND name <> p_name;
  UPDATE catvec_store.models SET state = 'active', activated_at = now() WHERE name = p_name AND state <> 'active';
END
$$;
