"""Plain controllers: what does not learn from its calls. Pure arithmetic, no I/O, no clock of their own."""

from __future__ import annotations

from typing import Final

from attrs import evolve, frozen

from forebay._types import Bounds, Goal, Limits, Observation

_HALF_LIFE: Final = 0.5
"""Seconds after which half of a change in load is taken up."""
_STEP: Final = 0.1
"""Change of the batch size, as a share of it, below which it stays where it is."""


@frozen
class FixedController:
    """Keeps the limits that it was given: what the stage's bounds allow, sent greedily."""

    limits: Limits

    def observe(self, observation: Observation, /) -> Limits:
        """Return the limits, whatever was observed."""
        return self.limits


class InverseLoadController:
    """Makes batches smaller as the system's load rises, and larger as it falls: the plain rule.

    The batch size is `max_size * (1 - load)`, with the load between 0 (idle) and 1 (at its limit) smoothed over about
    a second. Concurrency stays as it was given. Where a call has a high fixed cost this *loses* throughput under load;
    `control="adaptive"` shrinks batches only where that helps.

    Args:
        bounds: What it never leaves.
        goal: Has no influence.
        start: Its concurrency is kept.
    """

    def __init__(self, bounds: Bounds, goal: Goal | None, start: Limits) -> None:
        self._bounds = bounds
        self._limits = start
        self._load = 0.0
        self._last: float | None = None

    def observe(self, observation: Observation, /) -> Limits:
        """Take note of the load; return what holds from now on."""
        return self._follow(observation.now, observation.pressure)

    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        """Take note of the load while no call ends; return what holds from now on."""
        return self._follow(now, pressure)

    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> Limits:
        """Work within other bounds from now on."""
        self._bounds = bounds
        calls = min(max(self._limits.concurrency, bounds.min_concurrency), bounds.max_concurrency)
        self._limits = evolve(
            self._limits, batch_size=self._wanted(), concurrency=calls, reason="its bounds were changed"
        )
        return self._limits

    def _wanted(self) -> int:
        bounds = self._bounds
        return max(bounds.min_size, min(round(bounds.max_size * (1.0 - self._load)), bounds.max_size))

    def _follow(self, now: float, pressure: float) -> Limits:
        passed = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        self._load += (1.0 - 0.5 ** (passed / _HALF_LIFE)) * (min(max(pressure, 0.0), 1.0) - self._load)
        wanted, size = self._wanted(), self._limits.batch_size
        at_end = wanted != size and wanted in (self._bounds.min_size, self._bounds.max_size)
        if abs(wanted - size) > _STEP * size or at_end:
            reason = f"the system's load is {100 * self._load:.0f} %"
            self._limits = evolve(self._limits, batch_size=wanted, reason=reason)
        return self._limits
