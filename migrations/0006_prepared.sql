-- XA transactions that the source prepared and has not decided about: their events, which become rows at the commit.

CREATE TABLE warehouse.prepared_transactions (
    source      text NOT NULL REFERENCES warehouse.sources ON DELETE CASCADE,
    xid         text NOT NULL,
    part        integer NOT NULL,
    position    text NOT NULL,
    events      bytea NOT NULL,
    prepared_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, xid, part)
);
COMMENT ON TABLE warehouse.prepared_transactions IS
    'XA transactions between XA PREPARE and XA COMMIT or XA ROLLBACK: binlog events, in parts; written and deleted with the checkpoint';
COMMENT ON COLUMN warehouse.prepared_transactions.position IS 'the source position that was applied when the transaction was held';

-- GTID sets as text, tags counted within each part of the list. MySQL: uuid[:tag]:first[-last][:first-last]...,uuid...; MariaDB: domain-server-sequence,...
CREATE OR REPLACE FUNCTION warehouse.gtid_ranges(gtid_set text)
RETURNS TABLE (origin text, first_no bigint, last_no bigint) LANGUAGE sql IMMUTABLE AS $$
    WITH parts AS (
        SELECT regexp_replace(part, '\s', '', 'g') AS part FROM unnest(string_to_array(gtid_set, ',')) part
    ),
    mysql AS (
        SELECT part, lower(split_part(part, ':', 1)) AS uuid, piece, n,
               count(*) FILTER (WHERE piece !~ '^\d') OVER (PARTITION BY part ORDER BY n) AS tag_no
        FROM parts, unnest((string_to_array(part, ':'))[2:]) WITH ORDINALITY AS pieces (piece, n)
        WHERE part ~ ':'
    ),
    tagged AS (
        SELECT uuid, piece, max(CASE WHEN piece !~ '^\d' THEN ':' || piece END) OVER (PARTITION BY part, tag_no) AS tag
        FROM mysql
    )
    SELECT uuid || coalesce(tag, ''), split_part(piece, '-', 1)::bigint,
           coalesce(nullif(split_part(piece, '-', 2), ''), split_part(piece, '-', 1))::bigint
    FROM tagged WHERE piece ~ '^\d'
    UNION ALL
    SELECT split_part(part, '-', 1), 1, split_part(part, '-', 3)::bigint
    FROM parts WHERE part ~ '^\d+-\d+-\d+$'
$$;
