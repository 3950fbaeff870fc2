"""What came of one simulated run."""

from __future__ import annotations

import math
from typing import cast

import attrs

from forebay._types import Limits
from tests.benchmarks.control_plant import Scenario

BIN = 0.02
"""Width of a bin of the histogram, in the logarithm: quantiles are within 1 %."""


@attrs.define
class Histogram:
    """Counts of items by the logarithm of their time."""

    bins: dict[int, int] = attrs.field(factory=dict[int, int])
    count: int = 0

    def add(self, seconds: float, items: int) -> None:
        """Count *items* that took *seconds*."""
        index = round(math.log(seconds) / BIN) if seconds > 1e-6 else -1000
        self.bins[index] = self.bins.get(index, 0) + items
        self.count += items

    def merge(self, other: Histogram) -> None:
        """Count what *other* has counted."""
        for index, items in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + items
        self.count += other.count

    def quantile(self, share: float) -> float:
        """Return the seconds that *share* of the items do not exceed; not a number where there are none."""
        below = 0
        for index in sorted(self.bins):
            below += self.bins[index]
            if below >= share * self.count:
                return math.exp(index * BIN)
        return math.nan


@attrs.define
class Result:
    """What came of one run. Items are counted once: offered = done + failed + shed + turned_away + left."""

    seconds: int
    """Length of the scenario."""
    offered: int = 0
    done: int = 0
    good: int = 0
    """Items done within the goal."""
    settled_good: int = 0
    """The same, without the first seconds of each phase."""
    failed: int = 0
    shed: int = 0
    turned_away: int = 0
    left: int = 0
    """Items queued or in flight at the end."""
    calls: int = 0
    too_large: int = 0
    """Calls refused for their size; their items went back to the front of the queue."""
    timed_out: int = 0
    peak: int = 0
    """Most items in memory, queued and in flight."""
    item_seconds: float = 0.0
    """Integral of the items in memory over time."""
    sojourns: float = 0.0
    """Sum of the times that items spent in memory, to the end of the run for those that are left."""
    latency: Histogram = attrs.field(factory=Histogram)
    """From arrival, of the items done."""
    settled: Histogram = attrs.field(factory=Histogram)
    good_by_second: list[int] = attrs.field(factory=list[int])
    trace: list[tuple[float, int, int]] = attrs.field(factory=list[tuple[float, int, int]])
    """(time, batch size, concurrency), twice a second; probes left out."""
    controller_seconds: float = 0.0
    """CPU time of the controller, where it was measured."""
    breaches: list[str] = attrs.field(factory=list[str])
    """Limits that the controller had no right to."""

    @property
    def average(self) -> float:
        """Items in memory, averaged over time."""
        return self.item_seconds / self.seconds


def breach(limits: object, scenario: Scenario) -> str | None:
    """Return what is wrong with *limits*; `None` where they are within the bounds of *scenario*."""
    if not isinstance(limits, Limits):
        return f"{limits!r} is no Limits"
    size, calls, wait = cast("tuple[object, object, object]", (limits.batch_size, limits.concurrency, limits.max_wait))
    if type(size) is not int or not 1 <= size <= scenario.max_size:
        return f"batch_size {size!r} is no whole number from 1 to {scenario.max_size}"
    if type(calls) is not int or not 1 <= calls <= scenario.max_concurrency:
        return f"concurrency {calls!r} is no whole number from 1 to {scenario.max_concurrency}"
    if not isinstance(wait, int | float) or not 0 <= wait < math.inf:
        return f"max_wait {wait!r} is no time from 0 s on"
    return None
