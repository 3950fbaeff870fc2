"""The best static settings, found by trying: python -m tests.benchmarks.control_oracle [--only NAMES] [--all].

For each phase on its own, beginning with an empty queue, and for each scenario as a whole, by hindsight.
Writes control_oracles.json beside this file. Only scenarios that are new or were changed are swept, unless `--all` is
given, which a change of the simulator needs; all of them take about a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import attrs

from forebay._types import Limits
from tests.benchmarks.control_plant import Phase, Scenario
from tests.benchmarks.control_scenarios import SCENARIOS
from tests.benchmarks.control_sim import simulate

PATH = Path(__file__).with_name("control_oracles.json")
HOW = (
    "written by: python -m tests.benchmarks.control_oracle. Each setting is [batch size, calls, max wait in seconds]: "
    "the most goodput of a grid by factors of 2 and 1.5 and then of finer ones around its best, on a seed that no "
    "benchmark uses; of those within 1 % the one with the lowest p99. 'phases' is for each phase on its own, from an "
    "empty queue; 'static' the best single one for the whole scenario."
)
SEED = 101
HORIZON = 15
"""Seconds of a phase that are tried, if nothing changes in it and the goal is short."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 100, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
CALLS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
FINER = ((0.71, 0.84, 1.0, 1.19, 1.41), (0.84, 0.92, 1.0, 1.09, 1.19))


@attrs.frozen
class Oracle:
    """The best static settings of a scenario."""

    phases: Sequence[Limits]
    static: Limits


def fingerprint(scenario: Scenario) -> str:
    """Return a text that changes with anything in *scenario* that the best settings depend on."""
    parts = attrs.asdict(scenario, recurse=False)
    del parts["start"], parts["settle"]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def load(scenario: Scenario) -> Oracle | None:
    """Return what was found for *scenario*; `None` where it was not swept or has changed since."""
    entry = _read().get(scenario.name)
    if entry is None or entry["fingerprint"] != fingerprint(scenario):
        return None
    return Oracle([_limits(found) for found in entry["phases"]], _limits(entry["static"]))


def _limits(found: Sequence[float]) -> Limits:
    return Limits(int(found[0]), int(found[1]), float(found[2]))


def _read() -> dict[str, Any]:
    if not PATH.exists():
        return {}
    found: dict[str, Any] = json.loads(PATH.read_text())["scenarios"]
    return found


def _write(entries: dict[str, Any]) -> None:
    """Write the file with one line for each scenario."""
    lines = [f"  {json.dumps(name)}: {json.dumps(entries[name])}" for name in SCENARIOS if name in entries]
    body = ",\n".join(lines)
    PATH.write_text(f'{{\n "how": {json.dumps(HOW)},\n "scenarios": {{\n{body}\n }}\n}}\n')


# --- The search --------------------------------------------------------------------------------

Cell = tuple[int, int, float]


@attrs.define
class Trials:
    """Runs of one scenario with static settings, each tried once."""

    scenario: Scenario
    arrivals: Sequence[int] = attrs.field(init=False)
    scores: dict[Cell, tuple[int, float]] = attrs.field(factory=dict[Cell, tuple[int, float]])
    """Goodput and p99 of each setting tried."""

    def __attrs_post_init__(self) -> None:
        self.arrivals = [] if self.scenario.closed else self.scenario.arrivals(SEED)

    def rank(self, cells: Iterable[Cell]) -> list[Cell]:
        """Try *cells*; return all that were tried so far, best first."""
        for cell in cells:
            if cell not in self.scores:
                result = simulate(self.scenario, SEED, limits=Limits(*cell), arrivals=self.arrivals)
                p99 = result.latency.quantile(0.99)
                self.scores[cell] = (result.good, math.inf if math.isnan(p99) else p99)
        most = max(good for good, _ in self.scores.values())
        alike = [cell for cell in self.scores if self.scores[cell][0] >= 0.99 * most]
        others = [cell for cell in self.scores if self.scores[cell][0] < 0.99 * most]
        alike.sort(key=lambda cell: self.scores[cell][1])
        others.sort(key=lambda cell: -self.scores[cell][0])
        return alike + others


def waits(scenario: Scenario) -> tuple[float, ...]:
    """Return the waits that are worth trying."""
    return (0.0,) if scenario.goal is None else (0.0, scenario.goal / 50, scenario.goal / 10)


def promising(scenario: Scenario) -> list[Cell]:
    """Return the grid without what is always refused, and what cannot reach half of what the best cell can."""
    largest = max(phase.plant.largest for phase in scenario.phases)

    def ceiling(size: int, calls: int) -> float:
        """Return the most items that fewer than *size* in fewer than *calls* calls could carry."""
        total = 0.0
        for phase in scenario.phases:
            plants = {phase.plant, phase.until or phase.plant}
            most = max(
                plant.throughput(b, c) for plant in plants for b in SIZES if b <= size for c in CALLS if c <= calls
            )
            total += phase.seconds * (most if scenario.closed else min(most, phase.mean_rate(scenario.goal)))
        return total

    ceilings = {
        (size, calls): ceiling(size, calls)
        for size in SIZES
        for calls in CALLS
        if size <= min(scenario.max_size, largest) and calls <= scenario.max_concurrency
    }
    best = max(ceilings.values())
    ends = sorted({waits(scenario)[0], waits(scenario)[-1]})
    return [(*cell, wait) for cell, most in ceilings.items() if most >= best / 2 for wait in ends]


def around(scenario: Scenario, centre: Cell, factors: Sequence[float]) -> list[Cell]:
    """Return the grid of *factors* around *centre*, with all waits."""
    sizes = {min(scenario.max_size, max(1, round(centre[0] * factor))) for factor in factors}
    calls = {min(scenario.max_concurrency, max(1, round(centre[1] * factor))) for factor in factors}
    return [(size, count, wait) for size in sorted(sizes) for count in sorted(calls) for wait in waits(scenario)]


def shortened(scenario: Scenario) -> Scenario:
    """Return *scenario* with phases of a third of their length, down to a few times its goal."""
    least = max(8, math.ceil(8 * (scenario.goal or 0)))
    phases = [
        attrs.evolve(phase, seconds=min(phase.seconds, max(math.ceil(phase.seconds / 3), least)))
        for phase in scenario.phases
    ]
    return attrs.evolve(scenario, phases=phases)


def search(scenario: Scenario) -> Cell:
    """Return the best static setting: a coarse grid on a shortened scenario, then finer ones on the whole."""
    coarse = Trials(shortened(scenario)).rank(promising(scenario))
    trials = Trials(scenario)
    best = trials.rank(coarse[:12])[0]
    for factors in FINER:
        best = trials.rank(around(scenario, best, factors))[0]
    return best


def _alone(scenario: Scenario, phase: Phase) -> Scenario:
    """Return a scenario of one phase, cut where nothing changes in it."""
    changes = phase.until is not None or phase.wave is not None or phase.hiccup is not None
    seconds = phase.seconds
    if not (changes or phase.burst is not None):
        seconds = min(seconds, max(HORIZON, math.ceil(8 * (scenario.goal or 0))))
    return attrs.evolve(scenario, phases=[attrs.evolve(phase, seconds=seconds)])


def sweep(scenario: Scenario) -> dict[str, Any]:
    """Return the entry of *scenario* for the file."""
    known: dict[str, Cell] = {}
    phases: list[Cell] = []
    for phase in scenario.phases:
        alone = _alone(scenario, phase)
        if repr(alone) not in known:
            known[repr(alone)] = search(alone)
        phases.append(known[repr(alone)])
    whole = phases[0] if len(scenario.phases) == 1 else search(scenario)
    return {"fingerprint": fingerprint(scenario), "phases": phases, "static": whole}


def _timed(name: str) -> tuple[str, dict[str, Any], float]:
    started = time.perf_counter()
    return name, sweep(SCENARIOS[name]), time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep what the command line asks for and write it down."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.control_oracle")
    parser.add_argument("--only", metavar="NAMES", help="of these scenarios, separated by commas")
    parser.add_argument("--all", action="store_true", help="also those that were swept and have not changed")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    names = given.only.split(",") if given.only else list(SCENARIOS)
    if unknown := set(names) - set(SCENARIOS):
        parser.error(f"no scenario is named {', '.join(sorted(unknown))} (there are: {', '.join(SCENARIOS)})")
    names = [name for name in names if given.all or load(SCENARIOS[name]) is None]
    entries = _read()
    if names:
        with get_context("spawn").Pool(given.processes) as pool:
            for name, entry, seconds in pool.imap_unordered(_timed, names):
                entries[name] = entry
                _write(entries)
                print(f"  … {name}: {entry['static']} in {seconds:.0f} s", file=sys.stderr, flush=True)
    print(f"control_oracle: {len(names)} swept, {len(SCENARIOS) - len(names)} left as they are")
    return 0


if __name__ == "__main__":
    sys.exit(main())
