"""A controller that keeps every rule, small enough to be wrong in one place at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

from attrs import evolve

from forebay import Bounds, Goal
from forebay.abc import Limits, Observation

STEPS = ((2.0, 1.0), (0.5, 1.0), (1.0, 1.5), (1.0, 0.6), (2.0, 1.0), (1.4, 1.0), (0.7, 1.0))
"""By what the size and the calls are multiplied, in the order in which it is tried."""


class RightController:
    """Climbs: tries a step, keeps it while more gets done, and goes on to the next; then rests until calls change.

    What is tried stays for a round trip or two, so there are no probes.
    """

    def __init__(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> None:
        self.bounds = bounds
        self.goal = goal
        self.size = float(start.batch_size)
        self.calls = float(start.concurrency)
        self.ceiling = math.inf
        self.load = 0.0
        self.failures = 0
        self.answered = 0.0
        self.reason = "it starts here"
        self.answer = start
        self.count = self.items = 0
        self.seconds = self.slowest = 0.0
        self.search(-math.inf)

    # --- What it is shown -----------------------------------------------------------------------

    def observe(self, observation: Observation, /) -> Limits:
        self.follow_load(observation.now, observation.pressure)
        if observation.too_large:
            self.refused(observation)
        elif observation.now - observation.seconds >= self.since:
            self.answered = observation.now
            self.ended(observation)
        return self.limits()

    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        self.follow_load(now, pressure)
        usual = self.seconds / max(1, self.count) or self.usual
        if usual and min(oldest_call, now - max(self.answered, self.since)) > 0.1 + 3 * usual:
            self.retreat(now, "no call has answered for long")
        return self.limits()

    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> Limits:
        self.bounds, self.goal = bounds, goal
        self.reason = "it was told to"
        return self.limits()

    # --- What it does ---------------------------------------------------------------------------

    def limits(self) -> Limits:
        """Return the answer; the same one as before where nothing changes."""
        bounds = self.bounds
        self.size = min(max(self.size, bounds.min_size), bounds.max_size)
        self.calls = min(max(self.calls, bounds.min_concurrency), bounds.max_concurrency)
        size = max(bounds.min_size, round(min(self.size, self.ceiling) * (1 - 0.7 * self.load)))
        calls = round(self.calls)
        if (size, calls) != (self.answer.batch_size, self.answer.concurrency):
            self.answer = evolve(self.answer, batch_size=size, concurrency=calls, reason=self.reason)
        return self.answer

    def follow_load(self, now: float, pressure: float) -> None:
        load = round(4 * pressure) / 4
        if load != self.load:
            self.load, self.reason = load, f"the load is {load}"
            self.usual = 0.0
            self.measure(now)

    def refused(self, observation: Observation) -> None:
        if observation.size > 1:
            self.ceiling = min(self.ceiling, observation.size / 2)
            self.reason = f"a batch of {observation.size} was refused"

    def ended(self, observation: Observation) -> None:
        """Count a call that was sent under the present limits."""
        self.failures = self.failures + 1 if observation.failed else 0
        if self.failures >= 5:
            self.failed(observation.now)
        elif not observation.failed:
            self.count += 1
            self.items += observation.size
            self.seconds += observation.seconds
            self.slowest = max(self.slowest, observation.seconds)
            if self.count >= max(10, 2 * self.answer.concurrency):
                self.judge(observation.now)

    def failed(self, now: float) -> None:
        if self.trying is None:
            self.retreat(now, "calls fail")
        else:
            self.go_back(now, "calls failed")

    def retreat(self, now: float, reason: str) -> None:
        self.size, self.calls, self.reason = self.size / 4, self.calls / 2, reason
        self.search(now)

    def search(self, now: float) -> None:
        """Begin to look for what is best."""
        self.steps: Iterator[tuple[float, float]] | None = iter(STEPS)
        self.step = (1.0, 1.0)
        self.trying: tuple[float, float, float] | None = None  # size, calls and score before the step
        self.best = -math.inf
        self.usual = 0.0
        self.measure(now)

    def measure(self, now: float) -> None:
        """Count anew, and only calls that are sent from now on."""
        self.since = now
        self.count = self.items = self.failures = 0
        self.seconds = self.slowest = 0.0

    def score(self) -> float:
        """Return the items a second; where calls are too slow for the goal, how much too slow."""
        goal = math.inf if self.goal is None or self.goal.p99 is None else self.goal.p99
        if self.slowest > 0.6 * goal:
            return -self.slowest
        return self.answer.concurrency * self.items / max(self.seconds, 1e-9)

    def judge(self, now: float) -> None:
        """Enough calls have ended under the present limits."""
        if self.steps is None:
            self.rest(now)
            return
        score = self.score()
        if score > self.best + 0.04 * abs(self.best) or self.trying is None:
            self.best = score
            self.take(now, self.step if self.trying else next(self.steps))
        else:
            self.go_back(now, "it was no better")

    def take(self, now: float, step: tuple[float, float]) -> None:
        """Try a step."""
        self.trying, self.step = (self.size, self.calls, self.best), step
        self.size, self.calls = min(self.size, self.ceiling) * step[0], self.calls * step[1]
        self.reason = "trying what is better"
        self.measure(now)

    def go_back(self, now: float, reason: str) -> None:
        """Undo the step, and try the next one or rest."""
        assert self.trying is not None
        assert self.steps is not None
        self.size, self.calls, _ = self.trying
        step = next(self.steps, None)
        if step is None:
            self.steps = self.trying = None
            self.reason = reason
            self.measure(now)
        else:
            self.take(now, step)

    def rest(self, now: float) -> None:
        """See whether calls take as long as they did."""
        mean = self.seconds / self.count
        if self.usual and not 0.6 < mean / self.usual < 1.6:
            self.reason = "calls are not what they were"
            self.search(now)
            return
        self.usual = self.usual or mean
        self.measure(now)
