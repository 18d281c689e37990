-- The functions that apps call, second edition: right with filters that leave out what is near, the mean of a
-- product's images, batches, stored texts, duplicates, binary indexes.
--
-- Settings of the index are made with set_config inside the bodies: a SET clause for them would make pg_restore fail
-- for everybody but a superuser. Settings of PostgreSQL itself stand in SET clauses and end with the function.

CREATE OR REPLACE FUNCTION catvec.choose_model(model text DEFAULT NULL) RETURNS catvec.models
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  chosen catvec.models;
BEGIN
  SELECT * INTO chosen FROM catvec.models m
   WHERE CASE WHEN choose_model.model IS NULL THEN m.is_active ELSE m.name = choose_model.model END;
  IF chosen.name IS NULL AND choose_model.model IS NULL THEN
    RAISE EXCEPTION 'no model is active yet' USING ERRCODE = '55000', HINT = 'finish a first catvec run';
  ELSIF chosen.name IS NULL THEN
    RAISE EXCEPTION 'no model "%", there are: %', choose_model.model,
        (SELECT coalesce(string_agg(m.name, ', ' ORDER BY m.name), 'none') FROM catvec.models m WHERE m.state <> 'retired')
      USING ERRCODE = '22023';
  -- also for a transaction that began before it was dropped, and does not see that
  ELSIF chosen.state = 'retired' OR to_regclass(format('catvec.%I', 'image_embeddings_' || chosen.name)) IS NULL THEN
    RAISE EXCEPTION 'model "%" was retired on %, its vectors are gone', chosen.name,
        coalesce(chosen.retired_at, now())::date
      USING ERRCODE = '22023',
            HINT = format('encode the query with model "%s" and name that one, or none',
                          (SELECT m.name FROM catvec.models m WHERE m.is_active));
  END IF;
  RETURN chosen;
END
$$;

-- The condition on catvec.products p that a filter means. category and brand take a text or a list of texts, price
-- takes {"min": …, "max": …}, every other key is compared with attrs: a list there means any of these, and an
-- attribute that is a list itself is met by what it contains.
CREATE OR REPLACE FUNCTION catvec.filter_condition(filter jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  key       text;
  value     jsonb;
  choices   jsonb;
  condition text := '';
BEGIN
  IF filter IS NULL THEN
    RETURN '';
  ELSIF jsonb_typeof(filter) <> 'object' THEN
    RAISE EXCEPTION 'filter is a JSON %, expected an object', jsonb_typeof(filter)
      USING ERRCODE = '22023', HINT = 'for example {"category": "dress", "price": {"max": 50}}';
  END IF;
  FOR key, value IN SELECT * FROM jsonb_each(filter) LOOP
    choices := CASE jsonb_typeof(value) WHEN 'array' THEN value ELSE jsonb_build_array(value) END;
    IF key IN ('category', 'brand') THEN
      IF choices @? '$[*] ? (@.type() != "string")' THEN
        RAISE EXCEPTION 'filter key "%" is %, expected a text or a list of texts', key, value USING ERRCODE = '22023';
      END IF;
      condition := condition || format(' AND p.%I = ANY (%L)', key, ARRAY(SELECT jsonb_array_elements_text(choices)));
    ELSIF key = 'price' THEN
      IF jsonb_typeof(value) <> 'object' OR value - ARRAY['min', 'max'] <> '{}'
         OR value @? '$.* ? (@.type() != "number")' THEN
        RAISE EXCEPTION 'filter key "price" is %, expected {"min": number, "max": number}, either or both', value
          USING ERRCODE = '22023';
      END IF;
      IF value ? 'min' THEN
        condition := condition || format(' AND p.price >= %L::numeric', value ->> 'min');
      END IF;
      IF value ? 'max' THEN
        condition := condition || format(' AND p.price <= %L::numeric', value ->> 'max');
      END IF;
    ELSIF key IN ('product_id', 'title', 'active') THEN
      RAISE EXCEPTION 'filter key "%" is not one to filter by, expected category, brand, price or an attribute', key
        USING ERRCODE = '22023';
    ELSE
      -- containment, so that the index on attrs answers it
      condition := condition || ' AND ' || coalesce(
        (SELECT '(' || string_agg(format('p.attrs @> %L::jsonb OR p.attrs @> %L::jsonb',
                                         jsonb_build_object(key, c.choice),
                                         jsonb_build_object(key, jsonb_build_array(c.choice))), ' OR ') || ')'
           FROM jsonb_array_elements(choices) AS c (choice)), 'false');
    END IF;
  END LOOP;
  RETURN condition;
END
$$;

-- The images nearest to $1 as the index of the model gives them, as text of a query: product_id, image_id,
-- content_sha256, distance. No filter stands within: an index stops when it has seen ef_search images, or walks on until
-- its LIMIT is full, and then what it finds far from the query is not what is nearest there (the columns "by hand" in
-- benchmarks/README.md).
CREATE FUNCTION catvec.nearest_images_query(chosen catvec.models, wanted bigint) RETURNS text
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
  SELECT CASE chosen.index_kind
    WHEN 'binary' THEN
      -- one bit a dimension: many more are fetched, and compared by their embeddings
      format('SELECT b.product_id, b.image_id, b.content_sha256, b.embedding <=> $1 AS distance'
             '  FROM (SELECT v.product_id, v.image_id, v.content_sha256, v.embedding'
             '          FROM catvec.%1$I v'
             '         ORDER BY binary_quantize(v.embedding)::bit(%2$s) <~> binary_quantize($1)::bit(%2$s)'
             '         LIMIT %3$s) b',
             'image_embeddings_' || chosen.name, chosen.dims, greatest(10 * wanted, chosen.ef_search))
    ELSE
      format('SELECT v.product_id, v.image_id, v.content_sha256, v.embedding <=> $1 AS distance'
             '  FROM catvec.%1$I v'
             ' ORDER BY v.embedding <=> $1'
             ' LIMIT %2$s',
             'image_embeddings_' || chosen.name, wanted)
    END
$$;

-- Prepares the index for a search that looks at so many images; returns what to hand to restore_index_settings.
CREATE FUNCTION catvec.prepare_index(wanted bigint) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  before jsonb := jsonb_build_object(
    'hnsw.iterative_scan', current_setting('hnsw.iterative_scan', true),
    'hnsw.max_scan_tuples', current_setting('hnsw.max_scan_tuples', true),
    'hnsw.scan_mem_multiplier', current_setting('hnsw.scan_mem_multiplier', true),
    'hnsw.ef_search', current_setting('hnsw.ef_search', true));
BEGIN
  -- beyond ef_search a scan goes on instead of ending with too few; relaxed, because it is sorted afterwards
  PERFORM set_config('hnsw.iterative_scan', 'relaxed_order', true),
          set_config('hnsw.max_scan_tuples', '2147483647', true),
          set_config('hnsw.scan_mem_multiplier', '64', true),
          set_config('hnsw.ef_search', least(1000, wanted)::text, true);
  RETURN before;
END
$$;

CREATE FUNCTION catvec.restore_index_settings(before jsonb) RETURNS void
LANGUAGE sql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
  SELECT set_config(s.key, s.value, true) FROM jsonb_each_text(before) AS s
$$;

-- Refuses numbers that mean nothing.
CREATE FUNCTION catvec.check_arguments(k integer, min_similarity float8) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF k IS NULL OR k NOT BETWEEN 1 AND 1000 THEN
    RAISE EXCEPTION 'k is %, expected 1 to 1000', coalesce(k::text, 'null') USING ERRCODE = '22023';
  ELSIF min_similarity = 'NaN' THEN
    RAISE EXCEPTION 'min_similarity is NaN, expected -1 to 1' USING ERRCODE = '22023';
  END IF;
END
$$;

-- The products nearest to a vector, best image each, nearest first. Fewer than k rows only when fewer exist.
--
-- A filter that keeps few products: all of these are compared. Else the nearest images are taken from the index and
-- filtered afterwards, more of them when too few are left; and when that would be too many, all are compared.
CREATE OR REPLACE FUNCTION catvec.search_by_vector(
    query           @VECTOR@.halfvec,
    k               integer DEFAULT 10,
    filter          jsonb   DEFAULT '{}',
    model           text    DEFAULT NULL,
    exclude_product text    DEFAULT NULL,
    min_similarity  float8  DEFAULT -1)
RETURNS SETOF catvec.hit
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, @VECTOR@, pg_temp
SET random_page_cost = 1.1        -- what is searched often is in memory
SET enable_hashjoin = off         -- few rows are joined by their keys
SET enable_mergejoin = off
SET jit = off                     -- compiling takes longer than the query
AS $$
DECLARE
  chosen      catvec.models := catvec.choose_model(model);
  condition   text := catvec.filter_condition(filter);
  wanted      bigint;
  enough      bigint;
  few         bigint;
  most        bigint;
  kept        bigint;
  beam        bigint := chosen.ef_search;
  compare_all boolean := false;
  near        text;
  before      jsonb;
  found       bigint;
  nearest     float8;
  products    bigint;
  hits        catvec.hit[];
BEGIN
  PERFORM catvec.check_arguments(k, min_similarity);
  IF query IS NULL THEN
    RAISE EXCEPTION 'the query vector is null' USING ERRCODE = '22004';
  ELSIF vector_dims(query) <> chosen.dims THEN
    RAISE EXCEPTION 'the query vector has % dimensions, model "%" has %', vector_dims(query), chosen.name, chosen.dims
      USING ERRCODE = '22023', HINT = 'was it made by another model? name that one in the argument model';
  ELSIF l2_norm(query) = 0 THEN
    RAISE EXCEPTION 'the query vector is zero, which is near to nothing' USING ERRCODE = '22023';
  END IF;
  -- images to look at first: several of one product become one hit
  wanted := 4 * k + 20;
  -- usable products among these that make the first k trusted: a binary index knows the order only roughly
  enough := k * CASE chosen.index_kind WHEN 'binary' THEN 10 ELSE 1 END;
  -- With x of n products kept, about 3 k n / x images from the index are needed, and an image from there costs three
  -- times what a product costs by its keys: up to the root of 9 k n products it is as quick to compare them all.
  few := ceil(sqrt(9.0 * k * greatest(chosen.vectors, 1000)));
  -- one search of the index gives 1,000 images well; beyond, it is worth going on in large tables only
  most := greatest(1000, sqrt(1.0 * k * chosen.vectors));
  kept := few;
  IF condition <> '' THEN
    EXECUTE format('SELECT count(*) FROM (SELECT FROM catvec.products p WHERE p.active %s LIMIT %s) few',
                   condition, few)
      INTO kept;
    compare_all := kept < few;
  END IF;
  IF exclude_product IS NOT NULL THEN
    condition := condition || ' AND p.product_id <> $2';
  END IF;
  LOOP
    IF compare_all THEN
      IF kept >= few THEN
        PERFORM set_config('enable_hashjoin', 'on', true);
      END IF;
      -- + 0, because no index is wanted here: it would be asked to leave out most of what it finds
      near := format($q$
        SELECT v.product_id, v.image_id, v.embedding <=> $1 AS distance
          FROM catvec.products p
          JOIN catvec.%I v ON v.product_id = p.product_id
         WHERE p.active %s
         ORDER BY (v.embedding <=> $1) + 0
         LIMIT %s$q$, 'image_embeddings_' || chosen.name, condition, wanted);
    ELSE
      -- OFFSET 0 keeps the lookups by key that were meant
      near := format($q$
        SELECT n.product_id, n.image_id, n.distance
          FROM (%s) n
         CROSS JOIN LATERAL (
           SELECT FROM catvec.products p WHERE p.product_id = n.product_id AND p.active %s OFFSET 0) p
        $q$, catvec.nearest_images_query(chosen, wanted), condition);
    END IF;
    before := catvec.prepare_index(greatest(wanted, beam));
    EXECUTE format($q$
      WITH near AS MATERIALIZED (%s),
      best AS (
        SELECT DISTINCT ON (product_id) product_id, image_id, distance
          FROM near
         ORDER BY product_id, distance, image_id),
      top AS (
        SELECT * FROM best WHERE 1 - distance >= $3 ORDER BY distance, product_id LIMIT %s)
      SELECT (SELECT count(*) FROM near),
             (SELECT min(distance) FROM near),
             (SELECT count(*) FROM best),
             (SELECT array_agg(ROW(t.product_id, p.title, p.category, p.brand, p.price, t.image_id, i.url,
                                   1 - t.distance)::catvec.hit
                               ORDER BY t.distance, t.product_id)
                FROM top t
                JOIN catvec.products p ON p.product_id = t.product_id
                JOIN catvec.%I i ON i.image_id = t.image_id)
      $q$, near, k, 'image_embeddings_' || chosen.name)
      INTO found, nearest, products, hits
      USING query, exclude_product, coalesce(min_similarity, -1);
    PERFORM catvec.restore_index_settings(before);
    IF compare_all THEN
      EXIT WHEN products >= k OR found < wanted;
      wanted := 16 * wanted;
    ELSIF beam < 1000 AND coalesce(nearest, 1) > 0.5 THEN
      -- What is asked lies off the images, as words do (a text and its image have a cosine of 0.3, two images 0.6), or
      -- the filter leaves out all that is near: there the way through the index is easily lost, so look wider.
      beam := 1000;
    ELSE
      EXIT WHEN products >= enough;
      -- twice as many as the share of products among these says
      wanted := CASE products WHEN 0 THEN 16 * wanted ELSE ceil(2.0 * enough * wanted / products) END;
      compare_all := wanted > most;
      IF compare_all THEN
        wanted := 4 * k + 20;
      END IF;
    END IF;
  END LOOP;
  RETURN QUERY SELECT * FROM unnest(hits);
END
$$;

-- The same for drivers that send float8[]; numbers of any size, because only the direction matters.
CREATE OR REPLACE FUNCTION catvec.search_by_array(
    query           double precision[],
    k               integer DEFAULT 10,
    filter          jsonb   DEFAULT '{}',
    model           text    DEFAULT NULL,
    exclude_product text    DEFAULT NULL,
    min_similarity  float8  DEFAULT -1)
RETURNS SETOF catvec.hit
LANGUAGE sql STABLE
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
  SELECT *
    FROM catvec.search_by_vector(l2_normalize(query::vector)::halfvec, k, filter, model, exclude_product, min_similarity)
$$;

DROP FUNCTION catvec.similar_products(text, integer, jsonb, text, float8);

-- The products nearest to a product, itself left out. combine says what several images mean: 'best' is the best pair
-- of any of its images with any of theirs, 'mean' compares the mean of its images with each of theirs. No rows when
-- it has no vector yet.
CREATE FUNCTION catvec.similar_products(
    product_id     text,
    k              integer DEFAULT 10,
    filter         jsonb   DEFAULT '{}',
    model          text    DEFAULT NULL,
    min_similarity float8  DEFAULT -1,
    combine        text    DEFAULT 'best')
RETURNS SETOF catvec.hit
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  chosen  catvec.models := catvec.choose_model(model);
  queries text;
BEGIN
  queries := CASE combine
    WHEN 'best' THEN 'SELECT DISTINCT v.embedding AS query FROM catvec.%1$I v WHERE v.product_id = $1'
    -- no images, and images that cancel each other out, have no mean to search with
    WHEN 'mean' THEN 'SELECT l2_normalize(avg(v.embedding)) AS query FROM catvec.%1$I v WHERE v.product_id = $1'
                     ' HAVING count(*) > 0 AND l2_norm(avg(v.embedding)) > 0'
    END;
  PERFORM catvec.check_arguments(k, min_similarity);
  IF queries IS NULL THEN
    RAISE EXCEPTION 'combine is %, expected ''best'' or ''mean''', quote_nullable(combine) USING ERRCODE = '22023';
  ELSIF NOT EXISTS (SELECT FROM catvec.products p WHERE p.product_id = similar_products.product_id) THEN
    RAISE EXCEPTION 'no product %', quote_nullable(similar_products.product_id) USING ERRCODE = 'no_data_found';
  END IF;
  RETURN QUERY EXECUTE format($q$
    SELECT (best.hit).*
      FROM (SELECT DISTINCT ON ((h.hit).product_id) h.hit
              FROM ($q$ || queries || $q$) q
             CROSS JOIN LATERAL (
               SELECT s AS hit FROM catvec.search_by_vector(q.query, $2, $3, $4, $1, $5) s) h
             ORDER BY (h.hit).product_id, (h.hit).similarity DESC) best
     ORDER BY (best.hit).similarity DESC, (best.hit).product_id
     LIMIT $2$q$, 'image_embeddings_' || chosen.name)
    USING similar_products.product_id, k, filter, chosen.name, min_similarity;
END
$$;

-- The same for many products in one call, each once, in the order asked for. Products that are unknown, or have no
-- vector yet, have no rows.
CREATE FUNCTION catvec.similar_products_batch(
    product_ids    text[],
    k              integer DEFAULT 10,
    filter         jsonb   DEFAULT '{}',
    model          text    DEFAULT NULL,
    min_similarity float8  DEFAULT -1,
    combine        text    DEFAULT 'best')
RETURNS TABLE (query_product text, rank integer, product_id text, title text, category text, brand text,
               price numeric, image_id bigint, url text, similarity float8)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  chosen catvec.models := catvec.choose_model(model);
BEGIN
  -- refused also when no product is known, and nothing would be searched
  PERFORM catvec.check_arguments(k, min_similarity), catvec.filter_condition(filter);
  RETURN QUERY
    SELECT q.id, h.rank::integer, h.product_id, h.title, h.category, h.brand, h.price, h.image_id, h.url, h.similarity
      FROM (SELECT a.id, min(a.place) AS place
              FROM unnest(product_ids) WITH ORDINALITY AS a (id, place)
              JOIN catvec.products p ON p.product_id = a.id
             GROUP BY a.id) q
     CROSS JOIN LATERAL catvec.similar_products(q.id, k, filter, chosen.name, min_similarity, combine)
       WITH ORDINALITY AS h (product_id, title, category, brand, price, image_id, url, similarity, rank)
     ORDER BY q.place, h.rank;
END
$$;

-- The products nearest to a stored text (catvec queries add NAME "text").
CREATE FUNCTION catvec.search_by_query(
    name           text,
    k              integer DEFAULT 10,
    filter         jsonb   DEFAULT '{}',
    model          text    DEFAULT NULL,
    min_similarity float8  DEFAULT -1)
RETURNS SETOF catvec.hit
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  chosen catvec.models := catvec.choose_model(model);
  stored catvec.queries;
BEGIN
  SELECT * INTO stored
    FROM catvec.queries q
   WHERE q.name = search_by_query.name
   ORDER BY (q.model = chosen.name) DESC NULLS LAST
   LIMIT 1;
  IF stored.name IS NULL THEN
    RAISE EXCEPTION 'no stored query %', quote_nullable(search_by_query.name)
      USING ERRCODE = 'no_data_found', HINT = 'see the view catvec.queries; make one with: catvec queries add NAME TEXT';
  ELSIF stored.model IS DISTINCT FROM chosen.name THEN
    RAISE EXCEPTION 'stored query "%" has no vector under model "%"', stored.name, chosen.name
      USING ERRCODE = '55000', HINT = format('run: catvec queries refresh --model %s', chosen.name);
  END IF;
  RETURN QUERY SELECT * FROM catvec.search_by_vector(
    stored.embedding, k, filter, chosen.name, min_similarity => search_by_query.min_similarity);
END
$$;

-- Pairs of images that show the same bytes, or are at least this similar, for catvec.duplicates.
CREATE FUNCTION catvec.duplicate_images(threshold float8, chosen catvec.models)
RETURNS TABLE (product_id text, image_id bigint, other_id text, other_image_id bigint, similarity float8,
               same_bytes boolean)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, @VECTOR@, pg_temp
SET jit = off
AS $$
#variable_conflict use_column
DECLARE
  -- the first product of each content stands for all that show it
  shown    text := format($q$
    SELECT DISTINCT ON (v.content_sha256) v.product_id, v.image_id, v.content_sha256, v.embedding
      FROM catvec.%I v
      JOIN catvec.products p ON p.product_id = v.product_id
     WHERE p.active
     ORDER BY v.content_sha256, v.product_id, v.image_id$q$, 'image_embeddings_' || chosen.name);
  before   jsonb;
  one      record;
  wanted   bigint;
  found    bigint;
  farthest float8;
  others   bigint;
BEGIN
  RETURN QUERY EXECUTE format($q$
    SELECT f.product_id, f.image_id, v.product_id, v.image_id, 1::float8, true
      FROM (%s) f
      JOIN catvec.%I v ON v.content_sha256 = f.content_sha256
      JOIN catvec.products p ON p.product_id = v.product_id
     WHERE p.active
       AND v.product_id <> f.product_id$q$, shown, 'image_embeddings_' || chosen.name);
  FOR one IN EXECUTE shown LOOP
    wanted := 10;
    LOOP
      before := catvec.prepare_index(greatest(wanted, chosen.ef_search));
      EXECUTE format($q$
        SELECT count(*), max(n.distance),
               count(*) FILTER (WHERE 1 - n.distance >= $2 AND n.content_sha256 > $3)
          FROM (%s) n$q$, catvec.nearest_images_query(chosen, wanted))
        INTO found, farthest, others
        USING one.embedding, threshold, one.content_sha256;
      PERFORM catvec.restore_index_settings(before);
      -- all that is near enough is among them when the last is not
      EXIT WHEN found < wanted OR 1 - farthest < threshold;
      wanted := 4 * wanted;
    END LOOP;
    CONTINUE WHEN others = 0;
    before := catvec.prepare_index(greatest(wanted, chosen.ef_search));
    RETURN QUERY EXECUTE format($q$
      SELECT DISTINCT ON (n.content_sha256)
             $2, $3, n.product_id, n.image_id, 1 - n.distance, false
        FROM (%s) n
        JOIN catvec.products p ON p.product_id = n.product_id
       WHERE p.active
         AND n.content_sha256 > $4
         AND n.product_id <> $2
         AND 1 - n.distance >= $5
       ORDER BY n.content_sha256, n.product_id, n.image_id$q$, catvec.nearest_images_query(chosen, wanted))
      USING one.embedding, one.product_id, one.image_id, one.content_sha256, threshold;
    PERFORM catvec.restore_index_settings(before);
  END LOOP;
END
$$;

-- Products that show the same bytes, or images at least this similar: one row for a pair, the lesser id first, with
-- its most similar images. Each product of a group with the same bytes is paired with the first of the group, which
-- alone stands for them in the pairs of similar images: so a placeholder shown by 1,000 products gives 999 rows, and
-- not half a million.
CREATE FUNCTION catvec.duplicates(threshold float8 DEFAULT 0.98, model text DEFAULT NULL)
RETURNS TABLE (product_id text, duplicate_id text, similarity float8, same_bytes boolean, image_id bigint,
               duplicate_image_id bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  chosen catvec.models := catvec.choose_model(model);
BEGIN
  IF threshold IS NULL OR threshold NOT BETWEEN 0 AND 1 THEN
    RAISE EXCEPTION 'threshold is %, expected 0 to 1', coalesce(threshold::text, 'null') USING ERRCODE = '22023';
  END IF;
  RETURN QUERY
    SELECT DISTINCT ON (d.product_id, d.duplicate_id) d.*
      FROM (SELECT least(i.product_id, i.other_id) AS product_id, greatest(i.product_id, i.other_id) AS duplicate_id,
                   i.similarity, i.same_bytes,
                   CASE WHEN i.product_id < i.other_id THEN i.image_id ELSE i.other_image_id END AS image_id,
                   CASE WHEN i.product_id < i.other_id THEN i.other_image_id ELSE i.image_id END AS duplicate_image_id
              FROM catvec.duplicate_images(threshold, chosen) i) d
     ORDER BY d.product_id, d.duplicate_id, d.same_bytes DESC, d.similarity DESC, d.image_id, d.duplicate_image_id;
END
$$;
