-- Verification: what was compared with the source, what differed, and up to when each table is proven equal.

CREATE TABLE warehouse.verifications (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source        text NOT NULL,
    table_name    text NOT NULL,
    state         text NOT NULL DEFAULT 'Requested'
                  CHECK (state IN ('Requested', 'Running', 'Equal', 'Repaired', 'Drifted', 'Unsettled', 'Failed')),
    reason        text,
    repair        boolean NOT NULL DEFAULT false,
    rows_per_s    double precision CHECK (rows_per_s > 0),
    requested_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at    timestamptz,
    finished_at   timestamptz,
    equal_as_of   timestamptz,
    from_position text,
    position      text,
    chunks        bigint NOT NULL DEFAULT 0,
    rows          bigint NOT NULL DEFAULT 0,
    missing       bigint NOT NULL DEFAULT 0,
    extra         bigint NOT NULL DEFAULT 0,
    different     bigint NOT NULL DEFAULT 0,
    repaired      bigint NOT NULL DEFAULT 0,
    unsettled     bigint NOT NULL DEFAULT 0
);
CREATE INDEX verifications_of_table ON warehouse.verifications (source, table_name, id);
CREATE INDEX verifications_open ON warehouse.verifications (source) WHERE state IN ('Requested', 'Running');
COMMENT ON TABLE warehouse.verifications IS 'comparisons of a table with the source: asked for, running and finished';
COMMENT ON COLUMN warehouse.verifications.equal_as_of IS
    'commit time at the source of the last transaction that was applied when the comparison began; what it proves is not older';
COMMENT ON COLUMN warehouse.verifications.from_position IS 'source position that was applied when the comparison began';
COMMENT ON COLUMN warehouse.verifications.position IS 'source position that the last chunk was compared at';
COMMENT ON COLUMN warehouse.verifications.rows IS 'rows of the source that were compared';
COMMENT ON COLUMN warehouse.verifications.unsettled IS 'rows that changed during every look, so that nothing can be said about them';

CREATE TABLE warehouse.drift (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    verification bigint NOT NULL REFERENCES warehouse.verifications ON DELETE CASCADE,
    source       text NOT NULL,
    table_name   text NOT NULL,
    key          jsonb NOT NULL,
    what         text NOT NULL CHECK (what IN ('missing', 'extra', 'different')),
    position     text NOT NULL,
    found_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    repaired_at  timestamptz
);
CREATE INDEX drift_of_verification ON warehouse.drift (verification);
COMMENT ON TABLE warehouse.drift IS 'rows that differed from the source without a change on its way; key as in deleted_rows';
COMMENT ON COLUMN warehouse.drift.what IS 'missing: only the source has the row; extra: only the mirror; different: other values';

CREATE VIEW warehouse.verified AS
SELECT t.source, t.table_name, t.mirror,
       CASE WHEN v.id IS NULL THEN 'Never' ELSE v.state END AS state, v.reason,
       CASE WHEN v.state IN ('Equal', 'Repaired') THEN v.equal_as_of END AS equal_as_of,
       CASE WHEN v.state IN ('Equal', 'Repaired') THEN v.position END AS position,
       v.rows, v.missing + v.extra + v.different AS drift, v.repaired, v.unsettled, v.started_at, v.finished_at,
       v.id AS verification,
       r.id IS NOT NULL AS is_running, r.rows AS rows_so_far
FROM warehouse.tables t
LEFT JOIN LATERAL (
    SELECT * FROM warehouse.verifications v
    WHERE v.source = t.source AND v.table_name = t.table_name AND v.finished_at IS NOT NULL ORDER BY v.id DESC LIMIT 1
) v ON true
LEFT JOIN LATERAL (
    SELECT * FROM warehouse.verifications r
    WHERE r.source = t.source AND r.table_name = t.table_name AND r.state = 'Running' ORDER BY r.id DESC LIMIT 1
) r ON true;
COMMENT ON VIEW warehouse.verified IS 'one row per table: equal to the source as of when, or what the last comparison found';

CREATE FUNCTION warehouse.verify(table_name text, repair boolean DEFAULT false, rows_per_s double precision DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    made warehouse.verifications;
BEGIN
    INSERT INTO warehouse.verifications (source, table_name, repair, rows_per_s)
    SELECT t.source, t.table_name, verify.repair, verify.rows_per_s FROM warehouse.tables t
    WHERE verify.table_name IN (t.table_name, t.mirror) ORDER BY t.source LIMIT 1 RETURNING * INTO made;
    IF made.id IS NULL THEN
        RAISE EXCEPTION 'no table %', table_name USING HINT = 'SELECT table_name FROM warehouse.table_status';
    END IF;
    PERFORM warehouse.request('verify', made.source);
    RETURN made.id;
END $$;
COMMENT ON FUNCTION warehouse.verify IS
    'compare a table with the source, and with repair write what differs again; the running replicator does it. The number in verifications';
