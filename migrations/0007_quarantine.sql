-- The quarantine at work: what a row was, and the verbs.

ALTER TABLE warehouse.quarantine
    ADD COLUMN operation text,
    ADD COLUMN seq bigint,
    ADD COLUMN columns jsonb;
COMMENT ON COLUMN warehouse.quarantine.raw IS
    'row images as the binlog has them (before and after, for an update) where event_type is given, else a COPY BINARY tuple; of an event all of it';
COMMENT ON COLUMN warehouse.quarantine.table_name IS 'NULL for an event that stops the stream';
COMMENT ON COLUMN warehouse.quarantine.seq IS 'the _seq that the change had';
COMMENT ON COLUMN warehouse.quarantine.columns IS 'the columns of a tuple, before _seq, _committed_at and _raw';
CREATE INDEX quarantine_held ON warehouse.quarantine (source, table_name) WHERE state IN ('Held', 'RetryRequested');

CREATE FUNCTION warehouse.retry(id bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    held warehouse.quarantine;
BEGIN
    UPDATE warehouse.quarantine q SET state = 'RetryRequested'
    WHERE q.id = retry.id AND q.state IN ('Held', 'Skipped', 'RetryRequested') RETURNING * INTO held;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'nothing is held under %', id USING HINT = 'SELECT id, reason FROM warehouse.quarantine';
    END IF;
    PERFORM warehouse.request('retry', held.source);
END $$;
COMMENT ON FUNCTION warehouse.retry IS 'try to apply again what was set aside; the replicator does it at once, and says in reason why not';

CREATE FUNCTION warehouse.skip(id bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    held warehouse.quarantine;
BEGIN
    UPDATE warehouse.quarantine q SET state = 'Skipped'
    WHERE q.id = skip.id AND q.state IN ('Held', 'RetryRequested', 'Skipped') RETURNING * INTO held;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'nothing is held under %', id USING HINT = 'SELECT id, reason FROM warehouse.quarantine';
    END IF;
    PERFORM warehouse.request('skip', held.source);
END $$;
COMMENT ON FUNCTION warehouse.skip IS
    'do without what was set aside: a row stays missing; an event that stops the stream is passed over, and every table copied afresh';

CREATE OR REPLACE VIEW warehouse.table_status AS
SELECT source, table_name, mirror, state, reason, since, rows, inserted, updated, deleted, raw_rows,
       seq, committed_at, position, key_columns, resync_requested,
       (SELECT count(*) FROM warehouse.quarantine q
        WHERE q.source = t.source AND q.table_name = t.table_name AND q.state IN ('Held', 'RetryRequested')) AS quarantined
FROM warehouse.tables t;
COMMENT ON COLUMN warehouse.table_status.quarantined IS 'rows that were set aside and are missing here; see warehouse.quarantine';
