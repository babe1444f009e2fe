-- What the source has no longer, and no key finds again in its mirror.

CREATE TABLE warehouse.kept_rows (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source     text NOT NULL,
    table_name text NOT NULL,
    mirror     text NOT NULL,
    seq        bigint NOT NULL,
    columns    text[] NOT NULL,
    row        jsonb NOT NULL,
    kept_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX kept_rows_of_table ON warehouse.kept_rows (source, table_name, id);
COMMENT ON TABLE warehouse.kept_rows IS
    'rows of mirrors as they were before a copy under a key that could not find them again; only those with values in columns that the source dropped';
COMMENT ON COLUMN warehouse.kept_rows.seq IS 'the _seq that the row had';
COMMENT ON COLUMN warehouse.kept_rows.columns IS 'the columns of the mirror that the source had no longer';
COMMENT ON COLUMN warehouse.kept_rows.row IS 'mirror column -> value';
