-- Static queries of the warehouse package, read by warehouse.db.read_queries.

-- name: read_view_inputs
-- Every relation that a materialized view of the schema reads, through plain views and down into partitions.
WITH RECURSIVE steps AS (
    SELECT DISTINCT r.ev_class AS reader, d.refobjid AS input, c.relkind AS reader_kind
    FROM pg_rewrite r
    JOIN pg_class c ON c.oid = r.ev_class
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
    WHERE d.refobjid <> r.ev_class AND c.relkind IN ('m', 'v')
    UNION ALL
    SELECT inhparent, inhrelid, 'p' FROM pg_inherits
),
reads AS (
    SELECT c.oid AS view, s.input
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN steps s ON s.reader = c.oid
    WHERE c.relkind = 'm' AND n.nspname = 'analytics'
    UNION
    SELECT reads.view, s.input FROM reads JOIN steps s ON s.reader = reads.input AND s.reader_kind <> 'm'
)
SELECT v.relname, i.oid, n.nspname || '.' || i.relname, i.relkind = 'm',
       i.relkind IN ('r', 'p') AND i.oid >= 16384 AND n.nspname <> 'warehouse' AND has_table_privilege(i.oid, 'TRIGGER')
FROM reads
JOIN pg_class v ON v.oid = reads.view
JOIN pg_class i ON i.oid = reads.input AND i.relkind IN ('r', 'p', 'm', 'f')
JOIN pg_namespace n ON n.oid = i.relnamespace;

-- name: read_views
-- The schema's materialized views; refreshable: a unique index over plain columns and all rows, as CONCURRENTLY wants it.
SELECT c.relname, c.oid, c.relispopulated,
       EXISTS (SELECT FROM pg_index i
               WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
                 AND i.indpred IS NULL AND i.indexprs IS NULL)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'm' AND n.nspname = 'analytics';

-- name: read_catalog_mark
-- Changes whenever a relation appears, goes, is renamed or gets a column.
SELECT md5(coalesce(string_agg(c.oid || ' ' || c.relnamespace || ' ' || c.relname || ' ' || c.relnatts, ',' ORDER BY c.oid), ''))
FROM pg_class c
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND c.oid >= 16384;

-- name: fold_changes
WITH folded AS (DELETE FROM warehouse.relation_changes RETURNING relation)
INSERT INTO warehouse.watched_relations AS w (relation, changes)
SELECT relation, count(*) FROM folded GROUP BY relation
ON CONFLICT (relation) DO UPDATE SET changes = w.changes + EXCLUDED.changes;

-- name: read_watched
SELECT w.relation, w.changes
FROM warehouse.watched_relations w
JOIN pg_trigger t ON t.tgrelid = w.relation AND t.tgname = 'tailrace_changes' AND t.tgenabled IN ('O', 'A');

-- name: read_mirrors
SELECT mirror, source, state, consistent_from IS NOT NULL, concat_ws('/', seq, rows, inserted, updated, deleted)
FROM warehouse.tables;

-- name: read_checkpoints
SELECT source, seq, coalesce(nullif(gtid_set, ''), file || ':' || pos), committed_at FROM warehouse.checkpoint;

-- name: read_watermarks
SELECT view, state, reason, complete_to, positions, inputs, refreshed_at, duration_ms, refreshes, failures, retry_at, checksum,
       file, tried, grants
FROM warehouse.view_watermarks;

-- name: write_watermark
INSERT INTO warehouse.view_watermarks AS w
    (view, state, reason, complete_to, positions, inputs, refreshed_at, duration_ms, refreshes, failures, retry_at, checksum,
     file, tried, grants)
VALUES (%(view)s, %(state)s, %(reason)s, %(complete_to)s, %(positions)s, %(inputs)s, %(refreshed_at)s, %(duration_ms)s,
        %(refreshes)s, %(failures)s, %(retry_at)s, %(checksum)s, %(file)s, %(tried)s, %(grants)s)
ON CONFLICT (view) DO UPDATE SET
    since = CASE WHEN w.state = EXCLUDED.state AND w.reason IS NOT DISTINCT FROM EXCLUDED.reason
                 THEN w.since ELSE clock_timestamp() END,
    state = EXCLUDED.state, reason = EXCLUDED.reason, complete_to = EXCLUDED.complete_to, positions = EXCLUDED.positions,
    inputs = EXCLUDED.inputs, refreshed_at = EXCLUDED.refreshed_at, duration_ms = EXCLUDED.duration_ms,
    refreshes = EXCLUDED.refreshes, failures = EXCLUDED.failures, retry_at = EXCLUDED.retry_at,
    checksum = EXCLUDED.checksum, file = EXCLUDED.file, tried = EXCLUDED.tried, grants = EXCLUDED.grants;

-- name: read_scored
-- How far each scoring model version is, for each mirror table it scores.
SELECT w.relation, t.source, t.table_name, w.seq, w.deleted_seq, w.committed_at
FROM scorer.watermarks w
JOIN scorer.models m ON m.name = w.model AND m.version = w.version AND m.state = 'READY'
JOIN warehouse.tables t ON t.mirror = w.relation
JOIN pg_namespace n ON n.nspname = split_part(t.mirror, '.', 1)
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = substr(t.mirror, strpos(t.mirror, '.') + 1)
WHERE w.reason IS NULL;

-- name: read_unscored
SELECT EXISTS (SELECT FROM warehouse.deleted_rows d
               WHERE d.source = %(source)s AND d.table_name = %(table_name)s AND d.seq > %(deleted_seq)s);

-- name: prune_deleted_rows
-- Rows that a copy recorded have no commit time; they go with what is older or as old by its number.
DELETE FROM warehouse.deleted_rows WHERE source = %(source)s AND seq = ANY (ARRAY(
    SELECT seq FROM warehouse.deleted_rows d
    WHERE d.source = %(source)s
        AND d.seq <= (SELECT max(o.seq) FROM warehouse.deleted_rows o
                      WHERE o.source = %(source)s AND o.committed_at < now() - make_interval(secs => %(seconds)s))
        AND d.seq <= ALL (SELECT w.deleted_seq FROM scorer.watermarks w
                          JOIN scorer.models m ON (m.name, m.version) = (w.model, w.version)
                          WHERE w.source = %(source)s AND m.state <> 'RETIRED')
    ORDER BY seq LIMIT %(limit)s))

-- name: prune_state_changes
-- The last change of each table and of the source stays.
DELETE FROM warehouse.state_changes WHERE id = ANY (ARRAY(
    SELECT id FROM warehouse.state_changes c
    WHERE c.source = %(source)s AND c.at < now() - make_interval(secs => %(seconds)s)
        AND EXISTS (SELECT FROM warehouse.state_changes n
                    WHERE n.source = c.source AND n.table_name IS NOT DISTINCT FROM c.table_name AND n.id > c.id)
    LIMIT %(limit)s))

-- name: prune_verifications
-- The last finished one of each table stays; drift goes with its comparison.
DELETE FROM warehouse.verifications WHERE id = ANY (ARRAY(
    SELECT id FROM warehouse.verifications v
    WHERE v.source = %(source)s AND v.finished_at < now() - make_interval(secs => %(seconds)s)
        AND EXISTS (SELECT FROM warehouse.verifications n
                    WHERE n.source = v.source AND n.table_name = v.table_name AND n.id > v.id AND n.finished_at IS NOT NULL)
    LIMIT %(limit)s))

-- name: prune_anomalies
DELETE FROM scorer.anomalies WHERE id = ANY (ARRAY(
    SELECT a.id FROM scorer.anomalies a
    LEFT JOIN scorer.incidents i ON i.id = a.incident_id
    WHERE a.source_table IN (SELECT mirror FROM warehouse.tables WHERE source = %(source)s)
        AND a.detected_at < now() - make_interval(secs => %(seconds)s) AND (i.id IS NULL OR i.closed_at IS NOT NULL)
    LIMIT %(limit)s))

-- name: prune_incidents
WITH old AS (
    SELECT id FROM scorer.incidents
    WHERE source = %(source)s AND closed_at < now() - make_interval(secs => %(seconds)s) LIMIT %(limit)s
),
found AS (DELETE FROM scorer.anomalies WHERE incident_id IN (SELECT id FROM old))
DELETE FROM scorer.incidents WHERE id IN (SELECT id FROM old)
