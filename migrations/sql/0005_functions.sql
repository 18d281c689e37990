-- Filters by tag, and vectors of several things.

-- The condition on catvec.products p that the key tag:… of a filter means, under the active model's tags.
CREATE FUNCTION catvec.tag_condition(key text, choices jsonb) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  tagged catvec.tag_attributes;
  wrong  text;
BEGIN
  SELECT * INTO tagged FROM catvec.tag_attributes a WHERE a.is_active AND 'tag:' || a.attribute = key;
  IF tagged.attribute IS NULL THEN
    RAISE EXCEPTION 'filter key "%": the active model has tagged no such attribute, there are: %', key,
        (SELECT coalesce(string_agg('tag:' || a.attribute, ', ' ORDER BY a.attribute), 'none')
           FROM catvec.tag_attributes a WHERE a.is_active)
      USING ERRCODE = '22023', HINT = 'catvec tag LABELS.yaml tags products';
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

-- The condition on catvec.products p that a filter means. category and brand take a text or a list of texts, price
-- takes {"min": …, "max": …}, "tag:colour" a label of that attribute or a list of them, every other key is compared with
-- attrs: a list there means any of these, and an attribute that is a list itself is met by what it contains.
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
    ELSIF key LIKE 'tag:%' THEN
      condition := condition || catvec.tag_condition(key, choices);
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
        OR EXISTS (SELECT FROM unnest(shares) AS s (share) WHERE s.share IN ('NaN', 'Infinity', '-Infinity')) THEN
    RAISE EXCEPTION 'the weights are %, expected numbers', shares USING ERRCODE = '22023';
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
