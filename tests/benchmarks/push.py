"""Push: 200 callers that each wait for their own result; a process for each backend, with aiodataloader in both.

aiodataloader runs on asyncio only: beside forebay on Trio it gets an asyncio loop of its own, in the same process.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import anyio

import forebay
from tests.benchmarks.measure import Options, Row, cpu_seconds, interleave, main, quantile, spread

CALLERS = 200
BATCH = 256

Submit = Callable[[int], Awaitable[int]]


async def answer(items: Sequence[int]) -> list[int]:
    """Answer at once: what is left is the cost of the call itself."""
    return list(items)


async def answer_slowly(items: Sequence[int]) -> list[int]:
    """Answer like a database: a fixed cost and one for each item."""
    await anyio.sleep(0.001 + 2e-6 * len(items))
    return list(items)


async def closed_loop(submit: Submit, calls: int, seconds: list[float] | None = None) -> None:
    """Let each caller make *calls* calls, one after the other; note how long each took if *seconds* is given."""

    async def caller(number: int) -> None:
        for _ in range(calls):
            if await submit(number) != number:
                raise AssertionError("a caller got what belongs to another")

    async def timed(number: int) -> None:
        assert seconds is not None
        for _ in range(calls):
            started = time.perf_counter()
            await submit(number)
            seconds.append(time.perf_counter() - started)

    async with anyio.create_task_group() as tasks:
        for number in range(CALLERS):
            tasks.start_soon(caller if seconds is None else timed, number)


Handler = Callable[[Sequence[int]], Awaitable[list[int]]]


async def with_forebay(handler: Handler, calls: int, seconds: list[float] | None = None) -> None:
    async with forebay.open_batcher(handler, max_size=BATCH) as batcher:
        await closed_loop(batcher.submit, calls, seconds)


async def with_aiodataloader(handler: Handler, calls: int, seconds: list[float] | None = None) -> None:
    loader: Any = importlib.import_module("aiodataloader").DataLoader(handler, max_batch_size=BATCH, cache=False)
    await closed_loop(loader.load, calls, seconds)


def push(options: Options) -> list[Row]:
    """Return the rows of an answer that costs nothing and of one that costs a millisecond."""
    if importlib.util.find_spec("aiodataloader") is None:
        return [Row("push", "aiodataloader", None, note="not run: aiodataloader is not installed")]
    return [*_at_once(options), *_slowly(options)]


def _at_once(options: Options) -> list[Row]:
    calls = 100 if options.quick else 500
    candidates: dict[str, Callable[[], float]] = {
        "forebay": partial(cpu_seconds, partial(with_forebay, answer, calls), options.backend),
        "aiodataloader": partial(cpu_seconds, partial(with_aiodataloader, answer, calls), "asyncio"),
    }
    readings = interleave(candidates, options.rounds(7))
    ours, theirs = (min(readings[name]) / (calls * CALLERS) for name in candidates)
    note = f"{ours * 1e6:.2f} µs a call beside {theirs * 1e6:.2f}, {spread(readings['forebay'])}"
    bar = 1.3 if options.backend == "asyncio" else 1.8
    return [Row("push", f"CPU of a call to aiodataloader's, {options.backend}", ours / theirs, bar=bar, note=note)]


def _slowly(options: Options) -> list[Row]:
    calls = 20 if options.quick else 150
    waits: dict[str, list[float]] = {"forebay": [], "aiodataloader": []}
    lasted: dict[str, list[float]] = {"forebay": [], "aiodataloader": []}

    def run(name: str, work: Callable[[Handler, int, list[float]], Awaitable[None]], backend: str) -> float:
        async def clocked() -> None:
            started = time.perf_counter()
            await work(answer_slowly, calls, waits[name])
            lasted[name].append(time.perf_counter() - started)

        return cpu_seconds(clocked, backend)

    candidates: dict[str, Callable[[], float]] = {
        "forebay": partial(run, "forebay", with_forebay, options.backend),
        "aiodataloader": partial(run, "aiodataloader", with_aiodataloader, "asyncio"),
    }
    readings = interleave(candidates, options.rounds(5))
    count = calls * CALLERS
    ours, theirs = (
        f"{min(readings[name]) / count * 1e6:.1f} µs, {count / min(lasted[name]):,.0f} calls/s, "
        f"p50 {quantile(waits[name], 0.5) * 1e3:.1f} and p99 {quantile(waits[name], 0.99) * 1e3:.1f} ms"
        for name in candidates
    )
    ratio = min(readings["forebay"]) / min(readings["aiodataloader"])
    name = f"the same into a sink of 1 ms + 2 µs an item, {options.backend}"
    return [Row("push", name, ratio, note=f"{ours}; aiodataloader {theirs}")]


if __name__ == "__main__":
    main(push)
