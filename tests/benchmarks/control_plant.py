"""What a scenario of the control benchmark is: the downstream, its load, and how both change with time."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import attrs

from forebay._types import Limits

START = Limits(batch_size=100, concurrency=10, max_wait=0.0)
"""What a controller starts from unless the scenario says otherwise."""
LARGEST_BATCH = 8192
MOST_CALLS = 256
REFUSAL_SECONDS = 0.004
"""How soon a call that is too large is answered."""
STEP = 0.25
"""Seconds between the steps in which a ramp or a wave changes."""


@attrs.frozen
class Plant:
    """What a call of the downstream costs, in seconds.

    A call of weight w that is the n-th in flight takes (fixed + per_item × w × m) × k and noise of mean 1.
    m = 1 up to the weight `memory` and 1 + 2 (w / memory - 1)² beyond it: spills and cache misses.
    k = 1 + 0.1 n / knee up to `knee` calls, and 1.1 (n / knee)^(1 + collapse) beyond it: queueing, then collapse.
    The weight of a batch is its number of items where they are all alike.
    """

    fixed: float
    per_item: float
    knee: float
    memory: float = math.inf
    collapse: float = 0.3
    noise: float = 0.2
    """Standard deviation of the logarithm."""
    slow_share: float = 0.0
    """Share of the calls that take `slow_factor` times as long."""
    slow_factor: float = 10.0
    failing: float = 0.0
    """Share of the calls that fail, after their time."""
    largest: float = math.inf
    """Weight beyond which a call is refused at once."""
    heavy_share: float = 0.0
    """Share of the items that weigh `heavy_weight` instead of 1; which ones is drawn anew with every call."""
    heavy_weight: float = 1.0

    def mean_seconds(self, weight: float, calls: float) -> float:
        """Return the mean time of a call of *weight* that is the *calls*-th in flight."""
        seconds = self.per_item * weight
        if weight > self.memory:
            seconds *= 1.0 + 2.0 * (weight / self.memory - 1.0) ** 2
        crowding = calls / self.knee
        contention = 1.0 + 0.1 * crowding if crowding <= 1.0 else 1.1 * crowding ** (1.0 + self.collapse)
        return (self.fixed + seconds) * contention

    def weight(self, size: float) -> float:
        """Return the mean weight of *size* items."""
        return size * (1.0 + self.heavy_share * (self.heavy_weight - 1.0))

    def throughput(self, size: float, calls: float) -> float:
        """Return the items a second of *calls* calls of *size* items that are always in flight."""
        weight = self.weight(size)
        if weight > self.largest:
            return 0.0
        slowed = 1.0 + self.slow_share * (self.slow_factor - 1.0)
        return calls * size * (1.0 - self.failing) / (self.mean_seconds(weight, calls) * slowed)

    def best_size(self, goal: float | None, largest: int = LARGEST_BATCH) -> int:
        """Return the size at which calls of at most half of *goal*, as many as `knee`, get most done."""
        sizes = [1]
        while sizes[-1] < largest:
            sizes.append(max(sizes[-1] + 1, round(sizes[-1] * 1.05)))
        fitting = [s for s in sizes if goal is None or self.mean_seconds(self.weight(s), self.knee) <= goal / 2]
        return max(fitting or [1], key=lambda size: self.throughput(size, self.knee))

    def capacity(self, goal: float | None) -> float:
        """Return the most items a second at the knee, by calls of at most half of *goal*."""
        return self.throughput(self.best_size(goal), self.knee)

    def towards(self, other: Plant, share: float) -> Plant:
        """Return the plant that lies *share* of the way to *other*."""
        mixed = {
            name: value + (end - value) * share
            for name, value, end in zip(_FIELDS, attrs.astuple(self), attrs.astuple(other), strict=True)
            if value != end
        }
        return attrs.evolve(self, **mixed)


_FIELDS = tuple(field.name for field in attrs.fields(Plant))


@attrs.frozen
class Phase:
    """A time in which the downstream and its load follow one rule."""

    seconds: int
    plant: Plant
    load: float = 0.7
    """Share of the plant's capacity that is offered."""
    rate: float | None = None
    """Items a second offered, where they do not follow from `load`."""
    until: Plant | None = None
    """What the plant turns into by the end, step by step."""
    burst: tuple[float, float, float] | None = None
    """Every so many seconds, for so many, so many times the mean; the mean is kept."""
    wave: tuple[float, float] | None = None
    """Amplitude as a share of the rate, and period in seconds, of a sine."""
    hiccup: tuple[float, float] | None = None
    """Every so many seconds nothing is answered for so many."""
    pressure: float = 0.0
    """System load that a controller is told of."""

    def mean_rate(self, goal: float | None) -> float:
        """Return the items a second that are offered."""
        return self.rate if self.rate is not None else self.load * self.plant.capacity(goal)


@attrs.frozen
class Segment:
    """A stretch of time in which nothing changes."""

    start: float
    phase: int
    plant: Plant
    rate: float
    pressure: float


@attrs.frozen
class Scenario:
    """Phases one after the other, and what is asked of the stage."""

    name: str
    phases: Sequence[Phase]
    goal: float | None = 0.5
    """Seconds from arrival within which an item has to be done to count; `None` counts all: best throughput."""
    time_limit: float = 1.0
    """Seconds after which a call is given up."""
    start: Limits = START
    max_size: int = LARGEST_BATCH
    max_concurrency: int = MOST_CALLS
    closed: bool = False
    """Whether the queue is always full, instead of Poisson arrivals."""
    shed: bool = True
    """Whether items that can no longer meet the goal are dropped instead of sent."""
    tick: float = 0.005
    """Seconds between arrivals: those of one tick come together."""
    settle: float = 10.0
    """Seconds at the start of each phase that the settled figures leave out."""

    @property
    def seconds(self) -> int:
        """Length of the scenario."""
        return sum(phase.seconds for phase in self.phases)

    def starts(self) -> list[int]:
        """Return when each phase starts."""
        return [sum(phase.seconds for phase in self.phases[:index]) for index in range(len(self.phases))]

    def segments(self) -> list[Segment]:
        """Return the stretches in which nothing changes, in order."""
        found: list[Segment] = []
        for index, (start, phase) in enumerate(zip(self.starts(), self.phases, strict=True)):
            rate = 0.0 if self.closed else phase.mean_rate(self.goal)
            for offset in _changes(phase):
                plant = phase.plant if phase.until is None else phase.plant.towards(phase.until, offset / phase.seconds)
                found.append(Segment(start + offset, index, plant, rate * _swing(phase, offset), phase.pressure))
        return found

    def hiccups(self) -> list[tuple[float, float]]:
        """Return the times of silence as (start, end), in order."""
        found: list[tuple[float, float]] = []
        for start, phase in zip(self.starts(), self.phases, strict=True):
            if phase.hiccup is not None:
                every, length = phase.hiccup
                found += [(start + at, start + at + length) for at in _multiples(every, phase.seconds) if at > 0]
        return found

    def arrivals(self, seed: int) -> list[int]:
        """Return how many items arrive at each tick."""
        chance = random.Random(f"{self.name}, arrivals {seed}")
        counts: list[int] = []
        segments = self.segments()
        ends = [segment.start for segment in segments[1:]] + [float(self.seconds)]
        for segment, end in zip(segments, ends, strict=True):
            mean = segment.rate * self.tick
            while len(counts) * self.tick < end - 1e-9:
                counts.append(poisson(chance, mean))
        return counts


def poisson(chance: random.Random, mean: float) -> int:
    """Return a draw from the Poisson distribution, by a rounded normal one where *mean* is above 50."""
    if mean > 50:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    floor, count, product = math.exp(-mean), 0, chance.random()
    while product > floor:
        count += 1
        product *= chance.random()
    return count


def _multiples(every: float, seconds: float) -> list[float]:
    return [index * every for index in range(math.ceil(seconds / every - 1e-9))]


def _changes(phase: Phase) -> list[float]:
    """Return the offsets into *phase* at which something changes."""
    offsets = {0.0}
    if phase.until is not None or phase.wave is not None:
        offsets.update(_multiples(STEP, phase.seconds))
    if phase.burst is not None:
        every, length, _ = phase.burst
        begins = _multiples(every, phase.seconds)
        offsets.update(begins)
        offsets.update(begin + length for begin in begins if begin + length < phase.seconds)
    return sorted(offsets)


def _swing(phase: Phase, offset: float) -> float:
    """Return by what the mean rate is multiplied at *offset*."""
    factor = 1.0
    if phase.burst is not None:
        every, length, times = phase.burst
        inside = (offset + 1e-9) % every < length
        factor *= times if inside else max(0.0, (every - length * times) / (every - length))
    if phase.wave is not None:
        amplitude, period = phase.wave
        factor *= 1.0 + amplitude * math.sin(2 * math.pi * offset / period)
    return factor
