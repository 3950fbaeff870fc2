"""Small services in virtual time, for controllers to be tried on."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import frozen

from forebay import Bounds
from forebay.abc import Limits


@frozen
class Plant:
    """What a call of a service takes, in seconds.

    The *n*-th call in flight, with *size* items, takes `(fixed + per_item * size * s) * k`:
    `s = 1 + 2 * (size / memory - 1)**2` for more than `memory` items, and `k = (n / knee)**1.6` for more than `knee`
    calls; else both are 1.
    """

    name: str
    fixed: float
    per_item: float
    knee: int
    memory: float = math.inf
    largest: float = math.inf
    """Items in the largest batch that is not refused."""
    rate: float = math.inf
    """Items that come in a second; infinite: the queue is never empty."""
    time_limit: float = 1.0
    """Seconds after which a call is given up; it has failed then."""
    noise: float = 0.2
    """By which share a call may take longer or shorter, evenly spread."""

    def seconds(self, size: int, calls: int, /) -> float:
        """Return the mean time of a call with *size* items that is the *calls*-th in flight."""
        items = self.per_item * size
        if size > self.memory:
            items *= 1.0 + 2.0 * (size / self.memory - 1.0) ** 2
        seconds = self.fixed + items
        return seconds if calls <= self.knee else seconds * (calls / self.knee) ** 1.6

    def throughput(self, limits: Limits, /) -> float:
        """Return the items a second under these limits while items always wait."""
        seconds = self.seconds(limits.batch_size, limits.concurrency)
        if limits.batch_size > self.largest or seconds > self.time_limit:
            return 0.0
        return limits.concurrency * limits.batch_size / seconds

    def best(self, bounds: Bounds, /, *, longest: float = math.inf) -> Limits:
        """Return the fixed limits that get most done, of those under which a call takes *longest* at most."""
        calls = min(max(self.knee, bounds.min_concurrency), bounds.max_concurrency)
        fitting = [size for size in _sizes(bounds) if self.seconds(size, calls) <= longest]
        tried = [Limits(size, calls, 0.0) for size in fitting or [bounds.min_size]]
        return max(tried, key=self.throughput)

    def most(self, bounds: Bounds, /, *, longest: float = math.inf) -> float:
        """Return the items a second under the best fixed limits."""
        return self.throughput(self.best(bounds, longest=longest))

    def unit(self, bounds: Bounds, /) -> float:
        """Return the seconds of a call under the best limits: the time by which everything here is measured."""
        best = self.best(bounds)
        return self.seconds(best.batch_size, best.concurrency)


def _sizes(bounds: Bounds) -> Sequence[int]:
    sizes = [bounds.min_size]
    while sizes[-1] < bounds.max_size:
        sizes.append(min(bounds.max_size, max(sizes[-1] + 1, round(1.05 * sizes[-1]))))
    return sizes


FIXED_COST = Plant("a service with a high fixed cost", fixed=0.02, per_item=0.0002, knee=8, memory=400)
COSTLY_ITEMS = Plant("a service with costly items", fixed=0.01, per_item=0.001, knee=4, memory=100)
FEW_CALLS = Plant("a service for few calls", fixed=0.04, per_item=0.0001, knee=4, memory=1500)
QUICK = Plant("a quick service", fixed=0.002, per_item=0.00002, knee=5, memory=1000)
PLANTS: Sequence[Plant] = (FIXED_COST, COSTLY_ITEMS, FEW_CALLS, QUICK)
"""The standard plants: the best batch has from 100 items to 1,600, the best number of calls is from 4 to 8."""
