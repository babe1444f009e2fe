-- The control schema: sources, their tables, the checkpoint, what was deleted, what was set aside, and the verbs.
-- The replicator writes here in the same transaction as the rows it describes.

CREATE SCHEMA IF NOT EXISTS warehouse;
CREATE SCHEMA IF NOT EXISTS analytics;

CREATE TABLE warehouse.sources (
    source          text PRIMARY KEY,
    flavor          text NOT NULL CHECK (flavor IN ('mysql', 'mariadb')),
    server_version  text NOT NULL,
    state           text NOT NULL DEFAULT 'Starting'
                    CHECK (state IN ('Starting', 'Snapshotting', 'Streaming', 'Paused', 'Stopped', 'Failed')),
    reason          text,
    since           timestamptz NOT NULL DEFAULT clock_timestamp(),
    pause_requested boolean NOT NULL DEFAULT false,
    heard_at        timestamptz,
    lag_ms          double precision,
    heartbeat_s     double precision NOT NULL DEFAULT 5,
    binlog_expire_s bigint
);
COMMENT ON COLUMN warehouse.sources.heard_at IS 'when the replicator last heard from the server: an event or a heartbeat';
COMMENT ON COLUMN warehouse.sources.lag_ms IS 'commit at the source to commit here of the last transaction; 0 once the source is idle';
COMMENT ON COLUMN warehouse.sources.binlog_expire_s IS 'how long the server keeps its binlog; NULL where it never expires';

CREATE TABLE warehouse.checkpoint (
    source          text PRIMARY KEY REFERENCES warehouse.sources ON DELETE CASCADE,
    server_identity text NOT NULL,
    gtid_set        text,
    file            text NOT NULL,
    pos             bigint NOT NULL CHECK (pos >= 4),
    seq             bigint NOT NULL DEFAULT 0,
    committed_at    timestamptz,
    applied_at      timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 20);
COMMENT ON TABLE warehouse.checkpoint IS 'up to where each source is applied; commits with the rows';
COMMENT ON COLUMN warehouse.checkpoint.server_identity IS 'server_uuid of MySQL, domain and server id of MariaDB';
COMMENT ON COLUMN warehouse.checkpoint.seq IS 'the highest _seq given out';
COMMENT ON COLUMN warehouse.checkpoint.committed_at IS 'commit time at the source of the last applied transaction';

CREATE TABLE warehouse.tables (
    source       text NOT NULL REFERENCES warehouse.sources ON DELETE CASCADE,
    table_name   text NOT NULL,
    mirror       text NOT NULL,
    state        text NOT NULL
                 CHECK (state IN ('Snapshotting', 'Synced', 'Failed', 'ResyncRequired', 'DroppedSource')),
    reason       text,
    since        timestamptz NOT NULL DEFAULT clock_timestamp(),
    columns      jsonb NOT NULL DEFAULT '[]',
    key_columns  text[] NOT NULL DEFAULT '{}',
    rows         bigint NOT NULL DEFAULT 0,
    inserted     bigint NOT NULL DEFAULT 0,
    updated      bigint NOT NULL DEFAULT 0,
    deleted      bigint NOT NULL DEFAULT 0,
    raw_rows     bigint NOT NULL DEFAULT 0,
    seq          bigint NOT NULL DEFAULT 0,
    committed_at timestamptz,
    position     text,
    consistent_from text,
    resync_requested boolean NOT NULL DEFAULT false,
    PRIMARY KEY (source, table_name)
) WITH (fillfactor = 50);
COMMENT ON COLUMN warehouse.tables.table_name IS 'database.table at the source';
COMMENT ON COLUMN warehouse.tables.mirror IS 'schema.table here';
COMMENT ON COLUMN warehouse.tables.columns IS 'name, source type and mirror type of each column, in the source''s order';
COMMENT ON COLUMN warehouse.tables.rows IS 'rows in the mirror';
COMMENT ON COLUMN warehouse.tables.raw_rows IS 'changes with a value that Postgres cannot hold; see _raw';
COMMENT ON COLUMN warehouse.tables.seq IS 'the highest _seq among this table''s changes, deletes included';
COMMENT ON COLUMN warehouse.tables.consistent_from IS
    'the source position up to which the stream must be applied before a snapshot is whole; NULL once it is';

CREATE TABLE warehouse.deleted_rows (
    source       text NOT NULL,
    table_name   text NOT NULL,
    key          jsonb NOT NULL,
    seq          bigint NOT NULL,
    committed_at timestamptz,
    PRIMARY KEY (source, seq)
);
COMMENT ON TABLE warehouse.deleted_rows IS 'keys that the source deleted, so that derived state can follow';

CREATE TABLE warehouse.quarantine (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source      text NOT NULL,
    table_name  text,
    position    text NOT NULL,
    event_type  integer,
    reason      text NOT NULL,
    raw         bytea,
    state       text NOT NULL DEFAULT 'Held' CHECK (state IN ('Held', 'RetryRequested', 'Retried', 'Skipped')),
    set_aside_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE warehouse.quarantine IS 'events and rows that could not be applied, byte for byte';

CREATE TABLE warehouse.state_changes (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source     text NOT NULL,
    table_name text,
    old_state  text,
    new_state  text NOT NULL,
    reason     text,
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX state_changes_of_table ON warehouse.state_changes (source, table_name, id);

CREATE FUNCTION warehouse.record_state_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.state IS DISTINCT FROM OLD.state OR NEW.reason IS DISTINCT FROM OLD.reason THEN
        IF TG_OP = 'UPDATE' THEN
            NEW.since := clock_timestamp();
        END IF;
        INSERT INTO warehouse.state_changes (source, table_name, old_state, new_state, reason)
        VALUES (NEW.source, to_jsonb(NEW) ->> 'table_name',
                CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.state, NEW.reason);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER sources_state BEFORE INSERT OR UPDATE OF state, reason ON warehouse.sources
    FOR EACH ROW EXECUTE FUNCTION warehouse.record_state_change();
CREATE TRIGGER tables_state BEFORE INSERT OR UPDATE OF state, reason ON warehouse.tables
    FOR EACH ROW EXECUTE FUNCTION warehouse.record_state_change();

CREATE VIEW warehouse.status AS
SELECT s.source, s.state, s.reason, s.since,
       CASE WHEN s.heard_at < now() - make_interval(secs => 3 * s.heartbeat_s)
            THEN extract(epoch FROM now() - s.heard_at) * 1000 + coalesce(s.lag_ms, 0)
            ELSE s.lag_ms END AS lag_ms,
       coalesce(c.gtid_set, c.file || ':' || c.pos) AS position,
       c.file, c.pos, c.seq, c.committed_at, c.applied_at, s.heard_at,
       make_interval(secs => s.binlog_expire_s
           - CASE WHEN s.lag_ms > 0 OR s.heard_at < now() - make_interval(secs => 3 * s.heartbeat_s)
                  THEN greatest(0, extract(epoch FROM now() - coalesce(c.committed_at, c.applied_at))) ELSE 0 END
       ) AS binlog_runway,
       count(t.*) AS tables,
       count(t.*) FILTER (WHERE t.state = 'Synced') AS tables_synced,
       count(t.*) FILTER (WHERE t.state IN ('Failed', 'ResyncRequired')) AS tables_in_trouble,
       s.flavor, s.server_version
FROM warehouse.sources s
LEFT JOIN warehouse.checkpoint c USING (source)
LEFT JOIN warehouse.tables t USING (source)
GROUP BY s.source, c.source;
COMMENT ON VIEW warehouse.status IS 'one row per source: state, lag, position and how long the binlog still reaches back';

CREATE VIEW warehouse.table_status AS
SELECT source, table_name, mirror, state, reason, since, rows, inserted, updated, deleted, raw_rows,
       seq, committed_at, position, key_columns, resync_requested
FROM warehouse.tables;

-- GTID sets as text. MySQL: uuid[:tag]:first[-last][:first-last]...,uuid...; MariaDB: domain-server-sequence,...
CREATE FUNCTION warehouse.gtid_ranges(gtid_set text)
RETURNS TABLE (origin text, first_no bigint, last_no bigint) LANGUAGE sql IMMUTABLE AS $$
    WITH parts AS (
        SELECT regexp_replace(part, '\s', '', 'g') AS part FROM unnest(string_to_array(gtid_set, ',')) part
    ),
    mysql AS (
        SELECT lower(split_part(part, ':', 1)) AS uuid, piece, n,
               count(*) FILTER (WHERE piece !~ '^\d') OVER (PARTITION BY part ORDER BY n) AS tag_no
        FROM parts, unnest((string_to_array(part, ':'))[2:]) WITH ORDINALITY AS pieces (piece, n)
        WHERE part ~ ':'
    ),
    tagged AS (
        SELECT uuid, piece, max(CASE WHEN piece !~ '^\d' THEN ':' || piece END) OVER (PARTITION BY uuid, tag_no) AS tag
        FROM mysql
    )
    SELECT uuid || coalesce(tag, ''), split_part(piece, '-', 1)::bigint,
           coalesce(nullif(split_part(piece, '-', 2), ''), split_part(piece, '-', 1))::bigint
    FROM tagged WHERE piece ~ '^\d'
    UNION ALL
    SELECT split_part(part, '-', 1), 1, split_part(part, '-', 3)::bigint
    FROM parts WHERE part ~ '^\d+-\d+-\d+$'
$$;

CREATE FUNCTION warehouse.gtid_subset(small text, big text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT NOT EXISTS (
        SELECT FROM warehouse.gtid_ranges(small) s
        WHERE NOT EXISTS (
            SELECT FROM warehouse.gtid_ranges(big) b
            WHERE b.origin = s.origin AND b.first_no <= s.first_no AND b.last_no >= s.last_no))
$$;
COMMENT ON FUNCTION warehouse.gtid_subset IS 'true where every transaction of small is in big';

CREATE FUNCTION warehouse.wait_for(source text, gtid_set text, timeout interval DEFAULT '10 s')
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    give_up_at timestamptz := clock_timestamp() + timeout;
BEGIN
    IF gtid_set IS NULL OR (gtid_set <> '' AND NOT EXISTS (SELECT FROM warehouse.gtid_ranges(gtid_set))) THEN
        RAISE EXCEPTION 'not a GTID set: %', gtid_set USING HINT = 'SELECT @@gtid_executed, or @@gtid_binlog_pos in MariaDB';
    END IF;
    LOOP
        IF EXISTS (SELECT FROM warehouse.checkpoint c
                   WHERE c.source = wait_for.source AND warehouse.gtid_subset(wait_for.gtid_set, c.gtid_set)) THEN
            RETURN true;
        END IF;
        IF clock_timestamp() > give_up_at THEN
            RETURN false;
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
COMMENT ON FUNCTION warehouse.wait_for IS 'read your own writes: true once the mirror holds these transactions, false at the time-out';

CREATE FUNCTION warehouse.request(request text, source text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('tailrace_requests', json_build_object('request', request, 'source', source)::text)
$$;

CREATE FUNCTION warehouse.pause(source text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE warehouse.sources s SET pause_requested = true WHERE s.source = pause.source;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no source %', source USING HINT = 'SELECT source FROM warehouse.status';
    END IF;
    PERFORM warehouse.request('pause', source);
END $$;

CREATE FUNCTION warehouse.resume(source text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE warehouse.sources s SET pause_requested = false WHERE s.source = resume.source;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no source %', source USING HINT = 'SELECT source FROM warehouse.status';
    END IF;
    PERFORM warehouse.request('resume', source);
END $$;

CREATE FUNCTION warehouse.resync(table_name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found_source text;
BEGIN
    UPDATE warehouse.tables t SET resync_requested = true
    WHERE resync.table_name IN (t.table_name, t.mirror) RETURNING t.source INTO found_source;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no table %', table_name USING HINT = 'SELECT table_name FROM warehouse.table_status';
    END IF;
    PERFORM warehouse.request('resync', found_source);
END $$;
COMMENT ON FUNCTION warehouse.resync IS 'copy the table afresh from the source; the replicator does it at once';
