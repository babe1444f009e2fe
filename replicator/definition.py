"""What a column's definition says, as it stands in a statement or as the source prints a type.

Owns the reading of tokens, too, which alter.py goes on with. A definition of which one word is not understood is not understood
at all. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot.dialects.mysql import MySQL
from sqlglot.errors import TokenError
from sqlglot.tokens import Token, TokenType  # type: ignore[attr-defined]

from replicator.typemap import KINDS

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


class Unclear(Exception):
    """A word that is not known here."""


def parse_type(text: str, *, mariadb: bool) -> ColumnType | None:
    """A type as information_schema prints it; None where it is not understood."""
    if "/*" in text or "\\" in text:
        return None
    try:
        parser = DefinitionParser(tokenize(text), mariadb)
        found = parser.definition()
        return found.type if parser.at_end else None
    except (Unclear, TokenError, ValueError):
        return None


def tokenize(text: str) -> list[Token]:
    """A statement's tokens, without comments."""
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


class DefinitionParser:
    """Reads tokens, and column definitions among them; every method raises Unclear where a word is not known."""

    def __init__(self, tokens: Sequence[Token], mariadb: bool) -> None:
        self._tokens, self._at, self._mariadb = tokens, 0, mariadb

    # ------------------------------------------------------------------------------------------------ tokens
    @property
    def at_end(self) -> bool:
        """Whether every token is read."""
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
            raise Unclear

    def _name(self) -> str:
        if self.at_end or self._tokens[self._at].token_type is TokenType.STRING or self._peek() in ("(", ")", ",", ".", "="):
            raise Unclear
        self._at += 1
        return str(self._tokens[self._at - 1].text)

    def _string(self) -> str:
        if self.at_end or self._tokens[self._at].token_type is not TokenType.STRING:
            raise Unclear
        self._at += 1
        return str(self._tokens[self._at - 1].text)

    def _skip(self, *, everything: bool = False) -> None:
        """Step to the comma behind this clause, or to the end."""
        depth = 0
        while not self.at_end and (everything or depth or self._peek() != ","):
            depth += (self._peek() == "(") - (self._peek() == ")")
            self._at += 1

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
            raise Unclear
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
                raise Unclear
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
            raise Unclear
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
            raise Unclear

    def _default(self, facts: dict[str, object]) -> None:
        facts["has_default"] = True
        sign = "-" if self._take("-") else ""
        self._take("+")
        if self.at_end:
            raise Unclear
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
        raise Unclear
