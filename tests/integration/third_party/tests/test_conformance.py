"""forebay's suites over real folders."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from drawer import DrawerDeadLetters, DrawerSink, DrawerSource

from forebay.abc import DeadLetterStore, Sink, Source
from forebay_conformance import DeadLetterStoreSuite, SinkSuite, SourceSuite


class TestDrawerSource(SourceSuite):
    keeps_counts = False
    supports_claims = False
    supports_members = False
    supports_epochs = False
    supports_delay = False

    @asynccontextmanager
    async def open_source(self, items: Sequence[bytes], /) -> AsyncGenerator[Source[object]]:
        with TemporaryDirectory() as folder:
            for number, item in enumerate(items):
                (Path(folder) / f"{number:06}").write_bytes(item)
            yield DrawerSource(Path(folder))


class TestDrawerSink(SinkSuite):
    @asynccontextmanager
    async def open_sink(self) -> AsyncGenerator[Sink[Any]]:
        with TemporaryDirectory() as folder:
            yield DrawerSink(Path(folder))

    def make_bad_item(self, number: int, /) -> object:
        return {"number": number, "text": b"JSON has no bytes"}

    async def written(self, sink: DrawerSink, /) -> Sequence[object]:
        return [json.loads(file.read_text()) for file in sink.folder.iterdir()]


class TestDrawerDeadLetters(DeadLetterStoreSuite):
    @asynccontextmanager
    async def open_store(self) -> AsyncGenerator[DeadLetterStore]:
        with TemporaryDirectory() as folder:
            yield DrawerDeadLetters(Path(folder) / "letters.json")
