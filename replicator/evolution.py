"""Decides what an ALTER TABLE does to a mirror: which changes give the same values in place, and which need a copy.

The statement says what is changed; what it leaves open (the value of a default, a character set that is inherited) only the
source can say, and the source answers for now, which may be later than the statement. So such an answer is marked with the
position up to which it is doubtful. Whatever cannot be proven exact raises CopyNeeded. Asks the source through its caller only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation

from replicator.alter import Clause, ColumnType, Definition, parse_type
from replicator.column_facts import Facts
from replicator.mirror import MirrorColumn, MirrorTable
from replicator.position import Position
from replicator.typemap import BINARY, KINDS, OWN_COLUMNS, ROW_HASH, UUID_WIDTH, Column, Kind, mirror_identifier

_RANGES = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
# Of what a text type holds, in characters or bytes.
_TEXT_BYTES = {"tinytext": 255, "text": 65_535, "mediumtext": 16_777_215, "longtext": 4_294_967_295}
_BLOB_BYTES = {"tinyblob": 255, "blob": 65_535, "mediumblob": 16_777_215, "longblob": 4_294_967_295}
_MOST_CHARACTER_BYTES = 4
_INTEGER = re.compile("-?[0-9]{1,20}")
# Every character of any other set is in these.
_UNIVERSAL = frozenset({"utf8mb4", "utf16", "utf16le", "utf32"})
_WITH_CHARSET = frozenset({Kind.TEXT, Kind.ENUM, Kind.SET})
# What a column that must have a value, and has no default, gets in the rows that are there.
_IMPLICIT = {
    **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "float", "double"), "0"),
    **dict.fromkeys(("varchar", "char", "tinytext", "text", "mediumtext", "longtext", "set"), ""),
}


class CopyNeeded(Exception):
    """A change whose outcome for the rows that are there cannot be told from here; the text says why."""


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


@dataclass
class _Entry:
    """A column on its way: as it was, and as it is defined anew."""

    name: str
    old: MirrorColumn | None = None
    definition: Definition | None = None
    charset: str = ""


class _Planner:
    def __init__(self, table: MirrorTable, ask: Callable[[], Facts | None], at: Position, mariadb: bool) -> None:
        self._table, self._ask, self._at, self._mariadb = table, ask, at, mariadb
        self._facts: Facts | None = None
        self._done = Evolution()

    def plan(self, clauses: Sequence[Clause]) -> Evolution:
        entries = self._arrange(clauses)
        done = self._done
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

    # ------------------------------------------------------------------------------------------------ which columns
    def _arrange(self, clauses: Sequence[Clause]) -> list[_Entry]:
        """The columns in the order that the server gives them."""
        known = {column["name"].lower(): column for column in self._table.columns}
        changes: dict[str, Clause] = {}
        dropped: set[str] = set()
        for clause in clauses:
            if clause.verb not in ("drop", "change", "rename"):
                continue
            name = clause.name.lower()
            if name not in known:
                if clause.tolerant:
                    continue
                raise CopyNeeded(f"a statement changed column {clause.name}, which the mirror does not know")
            if name in dropped or name in changes:
                raise CopyNeeded(f"a statement changed column {clause.name} twice")
            if clause.verb == "drop":
                dropped.add(name)
            else:
                changes[name] = clause
        charset = next((clause.new_name for clause in clauses if clause.verb == "charset"), "")
        entries, moved = [], []
        for column in self._table.columns:
            name = column["name"].lower()
            if name in dropped:
                self._drop(column)
                continue
            change = changes.get(name)
            entry = _Entry(column["name"], column, charset=charset)
            if change is not None:
                if change.verb == "change" and change.new_name == change.name != column["name"]:
                    raise CopyNeeded(f"column {column['name']} was written as {change.name}")
                entry.name, entry.definition = change.new_name, change.definition
                if change.place is not None:
                    moved.append((change, entry))
                    continue
            entries.append(entry)
        for clause in clauses:
            if clause.verb == "add":
                if clause.name.lower() in known.keys() - dropped and clause.name.lower() not in changes:
                    if clause.tolerant:
                        continue
                    raise CopyNeeded(f"a statement added column {clause.name}, which the mirror has")
                _insert(entries, _Entry(clause.name, definition=clause.definition), clause.place)
            for change, entry in moved:
                if change is clause:
                    _insert(entries, entry, clause.place)
        return entries

    def _drop(self, column: MirrorColumn) -> None:
        if column["name"] in self._table.key:
            raise CopyNeeded(f"column {column['name']} of its key was dropped")
        self._done.gone.append(column["mirror_name"])

    def _follow(self, entry: _Entry) -> MirrorColumn:
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
    def _add(self, entry: _Entry) -> MirrorColumn:
        definition, name = entry.definition, entry.name
        assert definition is not None, "what is added has a definition"
        mirror_type = _mirror_type(definition.type)
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
            implicit = definition.type.labels[0] if base == "enum" else _IMPLICIT.get(base)
            if implicit is None:
                raise CopyNeeded(f"column {name} is new, without a default that could be read")
            return implicit
        facts = self._read_facts()
        there = facts.columns.get(name)
        default = facts.defaults.get(name)
        plain = _evaluate(definition)
        if plain is not None and (default is None or not _agree(definition.default, default.text)):
            return plain
        if there is None or default is None or not _same(parse_type(there.source_type, mariadb=self._mariadb), definition.type):
            raise CopyNeeded(f"column {name} is new, and was altered again since")
        if default.value is None:
            raise CopyNeeded(f"column {name} is new, and its default cannot be read from the source")
        if not _agree(definition.default, default.text):
            self._done.doubtful_until = facts.position
        return default.value

    # ------------------------------------------------------------------------------------------------ changed columns
    def _change(self, column: MirrorColumn, definition: Definition) -> None:
        """Another definition for a column; the mirror keeps its values only where the source does."""
        name = column["name"]
        old, new = parse_type(column["source_type"], mariadb=self._mariadb), definition.type
        if definition.generated or column.get("generated"):
            raise CopyNeeded(f"column {name} is computed by the source")
        if old is None or not _holds(old, new):
            raise CopyNeeded(f"column {name} is now {new.text}, was {column['source_type']}")
        mirror_type = _mirror_type(new)
        if mirror_type is None:
            raise CopyNeeded(f"column {name} is now {new.text}")
        changed = not _same(old, new)
        if KINDS[new.base] in _WITH_CHARSET and not all(label.isascii() for label in new.labels or ("ä",)):
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
        if KINDS[kind.base] not in _WITH_CHARSET:
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
        if new is not None and new.base in _TEXT_BYTES:
            before = parse_type(column["source_type"], mariadb=self._mariadb)
            assert before is not None, "it was looked at before"
            if _TEXT_BYTES[new.base] < _MOST_CHARACTER_BYTES * _TEXT_BYTES.get(before.base, 0):
                raise CopyNeeded(f"column {column['name']} may be too short for its texts in {charset}")

    # ------------------------------------------------------------------------------------------------ keys, all together
    def _key(self, clauses: Sequence[Clause], entries: Sequence[_Entry]) -> list[str]:
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


def _insert(entries: list[_Entry], entry: _Entry, place: str | None) -> None:
    if place is None:
        entries.append(entry)
    elif place == "":
        entries.insert(0, entry)
    else:
        at = next((i for i, each in enumerate(entries) if each.name.lower() == place.lower()), None)
        if at is None:
            raise CopyNeeded(f"a column stands behind {place}, which the mirror does not know")
        entries.insert(at + 1, entry)


def _mirror_type(type_: ColumnType) -> str | None:
    """The mirror's type; None where the name alone does not say it."""
    kind = KINDS[type_.base]
    first = type_.numbers[0] if type_.numbers else 0
    if kind in _WITH_CHARSET and type_.charset == BINARY:
        return None
    precision, scale = type_.numbers if kind is Kind.DECIMAL else (0, 0)
    width = first if kind is Kind.BIT else UUID_WIDTH if kind is Kind.UUID else 0
    return Column("", kind, type_.unsigned, precision=precision, scale=scale, width=width).mirror_type


def _range(type_: ColumnType) -> tuple[int, int]:
    bits = _RANGES[type_.base]
    return (0, 2**bits - 1) if type_.unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _same(old: ColumnType | None, new: ColumnType) -> bool:
    return old is not None and replace(old, charset="") == replace(new, charset="")


def _same_names(first: Sequence[str], second: Sequence[str]) -> bool:
    return {name.lower() for name in first} == {name.lower() for name in second}


def _holds(old: ColumnType, new: ColumnType) -> bool:
    """Whether every value of the old type is the same value in the new one."""
    if _same(old, new):
        return True
    if old.base in _RANGES and new.base in _RANGES:
        (low, high), (new_low, new_high) = _range(old), _range(new)
        return new_low <= low and high <= new_high
    if old.base == new.base == "decimal":
        (precision, scale), (new_precision, new_scale) = old.numbers, new.numbers
        return new_scale >= scale and new_precision - new_scale >= precision - scale and (old.unsigned or not new.unsigned)
    if old.base == new.base and old.base in ("datetime", "timestamp", "time"):
        return new.numbers[0] >= old.numbers[0]
    if old.base == new.base and old.base in ("enum", "set"):
        return new.labels[: len(old.labels)] == old.labels
    if old.base == new.base and old.base in ("char", "varchar", "varbinary"):
        return new.numbers[0] >= old.numbers[0]
    if old.base in ("varchar", *_TEXT_BYTES) and new.base in _TEXT_BYTES:
        had = _TEXT_BYTES.get(old.base) or _MOST_CHARACTER_BYTES * old.numbers[0]
        return _TEXT_BYTES[new.base] >= had
    if old.base in ("varbinary", *_BLOB_BYTES) and new.base in _BLOB_BYTES:
        return _BLOB_BYTES[new.base] >= (_BLOB_BYTES.get(old.base) or old.numbers[0])
    return False


def _evaluate(definition: Definition) -> str | None:
    """The value of a default that every server reads alike; None for all others.

    Only where the source does not say it, because the column was altered again since.
    """
    written, base = definition.default, definition.type.base
    if written is None:
        return None
    if base in _RANGES and _INTEGER.fullmatch(written):
        low, high = _range(definition.type)
        return written if low <= int(written) <= high else None
    if base in ("varchar", *_TEXT_BYTES) and written.isascii() and written.isprintable():
        fits = len(written) <= (definition.type.numbers[0] if base == "varchar" else 255)
        return written if fits else None
    return None


def _agree(written: str | None, found: str | None) -> bool:
    """Whether a default as the statement writes it is the one that the source has."""
    if written is None or found is None:
        return False
    if written == found:
        return True
    try:
        return Decimal(written) == Decimal(found)
    except InvalidOperation:
        return False
