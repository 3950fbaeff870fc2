"""The workload done with forebay, by hand, and with other libraries; each returns how many items its sink counted."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

import forebay
from forebay.abc import Observer
from forebay.hooks import Plugins
from tests.benchmarks.workload import BATCH, CountedSource, Item, Tally, bare_loop, enrich, orders

Pipeline = Callable[[int], Awaitable[int]]

CHUNKS = 4
"""Lists that wait between two tasks of a pipeline written by hand: 1,024 items, as in forebay's smallest queue."""


async def floor(count: int) -> int:
    tally = Tally()
    await bare_loop(count, tally)
    return tally.items


async def with_forebay(count: int, plugins: Plugins | None = None) -> int:
    tally = Tally()
    await forebay.pipeline(orders(count)).map(enrich).map_batches(tally.take, max_size=BATCH).run(plugins=plugins)
    return tally.items


async def with_settlement(count: int) -> int:
    """Settle every item to a source that wants it, with metrics and an observer that does nothing."""
    tally = Tally()
    source = CountedSource(orders(count), count)
    recipe = forebay.pipeline(source).map(enrich).map_batches(tally.take, max_size=BATCH)
    await recipe.run(observers=[Observer()])
    if source.settled != count or source.twice:
        raise AssertionError(f"{source.settled} of {count} items were settled, {source.twice} twice")
    return tally.items


# --- By hand -----------------------------------------------------------------------------------


def _chunks(count: int) -> Iterator[list[Item]]:
    items = orders(count)
    while chunk := list(islice(items, BATCH)):
        yield chunk


async def by_asyncio_queues(count: int) -> int:
    """Three tasks and two `asyncio.Queue`s of lists."""
    tally = Tally()
    raw: asyncio.Queue[list[Item] | None] = asyncio.Queue(CHUNKS)
    mapped: asyncio.Queue[list[Item] | None] = asyncio.Queue(CHUNKS)

    async def produce() -> None:
        for chunk in _chunks(count):
            await raw.put(chunk)
        await raw.put(None)

    async def change() -> None:
        while (chunk := await raw.get()) is not None:
            await mapped.put([enrich(item) for item in chunk])
        await mapped.put(None)

    async def consume() -> None:
        while (chunk := await mapped.get()) is not None:
            await tally.take(chunk)

    async with asyncio.TaskGroup() as tasks:
        for task in (produce, change, consume):
            tasks.create_task(task())
    return tally.items


async def by_anyio_streams(count: int) -> int:
    """Three tasks and two memory object streams of lists."""
    tally = Tally()
    put_raw, get_raw = anyio.create_memory_object_stream[list[Item]](CHUNKS)
    put_mapped, get_mapped = anyio.create_memory_object_stream[list[Item]](CHUNKS)

    async def produce(out: MemoryObjectSendStream[list[Item]]) -> None:
        async with out:
            for chunk in _chunks(count):
                await out.send(chunk)

    async def change(inbox: MemoryObjectReceiveStream[list[Item]], out: MemoryObjectSendStream[list[Item]]) -> None:
        async with inbox, out:
            async for chunk in inbox:
                await out.send([enrich(item) for item in chunk])

    async def consume(inbox: MemoryObjectReceiveStream[list[Item]]) -> None:
        async with inbox:
            async for chunk in inbox:
                await tally.take(chunk)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(produce, put_raw)
        tasks.start_soon(change, get_raw, put_mapped)
        tasks.start_soon(consume, get_mapped)
    return tally.items


# --- Other libraries ---------------------------------------------------------------------------


async def with_aiostream(count: int) -> int:
    stream = importlib.import_module("aiostream").stream
    tally = Tally()
    changed = stream.map(stream.iterate(orders(count)), enrich)
    async with stream.action(stream.chunks(changed, BATCH), tally.take).stream() as batches:
        async for _ in batches:
            pass
    return tally.items


EVERYWHERE: dict[str, Pipeline] = {
    "forebay": with_forebay,
    "forebay, full": with_settlement,
    "by hand, anyio streams of lists": by_anyio_streams,
}
"""Pipelines that run on both backends."""

ON_ASYNCIO: dict[str, Pipeline] = {"by hand, asyncio.Queue of lists": by_asyncio_queues}
"""Pipelines that run on asyncio only."""
