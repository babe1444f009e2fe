-- Anomalies per engine and model version: how many, since when, how bad, and whether an incident is open.
CREATE MATERIALIZED VIEW analytics.engine_anomalies AS
SELECT a.model, a.model_version, a.entity,
       count(*) AS anomalies,
       count(*) FILTER (WHERE a.status = 'open') AS open_anomalies,
       count(DISTINCT a.incident_id) AS incidents,
       min(a.order_value) AS first_order_value, max(a.order_value) AS last_order_value,
       min(a.detected_at) AS first_detected_at, max(a.detected_at) AS last_detected_at,
       max(a.score) AS highest_score, avg(a.score) AS mean_score, max(a.grade) AS highest_grade,
       max(a.row_committed_at) AS last_committed_at
FROM scorer.anomalies a
GROUP BY a.model, a.model_version, a.entity;
CREATE UNIQUE INDEX engine_anomalies_key ON analytics.engine_anomalies (model, model_version, entity);
COMMENT ON MATERIALIZED VIEW analytics.engine_anomalies IS 'anomalies per engine and model version';
