-- What unattended runs need: what left the catalog and when, what is to be tried again and when, what each run came to.

-- `missing_since`: not in the catalog as read last; `active` turns false at the end of the run that saw it through.
-- `removed_at` of products is when they left the search results. What older releases removed has no `missing_since`: to set
-- it here would hold up readers for seconds; runs take it as missing since they first saw it.
ALTER TABLE catvec_store.products
  ADD COLUMN first_seen_at timestamptz NOT NULL DEFAULT now(),
  ADD COLUMN missing_since timestamptz;

ALTER TABLE catvec_store.images
  ADD COLUMN first_seen_at timestamptz NOT NULL DEFAULT now(),
  ADD COLUMN missing_since timestamptz,
  ADD COLUMN fetched_at    timestamptz,             -- the bytes were read last; checked_at moves with a 304, too.
                                                    -- null for images of older releases: then checked_at is both
  ADD COLUMN changed_at    timestamptz,             -- other bytes were found behind the same reference last
  -- a run may write checked_at of every row: only where the page has room for both versions is that a HOT update,
  -- which leaves the indexes alone
  SET (fillfactor = 45);

-- permanent: looked at again when its row, URL or validator changes, or when somebody asks; transient: the server or the
-- network may recover; ours: catvec, the model or the database refused
ALTER TABLE catvec_store.failures
  ADD COLUMN kind          text NOT NULL DEFAULT 'permanent' CHECK (kind IN ('permanent', 'transient', 'ours')),
  ADD COLUMN next_try_at   timestamptz,             -- null: not by the clock alone
  ADD COLUMN etag          text,                    -- of the bytes that could not be used
  ADD COLUMN last_modified text;
UPDATE catvec_store.failures
   SET kind = CASE WHEN stage IN ('encode', 'store') OR code IN ('internal_error', 'private_host', 'no_image_root') THEN 'ours'
                   WHEN is_retryable OR code IN ('not_an_image', 'dns') THEN 'transient'
                   ELSE 'permanent' END;
UPDATE catvec_store.failures SET next_try_at = now() WHERE kind <> 'permanent';

ALTER TABLE catvec_store.runs
  ADD COLUMN summary jsonb;                         -- what `catvec run --json` printed

-- content with a vector that no image shows any more, and since when: its vector is kept for a while, because pictures
-- come back
CREATE TABLE catvec_store.unused_contents (
  model_id       smallint NOT NULL REFERENCES catvec_store.models ON DELETE CASCADE,
  content_sha256 bytea NOT NULL CHECK (octet_length(content_sha256) = 32),
  since          timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (model_id, content_sha256)
);

-- Writers of the release before get what their runs now need: they forget what left long ago.
DO $$
DECLARE
  writer   record;
  deletes  text;
BEGIN
  SELECT 'catvec_store.products, catvec_store.images'
         || string_agg(format(', catvec_store.%I', 'emb_' || m.name), '' ORDER BY m.name)
           FILTER (WHERE m.state <> 'retired')
    INTO deletes
    FROM catvec_store.models m;
  FOR writer IN
    SELECT DISTINCT quote_ident(pg_get_userbyid(acl.grantee)) AS name
      FROM pg_class c
     CROSS JOIN aclexplode(c.relacl) AS acl
     WHERE c.oid = 'catvec_store.products'::regclass
       AND acl.privilege_type = 'INSERT'
       AND acl.grantee NOT IN (0, c.relowner)
  LOOP
    EXECUTE format('GRANT DELETE ON %s TO %s', coalesce(deletes, 'catvec_store.products, catvec_store.images'), writer.name);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON catvec_store.unused_contents TO %s', writer.name);
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA catvec_store GRANT DELETE ON TABLES TO %s', writer.name);
  END LOOP;
END
$$;
