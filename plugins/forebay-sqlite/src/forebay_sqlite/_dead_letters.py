"""Dead letters in a table."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

from attrs import define

from forebay.abc import (
    Category,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterId,
    DeadLetterState,
)
from forebay_sqlite._connection import DEADLINE, Database, Synchronous, open_database
from forebay_sqlite._location import file_of, positive, quoted
from forebay_sqlite._schema import Schema, prepare

# The long columns come last: a scan that asks for the others does not read them.
_COLUMNS: Final = (
    "pipeline TEXT NOT NULL",
    "source TEXT NOT NULL",
    "partition INTEGER NOT NULL",
    "offset TEXT NOT NULL",
    "generation INTEGER NOT NULL",
    "state TEXT NOT NULL",
    "category TEXT NOT NULL",
    "fingerprint TEXT NOT NULL",
    "stage TEXT NOT NULL",
    "first_seen REAL NOT NULL",
    "last_seen REAL NOT NULL",
    "error_type TEXT NOT NULL",
    "masked_message TEXT NOT NULL",
    "message TEXT NOT NULL",
    "key TEXT",
    "headers TEXT NOT NULL",
    "attempts INTEGER NOT NULL",
    "member TEXT NOT NULL",
    "host TEXT NOT NULL",
    "trace_id TEXT NOT NULL",
    "batch_id TEXT NOT NULL",
    "code_version TEXT NOT NULL",
    "epoch INTEGER NOT NULL",
    "frames TEXT NOT NULL",
    "traceback TEXT NOT NULL",
    "content_type TEXT NOT NULL",
    "payload BLOB NOT NULL",
)
_NAMES: Final = ", ".join(column.partition(" ")[0] for column in _COLUMNS)
_ID: Final = "pipeline, source, partition, offset, generation"
_ID_DOWN: Final = ", ".join(f"{name} DESC" for name in _ID.split(", "))

_Condition: TypeAlias = tuple[str, list[object]]


def _schema(table: str) -> Schema:
    name = quoted(table)

    def index(suffix: str, columns: str, kind: str = "INDEX") -> str:
        return f"CREATE {kind} {quoted(f'{table}_{suffix}')} ON {name} ({columns})"

    return Schema(
        f"dead letters in {table}",
        [
            [
                f"CREATE TABLE {name} ({', '.join(_COLUMNS)})",
                index("id", _ID, "UNIQUE INDEX"),
                index("newest", f"fingerprint, last_seen, {_ID}"),
                index("state", f"state, {_ID}"),
                index("seen", "last_seen"),
            ]
        ],
    )


@define(eq=False)
class SqliteDeadLetterStore:
    """Dead letters in one table; a `forebay.abc.DeadLetterStore`. Any number of tasks and processes may use it at once.

    Cancelled: all of a write may have happened, or none of it.
    Text that UTF-8 cannot hold (lone surrogates) is kept with backslashes; the payload is kept as it is.
    """

    table: str
    _database: Database

    async def put(self, records: Sequence[DeadLetter], /) -> None:
        """Store *records*, all or none; those whose id is stored already are left as they are."""
        rows = [_row(letter) for letter in records]
        marks = ", ".join("?" * len(_COLUMNS))
        sql = f"INSERT INTO {quoted(self.table)} ({_NAMES}) VALUES ({marks}) ON CONFLICT ({_ID}) DO NOTHING"
        await self._database.write("storing dead letters", lambda c: c.executemany(sql, rows))

    async def find(
        self, wanted: DeadLetterFilter, /, *, limit: int, after: DeadLetterId | None = None
    ) -> list[DeadLetter]:
        """Return at most *limit* records in the order of their ids, from behind *after* on."""
        _check_limit(limit)
        where, values = _condition(wanted)
        if after is not None:
            where, values = f"{where} AND ({_ID}) > (?, ?, ?, ?, ?)", [*values, *_place(after)]
        table = quoted(self.table)
        # Sorted by rowid first: sorting whole records would carry their payloads about.
        sql = (
            f"SELECT {_NAMES} FROM {table} WHERE rowid IN "
            f"(SELECT rowid FROM {table} WHERE {where} ORDER BY {_ID} LIMIT ?) ORDER BY {_ID}"
        )
        return await self._database.read("finding dead letters", lambda c: _letters(c.execute(sql, (*values, limit))))

    async def groups(self, wanted: DeadLetterFilter, /) -> list[DeadLetterGroup]:
        """Return the groups by fingerprint, the largest first, then by fingerprint.

        What may differ within a group is taken from its newest; of two as new, from the one with the higher id.
        """
        return await self._database.read("grouping dead letters", lambda c: self._groups(c, wanted))

    async def move(
        self, ids: Sequence[DeadLetterId], /, *, old: DeadLetterState, new: DeadLetterState
    ) -> list[DeadLetterId]:
        """Set the state of those that are in *old* to *new*; return which, so that two callers never both get one."""
        if old == new:
            raise ValueError(f"new must differ from old, not be {new.value!r} too: it would not show who moved it")
        sql = f"UPDATE {quoted(self.table)} SET state = ? WHERE ({_ID}) = (?, ?, ?, ?, ?) AND state = ?"

        def work(connection: sqlite3.Connection) -> list[DeadLetterId]:
            return [id for id in ids if connection.execute(sql, (new.value, *_place(id), old.value)).rowcount]

        return await self._database.write("moving dead letters", work)

    async def purge(self, wanted: DeadLetterFilter, /, *, limit: int) -> int:
        """Delete at most *limit* matching records, lowest ids first; return how many."""
        _check_limit(limit)
        where, values = _condition(wanted)
        table = quoted(self.table)
        sql = f"DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {where} ORDER BY {_ID} LIMIT ?)"
        return await self._database.write("purging dead letters", lambda c: c.execute(sql, (*values, limit)).rowcount)

    def _groups(self, connection: sqlite3.Connection, wanted: DeadLetterFilter) -> list[DeadLetterGroup]:
        where, values = _condition(wanted)
        table = quoted(self.table)
        counted = connection.execute(
            f"SELECT fingerprint, count(*), min(first_seen), max(last_seen) FROM {table} WHERE {where} "
            "GROUP BY fingerprint ORDER BY count(*) DESC, fingerprint",
            values,
        ).fetchall()
        newest = (
            f"SELECT category, stage, error_type, masked_message FROM {table} "
            f"WHERE fingerprint = ? AND last_seen = ? AND {where} ORDER BY {_ID_DOWN} LIMIT 1"
        )
        groups: list[DeadLetterGroup] = []
        for fingerprint, count, first, last in counted:
            row: tuple[str, str, str, str] = connection.execute(newest, (fingerprint, last, *values)).fetchone()
            category, stage, error_type, masked = row
            groups.append(
                DeadLetterGroup(fingerprint, Category(category), count, first, last, stage, error_type, masked)
            )
        return groups


def _condition(wanted: DeadLetterFilter) -> _Condition:
    """Return *wanted* as SQL and the values in it."""
    clauses: tuple[tuple[str, object], ...] = (
        ("pipeline = ?", wanted.pipeline),
        ("source = ?", wanted.source),
        ("stage = ?", wanted.stage),
        ("category = ?", wanted.category and wanted.category.value),
        ("fingerprint = ?", wanted.fingerprint),
        ("state = ?", wanted.state and wanted.state.value),
        ("last_seen >= ?", wanted.since),
        ("last_seen < ?", wanted.until),
        ("instr(message, ?) > 0", wanted.text),
    )
    used = [(clause, value) for clause, value in clauses if value is not None]
    sql = " AND ".join(clause for clause, _ in used) or "TRUE"
    return sql, [_plain(value) if isinstance(value, str) else value for _, value in used]


def _place(id: DeadLetterId) -> tuple[object, ...]:
    return (_plain(id.pipeline), _plain(id.source), id.partition, _plain(id.offset), id.generation)


def _row(letter: DeadLetter) -> tuple[object, ...]:
    return (
        *_place(letter.id),
        letter.state.value,
        letter.category.value,
        _plain(letter.fingerprint),
        _plain(letter.stage),
        letter.first_seen,
        letter.last_seen,
        _plain(letter.error_type),
        _plain(letter.masked_message),
        _plain(letter.message),
        None if letter.key is None else _plain(letter.key),
        json.dumps(dict(letter.headers)),
        letter.attempts,
        *map(_plain, (letter.member, letter.host, letter.trace_id, letter.batch_id, letter.code_version)),
        letter.epoch,
        json.dumps(list(letter.frames)),
        _plain(letter.traceback),
        letter.content_type,
        letter.payload,
    )


def _letters(rows: sqlite3.Cursor) -> list[DeadLetter]:
    names = _NAMES.split(", ")
    return [_letter(dict(zip(names, row, strict=True))) for row in rows]


def _letter(row: dict[str, Any]) -> DeadLetter:  # SQLite's rows are untyped
    id = DeadLetterId(*(row.pop(name) for name in _ID.split(", ")))
    row["state"] = DeadLetterState(row["state"])
    row["category"] = Category(row["category"])
    row["headers"] = json.loads(row["headers"])
    row["frames"] = tuple(json.loads(row["frames"]))
    return DeadLetter(id=id, **row)


def _plain(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _check_limit(limit: int) -> None:
    if limit < 0:
        raise ValueError(f"limit must be at least 0, not {limit}")


@asynccontextmanager
async def open_sqlite_dead_letters(
    *,
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    table: str = "forebay_dead_letters",
    synchronous: Synchronous = "full",
    deadline: float = DEADLINE,
) -> AsyncGenerator[SqliteDeadLetterStore]:
    """Open a table of dead letters.

    Args:
        path: The database file; it is made if it does not exist.
        url: The same as `sqlite:///relative.db` or `sqlite:////absolute.db`.
        table: Name of the table, which is made if it does not exist.
        synchronous: With `full` what was stored survives a power cut; with `normal` it survives the end of the process.
        deadline: Seconds that one call may take, waiting for locks included.

    Raises:
        ValueError: neither or both of *path* and *url* are given.
        EngineError: the file cannot be opened, or its tables are from a newer version.
    """
    file = file_of("open_sqlite_dead_letters", path, url)
    async with open_database(file, synchronous=synchronous, deadline=positive("deadline", deadline)) as database:
        await prepare(database, _schema(table))
        yield SqliteDeadLetterStore(table, database)
