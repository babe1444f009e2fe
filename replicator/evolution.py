"""Decides what an ALTER TABLE does to a mirror: which changes give the same values in place, and which need a copy.

The statement says what is changed; what it leaves open (the value of a default, a character set that is inherited) only the
source can say, and the source answers for now, which may be later than the statement. So such an answer is marked with the
position up to which it is doubtful. Whatever cannot be proven exact raises CopyNeeded. Asks the source through its caller only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from replicator.alter import Clause
from replicator.arrangement import CopyNeeded, Entry, arrange_columns
from replicator.column_facts import Facts
from replicator.definition import ColumnType, Definition, parse_type
from replicator.mirror import MirrorColumn, MirrorTable
from replicator.position import Position
from replicator.type_change import (
    IMPLICIT,
    MOST_CHARACTER_BYTES,
    TEXT_BYTES,
    WITH_CHARSET,
    agree,
    evaluate,
    find_mirror_type,
    holds,
    is_same,
)
from replicator.typemap import BINARY, KINDS, OWN_COLUMNS, ROW_HASH, mirror_identifier

# Every character of any other set is in these.
_UNIVERSAL = frozenset({"utf8mb4", "utf16", "utf16le", "utf32"})


@dataclass
class Evolution:
    """What is to be done to a mirror, in this order.

    Attributes:
        columns, key: as the table is afterwards.
        nulls, zeros, raws: mirror names of columns that must be free of NULL, of 0, and of values in _raw; else copy.
        gone: mirror names of columns that the source dropped.
        renamed: old and new mirror name. retyped: mirror name and type. added: mirror name, type, and the value as text.
        moves_key: rows are named by other columns than before.
        doubtful_until: the source was asked up to here, which is behind the statement; None where nothing is in doubt.
    """

    columns: list[MirrorColumn] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    nulls: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)
    raws: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    retyped: list[tuple[str, str]] = field(default_factory=list)
    added: list[tuple[str, str, str | None]] = field(default_factory=list)
    moves_key: bool = False
    doubtful_until: Position | None = None

    @property
    def touches_mirror(self) -> bool:
        """Whether anything is to be done in Postgres."""
        return bool(
            self.nulls or self.zeros or self.raws or self.gone or self.renamed or self.retyped or self.added or self.moves_key
        )


def plan_evolution(
    table: MirrorTable, clauses: Sequence[Clause], ask: Callable[[], Facts | None], at: Position, *, mariadb: bool
) -> Evolution:
    """What these clauses do to a mirror.

    Args:
        table: as it was before.
        ask: the source's answers about the table, as it is now; None where it has no such table.
        at: the position behind the statement.

    Raises:
        CopyNeeded: the table must be copied afresh.
    """
    return _Planner(table, ask, at, mariadb).plan(clauses)


class _Planner:
    def __init__(self, table: MirrorTable, ask: Callable[[], Facts | None], at: Position, mariadb: bool) -> None:
        self._table, self._ask, self._at, self._mariadb = table, ask, at, mariadb
        self._facts: Facts | None = None
        self._done = Evolution()

    def plan(self, clauses: Sequence[Clause]) -> Evolution:
        entries, gone = arrange_columns(self._table, clauses)
        done = self._done
        done.gone = [column["mirror_name"] for column in gone]
        done.columns = [self._follow(entry) for entry in entries]
        done.key = self._key(clauses, entries)
        own = OWN_COLUMNS if self._table.key else OWN_COLUMNS | {ROW_HASH}
        if len({column["mirror_name"] for column in done.columns} - own) < len(done.columns):
            raise CopyNeeded("two of its columns would have the same name in the mirror")
        names = {old["name"]: entry.name for entry in entries if (old := entry.old) is not None}
        before = self._table.key
        done.moves_key = [names.get(name) for name in before] != before or set(done.key) != set(before)
        if not self._table.key:
            self._check_keyless(done)
        facts = self._facts
        if facts is not None and facts.is_current(self._at):
            self._compare(facts)
            done.doubtful_until = None
        return done

    def _follow(self, entry: Entry) -> MirrorColumn:
        if entry.old is None:
            return self._add(entry)
        column = dict(entry.old)
        if entry.charset:
            self._convert(column, entry.charset)
        if entry.definition is not None:
            self._change(column, entry.definition)
        if entry.name != column["name"]:
            column["name"], column["mirror_name"] = entry.name, mirror_identifier(entry.name)
            if column["mirror_name"] != entry.old["mirror_name"]:
                self._done.renamed.append((entry.old["mirror_name"], column["mirror_name"]))
        if column["mirror_type"] != entry.old["mirror_type"]:
            self._done.retyped.append((column["mirror_name"], column["mirror_type"]))
        return column

    # ------------------------------------------------------------------------------------------------ new columns
    def _add(self, entry: Entry) -> MirrorColumn:
        definition, name = entry.definition, entry.name
        assert definition is not None, "what is added has a definition"
        mirror_type = find_mirror_type(definition.type)
        if mirror_type is None:
            raise CopyNeeded(f"column {name} of the type {definition.type.text} is new")
        charset = definition.type.charset
        value = self._value(name, definition)
        if not charset and self._facts is not None and name in self._facts.columns:
            charset = self._facts.columns[name].charset
        column = {
            "name": name, "mirror_name": mirror_identifier(name), "source_type": definition.type.text,
            "mirror_type": mirror_type, "charset": charset,
        }  # fmt: skip
        self._done.added.append((column["mirror_name"], mirror_type, value))
        return column

    def _value(self, name: str, definition: Definition) -> str | None:
        """What the new column holds in the rows that are there."""
        if not definition.is_constant:
            raise CopyNeeded(f"column {name} is new, and the source computes its values")
        base = definition.type.base
        if definition.is_null or (not definition.has_default and definition.nullable is True):
            return None
        if not definition.has_default and base == "timestamp" and definition.nullable is None:
            # the session decides whether it may be NULL
            raise CopyNeeded(f"column {name} is new, and whether it may be NULL is not said")
        if not definition.has_default and definition.nullable is None:
            return None
        if not definition.has_default:
            implicit = definition.type.labels[0] if base == "enum" else IMPLICIT.get(base)
            if implicit is None:
                raise CopyNeeded(f"column {name} is new, without a default that could be read")
            return implicit
        facts = self._read_facts()
        there = facts.columns.get(name)
        default = facts.defaults.get(name)
        plain = evaluate(definition)
        if plain is not None and (default is None or not agree(definition.default, default.text)):
            return plain
        if (
            there is None
            or default is None
            or not is_same(parse_type(there.source_type, mariadb=self._mariadb), definition.type)
        ):
            raise CopyNeeded(f"column {name} is new, and was altered again since")
        if default.value is None:
            raise CopyNeeded(f"column {name} is new, and its default cannot be read from the source")
        if not agree(definition.default, default.text):
            self._done.doubtful_until = facts.position
        return default.value

    # ------------------------------------------------------------------------------------------------ changed columns
    def _change(self, column: MirrorColumn, definition: Definition) -> None:
        """Another definition for a column; the mirror keeps its values only where the source does."""
        name = column["name"]
        old, new = parse_type(column["source_type"], mariadb=self._mariadb), definition.type
        if definition.generated or column.get("generated"):
            raise CopyNeeded(f"column {name} is computed by the source")
        if old is None or not holds(old, new):
            raise CopyNeeded(f"column {name} is now {new.text}, was {column['source_type']}")
        mirror_type = find_mirror_type(new)
        if mirror_type is None:
            raise CopyNeeded(f"column {name} is now {new.text}")
        changed = not is_same(old, new)
        if KINDS[new.base] in WITH_CHARSET and not all(label.isascii() for label in new.labels or ("ä",)):
            charset = new.charset or self._inherited(name, definition)
            if charset != column.get("charset"):
                self._check_charset(column, charset, new)
                column["charset"], changed = charset, True
        if changed:
            if any(each.get("generated") for each in self._table.columns):
                raise CopyNeeded(f"column {name} is now {new.text}, and the source computes others, perhaps from it")
            self._done.raws.append(column["mirror_name"])
        if (
            not definition.nullable
            and (definition.nullable is False or new.base == "timestamp")
            and name not in self._table.key
        ):
            self._done.nulls.append(column["mirror_name"])
        if definition.counts:
            self._done.zeros.append(column["mirror_name"])
        column["source_type"], column["mirror_type"] = new.text, mirror_type

    def _inherited(self, name: str, definition: Definition) -> str:
        """The character set that the table gives a column whose definition names none."""
        facts = self._read_facts()
        there = next((column for column in facts.columns.values() if column.name.lower() == name.lower()), None)
        if there is None:
            raise CopyNeeded(f"column {name} has a character set that is not known")
        self._done.doubtful_until = facts.position
        return there.charset

    def _convert(self, column: MirrorColumn, charset: str) -> None:
        """CONVERT TO CHARACTER SET, for one column."""
        kind = parse_type(column["source_type"], mariadb=self._mariadb)
        if kind is None:
            raise CopyNeeded(f"column {column['name']} has the type {column['source_type']}")
        if KINDS[kind.base] not in WITH_CHARSET:
            return
        if column.get("charset") == charset:
            return
        self._check_charset(column, charset, None)
        column["charset"] = charset
        self._done.raws.append(column["mirror_name"])

    def _check_charset(self, column: MirrorColumn, charset: str, new: ColumnType | None) -> None:
        """Whether every text stays the same in another character set."""
        old = column.get("charset", "")
        if not old or old == BINARY or not (charset in _UNIVERSAL or (old == "ascii" and charset != BINARY)):
            raise CopyNeeded(f"column {column['name']} has the character set {charset} now, had {old or 'an unknown one'}")
        if new is not None and new.base in TEXT_BYTES:
            before = parse_type(column["source_type"], mariadb=self._mariadb)
            assert before is not None, "it was looked at before"
            if TEXT_BYTES[new.base] < MOST_CHARACTER_BYTES * TEXT_BYTES.get(before.base, 0):
                raise CopyNeeded(f"column {column['name']} may be too short for its texts in {charset}")

    # ------------------------------------------------------------------------------------------------ keys, all together
    def _key(self, clauses: Sequence[Clause], entries: Sequence[Entry]) -> list[str]:
        keys = [clause for clause in clauses if clause.verb == "key"]
        if not keys:
            now = {entry.old["name"]: entry.name for entry in entries if entry.old is not None}
            key = [now[name] for name in self._table.key]
            if any(clause.verb == "index" for clause in clauses) and not _same_names(self._read_facts().key, key):
                raise CopyNeeded("the source's indexes changed, and with them its key")
            return key
        if not keys[-1].columns or not self._table.key:
            raise CopyNeeded("it has a key now, or none any more")
        names = {entry.name.lower(): entry for entry in entries}
        key = []
        for column in keys[-1].columns:
            entry = names.get(column.lower())
            if entry is None or entry.old is None:
                raise CopyNeeded("a new column is its key")
            key.append(entry.name)
            self._done.raws.append(entry.old["mirror_name"])
            if entry.old["name"] not in self._table.key:
                self._done.nulls.append(entry.old["mirror_name"])
        return key

    def _check_keyless(self, done: Evolution) -> None:
        """The rows of a table without a key are found by a hash of all their values, in order."""
        before = [column["mirror_type"] for column in self._table.columns]
        if done.gone or done.added or before != [column["mirror_type"] for column in done.columns]:
            raise CopyNeeded("it has no key, and its columns changed")
        renamed, names = dict(done.renamed), [column["mirror_name"] for column in self._table.columns]
        if [renamed.get(name, name) for name in names] != [column["mirror_name"] for column in done.columns]:
            raise CopyNeeded("it has no key, and its columns have another order")
        done.raws += [old for old, _ in done.renamed]
        done.moves_key = False

    def _read_facts(self) -> Facts:
        if self._facts is None:
            self._facts = self._ask()
        if self._facts is None:
            raise CopyNeeded("the source has no such table any more")
        return self._facts

    def _compare(self, facts: Facts) -> None:
        """Nothing was committed since the statement, so the source must say the same as the text."""
        said = [(column["name"], column["mirror_type"]) for column in self._done.columns]
        if said != [(column.name, column.mirror_type) for column in facts.columns.values()]:
            raise CopyNeeded("its columns are others than the statement says")


def _same_names(first: Sequence[str], second: Sequence[str]) -> bool:
    return {name.lower() for name in first} == {name.lower() for name in second}
