"""Common ground of all tests: a clean environment and the fixtures for real servers."""

import os

import pytest
from hypothesis import settings

# Settings of the person who runs the tests must not reach the code under test, at its import neither.
for _name in [name for name in os.environ if name.startswith("TAILRACE__")]:
    del os.environ[_name]

# The same examples each time, so that a failure is the change's own; TAILRACE_EXPLORE looks for new ones.
settings.register_profile("same", derandomize=True, database=None)
settings.register_profile("explore", derandomize=False)
settings.load_profile("explore" if "TAILRACE_EXPLORE" in os.environ else "same")

# Its assertions say what differs, as those in a test do.
pytest.register_assert_rewrite("tests.oracle")

pytest_plugins = ["tests.fixtures.servers", "tests.fixtures.plant", "tests.fixtures.pipeline", "tests.fixtures.views"]

# Here the run on MariaDB shows little that the one on MySQL, and other tests on MariaDB, do not show, unless a test is marked.
_ON_MYSQL_FIRST = frozenset(
    {
        "test_check", "test_connection", "test_copies", "test_ddl_during_copies", "test_demo", "test_exit_codes",
        "test_failover", "test_history", "test_key_range", "test_keyless", "test_load", "test_locks", "test_lost_position",
        "test_operator", "test_quarantine", "test_refresh", "test_replication", "test_schema_changes", "test_servers",
        "test_set_aside", "test_source_ddl", "test_verify", "test_verify_command", "test_warehouse_faults", "test_selection",
        "test_table_states",
    }
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    """Everything, too, that a change is not held up for."""
    parser.addoption("--all", action="store_true", dest="everything", help="run the long tests, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long and shows little more; naming tests, or --all, runs them."""
    if config.getoption("everything") or config.getoption("keyword") or any("::" in argument for argument in config.args):
        return
    left_out = [item for item in items if _is_long(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _is_long(item)]


def _is_long(item: pytest.Item) -> bool:
    if item.get_closest_marker("long") is not None:
        return True
    if item.get_closest_marker("both") is not None:
        return False
    return item.path.stem in _ON_MYSQL_FIRST and "mariadb" in item.name.partition("[")[2]
