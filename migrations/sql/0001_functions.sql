-- The functions that apps call. Settings of the index are made with set_config inside the bodies: a SET clause on a
-- function would make pg_restore fail for everybody but a superuser. Filters are arguments, because a filter
-- written around the call is applied after its LIMIT.

CREATE TYPE catvec.hit AS (
  product_id text,
  title      text,
  category   text,
  brand      text,
  price      numeric,
  image_id   bigint,
  url        text,
  similarity float8
);

-- The model that a call means: the named one, or the active one.
CREATE FUNCTION catvec.choose_model(model text DEFAULT NULL) RETURNS catvec.models
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
        (SELECT coalesce(string_agg(m.name, ', ' ORDER BY m.name), 'none') FROM catvec.models m)
      USING ERRCODE = '22023';
  ELSIF chosen.state = 'retired' THEN
    RAISE EXCEPTION 'model "%" is retired', chosen.name USING ERRCODE = '22023', HINT = 'leave the model out to use the active one';
  END IF;
  RETURN chosen;
END
$$;

-- The condition on catvec.products p that a filter means. category and brand take a text or a list of texts, price
-- takes {"min": …, "max": …}, every other key is compared with attrs.
CREATE FUNCTION catvec.filter_condition(filter jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  key       text;
  value     jsonb;
  rest      jsonb;
  condition text := '';
BEGIN
  IF filter IS NULL THEN
    RETURN '';
  ELSIF jsonb_typeof(filter) <> 'object' THEN
    RAISE EXCEPTION 'filter is a JSON %, expected an object', jsonb_typeof(filter)
      USING ERRCODE = '22023', HINT = 'for example {"category": "dress", "price": {"max": 50}}';
  END IF;
  rest := filter - ARRAY['category', 'brand', 'price'];
  FOREACH key IN ARRAY ARRAY['category', 'brand'] LOOP
    value := filter -> key;
    CONTINUE WHEN value IS NULL;
    IF jsonb_typeof(value) = 'string' THEN
      value := jsonb_build_array(value);
    ELSIF jsonb_typeof(value) <> 'array' OR value @? '$[*] ? (@.type() != "string")' THEN
      RAISE EXCEPTION 'filter key "%" is %, expected a text or a list of texts', key, value USING ERRCODE = '22023';
    END IF;
    condition := condition || format(' AND p.%I = ANY (%L)', key, ARRAY(SELECT jsonb_array_elements_text(value)));
  END LOOP;
  value := filter -> 'price';
  IF value IS NOT NULL THEN
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
  END IF;
  IF rest <> '{}' THEN
    condition := condition || format(' AND p.attrs @> %L::jsonb', rest);
  END IF;
  RETURN condition;
END
$$;

-- The products nearest to a vector, best image each, nearest first. Fewer than k rows only when fewer exist: when the
-- index gives fewer candidates than were asked for, every row that passes the filter is compared.
CREATE FUNCTION catvec.search_by_vector(
    query           @VECTOR@.halfvec,
    k               integer DEFAULT 10,
    filter          jsonb   DEFAULT '{}',
    model           text    DEFAULT NULL,
    exclude_product text    DEFAULT NULL,
    min_similarity  float8  DEFAULT -1)
RETURNS SETOF catvec.hit
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, @VECTOR@, pg_temp
AS $$
DECLARE
  chosen        catvec.models := catvec.choose_model(model);
  rows_wanted   text := catvec.filter_condition(filter);
  -- several images of one product become one hit; a literal in the statement, so that the planner sees how few
  -- rows are wanted
  candidates    integer := greatest(4 * k, 40);
  nearest       text;
  found         bigint;
  products      bigint;
  hits          catvec.hit[];
  setting       record;
  settings      jsonb := jsonb_build_object(
    'hnsw.iterative_scan', current_setting('hnsw.iterative_scan', true),
    'hnsw.max_scan_tuples', current_setting('hnsw.max_scan_tuples', true),
    'hnsw.scan_mem_multiplier', current_setting('hnsw.scan_mem_multiplier', true),
    'hnsw.ef_search', current_setting('hnsw.ef_search', true));
BEGIN
  IF k IS NULL OR k NOT BETWEEN 1 AND 1000 THEN
    RAISE EXCEPTION 'k is %, expected 1 to 1000', coalesce(k::text, 'null') USING ERRCODE = '22023';
  ELSIF query IS NULL THEN
    RAISE EXCEPTION 'the query vector is null' USING ERRCODE = '22004';
  ELSIF vector_dims(query) <> chosen.dims THEN
    RAISE EXCEPTION 'the query vector has % dimensions, model "%" has %', vector_dims(query), chosen.name, chosen.dims
      USING ERRCODE = '22023', HINT = 'was it made by another model? name that one in the argument model';
  ELSIF l2_norm(query) = 0 THEN
    RAISE EXCEPTION 'the query vector is zero, which is near to nothing' USING ERRCODE = '22023';
  END IF;
  IF exclude_product IS NOT NULL THEN
    rows_wanted := rows_wanted || ' AND v.product_id <> $2';
  END IF;
  PERFORM set_config('hnsw.iterative_scan', 'relaxed_order', true);
  -- the defaults (20,000 rows, 4 MB) end a scan early when a filter leaves only what is far away, and then the index
  -- answers with whatever it has come across
  PERFORM set_config('hnsw.max_scan_tuples', '2147483647', true);
  PERFORM set_config('hnsw.scan_mem_multiplier', '64', true);
  LOOP
    PERFORM set_config('hnsw.ef_search', least(1000, greatest(candidates, 100))::text, true);
    -- without ORDER BY and LIMIT there is nothing that HNSW could answer: every row that is wanted is compared
    nearest := CASE WHEN candidates IS NULL THEN ''
                    ELSE format('ORDER BY v.embedding <=> $1 LIMIT %s', candidates) END;
    EXECUTE format($q$
      WITH near AS MATERIALIZED (            -- relaxed order within, sorted exactly without
        SELECT v.product_id, v.image_id, v.url, p.title, p.category, p.brand, p.price, v.embedding <=> $1 AS distance
          FROM catvec.%1$I v
          JOIN catvec.products p ON p.product_id = v.product_id
         WHERE p.active %2$s %3$s),
      best AS (
        SELECT DISTINCT ON (product_id) * FROM near ORDER BY product_id, distance, image_id),
      top AS (
        SELECT * FROM best WHERE 1 - distance >= $3 ORDER BY distance, product_id LIMIT %4$s)
      SELECT (SELECT count(*) FROM near),
             (SELECT count(*) FROM best),
             (SELECT array_agg(ROW(product_id, title, category, brand, price, image_id, url, 1 - distance)::catvec.hit
                               ORDER BY distance, product_id) FROM top)
      $q$, 'image_embeddings_' || chosen.name, rows_wanted, nearest, k)
      INTO found, products, hits
      USING query, exclude_product, min_similarity;
    EXIT WHEN candidates IS NULL OR (found >= candidates AND products >= k);
    candidates := CASE WHEN found < candidates OR candidates >= 4000 THEN NULL ELSE candidates * 4 END;
  END LOOP;
  FOR setting IN SELECT s.key, s.value FROM jsonb_each_text(settings) AS s LOOP
    PERFORM set_config(setting.key, setting.value, true);
  END LOOP;
  RETURN QUERY SELECT * FROM unnest(hits);
END
$$;

-- The same for drivers that send float8[]. Another name, not an overload: search_by_vector('[…]', 5) would become
-- ambiguous.
CREATE FUNCTION catvec.search_by_array(
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
  SELECT * FROM catvec.search_by_vector(query::halfvec, k, filter, model, exclude_product, min_similarity)
$$;

-- The products nearest to a product: the best pair of any of its images with any of theirs, itself left out. No
-- rows when it has no vector yet.
CREATE FUNCTION catvec.similar_products(
    product_id     text,
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
BEGIN
  IF NOT EXISTS (SELECT FROM catvec.products p WHERE p.product_id = similar_products.product_id) THEN
    RAISE EXCEPTION 'no product %', quote_nullable(similar_products.product_id) USING ERRCODE = 'no_data_found';
  END IF;
  RETURN QUERY EXECUTE format($q$
    SELECT (best.hit).*
      FROM (SELECT DISTINCT ON ((h.hit).product_id) h.hit
              FROM catvec.%1$I v
             CROSS JOIN LATERAL (
               SELECT s AS hit FROM catvec.search_by_vector(v.embedding, $2, $3, $4, $1, $5) s) h
             WHERE v.product_id = $1
             ORDER BY (h.hit).product_id, (h.hit).similarity DESC) best
     ORDER BY (best.hit).similarity DESC, (best.hit).product_id
     LIMIT $2$q$, 'image_embeddings_' || chosen.name)
    USING similar_products.product_id, k, filter, chosen.name, min_similarity;
END
$$;
