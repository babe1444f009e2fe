-- Runs once, when the MySQL volume is empty: the demonstration's tables and the rights of the replication user.
-- The server's image has made the user tailrace (MYSQL_USER) by now, without any right.

CREATE DATABASE plant CHARACTER SET utf8mb4;

CREATE TABLE plant.asset_readings_historical (
    id        BIGINT       NOT NULL AUTO_INCREMENT PRIMARY KEY,
    unit      INT          NOT NULL,
    cycle     INT          NOT NULL,
    read_at   TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3),
    setting_1 DOUBLE,
    setting_2 DOUBLE,
    setting_3 DOUBLE,
    sensor_1  DOUBLE,
    sensor_2  DOUBLE,
    sensor_3  DOUBLE,
    sensor_4  DOUBLE,
    sensor_5  DOUBLE,
    sensor_6  DOUBLE,
    sensor_7  DOUBLE,
    sensor_8  DOUBLE,
    sensor_9  DOUBLE,
    sensor_10 DOUBLE,
    sensor_11 DOUBLE,
    sensor_12 DOUBLE,
    sensor_13 DOUBLE,
    sensor_14 DOUBLE,
    sensor_15 DOUBLE,
    sensor_16 DOUBLE,
    sensor_17 DOUBLE,
    sensor_18 DOUBLE,
    sensor_19 DOUBLE,
    sensor_20 DOUBLE,
    sensor_21 DOUBLE,
    UNIQUE KEY unit_cycle (unit, cycle)
);
CREATE TABLE plant.asset_readings_standard LIKE plant.asset_readings_historical;
CREATE TABLE plant.asset_readings_incremental LIKE plant.asset_readings_historical;

-- What a replica needs, and nothing that writes.
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'tailrace'@'%';
GRANT SELECT ON plant.* TO 'tailrace'@'%';
