"""What a logged statement means for the mirror. Only intent is read; the columns follow the table map.

Uses sqlglot's tokenizer, because names, quotes and comments are what matters and a whole grammar is not needed: a
statement that cannot be tokenized changes no rows by itself. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sqlglot.dialects.mysql import MySQL
from sqlglot.errors import TokenError
from sqlglot.tokens import Token, TokenType  # type: ignore[attr-defined]

Action = Literal["create", "drop", "drop database", "truncate", "rename", "alter", "alter rows"]

_DML = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE", "LOAD", "CALL", "DO", "WITH", "IMPORT"})
# What is quoted, comments, and the ends of versioned comments, whose content the server carries out.
_QUOTED = r"""'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`]|``)*`"""
_PIECE = re.compile(rf"({_QUOTED})|/\*M?!\d*|/\*.*?\*/|\*/|--(?=\s|$)[^\n]*|\#[^\n]*", re.DOTALL)
_CONTROL = frozenset({"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "XA", "START"})


@dataclass(frozen=True)
class Intent:
    """What a statement does to one table.

    Attributes:
        action: "alter rows" for what takes rows away or brings some without row events: partitions, tablespaces.
        table: database.table; for "drop database" the database alone.
        new_name: database.table, for "rename".
        alone: the statement does nothing else to the table than to rename it.
    """

    action: Action
    table: str
    new_name: str = ""
    alone: bool = True


def first_word(text: str) -> str:
    """The first keyword in upper case, comments left out; empty where there is none."""
    words = _words(text)
    return words[0].text.upper() if words else ""


def is_dml(text: str) -> bool:
    """True where the statement changes rows by itself, so that it must never stand in a row-format binlog."""
    return first_word(text) in _DML


def is_control(text: str) -> bool:
    """True for statements that open, close or divide a transaction."""
    return first_word(text) in _CONTROL


def parse_intents(text: str, database: str) -> list[Intent]:
    """What a statement does to which tables; empty for statements that touch no rows (users, indexes, views).

    Args:
        text: the statement.
        database: the session's default database, for names without one.
    """
    words = _words(text)
    reader = _Reader(words, database)
    verb = reader.word()
    if verb == "TRUNCATE":
        reader.skip("TABLE")
        return [Intent("truncate", reader.name())]
    if verb == "RENAME" and reader.word() in ("TABLE", "TABLES"):
        return reader.renames()
    if verb == "CREATE":
        if reader.skip_until("TABLE", within=3) and "TEMPORARY" not in reader.seen:
            reader.skip("IF", "NOT", "EXISTS")
            name = reader.name()
            dropped = [Intent("drop", name)] if "REPLACE" in reader.seen else []
            return [*dropped, Intent("create", name)]
        return []
    if verb == "DROP":
        return _parse_drop(reader)
    if verb == "ALTER" and reader.skip_until("TABLE", within=3):
        reader.skip("IF", "EXISTS")
        return _parse_alter(reader)
    return []


def _parse_drop(reader: _Reader) -> list[Intent]:
    what = reader.word()
    if what in ("DATABASE", "SCHEMA"):
        reader.skip("IF", "EXISTS")
        return [Intent("drop database", reader.part())]
    if what not in ("TABLE", "TABLES"):
        return []
    reader.skip("IF", "EXISTS")
    return [Intent("drop", name) for name in reader.names()]


def _parse_alter(reader: _Reader) -> list[Intent]:
    table = reader.name()
    words = [_keyword(token) for token in reader.rest()]
    intents = [Intent("alter", table)]
    if {"PARTITION", "TABLESPACE"} & set(words) and {"DROP", "TRUNCATE", "EXCHANGE", "DISCARD", "IMPORT"} & set(words):
        intents.append(Intent("alter rows", table))
    if "EXCHANGE" in words and "TABLE" in words[words.index("EXCHANGE") :]:
        other = _Reader(reader.rest()[words.index("TABLE", words.index("EXCHANGE")) + 1 :], reader.database)
        intents.append(Intent("alter rows", other.name()))
    if "CONVERT" in words and "PARTITION" in words[words.index("CONVERT") :]:
        intents += _parse_convert(reader, words, table)
    for i, word in enumerate(words):
        # RENAME COLUMN, INDEX and KEY rename something inside the table.
        if word == "RENAME" and i + 1 < len(words) and words[i + 1] not in ("COLUMN", "INDEX", "KEY"):
            target = _Reader(reader.rest()[i + 1 :], reader.database)
            target.skip("TO", "AS", "=")
            name = target.name()
            intents.append(Intent("rename", table, name, alone=i == 0 and not target.rest()))
            break
    return intents


def _parse_convert(reader: _Reader, words: list[str], table: str) -> list[Intent]:
    """MariaDB: a partition becomes a table with its rows, or a table with its rows becomes a partition."""
    at = words.index("TABLE", words.index("CONVERT")) if "TABLE" in words[words.index("CONVERT") :] else len(words)
    name = _Reader(reader.rest()[at + 1 :], reader.database).name()
    if at < words.index("PARTITION", words.index("CONVERT")):
        return [Intent("alter rows", table), Intent("drop", name)]
    return [Intent("alter rows", table), Intent("rename", f"{table}#partition", name, alone=False)]


def _keyword(token: Token) -> str:
    """The token in upper case; empty where it is quoted, because then it is a name or a text."""
    return "" if token.token_type in (TokenType.STRING, TokenType.IDENTIFIER) else token.text.upper()


def _words(text: str) -> list[Token]:
    text = _PIECE.sub(lambda piece: piece[1] or " ", text)
    try:
        words: list[Token] = MySQL().tokenize(text)
        # sqlglot gives the whole rest of some statements (RENAME) as one string.
        if len(words) == 2 and words[1].token_type is TokenType.STRING and f"'{words[1].text}'" not in text:
            return [words[0], *MySQL().tokenize(words[1].text)]
        return words
    except TokenError:
        # What sqlglot cannot split is still looked at word by word; quoted names keep their quotes off.
        return [Token(TokenType.VAR, word.strip("`;,()")) for word in text.split()]


class _Reader:
    """Reads names out of a statement's tokens."""

    def __init__(self, tokens: list[Token], database: str) -> None:
        self._tokens, self._at, self.database = tokens, 0, database
        self.seen: set[str] = set()

    def _peek(self) -> str:
        return self._tokens[self._at].text if self._at < len(self._tokens) else ""

    def _peek_keyword(self) -> str:
        return _keyword(self._tokens[self._at]) if self._at < len(self._tokens) else ""

    def rest(self) -> list[Token]:
        return self._tokens[self._at :]

    def word(self) -> str:
        text = self._peek_keyword()
        self._at += 1
        self.seen.add(text)
        return text

    def skip(self, *words: str) -> None:
        while self._peek_keyword() in words and self._at < len(self._tokens):
            self._at += 1

    def skip_until(self, word: str, *, within: int) -> bool:
        """Step behind a word that must come within so many tokens."""
        return any(self.word() == word for _ in range(within))

    def part(self) -> str:
        text = self._peek()
        self._at += 1
        return text

    def name(self) -> str:
        first = self.part()
        if self._peek() == ".":
            self._at += 1
            return f"{first}.{self.part()}"
        return f"{self.database}.{first}"

    def names(self) -> list[str]:
        found = [self.name()]
        while self._peek() == ",":
            self._at += 1
            found.append(self.name())
        return found

    def renames(self) -> list[Intent]:
        self.skip("IF", "EXISTS")
        found = []
        while self._at < len(self._tokens):
            old = self.name()
            self.skip("WAIT", "NOWAIT")
            self.skip("TO")
            found.append(Intent("rename", old, self.name()))
            if self._peek() != ",":
                break
            self._at += 1
        return found
