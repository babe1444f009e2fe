"""How far each derived view is complete: the rows of warehouse.view_watermarks and what they are computed from.

Owns change markers of inputs and the positions that follow from a snapshot of the control tables.
Never refreshes a view. Every read here belongs to one REPEATABLE READ transaction, or the watermarks would lie.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from warehouse.db import Connection, qualified
from warehouse.views import QUERIES, Input, View, ViewFile

_JSON = ("positions", "inputs", "grants")


@dataclass
class Watermark:
    """One row of warehouse.view_watermarks; instants are aware UTC."""

    view: str
    state: str = "Pending"
    reason: str | None = None
    complete_to: datetime | None = None
    positions: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str | None] = field(default_factory=dict)
    refreshed_at: datetime | None = None
    duration_ms: float | None = None
    refreshes: int = 0
    failures: int = 0
    retry_at: datetime | None = None
    checksum: str | None = None
    file: str | None = None
    tried: str | None = None
    grants: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Mirror:
    """What the control tables say about one mirror table."""

    source: str
    state: str
    is_partial: bool
    counter: str


class Ledger:
    """All watermarks, and the control tables that they follow from, as the transaction at hand sees them."""

    def __init__(self, conn: Connection) -> None:
        conn.execute(QUERIES["fold_changes"])
        self.conn = conn
        self.marks = {row[0]: Watermark(*row) for row in conn.execute(QUERIES["read_watermarks"])}
        self._saved = {name: replace(mark) for name, mark in self.marks.items()}
        self.mirrors = {row[0]: Mirror(*row[1:]) for row in conn.execute(QUERIES["read_mirrors"])}
        self.watched: dict[int, int] = {row[0]: row[1] for row in conn.execute(QUERIES["read_watched"])}
        self.checkpoints = {
            source: {"seq": seq, "position": position, "committed_at": None if at is None else at.isoformat()}
            for source, seq, position, at in conn.execute(QUERIES["read_checkpoints"])
        }

        self._scored: dict[str, Any] | None = None

    def read_scored(self) -> dict[str, Any]:
        """Per source, the position up to which every model that scores has scored every table of its own."""
        if self._scored is None:
            self._scored = {}
            for relation, source, table_name, seq, deleted_seq, committed_at in self.conn.execute(
                QUERIES["read_scored"]
            ).fetchall():
                unscored = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE _seq > %s)").format(qualified(relation))
                keys = {"source": source, "table_name": table_name, "deleted_seq": deleted_seq}
                rows = self.conn.execute(unscored, (seq,)).fetchone()
                deletes = self.conn.execute(QUERIES["read_unscored"], keys).fetchone()
                if rows == deletes == (False,) and source in self.checkpoints:
                    position = self.checkpoints[source]
                else:
                    # The last row scored may have company in its transaction that is not scored yet.
                    before = None if committed_at is None else (committed_at - timedelta(microseconds=1)).isoformat()
                    position = {"seq": min(seq, deleted_seq), "position": None, "committed_at": before}
                _lower(self._scored, source, position)
        return self._scored

    def mark_of(self, file: ViewFile) -> Watermark:
        """The watermark of a file's view, a new one where there is none."""
        mark = self.marks.setdefault(file.view, Watermark(file.view))
        mark.file = file.path
        return mark

    def has_view(self, name: str) -> bool:
        """Whether a view of this name was made from a file."""
        return name in self.marks and self.marks[name].checksum is not None

    def read_markers(self, view: View) -> dict[str, str | None]:
        """The change marker of each input; None where changes of an input cannot be known."""
        return {entry.name: self._read_marker(entry) for entry in view.inputs}

    def _read_marker(self, entry: Input) -> str | None:
        if entry.name in self.mirrors:
            return f"{entry.oid}/{self.mirrors[entry.name].counter}"
        if entry.is_view:
            return f"{entry.oid}/{self.marks[entry.name].refreshes}" if self.has_view(entry.name) else None
        return f"{entry.oid}/{self.watched[entry.oid]}" if entry.oid in self.watched else None

    def has_changed(self, view: View) -> bool:
        """Whether an input changed since the view was refreshed; also true where that cannot be known."""
        now = self.read_markers(view)
        return now != self.marks[view.name].inputs or None in now.values()

    def stand(self, view: View) -> None:
        """Write into the view's watermark how far it is complete, now that its content fits its inputs."""
        mark = self.marks[view.name]
        positions: dict[str, Any] = {}
        open_points: list[str] = []
        open_sources: set[str] = set()
        for entry in view.inputs:
            mirror = self.mirrors.get(entry.name)
            if mirror is not None:
                if mirror.state != "Synced" or mirror.is_partial:
                    what = "catching up after its snapshot" if mirror.state == "Synced" else mirror.state
                    open_points.append(f"{entry.name} is {what}")
                    open_sources.add(mirror.source)
                elif mirror.source in self.checkpoints:
                    _lower(positions, mirror.source, self.checkpoints[mirror.source])
            elif entry.is_view:
                below = self.marks.get(entry.name) if self.has_view(entry.name) else None
                if below is None or below.state == "Incomplete":
                    open_points.append(f"{entry.name} is {'not refreshed by Tailrace' if below is None else below.state}")
                if below is not None:
                    for source, position in below.positions.items():
                        _lower(positions, source, position)
            elif entry.name.startswith("scorer."):
                for source, position in self.read_scored().items():
                    _lower(positions, source, position)
        mark.positions = {source: position for source, position in positions.items() if source not in open_sources}
        moments = [position["committed_at"] for position in mark.positions.values()]
        mark.complete_to = None
        if moments and None not in moments and not open_points:
            mark.complete_to = min(map(datetime.fromisoformat, moments))
        mark.state = "Incomplete" if open_points else "Ready"
        mark.reason = "; ".join(open_points) or None
        mark.failures, mark.retry_at = 0, None

    def save(self) -> list[Watermark]:
        """Write the watermarks that changed; returns those whose state or reason is new."""
        news = []
        for name, mark in self.marks.items():
            saved = self._saved.get(name)
            if saved == mark:
                continue
            values = {key: Jsonb(value) if key in _JSON else value for key, value in asdict(mark).items()}
            self.conn.execute(QUERIES["write_watermark"], values)
            if saved is None or (saved.state, saved.reason) != (mark.state, mark.reason):
                news.append(mark)
        return news


def _lower(positions: dict[str, Any], source: str, position: dict[str, Any]) -> None:
    if source not in positions or position["seq"] < positions[source]["seq"]:
        positions[source] = position
