"""The control benchmark: a controller beside static settings, in virtual time.

    python -m tests.benchmarks.control [--only NAMES] [--controller NAME|MODULE:CLASS] [--seeds N] [--guard]
                                       [--no-shed] [--late-ticks] [--processes N] [--json PATH]

Prints a table for each scenario and writes all figures as JSON; it takes about a minute on two cores. With `--guard` it
holds the controller to 0.9 of the goodput of its start instead, in each scenario and in 200 drawn ones with seeds
1 to 20; that takes about ten minutes on two cores, and `--seeds 2` one.
The exit status is 1 if a bar is missed or a limit was out of bounds.
All but the CPU time of the controller is the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from tests.benchmarks import control_guard
from tests.benchmarks.control_entrants import ENTRANTS, find
from tests.benchmarks.control_judge import ENTRANTS as COMPARED
from tests.benchmarks.control_judge import GUARD, Figures, Trial, Verdict, judge, run_trial
from tests.benchmarks.control_oracle import load
from tests.benchmarks.control_plant import Scenario
from tests.benchmarks.control_scenarios import SCENARIOS
from tests.benchmarks.run import ROOT, header

LAST = ROOT / "build" / "bench" / "control.json"
SEEDS = 3


class Task(NamedTuple):
    """One scenario with one seed, for one controller."""

    controller: str
    scenario: str
    seed: int
    shed: bool = True
    late_ticks: bool = False

    def conditions(self) -> Scenario:
        """Return the scenario, with or without shedding."""
        scenario = SCENARIOS[self.scenario]
        return scenario if self.shed else attrs.evolve(scenario, shed=False)


def try_one(task: Task) -> Trial:
    """Run one task."""
    oracle = load(SCENARIOS[task.scenario])
    if oracle is None:
        raise ValueError(
            f"{task.scenario} has no oracle, or changed since; run python -m tests.benchmarks.control_oracle"
        )
    return run_trial(task.controller, task.conditions(), oracle, task.seed, late_ticks=task.late_ticks)


def _trials(tasks: Sequence[Task], processes: int) -> Iterator[Trial]:
    if processes == 1:
        yield from map(try_one, tasks)
        return
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(try_one, tasks)


def verdicts(tasks: Sequence[Task], processes: int) -> Iterator[Verdict]:
    """Run *tasks*, which are sorted by scenario, and judge each scenario when its last has ended."""
    pending: list[Trial] = []
    for task, trial, after in zip(tasks, _trials(tasks, processes), [*tasks[1:], None], strict=True):
        pending.append(trial)
        if after is None or after.scenario != task.scenario:
            yield judge(task.conditions(), pending)
            pending = []


# --- The table ---------------------------------------------------------------------------------

HEADING = (
    f"{'scenario':<14}{'setting':<13}{'goodput/s':>10}{'of best':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"
    f"{'avg items':>11}{'peak items':>12}{'calls':>9}{'CPU µs/call':>13}"
)


def lines(verdict: Verdict) -> list[str]:
    """Return the lines of one scenario."""
    best = verdict.entrants["oracle"].goodput
    rows = [
        f"{verdict.scenario if index == 0 else '':<14}{name:<13}{_row(verdict.entrants[name], best)}"
        for index, name in enumerate(COMPARED)
    ]
    moves = ", ".join(f"{size:g} × {calls:g}" for size, calls in verdict.settings)
    note = (
        f"{'':<14}{verdict.against_default} against the default; converges in {verdict.converges:g} s, "
        f"swing {verdict.swing:.2f}, ends at {moves}"
    )
    missed = [f"{'':<14}SHORT  {check}" for check in verdict.checks if not check.ok]
    wrong = (
        [f"{'':<14}WRONG  {len(verdict.breaches)} limits out of bounds, the first with {verdict.breaches[0]}"]
        if verdict.breaches
        else []
    )
    return [*rows, note, *missed, *wrong]


def _row(figures: Figures, best: float) -> str:
    cpu = f"{figures.controller_us_per_call:.1f}" if figures.controller_us_per_call else ""
    share = f"{figures.goodput / best:.3f}" if best else "–"
    return (
        f"{figures.goodput:>10,.0f}{share:>9}{_ms(figures.p50):>9}{_ms(figures.p95):>9}{_ms(figures.p99):>9}"
        f"{figures.average:>11,.0f}{figures.peak:>12,}{figures.calls:>9,.0f}{cpu:>13}"
    ).rstrip()


def _ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"


def report(found: Sequence[Verdict]) -> str:
    """Return the last lines: what was won, lost and missed."""
    count = {name: sum(verdict.against_default == name for verdict in found) for name in ("won", "even", "lost")}
    checks = [check for verdict in found for check in verdict.checks]
    wrong = sum(len(verdict.breaches) for verdict in found)
    return (
        f"against the default: {count['won']} won, {count['even']} even, {count['lost']} lost; "
        f"bars: {sum(check.ok for check in checks)} of {len(checks)} met; limits out of bounds: {wrong}"
    )


# --- JSON --------------------------------------------------------------------------------------


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return the figures of one scenario; what is not finite becomes null."""
    return {
        "scenario": verdict.scenario,
        "ok": verdict.ok,
        "against_default": verdict.against_default,
        "entrants": {name: _finite(attrs.asdict(figures)) for name, figures in verdict.entrants.items()},
        "checks": [_finite({**attrs.asdict(check), "ok": check.ok}) for check in verdict.checks],
        "breaches": list(verdict.breaches),
        **_finite({"converges": verdict.converges, "swing": verdict.swing}),
        "settings": verdict.settings,
    }


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }


def _write(path: Path, given: argparse.Namespace, **found: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {**header(quick=False), "controller": given.controller, "seeds": given.seeds}
    del head["quick"]
    options = {"shed": not given.no_shed, "late_ticks": given.late_ticks}
    path.write_text(json.dumps({**head, **options, **found}, indent=1, ensure_ascii=False) + "\n")
    print(f"rows: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


# --- The command line --------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.control", description="Compare a controller with static settings."
    )
    known = ", ".join(ENTRANTS)
    parser.add_argument("--only", metavar="NAMES", help="these scenarios, separated by commas")
    parser.add_argument("--controller", default=next(iter(ENTRANTS)), help=f"{known}, or MODULE:CLASS of another")
    parser.add_argument("--seeds", type=int, help=f"how many (default: {SEEDS}, and {control_guard.SEEDS} for --guard)")
    parser.add_argument("--guard", action="store_true", help="hold it to its start, in drawn scenarios too (drawn-7)")
    parser.add_argument("--no-shed", action="store_true", help="send items even if they can no longer meet the goal")
    parser.add_argument("--late-ticks", action="store_true", help="tick as rarely as a running stage does")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, default=LAST, metavar="PATH", help="where to write the figures")
    given = parser.parse_args(arguments)
    given.seeds = given.seeds or (control_guard.SEEDS if given.guard else SEEDS)
    available = control_guard.names() if given.guard else list(SCENARIOS)
    names = given.only.split(",") if given.only else available
    if unknown := [name for name in names if name not in available]:
        parser.error(f"no scenario is named {', '.join(unknown)} (there are: {', '.join(SCENARIOS)})")
    try:
        find(given.controller)
    except ValueError as error:
        parser.error(str(error))
    return _guard(given, names) if given.guard else _compare(given, names)


def _compare(given: argparse.Namespace, names: Sequence[str]) -> int:
    tasks = [
        Task(given.controller, name, seed, not given.no_shed, given.late_ticks)
        for name in names
        for seed in range(1, given.seeds + 1)
    ]
    print(f"controller: {given.controller}, seeds 1 to {given.seeds}")
    print(HEADING)
    found: list[Verdict] = []
    for verdict in verdicts(tasks, given.processes):
        found.append(verdict)
        print("\n".join(lines(verdict)), flush=True)
    print(report(found))
    _write(given.json, given, scenarios=[as_json(verdict) for verdict in found])
    return 0 if all(verdict.ok for verdict in found) else 1


def _guard(given: argparse.Namespace, names: Sequence[str]) -> int:
    tasks = [control_guard.Task(given.controller, name, given.seeds, given.late_ticks) for name in names]
    found = control_guard.run(tasks, given.processes)
    for name, runs in control_guard.worst_first(found)[:20]:
        short = sum(not one.ok for one in runs)
        breaches = [text for one in runs for text in one.breaches]
        print(
            f"{name:<14}{min(one.ratio for one in runs):.3f} of the start with the worst seed, "
            f"{statistics.fmean(one.start_share for one in runs):.0%} of the offered by the start"
            f"{f'; {short} of {len(runs)} runs MISSED' if short else ''}{f'; {breaches[0]}' if breaches else ''}"
        )
    missed = [one for one in found if not one.ok]
    print(f"guard: {len(found)} runs, {len(missed)} below {GUARD:g} of the start or out of bounds")
    _write(given.json, given, guard=[_finite(one._asdict()) for one in found])
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
