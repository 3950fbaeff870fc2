"""Latency under load that does not wait for answers: from when an item should have come to when its sink call ended.

One process for each backend. All rates run with the same setting. Times are of the wall clock, so a busy machine shows.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from time import perf_counter

import anyio

import forebay
from tests.benchmarks.measure import Options, Row, main, quantile

RATES = (2_000, 10_000, 50_000)
BATCH = 256
CONCURRENCY = 4
"""Of forebay's sink calls: the one setting."""


class SlowSink:
    """Takes 1 ms and 2 µs an item, like a database, and notes how late each item was."""

    def __init__(self) -> None:
        self.calls = 0
        self.seconds: list[float] = []

    async def take(self, dues: Sequence[float]) -> None:
        await anyio.sleep(0.001 + 2e-6 * len(dues))
        now = perf_counter()
        self.calls += 1
        self.seconds += [now - due for due in dues]

    async def answer(self, dues: Sequence[float]) -> list[float]:
        await self.take(dues)
        return list(dues)


async def arrivals(rate: int, seconds: float) -> AsyncGenerator[float]:
    """Yield the moments when items are due, when they are due; late ones at once."""
    started = perf_counter()
    for number in range(int(rate * seconds)):
        due = started + number / rate
        wait = due - perf_counter()
        if wait > 0:
            await anyio.sleep(wait)
        yield due


Way = Callable[[int, float, SlowSink], Awaitable[object]]


async def by_pipeline(rate: int, seconds: float, sink: SlowSink) -> None:
    recipe = forebay.pipeline(arrivals(rate, seconds))
    await recipe.map_batches(sink.take, max_size=BATCH, max_concurrency=CONCURRENCY).run()


async def by_batcher(rate: int, seconds: float, sink: SlowSink) -> None:
    """Start a task for each item, which submits it."""
    async with forebay.open_batcher(sink.answer, max_size=BATCH, max_concurrency=CONCURRENCY) as batcher:
        async with anyio.create_task_group() as callers:
            async for due in arrivals(rate, seconds):
                callers.start_soon(batcher.submit, due)


async def by_hand(rate: int, seconds: float, sink: SlowSink) -> None:
    """Batches of at most 64, at most 16 calls, and 5 ms that an item waits for company."""
    send, receive = anyio.create_memory_object_stream[float](1024)
    slots = anyio.Semaphore(16)

    async def produce() -> None:
        async with send:
            async for due in arrivals(rate, seconds):
                await send.send(due)

    async def call(batch: list[float]) -> None:
        try:
            await sink.take(batch)
        finally:
            slots.release()

    async with anyio.create_task_group() as tasks, receive:
        tasks.start_soon(produce)
        async for first in receive:
            batch = [first]
            with anyio.move_on_after(0.005):
                while len(batch) < 64:
                    try:
                        batch.append(await receive.receive())
                    except anyio.EndOfStream:
                        break
            await slots.acquire()
            tasks.start_soon(call, batch)


WAYS: tuple[tuple[str, Way, float | None, int], ...] = (
    ("pipeline", by_pipeline, 6.0, 50_000),
    ("open_batcher", by_batcher, None, 10_000),
    ("by hand, 64x16 with 5 ms linger", by_hand, None, 50_000),
)
"""Each with its bar and the highest rate it is tried at: a core cannot start 50,000 tasks a second."""


def measured(way: Way, rate: int, options: Options) -> SlowSink:
    """Return the sink of the better of two runs, by its p99."""
    seconds = 0.5 if options.quick else 2.0
    sinks: list[SlowSink] = []
    for _ in range(1 if options.quick else 2):
        sink = SlowSink()
        anyio.run(way, rate, seconds, sink, backend=options.backend)
        sinks.append(sink)
        if len(sink.seconds) != int(rate * seconds):
            raise AssertionError(f"{len(sink.seconds)} of {int(rate * seconds)} items came to the sink")
    return min(sinks, key=lambda sink: quantile(sink.seconds, 0.99))


def latency(options: Options) -> list[Row]:
    """Return the p99 of each way at each rate."""
    rows: list[Row] = []
    for rate in RATES:
        for name, way, bar, highest in WAYS:
            if rate > highest:
                continue
            sink = measured(way, rate, options)
            p99 = quantile(sink.seconds, 0.99) * 1e3
            note = f"p50 {quantile(sink.seconds, 0.5) * 1e3:.1f} ms, {len(sink.seconds) / sink.calls:.0f} items a call"
            rows.append(Row("latency", f"p99 at {rate:,}/s, {name}, {options.backend}", p99, "ms", bar=bar, note=note))
    return rows


if __name__ == "__main__":
    main(latency)
