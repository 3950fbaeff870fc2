"""What the adaptive controller counts: a round of its search, a cycle of its watch, and the size that was refused."""

from __future__ import annotations

import math
from statistics import median

from attrs import define, field

DIP = 0.7
"""The lower limit of calls in a cycle, as a share of the full one."""


def dip(count: int) -> int:
    """Return the lower limit of calls beside *count*."""
    return max(1, min(count - 1, round(DIP * count)))


@define(eq=False)
class Round:
    """Calls that were sent under one pair of limits, while searching. Latencies and sizes are logarithms."""

    since: float
    calls: int = 0
    waits: int = 0
    """Calls at whose end items waited."""
    latencies: list[float] = field(factory=list[float])
    sizes: list[float] = field(factory=list[float])

    def spread(self) -> float:
        """Return the variance of the latencies about their median, at most 1."""
        middle = median(self.latencies)
        return min(1.0, sum((one - middle) ** 2 for one in self.latencies) / len(self.latencies))

    def is_steep(self, latency: float, size: float) -> bool:
        """Return whether the last two calls took longer than so many more items than *size* can explain."""
        pairs = list(zip(self.latencies[-2:], self.sizes[-2:], strict=True))
        return len(pairs) == 2 and all(one - latency > max(0.0, items - size) + 0.35 for one, items in pairs)


@define(eq=False)
class Cycle:
    """Calls of a round trip or so at the lower limit of calls, and of more at the full one."""

    size: float
    """Log of the usual size when it began."""
    latency: float
    """Log of the usual latency when it began."""
    since: float | None = None
    calls: int = 0
    full: int = 0
    """Calls with a full batch, at whose end items waited."""
    busy: int = 0
    """Calls that were sent at the limit of calls, at whose end items waited."""
    waits: int = 0
    items: int = 0
    seconds: float = 0.0
    """Time in calls, over all of them."""
    arm_since: float | None = None
    arm_calls: int = 0
    """Calls that were sent and ended within this half of the cycle."""
    low_calls: int = 0
    low_sum: float = 0.0
    """What the size does not explain of the log latency, clipped and summed up."""
    high_calls: int = 0
    high_sum: float = 0.0

    def next_arm(self, now: float) -> None:
        """The full limit follows."""
        self.arm_calls, self.arm_since = 0, now

    def add(self, sent: float, now: float, items: int, seconds: float) -> None:
        """Count a call."""
        self.calls += 1
        if self.since is None:
            self.since = now
        else:
            self.items += items
            self.seconds += seconds
        if self.arm_since is None:
            self.arm_since = now
        self.arm_calls += sent >= self.arm_since

    def add_to_arm(self, unexplained: float, in_flight: int, count: int) -> None:
        """Count a call's latency in the arm that its calls in flight belong to."""
        clipped = -1.0 if unexplained < -1.0 else 1.0 if unexplained > 1.0 else unexplained  # one straggler is no sign
        if 2 * in_flight < dip(count) + count:
            self.low_calls += 1
            self.low_sum += clipped
        else:
            self.high_calls += 1
            self.high_sum += clipped

    def difference(self) -> float | None:
        """Return how much higher the log latency is at the full limit; `None` where there are too few calls."""
        if self.low_calls < 3 or self.high_calls < 3:
            return None
        return self.high_sum / self.high_calls - self.low_sum / self.low_calls

    def error(self, variance: float) -> float:
        """Return the size of an error in `difference` that is no surprise."""
        if self.low_calls < 3 or self.high_calls < 3:
            return 0.0
        return 0.8 * math.sqrt(variance * (1 / self.low_calls + 1 / self.high_calls))

    def rate(self, now: float) -> float | None:
        """Return items a second."""
        if self.since is None or now <= self.since or not self.items:
            return None
        return self.items / (now - self.since)

    def in_flight(self, now: float) -> float | None:
        """Return the mean number of calls in flight."""
        if self.since is None or now <= self.since:
            return None
        return self.seconds / (now - self.since)


@define(eq=False)
class Ceiling:
    """Remembers the size at which batches were refused, and in time tries whether it still holds."""

    log: float = math.inf
    """Log of the largest size to send."""
    _held: float | None = None
    """The ceiling before it was raised."""
    _since: float = -math.inf
    _calls: int = 0
    """Calls near the ceiling until it is raised."""
    _wait: int = 32

    def refused(self, size: int, sent: float, now: float) -> bool:
        """A batch of *size*, sent then, was refused; return whether that says anything new."""
        if size < 2 or sent < self._since:
            return False  # it is the item and not the batch; or the ceiling has come down since
        if self._held is not None:
            self.log, self._held = self._held, None
        else:
            self.log = min(self.log, math.log(size / 2))
        self._since = now
        self._calls = self._wait
        self._wait = min(512, 2 * self._wait)
        return True

    def passed(self, size: float) -> None:
        """A batch of log *size* was not refused."""
        if size < self.log - 0.5:
            return
        self._calls -= 1
        if self._calls <= 0:
            self._held = self.log
            self.log += 0.405
            self._calls, self._wait = 8, max(32, self._wait // 2)
