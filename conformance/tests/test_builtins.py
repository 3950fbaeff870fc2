"""What forebay brings along passes its own suites."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from forebay._dead_letter import MemoryDeadLetterStore, open_memory_dead_letters
from forebay._queue import MemoryQueue
from forebay._state import MemoryStateStore, open_memory_state
from forebay.abc import Member
from forebay_conformance import DeadLetterStoreSuite, SinkSuite, SourceSuite, StateStoreSuite


@asynccontextmanager
async def open_queue(items: Sequence[bytes]) -> AsyncGenerator[MemoryQueue[bytes]]:
    queue = MemoryQueue[bytes](claim_seconds=1.0, weigh=len)
    queue.put_many(items)
    queue.close()
    yield queue


class TestMemoryQueueAsSource(SourceSuite):
    virtual_time = True

    def open_source(self, items: Sequence[bytes], /) -> AbstractAsyncContextManager[MemoryQueue[bytes]]:
        return open_queue(items)


class TestMemoryQueueAsSink(SinkSuite):
    virtual_time = True
    has_bad_item = False  # a queue takes anything

    @asynccontextmanager
    async def open_sink(self) -> AsyncGenerator[MemoryQueue[object]]:
        yield MemoryQueue[object]()

    async def written(self, sink: MemoryQueue[object]) -> Sequence[object]:
        async with sink.open(Member("reader")) as session:
            chunk = await session.exchange([], max_items=100_000, max_bytes=None)
        assert chunk is not None
        return chunk.items


class TestMemoryDeadLetterStore(DeadLetterStoreSuite):
    virtual_time = True

    def open_store(self) -> AbstractAsyncContextManager[MemoryDeadLetterStore]:
        return open_memory_dead_letters()


class TestMemoryStateStore(StateStoreSuite):
    virtual_time = True

    def open_store(self) -> AbstractAsyncContextManager[MemoryStateStore]:
        return open_memory_state()
