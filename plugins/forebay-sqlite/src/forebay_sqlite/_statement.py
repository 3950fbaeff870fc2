"""The INSERT statements of one table, and rows in the shape that they take."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

from attrs import define, field

from forebay import EngineError, Failed
from forebay_sqlite._location import quoted

Row: TypeAlias = Mapping[str, object] | Sequence[object]
"""A row by column names, or its values in the order of the columns."""

Mode: TypeAlias = Literal["insert", "upsert", "ignore"]
"""What becomes of a row whose key is there: it fails, it replaces the other columns, or it is left out."""

_MAX_STATEMENTS: Final = 64


@define(eq=False)
class Group:
    """Rows that follow each other in a batch and go into the same columns."""

    sql: str
    places: list[int] = field(factory=list[int])
    values: list[Sequence[object]] = field(factory=list[Sequence[object]])


class Statements:
    """Makes statements for the columns that rows have, and remembers them."""

    def __init__(
        self, table: str, found: Sequence[str], wanted: Sequence[str] | None, mode: Mode, key: Sequence[str]
    ) -> None:
        for name in (*(wanted or ()), *key):
            if name not in found:
                raise ValueError(f"table {table!r} has no column {name!r} (it has: {', '.join(found)})")
        self._table = table
        self._columns = tuple(found if wanted is None else wanted)
        self._known = frozenset(found)
        self._takes_any = wanted is None
        self._mode = mode
        self._key = tuple(key)
        self._made: dict[tuple[str, ...], str] = {}

    def check(self, connection: sqlite3.Connection) -> None:
        """Let SQLite compile the statement for all columns, so that a missing unique key shows before the first row."""
        connection.execute("EXPLAIN " + self._sql(self._columns), [None] * len(self._columns))

    def group(self, rows: Sequence[Row], skipped: set[int]) -> tuple[list[Group], dict[int, Failed]]:
        """Return *rows* in groups, in order and without those *skipped*, and those that do not fit the table."""
        groups: list[Group] = []
        failures: dict[int, Failed] = {}
        last: tuple[str, ...] | None = None
        for place, row in enumerate(rows):
            if place in skipped:
                continue
            try:
                columns, values = self._shape(row)
                if columns != last:
                    groups.append(Group(self._sql(columns)))
                    last = columns
            except ValueError as error:
                failures[place] = Failed(EngineError(f"table {self._table!r}: {error}", category="permanent"))
                continue
            groups[-1].places.append(place)
            groups[-1].values.append(values)
        return groups, failures

    def _shape(self, row: Row) -> tuple[tuple[str, ...], Sequence[object]]:
        if isinstance(row, (dict, Mapping)):  # dict first: it is quick to see
            if self._takes_any:
                return tuple(row), tuple(row.values())
            try:
                return self._columns, [row[name] for name in self._columns]
            except KeyError as error:
                raise ValueError(f"the row has no {error.args[0]!r}") from None
        if isinstance(row, (str, bytes)) or not hasattr(row, "__len__"):  # who has no checker gives anything
            raise ValueError(f"a row must be a mapping or a sequence of values, not {type(row).__name__}")
        if len(row) != len(self._columns):
            raise ValueError(f"the row has {len(row)} values for {len(self._columns)} columns")
        return self._columns, row

    def _sql(self, columns: tuple[str, ...]) -> str:
        sql = self._made.get(columns)
        if sql is None:
            sql = self._make(columns)
            if len(self._made) < _MAX_STATEMENTS:
                self._made[columns] = sql
        return sql

    def _make(self, columns: tuple[str, ...]) -> str:
        unknown = [name for name in columns if name not in self._known]
        if unknown:
            raise ValueError(f"the row has {unknown[0]!r}, which is no column")
        names = ", ".join(map(quoted, columns))
        into = f"({names}) VALUES ({', '.join('?' * len(columns))})" if columns else "DEFAULT VALUES"
        return f"INSERT INTO {quoted(self._table)} {into}{self._on_conflict(columns)}"

    def _on_conflict(self, columns: Sequence[str]) -> str:
        if self._mode == "insert":
            return ""
        target = f" ({', '.join(map(quoted, self._key))})" if self._key else ""
        changed = [quoted(name) for name in columns if name not in self._key]
        if self._mode == "ignore" or not changed:
            return f" ON CONFLICT{target} DO NOTHING"
        return f" ON CONFLICT{target} DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in changed)}"
