"""A durable queue in a table, and the door through which items enter it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeAlias

import anyio
from anyio.lowlevel import EventLoopToken, current_token
from attrs import define

from forebay_sqlite._connection import DEADLINE, Database, Synchronous, open_database
from forebay_sqlite._location import file_of, positive
from forebay_sqlite._schema import Schema, prepare

# One index serves all: `ready_at IS NULL` is an equality to SQLite, so fresh items come out in the order of their
# offsets, and items that are claimed or due later wait behind it by time. `epoch` makes it cover the counts.
QUEUE_SCHEMA: Final = Schema(
    "queue",
    [
        [
            """
            CREATE TABLE forebay_queue (
                offset INTEGER PRIMARY KEY AUTOINCREMENT,
                queue TEXT NOT NULL,
                ready_at REAL,      -- NULL: fresh; else not before this Unix time: due, or the claim's end
                epoch INTEGER,      -- the session that holds the item; NULL: none
                deliveries INTEGER NOT NULL DEFAULT 0,
                failures INTEGER NOT NULL DEFAULT 0,
                maybe_done INTEGER NOT NULL DEFAULT 0,
                size INTEGER NOT NULL,
                key TEXT,
                headers TEXT,
                error TEXT,
                item BLOB NOT NULL  -- text: JSON; blob: bytes
            )
            """,
            "CREATE INDEX forebay_queue_ready ON forebay_queue (queue, ready_at, epoch)",
            """
            CREATE TABLE forebay_queue_sessions (
                epoch INTEGER PRIMARY KEY AUTOINCREMENT,
                queue TEXT NOT NULL,
                member TEXT NOT NULL,
                host TEXT NOT NULL,
                opened_at REAL NOT NULL
            )
            """,
        ]
    ],
)

_INSERT: Final = """
    INSERT INTO forebay_queue (queue, ready_at, size, key, headers, item) VALUES (?, ?, ?, ?, ?, ?)
"""

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))

_Row: TypeAlias = tuple[str, float | None, int, str | None, str | None, str | bytes]

# Sessions of this process that wait for items, so that a put in the same event loop wakes them at once.
_waiting: dict[tuple[EventLoopToken, str, str], set[anyio.Event]] = {}


def _place(database: Database, queue: str) -> tuple[EventLoopToken, str, str]:
    return (current_token(), os.path.realpath(database.file), queue)


@contextmanager
def listening(database: Database, queue: str) -> Generator[anyio.Event]:
    """Yield an event that the next put into *queue* from this event loop sets."""
    place, event = _place(database, queue), anyio.Event()
    _waiting.setdefault(place, set()).add(event)
    try:
        yield event
    finally:
        _waiting[place].discard(event)
        if not _waiting[place]:
            del _waiting[place]


def wake(database: Database, queue: str) -> None:
    """Wake the sessions that wait for items of *queue* in this event loop."""
    for event in _waiting.get(_place(database, queue), ()):
        event.set()


@define(eq=False)
class SqliteQueue:
    """Puts items into one queue; also a `forebay.abc.Sink`, so that a pipeline may end in it.

    An item is bytes, or anything that JSON holds (numbers, text, lists, dicts with text keys …); it comes out as it
    went in, except that JSON makes lists of tuples. Any number of tasks may use it at once.
    """

    name: str
    _database: Database

    async def put_many(
        self,
        items: Sequence[object],
        /,
        *,
        keys: Sequence[str | None] | None = None,
        headers: Sequence[Mapping[str, str] | None] | None = None,
        due: float | Sequence[float | None] | None = None,
    ) -> range:
        """Add *items*, all or none, and return their offsets; they are on disk when it returns.

        Args:
            items: What to add, in order.
            keys: Ordering key of each item.
            headers: Headers of each item.
            due: Unix time before which the items are not handed out; one for all, or one for each.

        Raises:
            ValueError: there are not as many keys, headers or due times as items.
            TypeError: an item is neither bytes nor fit for JSON; the message names it.

        Cancelled: all of them may have been added, or none.
        """
        for argument, given in (("keys", keys), ("headers", headers), ("due", due)):
            if isinstance(given, Sequence) and len(given) != len(items):
                raise ValueError(f"{argument} has {len(given)} entries for {len(items)} items; give one for each item")
        rows = list(self._rows(items, keys, headers, due))
        offsets = await self._database.write(f"putting items into queue {self.name!r}", lambda c: _insert(c, rows))
        wake(self._database, self.name)
        return offsets

    async def write(self, items: Sequence[object], /) -> None:
        """Add *items*, all or none."""
        await self.put_many(items)

    async def count(self) -> int:
        """Return how many items the queue holds, those in hand and due later included."""
        return await self._database.read(f"counting queue {self.name!r}", self._count)

    def _count(self, connection: sqlite3.Connection) -> int:
        row: tuple[int] = connection.execute(
            "SELECT count(*) FROM forebay_queue WHERE queue = ?", (self.name,)
        ).fetchone()
        return row[0]

    def _rows(
        self,
        items: Sequence[object],
        keys: Sequence[str | None] | None,
        headers: Sequence[Mapping[str, str] | None] | None,
        due: float | Sequence[float | None] | None,
    ) -> Iterator[_Row]:
        for index, item in enumerate(items):
            stored, size = _encoded(item, index)
            head = headers[index] if headers else None
            yield (
                self.name,
                due[index] if isinstance(due, Sequence) else due,
                size,
                keys[index] if keys else None,
                json.dumps(dict(head)) if head else None,
                stored,
            )


def _encoded(item: object, index: int) -> tuple[str | bytes, int]:
    if isinstance(item, (bytes, bytearray)):
        data = bytes(item)
        return data, len(data)
    try:
        text = _ENCODER.encode(item)  # ASCII only: text that UTF-8 cannot hold goes in and comes out too
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"items[{index}] is neither bytes nor fit for JSON: {error}; encode it to bytes, or to a dict, first"
        ) from error
    return text, len(text)


def _insert(connection: sqlite3.Connection, rows: Sequence[_Row]) -> range:
    if not rows:
        return range(0)
    connection.executemany(_INSERT, rows)
    last: tuple[int] = connection.execute("SELECT last_insert_rowid()").fetchone()
    return range(last[0] - len(rows) + 1, last[0] + 1)


@asynccontextmanager
async def open_sqlite_queue(
    *,
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    queue: str = "default",
    synchronous: Synchronous = "full",
    deadline: float = DEADLINE,
) -> AsyncGenerator[SqliteQueue]:
    """Open the queue *queue* in a file to put items into it; `open_sqlite_source` hands them out.

    Args:
        path: The database file; it is made if it does not exist.
        url: The same as `sqlite:///relative.db` or `sqlite:////absolute.db`.
        queue: Name of the queue; a file holds any number.
        synchronous: With `full` what was put survives a power cut; with `normal` it survives the end of the process.
        deadline: Seconds that one call may take, waiting for locks included.

    Raises:
        ValueError: neither or both of *path* and *url* are given.
        EngineError: the file cannot be opened, or its tables are from a newer version.
    """
    file = file_of("open_sqlite_queue", path, url)
    async with open_database(file, synchronous=synchronous, deadline=positive("deadline", deadline)) as database:
        await prepare(database, QUEUE_SCHEMA)
        yield SqliteQueue(queue, database)
