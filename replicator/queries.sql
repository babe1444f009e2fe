-- The replicator's static SQL. Each statement begins with a line that names it.

-- name: read_source
SELECT flavor, server FROM warehouse.sources WHERE source = %(source)s

-- name: register_source
WITH known AS (
    UPDATE warehouse.sources SET flavor = %(flavor)s, server_version = %(version)s, heartbeat_s = %(heartbeat_s)s,
        binlog_expire_s = %(expire_s)s, server = %(server)s, state = 'Starting', reason = NULL
    WHERE source = %(source)s RETURNING source
)
INSERT INTO warehouse.sources (source, flavor, server_version, state, heartbeat_s, binlog_expire_s, server)
SELECT %(source)s, %(flavor)s, %(version)s, 'Starting', %(heartbeat_s)s, %(expire_s)s, %(server)s
WHERE NOT EXISTS (SELECT FROM known)

-- name: set_source_state
UPDATE warehouse.sources SET state = %(state)s, reason = %(reason)s
WHERE source = %(source)s AND (state, reason) IS DISTINCT FROM (%(state)s, %(reason)s)

-- name: note_heard
UPDATE warehouse.sources SET heard_at = clock_timestamp() - make_interval(secs => %(silent_s)s), lag_ms = coalesce(
    greatest(0, extract(epoch FROM clock_timestamp() - %(committed_at)s::timestamptz) * 1000 + coalesce(clock_offset_ms, 0)), 0)
WHERE source = %(source)s

-- name: write_clock_offset
UPDATE warehouse.sources SET clock_offset_ms = %(offset_ms)s WHERE source = %(source)s

-- name: read_checkpoint
SELECT server_identity, gtid_set, file, pos, seq, last_gtid, binlog_head FROM warehouse.checkpoint WHERE source = %(source)s

-- name: create_checkpoint
INSERT INTO warehouse.checkpoint (source, server_identity, gtid_set, file, pos)
VALUES (%(source)s, %(identity)s, %(gtid_set)s, %(file)s, %(pos)s)

-- name: write_checkpoint
WITH moved AS (
    UPDATE warehouse.checkpoint
    SET binlog_head = CASE WHEN server_identity = %(identity)s AND file = %(file)s THEN binlog_head END,
        server_identity = %(identity)s, gtid_set = %(gtid_set)s, file = %(file)s, pos = %(pos)s, seq = %(seq)s,
        last_gtid = %(last_gtid)s,
        committed_at = coalesce(%(committed_at)s, committed_at), applied_at = clock_timestamp()
    WHERE source = %(source)s
)
UPDATE warehouse.sources SET heard_at = clock_timestamp(), lag_ms = coalesce(
    greatest(0, extract(epoch FROM clock_timestamp() - %(committed_at)s::timestamptz) * 1000 + coalesce(clock_offset_ms, 0)), 0)
WHERE source = %(source)s

-- name: read_warning
SELECT warning FROM warehouse.status WHERE source = %(source)s

-- name: beat
INSERT INTO warehouse.pulses (source, backend, beat_at) VALUES (%(source)s, %(backend)s, clock_timestamp())
ON CONFLICT (source) DO UPDATE SET backend = EXCLUDED.backend, beat_at = EXCLUDED.beat_at

-- name: look_for_pulse
SELECT l.pid, p.beat_at FROM pg_locks l
JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
JOIN warehouse.pulses p ON p.source = %(source)s AND p.backend = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND (l.classid::bigint << 32 | l.objid::bigint) = %(lock)s::bigint

-- name: read_table_choices
SELECT pattern, wanted FROM warehouse.table_choices WHERE source = %(source)s ORDER BY id DESC

-- name: read_column_choices
SELECT table_name, column_name, excluded FROM warehouse.column_choices WHERE source = %(source)s

-- name: read_filters
SELECT table_name, excluded_columns FROM warehouse.tables WHERE source = %(source)s AND excluded_columns <> '{}'

-- name: read_filter
SELECT t.excluded_columns, to_regclass(format('%%I.%%I', split_part(t.mirror, '.', 1), substr(t.mirror, strpos(t.mirror, '.') + 1))) IS NOT NULL,
    EXISTS (SELECT FROM pg_trigger g WHERE g.tgname = 'tailrace_filter' AND g.tgrelid =
        to_regclass(format('%%I.%%I', split_part(t.mirror, '.', 1), substr(t.mirror, strpos(t.mirror, '.') + 1))))
FROM warehouse.tables t WHERE t.source = %(source)s AND t.table_name = %(table)s

-- name: read_mirror_columns
SELECT attname FROM pg_attribute
WHERE attrelid = to_regclass(format('%%I.%%I', split_part(%(mirror)s, '.', 1), substr(%(mirror)s, strpos(%(mirror)s, '.') + 1)))
    AND attnum > 0 AND NOT attisdropped

-- name: find_kept
SELECT coalesce(array_agg(attname ORDER BY attnum), '{}') FROM pg_attribute
WHERE attrelid = to_regclass(format('%%I.%%I', split_part(%(mirror)s, '.', 1), substr(%(mirror)s, strpos(%(mirror)s, '.') + 1)))
    AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND attidentity = ''
    AND attname <> ALL (%(known)s || '{_seq,_committed_at,_raw,_row_hash}'::text[])

-- name: read_kept
SELECT t.table_name, array_agg(a.attname ORDER BY a.attnum) FROM warehouse.tables t
JOIN pg_attribute a ON a.attrelid =
    to_regclass(format('%%I.%%I', split_part(t.mirror, '.', 1), substr(t.mirror, strpos(t.mirror, '.') + 1)))
WHERE t.source = %(source)s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity = ''
    AND a.attname <> ALL ('{_seq,_committed_at,_raw,_row_hash}')
    AND NOT EXISTS (SELECT FROM jsonb_array_elements(t.columns) c WHERE c ->> 'mirror_name' = a.attname)
GROUP BY t.table_name

-- name: find_lock_holder
SELECT l.pid, coalesce(a.usename, '?'), coalesce(a.application_name, ''), to_char(a.xact_start, 'HH24:MI:SS')
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.pid <> pg_backend_pid() AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.relation = to_regclass(format('%%I.%%I', split_part(%(mirror)s, '.', 1), substr(%(mirror)s, strpos(%(mirror)s, '.') + 1)))
ORDER BY a.xact_start, l.pid LIMIT 1

-- name: can_rename
SELECT to_regclass(format('%%I.%%I', split_part(%(new_mirror)s, '.', 1), substr(%(new_mirror)s, strpos(%(new_mirror)s, '.') + 1))) IS NULL
    AND NOT EXISTS (SELECT FROM warehouse.tables t WHERE t.mirror = %(new_mirror)s)
    AND NOT EXISTS (SELECT FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND r.ev_class <> c.oid)
    AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal)
    AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid)
    AND NOT EXISTS (SELECT FROM pg_publication_rel p WHERE p.prrelid = c.oid)
    AND NOT EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
    AND NOT EXISTS (SELECT FROM pg_constraint f WHERE f.contype = 'f' AND c.oid IN (f.conrelid, f.confrelid))
    AND NOT EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
                    WHERE i.indrelid = c.oid AND NOT i.indisprimary AND x.relname <> ALL (%(indexes)s))
    AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL)
    -- rights beyond those that a new table gets
    AND NOT EXISTS (SELECT * FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner)))
                    EXCEPT (SELECT * FROM aclexplode(coalesce(
                                (SELECT d.defaclacl FROM pg_default_acl d
                                 WHERE d.defaclrole = c.relowner AND d.defaclnamespace = 0 AND d.defaclobjtype = 'r'),
                                acldefault('r', c.relowner)))
                            UNION ALL
                            SELECT e.* FROM pg_default_acl d, aclexplode(d.defaclacl) e
                            WHERE d.defaclrole = c.relowner AND d.defaclnamespace = c.relnamespace AND d.defaclobjtype = 'r'))
FROM pg_class c
WHERE c.oid = to_regclass(format('%%I.%%I', split_part(%(mirror)s, '.', 1), substr(%(mirror)s, strpos(%(mirror)s, '.') + 1)))

-- name: rename_table
UPDATE warehouse.tables SET table_name = %(new)s, mirror = %(mirror)s WHERE source = %(source)s AND table_name = %(table)s

-- name: rename_quarantined
UPDATE warehouse.quarantine SET table_name = %(new)s
WHERE source = %(source)s AND table_name = %(table)s AND (state IN ('Held', 'RetryRequested') OR identity IS NOT NULL)

-- name: note_rename
INSERT INTO warehouse.state_changes (source, table_name, new_state, reason)
VALUES (%(source)s, %(new)s, 'Synced', 'renamed from ' || %(table)s::text)

-- name: write_filter
UPDATE warehouse.tables SET excluded_columns = %(excluded)s WHERE source = %(source)s AND table_name = %(table)s

-- name: find_mirror_owner
SELECT source FROM warehouse.tables WHERE mirror = %(mirror)s AND source <> %(source)s LIMIT 1

-- name: write_head
UPDATE warehouse.checkpoint SET binlog_head = %(head)s
WHERE source = %(source)s AND file = %(file)s AND server_identity = %(identity)s

-- name: read_restart
SELECT resync_requested, resync_tables FROM warehouse.sources WHERE source = %(source)s

-- name: move_checkpoint
UPDATE warehouse.checkpoint
SET server_identity = %(identity)s, gtid_set = %(gtid_set)s, file = %(file)s, pos = %(pos)s, last_gtid = NULL,
    binlog_head = NULL, applied_at = clock_timestamp()
WHERE source = %(source)s

-- name: forget_events
WITH prepared AS (
    DELETE FROM warehouse.prepared_transactions WHERE source = %(source)s
)
UPDATE warehouse.quarantine SET state = 'Retried', reason = reason || ' (the source was begun anew since)'
WHERE source = %(source)s AND table_name IS NULL

-- name: request_copies
UPDATE warehouse.tables SET resync_requested = true, held_state = NULL, state = 'ResyncRequired', reason = %(reason)s
WHERE source = %(source)s AND state <> 'Removed' AND (state <> 'DroppedSource' OR table_name = ANY (%(present)s))
    AND (%(tables)s::text[] IS NULL OR table_name = ANY (%(tables)s) OR mirror = ANY (%(tables)s))

-- name: leave_tables
UPDATE warehouse.tables SET held_state = NULL, state = 'Failed', reason = %(reason)s
WHERE source = %(source)s AND state IN ('Synced', 'Snapshotting', 'ResyncRequired') AND NOT resync_requested

-- name: end_restart
UPDATE warehouse.sources SET resync_requested = false, resync_tables = NULL WHERE source = %(source)s

-- name: hold_tables
UPDATE warehouse.tables SET held_state = state, state = 'ResyncRequired', reason = %(reason)s
WHERE source = %(source)s AND state IN ('Synced', 'Snapshotting') AND held_state IS NULL

-- name: release_tables
UPDATE warehouse.tables SET state = held_state, reason = NULL, held_state = NULL
WHERE source = %(source)s AND held_state IS NOT NULL

-- name: write_seq
UPDATE warehouse.checkpoint SET seq = greatest(seq, %(seq)s) WHERE source = %(source)s

-- name: read_tables
SELECT table_name, mirror, state, columns, key_columns, consistent_from, consistent_copy, foreign_keys,
    resync_requested
FROM warehouse.tables WHERE source = %(source)s

-- name: write_table
WITH known AS (
    UPDATE warehouse.tables SET mirror = %(mirror)s, state = %(state)s, reason = %(reason)s, columns = %(columns)s,
        key_columns = %(key_columns)s, consistent_from = %(consistent_from)s, consistent_copy = %(exact)s,
        foreign_keys = %(foreign_keys)s
    WHERE source = %(source)s AND table_name = %(table)s RETURNING table_name
)
INSERT INTO warehouse.tables (source, table_name, mirror, state, reason, columns, key_columns, position, foreign_keys)
SELECT %(source)s, %(table)s, %(mirror)s, %(state)s, %(reason)s, %(columns)s, %(key_columns)s, %(position)s, %(foreign_keys)s
WHERE NOT EXISTS (SELECT FROM known)

-- name: count_changes
UPDATE warehouse.tables
SET rows = rows + %(rows)s, inserted = inserted + %(inserted)s, updated = updated + %(updated)s,
    deleted = deleted + %(deleted)s, raw_rows = raw_rows + %(raw_rows)s, seq = %(seq)s,
    committed_at = %(committed_at)s, position = %(position)s
WHERE source = %(source)s AND table_name = %(table)s

-- name: drop_request
UPDATE warehouse.tables SET resync_requested = false WHERE source = %(source)s AND table_name = %(table)s

-- name: finish_snapshot
WITH obsolete AS (
    UPDATE warehouse.quarantine SET state = 'Skipped', identity = NULL, reason = reason || ' (the table was copied afresh since)'
    WHERE source = %(source)s AND table_name = %(table)s AND (state IN ('Held', 'RetryRequested') OR identity IS NOT NULL)
)
UPDATE warehouse.tables
SET rows = %(rows)s, inserted = inserted + %(rows)s, raw_rows = %(raw_rows)s, seq = greatest(seq, %(seq)s),
    consistent_from = %(consistent_from)s, consistent_copy = %(exact)s, resync_requested = false, position = %(consistent_from)s
WHERE source = %(source)s AND table_name = %(table)s

-- name: mark_consistent
UPDATE warehouse.tables SET state = 'Synced', reason = NULL, consistent_from = NULL
WHERE source = %(source)s AND table_name = %(table)s

-- name: read_requests
SELECT s.pause_requested, s.resync_requested, s.choices, array(
    SELECT table_name FROM warehouse.tables t WHERE t.source = s.source AND t.resync_requested ORDER BY table_name)
FROM warehouse.sources s WHERE s.source = %(source)s

-- name: notify
SELECT pg_notify('tailrace_rows', json_build_object('source', %(source)s::text, 'seq', %(seq)s::bigint)::text)

-- name: list_prepared
SELECT xid, part FROM warehouse.prepared_transactions WHERE source = %(source)s ORDER BY xid, part

-- name: read_prepared
SELECT events FROM warehouse.prepared_transactions WHERE source = %(source)s AND xid = %(xid)s AND part = %(part)s

-- name: write_prepared
INSERT INTO warehouse.prepared_transactions (source, xid, part, position, events)
VALUES (%(source)s, %(xid)s, %(part)s, %(position)s, %(events)s)

-- name: forget_prepared
DELETE FROM warehouse.prepared_transactions WHERE source = %(source)s AND xid = %(xid)s

-- name: set_aside
INSERT INTO warehouse.quarantine (source, table_name, position, event_type, reason, raw, operation, seq, columns, form, key, identity)
VALUES (%(source)s, %(table)s, %(position)s, %(event_type)s, %(reason)s, %(raw)s, %(operation)s, %(seq)s, %(columns)s, %(form)s,
    %(key)s, %(identity)s)

-- name: read_identities
SELECT table_name, identity FROM warehouse.quarantine WHERE source = %(source)s AND identity IS NOT NULL

-- name: end_superseded
UPDATE warehouse.quarantine q SET state = 'Skipped', identity = NULL, reason = q.reason || ' (the row was changed or deleted since)'
FROM unnest(%(identities)s::bytea[], %(seqs)s::bigint[]) AS later (identity, seq)
WHERE q.source = %(source)s AND q.table_name = %(table)s AND q.identity = later.identity AND q.seq < later.seq

-- name: end_one
UPDATE warehouse.quarantine SET state = 'Skipped', identity = NULL, reason = reason || ' (the row was deleted since)'
WHERE id = (SELECT id FROM warehouse.quarantine
            WHERE source = %(source)s AND table_name = %(table)s AND identity = %(identity)s ORDER BY id LIMIT 1)

-- name: end_all
UPDATE warehouse.quarantine SET state = 'Skipped', identity = NULL, reason = reason || ' (the table was emptied since)'
WHERE source = %(source)s AND table_name = %(table)s AND (state IN ('Held', 'RetryRequested') OR identity IS NOT NULL)

-- name: hold_event
INSERT INTO warehouse.quarantine (source, position, event_type, reason, raw)
SELECT %(source)s, %(position)s, %(event_type)s, %(reason)s, %(raw)s
WHERE NOT EXISTS (SELECT FROM warehouse.quarantine q
                  WHERE q.source = %(source)s AND q.position = %(position)s AND q.table_name IS NULL AND q.state = 'Held')

-- name: read_skipped
SELECT position FROM warehouse.quarantine WHERE source = %(source)s AND table_name IS NULL AND state = 'Skipped'

-- name: read_retries
SELECT id, table_name, coalesce(form, CASE WHEN event_type IS NULL THEN 'tuple' ELSE 'images' END), raw, columns, key, identity
FROM warehouse.quarantine WHERE source = %(source)s AND state = 'RetryRequested' ORDER BY id

-- name: end_retry
UPDATE warehouse.quarantine SET state = %(state)s, reason = coalesce(%(reason)s, reason),
    identity = CASE WHEN %(state)s = 'Held' THEN identity END
WHERE id = %(id)s

-- name: count_retried
UPDATE warehouse.tables SET rows = rows + %(rows)s, seq = greatest(seq, %(seq)s) WHERE source = %(source)s AND table_name = %(table)s

-- name: list_held
SELECT id, source, table_name, position, operation, reason, state, octet_length(raw), set_aside_at::text, key::text
FROM warehouse.quarantine WHERE state IN ('Held', 'RetryRequested') ORDER BY id

-- name: read_copies
SELECT c.table_name, c.base_seq, c.low, c.high, c.ranges, c.rows_done, c.rows_estimate
FROM warehouse.table_copies c JOIN warehouse.tables t USING (source, table_name)
WHERE c.source = %(source)s AND t.state = 'Snapshotting' AND t.consistent_from IS NULL AND NOT t.resync_requested

-- name: begin_copy
WITH begun AS (
    UPDATE warehouse.tables SET resync_requested = false, resync_low = NULL, resync_high = NULL, consistent_from = NULL,
        consistent_copy = false, rows = CASE WHEN %(is_filled)s THEN rows ELSE 0 END
    WHERE source = %(source)s AND table_name = %(table)s
)
INSERT INTO warehouse.table_copies (source, table_name, base_seq, is_filled, low, high, ranges, rows_done, rows_estimate)
VALUES (%(source)s, %(table)s, %(base_seq)s, %(is_filled)s, %(low)s, %(high)s, %(ranges)s, 0, %(rows_estimate)s)
ON CONFLICT (source, table_name) DO UPDATE SET
    base_seq = EXCLUDED.base_seq, is_filled = EXCLUDED.is_filled, low = EXCLUDED.low, high = EXCLUDED.high,
    ranges = EXCLUDED.ranges, rows_done = 0, rows_estimate = EXCLUDED.rows_estimate, rows_per_s = NULL, waits_for = NULL,
    began_at = clock_timestamp(), noted_at = clock_timestamp()

-- name: note_copy
UPDATE warehouse.table_copies
SET ranges = %(ranges)s, rows_done = %(rows_done)s, rows_estimate = %(rows_estimate)s, rows_per_s = %(rows_per_s)s,
    waits_for = %(waits_for)s, noted_at = clock_timestamp()
WHERE source = %(source)s AND table_name = %(table)s

-- name: count_copied
UPDATE warehouse.tables
SET rows = rows + %(rows)s, inserted = inserted + %(inserted)s, raw_rows = raw_rows + %(raw_rows)s, seq = %(seq)s
WHERE source = %(source)s AND table_name = %(table)s

-- name: end_copy
WITH obsolete AS (
    UPDATE warehouse.quarantine SET state = 'Skipped', identity = NULL, reason = reason || ' (the table was copied afresh since)'
    WHERE %(is_whole)s AND source = %(source)s AND table_name = %(table)s AND (state IN ('Held', 'RetryRequested') OR identity IS NOT NULL)
        AND seq <= %(base_seq)s
)
UPDATE warehouse.tables
SET rows = rows + %(drift)s, seq = greatest(seq, %(seq)s), consistent_from = %(consistent_from)s, position = %(consistent_from)s,
    consistent_copy = %(exact)s
WHERE source = %(source)s AND table_name = %(table)s

-- name: forget_copy
DELETE FROM warehouse.table_copies WHERE source = %(source)s AND table_name = %(table)s

-- name: read_range
SELECT resync_low, resync_high FROM warehouse.tables WHERE source = %(source)s AND table_name = %(table)s
