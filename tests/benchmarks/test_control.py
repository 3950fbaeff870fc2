"""The control benchmark simulates and judges rightly; how good the controller is is not asked here."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay._control import FixedController
from forebay._types import Bounds, Goal, Limits, Observation
from tests.benchmarks import control, control_guard, control_oracle
from tests.benchmarks.control_entrants import COMMON_DEFAULT, ENTRANTS, find, make
from tests.benchmarks.control_judge import BARS, Check, Trial, converged_after, judge, run_trial
from tests.benchmarks.control_oracle import Oracle, Trials, load, search
from tests.benchmarks.control_plant import Phase, Plant, Scenario, poisson
from tests.benchmarks.control_result import Histogram, Result
from tests.benchmarks.control_scenarios import BUSIEST, SCENARIOS, drawn
from tests.benchmarks.control_sim import simulate

QUIET = Plant(fixed=0.02, per_item=0.0002, knee=16, memory=400, noise=0)
"""Every call takes exactly its mean."""


CALM = Phase(8, attrs.evolve(QUIET, noise=0.2), load=0.3)
"""The common default is good enough here."""


def short(*phases: Phase, name: str = "short", **changes: Any) -> Scenario:
    usual = Phase(8, attrs.evolve(QUIET, noise=0.2), load=0.7)
    return attrs.evolve(Scenario(name, phases or (usual,), settle=2.0), **changes)


def one_at(second: float, of: Scenario, items: int = 1) -> list[int]:
    """Return arrivals of *items* at *second* and nothing else."""
    counts = [0] * round(of.seconds / of.tick)
    counts[round(second / of.tick)] = items
    return counts


def parts(result: Result) -> int:
    return result.done + result.failed + result.shed + result.turned_away + result.left


@attrs.define
class Watcher:
    """Keeps its limits and writes down what it is shown."""

    limits: Limits
    seen: list[Observation] = attrs.field(factory=list[Observation])
    ticks: list[tuple[float, int, float, int, float]] = attrs.field(factory=list[tuple[float, int, float, int, float]])

    def observe(self, observation: Observation, /) -> Limits:
        self.seen.append(observation)
        return self.limits

    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        self.ticks.append((now, in_flight, oldest_call, queued, pressure))
        return self.limits


@attrs.define
class Halves:
    """Halves its batches when one is too large."""

    limits: Limits

    def observe(self, observation: Observation, /) -> Limits:
        if observation.too_large:
            self.limits = attrs.evolve(self.limits, batch_size=max(1, self.limits.batch_size // 2))
        return self.limits


class Timid:
    """Answers everything with one item in one call; named on the command line."""

    def __init__(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> None:
        self.limits = Limits(1, 1, 0.0)

    def observe(self, observation: Observation, /) -> Limits:
        return self.limits


class Boundless(Timid):
    """Asks for one item more than it may have."""

    def __init__(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> None:
        self.limits = Limits(bounds.max_size + 1, 1, 0.0)


# --- The plant and its load --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "calls", "seconds"),
    [
        (100, 8, (0.02 + 0.02) * 1.05),
        (100, 16, 0.04 * 1.1),
        (400, 16, 0.1 * 1.1),
        (800, 16, (0.02 + 0.16 * 3) * 1.1),  # twice the memory: three times the time an item
        (100, 32, 0.04 * 1.1 * 2**1.3),  # twice the knee: twice as long, and collapse beyond it
    ],
)
def test_the_mean_of_a_call_is_that_of_the_cost_model(weight: float, calls: float, seconds: float) -> None:
    assert QUIET.mean_seconds(weight, calls) == pytest.approx(seconds)


def test_the_capacity_is_that_of_the_best_size_whose_calls_fit_into_half_of_the_goal() -> None:
    tight = 0.08

    size = QUIET.best_size(tight)

    assert QUIET.mean_seconds(size, 16) <= tight / 2 < QUIET.mean_seconds(1.05 * size + 1, 16)
    assert QUIET.capacity(tight) == pytest.approx(16 * size / QUIET.mean_seconds(size, 16))
    assert QUIET.capacity(None) >= QUIET.capacity(0.5) > QUIET.capacity(tight)


@pytest.mark.parametrize(
    "phase",
    [
        Phase(60, QUIET, load=0.5),
        Phase(60, QUIET, load=0.5, burst=(10, 2, 3)),
        Phase(60, QUIET, load=0.5, wave=(0.8, 20)),
    ],
    ids=["even", "bursts", "wave"],
)
def test_arrivals_keep_the_mean_rate(phase: Phase) -> None:
    scenario = short(phase)

    arrivals = scenario.arrivals(1)

    assert len(arrivals) == 60 / scenario.tick
    assert sum(arrivals) == pytest.approx(60 * 0.5 * QUIET.capacity(0.5), rel=0.01)


def test_bursts_and_silence_come_when_they_should() -> None:
    scenario = short(Phase(20, QUIET, rate=1000, burst=(10, 2, 3)), Phase(20, QUIET, hiccup=(8, 1.5)))

    rates = [(segment.start, round(segment.rate)) for segment in scenario.segments()]

    assert rates[:4] == [(0, 3000), (2, 500), (10, 3000), (12, 500)]
    assert scenario.hiccups() == [(28, 29.5), (36, 37.5)]


def test_a_ramp_leads_step_by_step_to_the_other_plant() -> None:
    worse = attrs.evolve(QUIET, fixed=0.1, knee=4)
    scenario = short(Phase(10, QUIET, until=worse), Phase(5, QUIET))

    segments = scenario.segments()

    fixed = [segment.plant.fixed for segment in segments[:-1]]
    assert fixed == sorted(fixed)
    assert fixed[0] == QUIET.fixed
    assert fixed[len(fixed) // 2] == pytest.approx(0.06)
    assert segments[-2].plant.knee == pytest.approx(4, rel=0.1)
    assert segments[-1].plant == QUIET
    assert len({segment.rate for segment in segments[:-1]}) == 1


@pytest.mark.parametrize("mean", [0.01, 3.0, 49.0, 200.0])
def test_poisson_draws_have_their_mean_and_variance(mean: float) -> None:
    chance = random.Random(4)

    draws = [poisson(chance, mean) for _ in range(20_000)]

    assert statistics.fmean(draws) == pytest.approx(mean, rel=0.1)
    assert statistics.variance(draws) == pytest.approx(mean, rel=0.1)


# --- The simulator -----------------------------------------------------------------------------


@given(seed=st.integers(1, 10_000), size=st.integers(1, 500), calls=st.integers(1, 40), closed=st.booleans())
def test_every_item_is_counted_once_and_littles_law_holds(seed: int, size: int, calls: int, closed: bool) -> None:
    scenario = drawn(seed)
    phases = [attrs.evolve(phase, seconds=2) for phase in scenario.phases]
    scenario = attrs.evolve(scenario, phases=phases, closed=closed, start=Limits(size, calls, 0.01))

    result = simulate(scenario, seed, make("aimd", scenario))

    assert result.offered == parts(result)
    assert result.item_seconds == pytest.approx(result.sojourns)
    assert result.latency.count == result.done
    assert result.good <= result.done
    assert sum(result.good_by_second) == result.good
    assert result.peak >= result.average
    assert result.breaches == []


def test_items_in_memory_are_the_rate_times_the_time_that_they_stay() -> None:
    scenario = short(Phase(60, QUIET, load=0.6))

    result = simulate(scenario, 1, limits=Limits(200, 16, 0.0))

    rate = result.done / scenario.seconds
    mean = sum(items * math.exp(index * 0.02) for index, items in result.latency.bins.items()) / result.done
    assert result.average == pytest.approx(rate * mean, rel=0.02)


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    scenario = drawn(7)

    results = [simulate(scenario, seed, make("aimd", scenario)) for seed in (1, 1, 2)]

    assert results[0] == results[1]
    assert results[0] != results[2]


@pytest.mark.parametrize("late", [False, True])
def test_a_controller_that_keeps_its_limits_changes_nothing(late: bool) -> None:
    scenario = drawn(3)

    alone = simulate(scenario, 1)

    assert simulate(scenario, 1, FixedController(scenario.start)) == alone
    assert simulate(scenario, 1, Watcher(scenario.start), late_ticks=late) == alone


def test_a_full_queue_gets_the_capacity_that_arithmetic_gives() -> None:
    scenario = short(Phase(10, QUIET), goal=None, closed=True)

    result = simulate(scenario, 1, limits=Limits(QUIET.best_size(None), 16, 0.0))

    assert 0.97 <= result.good / 10 / QUIET.capacity(None) <= 1.0
    assert result.done == result.good


@pytest.mark.parametrize(("size", "calls"), [(50, 4), (300, 16), (100, 32), (900, 8)])
def test_an_overload_gets_what_the_limits_can_carry(size: int, calls: int) -> None:
    scenario = short(Phase(20, QUIET, load=2.0), shed=False, goal=20.0, time_limit=20.0)

    result = simulate(scenario, 1, limits=Limits(size, calls, 0.0))

    # A call is as slow as the calls that are in flight when it starts: the first ones of all start into silence.
    assert result.done / 20 == pytest.approx(QUIET.throughput(size, calls), rel=0.05)


def test_noise_and_slow_calls_keep_the_throughput_that_arithmetic_gives() -> None:
    rough = attrs.evolve(
        QUIET, noise=0.5, slow_share=0.1, slow_factor=5.0, failing=0.1, heavy_share=0.05, heavy_weight=9
    )
    scenario = short(Phase(60, rough), goal=None, closed=True, time_limit=100.0)

    result = simulate(scenario, 1, limits=Limits(200, 16, 0.0))

    assert result.done / 60 == pytest.approx(rough.throughput(200, 16), rel=0.03)
    assert result.failed / (result.failed + result.done) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(("size", "wait"), [(10, 0.0), (10, 0.05), (1, 0.05)])
def test_a_short_batch_waits_for_company_no_longer_than_it_may(size: int, wait: float) -> None:
    scenario = short(Phase(2, QUIET))

    result = simulate(scenario, 1, limits=Limits(size, 4, wait), arrivals=one_at(1.0, scenario))

    waited = wait if size > 1 else 0.0
    assert result.latency.quantile(1.0) == pytest.approx(waited + QUIET.mean_seconds(1, 1), rel=0.011)


def test_a_full_batch_goes_before_its_wait_is_over() -> None:
    scenario = short(Phase(2, QUIET))

    result = simulate(scenario, 1, limits=Limits(10, 4, 5.0), arrivals=one_at(1.0, scenario, items=14))

    assert (result.done, result.left, result.calls) == (10, 4, 1)


def test_items_that_can_no_longer_meet_the_goal_are_shed_only_if_that_is_wanted() -> None:
    scenario = short(Phase(10, QUIET, load=1.5))

    shedding = simulate(scenario, 1)
    keeping = simulate(attrs.evolve(scenario, shed=False), 1)

    assert shedding.shed > 0
    assert keeping.shed == 0
    assert shedding.good > 2 * keeping.good
    assert keeping.latency.quantile(0.99) > 2 * shedding.latency.quantile(0.99)


def test_a_call_beyond_its_time_limit_fails_then() -> None:
    scenario = short(Phase(4, attrs.evolve(QUIET, fixed=3.0)), time_limit=0.5)
    watcher = Watcher(Limits(10, 4, 0.0))

    result = simulate(scenario, 1, watcher, limits=watcher.limits, arrivals=one_at(1.0, scenario, items=10))

    assert (result.timed_out, result.failed, result.done) == (1, 10, 0)
    assert [(seen.failed, seen.too_large, seen.seconds, seen.now) for seen in watcher.seen] == [(True, False, 0.5, 1.5)]


def test_a_call_that_is_too_large_is_refused_and_its_items_are_tried_again() -> None:
    scenario = short(Phase(4, attrs.evolve(QUIET, largest=30)), shed=False)
    arrivals = one_at(1.0, scenario, items=100)
    start = Limits(100, 1, 0.0)

    stubborn = simulate(scenario, 1, limits=start, arrivals=arrivals)
    halving = simulate(scenario, 1, Halves(start), limits=start, arrivals=arrivals)

    assert (stubborn.done, stubborn.left, stubborn.failed) == (0, 100, 0)
    assert stubborn.too_large == stubborn.calls - 1  # the last is still on its way
    assert (halving.done, halving.too_large) == (100, 2)


def test_items_of_a_refused_call_are_the_oldest_again() -> None:
    scenario = short(Phase(2, attrs.evolve(QUIET, largest=30)), tick=0.001, shed=False)
    arrivals = one_at(1.0, scenario, items=100)
    arrivals[1002] = 100
    watcher = Watcher(Limits(100, 1, 0.0))

    simulate(scenario, 1, watcher, limits=watcher.limits, arrivals=arrivals)

    assert watcher.seen[0].queued == 200
    assert watcher.seen[0].oldest_wait == pytest.approx(0.004)


def test_heavy_items_are_refused_by_their_weight() -> None:
    laden = attrs.evolve(QUIET, heavy_share=0.1, heavy_weight=50, largest=120)
    scenario = short(Phase(10, laden, rate=2000), shed=False)
    watcher = Watcher(Limits(20, 8, 0.01))

    simulate(scenario, 1, watcher, limits=watcher.limits)

    for seen in watcher.seen:
        assert seen.size_bytes is not None
        assert seen.too_large == (seen.size_bytes > 120_000)
    assert {seen.too_large for seen in watcher.seen} == {True, False}


def test_calls_that_fall_into_a_silence_end_later_by_what_they_spend_in_it() -> None:
    scenario = short(Phase(8, QUIET, hiccup=(4, 0.5)), time_limit=5.0)
    call = QUIET.mean_seconds(1, 1)

    def latency(second: float) -> float:
        return simulate(scenario, 1, arrivals=one_at(second, scenario)).latency.quantile(1.0)

    assert latency(3.0) == pytest.approx(call, rel=0.011)
    assert latency(4.0 - 0.005) == pytest.approx(call + 0.5, rel=0.011)
    assert latency(4.2) == pytest.approx(call + 0.3, rel=0.011)
    assert latency(4.5) == pytest.approx(call, rel=0.011)


def test_limits_by_phase_hold_in_their_phases() -> None:
    table = [Limits(10, 2, 0.0), Limits(50, 5, 0.0)]
    scenario = short(Phase(3, QUIET), Phase(3, QUIET))

    result = simulate(scenario, 1, limits=table)

    assert [(size, calls) for _, size, calls in result.trace] == [(10, 2)] * 6 + [(50, 5)] * 6


# --- What a controller is shown ----------------------------------------------------------------


def test_observations_say_what_is_so() -> None:
    scenario = short(Phase(4, QUIET, load=1.2), Phase(4, QUIET, load=0.2, pressure=0.7))
    watcher = Watcher(Limits(60, 9, 0.0))

    result = simulate(scenario, 1, watcher, limits=watcher.limits)

    assert len(watcher.seen) in range(result.calls - 9, result.calls + 1)
    assert [seen.now for seen in watcher.seen] == sorted(seen.now for seen in watcher.seen)
    for seen in watcher.seen:
        assert seen.seconds == pytest.approx(QUIET.mean_seconds(seen.size, seen.in_flight))
        assert 1 <= seen.in_flight <= 9
        assert seen.oldest_call <= seen.seconds * 2
        assert (seen.oldest_wait > 0) <= (seen.queued > 0)
        assert seen.pressure == (0.7 if seen.now >= 4 else 0.0)
    assert max(seen.queued for seen in watcher.seen) > 1000


@pytest.mark.parametrize("closed", [False, True])
def test_ticks_come_every_ten_milliseconds_while_a_call_is_in_flight(closed: bool) -> None:
    scenario = short(Phase(4, attrs.evolve(QUIET, fixed=0.5), load=0.5, pressure=0.3), closed=closed)
    watcher = Watcher(Limits(50, 4, 0.0))

    simulate(scenario, 1, watcher, limits=watcher.limits)

    times = [tick[0] for tick in watcher.ticks]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) > 300
    assert min(gaps) >= 0.01 - 1e-6
    assert max(gaps) < 0.021
    for _, in_flight, oldest, queued, pressure in watcher.ticks:
        assert 1 <= in_flight <= 4
        assert 0 <= oldest <= 0.7
        assert queued >= 0
        assert pressure == 0.3


def test_late_ticks_come_for_calls_that_take_twice_as_long_as_usual() -> None:
    slow = attrs.evolve(QUIET, fixed=0.1)
    scenario = short(Phase(20, slow, load=0.3, hiccup=(10, 2.0)), time_limit=5.0)
    watcher = Watcher(Limits(50, 8, 0.0))

    simulate(scenario, 1, watcher, limits=watcher.limits, late_ticks=True)

    times = [tick[0] for tick in watcher.ticks if tick[0] > 5]  # at first nobody knows what is usual
    assert 10.1 < times[0] < 10.3
    assert times[-1] <= 12.3
    assert 20 <= len(times) <= 40
    assert min(after - before for before, after in itertools.pairwise(times)) >= 0.05 - 1e-6


def test_probes_are_obeyed_and_left_out_of_the_trace() -> None:
    @attrs.define
    class Prober(Watcher):
        def observe(self, observation: Observation, /) -> Limits:
            Watcher.observe(self, observation)
            probing = len(self.seen) % 2 == 1
            return Limits(5, 2, 0.0, probe=True) if probing else self.limits

    scenario = short(Phase(8, QUIET, load=1.0))
    prober = Prober(Limits(20, 2, 0.0))

    result = simulate(scenario, 1, prober, limits=prober.limits)

    assert {(size, calls) for _, size, calls in result.trace} == {(20, 2)}
    assert {seen.size for seen in prober.seen} == {5, 20}


def test_the_cpu_time_of_the_controller_is_measured_apart() -> None:
    class Busy(Watcher):
        def observe(self, observation: Observation, /) -> Limits:
            until = time.process_time() + 0.001
            while time.process_time() < until:
                pass
            return super().observe(observation)

    scenario = short(Phase(2, QUIET, rate=100))
    busy = Busy(Limits(10, 2, 0.05))

    result = simulate(scenario, 1, busy, limits=busy.limits, timed=True)

    assert result.controller_seconds > 0.0009 * len(busy.seen)
    assert simulate(scenario, 1, busy, limits=busy.limits).controller_seconds == 0


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 0.99, 1.0])
def test_quantiles_are_within_one_per_cent(share: float) -> None:
    chance = random.Random(1)
    values = sorted(chance.lognormvariate(-3, 1) for _ in range(5000))
    halves = Histogram(), Histogram()
    for index, value in enumerate(values):
        halves[index % 2].add(value, 1)

    halves[0].merge(halves[1])

    assert halves[0].quantile(share) == pytest.approx(values[max(0, math.ceil(share * 5000) - 1)], rel=0.0101)
    assert math.isnan(Histogram().quantile(share))


# --- Scenarios ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_every_scenario_has_a_current_oracle_within_its_bounds(name: str) -> None:
    scenario = SCENARIOS[name]

    oracle = load(scenario)

    assert oracle is not None, "run python -m tests.benchmarks.control_oracle"
    assert len(oracle.phases) == len(scenario.phases)
    for limits in (*oracle.phases, oracle.static, scenario.start, COMMON_DEFAULT):
        assert 1 <= limits.batch_size <= scenario.max_size
        assert 1 <= limits.concurrency <= scenario.max_concurrency
        assert limits.max_wait >= 0


def test_every_kind_with_bars_is_a_scenario_and_there_are_six_others() -> None:
    assert set(BARS) < set(SCENARIOS)
    assert len(SCENARIOS) >= len(BARS) + 6
    assert all(name == scenario.name for name, scenario in SCENARIOS.items())


@given(seed=st.integers(0, 1_000_000))
def test_drawn_scenarios_are_valid_and_follow_from_their_seed(seed: int) -> None:
    scenario = drawn(seed)

    assert scenario == drawn(seed)
    assert scenario.phases != drawn(seed + 1).phases
    assert scenario.goal is not None
    assert 20 <= scenario.seconds <= 150
    assert 0.3 <= scenario.goal < scenario.time_limit
    assert 1 <= scenario.start.batch_size <= scenario.max_size
    assert 1 <= scenario.start.concurrency <= scenario.max_concurrency
    for phase in scenario.phases:
        plant = phase.plant
        assert plant.mean_seconds(plant.weight(1), plant.knee) < scenario.goal / 4
        assert plant.knee / plant.mean_seconds(1, plant.knee) <= BUSIEST
        assert plant.capacity(scenario.goal) > 0
        assert 0 <= plant.failing < 1
        assert plant.heavy_weight <= plant.largest
    segments = scenario.segments()
    assert [segment.start for segment in segments] == sorted(segment.start for segment in segments)
    assert all(0 <= segment.rate < math.inf for segment in segments)
    assert all(0 < segment.plant.fixed < math.inf and segment.plant.knee > 0 for segment in segments)


def test_the_search_finds_the_capacity_of_a_plant_without_noise() -> None:
    scenario = short(Phase(8, QUIET), name="quiet", goal=None, closed=True, max_size=1000, max_concurrency=32)

    size, calls, wait = search(scenario)

    assert QUIET.throughput(size, calls) >= 0.97 * QUIET.capacity(None)
    assert wait == 0


def test_of_settings_that_are_alike_the_one_with_the_lowest_p99_is_best() -> None:
    trials = Trials(short(Phase(6, QUIET, load=0.1)))

    ranked = trials.rank([(400, 16, 0.2), (400, 16, 0.0), (1, 1, 0.0)])

    assert ranked == [(400, 16, 0.0), (400, 16, 0.2), (1, 1, 0.0)]


def test_an_oracle_counts_for_the_scenario_that_was_swept_alone() -> None:
    steady = SCENARIOS["steady"]

    assert load(attrs.evolve(steady, goal=0.4)) is None
    assert load(attrs.evolve(steady, name="unsteady")) is None
    assert load(attrs.evolve(steady, start=COMMON_DEFAULT)) == load(steady)


def test_what_was_swept_is_not_swept_again(capsys: pytest.CaptureFixture[str]) -> None:
    before = control_oracle.PATH.read_bytes()

    status = control_oracle.main(["--only", "steady"])

    assert status == 0
    assert "0 swept" in capsys.readouterr().out
    assert control_oracle.PATH.read_bytes() == before


# --- The judge ---------------------------------------------------------------------------------

ALIKE = Oracle([Limits(300, 16, 0.0)], Limits(300, 16, 0.0))


@pytest.mark.parametrize(
    "wrong",
    [
        Limits(0, 4, 0.0),
        Limits(101, 4, 0.0),
        Limits(10, 0, 0.0),
        Limits(10, 11, 0.0),
        Limits(10.0, 4, 0.0),  # type: ignore[arg-type]  # what a careless controller does
        Limits(True, 4, 0.0),
        Limits(10, 4, -1.0),
        Limits(10, 4, math.nan),
        None,
    ],
    ids=repr,
)
def test_the_judge_catches_limits_that_are_out_of_bounds(wrong: Any) -> None:
    scenario = short(max_size=100, max_concurrency=10)
    start = scenario.start

    result = simulate(scenario, 1, Watcher(wrong))

    assert len(result.breaches) >= result.calls - 10
    assert attrs.evolve(result, breaches=[]) == simulate(scenario, 1, limits=start)
    trial = Trial("short", 1, {**run_trial("fixed", scenario, Oracle([start], start), 1).results, "controller": result})
    verdict = judge(scenario, [trial])
    assert not verdict.ok
    assert verdict.breaches[0].startswith("seed 1, at 0.")


def test_a_controller_that_stays_is_even_with_its_start() -> None:
    scenario = short(CALM, start=COMMON_DEFAULT)

    verdict = judge(scenario, [run_trial("fixed", scenario, ALIKE, seed) for seed in (1, 2)])

    assert verdict.ok
    assert verdict.against_default == "even"
    assert verdict.swing == 0
    assert verdict.settings == [(100, 10)]
    assert verdict.entrants["controller"].goodput == verdict.entrants["start"].goodput


def test_a_controller_that_falls_below_its_start_is_caught() -> None:
    scenario = short(CALM, start=Limits(300, 16, 0.0))

    verdict = judge(scenario, [run_trial(f"{__name__}:Timid", scenario, ALIKE, 1)])

    assert not verdict.ok
    assert [check.name for check in verdict.checks if not check.ok] == ["goodput of the start's, with the worst seed"]
    assert verdict.against_default == "lost"


def test_a_kind_with_bars_is_held_against_the_oracle() -> None:
    oracle = Oracle([Limits(160, 16, 0.0)], Limits(160, 16, 0.0))
    good = attrs.evolve(short(name="steady"), start=oracle.static)
    bad = attrs.evolve(good, start=COMMON_DEFAULT)

    at_best = judge(good, [run_trial("fixed", good, oracle, 1)])
    at_default = judge(bad, [run_trial("fixed", bad, oracle, 1)])

    assert at_best.ok, [str(check) for check in at_best.checks]
    assert len(at_best.checks) == 8
    missed = [check.name for check in at_default.checks if not check.ok]
    assert "goodput of the oracle's" in missed
    assert "seconds to converge" in missed
    assert "goodput to the default's" in missed


def test_a_check_that_is_not_a_number_is_not_met() -> None:
    assert not Check("p99", math.nan, 1.0, at_most=True).ok
    assert not Check("goodput", math.nan, 1.0, at_most=False).ok


@pytest.mark.parametrize(
    ("good", "seconds"),
    [
        ([9, 9, 9, 0, 0, 9, 9, 9], [0.0, 1.0]),
        ([9, 9, 0, 9, 0, 9, 9, 9], [math.inf, 1.0]),
        ([0, 9, 9, 9, 9, 9, 0, 9], [1.0, math.inf]),
    ],
)
def test_a_phase_has_converged_when_three_seconds_in_a_row_are_good(
    good: Sequence[int], seconds: Sequence[float]
) -> None:
    scenario = short(Phase(4, QUIET), Phase(4, QUIET))
    oracle = Result(8, good_by_second=[10] * 9)

    assert converged_after(scenario, Result(8, good_by_second=[*good, 0]), oracle) == seconds


def test_pressure_has_to_halve_the_batches_and_let_them_grow_again() -> None:
    calm, pressed = Phase(12, QUIET, rate=2000), Phase(12, QUIET, rate=2000, pressure=0.9)
    scenario = short(calm, pressed, calm)
    oracle = Oracle([scenario.start] * 3, scenario.start)

    verdicts: list[list[bool]] = []
    for sizes in ((100, 40, 90), (100, 60, 90), (100, 40, 70)):
        trial = run_trial("fixed", scenario, oracle, 1)
        table = [Limits(size, 10, 0.0) for size in sizes]
        trial.results["controller"] = simulate(scenario, 1, limits=table)
        checks = judge(scenario, [trial]).checks
        verdicts.append([check.ok for check in checks if "pressure" in check.name])

    assert verdicts == [[True, True], [False, True], [True, False]]


# --- The command line --------------------------------------------------------------------------


def run_control(path: Path, *arguments: str, processes: int = 1) -> tuple[int, dict[str, Any]]:
    status = control.main([*arguments, "--processes", str(processes), "--json", str(path / "control.json")])
    return status, json.loads((path / "control.json").read_text())


def test_the_benchmark_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, written = run_control(tmp_path, "--only", "few-calls,slow-calls", "--controller", "aimd", "--seeds", "2")

    printed = capsys.readouterr().out
    assert [entry["scenario"] for entry in written["scenarios"]] == ["few-calls", "slow-calls"]
    assert written["controller"] == "aimd"
    assert written["seeds"] == 2
    assert status == (0 if all(entry["ok"] for entry in written["scenarios"]) else 1)
    entrants = written["scenarios"][0]["entrants"]
    assert list(entrants) == ["controller", "default", "best static", "oracle", "start"]
    assert entrants["controller"]["controller_us_per_call"] > 0
    assert entrants["default"]["controller_us_per_call"] == 0
    assert entrants["oracle"]["p50"] < entrants["oracle"]["p95"] < entrants["oracle"]["p99"]
    for name in ("few-calls", "slow-calls", *entrants):
        assert name in printed


def test_several_processes_come_to_the_same(tmp_path: Path) -> None:
    arguments = ["--only", "few-calls", "--controller", "aimd", "--seeds", "2"]

    _, alone = run_control(tmp_path, *arguments)
    _, together = run_control(tmp_path, *arguments, processes=2)

    for written in (alone, together):
        for key in ("controller_us_per_call", "controller_ns_per_item"):
            assert written["scenarios"][0]["entrants"]["controller"].pop(key) > 0
    assert alone["scenarios"] == together["scenarios"]


def test_without_shedding_everything_is_sent(tmp_path: Path) -> None:
    _, with_it = run_control(tmp_path, "--only", "few-calls", "--controller", "fixed", "--seeds", "1")
    _, without = run_control(tmp_path, "--only", "few-calls", "--controller", "fixed", "--seeds", "1", "--no-shed")

    p99 = [run["scenarios"][0]["entrants"]["default"]["p99"] for run in (with_it, without)]
    assert p99[1] > 5 * p99[0]


def test_the_guard_rail_lets_pass_what_stays_and_catches_what_falls(tmp_path: Path) -> None:
    kept, still = run_control(
        tmp_path, "--guard", "--only", "drawn-4,slow-calls", "--controller", "fixed", "--seeds", "2"
    )
    fell, timid = run_control(
        tmp_path, "--guard", "--only", "slow-calls", "--controller", f"{__name__}:Timid", "--seeds", "1"
    )

    assert kept == 0
    assert [run["ratio"] for run in still["guard"]] == [1.0] * 4
    assert {(run["scenario"], run["seed"]) for run in still["guard"]} == {
        (name, seed) for name in ("drawn-4", "slow-calls") for seed in (1, 2)
    }
    assert fell == 1
    assert timid["guard"][0]["ratio"] < 0.9


def test_the_guard_rail_catches_limits_that_are_out_of_bounds() -> None:
    found = control_guard.guard(control_guard.Task(f"{__name__}:Boundless", "slow-calls", 1))

    assert found[0].ratio == 1.0
    assert not found[0].ok


def test_the_scenario_with_the_worst_run_comes_first() -> None:
    found = [
        control_guard.Guarded(name, seed, ratio, 1.0, breaches)
        for name, seed, ratio, breaches in (
            ("fine", 1, 1.2, ()),
            ("poor", 1, 1.1, ()),
            ("wild", 1, 1.5, ("at 1 s: too many",)),
            ("poor", 2, 0.5, ()),
            ("fine", 2, 0.95, ()),
        )
    ]

    ranked = control_guard.worst_first(found)

    assert [(name, len(runs)) for name, runs in ranked] == [("wild", 1), ("poor", 2), ("fine", 2)]


def test_the_guard_rail_covers_every_scenario_and_two_hundred_drawn_ones() -> None:
    names = control_guard.names()

    assert len(names) == len(set(names)) == len(SCENARIOS) + 200
    assert control_guard.find("drawn-12") == drawn(12)
    assert control_guard.find("from-below") is SCENARIOS["from-below"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "stedy"], "no scenario is named stedy"),
        (["--only", "drawn-3"], "no scenario is named drawn-3"),
        (["--controller", "adaptiv"], "no controller is named 'adaptiv'"),
        (["--controller", "tests.benchmarks.control:Nobody"], "does not lead to a controller"),
    ],
)
def test_what_is_unknown_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        control.main(arguments)

    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", list(ENTRANTS))
def test_every_entrant_runs_within_its_bounds(name: str) -> None:
    scenario = short(Phase(5, attrs.evolve(QUIET, largest=60)), max_size=120, max_concurrency=12)

    result = simulate(scenario, 1, make(name, scenario), timed=True)

    assert result.calls > 10
    assert result.breaches == []
    assert find(name) is ENTRANTS[name]
