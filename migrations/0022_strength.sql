-- The explanation of an anomaly in the shape of Kinesis' ANOMALY_EXPLANATION, as scorer.explain has it.

ALTER TABLE scorer.anomaly_features ADD COLUMN strength double precision;
COMMENT ON COLUMN scorer.anomaly_features.strength IS
    'how far the parts owed to values too high and too low are apart; NULL for anomalies from before this column';

CREATE OR REPLACE FUNCTION scorer.explanation(anomaly_id bigint) RETURNS jsonb LANGUAGE sql STABLE
SET search_path = scorer, public, pg_temp AS $$
    SELECT jsonb_object_agg(f.feature, jsonb_build_object(
        'DIRECTION', upper(f.direction), 'STRENGTH', round(f.strength::numeric, 4)::text,
        'ATTRIBUTION_SCORE', round(f.attribution::numeric, 4)::text,
        'VALUE', f.value, 'EXPECTED', f.expected_value, 'RANK', f.rank))
    FROM scorer.anomaly_features f WHERE f.anomaly_id = explanation.anomaly_id
$$;
COMMENT ON FUNCTION scorer.explanation IS
    'the features of an anomaly as one JSON object: those of ANOMALY_EXPLANATION of Kinesis, and the value, what was expected, and the rank';
