"""The suites that every plugin must pass, over real files."""

import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from forebay.abc import DeadLetterStore, Sink, Source, StateStore
from forebay_conformance import DeadLetterStoreSuite, SinkSuite, SourceSuite, StateStoreSuite
from forebay_sqlite import (
    Row,
    SqliteSink,
    open_checkpointed,
    open_sqlite_dead_letters,
    open_sqlite_queue,
    open_sqlite_sink,
    open_sqlite_source,
    open_sqlite_state,
)


class TestQueueSource(SourceSuite):
    @asynccontextmanager
    async def open_source(self, items: Sequence[object], /) -> AsyncGenerator[Source[object]]:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "queue.db"
            async with open_sqlite_queue(path=path) as queue:
                await queue.put_many(items)
            async with open_sqlite_source(path=path, until_empty=True, claim_seconds=0.6, poll_seconds=0.05) as source:
                yield source


class TestCheckpointedSource(SourceSuite):
    supports_claims = False  # the rows are this process's own
    knows_lag = False  # only once it has read all

    @asynccontextmanager
    async def open_source(self, items: Sequence[bytes], /) -> AsyncGenerator[Source[object]]:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.db"
            async with open_checkpointed(lambda start: items[start:], path=path, name="rows", weigh=len) as source:
                yield source


class TestSink(SinkSuite):
    @asynccontextmanager
    async def open_sink(self) -> AsyncGenerator[Sink[Any]]:
        with TemporaryDirectory() as folder:
            columns = {"number": "INTEGER NOT NULL", "text": "TEXT"}
            async with open_sqlite_sink(path=Path(folder) / "sink.db", table="items", columns=columns) as sink:
                yield sink

    def make_bad_item(self, number: int, /) -> Row:
        return {"number": None, "text": f"bad {number}"}

    async def written(self, sink: SqliteSink, /) -> Sequence[Row]:
        connection = sqlite3.connect(sink.file)
        try:
            rows = connection.execute("SELECT number, text FROM items").fetchall()
        finally:
            connection.close()
        return [{"number": number, "text": text} for number, text in rows]


class TestDeadLetters(DeadLetterStoreSuite):
    @asynccontextmanager
    async def open_store(self) -> AsyncGenerator[DeadLetterStore]:
        with TemporaryDirectory() as folder:
            async with open_sqlite_dead_letters(path=Path(folder) / "dead.db") as store:
                yield store


class TestState(StateStoreSuite):
    @asynccontextmanager
    async def open_store(self) -> AsyncGenerator[StateStore]:
        with TemporaryDirectory() as folder:
            async with open_sqlite_state(path=Path(folder) / "state.db") as store:
                yield store
