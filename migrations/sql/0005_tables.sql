-- What products are, as a model judges them: the answers to a shop's questions (attributes), one row for each label that
-- fits.

-- An edition of an attribute: its labels and how they are judged never change. When they do, a new edition is filled
-- beside the current one and takes its place whole, so that apps never see answers to two questions mixed.
CREATE TABLE catvec_store.tag_attributes (
  attribute_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  model_id     smallint NOT NULL REFERENCES catvec_store.models ON DELETE CASCADE,
  attribute    text NOT NULL CHECK (attribute <> ''),
  labels       text[] NOT NULL,
  question     text NOT NULL,                      -- digest of labels, words and templates, or of a trained head
  threshold    double precision NOT NULL,
  temperature  double precision CHECK (temperature > 0),   -- found by calibrating; null: the model's own
  is_current   boolean NOT NULL DEFAULT false,
  created_at   timestamptz NOT NULL DEFAULT now()
);
-- one that apps read, and one that is being filled
CREATE UNIQUE INDEX tag_attributes_edition ON catvec_store.tag_attributes (model_id, attribute, is_current);

CREATE TABLE catvec_store.product_tags (
  product_id   text NOT NULL REFERENCES catvec_store.products ON DELETE CASCADE,
  attribute_id integer NOT NULL REFERENCES catvec_store.tag_attributes ON DELETE CASCADE,
  label        text NOT NULL,
  probability  real NOT NULL CHECK (probability BETWEEN 0 AND 1),
  contents     bytea NOT NULL,                     -- digest of the product's images when they were judged
  PRIMARY KEY (product_id, attribute_id, label)    -- the tags of a product, and what goes with it when it is forgotten
);
-- the products of a label; and what goes with an edition
CREATE INDEX product_tags_label ON catvec_store.product_tags (attribute_id, label, product_id);

CREATE OR REPLACE FUNCTION catvec_store.retire_model(p_name text) RETURNS void
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
  DELETE FROM catvec_store.tag_attributes WHERE model_id = m.model_id;
  EXECUTE format('DROP VIEW IF EXISTS catvec.%I', 'image_embeddings_' || m.name);
  EXECUTE format('DROP TABLE IF EXISTS catvec_store.%I', 'emb_' || m.name);
  UPDATE catvec_store.models SET state = 'retired', retired_at = now() WHERE model_id = m.model_id;
END
$$;

-- Writers of the release before may tag, too: catvec db grant gives the same to those who come.
DO $$
DECLARE
  writer record;
BEGIN
  FOR writer IN
    SELECT DISTINCT quote_ident(pg_get_userbyid(acl.grantee)) AS name
      FROM pg_class c
     CROSS JOIN aclexplode(c.relacl) AS acl
     WHERE c.oid = 'catvec_store.products'::regclass
       AND acl.privilege_type = 'INSERT'
       AND acl.grantee NOT IN (0, c.relowner)
  LOOP
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON catvec_store.tag_attributes, catvec_store.product_tags TO %s',
                   writer.name);
  END LOOP;
END
$$;
