"""The adaptive controller, shown observations by hand and by a small plant with a full queue."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay import abc
from forebay._adaptive import AdaptiveController
from forebay._types import Bounds, Goal, Limits, Observation

WIDE = Bounds(min_size=1, max_size=8192, min_concurrency=1, max_concurrency=256)


class Plant:
    """A service behind a queue that is never empty: so many seconds a call, and more beyond *knee* calls."""

    def __init__(self, fixed: float, per_item: float, knee: int, *, seed: int, largest: int = 10**9) -> None:
        self.fixed, self.per_item, self.knee, self.largest = fixed, per_item, knee, largest
        self.chance = random.Random(seed)
        self.now = 0.0
        self.flying: list[tuple[float, int, float, int, int]] = []
        self.sent = 0
        self.pressure = 0.0
        self.silent_until = 0.0

    def seconds(self, size: int, calls: int) -> float:
        crowd = math.pow(max(1.0, calls / self.knee), 1.3)
        return (self.fixed + self.per_item * size) * crowd * math.exp(self.chance.gauss(-0.02, 0.2))

    def run(self, controller: AdaptiveController, limits: Limits, seconds: float) -> tuple[Limits, float, int]:
        """Run for so long; return the limits at the end, items a second, and how often the limits moved for good."""
        end, done, moves = self.now + seconds, 0, 0
        while self.now < end:
            while len(self.flying) < limits.concurrency:
                calls = len(self.flying) + 1
                took = max(self.seconds(limits.batch_size, calls), self.silent_until - self.now)
                took = 0.004 if limits.batch_size > self.largest else took
                self.sent += 1
                heapq.heappush(self.flying, (self.now + took, self.sent, took, limits.batch_size, calls))
            oldest = max(self.now - (ended - took) for ended, _, took, _, _ in self.flying)
            following, _, took, size, calls = self.flying[0]
            if following > self.now + 0.05:
                self.now += 0.05
                answer = controller.tick(self.now, len(self.flying), oldest + 0.05, 100_000, self.pressure)
            else:
                heapq.heappop(self.flying)
                self.now = following
                refused = size > self.largest
                done += 0 if refused else size
                answer = controller.observe(
                    Observation(
                        self.now, size, None, took, refused, refused, 100_000, calls, 1.0, oldest, self.pressure
                    )
                )
            if not answer.probe and not limits.probe and answer != limits:
                moves += 1
            limits = answer
        return limits, done / seconds, moves

    def best(self, size: int) -> float:
        """Return the items a second of the best number of calls with batches of *size*."""
        return self.knee * size / (self.fixed + self.per_item * size)


def made(start: Limits, goal: Goal | None = None, bounds: Bounds = WIDE) -> AdaptiveController:
    return AdaptiveController(bounds, goal, start)


def seen(now: float, size: int, seconds: float, *, failed: bool = False, too_large: bool = False) -> Observation:
    return Observation(now, size, None, seconds, failed, too_large, 1000, 1, 0.1, 0.0)


def test_it_is_a_controller_that_watches_and_can_be_adjusted() -> None:
    controller = made(Limits(10, 2, 0.0))

    assert isinstance(controller, abc.Watchful)
    assert isinstance(controller, abc.Adjustable)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("fixed", "per_item", "knee"), [(0.02, 0.0002, 16), (0.08, 0.0001, 4), (0.005, 0.002, 40), (0.001, 0.000002, 16)]
)
def test_it_finds_what_a_service_wants_from_a_poor_start(fixed: float, per_item: float, knee: int, seed: int) -> None:
    plant = Plant(fixed, per_item, knee, seed=seed)
    controller = made(Limits(16, 2, 0.0))
    limits, _, _ = plant.run(controller, Limits(16, 2, 0.0), max(400 * fixed, 10))

    _, rate, _ = plant.run(controller, limits, max(1000 * fixed, 20))

    efficient = round(6 * fixed / per_item)
    assert rate >= 0.8 * plant.best(efficient)


def test_it_is_quiet_when_nothing_changes() -> None:
    plant = Plant(0.02, 0.0002, 16, seed=1)
    controller = made(Limits(100, 10, 0.0))
    limits, _, _ = plant.run(controller, Limits(100, 10, 0.0), 30)

    sent = plant.sent
    _, _, moves = plant.run(controller, limits, 30)

    assert moves <= (plant.sent - sent) / 50


def test_a_goal_bounds_how_long_calls_take() -> None:
    plant = Plant(0.01, 0.001, 8, seed=1)
    controller = made(Limits(10, 2, 0.0), Goal(p99=0.1))
    limits, _, _ = plant.run(controller, Limits(10, 2, 0.0), 20)

    assert plant.fixed + plant.per_item * limits.batch_size <= 0.06


def test_a_size_that_was_refused_is_remembered() -> None:
    plant = Plant(0.05, 0.00001, 8, seed=1, largest=300)
    controller = made(Limits(1000, 4, 0.0))
    limits, _, _ = plant.run(controller, Limits(1000, 4, 0.0), 20)

    _, rate, _ = plant.run(controller, limits, 60)

    assert limits.batch_size <= 300
    assert rate >= 0.5 * plant.best(300)


def test_a_refused_item_is_no_reason_for_smaller_batches() -> None:
    controller = made(Limits(100, 1, 0.0))

    limits = controller.observe(seen(1.0, 1, 0.01, failed=True, too_large=True))

    assert limits.batch_size == 100


def test_a_probe_that_is_refused_is_not_sent_for_ever() -> None:
    plant = Plant(0.02, 0.01, 8, seed=1, largest=5)
    controller = made(Limits(3, 4, 0.0))
    limits, _, _ = plant.run(controller, Limits(3, 4, 0.0), 10)

    sent = plant.sent
    _, rate, _ = plant.run(controller, limits, 10)

    assert rate > (plant.sent - sent) / 10


def test_a_collapse_is_seen_before_any_call_comes_back() -> None:
    plant = Plant(0.02, 0.0002, 16, seed=1)
    controller = made(Limits(100, 10, 0.0))
    limits, _, _ = plant.run(controller, Limits(100, 10, 0.0), 20)
    before = limits

    now = plant.now
    for step in range(1, 40):  # nothing comes back for two seconds, where a call takes a tenth
        limits = controller.tick(now + 0.05 * step, 16, 0.05 * step + 0.1, 1000, 0.0)

    assert limits.batch_size < before.batch_size / 8
    assert "no call has answered" in limits.reason


def test_a_collapse_that_was_none_is_undone() -> None:
    plant = Plant(0.02, 0.0002, 16, seed=1)
    controller = made(Limits(100, 10, 0.0))
    limits, _, _ = plant.run(controller, Limits(100, 10, 0.0), 20)
    size = limits.batch_size
    now = plant.now
    while "no call has answered" not in limits.reason:
        now += 0.01
        limits = controller.tick(now, 16, now - plant.now + 0.1, 1000, 0.0)

    limits = controller.observe(Observation(now + 0.001, size, None, 0.12, False, False, 1000, 16, 0.1, 0.0))

    assert limits.reason == "the calls answered after all"
    assert limits.batch_size >= size / 4


def test_failures_in_a_row_make_it_retreat_and_single_ones_do_not() -> None:
    controller = made(Limits(1000, 8, 0.0))
    now = 0.0
    for _ in range(20):
        now += 0.1
        controller.observe(seen(now, 1000, 0.1))
    now += 0.1
    one = many = controller.observe(seen(now, 1000, 0.1, failed=True))

    for _ in range(12):
        now += 0.1
        many = controller.observe(seen(now, 1000, 0.1, failed=True))

    assert one.batch_size >= 250
    assert many.batch_size < 150
    assert "failed" in many.reason


@pytest.mark.parametrize(("fixed", "per_item", "least", "most"), [(0.01, 0.001, 0.1, 0.7), (0.1, 0.0000001, 0.9, 1.1)])
def test_system_load_shrinks_batches_where_items_cost_something(
    fixed: float, per_item: float, least: float, most: float
) -> None:
    plant = Plant(fixed, per_item, 8, seed=1)
    bounds = Bounds(max_size=64)
    controller = made(Limits(64, 8, 0.0), bounds=bounds)
    limits, _, _ = plant.run(controller, Limits(64, 8, 0.0), 300 * (fixed + 64 * per_item))
    calm = controller.adjust(bounds, None)

    plant.pressure = 0.9
    loaded, _, _ = plant.run(controller, limits, 20 * (fixed + 64 * per_item))
    while loaded.probe:
        loaded, _, _ = plant.run(controller, loaded, fixed)

    assert least <= loaded.batch_size / max(calm.batch_size, 1) <= most


def test_other_bounds_hold_at_once() -> None:
    controller = made(Limits(500, 20, 0.0))

    limits = controller.adjust(Bounds(max_size=50, max_concurrency=3), Goal(p99=1.0))

    assert (limits.batch_size, limits.concurrency) <= (50, 3)
    assert limits.reason == "its bounds or its goal were changed"


@settings(deadline=None)
@given(
    start=st.tuples(st.integers(1, 100), st.integers(1, 20)),
    goal=st.none() | st.floats(0.001, 10),
    calls=st.lists(
        st.tuples(
            st.integers(1, 200),
            st.floats(0, 5),
            st.sampled_from(["ok", "failed", "too large", "tick"]),
            st.integers(0, 10_000),
            st.integers(1, 30),
            st.floats(0, 1),
        ),
        max_size=200,
    ),
)
def test_bounds_hold_whatever_it_sees(
    start: tuple[int, int], goal: float | None, calls: list[tuple[int, float, str, int, int, float]]
) -> None:
    bounds = Bounds(min_size=1, max_size=100, min_concurrency=1, max_concurrency=20)
    controller = made(Limits(*start, 0.0), None if goal is None else Goal(p99=goal), bounds)
    now = 0.0

    for size, seconds, what, queued, flying, pressure in calls:
        now += seconds / 3
        if what == "tick":
            limits = controller.tick(now, flying, seconds, queued, pressure)
        else:
            failed = what != "ok"
            limits = controller.observe(
                Observation(
                    now, size, None, seconds, failed, what == "too large", queued, flying, 0.0, 0.0, pressure=pressure
                )
            )

        assert 1 <= limits.batch_size <= 100
        assert 1 <= limits.concurrency <= 20
        assert limits.reason or (limits.batch_size, limits.concurrency) == start
