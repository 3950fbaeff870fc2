"""Which offsets of a source are done, kept in the database that the results go to."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from attrs import define

from forebay_sqlite._connection import DEADLINE, Database, Synchronous, open_database
from forebay_sqlite._location import file_of, positive
from forebay_sqlite._offsets import OffsetSet, runs
from forebay_sqlite._schema import Schema, prepare

CHECKPOINT_SCHEMA: Final = Schema(
    "checkpoint",
    [
        [
            """
            CREATE TABLE forebay_checkpoints (
                name TEXT NOT NULL,
                partition INTEGER NOT NULL,
                mark INTEGER NOT NULL,  -- every offset below it is done
                ranges TEXT NOT NULL,   -- the others that are done, as JSON: [[first, one past the last], ...]
                PRIMARY KEY (name, partition)
            ) WITHOUT ROWID
            """
        ]
    ],
)


def load_offsets(connection: sqlite3.Connection, name: str, partition: int) -> OffsetSet:
    """Return what is done, in the transaction that *connection* is in."""
    row: tuple[int, str] | None = connection.execute(
        "SELECT mark, ranges FROM forebay_checkpoints WHERE name = ? AND partition = ?", (name, partition)
    ).fetchone()
    if row is None:
        return OffsetSet()
    ranges: list[tuple[int, int]] = json.loads(row[1])
    return OffsetSet([range(row[0]), *(range(start, stop) for start, stop in ranges)])


def save_offsets(connection: sqlite3.Connection, name: str, partition: int, offsets: OffsetSet) -> None:
    """Store what is done, in the transaction that *connection* is in."""
    ranges = [(one.start, one.stop) for one in offsets.ranges if one.start > 0]
    connection.execute(
        "INSERT INTO forebay_checkpoints VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET mark = excluded.mark, ranges = excluded.ranges",
        (name, partition, offsets.mark, json.dumps(ranges, separators=(",", ":"))),
    )


@define(eq=False)
class Checkpoint:
    """The offsets of one partition that are done, by a name. Any number of tasks and processes may add to it."""

    name: str
    partition: int
    _database: Database

    async def load(self) -> OffsetSet:
        """Return a copy of what is done."""
        return await self._database.read(
            f"loading checkpoint {self.name!r}", lambda c: load_offsets(c, self.name, self.partition)
        )

    async def add(self, offsets: Iterable[int], /) -> None:
        """Add *offsets*; those that are in already are ignored.

        Cancelled: all of them may have been added, or none.
        """
        new = runs(offsets if isinstance(offsets, range) else list(offsets))
        if new:
            await self._database.write(f"adding to checkpoint {self.name!r}", lambda c: self._add(c, new))

    async def clear(self) -> None:
        """Forget everything, so that the next run starts from the beginning."""
        await self._database.write(f"clearing checkpoint {self.name!r}", self._clear)

    def _add(self, connection: sqlite3.Connection, new: Iterable[range]) -> None:
        done = load_offsets(connection, self.name, self.partition)
        before = len(done)
        for one in new:
            done.add(one)
        if len(done) > before:  # what a sink has added with its rows costs no second write to the disk
            save_offsets(connection, self.name, self.partition, done)

    def _clear(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "DELETE FROM forebay_checkpoints WHERE name = ? AND partition = ?", (self.name, self.partition)
        )


@asynccontextmanager
async def open_sqlite_checkpoint(
    *,
    name: str,
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    partition: int = 0,
    synchronous: Synchronous = "full",
    deadline: float = DEADLINE,
) -> AsyncGenerator[Checkpoint]:
    """Open the checkpoint *name*, the same that `open_sqlite_sink(checkpoint=name)` writes with its rows.

    Args:
        name: Name of the checkpoint; give every source its own.
        path: The database file; it is made if it does not exist.
        url: The same as `sqlite:///relative.db` or `sqlite:////absolute.db`.
        partition: The source's partition that the offsets belong to.
        synchronous: With `full` what was added survives a power cut; with `normal` it survives the end of the process.
        deadline: Seconds that one call may take, waiting for locks included.

    Raises:
        ValueError: neither or both of *path* and *url* are given.
        EngineError: the file cannot be opened, or its tables are from a newer version.
    """
    file = file_of("open_sqlite_checkpoint", path, url)
    async with open_database(file, synchronous=synchronous, deadline=positive("deadline", deadline)) as database:
        await prepare(database, CHECKPOINT_SCHEMA)
        yield Checkpoint(name, partition, database)
