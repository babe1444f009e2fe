"""Migrations on a real Postgres."""

import shutil
import threading
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from tests.fixtures.servers import Database
from warehouse.db import Connection, connect
from warehouse.errors import MigrationRefused, SchemaOutdated, WarehouseRefused
from warehouse.migrate import (
    default_directory,
    migrate_schema,
    plan_migrations,
    read_ledger,
    read_migrations,
    require_migrations,
    set_search_path,
)
from warehouse.settings import WarehouseSettings


def read_schema(conn: Connection) -> list[tuple[object, ...]]:
    """Every column, function, constraint, index and trigger that is not the system's, as text."""
    return conn.execute(
        """SELECT 'column', n.nspname || '.' || c.relname || '.' || a.attname,
                  format_type(a.atttypid, a.atttypmod) || a.attnotnull || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
           FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
           LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
           WHERE n.nspname IN ('warehouse', 'scorer', 'analytics') AND a.attnum > 0
           UNION ALL
           SELECT 'function', p.oid::regprocedure::text, md5(pg_get_functiondef(p.oid))
           FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname IN ('warehouse', 'scorer', 'analytics')
           UNION ALL
           SELECT 'constraint', k.conrelid::regclass || '.' || k.conname, pg_get_constraintdef(k.oid)
           FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace
           WHERE n.nspname IN ('warehouse', 'scorer', 'analytics')
           UNION ALL
           SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname IN ('warehouse', 'scorer', 'analytics')
           UNION ALL
           SELECT 'trigger', tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
           ORDER BY 1, 2, 3"""
    ).fetchall()


def test_migrates_from_nothing_and_then_has_nothing_to_do(empty_warehouse: Connection) -> None:
    """The first run applies every file and the extension; the second applies none."""
    applied = migrate_schema(empty_warehouse)
    assert applied == read_migrations()
    assert [entry.sha256 for entry in read_ledger(empty_warehouse)] == [migration.sha256 for migration in applied]
    assert empty_warehouse.execute("SELECT cube(1) IS NOT NULL").fetchone() == (True,)
    assert migrate_schema(empty_warehouse) == []
    require_migrations(empty_warehouse)


def test_from_every_earlier_state_to_the_newest(database: Database, tmp_path: Path, empty_warehouse: Connection) -> None:
    """Stopping after each file and going on later ends in the same schema as one go."""
    names = sorted(path.name for path in default_directory().glob("*.sql"))
    migrate_schema(empty_warehouse)
    expected = read_schema(empty_warehouse)
    for count in range(1, len(names)):
        empty_warehouse.execute("DROP SCHEMA scorer, warehouse, analytics CASCADE")
        for name in names:
            (tmp_path / name).unlink(missing_ok=True)
        for name in names[:count]:
            shutil.copy(default_directory() / name, tmp_path)
        migrate_schema(empty_warehouse, tmp_path)
        with pytest.raises(SchemaOutdated, match=f"lacks {len(names) - count} migration"):
            require_migrations(empty_warehouse)
        migrate_schema(empty_warehouse)
        assert read_schema(empty_warehouse) == expected


def test_plan_changes_nothing(empty_warehouse: Connection) -> None:
    """A plan on an empty database names every file and leaves the database without a schema of ours."""
    assert plan_migrations(empty_warehouse) == read_migrations()
    assert empty_warehouse.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'warehouse'").fetchone() == (0,)


def test_two_at_once_apply_each_file_once(warehouse_settings: WarehouseSettings) -> None:
    """Two processes that migrate at the same moment both succeed, and one of them finds nothing to do."""
    counts: list[int] = []
    start = threading.Barrier(2)

    def work() -> None:
        with connect(warehouse_settings, "tests") as conn:
            start.wait()
            counts.append(len(migrate_schema(conn)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [0, len(read_migrations())]


def test_failing_file_leaves_nothing_of_itself(empty_warehouse: Connection, tmp_path: Path) -> None:
    """What stands before a failing statement is undone with it, the files before it stay, and mending it goes on from there."""
    (tmp_path / "0001_good.sql").write_text("CREATE TABLE warehouse.good (id int);")
    (tmp_path / "0002_bad.sql").write_text("CREATE TABLE warehouse.half (id int); SELECT 1 / 0;")
    with pytest.raises(MigrationRefused, match=r"0002_bad\.sql failed: division by zero"):
        migrate_schema(empty_warehouse, tmp_path)
    assert empty_warehouse.execute(
        "SELECT to_regclass('warehouse.good') IS NOT NULL, to_regclass('warehouse.half')"
    ).fetchone() == (
        True,
        None,
    )
    assert [str(entry) for entry in read_ledger(empty_warehouse)] == ["0001_good"]
    (tmp_path / "0002_bad.sql").write_text("CREATE TABLE warehouse.half (id int);")
    assert [str(migration) for migration in migrate_schema(empty_warehouse, tmp_path)] == ["0002_bad"]


def test_changed_file_is_refused_before_anything_runs(empty_warehouse: Connection, tmp_path: Path) -> None:
    """With a changed applied file the new one is not applied either, and a service does not start."""
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE warehouse.first (id int);")
    migrate_schema(empty_warehouse, tmp_path)
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE warehouse.first (id bigint);")
    (tmp_path / "0002_second.sql").write_text("CREATE TABLE warehouse.second (id int);")
    for refuse in (migrate_schema, plan_migrations, require_migrations):
        with pytest.raises(MigrationRefused, match="not the file that was applied"):
            refuse(empty_warehouse, tmp_path)
    assert empty_warehouse.execute("SELECT to_regclass('warehouse.second')").fetchone() == (None,)


def test_search_path_reaches_other_sessions(warehouse: Connection, database: Database) -> None:
    """A plain session of the database finds tables of the control schema without naming it."""
    assert set_search_path(warehouse) is None
    with database.connect() as session:
        assert session.execute("SELECT count(*) FROM schema_migrations").fetchone() == (len(read_migrations()),)


def test_search_path_of_the_database_is_lengthened_not_replaced(warehouse: Connection, database: Database) -> None:
    """What somebody set for the database before stays in front."""
    warehouse.execute(f'ALTER DATABASE {database.name} SET search_path = "$user", public, mine')
    assert set_search_path(warehouse) is None
    with database.connect() as session:
        assert session.execute("SHOW search_path").fetchone() == ('"$user", public, mine, warehouse, scorer, analytics',)


def test_role_without_rights_gets_the_statement_that_gives_them(
    warehouse: Connection, database: Database, warehouse_settings: WarehouseSettings
) -> None:
    """A role that owns nothing is told what the owner has to run, for the schema as for the search path."""
    name = f"reader_{database.name}"
    warehouse.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    warehouse.execute("DROP SCHEMA scorer, warehouse, analytics CASCADE; DROP EXTENSION cube")
    settings = warehouse_settings.model_copy(update={"user": name, "password": SecretStr("secret")})
    try:
        with connect(settings, "tests") as conn:
            with pytest.raises(WarehouseRefused) as caught:
                migrate_schema(conn)
            assert f"OWNER TO {name}" in caught.value.hint
            statement = set_search_path(conn)
            assert statement is not None
            assert statement.startswith(f'ALTER DATABASE "{database.name}" SET search_path')
    finally:
        warehouse.execute(f"DROP ROLE {name}")


def test_owner_without_superuser_rights_suffices(database: Database, warehouse_settings: WarehouseSettings) -> None:
    """The database's owner, an ordinary role, can do everything that migrating needs, the extension included."""
    name = f"owner_{database.name}"
    with database.connect(autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
        admin.execute(f"ALTER DATABASE {database.name} OWNER TO {name}")
    settings = warehouse_settings.model_copy(update={"user": name, "password": SecretStr("secret")})
    try:
        with connect(settings, "tests") as conn:
            assert migrate_schema(conn) == read_migrations()
            assert set_search_path(conn) is None
    finally:
        with database.connect(autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {database.name} OWNER TO {psycopg.sql.Identifier(database.user).as_string(admin)}")
            admin.execute(f"DROP OWNED BY {name}")
            admin.execute(f"DROP ROLE {name}")


def test_missing_extension_is_a_clear_refusal(empty_warehouse: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension that the server does not have is named, with the package that brings it, and nothing is left behind."""
    monkeypatch.setattr("warehouse.migrate.EXTENSIONS", ("no_such_extension",))
    with pytest.raises(MigrationRefused, match="no_such_extension is not available") as caught:
        migrate_schema(empty_warehouse)
    assert "contrib" in caught.value.hint
    assert read_ledger(empty_warehouse) == []
