-- Which tables and columns are replicated, chosen while the replicator runs. Settings are where it starts from.

ALTER TABLE warehouse.sources ADD COLUMN choices bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN warehouse.sources.choices IS 'how often tables or columns were chosen; tells the replicator to look';

ALTER TABLE warehouse.tables
    DROP CONSTRAINT tables_state_check,
    ADD CONSTRAINT tables_state_check
        CHECK (state IN ('Snapshotting', 'Synced', 'Failed', 'ResyncRequired', 'DroppedSource', 'Removed')),
    ADD COLUMN excluded_columns text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN warehouse.tables.excluded_columns IS 'source names of columns that are NULL in every row here, because somebody left them out';

CREATE TABLE warehouse.table_choices (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source    text NOT NULL REFERENCES warehouse.sources ON DELETE CASCADE,
    pattern   text NOT NULL CHECK (pattern ~ '^[^.\s]+\.[^.]+$'),
    wanted    boolean NOT NULL,
    chosen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (source, pattern)
);
COMMENT ON TABLE warehouse.table_choices IS
    'tables added and removed by verbs: the newest that matches a table decides; where none does, source.tables of the settings';

CREATE TABLE warehouse.column_choices (
    source      text NOT NULL REFERENCES warehouse.sources ON DELETE CASCADE,
    table_name  text NOT NULL,
    column_name text NOT NULL,
    excluded    boolean NOT NULL,
    chosen_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, table_name, column_name)
);
COMMENT ON TABLE warehouse.column_choices IS
    'columns left out and taken in by verbs; where a column is not listed, source.excluded_columns of the settings decides';

CREATE FUNCTION warehouse.note_choice(source text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE warehouse.sources s SET choices = choices + 1 WHERE s.source = note_choice.source;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no source %', source USING HINT = 'SELECT source FROM warehouse.status';
    END IF;
    PERFORM warehouse.request('choose', source);
END $$;

CREATE FUNCTION warehouse.choose_tables(source text, pattern text, wanted boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM warehouse.note_choice(source);
    IF pattern !~ '^[^.\s]+\.[^.]+$' THEN
        RAISE EXCEPTION 'not a pattern of tables: %', pattern USING HINT = 'database.table, with the wildcards % and _ of LIKE';
    END IF;
    -- A new row, because the newest decides.
    DELETE FROM warehouse.table_choices c WHERE c.source = choose_tables.source AND c.pattern = choose_tables.pattern;
    INSERT INTO warehouse.table_choices (source, pattern, wanted) VALUES (source, pattern, wanted);
END $$;

CREATE FUNCTION warehouse.add_table(source text, pattern text, excluded_columns text[] DEFAULT '{}') RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM warehouse.choose_tables(source, pattern, true);
    IF excluded_columns <> '{}' AND pattern ~ '%' THEN
        RAISE EXCEPTION 'columns can be left out of one table only, not of %', pattern;
    END IF;
    INSERT INTO warehouse.column_choices (source, table_name, column_name, excluded)
    SELECT add_table.source, pattern, column_name, true FROM unnest(excluded_columns) column_name
    ON CONFLICT ON CONSTRAINT column_choices_pkey DO UPDATE SET excluded = true, chosen_at = clock_timestamp();
END $$;
COMMENT ON FUNCTION warehouse.add_table IS
    'replicate the tables that match, database.table with % and _ of LIKE; they are copied at once, without the excluded columns';

CREATE FUNCTION warehouse.remove_table(source text, pattern text) RETURNS void LANGUAGE sql AS $$
    SELECT warehouse.choose_tables(source, pattern, false)
$$;
COMMENT ON FUNCTION warehouse.remove_table IS 'stop replicating the tables that match; their mirrors keep their rows';

CREATE FUNCTION warehouse.choose_columns(table_name text, columns text[], excluded boolean) RETURNS void LANGUAGE plpgsql AS $$
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
        SELECT name INTO wrong FROM unnest(columns) name
        WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(t.columns) c WHERE c ->> 'name' = name);
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

CREATE FUNCTION warehouse.exclude_columns(table_name text, columns text[]) RETURNS void LANGUAGE sql AS $$
    SELECT warehouse.choose_columns(table_name, columns, true)
$$;
COMMENT ON FUNCTION warehouse.exclude_columns IS 'leave columns out: NULL in every row from now on, the rows that are there included';

CREATE FUNCTION warehouse.include_columns(table_name text, columns text[]) RETURNS void LANGUAGE sql AS $$
    SELECT warehouse.choose_columns(table_name, columns, false)
$$;
COMMENT ON FUNCTION warehouse.include_columns IS 'take columns in again; the table is copied afresh';

-- Two sources may have tables of the same name.
CREATE OR REPLACE FUNCTION warehouse.resync(table_name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found record;
    any_found boolean := false;
BEGIN
    FOR found IN
        UPDATE warehouse.tables t SET resync_requested = t.state <> 'Removed'
        WHERE resync.table_name IN (t.table_name, t.mirror) RETURNING t.source, t.state
    LOOP
        any_found := true;
        IF found.state = 'Removed' THEN
            RAISE EXCEPTION '% is not replicated any more', table_name USING HINT = 'SELECT add_table(source, pattern)';
        END IF;
        PERFORM warehouse.request('resync', found.source);
    END LOOP;
    IF NOT any_found THEN
        RAISE EXCEPTION 'no table %', table_name USING HINT = 'SELECT table_name FROM warehouse.table_status';
    END IF;
END $$;
