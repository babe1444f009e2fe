-- Rows that are set aside wherever they come by: which row each is, so that later changes find it, and what its bytes are.

ALTER TABLE warehouse.quarantine
    ADD COLUMN form text CHECK (form IN ('images', 'tuple', 'result')),
    ADD COLUMN key jsonb,
    ADD COLUMN identity bytea;
UPDATE warehouse.quarantine SET form = CASE WHEN event_type IS NULL THEN 'tuple' ELSE 'images' END WHERE table_name IS NOT NULL;
COMMENT ON COLUMN warehouse.quarantine.raw IS
    'as form says: images of the row as the binlog has them (before and after, where the key of an update cannot be held), a COPY BINARY tuple, or a row of the binary protocol as the source sent it to a copy; of an event all of it';
COMMENT ON COLUMN warehouse.quarantine.key IS
    'the row''s key as in deleted_rows; a value that Postgres cannot hold as it would stand in _raw, in an object {"raw": ...}';
COMMENT ON COLUMN warehouse.quarantine.identity IS
    'SHA-256 of what tells the row from others (the key; without one the whole row), as long as it counts as missing in the mirror';
CREATE INDEX quarantine_rows ON warehouse.quarantine (source, table_name, identity) WHERE identity IS NOT NULL;
COMMENT ON FUNCTION warehouse.retry IS
    'read the row again that was set aside, as it is at the source now; the replicator does it at once, and says in reason why not';

ALTER TABLE warehouse.verifications
    ADD COLUMN quarantined bigint NOT NULL DEFAULT 0,
    DROP CONSTRAINT verifications_state_check,
    ADD CONSTRAINT verifications_state_check
        CHECK (state IN ('Requested', 'Running', 'Equal', 'Repaired', 'Incomplete', 'Drifted', 'Unsettled', 'Failed'));
COMMENT ON COLUMN warehouse.verifications.quarantined IS
    'rows of the source that are not in the mirror because they are in the quarantine; neither missing nor to be repaired';

CREATE OR REPLACE VIEW warehouse.verified AS
SELECT t.source, t.table_name, t.mirror,
       CASE WHEN v.id IS NULL THEN 'Never' ELSE v.state END AS state, v.reason,
       CASE WHEN v.state IN ('Equal', 'Repaired') THEN v.equal_as_of END AS equal_as_of,
       CASE WHEN v.state IN ('Equal', 'Repaired') THEN v.position END AS position,
       v.rows, v.missing + v.extra + v.different AS drift, v.repaired, v.unsettled, v.started_at, v.finished_at,
       v.id AS verification,
       r.id IS NOT NULL AS is_running, r.rows AS rows_so_far, v.quarantined
FROM warehouse.tables t
LEFT JOIN LATERAL (
    SELECT * FROM warehouse.verifications v
    WHERE v.source = t.source AND v.table_name = t.table_name AND v.finished_at IS NOT NULL ORDER BY v.id DESC LIMIT 1
) v ON true
LEFT JOIN LATERAL (
    SELECT * FROM warehouse.verifications r
    WHERE r.source = t.source AND r.table_name = t.table_name AND r.state = 'Running' ORDER BY r.id DESC LIMIT 1
) r ON true;
