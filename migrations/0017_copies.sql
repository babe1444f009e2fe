-- Copies that run beside the stream: how far each is, so that it goes on after a crash, and how long it will take.

CREATE TABLE warehouse.table_copies (
    source        text NOT NULL,
    table_name    text NOT NULL,
    base_seq      bigint NOT NULL,
    is_filled     boolean NOT NULL,
    low           jsonb,
    high          jsonb,
    ranges        jsonb NOT NULL,
    rows_done     bigint NOT NULL DEFAULT 0,
    rows_estimate bigint NOT NULL,
    rows_per_s    double precision,
    waits_for     text,
    began_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    noted_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, table_name),
    FOREIGN KEY (source, table_name) REFERENCES warehouse.tables ON DELETE CASCADE
) WITH (fillfactor = 20);
COMMENT ON TABLE warehouse.table_copies IS 'one row per table that is being copied beside the stream; commits with the copied rows';
COMMENT ON COLUMN warehouse.table_copies.base_seq IS 'rows of the mirror up to here are older than the copy';
COMMENT ON COLUMN warehouse.table_copies.is_filled IS 'the mirror had rows when the copy began';
COMMENT ON COLUMN warehouse.table_copies.low IS 'with high, the keys between which the table is copied, both included; NULL: all of it';
COMMENT ON COLUMN warehouse.table_copies.ranges IS 'internal: how far each range is, in the bytes of the source';
COMMENT ON COLUMN warehouse.table_copies.rows_done IS 'source rows that are dealt with';
COMMENT ON COLUMN warehouse.table_copies.rows_estimate IS 'about how many there are, as the source''s optimizer sees it';
COMMENT ON COLUMN warehouse.table_copies.waits_for IS 'why nothing is copied just now';

CREATE VIEW warehouse.copy_status AS
SELECT c.source, c.table_name, c.rows_done, c.rows_estimate,
       round(100.0 * c.rows_done / greatest(c.rows_estimate, 1), 1) AS percent,
       c.rows_per_s,
       make_interval(secs => (c.rows_estimate - c.rows_done) / nullif(c.rows_per_s, 0)) AS time_left,
       c.waits_for, c.low, c.high, c.began_at, c.noted_at
FROM warehouse.table_copies c
JOIN warehouse.tables t USING (source, table_name)
WHERE t.state = 'Snapshotting' AND t.consistent_from IS NULL;
COMMENT ON VIEW warehouse.copy_status IS 'tables that are being copied beside the stream: how far, how fast, how long it will take';

ALTER TABLE warehouse.tables
    ADD COLUMN resync_low jsonb,
    ADD COLUMN resync_high jsonb;
COMMENT ON COLUMN warehouse.tables.resync_low IS 'with resync_high, the keys between which a copy was asked for; NULL: the whole table';

CREATE FUNCTION warehouse.check_key_bound(t warehouse.tables, bound jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
    type text;
BEGIN
    IF bound IS NULL THEN
        RETURN;
    END IF;
    IF jsonb_typeof(bound) <> 'object' OR bound = '{}'
       OR (SELECT array_agg(k ORDER BY k) FROM jsonb_object_keys(bound) k)
          IS DISTINCT FROM (SELECT array_agg(k ORDER BY k)
                            FROM unnest(t.key_columns[1:(SELECT count(*) FROM jsonb_object_keys(bound))::int]) k) THEN
        RAISE EXCEPTION 'not a bound of the key of %: %', t.table_name, bound
            USING HINT = 'an object of the key''s first columns: ' || array_to_string(t.key_columns, ', ');
    END IF;
    FOR name IN SELECT jsonb_object_keys(bound) LOOP
        SELECT c ->> 'mirror_type' INTO type FROM jsonb_array_elements(t.columns) c WHERE c ->> 'name' = name;
        IF type IS NULL OR type !~ '^(smallint|integer|bigint|numeric.*|date|timestamp.*|bytea)$' THEN
            RAISE EXCEPTION 'the key column % of % has the type %, which the source and Postgres order differently',
                name, t.table_name, type USING HINT = 'resync the whole table';
        END IF;
        BEGIN
            EXECUTE format('SELECT %L::%s', bound ->> name, type);
        EXCEPTION WHEN data_exception THEN
            RAISE EXCEPTION 'not a value of the key column % of %: %', name, t.table_name, bound ->> name
                USING HINT = 'as the mirror shows it: ' || type;
        END;
    END LOOP;
END $$;

CREATE FUNCTION warehouse.resync(table_name text, low jsonb, high jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wanted warehouse.tables;
BEGIN
    low := nullif(low, 'null');
    high := nullif(high, 'null');
    FOR wanted IN SELECT * FROM warehouse.tables t WHERE resync.table_name IN (t.table_name, t.mirror) FOR UPDATE LOOP
        IF wanted.state = 'Removed' THEN
            RAISE EXCEPTION '% is not replicated any more', table_name USING HINT = 'SELECT add_table(source, pattern)';
        END IF;
        PERFORM warehouse.check_key_bound(wanted, low), warehouse.check_key_bound(wanted, high);
        -- Two ranges that are asked for at once become the whole table.
        UPDATE warehouse.tables t
        SET resync_low = CASE WHEN t.resync_requested THEN NULL ELSE low END,
            resync_high = CASE WHEN t.resync_requested THEN NULL ELSE high END,
            resync_requested = true
        WHERE (t.source, t.table_name) = (wanted.source, wanted.table_name);
        PERFORM warehouse.request('resync', wanted.source);
    END LOOP;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no table %', table_name USING HINT = 'SELECT table_name FROM warehouse.table_status';
    END IF;
END $$;
COMMENT ON FUNCTION warehouse.resync(text, jsonb, jsonb) IS
    'copy the rows between two keys afresh, both included; each is an object of the key''s first columns, or NULL for no bound';

CREATE OR REPLACE FUNCTION warehouse.resync(table_name text) RETURNS void LANGUAGE sql AS $$
    SELECT warehouse.resync(table_name, NULL, NULL)
$$;
