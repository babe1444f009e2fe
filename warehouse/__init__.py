"""The warehouse: what both halves share: settings, errors, log, the Postgres connection, migrations and derived views."""
