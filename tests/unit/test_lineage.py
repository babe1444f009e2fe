"""Heads of binlog files, and the servers of a source by name."""

import pytest

from replicator.lineage import is_same_head, is_whole_head
from warehouse.errors import SettingsError
from warehouse.settings import SourceSettings
from warehouse.settings_file import load_settings


@pytest.mark.parametrize(
    ("saved", "found", "same"),
    [
        ("1 aa 2:bb", "1 aa 2:bb", True),
        ("1 aa", "1 aa 2:bb", True),
        ("1 aa 2:bb", "1 aa", True),
        ("1 aa 2:bb", "1 aa 2:cc", False),
        ("1 aa", "2 aa", False),
        ("1 - 2:bb", "1 aa 2:bb", False),
    ],
)
def test_heads(saved: str, found: str, same: bool) -> None:
    """What both know must agree; what was not there yet says nothing."""
    assert is_same_head(saved, found) is same


def test_whole_heads() -> None:
    """A head is whole once it names the first transaction."""
    assert is_whole_head("1 aa 2:bb")
    assert not is_whole_head("1 aa")
    assert not is_whole_head("")


def test_servers() -> None:
    """Hosts goes over host; a port of its own where one is named."""
    assert SourceSettings(host="a", port=1).servers == (("a", 1),)
    names = ("a", "b.example:7", "[::1]:8", "[::2]")
    assert SourceSettings(hosts=names, port=1).servers == (("a", 1), ("b.example", 7), ("::1", 8), ("::2", 1))
    assert load_settings(None, {"TAILRACE__SOURCE__HOSTS": "a, b:2"}).source.servers == (("a", 3306), ("b", 2))
    for wrong in ("a:b", "a b", "::1", "", "a:"):
        with pytest.raises(SettingsError):
            load_settings(None, {"TAILRACE__SOURCE__HOSTS": f"x,{wrong}" if wrong else "x:"})
