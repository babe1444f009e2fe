-- A forest for each entity: where those that are not in memory are parked, and what says how many there are.

CREATE TABLE scorer.entity_forests (
    model      text COLLATE "C" NOT NULL,
    version    integer NOT NULL,
    entity     text COLLATE "C" NOT NULL,
    state      bytea NOT NULL,
    batch      bigint NOT NULL,
    rows_seen  bigint NOT NULL,
    threshold  double precision,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (model, version, entity),
    FOREIGN KEY (model, version) REFERENCES scorer.models ON DELETE CASCADE
);
ALTER TABLE scorer.entity_forests ALTER COLUMN state SET STORAGE EXTERNAL;
COMMENT ON TABLE scorer.entity_forests IS 'the forests of single entities, with header and checksum, each as it was when it was last written';
COMMENT ON COLUMN scorer.entity_forests.batch IS
    'the last batch that the state has learnt; what the entity had since is in scorer.learned_batches';
COMMENT ON COLUMN scorer.entity_forests.threshold IS 'the entity''s own threshold; NULL where it follows the stream';

ALTER TABLE scorer.forest_checkpoints
    ADD COLUMN forests_in_memory integer,
    ADD COLUMN forests_bound integer,
    ADD COLUMN entities_waiting integer;
COMMENT ON COLUMN scorer.forest_checkpoints.forests_in_memory IS
    'forests of entities that the scorer held in memory after the last batch, forests_bound at most';
COMMENT ON COLUMN scorer.forest_checkpoints.entities_waiting IS 'entities with rows that have no forest of their own yet';

CREATE OR REPLACE FUNCTION scorer.is_plain(parameters jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(parameters ->> 'policy', 'frozen') = 'frozen' AND coalesce(parameters ->> 'forest_per', 'model') = 'model'
       AND coalesce((parameters ->> 'shingle')::integer, 1) = 1
       AND coalesce((parameters ->> 'baseline_rows')::integer, 0) = 0
       AND coalesce(parameters ->> 'threshold', 'sigma') IN ('sigma', 'quantile')
       AND coalesce(parameters ->> 'direction', 'both') = 'both'
       AND NOT EXISTS (SELECT FROM jsonb_each_text(parameters) p WHERE p.key LIKE 'ignore\_%' AND p.value::float8 <> 0)
$$;

CREATE OR REPLACE FUNCTION scorer.default_parameters() RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT '{"trees": 100, "samples": 256, "seed": 0, "scale": "robust", "threshold": "sigma", "threshold_value": 3,
             "min_rows": 256, "close_after_rows": 10, "hysteresis": 0.1,
             "backfill": "first", "deploy": "at once", "retrain_hours": 0,
             "forest_per": "model", "entity_rows": 0, "policy": "frozen", "time_decay": 100000, "gate_sigma": 2, "shingle": 1, "baseline_rows": 0, "output_after": 64,
             "initial_accept_fraction": 1, "anomaly_rate": 0.01, "direction": "both",
             "ignore_above": 0, "ignore_below": 0, "ignore_above_share": 0, "ignore_below_share": 0}'::jsonb
$$;
COMMENT ON FUNCTION scorer.default_parameters IS
    'every parameter of create_model with its default; min_rows, output_after and entity_rows follow samples, threshold_value the threshold';

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
    PERFORM scorer.check_choice(full_set, 'forest_per', ARRAY['model', 'entity']);
    IF full_set ->> 'forest_per' = 'entity' THEN
        IF NOT translated ? 'entity_rows' THEN
            full_set := jsonb_set(full_set, '{entity_rows}', to_jsonb((full_set ->> 'samples')::integer + (full_set ->> 'shingle')::integer - 1));
        END IF;
        PERFORM scorer.check_number(full_set, 'entity_rows', (full_set ->> 'shingle')::integer + 9, 1000000);
        -- The pooled forest judges the first rows of every entity, so there has to be one.
        PERFORM scorer.check_number(full_set, 'min_rows', 1, 1000000000);
    ELSE
        PERFORM scorer.check_number(full_set, 'entity_rows', 0, 0);
    END IF;
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

UPDATE scorer.models SET parameters = '{"forest_per": "model", "entity_rows": 0}'::jsonb || parameters WHERE kind = 'random cut forest';

CREATE FUNCTION scorer.check_entity() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.parameters ->> 'forest_per' = 'entity' AND new.entity_column IS NULL THEN
        RAISE EXCEPTION 'forest_per is "entity", and the model has no entity column' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'For example: entity => ''unit''';
    END IF;
    RETURN new;
END $$;
CREATE TRIGGER check_entity BEFORE INSERT ON scorer.models FOR EACH ROW EXECUTE FUNCTION scorer.check_entity();

CREATE OR REPLACE FUNCTION scorer.used_model(model text, features double precision[]) RETURNS scorer.models LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
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
    IF used.parameters ->> 'forest_per' = 'entity' THEN
        RAISE EXCEPTION 'model % has a forest for each entity, and none of them as rows', model USING ERRCODE = 'feature_not_supported',
            HINT = format('Rows of its tables have their scores in scorer.scores; other values: scorer explain %s FEATURES --entity ENTITY', model);
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

CREATE OR REPLACE VIEW scorer.model_info AS
SELECT m.name, m.version, m.state, m.reason, m.since, m.owner, m.relation, m.entity_column, m.order_column, m.feature_columns,
       m.threshold, m.rows_seen, w.watermark, w.rows_scored, w.tables, w.tables_not_scored, w.committed_at, w.scored_at,
       (SELECT count(*) FROM scorer.anomalies a
        WHERE a.model = m.name AND a.model_version = m.version AND a.status = 'open') AS open_anomalies,
       (SELECT count(*) FROM scorer.incidents i
        WHERE i.model = m.name AND i.model_version = m.version AND i.closed_at IS NULL) AS open_incidents,
       m.training_query, m.parameters, m.training_scores, m.created_at, m.trained_at, m.training_ms,
       f.entity_forests, f.forests_in_memory, f.entity_forests - f.forests_in_memory AS forests_parked, f.forests_bound, f.entities_waiting
FROM scorer.models m
LEFT JOIN LATERAL (
    SELECT min(seq) FILTER (WHERE reason IS NULL) AS watermark, sum(rows_scored)::bigint AS rows_scored,
           array_agg(relation ORDER BY relation) AS tables,
           jsonb_object_agg(relation, reason) FILTER (WHERE reason IS NOT NULL) AS tables_not_scored,
           max(committed_at) AS committed_at, max(scored_at) AS scored_at
    FROM scorer.watermarks w WHERE w.model = m.name AND w.version = m.version
) w ON true
LEFT JOIN LATERAL (
    SELECT (SELECT count(*) FROM scorer.entity_forests e WHERE e.model = m.name AND e.version = m.version) AS entity_forests,
           coalesce(c.forests_in_memory, 0) AS forests_in_memory, c.forests_bound, c.entities_waiting
    FROM scorer.forest_checkpoints c
    WHERE c.model = m.name AND c.version = m.version AND m.parameters ->> 'forest_per' = 'entity'
) f ON true;

DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'scorer'::regnamespace AND proname <> 'score_rows'
             AND obj_description(oid, 'pg_proc') IS DISTINCT FROM 'made by scorer.create_function' LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = scorer, public, pg_temp', f);
    END LOOP;
END $$;
