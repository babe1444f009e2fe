"""Migration files and the ledger's rules, without a server."""

import hashlib
from pathlib import Path

import pytest

from warehouse.errors import MigrationRefused
from warehouse.migrate import Applied, Migration, find_pending, read_migrations


def make_migration(number: int, name: str = "step", text: str = "SELECT 1;") -> Migration:
    """A migration with the checksum of its text."""
    return Migration(number, name, text, hashlib.sha256(text.encode()).hexdigest())


def as_applied(migration: Migration) -> Applied:
    """The ledger row of a migration."""
    return Applied(migration.number, migration.name, migration.sha256)


def test_shipped_migrations_are_gapless_and_named() -> None:
    """The files of the checkout are numbered from 1 without gaps, and the control schema is the first."""
    migrations = read_migrations()
    assert [migration.number for migration in migrations] == list(range(1, len(migrations) + 1))
    assert str(migrations[0]) == "0001_control"


def test_shipped_migrations_do_not_end_their_transaction() -> None:
    """A COMMIT in a file would break the rule of one transaction per file."""
    for migration in read_migrations():
        first_words = {line.strip().rstrip(";").upper() for line in migration.text.splitlines()}
        assert not first_words & {"COMMIT", "ROLLBACK", "BEGIN TRANSACTION", "START TRANSACTION"}, str(migration)


def test_missing_number_is_refused(tmp_path: Path) -> None:
    """A folder that lacks a number is an incomplete installation."""
    (tmp_path / "0001_a.sql").write_text("SELECT 1;")
    (tmp_path / "0003_b.sql").write_text("SELECT 1;")
    with pytest.raises(MigrationRefused, match="0002 is missing"):
        read_migrations(tmp_path)


def test_number_taken_twice_is_refused(tmp_path: Path) -> None:
    """Two files of one number have no order."""
    (tmp_path / "0001_a.sql").write_text("SELECT 1;")
    (tmp_path / "0001_b.sql").write_text("SELECT 1;")
    with pytest.raises(MigrationRefused, match="taken twice"):
        read_migrations(tmp_path)


@pytest.mark.parametrize("name", ["1_a.sql", "0001-a.sql", "0001_A.sql", "control.sql"])
def test_misnamed_file_is_refused(tmp_path: Path, name: str) -> None:
    """A file whose name is no migration's is not skipped silently."""
    (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(MigrationRefused, match="must be named"):
        read_migrations(tmp_path)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    """No migrations at all means a broken installation, not an up-to-date schema."""
    with pytest.raises(MigrationRefused, match="no migrations"):
        read_migrations(tmp_path)


def test_pending_is_what_the_ledger_lacks() -> None:
    """The applied prefix is skipped, the rest is pending in order."""
    files = [make_migration(number) for number in (1, 2, 3)]
    assert find_pending(files, [as_applied(files[0])]) == files[1:]
    assert find_pending(files, []) == files
    assert find_pending(files, [as_applied(file) for file in files]) == []


def test_changed_file_is_refused_with_what_to_do() -> None:
    """An applied file that changed is named, and the reader is told to write a new one."""
    files = [make_migration(1, text="SELECT 1;"), make_migration(2)]
    applied = [as_applied(make_migration(1, text="SELECT 2;"))]
    with pytest.raises(MigrationRefused, match=r"0001_step\.sql is not the file") as caught:
        find_pending(files, applied)
    assert "new migration" in caught.value.hint
    assert caught.value.exit_code == 3


def test_unknown_newer_entry_is_refused() -> None:
    """A warehouse that a newer version migrated is not touched by an older one."""
    files = [make_migration(1)]
    with pytest.raises(MigrationRefused, match="0002_later, which this version does not know"):
        find_pending(files, [as_applied(files[0]), Applied(2, "later", "0" * 64)])


def test_gap_in_the_ledger_is_refused() -> None:
    """A ledger without an earlier number does not tell what state the schema is in."""
    files = [make_migration(1), make_migration(2)]
    with pytest.raises(MigrationRefused, match="not migration 0001"):
        find_pending(files, [as_applied(files[1])])
