"""The suite for controllers: forebay's own pass it, and what it measures with is right."""

from __future__ import annotations

import builtins
import datetime
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest

from conformance.tests.test_suites import pytest_of
from forebay import Bounds, Goal
from forebay._adaptive import AdaptiveController
from forebay._control import FixedController, InverseLoadController
from forebay.abc import Controller, Limits, Observation
from forebay_conformance import KIND_LIST, ConformanceFailure, ControllerSuite, ControllerTraits, Opener, run_check
from forebay_conformance._cli import main
from forebay_conformance._controller_probe import CONTROLLER_CHECKS, WIDE, ControllerProbe, Subject
from forebay_conformance._plant import FIXED_COST, PLANTS, Plant
from forebay_conformance._purity import watched
from forebay_conformance._rules import RULES
from forebay_conformance._trial import TICK_SECONDS, Trial

# --- What forebay brings along -----------------------------------------------------------------------


class TestAdaptiveController(ControllerSuite):
    def make_controller(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
        return AdaptiveController(bounds, goal, start)


class TestFixedController(ControllerSuite):
    adapts = False
    keeps_goal = False
    heeds_refusals = False
    heeds_load = False
    watches = False
    adjusts = False

    def make_controller(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
        return FixedController(start)


class TestInverseLoadController(ControllerSuite):
    adapts = False
    keeps_goal = False
    heeds_refusals = False
    watches = False

    def make_controller(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
        return InverseLoadController(bounds, goal, start)


# --- The plants and the stage before them ------------------------------------------------------------


class Scripted:
    """Answers the same each time, and remembers what it was shown."""

    def __init__(self, limits: Limits) -> None:
        self.answer = limits
        self.seen: list[Observation] = []

    def observe(self, observation: Observation, /) -> Limits:
        self.seen.append(observation)
        return self.answer


class ScriptedWatcher(Scripted):
    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.ticks: list[tuple[float, int, float]] = []

    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        self.ticks.append((now, in_flight, oldest_call))
        return self.answer


def subject_of(controller: Scripted, bounds: Bounds = WIDE) -> Subject:
    def factory(**_: object) -> Controller:
        return controller

    probe = ControllerProbe(factory, ControllerTraits(), RULES["controller:bounds"])
    return probe.make(controller.answer, bounds)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_no_other_fixed_limits_do_better_than_the_best(plant: Plant) -> None:
    best = plant.best(WIDE)

    sizes = [round(best.batch_size * share) for share in (0.25, 0.5, 0.8, 0.96, 1.0, 1.04, 1.2, 2.0)]
    others = [Limits(size, calls, 0.0) for size in sizes for calls in range(1, 65)]
    assert max(map(plant.throughput, others)) <= 1.002 * plant.most(WIDE)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_trial_does_what_the_plant_says_it_can(plant: Plant) -> None:
    limits = Limits(plant.best(WIDE).batch_size, plant.knee, 0.0)
    trial = Trial(plant, subject_of(Scripted(limits)))

    stretch = trial.run(100 * plant.unit(WIDE))

    # Calls that are sent while others run are the first, second, … in flight; beyond the knee alone that matters.
    assert stretch.rate == pytest.approx(plant.most(WIDE), rel=0.03)


def test_two_trials_with_one_seed_are_alike_and_with_two_are_not() -> None:
    runs: list[list[Observation]] = []
    for seed in (1, 1, 2):
        controller = Scripted(Limits(50, 4, 0.0))
        Trial(FIXED_COST, subject_of(controller), seed=seed).run(5.0)
        runs.append(controller.seen)

    assert runs[0] == runs[1] != runs[2]


def test_items_that_come_at_a_rate_are_sent_as_soon_as_a_call_is_free() -> None:
    plant = Plant("slow", fixed=0.1, per_item=0.0, knee=10, rate=100.0, noise=0.0)
    controller = Scripted(Limits(1000, 2, 0.0))

    stretch = Trial(plant, subject_of(controller)).run(10.0)

    assert stretch.done == pytest.approx(1000, abs=20)
    assert max(seen.size for seen in controller.seen) <= 11
    assert {seen.in_flight for seen in controller.seen} == {1, 2}


def test_refused_and_late_calls_fail_and_their_items_wait_again() -> None:
    plant = Plant("picky", fixed=2.0, per_item=0.0, knee=1, largest=10, noise=0.0)
    small, large = Scripted(Limits(10, 1, 0.0)), Scripted(Limits(11, 1, 0.0))

    late, refused = (Trial(plant, subject_of(each)).run(3.5) for each in (small, large))

    assert [(seen.seconds, seen.failed, seen.too_large) for seen in small.seen] == [(1.0, True, False)] * 3
    assert {(seen.failed, seen.too_large) for seen in large.seen} == {(True, True)}
    assert (late.done, late.refused, refused.done, refused.refused) == (0, 0, 0, refused.calls)


def test_a_watcher_is_shown_calls_that_take_twice_as_long_as_usual_and_no_others() -> None:
    plant = Plant("even", fixed=0.1, per_item=0.0, knee=10, noise=0.0)
    controller = ScriptedWatcher(Limits(1, 2, 0.0))
    trial = Trial(plant, subject_of(controller))
    trial.run(3.0)  # nothing is usual at first
    controller.ticks.clear()
    trial.run(7.05)
    calm = list(controller.ticks)

    trial.silent = True
    trial.run(1.0)

    # Calls that ended at 10.0 made room for two that end at 10.1, and those for two that never do.
    nows, in_flight, ages = zip(*controller.ticks, strict=True)
    assert calm == []
    assert nows[0] == pytest.approx(10.3)
    assert ages[0] == pytest.approx(0.2)
    assert set(in_flight) == {2}
    assert nows[1] - nows[0] == pytest.approx(TICK_SECONDS)


def test_a_call_that_hangs_keeps_its_place_and_the_others_go_on() -> None:
    plant = Plant("even", fixed=0.1, per_item=0.0, knee=10, noise=0.0)
    controller = Scripted(Limits(1, 2, 0.0))
    trial = Trial(plant, subject_of(controller))
    trial.run(1.05)

    trial.hang(1)
    stretch = trial.run(1.0)

    assert stretch.calls == 10
    assert controller.seen[-1].oldest_call == pytest.approx(1.0)


# --- The controller under check -----------------------------------------------------------------------


def test_an_answer_out_of_bounds_is_cut_and_noted() -> None:
    controller = Scripted(Limits(500, 9, 0.0))
    subject = subject_of(controller, Bounds(max_size=100, max_concurrency=64))

    controller.answer = Limits(400, 9, 0.0)
    Trial(FIXED_COST, subject).run(1.0)

    assert (subject.limits.batch_size, subject.limits.concurrency) == (100, 9)
    assert subject.outside.endswith("returned 400 items x 9 calls")


def test_a_move_that_is_taken_back_at_once_is_counted_and_a_probe_is_not() -> None:
    usual, other = Limits(10, 2, 0.0), Limits(20, 2, 0.0, reason="trying")
    controller = Scripted(usual)
    subject = subject_of(controller)
    seen = Observation(1.0, 10, None, 0.1, False, False, 0, 1, 0.0, 0.0)

    for answer in (usual, other, usual, Limits(20, 2, 0.0, probe=True), usual):
        controller.answer = answer
        subject.show(seen)

    assert (subject.answers, subject.moves, subject.returns, subject.probes) == (5, 2, 1, 1)
    assert subject.unexplained == "20 items x 2 calls -> 10 items x 2 calls: ''"


# --- What is pure --------------------------------------------------------------------------------------


def _prints() -> None:
    print(end="")


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (monotonic, "time.monotonic"),
        (time.perf_counter, "time.perf_counter"),
        (datetime.datetime.now, "datetime.now"),
        (datetime.date.today, "datetime.today"),
        (_prints, "print"),
        (lambda: open(__file__, "rb").close(), "io.open"),
        (io.BytesIO(b"x").read, "io.read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reading_a_clock_and_doing_io_are_seen(function: Callable[[], object], name: str) -> None:
    with watched() as calls:
        function()

    assert name in calls


def test_arithmetic_is_not_seen_and_a_profiler_is_put_back() -> None:
    def profile(*_: object) -> None: ...

    before = sys.getprofile()
    sys.setprofile(profile)
    with watched() as calls:
        assert sorted([3, builtins.max(1, 2)], key=str) == [2, 3]
    after = sys.getprofile()
    sys.setprofile(before)

    assert calls == set()
    assert after is profile


# --- How it is used -----------------------------------------------------------------------------------


def failure_of(rule: str, factory: Opener) -> ConformanceFailure:
    failure = run_check(CONTROLLER_CHECKS.checks[f"controller:{rule}"], factory, ControllerTraits(), "trio").failure
    assert failure is not None
    return failure


def test_a_factory_that_raises_is_named() -> None:
    def factory(**_: object) -> Controller:
        raise ValueError("no such goal")

    failure = failure_of("limits", factory)

    assert failure.expected == "a controller"
    assert failure.got.startswith("it raised ValueError: no such goal (test_controller_suite.py:")


def test_a_factory_that_makes_something_else_is_named() -> None:
    def factory(**_: object) -> int:
        return 7

    failure = failure_of("limits", factory)

    assert (failure.expected, failure.got) == ("a controller, which has observe()", "7")


def test_a_failure_says_what_was_tried_and_what_would_have_been_best() -> None:
    def factory(*, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
        return FixedController(start)

    assert str(failure_of("converges", factory)).splitlines()[1:] == [
        "  did:      make a controller (start 16 items x 2 calls, 1 to 4096 items x 1 to 64 calls); "
        "21.1 s before a service with a high fixed cost; 5.28 s before a service with a high fixed cost",
        "  expected: at least 0.7 of the 32177 items a second that 425 items x 8 calls do",
        "  got:      0.04 of it, at 16 items x 2 calls:",
        "  why:      docs/reference/conformance/controller.md#converges",
    ]


def test_a_class_of_controllers_can_be_run_from_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("adapts", "keeps_goal", "heeds_refusals", "watches")
    settings = [part for flag in flags for part in ("--set", f"{flag}=false")]

    code = main(["run", "controller", "forebay._control:InverseLoadController", "--backend", "trio", *settings])

    out = capsys.readouterr().out
    assert code == 0
    assert out.endswith("11 passed, 0 failed, 9 do not apply\n")


def test_a_suite_class_can_be_run_from_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    target = "conformance.tests.test_controller_suite:TestFixedController"

    code = main(["run", "controller", target, "--backend", "trio"])

    assert code == 0
    assert capsys.readouterr().out.endswith("9 passed, 0 failed, 11 do not apply\n")


def test_a_suite_of_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", "controller", "conformance.tests.test_builtins:TestMemoryStateStore"])

    assert code == 2
    assert "is a class and no suite for a controller" in capsys.readouterr().err


def test_a_suite_without_a_factory_says_what_to_define(tmp_path: Path) -> None:
    text = "from forebay_conformance import ControllerSuite\nclass TestForgot(ControllerSuite): pass\n"

    code, out = pytest_of(tmp_path, text)

    assert code == 2
    assert (
        "TestForgot has no make_controller(*, bounds, goal, start); "
        "define it to return a new controller that begins with start"
    ) in out


def test_each_flag_turns_a_rule_off() -> None:
    flags = {name for name, value in vars(ControllerTraits).items() if isinstance(value, bool)}

    assert flags == {need for check in KIND_LIST["controller"].checks for need in check.needs}
