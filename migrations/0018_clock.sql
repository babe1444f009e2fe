-- The source's clock: commit times are by it, so lag is told with the difference to the clock of this server.

ALTER TABLE warehouse.sources ADD COLUMN clock_offset_ms double precision;
COMMENT ON COLUMN warehouse.sources.clock_offset_ms IS
    'how far the source''s clock is ahead of this server''s; measured once a minute while the source is followed';

CREATE OR REPLACE VIEW warehouse.status AS
SELECT s.source, s.state, s.reason, s.since,
       CASE WHEN s.heard_at < now() - make_interval(secs => 3 * s.heartbeat_s)
            THEN extract(epoch FROM now() - s.heard_at) * 1000 + coalesce(s.lag_ms, 0)
            ELSE s.lag_ms END AS lag_ms,
       coalesce(c.gtid_set, c.file || ':' || c.pos) AS position,
       c.file, c.pos, c.seq, c.committed_at, c.applied_at, s.heard_at,
       r.binlog_runway,
       count(t.*) AS tables,
       count(t.*) FILTER (WHERE t.state = 'Synced') AS tables_synced,
       count(t.*) FILTER (WHERE t.state IN ('Failed', 'ResyncRequired')) AS tables_in_trouble,
       s.flavor, s.server_version, s.server,
       CASE WHEN r.binlog_runway < interval '0'
            THEN 'the source may have deleted what is not applied yet: start the replicator, it says'
            WHEN r.binlog_runway < least(interval '1 day', make_interval(secs => s.binlog_expire_s / 2.0))
            THEN 'the source deletes what is not applied yet in '
                 || round(extract(epoch FROM r.binlog_runway) / 3600, 1) || ' hours' END AS warning,
       s.clock_offset_ms
FROM warehouse.sources s
LEFT JOIN warehouse.checkpoint c USING (source)
LEFT JOIN warehouse.tables t USING (source)
CROSS JOIN LATERAL (
    SELECT make_interval(secs => s.binlog_expire_s
        - CASE WHEN s.lag_ms > 0 OR s.heard_at < now() - make_interval(secs => 3 * s.heartbeat_s)
               THEN greatest(0, coalesce(
                   extract(epoch FROM now() - c.committed_at) + coalesce(s.clock_offset_ms, 0) / 1000,
                   extract(epoch FROM now() - c.applied_at))) ELSE 0 END
    ) AS binlog_runway
) r
GROUP BY s.source, c.source, r.binlog_runway;
COMMENT ON VIEW warehouse.status IS
    'one row per source: state, lag, position, how long the binlog still reaches back, and a warning before it does not';
