-- Scoring in SQL: one point, sets of points, and what each feature contributes.

-- The values of one point, or of a shingle of points, scaled as the forest had them; NULL where there is none.
CREATE OR REPLACE FUNCTION scorer.scale_features(scaler jsonb, features double precision[]) RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- The trees hold float32 values. LEAST and GREATEST pass NULL over, so that is asked first.
    SELECT array_agg(CASE WHEN scaled.value IS NOT NULL
                          THEN greatest(-bound.clip, least(bound.clip, scaled.value))::real::float8 END ORDER BY scaled.n)
    FROM (SELECT (scaler ->> 'clip')::float8 AS clip, jsonb_array_length(scaler -> 'center') AS width) bound,
         LATERAL (SELECT f.n, (nullif(f.value, 'NaN') - (c.value #>> '{}')::float8) / (s.value #>> '{}')::float8 AS value
          FROM unnest(features) WITH ORDINALITY f (value, n)
          JOIN jsonb_array_elements(scaler -> 'center') WITH ORDINALITY c (value, n) ON c.n = (f.n - 1) % bound.width + 1
          JOIN jsonb_array_elements(scaler -> 'scale') WITH ORDINALITY s (value, n) ON s.n = c.n) scaled
$$;

CREATE FUNCTION scorer.as_cubes(point double precision[]) RETURNS cube[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- A missing value is no evidence: as an interval without bounds it is at no distance from any box.
    SELECT array_agg(cube(
               ARRAY(SELECT coalesce(v, '-Infinity') FROM unnest(point[chunk : chunk + 99]) WITH ORDINALITY p (v, n) ORDER BY n),
               ARRAY(SELECT coalesce(v, 'Infinity') FROM unnest(point[chunk : chunk + 99]) WITH ORDINALITY p (v, n) ORDER BY n)) ORDER BY chunk)
    FROM generate_series(1, cardinality(point), 100) chunk
$$;
COMMENT ON FUNCTION scorer.as_cubes IS 'a scaled point as the boxes are kept: 100 features to a cube';

CREATE FUNCTION scorer.number(value double precision) RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT value';
CREATE FUNCTION scorer.number(value boolean) RETURNS double precision LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT value::int::float8';
COMMENT ON FUNCTION scorer.number(double precision) IS 'a feature as the forest takes it; lets boolean columns be features, too';

CREATE FUNCTION scorer.shingle_of(used scorer.models) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce((used.parameters ->> 'shingle')::integer, 1)
$$;

CREATE FUNCTION scorer.used_model(model text, features double precision[]) RETURNS scorer.models LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
#variable_conflict use_variable
DECLARE
    used scorer.models;
    wanted integer;
BEGIN
    SELECT m.* INTO used FROM scorer.models m WHERE m.name = model AND m.state = 'READY';
    IF used.version IS NULL THEN
        RAISE EXCEPTION 'no model % is READY', model USING ERRCODE = 'undefined_object',
            HINT = 'SELECT name, version, state, reason FROM scorer.model_info';
    END IF;
    wanted := cardinality(used.feature_columns) * scorer.shingle_of(used);
    IF features IS NOT NULL AND cardinality(features) <> wanted THEN
        RAISE EXCEPTION '% values given, model % has % features', cardinality(features), model, wanted
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'In this order: ' || array_to_string(used.feature_columns, ', ')
                         || CASE WHEN scorer.shingle_of(used) > 1 THEN '; so for each row of the shingle, the oldest first' ELSE '' END;
    END IF;
    RETURN used;
END $$;
COMMENT ON FUNCTION scorer.used_model IS 'the READY version of a name; an error where there is none, or where the values do not fit it';

CREATE FUNCTION scorer.no_forest(model text, version integer) RETURNS void LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RAISE EXCEPTION 'the forest of model % version % is not there as rows', model, version
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = format('SELECT scorer.retrain(%L)', model);
END $$;

CREATE OR REPLACE FUNCTION scorer.score(model text, features double precision[]) RETURNS double precision
LANGUAGE plpgsql STABLE PARALLEL SAFE COST 100000
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    used scorer.models := scorer.used_model(model, coalesce(features, '{}'));
    trees integer := (used.parameters ->> 'trees')::integer;
    used_version integer := used.version;
    point double precision[] := scorer.scale_features(used.scaler, features);
    sides cube[] := scorer.as_cubes(point);
    side cube := sides[1];
    wide boolean := cardinality(sides) > 1;
    result double precision;
BEGIN
    -- Top down: alive is the probability that no cut above has set the point apart, value what those cuts contributed.
    -- The node is looked up with LIMIT, so that no plan can read more of the forest than the primary key leads to.
    WITH RECURSIVE walk AS (
        SELECT t.tree, 0 AS depth, 1.0::float8 AS alive, 0.0::float8 AS value, found.mass AS total, found.*
        FROM generate_series(0, trees - 1) AS t (tree)
        CROSS JOIN LATERAL (
            SELECT n.mass, n.range_sum,
                   CASE WHEN wide THEN (SELECT sum(b <#> s) FROM unnest(n.boxes, sides) AS pair (b, s))
                        ELSE n.boxes[1] <#> side END AS gap,
                   CASE WHEN point[n.cut_dim] <= n.cut_value THEN n.left_node
                        WHEN point[n.cut_dim] IS NULL THEN n.heavy_node ELSE n.right_node END AS child
            FROM scorer.forest_nodes n
            WHERE n.model = model AND n.version = used_version AND n.tree = t.tree AND n.node = 0 LIMIT 1) found
        UNION ALL
        SELECT w.tree, w.depth + 1, w.alive * (1 - step.q), w.value + w.alive * step.q / (w.depth + 1), w.total, found.*
        FROM walk w
        CROSS JOIN LATERAL (SELECT CASE WHEN w.gap > 0 THEN w.gap / (w.range_sum + w.gap) ELSE 0 END) AS step (q)
        CROSS JOIN LATERAL (
            SELECT n.mass, n.range_sum,
                   CASE WHEN wide THEN (SELECT sum(b <#> s) FROM unnest(n.boxes, sides) AS pair (b, s))
                        ELSE n.boxes[1] <#> side END AS gap,
                   CASE WHEN point[n.cut_dim] <= n.cut_value THEN n.left_node
                        WHEN point[n.cut_dim] IS NULL THEN n.heavy_node ELSE n.right_node END AS child
            FROM scorer.forest_nodes n
            WHERE n.model = model AND n.version = used_version AND n.tree = w.tree AND n.node = w.child LIMIT 1) found
        WHERE w.child IS NOT NULL
    )
    SELECT sum((w.value + w.alive * CASE
                   WHEN w.gap > 0 THEN 1.0 / (w.depth + 1)
                   ELSE (1 - w.mass / (2.0::float8 * w.total)) / (w.depth + ln(1 + w.mass::float8) / ln(2::float8)) END)
               * ln(1 + w.total::float8) / ln(2::float8)) / trees
    INTO result FROM walk w WHERE w.child IS NULL;
    IF result IS NULL THEN
        PERFORM scorer.no_forest(model, used_version);
    END IF;
    RETURN result;
END $$;

CREATE FUNCTION scorer.score_block(
    model text, version integer, trees integer, width integer, points double precision[], sides cube[], count integer
) RETURNS double precision[] LANGUAGE plpgsql STABLE PARALLEL SAFE COST 100000000
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    chunks integer := (width + 99) / 100;
    dims integer[];
    cuts double precision[];
    lefts integer[];
    rights integer[];
    heavies integer[];
    masses double precision[];
    ranges double precision[];
    boxes cube[];
    scores double precision[] := array_fill(0.0::float8, ARRAY[count]);
    any_tree boolean := false;
    total double precision;
    scale double precision;
    node integer;
    dim integer;
    depth integer;
    base integer;
    gap double precision;
    q double precision;
    alive double precision;
    value double precision;
    cell double precision;
    side cube;
BEGIN
    -- A tree's nodes become arrays once and all points go down it: an element costs a tenth of what a row does.
    FOR tree IN 0 .. trees - 1 LOOP
        SELECT array_agg(coalesce(n.cut_dim, 0) ORDER BY n.node), array_agg(n.cut_value ORDER BY n.node),
               array_agg(n.left_node + 1 ORDER BY n.node), array_agg(n.right_node + 1 ORDER BY n.node),
               array_agg(n.heavy_node + 1 ORDER BY n.node), array_agg(n.mass::float8 ORDER BY n.node),
               array_agg(n.range_sum ORDER BY n.node)
        INTO dims, cuts, lefts, rights, heavies, masses, ranges
        FROM scorer.forest_nodes n WHERE n.model = model AND n.version = version AND n.tree = tree;
        CONTINUE WHEN dims IS NULL;
        any_tree := true;
        SELECT array_agg(b.box ORDER BY n.node, b.number) INTO boxes
        FROM scorer.forest_nodes n CROSS JOIN LATERAL unnest(n.boxes) WITH ORDINALITY b (box, number)
        WHERE n.model = model AND n.version = version AND n.tree = tree;
        total := masses[1];
        scale := ln(1 + total) / ln(2::float8) / trees;
        FOR i IN 1 .. count LOOP
            node := 1;
            depth := 1;
            alive := 1;
            value := 0;
            base := (i - 1) * width;
            side := sides[i];
            LOOP
                IF chunks = 1 THEN
                    gap := boxes[node] <#> side;
                ELSE
                    gap := 0;
                    FOR chunk IN 1 .. chunks LOOP
                        gap := gap + (boxes[(node - 1) * chunks + chunk] <#> sides[(i - 1) * chunks + chunk]);
                    END LOOP;
                END IF;
                dim := dims[node];
                EXIT WHEN dim = 0;
                IF gap > 0 THEN
                    q := gap / (ranges[node] + gap);
                    value := value + alive * q / depth;
                    alive := alive * (1 - q);
                END IF;
                depth := depth + 1;
                cell := points[base + dim];
                IF cell <= cuts[node] THEN
                    node := lefts[node];
                ELSIF cell IS NULL THEN
                    node := heavies[node];
                ELSE
                    node := rights[node];
                END IF;
            END LOOP;
            IF gap > 0 THEN
                value := value + alive / depth;
            ELSE
                value := value + alive * (1 - masses[node] / (2 * total)) / (depth - 1 + ln(1 + masses[node]) / ln(2::float8));
            END IF;
            scores[i] := scores[i] + value * scale;
        END LOOP;
    END LOOP;
    IF NOT any_tree THEN
        PERFORM scorer.no_forest(model, version);
    END IF;
    RETURN scores;
END $$;
COMMENT ON FUNCTION scorer.score_block IS 'scores of points that lie one behind the other in `points`, and as cubes in `sides`';

CREATE FUNCTION scorer.score_rows(model text, query text) RETURNS TABLE (number bigint, score double precision, row_values jsonb)
LANGUAGE plpgsql STABLE COST 100000000 ROWS 1000 AS $$
#variable_conflict use_variable
DECLARE
    block_rows CONSTANT integer := 1000;
    used scorer.models := scorer.used_model(model, NULL);
    trees integer := (used.parameters ->> 'trees')::integer;
    width integer := cardinality(used.feature_columns);
    stream refcursor;
    features double precision[];
    points double precision[];
    sides public.cube[];
    kept jsonb[];
    scores double precision[];
    taken bigint := 0;
    in_block integer;
BEGIN
    IF scorer.shingle_of(used) > 1 THEN
        RAISE EXCEPTION 'model % scores shingles of % rows', model, scorer.shingle_of(used)
            USING ERRCODE = 'feature_not_supported', HINT = 'Give scorer.score the values of all rows of a shingle, the oldest first.';
    END IF;
    -- The query is the caller's own text and runs with the caller's rights; as a cursor it is one statement that only reads.
    OPEN stream FOR EXECUTE format(E'SELECT ARRAY[%s]::float8[], to_jsonb(given) FROM (\n%s\n) AS given',
        (SELECT string_agg(format('scorer.number(given.%I)', f), ', ' ORDER BY n)
         FROM unnest(used.feature_columns) WITH ORDINALITY t (f, n)),
        regexp_replace(query, ';\s*$', ''));
    LOOP
        points := '{}';
        sides := '{}';
        kept := '{}';
        in_block := 0;
        WHILE in_block < block_rows LOOP
            FETCH stream INTO features, row_values;
            EXIT WHEN NOT FOUND;
            in_block := in_block + 1;
            features := scorer.scale_features(used.scaler, features);
            points := points || features;
            sides := sides || scorer.as_cubes(features);
            kept := kept || row_values;
        END LOOP;
        EXIT WHEN in_block = 0;
        scores := scorer.score_block(model, used.version, trees, width, points, sides, in_block);
        FOR i IN 1 .. in_block LOOP
            taken := taken + 1;
            number := taken;
            score := scores[i];
            row_values := kept[i];
            RETURN NEXT;
        END LOOP;
    END LOOP;
    CLOSE stream;
END $$;
COMMENT ON FUNCTION scorer.score_rows IS
    'the score of each row of a query that yields the feature columns, in the query''s order; runs with the caller''s rights';

CREATE FUNCTION scorer.split_score(model text, features double precision[]) RETURNS TABLE (feature text, high double precision, low double precision)
LANGUAGE plpgsql STABLE COST 1000000
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    used scorer.models := scorer.used_model(model, coalesce(features, '{}'));
    used_version integer := used.version;
    trees integer := (used.parameters ->> 'trees')::integer;
    base_width integer := cardinality(used.feature_columns);
    point double precision[] := scorer.scale_features(used.scaler, features);
    sides cube[] := scorer.as_cubes(point);
    width integer := cardinality(point);
    present double precision := (SELECT count(*) FROM unnest(point) v WHERE v IS NOT NULL);
    highs double precision[] := array_fill(0.0::float8, ARRAY[width]);
    lows double precision[] := highs;
    any_tree boolean := false;
    boxes cube[];
    path integer[];
    siblings integer[];
    current integer;
    next_node integer;
    sibling integer;
    depth integer;
    mass double precision;
    total double precision;
    range_sum double precision;
    gap double precision;
    weight double precision;
    alive double precision;
    unseen boolean;
    distance double precision;
    bottom double precision[];
    top double precision[];
    part_high double precision[];
    part_low double precision[];
    edge double precision;
BEGIN
    FOR tree IN 0 .. trees - 1 LOOP
        current := 0;
        depth := 0;
        unseen := false;
        siblings := '{}';
        LOOP
            SELECT n.boxes, n.mass, n.range_sum, pair.gap, kids.child,
                   CASE WHEN kids.child = n.left_node THEN n.right_node ELSE n.left_node END
            INTO boxes, mass, range_sum, gap, next_node, sibling
            FROM scorer.forest_nodes n
            CROSS JOIN LATERAL (SELECT sum(b <#> s) AS gap FROM unnest(n.boxes, sides) AS pair (b, s)) pair
            CROSS JOIN LATERAL (SELECT CASE WHEN point[n.cut_dim] <= n.cut_value THEN n.left_node
                                            WHEN point[n.cut_dim] IS NULL THEN n.heavy_node ELSE n.right_node END AS child) kids
            WHERE n.model = model AND n.version = used_version AND n.tree = tree AND n.node = current;
            EXIT WHEN NOT FOUND;
            any_tree := true;
            IF current = 0 THEN
                total := mass;
                alive := ln(1 + total) / ln(2::float8);
            END IF;
            IF next_node IS NULL AND gap <= 0 THEN
                weight := 0;
            ELSIF next_node IS NULL THEN
                weight := alive / (depth + 1) / gap;
            ELSE
                weight := CASE WHEN gap > 0 THEN alive / (range_sum + gap) / (depth + 1) ELSE 0 END;
            END IF;
            IF weight > 0 THEN
                unseen := true;
                FOR i IN 1 .. width LOOP
                    distance := point[i] - cube_ur_coord(boxes[(i + 99) / 100], (i - 1) % 100 + 1);
                    IF distance > 0 THEN
                        highs[i] := highs[i] + weight * distance;
                    ELSE
                        distance := cube_ll_coord(boxes[(i + 99) / 100], (i - 1) % 100 + 1) - point[i];
                        IF distance > 0 THEN
                            lows[i] := lows[i] + weight * distance;
                        END IF;
                    END IF;
                END LOOP;
                alive := alive * (1 - gap / (range_sum + gap));
            END IF;
            EXIT WHEN next_node IS NULL;
            siblings := siblings || sibling;
            current := next_node;
            depth := depth + 1;
        END LOOP;
        CONTINUE WHEN next_node IS NOT NULL OR gap > 0 OR gap IS NULL;
        -- The tree knows this very point: its score is split as it would be were the leaf not there, from the boxes of the
        -- siblings on the way up. Where a box set the point apart already, the rest is nobody's and is spread evenly.
        alive := alive * (1 - mass / (2 * total)) / (depth + ln(1 + mass) / ln(2::float8));
        part_high := ARRAY(SELECT CASE WHEN present = 0 OR v IS NOT NULL THEN 1.0 ELSE 0.0 END FROM unnest(point) WITH ORDINALITY p (v, n) ORDER BY n);
        IF unseen THEN
            part_low := part_high;
        ELSE
            weight := 1 / (depth + 1.0::float8) / (2 * CASE WHEN present > 0 THEN present ELSE width END);
            part_high := ARRAY(SELECT weight * v FROM unnest(part_high) WITH ORDINALITY p (v, n) ORDER BY n);
            part_low := part_high;
            bottom := array_fill(NULL::float8, ARRAY[width]);
            top := bottom;
            WHILE depth > 0 LOOP
                SELECT n.boxes INTO boxes FROM scorer.forest_nodes n
                WHERE n.model = model AND n.version = used_version AND n.tree = tree AND n.node = siblings[depth];
                gap := 0;
                range_sum := 0;
                FOR i IN 1 .. width LOOP
                    edge := cube_ll_coord(boxes[(i + 99) / 100], (i - 1) % 100 + 1);
                    -- Without bounds: no row below had a value.
                    IF edge > '-Infinity' THEN
                        bottom[i] := least(bottom[i], edge);
                        top[i] := greatest(top[i], cube_ur_coord(boxes[(i + 99) / 100], (i - 1) % 100 + 1));
                    END IF;
                    gap := gap + coalesce(greatest(0, point[i] - top[i], bottom[i] - point[i]), 0);
                    range_sum := range_sum + coalesce(top[i] - bottom[i], 0);
                END LOOP;
                EXIT WHEN gap <= 0;
                FOR i IN 1 .. width LOOP
                    part_high[i] := part_high[i] * range_sum / (range_sum + gap)
                        + coalesce(greatest(0, point[i] - top[i]), 0) / ((range_sum + gap) * depth);
                    part_low[i] := part_low[i] * range_sum / (range_sum + gap)
                        + coalesce(greatest(0, bottom[i] - point[i]), 0) / ((range_sum + gap) * depth);
                END LOOP;
                depth := depth - 1;
            END LOOP;
        END IF;
        weight := alive / ((SELECT sum(v) FROM unnest(part_high) v) + (SELECT sum(v) FROM unnest(part_low) v));
        FOR i IN 1 .. width LOOP
            highs[i] := highs[i] + weight * part_high[i];
            lows[i] := lows[i] + weight * part_low[i];
        END LOOP;
    END LOOP;
    IF NOT any_tree THEN
        PERFORM scorer.no_forest(model, used_version);
    END IF;
    RETURN QUERY
        SELECT f.name, sum(p.high) / trees, sum(p.low) / trees
        FROM unnest(used.feature_columns) WITH ORDINALITY f (name, n)
        JOIN unnest(highs, lows) WITH ORDINALITY p (high, low, n) ON (p.n - 1) % base_width + 1 = f.n
        GROUP BY f.n, f.name ORDER BY f.n;
END $$;
COMMENT ON FUNCTION scorer.split_score IS
    'the parts of the score that each feature contributes by being above (high) and below (low) what the forest knows; they add up to the score';

CREATE FUNCTION scorer.explain(model text, features double precision[]) RETURNS jsonb LANGUAGE sql STABLE COST 1000000 AS $$
    SELECT jsonb_object_agg(s.feature, jsonb_build_object(
        'DIRECTION', CASE WHEN s.high >= s.low THEN 'HIGH' ELSE 'LOW' END,
        'STRENGTH', round(abs(s.high - s.low)::numeric, 4)::text,
        'ATTRIBUTION_SCORE', round((s.high + s.low)::numeric, 4)::text))
    FROM scorer.split_score(model, features) s
$$;
COMMENT ON FUNCTION scorer.explain IS
    'what each feature contributes to the score of values, as ANOMALY_EXPLANATION of Kinesis has it: {"sensor_1": {"DIRECTION": "HIGH", "STRENGTH": "0.0922", "ATTRIBUTION_SCORE": "0.3792"}}';

DO $$
DECLARE
    f regprocedure;
BEGIN
    -- Not score_rows: its query is the caller's and is read with the caller's search path.
    FOR f IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'scorer'::regnamespace AND proname <> 'score_rows' LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = scorer, public, pg_temp', f);
    END LOOP;
END $$;
