-- The whole fleet over its life: at each tenth of cycles, how many engines still run and what they measure.
CREATE MATERIALIZED VIEW analytics.fleet_by_cycle AS
WITH readings AS (
    SELECT unit, cycle, setting_1, setting_2, setting_3, sensor_1, sensor_2, sensor_3, sensor_4, sensor_5,
           sensor_6, sensor_7, sensor_8, sensor_9, sensor_10, sensor_11, sensor_12, sensor_13, sensor_14,
           sensor_15, sensor_16, sensor_17, sensor_18, sensor_19, sensor_20, sensor_21
    FROM plant.asset_readings_historical
    UNION ALL
    SELECT unit, cycle, setting_1, setting_2, setting_3, sensor_1, sensor_2, sensor_3, sensor_4, sensor_5,
           sensor_6, sensor_7, sensor_8, sensor_9, sensor_10, sensor_11, sensor_12, sensor_13, sensor_14,
           sensor_15, sensor_16, sensor_17, sensor_18, sensor_19, sensor_20, sensor_21
    FROM plant.asset_readings_standard
    UNION ALL
    SELECT unit, cycle, setting_1, setting_2, setting_3, sensor_1, sensor_2, sensor_3, sensor_4, sensor_5,
           sensor_6, sensor_7, sensor_8, sensor_9, sensor_10, sensor_11, sensor_12, sensor_13, sensor_14,
           sensor_15, sensor_16, sensor_17, sensor_18, sensor_19, sensor_20, sensor_21
    FROM plant.asset_readings_incremental
)
SELECT r.cycle / 10 * 10 AS from_cycle, m.measurement,
       count(DISTINCT r.unit) AS engines, count(m.value) AS readings,
       avg(m.value) AS mean, stddev_samp(m.value) AS spread,
       min(m.value) AS minimum, max(m.value) AS maximum
FROM readings r
CROSS JOIN LATERAL (VALUES
    ('setting_1', setting_1), ('setting_2', setting_2), ('setting_3', setting_3), ('sensor_1', sensor_1),
    ('sensor_2', sensor_2), ('sensor_3', sensor_3), ('sensor_4', sensor_4), ('sensor_5', sensor_5),
    ('sensor_6', sensor_6), ('sensor_7', sensor_7), ('sensor_8', sensor_8), ('sensor_9', sensor_9),
    ('sensor_10', sensor_10), ('sensor_11', sensor_11), ('sensor_12', sensor_12), ('sensor_13', sensor_13),
    ('sensor_14', sensor_14), ('sensor_15', sensor_15), ('sensor_16', sensor_16), ('sensor_17', sensor_17),
    ('sensor_18', sensor_18), ('sensor_19', sensor_19), ('sensor_20', sensor_20), ('sensor_21', sensor_21)
) AS m (measurement, value)
GROUP BY r.cycle / 10, m.measurement;
CREATE UNIQUE INDEX fleet_by_cycle_key ON analytics.fleet_by_cycle (from_cycle, measurement);
COMMENT ON MATERIALIZED VIEW analytics.fleet_by_cycle IS 'the fleet per ten cycles of age: engines, mean, spread and extremes of each measurement';
