-- Models that learn while they score: their parameters, what a crash needs to bring the forest back bit for bit, and
-- incidents with hysteresis, acknowledgement and label.

ALTER TABLE scorer.forest_checkpoints
    ADD COLUMN batch bigint NOT NULL DEFAULT 0,
    ADD COLUMN last_batch bigint NOT NULL DEFAULT 0,
    ADD COLUMN nodes_batch bigint NOT NULL DEFAULT 0,
    ADD COLUMN nodes_at timestamptz NOT NULL DEFAULT clock_timestamp();
COMMENT ON COLUMN scorer.forest_checkpoints.batch IS 'the last batch that the state has learnt';
COMMENT ON COLUMN scorer.forest_checkpoints.last_batch IS 'the last batch that was committed; those between are in scorer.learned_batches';
COMMENT ON COLUMN scorer.forest_checkpoints.nodes_batch IS 'the last batch that the rows of scorer.forest_nodes know';

CREATE TABLE scorer.learned_batches (
    model        text COLLATE "C" NOT NULL,
    version      integer NOT NULL,
    batch        bigint NOT NULL,
    rows         integer NOT NULL,
    features     bytea NOT NULL,
    entities     text[],
    order_values bytea,
    PRIMARY KEY (model, version, batch),
    FOREIGN KEY (model, version) REFERENCES scorer.models ON DELETE CASCADE
);
ALTER TABLE scorer.learned_batches ALTER COLUMN features SET STORAGE EXTERNAL;
COMMENT ON TABLE scorer.learned_batches IS
    'the rows that a learning model was given since its checkpoint, as they were: a restart gives them to the forest again';
COMMENT ON COLUMN scorer.learned_batches.features IS 'rows x features, float64, little-endian; NaN where there is no value';

ALTER TABLE scorer.scores ALTER COLUMN score DROP NOT NULL, ADD COLUMN reason text;
COMMENT ON COLUMN scorer.scores.reason IS
    'why there is no score: late (not after the entity''s newest row), or not ready (too few rows of the entity for a shingle or a baseline)';

ALTER TABLE scorer.incidents
    ADD COLUMN peak_seq bigint,
    ADD COLUMN peak_order_value double precision,
    ADD COLUMN first_committed_at timestamptz,
    ADD COLUMN last_committed_at timestamptz,
    ADD COLUMN acknowledged_at timestamptz,
    ADD COLUMN acknowledged_by name,
    ADD COLUMN label text CHECK (label IN ('true alarm', 'false alarm')),
    ADD COLUMN labelled_at timestamptz,
    ADD COLUMN labelled_by name,
    ADD COLUMN note text;
COMMENT ON COLUMN scorer.incidents.peak_seq IS '_seq of the row with the highest score';
COMMENT ON COLUMN scorer.incidents.first_committed_at IS 'commit time at the source of the first and of the last anomaly, where it is known';
COMMENT ON COLUMN scorer.incidents.label IS 'what people found: true alarm or false alarm';

CREATE VIEW scorer.incident_features AS
SELECT a.incident_id, f.feature, sum(f.attribution) AS attribution,
       sum(f.attribution) / sum(sum(f.attribution)) OVER (PARTITION BY a.incident_id) AS share,
       CASE WHEN sum(f.attribution * CASE WHEN f.direction = 'high' THEN 1 ELSE -1 END) >= 0 THEN 'high' ELSE 'low' END AS direction,
       count(*) FILTER (WHERE f.rank = 1) AS anomalies_led,
       row_number() OVER (PARTITION BY a.incident_id ORDER BY sum(f.attribution) DESC, f.feature) AS rank
FROM scorer.anomalies a JOIN scorer.anomaly_features f ON f.anomaly_id = a.id
WHERE a.status = 'open'
GROUP BY a.incident_id, f.feature;
COMMENT ON VIEW scorer.incident_features IS 'why: what each feature contributed to the open anomalies of an incident; rank 1 contributed most';

CREATE VIEW scorer.incident_info AS
SELECT i.id, i.model, i.model_version, m.state AS model_state, i.source, i.entity,
       CASE WHEN i.closed_at IS NULL THEN 'open' ELSE 'closed' END AS state, i.close_reason, i.opened_at, i.closed_at,
       i.first_order_value, i.last_order_value, i.first_committed_at, i.last_committed_at,
       coalesce(i.last_committed_at - i.first_committed_at, coalesce(i.closed_at, now()) - i.opened_at) AS duration,
       i.anomalies, i.ordinary_rows, i.peak_score, i.peak_order_value,
       (SELECT array_agg(f.feature ORDER BY f.rank) FROM scorer.incident_features f WHERE f.incident_id = i.id AND f.rank <= 3) AS top_features,
       i.acknowledged_at, i.acknowledged_by, i.label, i.labelled_at, i.labelled_by, i.note
FROM scorer.incidents i JOIN scorer.models m ON (m.name, m.version) = (i.model, i.model_version);
COMMENT ON VIEW scorer.incident_info IS 'incidents with their state, duration and the features that explain most of them';

CREATE FUNCTION scorer.notify_incident(id bigint, event text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('incidents', json_build_object('event', event, 'id', i.id, 'model', i.model, 'version', i.model_version,
        'source', i.source, 'entity', left(i.entity, 200), 'anomalies', i.anomalies, 'score', i.peak_score,
        'order_value', i.first_order_value, 'label', i.label, 'reason', i.close_reason)::text)
    FROM scorer.incidents i WHERE i.id = notify_incident.id
$$;

CREATE FUNCTION scorer.no_such_incident(id bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'no incident %', id USING ERRCODE = 'undefined_object', HINT = 'SELECT id, entity, state FROM scorer.incident_info';
END $$;

CREATE FUNCTION scorer.acknowledge(incident bigint, note text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
    UPDATE scorer.incidents i
    SET acknowledged_at = clock_timestamp(), acknowledged_by = current_user, note = coalesce(note, i.note)
    WHERE i.id = incident AND i.acknowledged_at IS NULL;
    IF FOUND THEN
        PERFORM scorer.notify_incident(incident, 'acknowledged');
    ELSIF NOT EXISTS (SELECT FROM scorer.incidents i WHERE i.id = incident) THEN
        PERFORM scorer.no_such_incident(incident);
    END IF;
END $$;
COMMENT ON FUNCTION scorer.acknowledge IS 'note that somebody has seen an incident; the first one counts';

CREATE FUNCTION scorer.label(incident bigint, label text, note text DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
    IF label IS NOT NULL AND label NOT IN ('true alarm', 'false alarm') THEN
        RAISE EXCEPTION 'an incident cannot be labelled %', quote_literal(label) USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give ''true alarm'', ''false alarm'', or NULL to take the label off.';
    END IF;
    UPDATE scorer.incidents i
    SET label = label, labelled_at = CASE WHEN label IS NOT NULL THEN clock_timestamp() END,
        labelled_by = CASE WHEN label IS NOT NULL THEN current_user END, note = coalesce(note, i.note)
    WHERE i.id = incident;
    IF NOT FOUND THEN
        PERFORM scorer.no_such_incident(incident);
    END IF;
    PERFORM scorer.notify_incident(incident, 'labelled');
END $$;
COMMENT ON FUNCTION scorer.label IS 'say whether an incident was a true alarm or a false alarm; the last word counts';

-- Parameters -------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION scorer.default_parameters() RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT '{"trees": 100, "samples": 256, "seed": 0, "scale": "robust", "threshold": "sigma", "threshold_value": 3,
             "min_rows": 256, "close_after_rows": 10, "hysteresis": 0.1,
             "policy": "frozen", "time_decay": 100000, "gate_sigma": 2, "shingle": 1, "baseline_rows": 0, "output_after": 64,
             "initial_accept_fraction": 1, "anomaly_rate": 0.01, "direction": "both",
             "ignore_above": 0, "ignore_below": 0, "ignore_above_share": 0, "ignore_below_share": 0}'::jsonb
$$;
COMMENT ON FUNCTION scorer.default_parameters IS
    'every parameter of create_model with its default; min_rows and output_after follow samples, threshold_value the threshold';

CREATE FUNCTION scorer.parameter_aliases() RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT '{"numberOfTrees": "trees", "number_of_trees": "trees", "num_trees": "trees", "subSampleSize": "samples",
             "sampleSize": "samples", "sample_size": "samples", "num_samples_per_tree": "samples", "timeDecay": "time_decay",
             "shingleSize": "shingle", "shingle_size": "shingle", "outputAfter": "output_after",
             "initialAcceptFraction": "initial_accept_fraction", "randomSeed": "seed", "random_seed": "seed",
             "anomalyRate": "anomaly_rate", "ignoreNearExpectedFromAbove": "ignore_above",
             "ignoreNearExpectedFromBelow": "ignore_below", "ignoreNearExpectedFromAboveByRatio": "ignore_above_share",
             "ignoreNearExpectedFromBelowByRatio": "ignore_below_share"}'::jsonb
$$;
COMMENT ON FUNCTION scorer.parameter_aliases IS 'the names of Kinesis, SageMaker and the AWS library, and what they are called here';

CREATE FUNCTION scorer.check_choice(parameters jsonb, key text, choices text[]) RETURNS void LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF jsonb_typeof(parameters -> key) IS DISTINCT FROM 'string' OR parameters ->> key <> ALL (choices) THEN
        RAISE EXCEPTION 'parameter %: % is not allowed', key, parameters -> key USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Give ' || (SELECT string_agg(format('"%s"', c), ' or ' ORDER BY n) FROM unnest(choices) WITH ORDINALITY t (c, n)) || '.';
    END IF;
END $$;

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

-- The versions that are there get the new parameters' defaults, so that the same definition stays the same version.
UPDATE scorer.models SET parameters = scorer.default_parameters() || jsonb_build_object('output_after', (parameters ->> 'samples')::integer / 4)
                                      || parameters;

DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'scorer'::regnamespace AND proname <> 'score_rows' LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = scorer, public, pg_temp', f);
    END LOOP;
END $$;
