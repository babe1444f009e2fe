-- Decision forests that were trained elsewhere: imported into the node table, called in SQL, applied to new rows.

ALTER TABLE scorer.models
    ADD COLUMN kind text NOT NULL DEFAULT 'random cut forest' CHECK (kind IN ('random cut forest', 'imported')),
    ADD COLUMN imported jsonb;
COMMENT ON COLUMN scorer.models.kind IS 'random cut forest: trained here, scores; imported: trained elsewhere, predicts';
COMMENT ON COLUMN scorer.models.imported IS 'of an imported forest: format, trees, classes, base, link, scale, average, float32';

ALTER TABLE scorer.forest_nodes
    ALTER COLUMN mass DROP NOT NULL, ALTER COLUMN range_sum DROP NOT NULL, ALTER COLUMN boxes DROP NOT NULL,
    ADD COLUMN leaf_values double precision[],
    ADD COLUMN leaf_output integer;
COMMENT ON COLUMN scorer.forest_nodes.leaf_values IS 'of an imported forest: what a leaf adds to the outputs from leaf_output (from 1) on';

CREATE TABLE scorer.predictions (
    model         text COLLATE "C" NOT NULL,
    model_version integer NOT NULL,
    source_table  text COLLATE "C" NOT NULL,
    row_key       jsonb NOT NULL,
    entity        text NOT NULL,
    order_value   double precision,
    outputs       double precision[] NOT NULL,
    label         text,
    seq           bigint NOT NULL,
    predicted_at  timestamptz NOT NULL DEFAULT statement_timestamp(),
    PRIMARY KEY (model, model_version, source_table, row_key)
);
COMMENT ON TABLE scorer.predictions IS 'what imported models predict of each row; a row that the source deleted has none';
COMMENT ON COLUMN scorer.predictions.outputs IS 'probabilities in the order of the model''s classes, or the predicted value';
COMMENT ON COLUMN scorer.predictions.label IS 'the most probable class; NULL of a regression';

CREATE FUNCTION scorer.predict(model text, features double precision[]) RETURNS double precision[]
LANGUAGE plpgsql STABLE PARALLEL SAFE COST 50000
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    used scorer.models := scorer.used_model(model, coalesce(features, '{}'));
    used_version integer := used.version;
    shape jsonb := used.imported;
    trees integer := (shape ->> 'trees')::integer;
    point double precision[] := features;
    margins double precision[];
    highest double precision;
    total double precision;
BEGIN
    IF used.kind <> 'imported' THEN
        RAISE EXCEPTION 'model % scores and does not predict', model USING ERRCODE = 'wrong_object_type',
            HINT = format('SELECT scorer.score(%L, ...)', model);
    END IF;
    SELECT array_agg(CASE WHEN v <> 'NaN' THEN
                         CASE WHEN NOT (shape ->> 'float32')::boolean THEN v
                              WHEN abs(v) > 3.4028235677973366e38 THEN sign(v) * 'Infinity'::float8
                              -- Below the range of float32 a value becomes 0; the cast would be an error.
                              WHEN abs(v) < 1.4e-45 THEN 0 ELSE v::real::float8 END END ORDER BY n)
    INTO point FROM unnest(features) WITH ORDINALITY t (v, n);
    WITH RECURSIVE walk AS (
        SELECT t.tree, 0 AS node FROM generate_series(0, trees - 1) AS t (tree)
        UNION ALL
        SELECT w.tree, step.child FROM walk w
        CROSS JOIN LATERAL (
            SELECT CASE WHEN point[n.cut_dim] <= n.cut_value THEN n.left_node
                        WHEN point[n.cut_dim] IS NULL THEN n.heavy_node ELSE n.right_node END AS child
            FROM scorer.forest_nodes n
            WHERE n.model = model AND n.version = used_version AND n.tree = w.tree AND n.node = w.node AND n.cut_dim IS NOT NULL
            LIMIT 1) step
    ), reached AS (
        SELECT found.leaf_output + v.n - 1 AS output, sum(v.value) AS value
        FROM walk w
        CROSS JOIN LATERAL (
            SELECT n.leaf_output, n.leaf_values FROM scorer.forest_nodes n
            WHERE n.model = model AND n.version = used_version AND n.tree = w.tree AND n.node = w.node AND n.cut_dim IS NULL
            LIMIT 1) found
        CROSS JOIN LATERAL unnest(found.leaf_values) WITH ORDINALITY v (value, n)
        GROUP BY 1
    )
    SELECT array_agg((b.value::float8 + coalesce(r.value, 0) / CASE WHEN (shape ->> 'average')::boolean THEN trees ELSE 1 END)
                     * (shape ->> 'scale')::float8 ORDER BY b.n)
    INTO margins
    FROM jsonb_array_elements_text(shape -> 'base') WITH ORDINALITY b (value, n) LEFT JOIN reached r ON r.output = b.n;
    CASE shape ->> 'link'
        WHEN 'sigmoid' THEN
            -- exp() of more than 709 is an error.
            margins := ARRAY(SELECT 1 / (1 + exp(-greatest(m, -700))) FROM unnest(margins) WITH ORDINALITY t (m, n) ORDER BY n);
        WHEN 'exp' THEN
            margins := ARRAY(SELECT exp(least(m, 700)) FROM unnest(margins) WITH ORDINALITY t (m, n) ORDER BY n);
        WHEN 'softmax' THEN
            SELECT max(m) INTO highest FROM unnest(margins) m;
            margins := ARRAY(SELECT exp(greatest(m - highest, -700)) FROM unnest(margins) WITH ORDINALITY t (m, n) ORDER BY n);
            SELECT sum(m) INTO total FROM unnest(margins) m;
            margins := ARRAY(SELECT m / total FROM unnest(margins) WITH ORDINALITY t (m, n) ORDER BY n);
        ELSE NULL;
    END CASE;
    IF jsonb_typeof(shape -> 'classes') = 'array' AND cardinality(margins) = 1 THEN
        margins := ARRAY[1 - margins[1], margins[1]];
    END IF;
    RETURN margins;
END $$;
COMMENT ON FUNCTION scorer.predict IS
    'what the READY version of an imported model predicts: probabilities in the order of its classes, or one value; NULL is a missing value';

CREATE FUNCTION scorer.predict_label(model text, features double precision[]) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT c.class FROM unnest(scorer.predict(model, features)) WITH ORDINALITY p (share, n)
    JOIN (SELECT e.class, e.n FROM scorer.models m, jsonb_array_elements_text(m.imported -> 'classes') WITH ORDINALITY e (class, n)
          WHERE m.name = predict_label.model AND m.state = 'READY') c USING (n)
    ORDER BY p.share DESC, n LIMIT 1
$$;
COMMENT ON FUNCTION scorer.predict_label IS 'the most probable class';

CREATE FUNCTION scorer.create_function(function text, model text, class text DEFAULT NULL) RETURNS regprocedure
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    used scorer.models := scorer.used_model(model, NULL);
    width integer := cardinality(used.feature_columns) * scorer.shingle_of(used);
    classes integer := CASE WHEN jsonb_typeof(used.imported -> 'classes') = 'array' THEN jsonb_array_length(used.imported -> 'classes') END;
    place integer;
    arguments text := 'features double precision[]';
    given text := '$1';
    result text := 'double precision';
    body text;
    signature text;
BEGIN
    IF function IS NULL OR function !~ '^[a-z][a-z0-9_]{0,62}$' THEN
        RAISE EXCEPTION 'a function cannot be called %', coalesce(quote_literal(function), 'NULL') USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Lower-case letters, digits and _, a letter first, at most 63.';
    END IF;
    IF EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = 'scorer'::regnamespace AND p.proname = function
               AND obj_description(p.oid, 'pg_proc') IS DISTINCT FROM 'made by scorer.create_function') THEN
        RAISE EXCEPTION 'scorer.% is a function of the warehouse itself', function USING ERRCODE = 'duplicate_function';
    END IF;
    -- A function has 100 arguments at most; more features come as one array.
    IF width <= 100 AND width = cardinality(used.feature_columns) THEN
        SELECT string_agg(format('%I double precision', f), ', ' ORDER BY n), 'ARRAY[' || string_agg('$' || n, ', ' ORDER BY n) || ']::float8[]'
        INTO arguments, given FROM unnest(used.feature_columns) WITH ORDINALITY t (f, n);
    END IF;
    IF used.kind <> 'imported' THEN
        body := format('SELECT scorer.score(%L, %s)', model, given);
    ELSE
        IF class IS NOT NULL THEN
            SELECT e.n INTO place FROM jsonb_array_elements_text(used.imported -> 'classes') WITH ORDINALITY e (class, n) WHERE e.class = class;
            IF place IS NULL THEN
                RAISE EXCEPTION 'model % has no class %', model, class USING ERRCODE = 'invalid_parameter_value',
                    HINT = 'Classes: ' || coalesce((used.imported -> 'classes')::text, 'none');
            END IF;
        ELSIF classes = 2 THEN
            place := 2;
        ELSIF classes IS NULL AND jsonb_array_length(used.imported -> 'base') = 1 THEN
            place := 1;
        END IF;
        IF place IS NULL THEN
            result := 'double precision[]';
            body := format('SELECT scorer.predict(%L, %s)', model, given);
        ELSE
            body := format('SELECT (scorer.predict(%L, %s))[%s]', model, given, place);
        END IF;
    END IF;
    FOR signature IN SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'scorer'::regnamespace AND p.proname = function LOOP
        EXECUTE format('DROP FUNCTION %s', signature);
    END LOOP;
    -- With the rights of whoever makes it, so that GRANT EXECUTE on it is the right to use this one model.
    EXECUTE format('CREATE FUNCTION scorer.%I(%s) RETURNS %s LANGUAGE sql STABLE SECURITY DEFINER COST 50000 SET search_path = scorer, public, pg_temp AS %L',
                   function, arguments, result, body);
    SELECT p.oid::regprocedure::text INTO signature FROM pg_proc p WHERE p.pronamespace = 'scorer'::regnamespace AND p.proname = function;
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
    EXECUTE format('COMMENT ON FUNCTION %s IS %L', signature, 'made by scorer.create_function');
    RETURN signature::regprocedure;
END $$;
COMMENT ON FUNCTION scorer.create_function IS
    'make a function scorer.NAME of the model''s features: the probability of a class (default: the second of two), the predicted value, or the score; GRANT EXECUTE on it lets others use this model';

CREATE OR REPLACE FUNCTION scorer.drop_model(name text) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tailrace model ' || name, 0));
    -- Waits for the batch that the scorer is writing.
    PERFORM FROM scorer.models m WHERE m.name = name FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM scorer.no_such_model(name);
    END IF;
    DELETE FROM scorer.anomalies a WHERE a.model = name;
    DELETE FROM scorer.incidents i WHERE i.model = name;
    DELETE FROM scorer.scores s WHERE s.model = name;
    DELETE FROM scorer.predictions p WHERE p.model = name;
    DELETE FROM scorer.models m WHERE m.name = name;
    PERFORM scorer.wake(name);
END $$;
COMMENT ON FUNCTION scorer.drop_model IS 'remove a model with all versions, scores, predictions, anomalies and incidents';

DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'scorer'::regnamespace AND proname <> 'score_rows' LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = scorer, public, pg_temp', f);
    END LOOP;
END $$;
