"""Which changes a copy already holds, where it was read as of one position of the source.

Pure: no database, no logging.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replicator.changes import Batch, gtid_runs
from replicator.position import GtidSet, MariaDbGtids, Position, file_number


def leave_out_copied(batch: Batch, rows: NDArray[np.int64], position: Position) -> NDArray[np.int64]:
    """Those of the changes whose transaction is behind the position.

    Args:
        batch: whole transactions or a part of one; the position may lie between them.
        rows: (n,) int64, indexes of changes, ascending.
        position: the end of the last transaction that the copy holds.
    """
    if batch.whole and position.covers(batch.position):
        return rows[:0]
    is_copied = np.array([_is_copied(batch, i, position) for i in range(len(batch.transactions))], np.bool_)
    of = np.searchsorted(batch.transactions["changes_end"], rows, side="right")
    return rows[~is_copied[of]]


def _is_copied(batch: Batch, index: int, position: Position) -> bool:
    transaction = batch.transactions[index]
    if int(transaction["number"]):
        mariadb = isinstance(position.gtids, MariaDbGtids)
        runs = gtid_runs(batch.transactions[index : index + 1], mariadb=mariadb, tags=batch.tags)
        if isinstance(position.gtids, GtidSet):
            return position.gtids.covers(GtidSet().add(runs))
        if isinstance(position.gtids, MariaDbGtids):
            return position.gtids.covers(MariaDbGtids().add(runs))
    file = batch.files[int(transaction["file"])] if batch.files else batch.position.file
    return (file_number(position.file), position.pos) >= (file_number(file), int(transaction["end_pos"]))
