-- Static statements of the scorer. The statements that are composed are in fill.py.

-- name: read_models
SELECT name, version, state, relation, entity_column, order_column, feature_columns, training_query, parameters,
       threshold_rule, scaler, expected_values, kind
FROM scorer.models
WHERE state = ANY (%(states)s)
ORDER BY name, version;

-- name: read_checkpoint
SELECT state, batch, last_batch FROM scorer.forest_checkpoints WHERE model = %(model)s AND version = %(version)s;

-- name: read_learned
SELECT features, entities, order_values FROM scorer.learned_batches
WHERE model = %(model)s AND version = %(version)s AND batch > %(batch)s
ORDER BY batch;

-- name: advance_state
UPDATE scorer.forest_checkpoints SET last_batch = %(batch)s
WHERE model = %(model)s AND version = %(version)s AND last_batch = %(batch)s - 1;

-- name: write_state
UPDATE scorer.forest_checkpoints SET state = %(state)s, batch = %(batch)s, created_at = clock_timestamp()
WHERE model = %(model)s AND version = %(version)s;

-- name: write_learned
INSERT INTO scorer.learned_batches (model, version, batch, rows, features, entities, order_values)
VALUES (%(model)s, %(version)s, %(batch)s, %(rows)s, %(features)s, %(entities)s, %(order_values)s);

-- name: read_entity_forest
SELECT state, batch FROM scorer.entity_forests WHERE model = %(model)s AND version = %(version)s AND entity = %(entity)s;

-- name: write_entity_forest
INSERT INTO scorer.entity_forests (model, version, entity, state, batch, rows_seen, threshold)
VALUES (%(model)s, %(version)s, %(entity)s, %(state)s, %(batch)s, %(rows_seen)s, %(threshold)s)
ON CONFLICT (model, version, entity) DO UPDATE
SET state = excluded.state, batch = excluded.batch, rows_seen = excluded.rows_seen, threshold = excluded.threshold,
    written_at = excluded.written_at;

-- name: train_entity_forest
INSERT INTO scorer.entity_forests (model, version, entity, state, batch, rows_seen, threshold)
SELECT m.name, m.version, %(entity)s, %(state)s, 0, %(rows_seen)s, %(threshold)s FROM scorer.models m
WHERE m.name = %(model)s AND m.version = %(version)s AND m.state = 'TRAINING'
FOR KEY SHARE;

-- name: clear_entity_forests
DELETE FROM scorer.entity_forests WHERE model = %(model)s AND version = %(version)s;

-- name: note_forests
UPDATE scorer.forest_checkpoints
SET forests_in_memory = %(in_memory)s, forests_bound = %(bound)s, entities_waiting = %(waiting)s
WHERE model = %(model)s AND version = %(version)s
  AND (forests_in_memory, forests_bound, entities_waiting) IS DISTINCT FROM (%(in_memory)s, %(bound)s, %(waiting)s);

-- name: forget_learned
DELETE FROM scorer.learned_batches WHERE model = %(model)s AND version = %(version)s AND batch <= %(batch)s;

-- name: read_company
SELECT array_agg(b.entity ORDER BY b.n), array_agg(b.order_value ORDER BY b.n),
       coalesce(array_agg(b.n) FILTER (WHERE EXISTS (
           SELECT FROM scorer.scores s
           WHERE s.model = %(model)s AND s.model_version = %(version)s AND s.source_table = b.relation AND s.row_key = b.row_key)), '{}')
FROM pg_temp.batch b;

-- name: read_place
SELECT entity, order_value, seq FROM pg_temp.batch WHERE n = %(n)s;

-- name: mirrors
SELECT n.nspname::text, c.relname::text, coalesce(t.source, ''), coalesce(t.table_name, n.nspname || '.' || c.relname),
       t.state,
       (SELECT jsonb_object_agg(a.attname, format_type(a.atttypid, NULL)) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (SELECT array_agg(a.attname::text ORDER BY k.n)
        FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n)
        JOIN pg_attribute a ON a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN warehouse.tables t ON t.mirror = n.nspname || '.' || c.relname
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND EXISTS (SELECT FROM unnest(%(patterns)s::text[]) pattern WHERE n.nspname || '.' || c.relname LIKE pattern)
  AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = '_seq' AND NOT a.attisdropped)
ORDER BY 1, 2;

-- name: tables_not_synced
SELECT mirror, state, reason FROM warehouse.tables WHERE mirror = ANY (%(tables)s) AND state <> 'Synced' ORDER BY mirror;

-- name: set_state
UPDATE scorer.models SET state = %(state)s, reason = %(reason)s, since = clock_timestamp()
WHERE name = %(model)s AND version = %(version)s AND state IN ('PENDING', 'TRAINING')
  AND (state, coalesce(reason, '')) IS DISTINCT FROM (%(state)s, coalesce(%(reason)s, ''));

-- name: set_stage
UPDATE scorer.models SET reason = %(stage)s WHERE name = %(model)s AND version = %(version)s AND state = 'TRAINING';

-- name: lock_for_deploy
SELECT pg_advisory_xact_lock(hashtextextended('tailrace model ' || %(model)s, 0));

-- name: lock_training
SELECT FROM scorer.models WHERE name = %(model)s AND version = %(version)s AND state = 'TRAINING' FOR UPDATE;

-- name: read_deployed
SELECT version FROM scorer.models WHERE name = %(model)s AND state = 'READY';

-- name: retire_shadow
UPDATE scorer.models SET state = 'RETIRED', reason = 'version ' || %(version)s || ' took its place in the shadow', since = clock_timestamp()
WHERE name = %(model)s AND state = 'SHADOW';

-- name: begin_behind
INSERT INTO scorer.watermarks (model, version, relation, source, seq, deleted_seq, first_seq, reason)
SELECT model, %(version)s, relation, source, seq, deleted_seq, seq, reason
FROM scorer.watermarks WHERE model = %(model)s AND version = %(deployed)s
ON CONFLICT (model, version, relation) DO NOTHING;

-- name: retire_other
UPDATE scorer.models SET state = 'RETIRED', reason = 'version ' || %(version)s || ' was deployed', since = clock_timestamp()
WHERE name = %(model)s AND state = 'READY';

-- name: close_retired_incidents
UPDATE scorer.incidents i SET closed_at = statement_timestamp(), close_reason = 'model retired'
FROM scorer.models m
WHERE m.name = i.model AND m.version = i.model_version AND m.state = 'RETIRED' AND i.model = %(model)s AND i.closed_at IS NULL
RETURNING i.id;

-- name: set_trained
UPDATE scorer.models
SET state = %(new_state)s, reason = NULL, since = clock_timestamp(), threshold = %(threshold)s, threshold_rule = %(threshold_rule)s,
    scaler = %(scaler)s, expected_values = %(expected_values)s, rows_seen = %(rows_seen)s, training_scores = %(training_scores)s,
    trained_at = clock_timestamp(), training_ms = %(training_ms)s
WHERE name = %(model)s AND version = %(version)s;

-- name: write_checkpoint
INSERT INTO scorer.forest_checkpoints (model, version, state) VALUES (%(model)s, %(version)s, %(state)s)
ON CONFLICT (model, version) DO UPDATE SET state = excluded.state, created_at = clock_timestamp();

-- name: write_nodes
INSERT INTO scorer.forest_nodes (model, version, tree, node, cut_dim, cut_value, left_node, right_node, heavy_node, mass, range_sum, boxes)
SELECT %(model)s, %(version)s, %(tree)s, n - 1, nullif(cut_dim, 0), CASE WHEN cut_dim > 0 THEN cut_value END,
       nullif(left_node, -1), nullif(right_node, -1), nullif(heavy_node, -1), mass, range_sum,
       ARRAY(SELECT cube((%(low)s::float8[])[(n - 1) * %(width)s + first : (n - 1) * %(width)s + least(first + 99, %(width)s)],
                         (%(high)s::float8[])[(n - 1) * %(width)s + first : (n - 1) * %(width)s + least(first + 99, %(width)s)])
             FROM generate_series(1, %(width)s, 100) first ORDER BY first)
FROM unnest(%(cut_dims)s::int[], %(cut_values)s::float8[], %(lefts)s::int[], %(rights)s::int[], %(heavies)s::int[], %(masses)s::int[],
            %(range_sums)s::float8[]) WITH ORDINALITY
     AS given (cut_dim, cut_value, left_node, right_node, heavy_node, mass, range_sum, n);

-- name: next_version
SELECT coalesce(max(version), 0) + 1 FROM scorer.models WHERE name = %(model)s;

-- name: add_import
INSERT INTO scorer.models (name, version, state, kind, imported, relation, entity_column, order_column, feature_columns, training_query,
    parameters, trained_at)
VALUES (%(model)s, %(version)s, 'READY', 'imported', %(imported)s, %(relation)s, %(entity)s, %(order)s, %(features)s, '', '{}',
    clock_timestamp());

-- name: copy_imported_nodes
COPY scorer.forest_nodes (model, version, tree, node, cut_dim, cut_value, left_node, right_node, heavy_node, leaf_values, leaf_output)
FROM STDIN;

-- name: write_predictions
INSERT INTO scorer.predictions (model, model_version, source_table, row_key, entity, order_value, outputs, label, seq)
SELECT %(model)s, %(version)s, relation, row_key, entity, order_value,
       (%(outputs)s::float8[])[(n - 1) * %(width)s + 1 : n * %(width)s], (%(classes)s::text[])[(%(labels)s::int[])[n]], seq
FROM pg_temp.batch ORDER BY n
ON CONFLICT (model, model_version, source_table, row_key) DO UPDATE
SET entity = excluded.entity, order_value = excluded.order_value, outputs = excluded.outputs, label = excluded.label, seq = excluded.seq,
    predicted_at = excluded.predicted_at;

-- name: has_watermark
SELECT FROM scorer.watermarks WHERE model = %(model)s AND version = %(version)s AND relation = %(relation)s;

-- name: add_watermark
INSERT INTO scorer.watermarks (model, version, relation, source, deleted_seq, reason, seq, first_seq, old_seq, old_until)
SELECT m.name, m.version, %(relation)s, %(source)s,
       (SELECT coalesce(max(d.seq), 0) FROM warehouse.deleted_rows d WHERE d.source = %(source)s), %(reason)s,
       %(begin)s::bigint, %(begin)s::bigint, CASE WHEN %(behind)s THEN 0 END, CASE WHEN %(behind)s THEN %(begin)s::bigint END
FROM scorer.models m
WHERE m.name = %(model)s AND m.version = %(version)s
  -- Looked up first, because a conflict locks the row even where nothing changes.
  AND NOT EXISTS (
    SELECT FROM scorer.watermarks w
    WHERE w.model = m.name AND w.version = m.version AND w.relation = %(relation)s AND w.source = %(source)s
      AND w.reason IS NOT DISTINCT FROM %(reason)s)
ON CONFLICT (model, version, relation) DO UPDATE SET source = excluded.source, reason = excluded.reason;

-- name: mark_missing
UPDATE scorer.watermarks SET reason = 'the table is gone'
WHERE model = %(model)s AND version = %(version)s AND relation <> ALL (%(relations)s) AND reason IS DISTINCT FROM 'the table is gone';

-- name: create_batch
CREATE TEMP TABLE IF NOT EXISTS batch (
    n integer, relation text COLLATE "C", seq bigint, row_key jsonb, entity text, order_value double precision,
    committed_at timestamptz, features double precision[]
) ON COMMIT DELETE ROWS;

-- name: lock_model
SELECT FROM scorer.models WHERE name = %(model)s AND version = %(version)s AND state IN ('READY', 'SHADOW') FOR SHARE;

-- name: lock_watermarks
SELECT relation, seq, deleted_seq, old_seq, old_until FROM scorer.watermarks
WHERE model = %(model)s AND version = %(version)s AND relation = ANY (%(relations)s)
ORDER BY relation FOR UPDATE;

-- name: follow_deletes
WITH gone AS MATERIALIZED (
    SELECT d.seq, d.key, d.table_name FROM warehouse.deleted_rows d
    WHERE d.source = %(source)s AND d.seq > %(deleted_seq)s
    ORDER BY d.seq LIMIT %(limit)s
), ours AS MATERIALIZED (
    SELECT g.seq, g.key, t.relation FROM gone g
    JOIN unnest(%(table_names)s::text[], %(relations)s::text[]) AS t (table_name, relation) USING (table_name)
), removed AS (
    DELETE FROM scorer.scores s USING ours
    WHERE s.model = %(model)s AND s.model_version = %(version)s AND s.source_table = ours.relation AND s.row_key = ours.key
      AND s.seq < ours.seq
), unpredicted AS (
    DELETE FROM scorer.predictions p USING ours
    WHERE p.model = %(model)s AND p.model_version = %(version)s AND p.source_table = ours.relation AND p.row_key = ours.key
      AND p.seq < ours.seq
), marked AS (
    UPDATE scorer.anomalies a SET status = 'source_deleted', status_at = clock_timestamp()
    FROM ours
    WHERE a.model = %(model)s AND a.model_version = %(version)s AND a.source_table = ours.relation AND a.row_key = ours.key
      AND a.status = 'open' AND a.seq < ours.seq
    RETURNING a.id, a.incident_id
)
SELECT (SELECT count(*) FROM gone), (SELECT max(seq) FROM gone), (SELECT count(*) FROM marked),
       (SELECT coalesce(array_agg(DISTINCT incident_id), '{}') FROM marked WHERE incident_id IS NOT NULL);

-- name: read_batch
SELECT count(*)::int, max(seq), max(committed_at), string_agg(array_send(features), ''::bytea ORDER BY n) FROM pg_temp.batch;

-- name: write_scores
WITH scored AS (
    INSERT INTO scorer.scores (model, model_version, source_table, row_key, entity, order_value, score, seq, reason)
    SELECT %(model)s, %(version)s, relation, row_key, entity, order_value, nullif((%(scores)s::float8[])[n], 'NaN'), seq,
           (%(names)s::text[])[(%(reasons)s::int[])[n]]
    FROM pg_temp.batch ORDER BY n
    ON CONFLICT (model, model_version, source_table, row_key) DO UPDATE
    SET entity = excluded.entity, order_value = excluded.order_value, score = excluded.score, seq = excluded.seq,
        scored_at = excluded.scored_at, reason = excluded.reason
    -- A row that was there before has the mark of the statement that replaced it.
    RETURNING source_table, row_key, score, xmax <> 0 AS again
), cleared AS (
    UPDATE scorer.anomalies a SET status = 'cleared', status_at = clock_timestamp()
    FROM scored s
    WHERE s.again AND s.score <= %(threshold)s
      AND a.model = %(model)s AND a.model_version = %(version)s AND a.source_table = s.source_table AND a.row_key = s.row_key
      AND a.status = 'open'
    RETURNING a.incident_id
)
SELECT count(*), coalesce(array_agg(DISTINCT incident_id) FILTER (WHERE incident_id IS NOT NULL), '{}') FROM cleared;

-- name: clear_rows
WITH cleared AS (
    UPDATE scorer.anomalies a SET status = 'cleared', status_at = clock_timestamp()
    FROM pg_temp.batch b
    WHERE b.n = ANY (%(rows)s::int[])
      AND a.model = %(model)s AND a.model_version = %(version)s AND a.source_table = b.relation AND a.row_key = b.row_key
      AND a.status = 'open'
    RETURNING a.incident_id
)
SELECT count(*), coalesce(array_agg(DISTINCT incident_id) FILTER (WHERE incident_id IS NOT NULL), '{}') FROM cleared;

-- name: read_open_incidents
SELECT i.id, i.entity, i.first_seq, i.last_seq, i.first_order_value, i.last_order_value, i.anomalies, i.ordinary_rows, i.peak_score,
       i.peak_seq, i.peak_order_value, i.first_committed_at, i.last_committed_at
FROM scorer.incidents i
WHERE i.model = %(model)s AND i.model_version = %(version)s AND i.source = %(source)s AND i.closed_at IS NULL
  AND i.entity IN (SELECT b.entity FROM pg_temp.batch b);

-- name: read_batch_rows
SELECT b.n, b.entity, b.seq, b.order_value, b.committed_at FROM pg_temp.batch b
WHERE b.entity = ANY (%(entities)s) OR b.n = ANY (%(abnormal)s)
   OR b.entity IN (SELECT e.entity FROM pg_temp.batch e WHERE e.n = ANY (%(abnormal)s))
ORDER BY b.n;

-- name: reserve_incidents
SELECT nextval(pg_get_serial_sequence('scorer.incidents', 'id')) FROM generate_series(1, %(count)s);

-- name: write_incidents
INSERT INTO scorer.incidents AS i (id, model, model_version, source, entity, first_seq, last_seq, first_order_value,
    last_order_value, anomalies, ordinary_rows, peak_score, peak_seq, peak_order_value, first_committed_at, last_committed_at,
    closed_at, close_reason)
OVERRIDING SYSTEM VALUE
SELECT id, %(model)s, %(version)s, %(source)s, entity, first_seq, last_seq, nullif(first_order, 'NaN'), nullif(last_order, 'NaN'),
       anomalies, ordinary_rows, peak_score, peak_seq, nullif(peak_order, 'NaN'), first_commit, last_commit,
       CASE WHEN closed = 1 THEN statement_timestamp() END, CASE WHEN closed = 1 THEN 'ordinary again' END
FROM unnest(%(ids)s::bigint[], %(entities)s::text[], %(first_seqs)s::bigint[], %(last_seqs)s::bigint[],
            %(first_orders)s::float8[], %(last_orders)s::float8[], %(anomalies)s::bigint[], %(ordinary_rows)s::bigint[],
            %(peaks)s::float8[], %(peak_seqs)s::bigint[], %(peak_orders)s::float8[], %(first_commits)s::timestamptz[],
            %(last_commits)s::timestamptz[], %(closed)s::bigint[])
     AS given (id, entity, first_seq, last_seq, first_order, last_order, anomalies, ordinary_rows, peak_score, peak_seq, peak_order,
               first_commit, last_commit, closed)
-- Incidents that close make room for a new one of the same entity.
ORDER BY closed DESC, id
ON CONFLICT (id) DO UPDATE
SET last_seq = excluded.last_seq, last_order_value = excluded.last_order_value, anomalies = excluded.anomalies,
    ordinary_rows = excluded.ordinary_rows, peak_score = excluded.peak_score, peak_seq = excluded.peak_seq,
    peak_order_value = excluded.peak_order_value, last_committed_at = excluded.last_committed_at, closed_at = excluded.closed_at,
    close_reason = excluded.close_reason;

-- name: write_anomalies
WITH given AS (
    SELECT * FROM unnest(%(rows)s::int[], %(scores)s::float8[], %(thresholds)s::float8[], %(grades)s::float8[], %(directions)s::text[],
                         %(incidents)s::bigint[]) AS t (n, score, threshold, grade, direction, incident_id)
), placed AS (
    INSERT INTO scorer.anomalies AS a (model, model_version, source_table, row_key, entity, order_value, row_committed_at,
        score, threshold, grade, direction, incident_id, seq)
    SELECT %(model)s, %(version)s, b.relation, b.row_key, b.entity, b.order_value, b.committed_at,
           g.score, g.threshold, g.grade, g.direction, g.incident_id, b.seq
    FROM given g JOIN pg_temp.batch b USING (n) ORDER BY g.n
    ON CONFLICT (model, model_version, source_table, row_key) WHERE status = 'open' DO UPDATE
    SET entity = excluded.entity, order_value = excluded.order_value, row_committed_at = excluded.row_committed_at,
        score = excluded.score, threshold = excluded.threshold, grade = excluded.grade, direction = excluded.direction,
        incident_id = excluded.incident_id, seq = excluded.seq, status_at = clock_timestamp()
    RETURNING id, source_table, row_key
)
SELECT b.n, p.id FROM placed p JOIN pg_temp.batch b ON b.relation = p.source_table AND b.row_key = p.row_key ORDER BY b.n;

-- name: clear_features
DELETE FROM scorer.anomaly_features WHERE anomaly_id = ANY (%(anomalies)s::bigint[]);

-- name: write_features
INSERT INTO scorer.anomaly_features (anomaly_id, feature, rank, attribution, strength, direction, value, expected_value)
SELECT anomaly, (%(names)s::text[])[feature], rank, attribution, strength, CASE WHEN high = 1 THEN 'high' ELSE 'low' END,
       nullif(value, 'NaN'), nullif(expected, 'NaN')
FROM unnest(%(anomalies)s::bigint[], %(features)s::int[], %(ranks)s::int[], %(attributions)s::float8[], %(strengths)s::float8[],
            %(highs)s::int[], %(values)s::float8[], %(expected)s::float8[])
     AS given (anomaly, feature, rank, attribution, strength, high, value, expected);

-- name: close_emptied_incidents
UPDATE scorer.incidents i SET closed_at = statement_timestamp(), close_reason = 'anomalies withdrawn'
WHERE i.id = ANY (%(incidents)s::bigint[]) AND i.closed_at IS NULL
  AND NOT EXISTS (SELECT FROM scorer.anomalies a WHERE a.incident_id = i.id AND a.status = 'open')
RETURNING i.id;

-- name: advance_watermarks
UPDATE scorer.watermarks w
SET seq = greatest(w.seq, %(seq)s), deleted_seq = greatest(w.deleted_seq, %(deleted_seq)s), scored_at = statement_timestamp(),
    committed_at = greatest(w.committed_at, %(committed_at)s),
    rows_scored = w.rows_scored + (SELECT count(*) FROM pg_temp.batch b WHERE b.relation = w.relation)
WHERE w.model = %(model)s AND w.version = %(version)s AND w.relation = ANY (%(relations)s);

-- name: has_old
SELECT FROM scorer.watermarks
WHERE model = %(model)s AND version = %(version)s AND relation = ANY (%(relations)s) AND old_seq < old_until;

-- name: advance_old
UPDATE scorer.watermarks w
SET old_seq = least(w.old_until, greatest(w.old_seq, %(seq)s)), scored_at = statement_timestamp(),
    rows_scored = w.rows_scored + (SELECT count(*) FROM pg_temp.batch b WHERE b.relation = w.relation)
WHERE w.model = %(model)s AND w.version = %(version)s AND w.relation = ANY (%(relations)s) AND w.old_seq < w.old_until;

-- name: advance_deletes
UPDATE scorer.watermarks SET deleted_seq = greatest(deleted_seq, %(deleted_seq)s)
WHERE model = %(model)s AND version = %(version)s AND relation = ANY (%(relations)s);

-- name: notify
SELECT pg_notify('anomalies', %(payload)s);

-- name: notify_incidents
SELECT scorer.notify_incident(id, event)
FROM (SELECT unnest(%(opened)s::bigint[]) AS id, 'opened' AS event UNION ALL SELECT unnest(%(closed)s::bigint[]), 'closed') AS changed
ORDER BY id, event DESC;

-- name: prune_scores
DELETE FROM scorer.scores WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM scorer.scores WHERE scored_at < now() - make_interval(secs => %(seconds)s) LIMIT %(limit)s));

-- name: prune_nodes
DELETE FROM scorer.forest_nodes n USING scorer.models m
WHERE m.name = n.model AND m.version = n.version AND m.state = 'RETIRED'
  AND m.version < (SELECT max(k.version) FROM scorer.models k
                   WHERE k.name = m.name AND k.state = 'RETIRED' AND k.trained_at IS NOT NULL);

-- name: has_nodes
SELECT FROM scorer.forest_nodes WHERE model = %(model)s AND version = %(version)s LIMIT 1;

-- name: clear_nodes
DELETE FROM scorer.forest_nodes WHERE model = %(model)s AND version = %(version)s;

-- name: stale_nodes
SELECT FROM scorer.forest_checkpoints c WHERE c.model = %(model)s AND c.version = %(version)s AND c.batch > c.nodes_batch;

-- name: note_nodes
UPDATE scorer.forest_checkpoints SET nodes_batch = %(batch)s, nodes_at = clock_timestamp()
WHERE model = %(model)s AND version = %(version)s;

-- name: count_untried
SELECT count(*) FROM scorer.models WHERE state = 'TRAINING' OR (state = 'PENDING' AND reason IS NULL);

-- name: read_watermarks
SELECT model, version, relation, source, seq, deleted_seq, coalesce(old_seq < old_until, false) FROM scorer.watermarks WHERE reason IS NULL;

-- name: newest_delete
SELECT coalesce(max(seq), 0) FROM warehouse.deleted_rows WHERE source = %(source)s;
