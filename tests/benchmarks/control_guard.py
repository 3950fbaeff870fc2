"""The guard rail: a controller never does much worse than the setting that it starts from, left alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from typing import NamedTuple

from tests.benchmarks.control_entrants import make
from tests.benchmarks.control_judge import GUARD, guard_ratio
from tests.benchmarks.control_plant import Scenario
from tests.benchmarks.control_scenarios import SCENARIOS, drawn
from tests.benchmarks.control_sim import simulate

DRAWN = 200
SEEDS = 20


class Task(NamedTuple):
    """One scenario with several seeds, for one controller."""

    controller: str
    scenario: str
    seeds: int
    late_ticks: bool = False


class Guarded(NamedTuple):
    """One scenario with one seed."""

    scenario: str
    seed: int
    ratio: float
    """Goodput as a share of that of the start, left alone."""
    start_share: float
    """What of the offered items the start did within the goal."""
    breaches: Sequence[str]

    @property
    def ok(self) -> bool:
        """Whether the controller kept to the guard rail and to its bounds."""
        return self.ratio >= GUARD and not self.breaches


def find(name: str) -> Scenario:
    """Return the scenario called *name*; `drawn-7` is the one drawn with seed 7."""
    kind, _, number = name.partition("-")
    return drawn(int(number)) if kind == "drawn" and number.isdigit() else SCENARIOS[name]


def names() -> list[str]:
    """Return the names of all scenarios that are guarded."""
    return [*SCENARIOS, *(f"drawn-{seed}" for seed in range(1, DRAWN + 1))]


def guard(task: Task) -> list[Guarded]:
    """Run one task."""
    scenario = find(task.scenario)
    found: list[Guarded] = []
    for seed in range(1, task.seeds + 1):
        arrivals = [] if scenario.closed else scenario.arrivals(seed)
        start = simulate(scenario, seed, arrivals=arrivals)
        result = simulate(
            scenario, seed, make(task.controller, scenario), arrivals=arrivals, late_ticks=task.late_ticks
        )
        share = start.good / max(1, start.offered)
        found.append(Guarded(scenario.name, seed, guard_ratio(result, start), share, result.breaches))
    return found


def worst_first(found: Sequence[Guarded]) -> list[tuple[str, list[Guarded]]]:
    """Return the runs of each scenario, the one with the worst run first; limits out of bounds are worst of all."""
    by_scenario: dict[str, list[Guarded]] = {}
    for one in found:
        by_scenario.setdefault(one.scenario, []).append(one)
    return sorted(by_scenario.items(), key=lambda entry: min((not one.breaches, one.ratio) for one in entry[1]))


def run(tasks: Sequence[Task], processes: int) -> list[Guarded]:
    """Run all tasks; say on standard error how far it is."""
    found: list[Guarded] = []
    said = 0
    for count, some in enumerate(_results(tasks, processes), start=1):
        found += some
        if 10 * count // len(tasks) > said or count == len(tasks):
            said = 10 * count // len(tasks)
            missed = sum(not one.ok for one in found)
            print(f"  … {count} of {len(tasks)} scenarios, {missed} runs missed", file=sys.stderr, flush=True)
    return found


def _results(tasks: Sequence[Task], processes: int) -> Iterator[list[Guarded]]:
    if processes == 1:
        yield from map(guard, tasks)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(guard, tasks)
