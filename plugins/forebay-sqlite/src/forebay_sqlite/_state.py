"""Small values by key, fenced by an epoch."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from attrs import define

from forebay import LostOwnershipError
from forebay_sqlite._connection import DEADLINE, Database, Synchronous, open_database
from forebay_sqlite._location import file_of, positive
from forebay_sqlite._schema import Schema, prepare

STATE_SCHEMA: Final = Schema(
    "state",
    [
        [
            """
            CREATE TABLE forebay_state (
                namespace TEXT NOT NULL,
                key TEXT NOT NULL,
                value BLOB NOT NULL,
                expires REAL,  -- Unix time; NULL: never
                PRIMARY KEY (namespace, key)
            ) WITHOUT ROWID
            """,
            "CREATE INDEX forebay_state_expires ON forebay_state (namespace, expires) WHERE expires IS NOT NULL",
            "CREATE TABLE forebay_state_epochs (namespace TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID",
        ]
    ],
)

_GET: Final = "SELECT value FROM forebay_state WHERE namespace = ? AND key = ? AND (expires IS NULL OR expires > ?)"
_PUT: Final = """
    INSERT INTO forebay_state VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET value = excluded.value, expires = excluded.expires
"""
_DELETE: Final = "DELETE FROM forebay_state WHERE namespace = ? AND key = ?"
_EXPIRE: Final = """
    DELETE FROM forebay_state WHERE namespace = ? AND key IN (
        SELECT key FROM forebay_state WHERE namespace = ? AND expires <= ? LIMIT 100
    )
"""
_FENCE: Final = """
    INSERT INTO forebay_state_epochs VALUES (?, ?)
    ON CONFLICT DO UPDATE SET epoch = excluded.epoch WHERE epoch < excluded.epoch
"""
_PAGE: Final = 500
_FROM: Final = """
    SELECT key FROM forebay_state
    WHERE namespace = ? AND key >= ? AND (expires IS NULL OR expires > ?) ORDER BY key LIMIT 500
"""
_AFTER: Final = _FROM.replace("key >= ?", "key > ?")


@define(eq=False)
class SqliteStateStore:
    """Values of one namespace; a `forebay.abc.StateStore`. Any number of tasks and processes may use it at once.

    Time is this machine's clock. A write that is accepted raises the fence to its epoch even if it changes nothing.
    Cancelled: all of a write may have happened, or none of it.
    """

    namespace: str
    _database: Database

    async def get_many(self, keys: Sequence[str], /) -> list[bytes | None]:
        """Return the value of each key in order, `None` where there is none; all as of one moment."""
        return await self._database.read(f"reading state {self.namespace!r}", lambda c: self._get(c, keys))

    async def put_many(self, values: Mapping[str, bytes], /, *, epoch: int, ttl: float | None = None) -> None:
        """Store all of *values* or none; with *ttl* they are gone after so many seconds.

        Raises:
            LostOwnershipError: a higher epoch has written here.
        """
        if ttl is not None and not ttl > 0:
            raise ValueError(f"ttl must be greater than 0 seconds, not {ttl}; leave it out to keep the values")
        copies = {key: bytes(value) for key, value in values.items()}
        await self._database.write(f"writing state {self.namespace!r}", lambda c: self._put(c, copies, epoch, ttl))

    async def delete_many(self, keys: Sequence[str], /, *, epoch: int) -> None:
        """Delete all of *keys*; those that do not exist are ignored.

        Raises:
            LostOwnershipError: a higher epoch has written here.
        """
        await self._database.write(f"deleting state {self.namespace!r}", lambda c: self._delete(c, list(keys), epoch))

    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        """Set *key* to *new* if it holds *old* now; `None` stands for no value.

        A value that is set this way lives until it is deleted, whatever the `ttl` of the old one.

        Raises:
            LostOwnershipError: a higher epoch has written here.
        """
        return await self._database.write(
            f"comparing state {self.namespace!r}", lambda c: self._cas(c, key, old, new, epoch)
        )

    async def scan(self, prefix: str, /) -> AsyncGenerator[str]:
        """Iterate over the keys that start with *prefix*, ascending, 500 in memory at a time.

        The store may change meanwhile: no key comes twice, and one that is there all the while comes.
        """
        query, start = _FROM, prefix
        while True:
            page = await self._database.read(
                f"scanning state {self.namespace!r}", partial(self._page, query=query, start=start)
            )
            for key in page:
                if not key.startswith(prefix):
                    return
                yield key
            if len(page) < _PAGE:
                return
            query, start = _AFTER, page[-1]

    def _get(self, connection: sqlite3.Connection, keys: Sequence[str]) -> list[bytes | None]:
        now = time.time()
        return [self._value(connection, key, now) for key in keys]

    def _value(self, connection: sqlite3.Connection, key: str, now: float) -> bytes | None:
        row: tuple[bytes] | None = connection.execute(_GET, (self.namespace, key, now)).fetchone()
        return row[0] if row else None

    def _put(self, connection: sqlite3.Connection, values: Mapping[str, bytes], epoch: int, ttl: float | None) -> None:
        now = time.time()
        self._fence(connection, epoch)
        connection.execute(_EXPIRE, (self.namespace, self.namespace, now))
        end = None if ttl is None else now + ttl
        connection.executemany(_PUT, [(self.namespace, key, value, end) for key, value in values.items()])

    def _delete(self, connection: sqlite3.Connection, keys: Sequence[str], epoch: int) -> None:
        self._fence(connection, epoch)
        connection.executemany(_DELETE, [(self.namespace, key) for key in keys])

    def _cas(self, connection: sqlite3.Connection, key: str, old: bytes | None, new: bytes | None, epoch: int) -> bool:
        self._fence(connection, epoch)
        if self._value(connection, key, time.time()) != old:
            return False
        if new is None:
            connection.execute(_DELETE, (self.namespace, key))
        else:
            connection.execute(_PUT, (self.namespace, key, bytes(new), None))
        return True

    def _page(self, connection: sqlite3.Connection, *, query: str, start: str) -> list[str]:
        return [row[0] for row in connection.execute(query, (self.namespace, start, time.time()))]

    def _fence(self, connection: sqlite3.Connection, epoch: int) -> None:
        connection.execute(_FENCE, (self.namespace, epoch))
        row: tuple[int] = connection.execute(
            "SELECT epoch FROM forebay_state_epochs WHERE namespace = ?", (self.namespace,)
        ).fetchone()
        if epoch < row[0]:
            raise LostOwnershipError(
                f"epoch {epoch} may not write to state {self.namespace!r}: epoch {row[0]} has written there"
            )


@asynccontextmanager
async def open_sqlite_state(
    *,
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    namespace: str = "default",
    synchronous: Synchronous = "full",
    deadline: float = DEADLINE,
) -> AsyncGenerator[SqliteStateStore]:
    """Open the values of *namespace*.

    Args:
        path: The database file; it is made if it does not exist.
        url: The same as `sqlite:///relative.db` or `sqlite:////absolute.db`.
        namespace: Whose values; each namespace has keys and a fence of its own.
        synchronous: With `full` what was written survives a power cut, with `normal` the end of the process.
        deadline: Seconds that one call may take, waiting for locks included.

    Raises:
        ValueError: neither or both of *path* and *url* are given.
        EngineError: the file cannot be opened, or its tables are from a newer version.
    """
    file = file_of("open_sqlite_state", path, url)
    async with open_database(file, synchronous=synchronous, deadline=positive("deadline", deadline)) as database:
        await prepare(database, STATE_SCHEMA)
        yield SqliteStateStore(namespace, database)
