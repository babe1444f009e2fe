"""What the stream's side tells the tables' states."""

import threading
from types import SimpleNamespace
from typing import Any

from replicator.chooser import TableChooser
from replicator.errors import EventSkipped


def test_distrust_waits_for_a_commit() -> None:
    """States are set with the lock held that a commit holds from their writing on until they count as written."""
    lock, seen = threading.RLock(), []
    tables = [SimpleNamespace(name=state, state=state) for state in ("Synced", "Failed", "Snapshotting")]

    def require_resync(table: Any, problem: Any) -> None:
        # only another thread can tell whether this one has the lock
        other = threading.Thread(target=lambda: seen.append((table.name, lock.acquire(blocking=False))))
        other.start()
        other.join()

    registry: Any = SimpleNamespace(lock=lock, by_number=tables, require_resync=require_resync)
    TableChooser(registry).distrust(EventSkipped("an event was skipped"))
    assert seen == [("Synced", False), ("Snapshotting", False)]
