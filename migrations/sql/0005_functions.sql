-- Filters by tag, and vectors of several things.

-- The condition on catvec.products p that the key tag:… of a filter means, under the tags of this model, else of the
-- active one.
CREATE FUNCTION catvec.tag_condition(key text, choices jsonb, model text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  chosen catvec.models := catvec.choose_model(model);
  tagged catvec.tag_attributes;
  wrong  text;
BEGIN
  SELECT * INTO tagged FROM catvec.tag_attributes a WHERE a.model = chosen.name AND 'tag:' || a.attribute = key;
  IF tagged.attribute IS NULL THEN
    RAISE EXCEPTION 'filter key "%": model "%" has tagged no such attribute, there are: %', key, chosen.name,
        (SELECT coalesce(string_agg('tag:' || a.attribute, ', ' ORDER BY a.attribute), 'none')
           FROM catvec.tag_attributes a WHERE a.model = chosen.name)
      USING ERRCODE = '22023', HINT = format('catvec tag LABELS.yaml --model %s tags products', chosen.name);
  ELSIF choices @? '$[*] ? (@.type() != "string")' THEN
    RAISE EXCEPTION 'filter key "%" is %, expected a label or a list of labels', key, choices USING ERRCODE = '22023';
  END IF;
  SELECT c.label INTO wrong
    FROM jsonb_array_elements_text(choices) AS c (label)
   WHERE c.label <> ALL (tagged.labels) AND c.label <> 'unknown'
   LIMIT 1;
  IF wrong IS NOT NULL THEN
    RAISE EXCEPTION 'filter key "%" has the label "%", there are: %', key, wrong,
        array_to_string(tagged.labels[:20] || CASE WHEN cardinality(tagged.labels) > 20 THEN '…'::text END, ', ')
      USING ERRCODE = '22023';
  END IF;
  -- of one label, the primary key says that no product has it twice: then what is wanted is read and no more
  RETURN format(' AND EXISTS (SELECT FROM catvec.tag_rows t WHERE t.attribute_id = %s AND t.label %s'
                ' AND t.product_id = p.product_id)',
                tagged.attribute_id,
                CASE jsonb_array_length(choices)
                  WHEN 1 THEN format('= %L', choices ->> 0)
                  ELSE format('= ANY (%L)', ARRAY(SELECT jsonb_array_elements_text(choices)))
                END);
END
$$;

DROP FUNCTION catvec.filter_condition(jsonb);

-- The condition on catvec.products p that a filter means. category and brand take a text or a list of texts, price
-- takes {"min": …, "max": …}, "tag:colour" a label of that attribute or a list of them, under this model, else the active
-- one; every other key is compared with attrs: a list there means any of these, and an attribute that is a list itself is
-- met by what it contains.
CREATE FUNCTION catvec.filter_condition(filter jsonb, model text DEFAULT NULL) RETURNS text
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
    ELSIF key LIKE 'tag:%' THEN
      condition := condition || catvec.tag_condition(key, choices, model);
    ELSIF key IN ('product_id', 'title', 'active') THEN
      RAISE EXCEPTION 'filter key "%" is not one to filter by, expected category, brand, price, tag:… or an attribute', key
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

-- The functions that search, as before but that filters go by the tags of the model that is searched.

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
  condition   text := catvec.filter_condition(filter, chosen.name);
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

-- The same for many products in one call, each once, in the order asked for. Products that are unknown, or have no
-- vector yet, have no rows.
CREATE OR REPLACE FUNCTION catvec.similar_products_batch(
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
  PERFORM catvec.check_arguments(k, min_similarity), catvec.filter_condition(filter, chosen.name);
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

-- The unit vector of a product, the mean of its images'; null when it has none yet, or they cancel each other out.
CREATE FUNCTION catvec.product_vector(product_id text, model text DEFAULT NULL) RETURNS @VECTOR@.halfvec
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  chosen catvec.models := catvec.choose_model(model);
  found  halfvec;
BEGIN
  IF NOT EXISTS (SELECT FROM catvec.products p WHERE p.product_id = product_vector.product_id) THEN
    RAISE EXCEPTION 'no product %', quote_nullable(product_vector.product_id) USING ERRCODE = 'no_data_found';
  END IF;
  EXECUTE format('SELECT l2_normalize(avg(v.embedding)) FROM catvec.%I v WHERE v.product_id = $1'
                 ' HAVING count(*) > 0 AND l2_norm(avg(v.embedding)) > 0', 'image_embeddings_' || chosen.name)
    INTO found
    USING product_vector.product_id;
  RETURN found;
END
$$;

-- The unit vector in the direction of the weighted sum of these, each made a unit vector first; a negative weight leads
-- away. Without weights each counts 1.
CREATE FUNCTION catvec.combine_vectors(vectors @VECTOR@.halfvec[], weights float8[] DEFAULT NULL)
RETURNS @VECTOR@.halfvec
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  given integer := coalesce(cardinality(vectors), 0);
  shares float8[] := coalesce(weights, array_fill(1::float8, ARRAY[given]));
  total  vector;
BEGIN
  IF given = 0 THEN
    RAISE EXCEPTION 'there is no vector to combine' USING ERRCODE = '22023';
  ELSIF cardinality(shares) <> given THEN
    RAISE EXCEPTION 'there are % vectors and % weights, expected one for each', given, cardinality(shares)
      USING ERRCODE = '22023';
  ELSIF array_position(shares, NULL) IS NOT NULL
        -- NaN is greater than everything; the sum is of 32 bits a number, which hold 1e-38 to 1e38
        OR EXISTS (SELECT FROM unnest(shares) AS s (share)
                    WHERE s.share <> 0 AND abs(s.share) NOT BETWEEN 1e-6 AND 1e6) THEN
    RAISE EXCEPTION 'the weights are %, expected numbers of a size from 0.000001 to 1000000, or 0', shares
      USING ERRCODE = '22023', HINT = 'only how they compare with each other matters';
  END IF;
  FOR place IN 1 .. given LOOP
    IF vectors[place] IS NULL THEN
      RAISE EXCEPTION 'vector % is null', place
        USING ERRCODE = '22004', HINT = 'a product that has no vector yet has none to combine';
    ELSIF vector_dims(vectors[place]) <> vector_dims(vectors[1]) THEN
      RAISE EXCEPTION 'vector 1 has % dimensions and vector % has %, expected vectors of one model',
        vector_dims(vectors[1]), place, vector_dims(vectors[place]) USING ERRCODE = '22023';
    ELSIF l2_norm(vectors[place]) = 0 THEN
      RAISE EXCEPTION 'vector % is zero, which has no direction', place USING ERRCODE = '22023';
    END IF;
  END LOOP;
  SELECT array_agg(s.number ORDER BY s.dimension)::vector INTO total
    FROM (SELECT n.dimension, sum(p.share * n.number) AS number
            FROM unnest(vectors, shares) AS p (part, share)
           -- 32 bits a number: rounded to 16 once, at the end
           CROSS JOIN LATERAL unnest(l2_normalize(p.part::vector)::real[]) WITH ORDINALITY AS n (number, dimension)
           GROUP BY n.dimension) s;
  -- what is left of equal vectors is rounding
  IF vector_norm(total) <= 1e-3 * (SELECT sum(abs(s.share)) FROM unnest(shares) AS s (share)) THEN
    RAISE EXCEPTION 'the vectors cancel each other out, which leads nowhere' USING ERRCODE = '22023';
  END IF;
  RETURN l2_normalize(total)::halfvec;
END
$$;
