"""Controllers for tests: one that follows a script, and one that goes anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterable

from forebay.abc import Bounds, Goal, Limits, Observation


class Scripted:
    """Answers with one of *answers* after the other, the last one for ever, and keeps what it was shown."""

    def __init__(self, answers: Iterable[Limits]) -> None:
        self.left = list(answers)
        self.seen: list[Observation] = []

    def observe(self, observation: Observation, /) -> Limits:
        self.seen.append(observation)
        return self.next()

    def next(self) -> Limits:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


class Watching(Scripted):
    """A scripted controller that also looks at calls in flight."""

    def __init__(self, answers: Iterable[Limits]) -> None:
        super().__init__(answers)
        self.ticks: list[tuple[float, int, float, int, float]] = []

    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        self.ticks.append((now, in_flight, oldest_call, queued, pressure))
        return self.next()


class Yielding(Scripted):
    """A scripted controller that goes to the upper bounds when it is told of others."""

    def __init__(self, answers: Iterable[Limits]) -> None:
        super().__init__(answers)
        self.told: list[tuple[Bounds, Goal | None]] = []

    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> Limits:
        self.told.append((bounds, goal))
        self.left = [Limits(bounds.max_size, bounds.max_concurrency, 0.0)]
        return self.left[0]


class Wandering:
    """Goes anywhere within its bounds, at every other look; *seed* says where."""

    def __init__(self, bounds: Bounds, start: Limits, seed: int) -> None:
        self.bounds = bounds
        self.limits = start
        self.rng = random.Random(seed)

    def observe(self, observation: Observation, /) -> Limits:
        return self.wander()

    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        return self.wander()

    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> Limits:
        self.bounds = bounds
        return self.wander()

    def wander(self) -> Limits:
        rng, bounds = self.rng, self.bounds
        if rng.random() < 0.5:
            self.limits = Limits(
                rng.randint(bounds.min_size, bounds.max_size),
                rng.randint(bounds.min_concurrency, bounds.max_concurrency),
                rng.choice([0.0, 0.0, 0.01]),
                reason="it wanders",
                probe=rng.random() < 0.3,
            )
        return self.limits


class WanderingFactory:
    """Makes wandering controllers, each with a seed of its own."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def __call__(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> Wandering:
        return Wandering(bounds, start, self.rng.randrange(2**32))
