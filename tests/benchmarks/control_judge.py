"""Compares a controller with static settings on one scenario, and holds it against the bars."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import attrs

from tests.benchmarks.control_entrants import COMMON_DEFAULT, make
from tests.benchmarks.control_oracle import Oracle
from tests.benchmarks.control_plant import Scenario
from tests.benchmarks.control_result import Histogram, Result
from tests.benchmarks.control_sim import simulate

ENTRANTS = ("controller", "default", "best static", "oracle", "start")
"""The controller; 100 items, 50 ms and ten calls; the best single setting by hindsight; the best for each phase;
what the controller starts from, left alone."""


class Bars(NamedTuple):
    """What a kind of scenario asks of a controller, beside the best setting for each phase."""

    goodput: float
    """At least so much of the goodput."""
    settled: float
    """The same without the first seconds of each phase."""
    settled_p99: float
    """At most so many times the p99 without the first seconds of each phase."""
    converges: float
    """Seconds, at the median over phases, until three seconds in a row reach 90 % of the goodput."""
    peak: float = math.inf
    """At most so many times the most items in memory."""


BARS = {
    "steady": Bars(0.99, 0.99, 1.3, 2, peak=2),
    "shift10": Bars(0.80, 0.92, 1.7, 8),
    "overload": Bars(0.95, 0.95, 1.1, 3, peak=2),
    "bursty": Bars(0.92, 0.92, 1.1, 3, peak=2),
    "brownout": Bars(0.95, 0.97, 1.6, 10),
    "leak": Bars(0.90, 0.90, 1.3, 3, peak=2),
    "noisy": Bars(0.95, 0.95, 1.3, 5, peak=2),
    "coldcollapse": Bars(0.85, 0.85, 1.1, 10),
    "regimes": Bars(0.80, 0.90, 1.7, 8),
}
CLOSED_SHARE = 0.9
"""Of the best static setting's throughput, that a controller has to reach where the queue is always full."""
GUARD = 0.9
"""Of the goodput of the start, left alone, below which a controller must never fall."""
SATURATED = 0.6
"""Share of the offered items below which the common default counts as saturated, if the oracle does nine in ten."""


@attrs.frozen
class Trial:
    """All entrants on one scenario with one seed."""

    scenario: str
    seed: int
    results: dict[str, Result]


@attrs.frozen
class Check:
    """One bar of one scenario."""

    name: str
    reached: float
    bar: float
    at_most: bool

    @property
    def ok(self) -> bool:
        """Whether the bar is met; what is not a number does not meet it."""
        return self.reached <= self.bar if self.at_most else self.reached >= self.bar

    def __str__(self) -> str:
        return f"{self.name} {self.reached:.3g} ({'at most' if self.at_most else 'at least'} {self.bar:g})"


@attrs.frozen
class Figures:
    """What one entrant reached on one scenario, over all seeds."""

    goodput: float
    """Items a second that were done within the goal."""
    of_offered: float
    p50: float
    p95: float
    p99: float
    settled_p99: float
    average: float
    """Items in memory."""
    peak: int
    calls: float
    """Calls of one run."""
    controller_us_per_call: float
    """CPU time."""
    controller_ns_per_item: float


def run_trial(name: str, scenario: Scenario, oracle: Oracle, seed: int, *, late_ticks: bool = False) -> Trial:
    """Run the controller called *name* and what it is compared with."""
    arrivals = [] if scenario.closed else scenario.arrivals(seed)
    controller = make(name, scenario)
    results = {
        "controller": simulate(scenario, seed, controller, arrivals=arrivals, timed=True, late_ticks=late_ticks),
        "default": simulate(scenario, seed, limits=COMMON_DEFAULT, arrivals=arrivals),
        "best static": simulate(scenario, seed, limits=oracle.static, arrivals=arrivals),
        "oracle": simulate(scenario, seed, limits=oracle.phases, arrivals=arrivals),
        "start": simulate(scenario, seed, arrivals=arrivals),
    }
    return Trial(scenario.name, seed, results)


def figures(results: Sequence[Result]) -> Figures:
    """Return what *results*, of one entrant with several seeds, come to."""
    latency, settled = Histogram(), Histogram()
    for result in results:
        latency.merge(result.latency)
        settled.merge(result.settled)
    good = sum(result.good for result in results)
    seconds = sum(result.controller_seconds for result in results)
    return Figures(
        goodput=good / sum(result.seconds for result in results),
        of_offered=good / max(1, sum(result.offered for result in results)),
        p50=latency.quantile(0.5),
        p95=latency.quantile(0.95),
        p99=latency.quantile(0.99),
        settled_p99=settled.quantile(0.99),
        average=statistics.fmean(result.average for result in results),
        peak=max(result.peak for result in results),
        calls=statistics.fmean(result.calls for result in results),
        controller_us_per_call=1e6 * seconds / max(1, sum(result.calls for result in results)),
        controller_ns_per_item=1e9 * seconds / max(1, sum(result.done for result in results)),
    )


def converged_after(scenario: Scenario, result: Result, oracle: Result) -> list[float]:
    """Return for each phase the seconds until three in a row reach 90 % of the oracle's goodput."""
    found: list[float] = []
    for start, phase in zip(scenario.starts(), scenario.phases, strict=True):
        reached = [
            result.good_by_second[second] >= 0.9 * oracle.good_by_second[second]
            for second in range(start, start + phase.seconds)
        ]
        after = (float(second) for second in range(len(reached) - 2) if all(reached[second : second + 3]))
        found.append(next(after, math.inf))
    return found


def _late(scenario: Scenario, result: Result) -> list[list[tuple[float, int, int]]]:
    """Return the trace in the second half of each phase."""
    return [
        [entry for entry in result.trace if start + phase.seconds / 2 <= entry[0] < start + phase.seconds]
        for start, phase in zip(scenario.starts(), scenario.phases, strict=True)
    ]


def swing(scenario: Scenario, result: Result) -> float:
    """Return how much batch size and calls still move in the second half of each phase: deviation of the logarithm."""
    return statistics.fmean(
        statistics.pstdev(math.log(entry[column]) for entry in late)
        for late in _late(scenario, result)
        for column in (1, 2)
    )


def settings(scenario: Scenario, result: Result) -> list[tuple[float, float]]:
    """Return the median batch size and calls in the second half of each phase."""
    return [
        (statistics.median(size for _, size, _ in late), statistics.median(calls for _, _, calls in late))
        for late in _late(scenario, result)
    ]


@attrs.frozen
class Verdict:
    """One scenario, judged."""

    scenario: str
    entrants: dict[str, Figures]
    checks: Sequence[Check]
    breaches: Sequence[str]
    """Limits out of bounds, with their seeds."""
    converges: float
    """Median over phases and seeds."""
    swing: float
    settings: Sequence[tuple[float, float]]
    """Median batch size and calls in the second half of each phase, with the first seed."""

    @property
    def ok(self) -> bool:
        """Whether every bar is met and no limit was out of bounds."""
        return not self.breaches and all(check.ok for check in self.checks)

    @property
    def against_default(self) -> str:
        """`won` or `lost` against the common default by more than 1 % of goodput or, if alike, of p99; else `even`."""
        ours, theirs = self.entrants["controller"], self.entrants["default"]
        for mine, other in ((ours.goodput, theirs.goodput), (theirs.p99, ours.p99)):
            if mine > 1.01 * other:
                return "won"
            if mine < 0.99 * other:
                return "lost"
        return "even"


def judge(scenario: Scenario, trials: Sequence[Trial]) -> Verdict:
    """Return the verdict on *trials*, which are all of *scenario*."""
    entrants = {name: figures([trial.results[name] for trial in trials]) for name in ENTRANTS}
    waits = [
        seconds
        for trial in trials
        for seconds in converged_after(scenario, trial.results["controller"], trial.results["oracle"])
    ]
    converges = sorted(waits)[len(waits) // 2]
    return Verdict(
        scenario=scenario.name,
        entrants=entrants,
        checks=[
            *_against_oracle(scenario, trials, entrants, converges),
            *_against_default(scenario, entrants),
            *_under_pressure(scenario, trials),
            _against_start(trials),
        ],
        breaches=[f"seed {trial.seed}, {found}" for trial in trials for found in trial.results["controller"].breaches],
        converges=converges,
        swing=statistics.fmean(swing(scenario, trial.results["controller"]) for trial in trials),
        settings=settings(scenario, trials[0].results["controller"]),
    )


def _share(trials: Sequence[Trial], other: str, what: str) -> float:
    """Return the controller's count as a share of *other*'s, over all seeds."""
    mine = sum(getattr(trial.results["controller"], what) for trial in trials)
    theirs = sum(getattr(trial.results[other], what) for trial in trials)
    return mine / theirs if theirs else math.inf


def _against_oracle(
    scenario: Scenario, trials: Sequence[Trial], entrants: dict[str, Figures], converges: float
) -> list[Check]:
    if scenario.closed:
        share = _share(trials, "best static", "settled_good")
        return [Check("settled throughput of the best static setting's", share, CLOSED_SHARE, at_most=False)]
    bars = BARS.get(scenario.name)
    if bars is None:
        return []
    mine, best = entrants["controller"], entrants["oracle"]
    checks = [
        Check("goodput of the oracle's", _share(trials, "oracle", "good"), bars.goodput, at_most=False),
        Check("settled goodput", _share(trials, "oracle", "settled_good"), bars.settled, at_most=False),
        Check("settled p99 to the oracle's", mine.settled_p99 / best.settled_p99, bars.settled_p99, at_most=True),
        Check("seconds to converge", converges, bars.converges, at_most=True),
    ]
    if bars.peak < math.inf:
        checks.append(Check("peak items to the oracle's", mine.peak / best.peak, bars.peak, at_most=True))
    return checks


def _against_default(scenario: Scenario, entrants: dict[str, Figures]) -> list[Check]:
    """Return what is asked where the common default saturates and another setting does not.

    Shedding keeps every p99 near the goal, so that much less is asked only where the oracle shows that it can be had.
    """
    mine, default, best = entrants["controller"], entrants["default"], entrants["oracle"]
    if scenario.closed or default.of_offered > SATURATED or best.of_offered < 0.9:
        return []
    goodput = mine.goodput / default.goodput if default.goodput else math.inf
    checks = [Check("goodput to the default's", goodput, 1.5, at_most=False)]
    if best.p99 <= 0.4 * default.p99:
        checks.append(Check("p99 to the default's", mine.p99 / default.p99, 0.4, at_most=True))
    return checks


def _under_pressure(scenario: Scenario, trials: Sequence[Trial]) -> list[Check]:
    """Return what is asked where system load comes and goes: batches of half the size or less, then as before."""
    checks: list[Check] = []
    for index, phase in enumerate(scenario.phases):
        if phase.pressure and 0 < index < len(scenario.phases) - 1:
            before, during, after = (_usual_size(scenario, trials, index + step) for step in (-1, 0, 1))
            checks.append(Check("batch size under pressure to before", during / before, 0.5, at_most=True))
            checks.append(Check("batch size 10 s after pressure to before", after / before, 0.8, at_most=False))
    return checks


def _usual_size(scenario: Scenario, trials: Sequence[Trial], index: int) -> float:
    """Return the median batch size in a phase, without its first seconds."""
    start = scenario.starts()[index]
    entries = [entry for trial in trials for entry in trial.results["controller"].trace]
    since, until = start + scenario.settle, start + scenario.phases[index].seconds
    return statistics.median(size for time, size, _ in entries if since <= time < until)


def _against_start(trials: Sequence[Trial]) -> Check:
    return Check(
        "goodput of the start's, with the worst seed",
        min(guard_ratio(trial.results["controller"], trial.results["start"]) for trial in trials),
        GUARD,
        at_most=False,
    )


def guard_ratio(result: Result, start: Result) -> float:
    """Return the goodput as a share of that of the start, left alone."""
    return result.good / start.good if start.good else math.inf
