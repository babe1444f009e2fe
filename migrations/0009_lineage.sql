-- Which server a source is read from, what tells its binlog from another with the same numbers, and beginning anew.

ALTER TABLE warehouse.sources
    ADD COLUMN server text,
    ADD COLUMN resync_requested boolean NOT NULL DEFAULT false,
    ADD COLUMN resync_tables text[];
COMMENT ON COLUMN warehouse.sources.server IS 'host and port of the server that is read';
COMMENT ON COLUMN warehouse.sources.resync_requested IS 'resync_source was called and is not done yet';
COMMENT ON COLUMN warehouse.sources.resync_tables IS 'of which tables; NULL: of all';

ALTER TABLE warehouse.checkpoint
    ADD COLUMN last_gtid text,
    ADD COLUMN binlog_head text;
COMMENT ON COLUMN warehouse.checkpoint.last_gtid IS 'the transaction of gtid_set that was applied last, where it is known';
COMMENT ON COLUMN warehouse.checkpoint.binlog_head IS
    'what tells the binlog file from another of the same name: when it was begun, what came before, its first transaction';

ALTER TABLE warehouse.tables
    ADD COLUMN held_state text CHECK (held_state IN ('Synced', 'Snapshotting'));
COMMENT ON COLUMN warehouse.tables.held_state IS
    'the state before the source''s position was lost; it comes back where the position is found again';

CREATE FUNCTION warehouse.resync_source(source text, tables text[] DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    unknown text;
BEGIN
    SELECT name INTO unknown FROM unnest(tables) name
    WHERE NOT EXISTS (SELECT FROM warehouse.tables t
                      WHERE t.source = resync_source.source AND name IN (t.table_name, t.mirror));
    IF FOUND THEN
        RAISE EXCEPTION 'no table % of source %', unknown, source USING HINT = 'SELECT table_name FROM warehouse.table_status';
    END IF;
    UPDATE warehouse.sources s SET resync_requested = true, resync_tables = tables WHERE s.source = resync_source.source;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no source %', source USING HINT = 'SELECT source FROM warehouse.status';
    END IF;
    PERFORM warehouse.request('resync_source', source);
END $$;
COMMENT ON FUNCTION warehouse.resync_source IS
    'give up what lies between the checkpoint and the source''s present position, and copy these tables afresh, or all';
