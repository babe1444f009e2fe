-- The life of a model: a new version in the shadow of the deployed one, retraining by the clock, old rows behind new ones, and
-- forests as rows only for versions that may be asked.

ALTER TABLE scorer.models DROP CONSTRAINT models_state_check;
ALTER TABLE scorer.models ADD CONSTRAINT models_state_check
    CHECK (state IN ('PENDING', 'TRAINING', 'SHADOW', 'READY', 'FAILED', 'RETIRED'));
CREATE UNIQUE INDEX models_one_shadow ON scorer.models (name) WHERE state = 'SHADOW';

ALTER TABLE scorer.watermarks
    ADD COLUMN first_seq bigint NOT NULL DEFAULT 0,
    ADD COLUMN old_seq bigint,
    ADD COLUMN old_until bigint;
COMMENT ON COLUMN scorer.watermarks.first_seq IS 'the version began behind this _seq';
COMMENT ON COLUMN scorer.watermarks.old_seq IS 'up to which _seq rows from before the version have been scored behind the new ones; done at old_until';

CREATE FUNCTION scorer.is_plain(parameters jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(parameters ->> 'policy', 'frozen') = 'frozen' AND coalesce((parameters ->> 'shingle')::integer, 1) = 1
       AND coalesce((parameters ->> 'baseline_rows')::integer, 0) = 0
       AND coalesce(parameters ->> 'threshold', 'sigma') IN ('sigma', 'quantile')
       AND coalesce(parameters ->> 'direction', 'both') = 'both'
       AND NOT EXISTS (SELECT FROM jsonb_each_text(parameters) p WHERE p.key LIKE 'ignore\_%' AND p.value::float8 <> 0)
$$;
COMMENT ON FUNCTION scorer.is_plain IS 'whether rows leave no trace in a model of these parameters';

CREATE OR REPLACE FUNCTION scorer.default_parameters() RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT '{"trees": 100, "samples": 256, "seed": 0, "scale": "robust", "threshold": "sigma", "threshold_value": 3,
             "min_rows": 256, "close_after_rows": 10, "hysteresis": 0.1,
             "backfill": "first", "deploy": "at once", "retrain_hours": 0,
             "policy": "frozen", "time_decay": 100000, "gate_sigma": 2, "shingle": 1, "baseline_rows": 0, "output_after": 64,
             "initial_accept_fraction": 1, "anomaly_rate": 0.01, "direction": "both",
             "ignore_above": 0, "ignore_below": 0, "ignore_above_share": 0, "ignore_below_share": 0}'::jsonb
$$;
COMMENT ON FUNCTION scorer.default_parameters IS
    'every parameter of create_model with its default; min_rows and output_after follow samples, threshold_value the threshold';

CREATE OR REPLACE FUNCTION scorer.check_parameters(parameters jsonb) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    defaults jsonb := scorer.default_parameters();
    aliases jsonb := scorer.parameter_aliases();
    translated jsonb := '{}';
    unknown text;
    full_set jsonb;
    key text;
BEGIN
    IF parameters IS NULL OR jsonb_typeof(parameters) <> 'object' THEN
        RAISE EXCEPTION 'parameters must be a JSON object, not %', coalesce(jsonb_typeof(parameters), 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'For example: ''{"trees": 100}''';
    END IF;
    FOR key IN SELECT k FROM jsonb_object_keys(parameters) k LOOP
        IF translated ? coalesce(aliases ->> key, key) THEN
            RAISE EXCEPTION 'parameter % is given twice, under two names', coalesce(aliases ->> key, key)
                USING ERRCODE = 'invalid_parameter_value', HINT = 'Give one of them.';
        END IF;
        translated := translated || jsonb_build_object(coalesce(aliases ->> key, key), parameters -> key);
    END LOOP;
    SELECT string_agg(k, ', ' ORDER BY k) INTO unknown FROM jsonb_object_keys(translated) k WHERE NOT defaults ? k;
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'no such parameter: %', unknown
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Allowed: ' || (SELECT string_agg(k, ', ' ORDER BY k) FROM jsonb_object_keys(defaults) k);
    END IF;
    full_set := defaults || translated;
    PERFORM scorer.check_number(full_set, 'trees', 1, 1000);
    PERFORM scorer.check_number(full_set, 'samples', 10, 2048);
    IF NOT translated ? 'min_rows' THEN
        full_set := jsonb_set(full_set, '{min_rows}', full_set -> 'samples');
    END IF;
    IF NOT translated ? 'output_after' THEN
        full_set := jsonb_set(full_set, '{output_after}', to_jsonb((full_set ->> 'samples')::integer / 4));
    END IF;
    PERFORM scorer.check_number(full_set, 'seed', 0, 9223372036854775807);
    -- A model that learns may begin without a history, if it needs none for scale and threshold.
    PERFORM scorer.check_number(full_set, 'min_rows', CASE WHEN full_set ->> 'policy' = 'frozen' THEN 1 ELSE 0 END, 1000000000);
    PERFORM scorer.check_number(full_set, 'close_after_rows', 1, 1000000000);
    PERFORM scorer.check_number(full_set, 'hysteresis', 0, 0.99, whole => false);
    PERFORM scorer.check_number(full_set, 'time_decay', 1, 2147483647);
    PERFORM scorer.check_number(full_set, 'gate_sigma', 0.000001, 1000, whole => false);
    PERFORM scorer.check_number(full_set, 'shingle', 1, 128);
    PERFORM scorer.check_number(full_set, 'baseline_rows', 0, 10000);
    PERFORM scorer.check_number(full_set, 'output_after', 1, 2147483647);
    PERFORM scorer.check_number(full_set, 'initial_accept_fraction', 0.000001, 1, whole => false);
    PERFORM scorer.check_number(full_set, 'anomaly_rate', 0.000001, 0.999999, whole => false);
    FOREACH key IN ARRAY ARRAY['ignore_above', 'ignore_below', 'ignore_above_share', 'ignore_below_share'] LOOP
        PERFORM scorer.check_number(full_set, key, 0, 1e300, whole => false);
    END LOOP;
    PERFORM scorer.check_choice(full_set, 'policy', ARRAY['frozen', 'gated', 'streaming']);
    PERFORM scorer.check_number(full_set, 'retrain_hours', 0, 100000, whole => false);
    PERFORM scorer.check_choice(full_set, 'deploy', ARRAY['at once', 'shadow']);
    PERFORM scorer.check_choice(full_set, 'backfill', ARRAY['first', 'behind', 'none']);
    IF full_set ->> 'backfill' = 'behind' AND NOT scorer.is_plain(full_set) THEN
        RAISE EXCEPTION 'a model that learns takes its rows in order and cannot score old ones behind new ones'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give the parameter backfill "first" or "none".';
    END IF;
    PERFORM scorer.check_choice(full_set, 'direction', ARRAY['both', 'high', 'low']);
    PERFORM scorer.check_choice(full_set, 'scale', ARRAY['robust', 'none']);
    PERFORM scorer.check_choice(full_set, 'threshold', ARRAY['sigma', 'quantile', 'adaptive', 'budget']);
    IF NOT translated ? 'threshold_value' THEN
        full_set := jsonb_set(full_set, '{threshold_value}',
            ('{"sigma": 3, "quantile": 0.995, "adaptive": 3, "budget": 0.001}'::jsonb) -> (full_set ->> 'threshold'));
    END IF;
    CASE full_set ->> 'threshold'
        WHEN 'sigma' THEN PERFORM scorer.check_number(full_set, 'threshold_value', 0.000001, 1000, whole => false);
        WHEN 'adaptive' THEN PERFORM scorer.check_number(full_set, 'threshold_value', 2, 1000, whole => false);
        ELSE PERFORM scorer.check_number(full_set, 'threshold_value', 0.000001, 0.999999, whole => false);
    END CASE;
    IF (full_set ->> 'min_rows')::bigint = 0 AND (full_set ->> 'scale' = 'robust' OR full_set ->> 'threshold' IN ('sigma', 'quantile')) THEN
        RAISE EXCEPTION 'min_rows is 0, but scale % and threshold % are learnt from training rows', full_set -> 'scale', full_set -> 'threshold'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give min_rows of 1 or more, or scale "none" with threshold "adaptive" or "budget".';
    END IF;
    RETURN full_set;
END $$;

UPDATE scorer.models SET parameters = '{"backfill": "first", "deploy": "at once", "retrain_hours": 0}'::jsonb || parameters
WHERE kind = 'random cut forest';

CREATE OR REPLACE FUNCTION scorer.create_model(
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
    -- Without tables the model is asked in SQL only.
    relation := coalesce(btrim(relation), '');
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
    wanted.relation := coalesce((SELECT string_agg(btrim(p), ', ' ORDER BY n)
                                 FROM unnest(string_to_array(relation, ',')) WITH ORDINALITY AS patterns (p, n)), '');
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

CREATE OR REPLACE FUNCTION scorer.retrain(name text) RETURNS integer LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    newest scorer.models;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tailrace model ' || name, 0));
    SELECT m.* INTO newest FROM scorer.models m WHERE m.name = name ORDER BY m.version DESC LIMIT 1;
    IF newest.version IS NULL THEN
        PERFORM scorer.no_such_model(name);
    ELSIF newest.kind = 'imported' THEN
        RAISE EXCEPTION 'model % was imported and cannot be trained here', name USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Train it where it came from, and: scorer import ' || name || ' FILE';
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

CREATE FUNCTION scorer.retrain_due() RETURNS integer LANGUAGE sql AS $$
    -- The clock of a name starts with the last attempt, so that a failure is tried again after the same time.
    SELECT count(scorer.retrain(due.name))::integer
    FROM (SELECT m.name FROM scorer.models m
          WHERE m.kind = 'random cut forest'
          GROUP BY m.name
          HAVING bool_or(m.state = 'READY') AND NOT bool_or(m.state IN ('PENDING', 'TRAINING'))
             AND (array_agg((m.parameters ->> 'retrain_hours')::float8 ORDER BY m.version DESC))[1] > 0
             AND greatest(max(m.trained_at), max(m.since) FILTER (WHERE m.state = 'FAILED')) < now()
                 - make_interval(secs => (array_agg((m.parameters ->> 'retrain_hours')::float8 ORDER BY m.version DESC))[1] * 3600)) due
$$;
COMMENT ON FUNCTION scorer.retrain_due IS 'retrain the models whose retrain_hours have passed; returns how many; the scorer calls it';

CREATE OR REPLACE FUNCTION scorer.deploy(name text, version integer) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    target scorer.models;
    closed bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('tailrace model ' || name, 0));
    SELECT m.* INTO target FROM scorer.models m WHERE m.name = name AND m.version = version FOR UPDATE;
    IF target.version IS NULL THEN
        PERFORM scorer.no_such_model(name, version);
    ELSIF target.state = 'READY' THEN
        RETURN;
    ELSIF target.state NOT IN ('RETIRED', 'SHADOW') OR target.trained_at IS NULL THEN
        RAISE EXCEPTION 'model % version % is % and cannot be deployed', name, version, target.state
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Only a version that was trained can.';
    END IF;
    UPDATE scorer.models m SET state = 'RETIRED', reason = 'version ' || version || ' was deployed', since = clock_timestamp()
    WHERE m.name = name AND m.state = 'READY';
    FOR closed IN
        UPDATE scorer.incidents i SET closed_at = statement_timestamp(), close_reason = 'model retired'
        FROM scorer.models m
        WHERE m.name = i.model AND m.version = i.model_version AND m.state = 'RETIRED'
          AND i.model = name AND i.model_version <> version AND i.closed_at IS NULL RETURNING i.id
    LOOP
        PERFORM scorer.notify_incident(closed, 'closed');
    END LOOP;
    UPDATE scorer.models m SET state = 'READY', reason = NULL, since = clock_timestamp()
    WHERE m.name = name AND m.version = version;
    PERFORM scorer.wake(name);
END $$;

CREATE VIEW scorer.shadow_comparison AS
WITH pairs AS (
    SELECT s.name, d.version AS deployed_version, s.version AS shadow_version, d.threshold AS deployed_threshold,
           s.threshold AS shadow_threshold, s.since
    FROM scorer.models s JOIN scorer.models d ON d.name = s.name AND d.state = 'READY'
    WHERE s.state = 'SHADOW'
), found AS (
    SELECT p.name, a.model_version, a.source_table, a.row_key
    FROM pairs p
    JOIN scorer.watermarks w ON w.model = p.name AND w.version = p.shadow_version
    JOIN scorer.anomalies a ON a.model = p.name AND a.model_version IN (p.deployed_version, p.shadow_version)
                           AND a.source_table = w.relation AND a.seq > w.first_seq AND a.status = 'open'
), episodes AS (
    SELECT p.name, i.model_version, i.id
    FROM pairs p
    JOIN LATERAL (SELECT w.source, min(w.first_seq) AS first_seq FROM scorer.watermarks w
                  WHERE w.model = p.name AND w.version = p.shadow_version GROUP BY w.source) w ON true
    JOIN scorer.incidents i ON i.model = p.name AND i.model_version IN (p.deployed_version, p.shadow_version)
                           AND i.source = w.source AND i.first_seq > w.first_seq
)
SELECT p.name AS model, p.deployed_version, p.shadow_version, p.since,
       (SELECT coalesce(sum(w.rows_scored), 0)::bigint FROM scorer.watermarks w WHERE w.model = p.name AND w.version = p.shadow_version) AS rows_scored,
       p.deployed_threshold, p.shadow_threshold,
       (SELECT count(*) FROM found f WHERE f.name = p.name AND f.model_version = p.deployed_version) AS deployed_anomalies,
       (SELECT count(*) FROM found f WHERE f.name = p.name AND f.model_version = p.shadow_version) AS shadow_anomalies,
       (SELECT count(*) FROM found f JOIN found g USING (name, source_table, row_key)
        WHERE f.name = p.name AND f.model_version = p.deployed_version AND g.model_version = p.shadow_version) AS common_anomalies,
       (SELECT count(*) FROM episodes e WHERE e.name = p.name AND e.model_version = p.deployed_version) AS deployed_incidents,
       (SELECT count(*) FROM episodes e WHERE e.name = p.name AND e.model_version = p.shadow_version) AS shadow_incidents
FROM pairs p;
COMMENT ON VIEW scorer.shadow_comparison IS
    'what a version in the shadow found beside the deployed one, in the rows since it began: compare, then scorer.deploy(model, shadow_version)';

DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'scorer'::regnamespace AND proname <> 'score_rows'
             AND obj_description(oid, 'pg_proc') IS DISTINCT FROM 'made by scorer.create_function' LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = scorer, public, pg_temp', f);
    END LOOP;
END $$;
