"""What an ALTER TABLE says, clause by clause, with the types of its columns.

A statement of which one word is not understood is not understood at all, because then nobody can say what it did to the rows
that were there. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlglot.dialects.mysql import MySQL
from sqlglot.errors import TokenError
from sqlglot.tokens import Token, TokenType  # type: ignore[attr-defined]

from replicator.typemap import KINDS

Verb = Literal["add", "drop", "change", "rename", "charset", "key", "index", "nothing"]

_SYNONYMS = {
    "bool": "tinyint", "boolean": "tinyint", "int1": "tinyint", "int2": "smallint", "int3": "mediumint",
    "middleint": "mediumint", "int4": "int", "integer": "int", "int8": "bigint", "numeric": "decimal", "dec": "decimal",
    "fixed": "decimal", "real": "double", "double precision": "double", "float8": "double", "float4": "float",
    "character": "char", "varcharacter": "varchar",
}  # fmt: skip
_INTEGERS = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint", "year"})
_DEFAULT_NUMBERS: dict[str, tuple[int, ...]] = {
    "decimal": (10, 0),
    **dict.fromkeys(("bit", "char", "binary"), (1,)),
    **dict.fromkeys(("datetime", "timestamp", "time"), (0,)),
}
# TEXT(n) and BLOB(n) mean the smallest type that holds n.
_WITHOUT_NUMBERS = frozenset({"text", "blob"})
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
class ColumnType:
    """A type as it is written.

    Attributes:
        base: the name that information_schema uses. numbers: lengths and digits; empty for integers.
        labels: of ENUM and SET. charset: "" where it is not said.
    """

    base: str
    numbers: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    unsigned: bool = False
    charset: str = ""

    @property
    def text(self) -> str:
        """As information_schema would print it, or nearly."""
        quoted = ["'" + label.replace("'", "''") + "'" for label in self.labels]
        inside = ",".join([*map(str, self.numbers), *quoted])
        plain = not inside or (self.base in ("datetime", "timestamp", "time") and self.numbers == (0,))
        return self.base + ("" if plain else f"({inside})") + (" unsigned" if self.unsigned else "")


@dataclass(frozen=True)
class Definition:
    """A column's definition.

    Attributes:
        nullable: True or False where it is said; None where it is not, which for TIMESTAMP depends on the session.
        has_default: a value, NULL included. default: the value as it is written; None for NULL and where it is none that could
            be compared.
        is_constant: rows that are there get the same value, each: no expression, no time of day, no counter.
        counts: AUTO_INCREMENT. generated: computed from other columns.
    """

    type: ColumnType
    nullable: bool | None = None
    has_default: bool = False
    is_null: bool = False
    default: str | None = None
    is_constant: bool = True
    counts: bool = False
    generated: bool = False


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


class _Unclear(Exception):
    """A word that is not known here."""


def parse_alter(text: str, *, mariadb: bool) -> list[Clause] | None:
    """The clauses of an ALTER TABLE; None where a part of it is not understood."""
    # What stands in versioned comments is carried out or not; how a backslash is read depends on the session.
    if "/*!" in text or "/*M!" in text or "\\" in text or "\ufffd" in text:
        return None
    try:
        return _Parser(_tokenize(text), mariadb).statement()
    except (_Unclear, TokenError, ValueError):
        return None


def parse_type(text: str, *, mariadb: bool) -> ColumnType | None:
    """A type as information_schema prints it; None where it is not understood."""
    if "/*" in text or "\\" in text:
        return None
    try:
        parser = _Parser(_tokenize(text), mariadb)
        found = parser.definition()
        return found.type if parser.at_end else None
    except (_Unclear, TokenError, ValueError):
        return None


def _tokenize(text: str) -> list[Token]:
    text = re.sub(r"""('(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`)|/\*.*?\*/|--(?=\s|$)[^\n]*|\#[^\n]*""",
                  lambda piece: piece[1] or " ", text, flags=re.DOTALL)  # fmt: skip
    tokens: list[Token] = []
    for token in MySQL().tokenize(text):
        if token.token_type in (TokenType.STRING, TokenType.IDENTIFIER) or " " not in token.text:
            tokens.append(token)
        else:
            # sqlglot gives some keywords (PRIMARY KEY, PARTITION BY) as one token
            tokens += [Token(TokenType.VAR, word) for word in token.text.split()]
    while tokens and tokens[-1].token_type is TokenType.SEMICOLON:
        tokens.pop()
    return tokens


class _Parser:
    def __init__(self, tokens: Sequence[Token], mariadb: bool) -> None:
        self._tokens, self._at, self._mariadb = tokens, 0, mariadb

    # ------------------------------------------------------------------------------------------------ tokens
    @property
    def at_end(self) -> bool:
        return self._at >= len(self._tokens)

    def _peek(self, ahead: int = 0) -> str:
        """The keyword or sign at hand in upper case; empty at the end and where a name or text is quoted."""
        at = self._at + ahead
        if at >= len(self._tokens) or self._tokens[at].token_type in (TokenType.STRING, TokenType.IDENTIFIER):
            return ""
        return self._tokens[at].text.upper()

    def _take(self, *words: str) -> bool:
        """Step over these words where they stand here."""
        if all(self._peek(i) == word for i, word in enumerate(words)):
            self._at += len(words)
            return True
        return False

    def _need(self, *words: str) -> None:
        if not self._take(*words):
            raise _Unclear

    def _name(self) -> str:
        if self.at_end or self._tokens[self._at].token_type is TokenType.STRING or self._peek() in ("(", ")", ",", ".", "="):
            raise _Unclear
        self._at += 1
        return str(self._tokens[self._at - 1].text)

    def _string(self) -> str:
        if self.at_end or self._tokens[self._at].token_type is not TokenType.STRING:
            raise _Unclear
        self._at += 1
        return str(self._tokens[self._at - 1].text)

    def _skip(self, *, everything: bool = False) -> None:
        """Step to the comma behind this clause, or to the end."""
        depth = 0
        while not self.at_end and (everything or depth or self._peek() != ","):
            depth += (self._peek() == "(") - (self._peek() == ")")
            self._at += 1

    # ------------------------------------------------------------------------------------------------ clauses
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
                raise _Unclear
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
                    raise _Unclear
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
                    raise _Unclear
                self._at += 1
        elif word not in _OPTIONS:
            raise _Unclear
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
            raise _Unclear
        self._take("COLUMN")
        tolerant = self._take("IF", "EXISTS")
        name = self._name()
        self._take("RESTRICT") or self._take("CASCADE")
        return Clause("drop", name, tolerant=tolerant)

    def _place(self) -> str | None:
        if self._take("FIRST"):
            return ""
        return self._name() if self._take("AFTER") else None

    # ------------------------------------------------------------------------------------------------ definitions
    def definition(self) -> Definition:
        """A type and what follows it, up to a comma, a place or the end."""
        base = self._peek().lower()
        self._at += 1
        if base == "double":
            self._take("PRECISION")
        name, charset = _SYNONYMS.get(base, base), ""
        if name == "json" and self._mariadb:
            name, charset = "longtext", "utf8mb4"
        if name not in KINDS or self._peek() == "VARYING":
            raise _Unclear
        numbers, labels = self._arguments(name)
        facts: dict[str, object] = {}
        unsigned = False
        while not self.at_end and self._peek() not in (",", ")", "FIRST", "AFTER"):
            if self._take("UNSIGNED") or self._take("ZEROFILL"):
                unsigned = True
            elif self._take("CHARACTER", "SET") or self._take("CHARSET"):
                charset = self._word().lower()
            elif self._take("COLLATE"):
                charset = charset or self._word().lower().partition("_")[0]
            else:
                self._attribute(facts)
        return Definition(ColumnType(name, numbers, labels, unsigned, charset), **facts)  # type: ignore[arg-type]

    def _word(self) -> str:
        quoted = not self.at_end and self._tokens[self._at].token_type is TokenType.STRING
        return self._string() if quoted else self._name()

    def _arguments(self, base: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        if base in ("enum", "set"):
            self._need("(")
            labels = [self._string()]
            while self._take(","):
                labels.append(self._string())
            self._need(")")
            return (), tuple(labels)
        numbers: tuple[int, ...] = ()
        if self._take("("):
            if base in _WITHOUT_NUMBERS:
                raise _Unclear
            numbers = (int(self._name()),)
            while self._take(","):
                numbers += (int(self._name()),)
            self._need(")")
        if base in _INTEGERS:
            return (), ()
        if base == "decimal" and len(numbers) == 1:
            numbers += (0,)
        if base == "float" and len(numbers) == 1:
            # a precision, which may mean DOUBLE
            raise _Unclear
        return numbers or _DEFAULT_NUMBERS.get(base, ()), ()

    def _attribute(self, facts: dict[str, object]) -> None:
        if self._take("NOT", "NULL"):
            facts["nullable"] = False
        elif self._take("NULL"):
            facts["nullable"] = True
        elif self._take("DEFAULT"):
            self._default(facts)
        elif self._take("AUTO_INCREMENT"):
            facts["counts"], facts["is_constant"] = True, False
        elif self._take("ON", "UPDATE"):
            self._name()
            self._parenthesis()
        elif self._take("COMMENT"):
            self._string()
        elif self._take("UNIQUE"):
            self._take("KEY")
        elif self._take("COLUMN_FORMAT") or self._take("STORAGE"):
            self._name()
        elif self._peek() in ("AS", "GENERATED"):
            facts["generated"], facts["is_constant"] = True, False
            self._skip()
        elif not (self._take("VISIBLE") or self._take("INVISIBLE") or self._take("SIGNED")):
            raise _Unclear

    def _default(self, facts: dict[str, object]) -> None:
        facts["has_default"] = True
        sign = "-" if self._take("-") else ""
        self._take("+")
        if self.at_end:
            raise _Unclear
        token = self._tokens[self._at]
        self._at += 1
        if token.token_type in (TokenType.NUMBER, TokenType.STRING):
            facts["default"] = sign + str(token.text)
        elif token.text.upper() == "NULL":
            facts["is_null"] = True
        elif token.token_type in (TokenType.BIT_STRING, TokenType.HEX_STRING) or token.text.upper() in ("TRUE", "FALSE"):
            pass
        else:
            self._at -= 1
            facts["is_constant"] = False
            if not self._parenthesis():
                self._name()
                self._parenthesis()

    def _parenthesis(self) -> bool:
        """Step over what stands in parentheses here."""
        if self._peek() != "(":
            return False
        depth = 0
        while not self.at_end:
            depth += (self._peek() == "(") - (self._peek() == ")")
            self._at += 1
            if not depth:
                return True
        raise _Unclear
