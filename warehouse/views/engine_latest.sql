-- The newest reading of each engine.
CREATE MATERIALIZED VIEW analytics.engine_latest AS
WITH readings AS (
    SELECT unit, cycle, read_at, setting_1, setting_2, setting_3, sensor_1, sensor_2, sensor_3, sensor_4, sensor_5,
           sensor_6, sensor_7, sensor_8, sensor_9, sensor_10, sensor_11, sensor_12, sensor_13, sensor_14,
           sensor_15, sensor_16, sensor_17, sensor_18, sensor_19, sensor_20, sensor_21, _committed_at
    FROM plant.asset_readings_historical
    UNION ALL
    SELECT unit, cycle, read_at, setting_1, setting_2, setting_3, sensor_1, sensor_2, sensor_3, sensor_4, sensor_5,
           sensor_6, sensor_7, sensor_8, sensor_9, sensor_10, sensor_11, sensor_12, sensor_13, sensor_14,
           sensor_15, sensor_16, sensor_17, sensor_18, sensor_19, sensor_20, sensor_21, _committed_at
    FROM plant.asset_readings_standard
    UNION ALL
    SELECT unit, cycle, read_at, setting_1, setting_2, setting_3, sensor_1, sensor_2, sensor_3, sensor_4, sensor_5,
           sensor_6, sensor_7, sensor_8, sensor_9, sensor_10, sensor_11, sensor_12, sensor_13, sensor_14,
           sensor_15, sensor_16, sensor_17, sensor_18, sensor_19, sensor_20, sensor_21, _committed_at
    FROM plant.asset_readings_incremental
)
SELECT DISTINCT ON (unit) unit, cycle, read_at, setting_1, setting_2, setting_3,
       sensor_1, sensor_2, sensor_3, sensor_4, sensor_5, sensor_6, sensor_7, sensor_8, sensor_9, sensor_10,
       sensor_11, sensor_12, sensor_13, sensor_14, sensor_15, sensor_16, sensor_17, sensor_18, sensor_19, sensor_20, sensor_21,
       _committed_at AS committed_at
FROM readings
ORDER BY unit, cycle DESC;
CREATE UNIQUE INDEX engine_latest_key ON analytics.engine_latest (unit);
COMMENT ON MATERIALIZED VIEW analytics.engine_latest IS 'the newest reading of each engine';
COMMENT ON COLUMN analytics.engine_latest.committed_at IS 'commit time at the source; NULL for rows copied by a snapshot';
