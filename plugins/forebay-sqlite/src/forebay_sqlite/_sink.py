"""Writes rows into a table, a batch in a transaction, and says of each row what became of it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from attrs import define

from forebay import EngineError, Failed, HandlerContractError, current_batch
from forebay.abc import Outcome
from forebay_sqlite._checkpoint import CHECKPOINT_SCHEMA, load_offsets, save_offsets
from forebay_sqlite._connection import DEADLINE, Database, Synchronous, open_database
from forebay_sqlite._failures import is_of_one_row
from forebay_sqlite._location import file_of, names_of, positive, quoted
from forebay_sqlite._offsets import OffsetSet, runs
from forebay_sqlite._schema import prepare
from forebay_sqlite._statement import Mode, Row, Statements

_Places: TypeAlias = Mapping[int, Mapping[int, int]]
"""Partition -> place in the batch -> offset."""


@define(eq=False)
class SqliteSink:
    """Writes rows into one table; a `forebay.abc.Sink`. Any number of tasks may use it at once."""

    table: str
    checkpoint: str | None
    _statements: Statements
    _database: Database
    _source: str | None = None

    @property
    def file(self) -> Path:
        """The database file."""
        return self._database.file

    async def write(self, items: Sequence[Row], /) -> list[Outcome] | None:
        """Write *items* in one transaction.

        A row that the table refuses (a constraint, a value that SQLite cannot hold, a column that is not there)
        is `Failed` with a permanent `EngineError`, and the others are written.

        With a checkpoint, call it in the last stage, which gets one row from each item of the source, all rows of
        the batch in one call and in order. Rows whose offsets are in the checkpoint are left out: an earlier run
        has written them. Behind `flat_map` the first batch is refused: the rows of one item may land in several
        batches, and only those of the first would be written.

        Raises:
            EngineError: nothing was written: the file is locked, full, damaged, or the deadline was reached.
            HandlerContractError: the checkpoint cannot tell which offset belongs to which row.
        """
        places = self._places(len(items))
        return await self._database.write(f"writing into table {self.table!r}", lambda c: self._write(c, items, places))

    def _write(self, connection: sqlite3.Connection, items: Sequence[Row], places: _Places) -> list[Outcome] | None:
        known = {partition: self._load(connection, partition) for partition in places}
        skipped = {place for part, offsets in places.items() for place, n in offsets.items() if n in known[part]}
        failures = self._insert(connection, items, skipped)
        for partition, offsets in places.items():
            for one in runs([offset for place, offset in offsets.items() if place not in failures]):
                known[partition].add(one)
            save_offsets(connection, self._checkpoint_name(), partition, known[partition])
        return [failures.get(place) for place in range(len(items))] if failures else None

    def _insert(self, connection: sqlite3.Connection, items: Sequence[Row], skipped: set[int]) -> dict[int, Failed]:
        groups, failures = self._statements.group(items, skipped)
        connection.execute("SAVEPOINT batch")
        try:
            for group in groups:
                connection.executemany(group.sql, group.values)
        except Exception as error:
            if not connection.in_transaction or not is_of_one_row(error):
                raise
            connection.execute("ROLLBACK TO batch")
            for group in groups:
                for place, values in zip(group.places, group.values, strict=True):
                    self._insert_one(connection, group.sql, values, place, failures)
        connection.execute("RELEASE batch")
        return failures

    def _insert_one(
        self,
        connection: sqlite3.Connection,
        sql: str,
        values: Sequence[object],
        place: int,
        failures: dict[int, Failed],
    ) -> None:
        try:
            connection.execute(sql, values)
        except Exception as error:
            if not connection.in_transaction or not is_of_one_row(error):
                raise
            failure = EngineError(f"table {self.table!r} refuses the row: {error}", category="permanent")
            failure.__cause__ = error
            failures[place] = Failed(failure)

    def _checkpoint_name(self) -> str:
        assert self.checkpoint is not None
        return self.checkpoint

    def _load(self, connection: sqlite3.Connection, partition: int) -> OffsetSet:
        return load_offsets(connection, self._checkpoint_name(), partition)

    def _places(self, count: int) -> _Places:
        places: dict[int, dict[int, int]] = {}
        if self.checkpoint is None:
            return places
        place = 0
        for part in current_batch().parts:
            self._check_source(part.source)
            if not part.acknowledges:
                raise self._refusal(
                    f"source {part.source!r} is a plain iterable, whose offsets begin at 0 in every run, so that "
                    "rows of another run would count as written (open_checkpointed() reads one with offsets that last)"
                )
            if part.children:
                raise self._refusal(f"several rows may come from one item of source {part.source!r} (flat_map)")
            if part.branches and part.source == self.checkpoint:
                raise HandlerContractError(
                    f"checkpoint {self.checkpoint!r} is that of the source, and its items go down other branches too: "
                    "after a crash those would miss what is written here; give the sink a checkpoint of its own"
                )
            mine = places.setdefault(part.partition, {})
            for offset in part.offsets:
                if not isinstance(offset, int):
                    raise self._refusal(f"source {part.source!r} has offsets that are no numbers, such as {offset!r}")
                mine[place] = offset
                place += 1
            if len(set(mine.values())) < len(mine):
                raise self._refusal(f"several rows of a batch come from one item of source {part.source!r}")
        if place != count:
            raise self._refusal(f"the batch has {place} items and write() got {count} rows")
        return places

    def _check_source(self, source: str) -> None:
        if self._source is None:
            self._source = source
        if source != self._source:
            raise self._refusal(f"rows come from the sources {self._source!r} and {source!r}")

    def _refusal(self, why: str) -> HandlerContractError:
        return HandlerContractError(
            f"checkpoint {self.checkpoint!r} must find the offset of each row, but {why}; "
            "open the sink without checkpoint=, or write one row for each item of one source"
        )


@asynccontextmanager
async def open_sqlite_sink(
    *,
    table: str,
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    columns: str | Sequence[str] | Mapping[str, str] | None = None,
    mode: Mode = "insert",
    key: str | Sequence[str] = (),
    checkpoint: str | None = None,
    synchronous: Synchronous = "full",
    deadline: float = DEADLINE,
) -> AsyncGenerator[SqliteSink]:
    """Open a table to write rows into: mappings by column name, or sequences in the order of the columns.

    Args:
        table: Name of the table.
        path: The database file; it is made if it does not exist.
        url: The same as `sqlite:///relative.db` or `sqlite:////absolute.db`.
        columns: What is written of each row. Names (in a URL with commas between): these, and what else a mapping holds
            is left out. A mapping of names to SQL types: these, and the table is made if it is missing, with *key*
            as its primary key. `None`: all the table's columns; one that a mapping lacks gets its default.
        mode: `insert`: a row whose key is there fails. `upsert`: it replaces the columns that are not in *key*.
            `ignore`: it is left out. `NOT NULL` and `CHECK` hold in each of them.
        key: Columns of the unique key that `upsert` goes by.
        checkpoint: Name of a checkpoint; the offsets of the rows are added to it in the same transaction, and rows
            whose offsets are in it are left out, so that each is written once however often a run is killed.
        synchronous: With `full` what was written survives a power cut, with `normal` the end of the process.
        deadline: Seconds that one call may take, waiting for locks included.

    Raises:
        ValueError: the arguments do not fit together, or the table has no such columns.
        EngineError: the file cannot be opened, or the table does not exist and *columns* has no types.
    """
    file = file_of("open_sqlite_sink", path, url)
    keys = names_of(key)
    types = columns if isinstance(columns, Mapping) else None
    names = None if columns is None else names_of(columns)
    if mode not in ("insert", "upsert", "ignore"):
        raise ValueError(f"mode must be 'insert', 'upsert' or 'ignore', not {mode!r}")
    if mode == "upsert" and not keys:
        raise ValueError("mode='upsert' goes by a unique key; name its columns in key=")
    async with open_database(file, synchronous=synchronous, deadline=positive("deadline", deadline)) as database:
        if types is not None:
            await database.write(f"making table {table!r}", lambda c: _create(c, table, types, keys))
        if checkpoint is not None:
            await prepare(database, CHECKPOINT_SCHEMA)
        found = await database.read(f"looking at table {table!r}", lambda c: _columns(c, table))
        if not found:
            raise EngineError(
                f"{file}: there is no table {table!r}; make it first, or give columns={{'name': 'TYPE', …}}",
                category="permanent",
            )
        statements = Statements(table, found, names, mode, keys)
        await database.read(f"preparing to write into {table!r}", statements.check)
        yield SqliteSink(table, checkpoint, statements, database)


def _create(connection: sqlite3.Connection, table: str, types: Mapping[str, str], keys: Sequence[str]) -> None:
    parts = [f"{quoted(name)} {kind}" for name, kind in types.items()]
    if keys:
        parts.append(f"PRIMARY KEY ({', '.join(map(quoted, keys))})")
    connection.execute(f"CREATE TABLE IF NOT EXISTS {quoted(table)} ({', '.join(parts)})")


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]
