-- The scorer's schema: models and their versions, how far each is, scores, anomalies, incidents, and the verbs.
-- The scorer writes scores, anomalies, incidents and watermarks of a batch in one transaction.

CREATE SCHEMA IF NOT EXISTS scorer;

CREATE TABLE scorer.models (
    name            text COLLATE "C" NOT NULL CHECK (name ~ '^[a-z][a-z0-9_]{0,62}$'),
    version         integer NOT NULL CHECK (version >= 1),
    state           text NOT NULL DEFAULT 'PENDING'
                    CHECK (state IN ('PENDING', 'TRAINING', 'READY', 'FAILED', 'RETIRED')),
    reason          text,
    since           timestamptz NOT NULL DEFAULT clock_timestamp(),
    owner           name NOT NULL DEFAULT current_user,
    relation        text NOT NULL,
    entity_column   text,
    order_column    text,
    feature_columns text[] NOT NULL CHECK (cardinality(feature_columns) >= 1),
    training_query  text NOT NULL,
    parameters      jsonb NOT NULL,
    threshold       double precision,
    rows_seen       bigint NOT NULL DEFAULT 0,
    training_scores jsonb,
    scaler          jsonb,
    threshold_rule  jsonb,
    expected_values double precision[],
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    trained_at      timestamptz,
    training_ms     double precision,
    PRIMARY KEY (name, version)
);
CREATE UNIQUE INDEX models_one_ready ON scorer.models (name) WHERE state = 'READY';
COMMENT ON TABLE scorer.models IS 'one row per model version; the READY version of a name scores';
COMMENT ON COLUMN scorer.models.reason IS 'why the state is as it is: what a PENDING version waits for, why a FAILED one failed';
COMMENT ON COLUMN scorer.models.relation IS 'mirror tables whose rows are scored: schema.table patterns of LIKE, separated by commas';
COMMENT ON COLUMN scorer.models.rows_seen IS 'rows that the forest was trained on';
COMMENT ON COLUMN scorer.models.training_scores IS 'count, mean, sigma, minimum, maximum and quantiles of the training rows'' scores';
COMMENT ON COLUMN scorer.models.scaler IS 'center and scale of each feature, and the bound on scaled values';
COMMENT ON COLUMN scorer.models.expected_values IS 'median of each feature over the training rows, NaN where it had no value';

CREATE TABLE scorer.watermarks (
    model        text COLLATE "C" NOT NULL,
    version      integer NOT NULL,
    relation     text COLLATE "C" NOT NULL,
    source       text NOT NULL DEFAULT '',
    seq          bigint NOT NULL DEFAULT 0,
    deleted_seq  bigint NOT NULL DEFAULT 0,
    rows_scored  bigint NOT NULL DEFAULT 0,
    committed_at timestamptz,
    scored_at    timestamptz,
    reason       text,
    PRIMARY KEY (model, version, relation),
    FOREIGN KEY (model, version) REFERENCES scorer.models ON DELETE CASCADE
) WITH (fillfactor = 50);
COMMENT ON TABLE scorer.watermarks IS 'up to which _seq each model version has scored each mirror table; commits with the scores';
COMMENT ON COLUMN scorer.watermarks.committed_at IS 'the newest commit time at the source among the rows scored';
COMMENT ON COLUMN scorer.watermarks.reason IS 'why this table is not scored; NULL where it is';

CREATE TABLE scorer.forest_checkpoints (
    model      text COLLATE "C" NOT NULL,
    version    integer NOT NULL,
    state      bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (model, version),
    FOREIGN KEY (model, version) REFERENCES scorer.models ON DELETE CASCADE
);
ALTER TABLE scorer.forest_checkpoints ALTER COLUMN state SET STORAGE EXTERNAL;
COMMENT ON TABLE scorer.forest_checkpoints IS 'the forest of each trained version, with header and checksum';

CREATE TABLE scorer.forest_nodes (
    model      text COLLATE "C" NOT NULL,
    version    integer NOT NULL,
    tree       integer NOT NULL,
    node       integer NOT NULL,
    cut_dim    integer,
    cut_value  double precision,
    left_node  integer,
    right_node integer,
    heavy_node integer,
    mass       integer NOT NULL,
    range_sum  double precision NOT NULL,
    boxes      cube[] NOT NULL,
    PRIMARY KEY (model, version, tree, node),
    FOREIGN KEY (model, version) REFERENCES scorer.models ON DELETE CASCADE,
    CHECK ((cut_dim IS NULL) = (left_node IS NULL))
);
COMMENT ON TABLE scorer.forest_nodes IS 'the forest of each trained version as rows, for scorer.score(); the root of a tree is node 0';
COMMENT ON COLUMN scorer.forest_nodes.cut_dim IS 'number of the feature, from 1; NULL in a leaf; a scaled value <= cut_value goes left';
COMMENT ON COLUMN scorer.forest_nodes.heavy_node IS 'where a missing value goes: the child with the larger mass';
COMMENT ON COLUMN scorer.forest_nodes.boxes IS
    'bounding box in scaled features, float32 values, 100 features to a cube; unbounded where no row had a value';

CREATE TABLE scorer.scores (
    model         text COLLATE "C" NOT NULL,
    model_version integer NOT NULL,
    source_table  text COLLATE "C" NOT NULL,
    row_key       jsonb NOT NULL,
    entity        text NOT NULL,
    order_value   double precision,
    score         double precision NOT NULL,
    seq           bigint NOT NULL,
    scored_at     timestamptz NOT NULL DEFAULT statement_timestamp(),
    PRIMARY KEY (model, model_version, source_table, row_key)
);
CREATE INDEX scores_scored_at ON scorer.scores USING brin (scored_at);
COMMENT ON TABLE scorer.scores IS 'one row per model version and mirror row; a row that the source deleted has none';
COMMENT ON COLUMN scorer.scores.row_key IS 'the primary key of the mirror row, as in warehouse.deleted_rows.key';
COMMENT ON COLUMN scorer.scores.entity IS 'the entity column as text; empty where the model has none or it is NULL';
COMMENT ON COLUMN scorer.scores.order_value IS 'the order column: a number as it is, an instant as seconds since 1970';
COMMENT ON COLUMN scorer.scores.seq IS '_seq of the row version that was scored';

CREATE TABLE scorer.incidents (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model             text COLLATE "C" NOT NULL,
    model_version     integer NOT NULL,
    source            text NOT NULL,
    entity            text NOT NULL,
    opened_at         timestamptz NOT NULL DEFAULT statement_timestamp(),
    closed_at         timestamptz,
    close_reason      text CHECK (close_reason IN ('ordinary again', 'anomalies withdrawn', 'model retired')),
    first_seq         bigint NOT NULL,
    last_seq          bigint NOT NULL,
    first_order_value double precision,
    last_order_value  double precision,
    anomalies         bigint NOT NULL,
    ordinary_rows     bigint NOT NULL DEFAULT 0,
    peak_score        double precision NOT NULL,
    CHECK ((closed_at IS NULL) = (close_reason IS NULL))
);
CREATE UNIQUE INDEX incidents_open ON scorer.incidents (model, model_version, source, entity) WHERE closed_at IS NULL;
CREATE INDEX incidents_of_entity ON scorer.incidents (model, entity, id);
COMMENT ON TABLE scorer.incidents IS 'episodes: opened by an entity''s first anomaly, closed by a run of ordinary rows';
COMMENT ON COLUMN scorer.incidents.first_order_value IS 'order value of the first and of the last anomaly';
COMMENT ON COLUMN scorer.incidents.ordinary_rows IS 'ordinary rows of the entity since its last anomaly';

CREATE TABLE scorer.anomalies (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model            text COLLATE "C" NOT NULL,
    model_version    integer NOT NULL,
    source_table     text COLLATE "C" NOT NULL,
    row_key          jsonb NOT NULL,
    entity           text NOT NULL,
    order_value      double precision,
    row_committed_at timestamptz,
    detected_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    score            double precision NOT NULL,
    threshold        double precision NOT NULL,
    grade            double precision NOT NULL CHECK (grade BETWEEN 0 AND 1),
    direction        text NOT NULL CHECK (direction IN ('high', 'low')),
    status           text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'cleared', 'source_deleted')),
    status_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    incident_id      bigint REFERENCES scorer.incidents,
    seq              bigint NOT NULL
);
CREATE UNIQUE INDEX anomalies_open ON scorer.anomalies (model, model_version, source_table, row_key) WHERE status = 'open';
CREATE INDEX anomalies_of_entity ON scorer.anomalies (model, entity, id);
CREATE INDEX anomalies_of_incident ON scorer.anomalies (incident_id);
CREATE INDEX anomalies_detected_at ON scorer.anomalies (detected_at);
COMMENT ON TABLE scorer.anomalies IS 'rows whose score is above the threshold; at most one open anomaly per model version and mirror row';
COMMENT ON COLUMN scorer.anomalies.row_committed_at IS 'commit time at the source; NULL for rows copied by a snapshot';
COMMENT ON COLUMN scorer.anomalies.grade IS '0 just above the threshold, 1 far above it';
COMMENT ON COLUMN scorer.anomalies.direction IS 'whether more of the score is owed to values above, or below, what the forest knows';
COMMENT ON COLUMN scorer.anomalies.status IS 'open; cleared: the row was updated and is ordinary; source_deleted: the row is gone';
COMMENT ON COLUMN scorer.anomalies.seq IS '_seq of the row version that was judged last';

CREATE TABLE scorer.anomaly_features (
    anomaly_id     bigint NOT NULL REFERENCES scorer.anomalies ON DELETE CASCADE,
    feature        text NOT NULL,
    rank           integer NOT NULL,
    attribution    double precision NOT NULL,
    direction      text NOT NULL CHECK (direction IN ('high', 'low')),
    value          double precision,
    expected_value double precision,
    PRIMARY KEY (anomaly_id, feature)
);
COMMENT ON TABLE scorer.anomaly_features IS 'why: one row per anomaly and feature; the attributions of an anomaly add up to its score';
COMMENT ON COLUMN scorer.anomaly_features.rank IS '1 is the feature that contributes most';
COMMENT ON COLUMN scorer.anomaly_features.expected_value IS 'the median of the training rows';

-- Verbs ------------------------------------------------------------------------------------------------------------

CREATE FUNCTION scorer.default_parameters() RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT '{"trees": 100, "samples": 256, "seed": 0, "scale": "robust", "threshold": "sigma", "threshold_value": 3,
             "min_rows": 256, "close_after_rows": 10}'::jsonb
$$;
COMMENT ON FUNCTION scorer.default_parameters IS 'every parameter of create_model with its default; min_rows follows samples';

CREATE FUNCTION scorer.check_number(parameters jsonb, key text, lowest numeric, highest numeric, whole boolean DEFAULT true)
RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    given jsonb := parameters -> key;
    number numeric;
BEGIN
    IF jsonb_typeof(given) = 'number' THEN
        number := (given #>> '{}')::numeric;
    END IF;
    IF number IS NULL OR number NOT BETWEEN lowest AND highest OR (whole AND number <> trunc(number)) THEN
        RAISE EXCEPTION 'parameter %: % is not allowed', key, given
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = format('Give a %s from %s to %s.', CASE WHEN whole THEN 'whole number' ELSE 'number' END, lowest, highest);
    END IF;
END $$;

CREATE FUNCTION scorer.check_parameters(parameters jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    defaults jsonb := scorer.default_parameters();
    unknown text;
    full_set jsonb;
BEGIN
    IF parameters IS NULL OR jsonb_typeof(parameters) <> 'object' THEN
        RAISE EXCEPTION 'parameters must be a JSON object, not %', coalesce(jsonb_typeof(parameters), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'For example: ''{"trees": 100}''';
    END IF;
    SELECT string_agg(key, ', ' ORDER BY key) INTO unknown
    FROM jsonb_object_keys(parameters) key WHERE NOT defaults ? key;
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'no such parameter: %', unknown
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Allowed: ' || (SELECT string_agg(key, ', ' ORDER BY key) FROM jsonb_object_keys(defaults) key);
    END IF;
    full_set := defaults || parameters;
    PERFORM scorer.check_number(full_set, 'trees', 1, 1000);
    PERFORM scorer.check_number(full_set, 'samples', 10, 2048);
    IF NOT parameters ? 'min_rows' THEN
        full_set := jsonb_set(full_set, '{min_rows}', full_set -> 'samples');
    END IF;
    PERFORM scorer.check_number(full_set, 'seed', 0, 9223372036854775807);
    PERFORM scorer.check_number(full_set, 'min_rows', 1, 1000000000);
    PERFORM scorer.check_number(full_set, 'close_after_rows', 1, 1000000000);
    IF (full_set ->> 'scale') IS NULL OR full_set ->> 'scale' NOT IN ('robust', 'none') THEN
        RAISE EXCEPTION 'parameter scale: % is not allowed', full_set -> 'scale'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give "robust" or "none".';
    END IF;
    IF (full_set ->> 'threshold') IS NULL OR full_set ->> 'threshold' NOT IN ('sigma', 'quantile') THEN
        RAISE EXCEPTION 'parameter threshold: % is not allowed', full_set -> 'threshold'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give "sigma" or "quantile".';
    END IF;
    IF full_set ->> 'threshold' = 'quantile' THEN
        IF NOT parameters ? 'threshold_value' THEN
            full_set := jsonb_set(full_set, '{threshold_value}', '0.995');
        END IF;
        PERFORM scorer.check_number(full_set, 'threshold_value', 0.000001, 0.999999, whole => false);
    ELSE
        PERFORM scorer.check_number(full_set, 'threshold_value', 0.000001, 1000, whole => false);
    END IF;
    RETURN full_set;
END $$;

CREATE FUNCTION scorer.check_training_query(query text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    bare text := regexp_replace(query, ';\s*$', '');
BEGIN
    IF bare IS NULL OR bare !~* '^\s*(select|with|table|values)\y' THEN
        RAISE EXCEPTION 'the training query must be a SELECT' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'It yields the rows to learn from, with at least the feature columns.';
    END IF;
    BEGIN
        EXECUTE E'EXPLAIN SELECT * FROM (\n' || bare || E'\n) AS training';
    EXCEPTION
        -- What is not there yet may appear later: the version then waits, or fails with the reason when it is trained.
        WHEN undefined_table OR invalid_schema_name OR undefined_column OR undefined_function OR insufficient_privilege THEN
            NULL;
        WHEN syntax_error THEN
            RAISE EXCEPTION 'the training query is not valid SQL: %', SQLERRM USING ERRCODE = 'invalid_parameter_value',
                HINT = 'It must be one SELECT that can stand in FROM ( ... ).';
    END;
    RETURN bare;
END $$;

CREATE FUNCTION scorer.wake(model text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('tailrace_models', json_build_object('model', model)::text)
$$;

CREATE FUNCTION scorer.create_model(
    name text,
    relation text,
    training_query text,
    features text[],
    entity text DEFAULT NULL,
    order_by text DEFAULT NULL,
    parameters jsonb DEFAULT '{}'
) RETURNS integer LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    newest scorer.models;
    wanted scorer.models;
    pattern text;
    twice text;
BEGIN
    IF name IS NULL OR name !~ '^[a-z][a-z0-9_]{0,62}$' THEN
        RAISE EXCEPTION 'a model cannot be called %', coalesce(quote_literal(name), 'NULL') USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Lower-case letters, digits and _, a letter first, at most 63.';
    END IF;
    IF relation IS NULL OR btrim(relation) = '' THEN
        RAISE EXCEPTION 'relation is missing' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Name the mirror tables to score: schema.table, with % and _ of LIKE, several separated by commas.';
    END IF;
    FOREACH pattern IN ARRAY string_to_array(relation, ',') LOOP
        IF btrim(pattern) !~ '^[^.\s]+\.[^.]+$' THEN
            RAISE EXCEPTION 'relation: % is not schema.table', quote_literal(btrim(pattern)) USING ERRCODE = 'invalid_parameter_value',
                HINT = 'For example: plant.asset_readings_%';
        END IF;
    END LOOP;
    IF features IS NULL OR array_ndims(features) IS DISTINCT FROM 1
       OR array_position(features, NULL) IS NOT NULL OR '' = ANY (features) THEN
        RAISE EXCEPTION 'features must name at least one column' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'For example: ARRAY[''sensor_1'', ''sensor_2'']';
    END IF;
    SELECT string_agg(f, ', ') INTO twice FROM (SELECT f FROM unnest(features) f GROUP BY f HAVING count(*) > 1) doubled;
    IF twice IS NOT NULL THEN
        RAISE EXCEPTION 'features are named twice: %', twice USING ERRCODE = 'invalid_parameter_value';
    END IF;
    wanted.relation := (SELECT string_agg(btrim(p), ', ' ORDER BY n)
                        FROM unnest(string_to_array(relation, ',')) WITH ORDINALITY AS patterns (p, n));
    wanted.entity_column := nullif(entity, '');
    wanted.order_column := nullif(order_by, '');
    wanted.feature_columns := features;
    wanted.training_query := scorer.check_training_query(training_query);
    wanted.parameters := scorer.check_parameters(parameters);

    PERFORM pg_advisory_xact_lock(hashtextextended('tailrace model ' || name, 0));
    SELECT m.* INTO newest FROM scorer.models m WHERE m.name = name ORDER BY m.version DESC LIMIT 1;
    IF newest.version IS NOT NULL
       AND (newest.relation, newest.entity_column, newest.order_column, newest.feature_columns, newest.training_query, newest.parameters)
           IS NOT DISTINCT FROM
           (wanted.relation, wanted.entity_column, wanted.order_column, wanted.feature_columns, wanted.training_query, wanted.parameters)
    THEN
        IF newest.state = 'FAILED' THEN
            PERFORM scorer.retrain(name);
        END IF;
        RETURN newest.version;
    END IF;
    INSERT INTO scorer.models (name, version, relation, entity_column, order_column, feature_columns, training_query, parameters)
    VALUES (name, coalesce(newest.version, 0) + 1, wanted.relation, wanted.entity_column, wanted.order_column,
            wanted.feature_columns, wanted.training_query, wanted.parameters);
    UPDATE scorer.models m
    SET state = 'RETIRED', reason = 'version ' || newest.version + 1 || ' replaced it before it was trained', since = clock_timestamp()
    WHERE m.name = name AND m.version <= newest.version AND m.state IN ('PENDING', 'FAILED');
    PERFORM scorer.wake(name);
    RETURN coalesce(newest.version, 0) + 1;
END $$;
COMMENT ON FUNCTION scorer.create_model IS
    'define a model, or a new version where the definition differs from the newest; the scorer trains it; returns the version';

CREATE FUNCTION scorer.no_such_model(name text, version integer DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'no model %', name || coalesce(' version ' || version, '') USING ERRCODE = 'undefined_object',
        HINT = 'SELECT name, version, state FROM scorer.model_info';
END $$;

CREATE FUNCTION scorer.retrain(name text) RETURNS integer LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    newest scorer.models;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tailrace model ' || name, 0));
    SELECT m.* INTO newest FROM scorer.models m WHERE m.name = name ORDER BY m.version DESC LIMIT 1;
    IF newest.version IS NULL THEN
        PERFORM scorer.no_such_model(name);
    ELSIF newest.state IN ('PENDING', 'TRAINING', 'FAILED') THEN
        UPDATE scorer.models m SET state = 'PENDING', reason = NULL, since = clock_timestamp()
        WHERE m.name = name AND m.version = newest.version AND m.state <> 'TRAINING';
    ELSE
        INSERT INTO scorer.models (name, version, relation, entity_column, order_column, feature_columns, training_query, parameters)
        VALUES (name, newest.version + 1, newest.relation, newest.entity_column, newest.order_column,
                newest.feature_columns, newest.training_query, newest.parameters);
        newest.version := newest.version + 1;
    END IF;
    PERFORM scorer.wake(name);
    RETURN newest.version;
END $$;
COMMENT ON FUNCTION scorer.retrain IS
    'train again: a new version of the same definition, or another try of one that failed; returns the version';

CREATE FUNCTION scorer.deploy(name text, version integer) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    target scorer.models;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tailrace model ' || name, 0));
    SELECT m.* INTO target FROM scorer.models m WHERE m.name = name AND m.version = version FOR UPDATE;
    IF target.version IS NULL THEN
        PERFORM scorer.no_such_model(name, version);
    ELSIF target.state = 'READY' THEN
        RETURN;
    ELSIF target.state <> 'RETIRED' OR target.trained_at IS NULL THEN
        RAISE EXCEPTION 'model % version % is % and cannot be deployed', name, version, target.state
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Only a version that was trained can.';
    END IF;
    UPDATE scorer.models m SET state = 'RETIRED', reason = 'version ' || version || ' was deployed', since = clock_timestamp()
    WHERE m.name = name AND m.state = 'READY';
    UPDATE scorer.incidents i SET closed_at = statement_timestamp(), close_reason = 'model retired'
    WHERE i.model = name AND i.model_version <> version AND i.closed_at IS NULL;
    UPDATE scorer.models m SET state = 'READY', reason = NULL, since = clock_timestamp()
    WHERE m.name = name AND m.version = version;
    PERFORM scorer.wake(name);
END $$;
COMMENT ON FUNCTION scorer.deploy IS 'let a trained version score; it goes on from its own watermark';

CREATE FUNCTION scorer.rollback(name text) RETURNS integer LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    earlier integer;
BEGIN
    SELECT m.version INTO earlier FROM scorer.models m
    WHERE m.name = name AND m.state = 'RETIRED' AND m.trained_at IS NOT NULL
      AND m.version < (SELECT r.version FROM scorer.models r WHERE r.name = name AND r.state = 'READY')
    ORDER BY m.version DESC LIMIT 1;
    IF earlier IS NULL THEN
        RAISE EXCEPTION 'model % has no earlier version to go back to', name USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'SELECT name, version, state FROM scorer.model_info';
    END IF;
    PERFORM scorer.deploy(name, earlier);
    RETURN earlier;
END $$;
COMMENT ON FUNCTION scorer.rollback IS 'deploy the version before the one that scores; returns it';

CREATE FUNCTION scorer.drop_model(name text) RETURNS void LANGUAGE plpgsql AS $$
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
    DELETE FROM scorer.models m WHERE m.name = name;
    PERFORM scorer.wake(name);
END $$;
COMMENT ON FUNCTION scorer.drop_model IS 'remove a model with all versions, scores, anomalies and incidents';

CREATE VIEW scorer.model_info AS
SELECT m.name, m.version, m.state, m.reason, m.since, m.owner, m.relation, m.entity_column, m.order_column, m.feature_columns,
       m.threshold, m.rows_seen, w.watermark, w.rows_scored, w.tables, w.tables_not_scored, w.committed_at, w.scored_at,
       (SELECT count(*) FROM scorer.anomalies a
        WHERE a.model = m.name AND a.model_version = m.version AND a.status = 'open') AS open_anomalies,
       (SELECT count(*) FROM scorer.incidents i
        WHERE i.model = m.name AND i.model_version = m.version AND i.closed_at IS NULL) AS open_incidents,
       m.training_query, m.parameters, m.training_scores, m.created_at, m.trained_at, m.training_ms
FROM scorer.models m
LEFT JOIN LATERAL (
    SELECT min(seq) FILTER (WHERE reason IS NULL) AS watermark, sum(rows_scored)::bigint AS rows_scored,
           array_agg(relation ORDER BY relation) AS tables,
           jsonb_object_agg(relation, reason) FILTER (WHERE reason IS NOT NULL) AS tables_not_scored,
           max(committed_at) AS committed_at, max(scored_at) AS scored_at
    FROM scorer.watermarks w WHERE w.model = m.name AND w.version = m.version
) w ON true;
COMMENT ON VIEW scorer.model_info IS 'one row per model version: state, training, how far it has scored';

CREATE FUNCTION scorer.show_model(name text) RETURNS TABLE (property text, value text) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_variable
BEGIN
    IF NOT EXISTS (SELECT FROM scorer.models m WHERE m.name = name) THEN
        PERFORM scorer.no_such_model(name);
    END IF;
    RETURN QUERY
        SELECT p.key, p.value
        FROM (SELECT i.* FROM scorer.model_info i WHERE i.name = name
              ORDER BY i.state = 'READY' DESC, i.version DESC LIMIT 1) shown,
             json_each_text(row_to_json(shown)) p;
END $$;
COMMENT ON FUNCTION scorer.show_model IS 'the version that scores, or else the newest, as one row per property';

CREATE VIEW scorer.open_anomalies AS
SELECT a.* FROM scorer.anomalies a
JOIN scorer.models m ON m.name = a.model AND m.version = a.model_version
WHERE a.status = 'open' AND m.state = 'READY';
COMMENT ON VIEW scorer.open_anomalies IS 'open anomalies of the versions that score now';

-- Scoring in SQL ---------------------------------------------------------------------------------------------------

CREATE FUNCTION scorer.scale_features(scaler jsonb, features double precision[]) RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- The trees hold float32 values. LEAST and GREATEST pass NULL over, so that is asked first.
    SELECT array_agg(CASE WHEN scaled.value IS NOT NULL
                          THEN greatest(-bound.clip, least(bound.clip, scaled.value))::real::float8 END ORDER BY scaled.n)
    FROM (SELECT (scaler ->> 'clip')::float8 AS clip) bound,
         (SELECT f.n, (nullif(f.value, 'NaN') - (c.value #>> '{}')::float8) / (s.value #>> '{}')::float8 AS value
          FROM unnest(features) WITH ORDINALITY f (value, n)
          JOIN jsonb_array_elements(scaler -> 'center') WITH ORDINALITY c (value, n) USING (n)
          JOIN jsonb_array_elements(scaler -> 'scale') WITH ORDINALITY s (value, n) USING (n)) scaled
$$;

CREATE FUNCTION scorer.score(model text, features double precision[]) RETURNS double precision
LANGUAGE plpgsql STABLE PARALLEL SAFE COST 100000
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off AS $$
#variable_conflict use_variable
DECLARE
    used scorer.models;
    point double precision[];
    sides cube[];
    result double precision;
BEGIN
    SELECT m.* INTO used FROM scorer.models m WHERE m.name = model AND m.state = 'READY';
    IF used.version IS NULL THEN
        RAISE EXCEPTION 'no model % is READY', model USING ERRCODE = 'undefined_object',
            HINT = 'SELECT name, version, state, reason FROM scorer.model_info';
    END IF;
    IF cardinality(features) IS DISTINCT FROM cardinality(used.feature_columns) THEN
        RAISE EXCEPTION '% values given, model % has % features', coalesce(cardinality(features), 0), model, cardinality(used.feature_columns)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'In this order: ' || array_to_string(used.feature_columns, ', ');
    END IF;
    point := scorer.scale_features(used.scaler, features);
    -- A missing value is no evidence: as an interval without bounds it is at no distance from any box.
    SELECT array_agg(cube(
               ARRAY(SELECT coalesce(v, '-Infinity') FROM unnest(point[chunk : chunk + 99]) WITH ORDINALITY p (v, n) ORDER BY n),
               ARRAY(SELECT coalesce(v, 'Infinity') FROM unnest(point[chunk : chunk + 99]) WITH ORDINALITY p (v, n) ORDER BY n)) ORDER BY chunk)
    INTO sides FROM generate_series(1, cardinality(point), 100) chunk;
    -- Top down: alive is the probability that no cut above has set the point apart, value what those cuts contributed.
    -- The node is looked up with LIMIT, so that no plan can read more of the forest than the primary key leads to.
    WITH RECURSIVE walk AS (
        SELECT t.tree, 0 AS depth, 1.0::float8 AS alive, 0.0::float8 AS value, found.mass AS total, found.*
        FROM generate_series(0, (used.parameters ->> 'trees')::integer - 1) AS t (tree)
        CROSS JOIN LATERAL (
            SELECT n.cut_dim, n.cut_value, n.left_node, n.right_node, n.heavy_node, n.mass, n.range_sum,
                   (SELECT sum(b <#> s) FROM unnest(n.boxes, sides) AS pair (b, s)) AS gap
            FROM scorer.forest_nodes n
            WHERE n.model = model AND n.version = used.version AND n.tree = t.tree AND n.node = 0 LIMIT 1) found
        UNION ALL
        SELECT w.tree, w.depth + 1, w.alive * (1 - step.q), w.value + w.alive * step.q / (w.depth + 1), w.total, found.*
        FROM walk w
        CROSS JOIN LATERAL (SELECT CASE WHEN w.gap > 0 THEN w.gap / (w.range_sum + w.gap) ELSE 0 END,
                                   CASE WHEN point[w.cut_dim] IS NULL THEN w.heavy_node
                                        WHEN point[w.cut_dim] <= w.cut_value THEN w.left_node ELSE w.right_node END) AS step (q, child)
        CROSS JOIN LATERAL (
            SELECT n.cut_dim, n.cut_value, n.left_node, n.right_node, n.heavy_node, n.mass, n.range_sum,
                   (SELECT sum(b <#> s) FROM unnest(n.boxes, sides) AS pair (b, s)) AS gap
            FROM scorer.forest_nodes n
            WHERE n.model = model AND n.version = used.version AND n.tree = w.tree AND n.node = step.child LIMIT 1) found
        WHERE w.cut_dim IS NOT NULL
    )
    SELECT avg((w.value + w.alive * CASE
                   WHEN w.gap > 0 THEN 1.0 / (w.depth + 1)
                   ELSE (1 - w.mass / (2.0::float8 * w.total)) / (w.depth + ln(1 + w.mass::float8) / ln(2::float8)) END)
               * ln(1 + w.total::float8) / ln(2::float8))
    INTO result FROM walk w WHERE w.cut_dim IS NULL;
    IF result IS NULL THEN
        RAISE EXCEPTION 'the forest of model % version % is not there as rows', model, used.version
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = format('SELECT scorer.retrain(%L)', model);
    END IF;
    RETURN result;
END $$;
COMMENT ON FUNCTION scorer.score(text, double precision[]) IS
    'the score of values by the READY version, in the order of its features, NULL where there is none; reads nothing but the forest';

-- The results are for whoever may enter the schema; the verbs need the rights on the tables they write.
CREATE FUNCTION scorer.explanation(anomaly_id bigint) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_object_agg(f.feature, jsonb_build_object(
        'DIRECTION', upper(f.direction), 'ATTRIBUTION_SCORE', f.attribution,
        'VALUE', f.value, 'EXPECTED', f.expected_value, 'RANK', f.rank))
    FROM scorer.anomaly_features f WHERE f.anomaly_id = explanation.anomaly_id
$$;
COMMENT ON FUNCTION scorer.explanation IS 'the features of an anomaly as one JSON object';

-- Functions find their tables whatever the caller's search path is.
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'scorer'::regnamespace LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = scorer, public, pg_temp', f);
    END LOOP;
END $$;
