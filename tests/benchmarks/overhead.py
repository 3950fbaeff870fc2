"""Overhead: the CPU time of a pipeline against a bare loop; one process for each backend, each with its own loop."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

from tests.benchmarks.measure import OLDEST, Options, Row, cpu_seconds, interleave, main, spread
from tests.benchmarks.pipelines import EVERYWHERE, ON_ASYNCIO, Pipeline, floor, with_aiostream

BARS = {"forebay": 1.22 if OLDEST else 1.15, "forebay, full": 1.38 if OLDEST else 1.30}
SLOW_ITEMS = 20_000
"""Items for libraries that take microseconds for each."""


def measured(pipeline: Pipeline, count: int, backend: str) -> float:
    """Return the CPU time of *pipeline* for an item, and see to it that it did the work."""

    async def work() -> None:
        done = await pipeline(count)
        if done != count:
            raise AssertionError(f"{pipeline.__name__} counted {done} of {count} items")

    return cpu_seconds(work, backend) / count


def overhead(options: Options) -> list[Row]:
    """Return a row for each pipeline that runs on the backend."""
    count = 200_000 if options.quick else 1_000_000
    pipelines = {"floor": floor, **EVERYWHERE, **(ON_ASYNCIO if options.backend == "asyncio" else {})}
    candidates: dict[str, Callable[[], float]] = {
        name: partial(measured, pipeline, count, options.backend) for name, pipeline in pipelines.items()
    }
    readings = interleave(candidates, options.rounds(7))
    least = min(readings["floor"])
    rows = [Row("overhead", f"bare loop beside {options.backend}", least * 1e9, "ns", note=spread(readings["floor"]))]
    for name, seconds in list(readings.items())[1:]:
        note = f"{min(seconds) * 1e9:.0f} ns an item, {spread(seconds)}"
        rows.append(Row("overhead", f"{name}, {options.backend}", min(seconds) / least, bar=BARS.get(name), note=note))
    if options.backend == "asyncio":
        rows.append(_aiostream(options, least))
    return rows


def _aiostream(options: Options, least: float) -> Row:
    if importlib.util.find_spec("aiostream") is None:
        return Row("overhead", "aiostream, asyncio", None, note="not run: aiostream is not installed")
    readings = [measured(with_aiostream, SLOW_ITEMS, "asyncio") for _ in range(options.rounds(3))]
    note = f"{min(readings) * 1e9:.0f} ns an item, {SLOW_ITEMS:,} items only"
    return Row("overhead", "aiostream, asyncio", min(readings) / least, note=note)


if __name__ == "__main__":
    main(overhead)
