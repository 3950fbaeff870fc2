"""Memory: a fast producer and a slow sink for 5 s; a process for each backend and one for a queue without a bound."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

import anyio

import forebay
from tests.benchmarks.measure import Options, Row, main

BATCH = 256
BOUND = 1024
ITEM_BYTES = 1024
MEGABYTE = 2**20


def peak_bytes() -> int:
    """Return the most memory that this process has had so far.

    `ru_maxrss` starts with the parent's size on Linux, so the kernel's own mark is read where there is one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        marks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if marks:
            return int(marks[0].split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def payloads(seconds: float) -> Iterator[bytes]:
    """Generate items as fast as they are taken, for so long; each is an object of its own."""
    until = perf_counter() + seconds
    filler = b"x" * (ITEM_BYTES - sys.getsizeof(b"") - 8)
    number = 0
    while perf_counter() < until:
        yield number.to_bytes(8, "big") + filler
        number += 1


class SlowSink:
    """Takes 10 ms a call."""

    def __init__(self) -> None:
        self.items = 0

    async def take(self, batch: Sequence[bytes]) -> None:
        await anyio.sleep(0.01)
        self.items += len(batch)


async def by_pipeline(seconds: float) -> tuple[int, int]:
    sink = SlowSink()
    await forebay.pipeline([b""]).map_batches(sink.take, max_size=1).run()  # what a first run loads is no growth
    sink.items = 0
    before = peak_bytes()
    recipe = forebay.pipeline(payloads(seconds)).map_batches(sink.take, max_size=BATCH, capacity=BOUND)
    await recipe.run()
    return peak_bytes() - before, sink.items


async def by_unbounded_queue(seconds: float) -> tuple[int, int]:
    """Show that growth is seen: `asyncio.Queue()` has no bound."""
    sink = SlowSink()
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    before = peak_bytes()

    async def produce() -> None:
        for number, item in enumerate(payloads(seconds)):
            await queue.put(item)
            if number % 64 == 0:
                await asyncio.sleep(0)

    async def consume() -> None:
        while True:
            await sink.take([await queue.get() for _ in range(BATCH)])

    consumer = asyncio.create_task(consume())
    await produce()
    consumer.cancel()
    return peak_bytes() - before, sink.items


def memory(options: Options) -> list[Row]:
    """Return the growth of one run; the peak never falls, so a process has room for one run only."""
    seconds = 1.0 if options.quick else 5.0
    growth, items = anyio.run(by_pipeline, seconds, backend=options.backend)
    bar = (2 * BOUND * ITEM_BYTES) / MEGABYTE + 2
    note = f"{items:,} items of {ITEM_BYTES} bytes, bound {BOUND:,}, {items / seconds / 25_600:.0%} of the sink's limit"
    return [Row("memory", f"growth of the peak, {options.backend}", growth / MEGABYTE, "MB", bar=bar, note=note)]


def unbounded(options: Options) -> list[Row]:
    """Return what the same producer does to a queue without a bound."""
    seconds = 0.2 if options.quick else 1.0
    growth, items = asyncio.run(by_unbounded_queue(seconds))
    note = f"{seconds:g} s only, {items:,} items taken"
    return [Row("memory", "by hand, asyncio.Queue() without a bound", growth / MEGABYTE, "MB", note=note)]


if __name__ == "__main__":
    if "--unbounded" in sys.argv:
        sys.argv.remove("--unbounded")
        main(unbounded)
    else:
        main(memory)
