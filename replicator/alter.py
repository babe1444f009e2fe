"""What an ALTER TABLE says, clause by clause.

A statement of which one word is not understood is not understood at all, because then nobody can say what it did to the rows
that were there. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlglot.errors import TokenError

from replicator.definition import Definition, DefinitionParser, Unclear, tokenize

Verb = Literal["add", "drop", "change", "rename", "charset", "key", "index", "nothing"]

_ENGINES = frozenset({"INNODB", "MYISAM", "ARIA"})
_OPTIONS = frozenset(
    {
        "ALGORITHM", "LOCK", "ENGINE", "COMMENT", "AUTO_INCREMENT", "ROW_FORMAT", "KEY_BLOCK_SIZE", "STATS_PERSISTENT",
        "STATS_AUTO_RECALC", "STATS_SAMPLE_PAGES", "AVG_ROW_LENGTH", "MAX_ROWS", "MIN_ROWS", "CHECKSUM", "DELAY_KEY_WRITE",
        "PACK_KEYS", "FORCE", "ENABLE", "DISABLE", "WITH", "WITHOUT", "DEFAULT", "CHARACTER", "CHARSET", "COLLATE",
    }
)  # fmt: skip
_PARTITIONS = frozenset({"PARTITION", "REORGANIZE", "COALESCE", "REMOVE", "ANALYZE", "CHECK", "OPTIMIZE", "REBUILD", "REPAIR"})
_INDEXES = frozenset({"INDEX", "KEY", "FULLTEXT", "SPATIAL", "UNIQUE", "CONSTRAINT", "FOREIGN", "CHECK"})


@dataclass(frozen=True)
class Clause:
    """One clause.

    Attributes:
        verb: "change" for MODIFY and CHANGE; "nothing" for what leaves columns, keys and rows as they are; "index" for what may
            change which columns identify a row.
        name: of the column. new_name: for "change" and "rename"; the character set for "charset".
        place: None where nothing is said, "" for FIRST, else the column that it stands behind.
        columns: of a new primary key; empty where it is dropped.
        tolerant: IF EXISTS or IF NOT EXISTS.
    """

    verb: Verb
    name: str = ""
    new_name: str = ""
    definition: Definition | None = None
    place: str | None = None
    columns: tuple[str, ...] = ()
    tolerant: bool = False


def parse_alter(text: str, *, mariadb: bool) -> list[Clause] | None:
    """The clauses of an ALTER TABLE; None where a part of it is not understood."""
    # What stands in versioned comments is carried out or not; how a backslash is read depends on the session.
    if "/*!" in text or "/*M!" in text or "\\" in text or "\ufffd" in text:
        return None
    try:
        return _Parser(tokenize(text), mariadb).statement()
    except (Unclear, TokenError, ValueError):
        return None


class _Parser(DefinitionParser):
    def statement(self) -> list[Clause]:
        self._need("ALTER")
        self._take("ONLINE")
        self._need("TABLE")
        self._take("IF", "EXISTS")
        self._name()
        if self._take("."):
            self._name()
        if self._take("WAIT"):
            self._name()
        self._take("NOWAIT")
        words = [self._peek(i) for i in range(len(self._tokens) - self._at)]
        for i, word in enumerate(words):
            if word == "ENGINE" and [w for w in words[i + 1 : i + 3] if w != "="][0:1] not in [[e] for e in _ENGINES]:
                raise Unclear
        clauses: list[Clause] = []
        while not self.at_end:
            clauses += self._clause()
            if not self.at_end:
                self._need(",")
        return clauses

    def _clause(self) -> list[Clause]:
        word = self._peek()
        self._at += 1
        if word == "ADD":
            return self._add()
        if word == "DROP":
            return [self._drop()]
        if word in ("MODIFY", "CHANGE"):
            self._take("COLUMN")
            tolerant = self._take("IF", "EXISTS")
            name = self._name()
            new_name = self._name() if word == "CHANGE" else name
            return [Clause("change", name, new_name, self.definition(), self._place(), tolerant=tolerant)]
        if word == "RENAME":
            return [self._rename()]
        if word == "ALTER":
            if self._peek() not in ("INDEX", "KEY", "CHECK", "CONSTRAINT"):
                self._take("COLUMN")
                self._take("IF", "EXISTS")
                self._name()
                if self._peek() not in ("SET", "DROP"):
                    raise Unclear
        elif word == "CONVERT":
            self._need("TO")
            if not self._take("CHARACTER", "SET"):
                self._need("CHARSET")
            charset = self._name().lower()
            if self._take("COLLATE"):
                self._name()
            return [Clause("charset", new_name=charset)]
        elif word in _PARTITIONS:
            self._skip(everything=True)
        elif word == "ORDER":
            while not self.at_end:
                if self._peek() in ("ADD", "DROP", "MODIFY", "CHANGE", "RENAME", "CONVERT", "ALTER"):
                    raise Unclear
                self._at += 1
        elif word not in _OPTIONS:
            raise Unclear
        self._skip()
        return [Clause("nothing")]

    def _rename(self) -> Clause:
        if self._peek() in ("INDEX", "KEY"):
            self._skip()
            return Clause("nothing")
        self._need("COLUMN")
        tolerant = self._take("IF", "EXISTS")
        name = self._name()
        self._need("TO")
        return Clause("rename", name, self._name(), tolerant=tolerant)

    def _add(self) -> list[Clause]:
        if self._peek() == "PARTITION":
            self._skip(everything=True)
            return [Clause("nothing")]
        start = self._at
        if self._take("CONSTRAINT") and self._peek() != "PRIMARY":
            self._at += 1
        if self._take("PRIMARY", "KEY"):
            return [self._key()]
        self._at = start
        if self._peek() in _INDEXES:
            self._skip()
            return [Clause("index")]
        self._take("COLUMN")
        tolerant = self._take("IF", "NOT", "EXISTS")
        if not self._take("("):
            return [self._added(tolerant)]
        clauses = [self._added(tolerant)]
        while self._take(","):
            clauses.append(self._added(tolerant))
        self._need(")")
        return clauses

    def _added(self, tolerant: bool) -> Clause:
        name = self._name()
        return Clause("add", name, definition=self.definition(), place=self._place(), tolerant=tolerant)

    def _key(self) -> Clause:
        if self._take("USING"):
            self._name()
        self._need("(")
        columns = []
        while True:
            columns.append(self._name())
            if self._take("("):
                self._name()
                self._need(")")
            self._take("ASC") or self._take("DESC")
            if not self._take(","):
                break
        self._need(")")
        self._skip()
        return Clause("key", columns=tuple(columns))

    def _drop(self) -> Clause:
        if self._take("PRIMARY", "KEY"):
            return Clause("key")
        if self._peek() in _INDEXES:
            self._skip()
            return Clause("index")
        if self._peek() in ("PARTITION", "SYSTEM", "PERIOD"):
            raise Unclear
        self._take("COLUMN")
        tolerant = self._take("IF", "EXISTS")
        name = self._name()
        self._take("RESTRICT") or self._take("CASCADE")
        return Clause("drop", name, tolerant=tolerant)

    def _place(self) -> str | None:
        if self._take("FIRST"):
            return ""
        return self._name() if self._take("AFTER") else None
