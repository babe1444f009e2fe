"""The replicator: reads a MySQL or MariaDB binlog and keeps an exact copy of the matching tables in Postgres."""
