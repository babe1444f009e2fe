-- Each engine's life so far, one row per engine and measurement: how long, mean, spread, extremes, first and last value.
CREATE MATERIALIZED VIEW analytics.engine_summary AS
WITH readings AS (
    SELECT unit, cycle, read_at, setting_1, setting_2, setting_3, sensor_1, sensor_2, sensor_3, sensor_4, sensor_5,
           sensor_6, sensor_7, sensor_8, sensor_9, sensor_10, sensor_11, sensor_12, sensor_13, sensor_14,
           sensor_15, sensor_16, sensor_17, sensor_18, sensor_19, sensor_20, sensor_21
    FROM plant.asset_readings_historical
    UNION ALL
    SELECT unit, cycle, read_at, setting_1, setting_2, setting_3, sensor_1, sensor_2, sensor_3, sensor_4, sensor_5,
           sensor_6, sensor_7, sensor_8, sensor_9, sensor_10, sensor_11, sensor_12, sensor_13, sensor_14,
           sensor_15, sensor_16, sensor_17, sensor_18, sensor_19, sensor_20, sensor_21
    FROM plant.asset_readings_standard
    UNION ALL
    SELECT unit, cycle, read_at, setting_1, setting_2, setting_3, sensor_1, sensor_2, sensor_3, sensor_4, sensor_5,
           sensor_6, sensor_7, sensor_8, sensor_9, sensor_10, sensor_11, sensor_12, sensor_13, sensor_14,
           sensor_15, sensor_16, sensor_17, sensor_18, sensor_19, sensor_20, sensor_21
    FROM plant.asset_readings_incremental
)
SELECT r.unit, m.measurement,
       count(m.value) AS readings,
       min(r.cycle) AS first_cycle, max(r.cycle) AS last_cycle,
       min(r.read_at) AS first_read_at, max(r.read_at) AS last_read_at,
       avg(m.value) AS mean, stddev_samp(m.value) AS spread,
       min(m.value) AS minimum, max(m.value) AS maximum,
       regr_slope(m.value, r.cycle) AS slope_per_cycle
FROM readings r
CROSS JOIN LATERAL (VALUES
    ('setting_1', setting_1), ('setting_2', setting_2), ('setting_3', setting_3), ('sensor_1', sensor_1),
    ('sensor_2', sensor_2), ('sensor_3', sensor_3), ('sensor_4', sensor_4), ('sensor_5', sensor_5),
    ('sensor_6', sensor_6), ('sensor_7', sensor_7), ('sensor_8', sensor_8), ('sensor_9', sensor_9),
    ('sensor_10', sensor_10), ('sensor_11', sensor_11), ('sensor_12', sensor_12), ('sensor_13', sensor_13),
    ('sensor_14', sensor_14), ('sensor_15', sensor_15), ('sensor_16', sensor_16), ('sensor_17', sensor_17),
    ('sensor_18', sensor_18), ('sensor_19', sensor_19), ('sensor_20', sensor_20), ('sensor_21', sensor_21)
) AS m (measurement, value)
GROUP BY r.unit, m.measurement;
CREATE UNIQUE INDEX engine_summary_key ON analytics.engine_summary (unit, measurement);
COMMENT ON MATERIALIZED VIEW analytics.engine_summary IS 'per engine and measurement: cycles, mean, spread, extremes and trend';
COMMENT ON COLUMN analytics.engine_summary.slope_per_cycle IS 'least-squares change per cycle; NULL with fewer than two cycles';
