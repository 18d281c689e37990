-- What several boxes side by side need: which share of the catalog a run does, and whether it has seen it through.

ALTER TABLE catvec_store.runs
  ADD COLUMN shard   text CHECK (shard ~ '^[0-9]{1,4}/[0-9]{1,4}$'),   -- null: all of the catalog
  ADD COLUMN done_at timestamptz;                 -- a shard has seen its share through; what concerns the whole table
                                                  -- (its index …) is for the last of them
