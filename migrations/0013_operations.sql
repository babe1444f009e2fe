-- Operating a source: who is at work, what to worry about, and columns of a table that failed.

CREATE TABLE warehouse.pulses (
    source  text PRIMARY KEY,
    backend integer NOT NULL,
    beat_at timestamptz NOT NULL
) WITH (fillfactor = 20);
COMMENT ON TABLE warehouse.pulses IS 'when the replicator that has a source''s lock last showed that it runs; a standby watches it';

CREATE OR REPLACE FUNCTION warehouse.choose_columns(table_name text, columns text[], excluded boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    t warehouse.tables;
    wrong text;
BEGIN
    -- Two sources may have tables of the same name; their mirrors differ.
    SELECT * INTO t FROM warehouse.tables x WHERE choose_columns.table_name IN (x.table_name, x.mirror)
    ORDER BY x.mirror = choose_columns.table_name DESC LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no table %', table_name
            USING HINT = 'SELECT table_name FROM warehouse.table_status; before its first copy: add_table, or source.excluded_columns';
    END IF;
    IF excluded THEN
        -- One that failed may have columns that are not known here yet, a renamed one for instance.
        SELECT name INTO wrong FROM unnest(columns) name
        WHERE t.state <> 'Failed' AND NOT EXISTS (SELECT FROM jsonb_array_elements(t.columns) c WHERE c ->> 'name' = name);
        IF FOUND THEN
            RAISE EXCEPTION '% has no column %', table_name, wrong USING HINT = 'Names are those of the source.';
        END IF;
        SELECT name INTO wrong FROM unnest(columns) name WHERE name = ANY (t.key_columns);
        IF FOUND THEN
            RAISE EXCEPTION 'column % of % is part of the key and cannot be left out', wrong, table_name;
        END IF;
        IF t.key_columns = '{}' THEN
            RAISE EXCEPTION '% has no key: its rows are found by all of their columns, so none can be left out', table_name;
        END IF;
    END IF;
    INSERT INTO warehouse.column_choices (source, table_name, column_name, excluded)
    SELECT t.source, t.table_name, name, choose_columns.excluded FROM unnest(columns) name
    ON CONFLICT ON CONSTRAINT column_choices_pkey DO UPDATE SET excluded = EXCLUDED.excluded, chosen_at = clock_timestamp();
    PERFORM warehouse.note_choice(t.source);
END $$;
