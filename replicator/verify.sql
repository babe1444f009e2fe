-- The static SQL of verification. Each statement begins with a line that names it.

-- name: take_up_again
UPDATE warehouse.verifications SET state = 'Requested'
WHERE source = %(source)s AND state = 'Running'

-- name: next_request
SELECT id, table_name, repair, rows_per_s, resume FROM warehouse.verifications
WHERE source = %(source)s AND state = 'Requested' ORDER BY id LIMIT 1

-- name: next_due
INSERT INTO warehouse.verifications (source, table_name, repair)
SELECT t.source, t.table_name, %(repair)s FROM warehouse.tables t
LEFT JOIN LATERAL (
    SELECT max(v.finished_at) AS at FROM warehouse.verifications v WHERE v.source = t.source AND v.table_name = t.table_name
) v ON true
WHERE t.source = %(source)s AND t.state = 'Synced' AND (v.at IS NULL OR v.at < clock_timestamp() - make_interval(secs => %(every_s)s))
ORDER BY v.at NULLS FIRST, t.table_name LIMIT 1
RETURNING id

-- name: begin
WITH forgotten AS (DELETE FROM warehouse.verification_keys WHERE verification = %(id)s),
former AS (DELETE FROM warehouse.drift WHERE verification = %(id)s)
UPDATE warehouse.verifications SET state = 'Running', started_at = clock_timestamp(), equal_as_of = %(at)s, from_position = %(position)s,
    resume = NULL, chunks = 0, rows = 0, missing = 0, extra = 0, different = 0, repaired = 0, unsettled = 0, quarantined = 0
WHERE id = %(id)s

-- name: go_on
UPDATE warehouse.verifications SET state = 'Running' WHERE id = %(id)s
RETURNING chunks, rows, missing, extra, different, repaired, unsettled, quarantined

-- name: read_seen
SELECT hashes FROM warehouse.verification_keys WHERE verification = %(id)s ORDER BY chunk

-- name: note_seen
INSERT INTO warehouse.verification_keys (verification, chunk, hashes) VALUES (%(id)s, %(chunk)s, %(hashes)s)

-- name: note_chunk
UPDATE warehouse.verifications SET resume = %(resume)s WHERE id = %(id)s

-- name: note_progress
UPDATE warehouse.verifications SET chunks = %(chunks)s, rows = %(rows)s, missing = %(missing)s, extra = %(extra)s,
    different = %(different)s, repaired = %(repaired)s, unsettled = %(unsettled)s,
    quarantined = %(quarantined)s, position = %(position)s
WHERE id = %(id)s

-- name: finish
WITH forgotten AS (DELETE FROM warehouse.verification_keys WHERE verification = %(id)s)
UPDATE warehouse.verifications SET state = %(state)s, reason = %(reason)s, resume = NULL, finished_at = clock_timestamp()
WHERE id = %(id)s

-- name: read_checkpoint
SELECT file, pos, gtid_set, seq FROM warehouse.checkpoint WHERE source = %(source)s

-- name: read_table
SELECT state, since, resync_requested, consistent_from IS NULL, excluded_columns FROM warehouse.tables
WHERE source = %(source)s AND table_name = %(table)s

-- name: read_outcomes
SELECT id, table_name, state, reason, rows, missing, extra, different, repaired, unsettled, equal_as_of, position,
       extract(epoch FROM finished_at - started_at)::float8, quarantined, finished_at IS NOT NULL
FROM warehouse.verifications WHERE id = ANY (%(ids)s) ORDER BY id

-- name: note_repaired
UPDATE warehouse.tables SET seq = greatest(seq, %(seq)s) WHERE source = %(source)s AND table_name = %(table)s

-- name: note_repaired_drift
UPDATE warehouse.drift SET repaired_at = clock_timestamp() WHERE verification = %(id)s AND repaired_at IS NULL

-- name: list_tables
SELECT table_name FROM warehouse.tables WHERE source = %(source)s AND state NOT IN ('DroppedSource', 'Removed') ORDER BY table_name

-- name: read_held
SELECT identity FROM warehouse.quarantine WHERE source = %(source)s AND table_name = %(table)s AND identity IS NOT NULL
