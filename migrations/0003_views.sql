-- Derived views: how far each materialized view is complete, and which tables changed since.
-- warehouse/refresh.py writes here, in the transaction that refreshes.

CREATE TABLE warehouse.view_watermarks (
    view         text PRIMARY KEY,
    state        text NOT NULL CHECK (state IN ('Pending', 'Ready', 'Incomplete', 'Failed', 'Orphaned')),
    reason       text,
    since        timestamptz NOT NULL DEFAULT clock_timestamp(),
    complete_to  timestamptz,
    positions    jsonb NOT NULL DEFAULT '{}',
    inputs       jsonb NOT NULL DEFAULT '{}',
    refreshed_at timestamptz,
    duration_ms  double precision,
    refreshes    bigint NOT NULL DEFAULT 0,
    failures     integer NOT NULL DEFAULT 0,
    retry_at     timestamptz,
    checksum     text,
    file         text,
    tried        text,
    grants       jsonb NOT NULL DEFAULT '[]'
) WITH (fillfactor = 50);
COMMENT ON TABLE warehouse.view_watermarks IS 'one row per view file: its state, and up to which source commit its content is complete';
COMMENT ON COLUMN warehouse.view_watermarks.state IS
    'Pending: an input is missing; Ready; Incomplete: an input is not in Synced; Failed: see reason, the old content stays; Orphaned: its file is gone';
COMMENT ON COLUMN warehouse.view_watermarks.complete_to IS
    'commit time at the source up to which the content is complete; the earliest, where the view reads several sources';
COMMENT ON COLUMN warehouse.view_watermarks.positions IS 'per source: seq, position and commit time that the content is complete to';
COMMENT ON COLUMN warehouse.view_watermarks.inputs IS 'per input: its change marker when the view was last refreshed';
COMMENT ON COLUMN warehouse.view_watermarks.checksum IS 'sha256 of the file that the view was made from; NULL where there is no view';
COMMENT ON COLUMN warehouse.view_watermarks.tried IS 'the catalog and the file when creating the view was last tried';
COMMENT ON COLUMN warehouse.view_watermarks.grants IS 'rights that others had on a view that was dropped, to be given again';

-- Tables that are no mirror (the scorer's, an analyst's) tell by trigger that they changed. A row per transaction, and not
-- a counter, so that writers never wait for each other; the refresher adds the rows up.
CREATE TABLE warehouse.relation_changes (
    relation oid NOT NULL,
    xid      xid8 NOT NULL,
    PRIMARY KEY (relation, xid)
);
CREATE TABLE warehouse.watched_relations (
    relation oid PRIMARY KEY,
    changes  bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
COMMENT ON TABLE warehouse.relation_changes IS 'transactions that wrote to a watched table since the last refresh';
COMMENT ON TABLE warehouse.watched_relations IS 'tables that views read and that are no mirrors, with the number of transactions that wrote to them';

CREATE FUNCTION warehouse.record_relation_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    INSERT INTO warehouse.relation_changes (relation, xid) VALUES (TG_RELID, pg_current_xact_id()) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION warehouse.run_view_file(statements text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statements;
END $$;
COMMENT ON FUNCTION warehouse.run_view_file IS 'runs the text of a view file, which cannot commit from in here';

CREATE FUNCTION warehouse.drop_view(view text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE warehouse.view_watermarks w SET checksum = NULL, grants = coalesce((
        SELECT jsonb_agg(jsonb_build_object(
            'role', CASE WHEN a.grantee = 0 THEN 'public' ELSE pg_get_userbyid(a.grantee) END,
            'public', a.grantee = 0, 'privilege', a.privilege_type, 'grantable', a.is_grantable))
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = to_regclass(drop_view.view) AND a.grantee <> c.relowner), '[]')
    WHERE w.view = drop_view.view;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no view %', view USING HINT = 'SELECT view FROM warehouse.view_watermarks';
    END IF;
    EXECUTE format('DROP MATERIALIZED VIEW IF EXISTS %I.%I', split_part(view, '.', 1), split_part(view, '.', 2));
END $$;
COMMENT ON FUNCTION warehouse.drop_view IS 'drop a derived view that nothing depends on; the next refresh makes it again with the same grants';

CREATE FUNCTION warehouse.drop_views_of(relation text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    dependent text;
BEGIN
    FOR dependent IN
        WITH RECURSIVE edges AS (
            SELECT DISTINCT d.refobjid AS input, r.ev_class AS reader
            FROM pg_rewrite r
            JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
            WHERE d.refobjid <> r.ev_class
        ),
        readers (oid, depth) AS (
            SELECT reader, 1 FROM edges WHERE input = to_regclass(relation)
            UNION
            SELECT e.reader, r.depth + 1 FROM readers r JOIN edges e ON e.input = r.oid
        )
        SELECT w.view
        FROM warehouse.view_watermarks w
        JOIN readers r ON r.oid = to_regclass(w.view)
        GROUP BY w.view ORDER BY max(r.depth) DESC
    LOOP
        PERFORM warehouse.drop_view(dependent);
        RETURN NEXT dependent;
    END LOOP;
END $$;
COMMENT ON FUNCTION warehouse.drop_views_of IS
    'drop the derived views that read a table, so that its columns can change type or it can be dropped; the next refresh makes them again';
