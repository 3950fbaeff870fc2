"""Who competes in the control benchmark. The table is here and nowhere else."""

from __future__ import annotations

import importlib
from typing import Any

import attrs

from forebay._adaptive import AdaptiveController
from forebay._control import FixedController
from forebay._types import Bounds, Goal, Limits, Observation
from forebay.abc import Controller, ControllerFactory
from tests.benchmarks.control_plant import Scenario

COMMON_DEFAULT = Limits(batch_size=100, concurrency=10, max_wait=0.05)
"""What libraries and their users set once: 100 items or 50 ms, ten calls."""


@attrs.define
class Aimd:
    """Additive increase, multiplicative decrease of the calls; the batch stays, and halves when it is too large.

    The plain rule that the better known limiters go by, here so that there is always something to compare with.
    """

    bounds: Bounds
    goal: Goal | None
    limits: Limits
    calls: float
    backed_off: float = -1.0
    """When the calls were last made fewer: what was sent before that says nothing new."""

    def observe(self, observation: Observation, /) -> Limits:
        """Learn from one finished call; return what holds from now on."""
        slow = self.goal is not None and self.goal.p99 is not None and observation.seconds > self.goal.p99 / 2
        if observation.too_large:
            self.limits = attrs.evolve(self.limits, batch_size=max(self.bounds.min_size, observation.size // 2))
        elif observation.failed or slow:
            if observation.now - observation.seconds >= self.backed_off:
                self.calls, self.backed_off = 0.8 * self.calls, observation.now
        elif 2 * observation.in_flight >= self.calls:
            self.calls += 1 / self.calls
        self.calls = min(max(self.calls, self.bounds.min_concurrency), self.bounds.max_concurrency)
        if int(self.calls) != self.limits.concurrency:
            self.limits = attrs.evolve(self.limits, concurrency=int(self.calls))
        return self.limits


def _aimd(*, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
    return Aimd(bounds, goal, start, float(start.concurrency))


def _fixed(*, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
    return FixedController(start)


ENTRANTS: dict[str, ControllerFactory] = {
    "adaptive": AdaptiveController,
    "aimd": _aimd,
    "fixed": _fixed,
}
"""By the name for `--controller`; the first is the one that is judged if none is named."""


def find(name: str) -> ControllerFactory:
    """Return the factory of that name, or the one at `MODULE:ATTRIBUTE`, which takes `bounds`, `goal` and `start`.

    Raises:
        ValueError: there is none.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        if name not in ENTRANTS:
            known = ", ".join(ENTRANTS)
            raise ValueError(f"no controller is named {name!r} (there are: {known}); or give MODULE:CLASS")
        return ENTRANTS[name]
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} does not lead to a controller: {error}") from error
    made: ControllerFactory = factory
    return made


def make(name: str, scenario: Scenario) -> Controller:
    """Return a new controller for *scenario*."""
    return find(name)(
        bounds=Bounds(max_size=scenario.max_size, max_concurrency=scenario.max_concurrency),
        goal=None if scenario.goal is None else Goal(p99=scenario.goal),
        start=scenario.start,
    )
