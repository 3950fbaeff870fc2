"""What all benchmarks share: a row of the table, CPU time, interleaved rounds."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
import attrs

OLDEST = sys.version_info < (3, 12)
"""Whether this is the oldest Python supported, for which some bars are higher."""


@attrs.frozen
class Row:
    """One line of the table."""

    benchmark: str
    name: str
    figure: float | None
    """What was reached; `None` where it was not measured, and then `note` says why."""
    unit: str = "x"
    """`x` for a ratio, else the unit of the figure."""
    bar: float | None = None
    """Most that the figure should be; `None` for a row that is there to compare with."""
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the figure is within its bar; `None` where there is no bar."""
        return None if self.bar is None or self.figure is None else self.figure <= self.bar


@attrs.frozen
class Options:
    """What a benchmark is asked for."""

    backend: str
    quick: bool

    def rounds(self, count: int) -> int:
        """Return how many rounds to run where a whole run has *count*."""
        return min(count, 3) if self.quick else count


Work = Callable[[], Awaitable[object]]


def cpu_seconds(work: Work, backend: str) -> float:
    """Run *work* in an event loop of its own; return the CPU time it took, without the loop's start and end."""

    async def timed() -> float:
        gc.collect()
        started = time.process_time()
        await work()
        return time.process_time() - started

    return anyio.run(timed, backend=backend)


def interleave(candidates: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure all candidates once in each round, every other round in reverse; return each one's readings."""
    readings: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        names = list(candidates) if number % 2 == 0 else list(reversed(list(candidates)))
        for name in names:
            readings[name].append(candidates[name]())
    return readings


def spread(readings: Sequence[float]) -> str:
    """Return how far the median lies above the best reading: large on a machine that is busy with something else."""
    return f"median +{100 * (statistics.median(readings) / min(readings) - 1):.0f} %"


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that *share* of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main(benchmark: Callable[[Options], Sequence[Row]]) -> None:
    """Run *benchmark* as a process of its own: options from the command line, rows as JSON to standard output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="trio", choices=["asyncio", "trio"])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    rows = benchmark(Options(given.backend, given.quick))
    json.dump([{**attrs.asdict(row), "ok": row.ok} for row in rows], sys.stdout)
