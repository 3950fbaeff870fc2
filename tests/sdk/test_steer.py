"""One stage is steered: within its bounds, with a record of each move, whatever its controller does."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay._recipe import ControlSpec, control_spec
from forebay._steer import KEPT_MOVES, Steer, begin_steering, built_in_controllers, factory_of
from forebay.abc import Bounds, Controller, Goal, Limits, LimitsInfo, Observation
from tests.support.controllers import Scripted, Wandering, Watching, Yielding

BOUNDS = Bounds(min_size=2, max_size=100, min_concurrency=1, max_concurrency=8)
START = Limits(10, 2, 0.0)


class Stage:
    """Obeys, and keeps what it was told."""

    def __init__(self, controller: Controller | None, **options: Any) -> None:
        self.obeyed: list[Limits] = []
        self.told: list[LimitsInfo] = []
        self.now = 0.0
        self.steer = Steer(
            pipeline="p",
            stage="s",
            bounds=options.pop("bounds", BOUNDS),
            limits=options.pop("limits", START),
            controller=controller,
            limits_changed=self.told.append,
            clock=options.pop("clock", lambda: self.now),
            unix=1000.0,
            **options,
        )
        self.steer.obey = self.obeyed.append
        self.steer.queued = lambda: 7

    def call(self, **options: Any) -> None:
        self.now += 1.0
        figures: dict[str, Any] = {
            "now": self.now,
            "size": 10,
            "size_bytes": None,
            "seconds": 0.1,
            "failed": False,
            "too_large": False,
            "in_flight": 1,
            "oldest_wait": 0.0,
        }
        self.steer.call_ended(**{**figures, **options})


# --- Moves --------------------------------------------------------------------------------------


def test_a_controller_sees_what_a_call_was_like_and_what_is_going_on() -> None:
    controller = Scripted([START])
    stage = Stage(controller, pressure=lambda: 0.25)
    stage.steer.call_started("other", 0.4)

    stage.call(size=5, size_bytes=50, seconds=0.3, failed=True, too_large=True, in_flight=2, oldest_wait=0.9)

    assert controller.seen == [
        Observation(
            now=1.0,
            size=5,
            size_bytes=50,
            seconds=0.3,
            failed=True,
            too_large=True,
            queued=7,
            in_flight=2,
            oldest_wait=0.9,
            oldest_call=0.6,
            pressure=0.25,
        )
    ]


def test_a_move_is_obeyed_recorded_and_told() -> None:
    after = Limits(20, 4, 0.0, reason="items wait")
    stage = Stage(Scripted([after]))

    stage.call()

    assert stage.obeyed == [after]
    assert stage.steer.limits == after
    assert list(stage.steer.moves) == stage.told == [LimitsInfo("p", "s", START, after, "items wait", 1001.0)]


def test_the_same_answer_again_is_no_move() -> None:
    stage = Stage(Scripted([START, Limits(10, 2, 0.0, reason="other words")]))

    stage.call()
    stage.call()

    assert (stage.obeyed, stage.told, stage.steer.made) == ([], [], 0)


def test_a_probe_is_obeyed_and_no_move() -> None:
    stage = Stage(Scripted([Limits(5, 2, 0.0, probe=True), START, Limits(20, 2, 0.0, reason="it paid")]))

    for _ in range(3):
        stage.call()

    assert [limits.batch_size for limits in stage.obeyed] == [5, 10, 20]
    assert [(move.before.batch_size, move.after.batch_size) for move in stage.told] == [(10, 20)]


def test_the_last_moves_are_kept_and_all_are_counted() -> None:
    stage = Stage(Scripted([Limits(2 + number % 50, 1, 0.0) for number in range(KEPT_MOVES + 20)]))

    for _ in range(KEPT_MOVES + 20):
        stage.call()

    assert (len(stage.steer.moves), stage.steer.made) == (KEPT_MOVES, KEPT_MOVES + 20)
    assert stage.steer.moves[-1].at == 1000.0 + stage.now


# --- Bounds -------------------------------------------------------------------------------------


def test_what_is_out_of_bounds_is_cut_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(Scripted([Limits(1000, 0, -5.0), Limits(1, 99, math.inf)]), max_wait=0.5)

    with caplog.at_level(logging.WARNING, "forebay"):
        stage.call()
        stage.call()

    assert stage.obeyed == [Limits(100, 1, 0.0), Limits(2, 8, 0.5)]
    assert [record.getMessage() for record in caplog.records] == [
        "the controller of stage 's' wants batches of 1000 and 0 calls, which is out of its bounds (2 to 100, 1 to 8); "
        "it gets the nearest, here and from now on"
    ]


@pytest.mark.parametrize(("wanted", "given"), [(None, 500), (100, 100), (9000, 500), (-3, 1)])
def test_bytes_are_bounded_where_the_stage_bounds_them(wanted: int | None, given: int) -> None:
    stage = Stage(Scripted([Limits(10, 2, 0.0, wanted)]), limits=Limits(10, 2, 0.0, 500), max_bytes=500)

    stage.call()

    assert stage.steer.limits.max_bytes == given


def test_a_controller_may_bound_bytes_where_the_stage_does_not() -> None:
    stage = Stage(Scripted([Limits(10, 2, 0.0, 4096)]))

    stage.call()

    assert stage.steer.limits.max_bytes == 4096


anything = st.one_of(st.integers(-(10**6), 10**6), st.floats(), st.none(), st.text(max_size=2))


@given(st.lists(st.tuples(anything, anything, anything, anything, st.booleans()), max_size=20))
def test_whatever_a_controller_answers_the_limits_are_within_the_bounds(answers: list[tuple[Any, ...]]) -> None:
    controller = Scripted(
        [START, *(Limits(size, calls, wait, nbytes, "", probe) for size, calls, wait, nbytes, probe in answers)]
    )
    stage = Stage(controller, max_wait=0.5)

    for _ in range(len(answers) + 2):
        stage.call()

    for limits in [*stage.obeyed, stage.steer.limits]:
        assert 2 <= limits.batch_size <= 100
        assert 1 <= limits.concurrency <= 8
        assert 0 <= limits.max_wait <= 0.5
    assert all(earlier.after == later.before for earlier, later in pairwise(stage.told))


# --- Controllers that fail ----------------------------------------------------------------------


class Broken:
    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.calls = 0

    def observe(self, observation: Observation, /) -> Any:
        self.calls += 1
        if self.calls == 1:
            return Limits(30, 3, 0.0, reason="well so far")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (ZeroDivisionError("oops"), "ZeroDivisionError"),
        (None, "TypeError"),
        ((64, 8), "TypeError"),
        (Limits(2.5, 1, 0.0), "TypeError"),  # type: ignore[arg-type]  # what nobody checks
        (Limits(5, 1, "soon"), "TypeError"),  # type: ignore[arg-type]
    ],
)
def test_a_controller_that_fails_is_asked_no_more_and_its_limits_stay(
    answer: object, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    controller = Broken(answer)
    stage = Stage(controller)

    with caplog.at_level(logging.WARNING, "forebay"):
        for _ in range(4):
            stage.call()

    assert controller.calls == 2
    assert (stage.steer.limits.batch_size, stage.steer.limits.concurrency) == (30, 3)
    assert stage.steer.moves[-1].reason == f"Broken failed with {name}, and the limits stay as they are"
    assert len(stage.told) == 1  # nothing has changed
    (record,) = caplog.records
    assert record.getMessage() == (
        "Broken, the controller of stage 's', failed; the stage stays at batches of 30 and 3 calls until its end"
    )
    assert record.exc_info is not None


def test_a_controller_that_fails_during_a_probe_leaves_the_last_move() -> None:
    class Probing(Broken):
        def observe(self, observation: Observation, /) -> Any:
            answer = super().observe(observation)
            return Limits(5, 1, 0.0, probe=True) if self.calls == 2 else answer

    stage = Stage(Probing(ValueError()))
    stage.steer.controller.answer = None  # type: ignore[union-attr]

    for _ in range(3):
        stage.call()

    assert [limits.batch_size for limits in stage.obeyed] == [30, 5, 30]


# --- Calls that take long -----------------------------------------------------------------------


async def watched(controller: Watching, live: Callable[[Steer], Any]) -> Stage:
    stage = Stage(controller, clock=anyio.current_time)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stage.steer.watch)
        await live(stage.steer)
        tasks.cancel_scope.cancel()
    return stage


async def call_of(steer: Steer, seconds: float) -> None:
    started = anyio.current_time()
    steer.call_started("call", started)
    await anyio.sleep(seconds)
    del steer.calls["call"]
    steer.call_ended(
        now=anyio.current_time(),
        size=1,
        size_bytes=None,
        seconds=seconds,
        failed=False,
        too_large=False,
        in_flight=1,
        oldest_wait=0.0,
    )


@pytest.mark.anyio
async def test_calls_as_long_as_usual_are_not_looked_at() -> None:
    controller = Watching([START])

    async def live(steer: Steer) -> None:
        for _ in range(50):
            await call_of(steer, 0.04)
            await anyio.sleep(0.5)

    await watched(controller, live)

    assert controller.ticks == []
    assert len(controller.seen) == 50


@pytest.mark.anyio
async def test_a_call_that_takes_longer_than_expected_is_looked_at_every_50_ms() -> None:
    controller = Watching([START])

    async def live(steer: Steer) -> None:
        await call_of(steer, 0.04)
        for _ in range(30):
            await call_of(steer, 0.1)
        controller.ticks.clear()
        await call_of(steer, 0.8)

    await watched(controller, live)

    ages = [oldest for _, _, oldest, _, _ in controller.ticks]
    assert ages[0] == pytest.approx(0.2, abs=0.05)
    assert [later - earlier for earlier, later in pairwise(ages)] == pytest.approx([0.05] * (len(ages) - 1))
    assert ages[-1] >= 0.74
    assert {figures[1:2] + figures[3:] for figures in controller.ticks} == {(1, 7, 0.0)}


@pytest.mark.anyio
async def test_a_call_that_never_ends_is_looked_at_ever_less_often() -> None:
    controller = Watching([START])

    async def live(steer: Steer) -> None:
        await call_of(steer, 3600.0)

    await watched(controller, live)

    assert 100 < len(controller.ticks) < 300


@pytest.mark.anyio
async def test_a_look_may_move_the_limits() -> None:
    controller = Watching([Limits(4, 1, 0.0, reason="a call hangs")])

    async def live(steer: Steer) -> None:
        steer.call_started("hanging", anyio.current_time())
        await anyio.sleep(1)

    stage = await watched(controller, live)

    assert [(move.after.batch_size, move.reason) for move in stage.told] == [(4, "a call hangs")]


@pytest.mark.anyio
async def test_a_look_that_fails_ends_the_watch() -> None:
    class Clumsy(Watching):
        def tick(self, *figures: Any) -> Limits:
            super().tick(*figures)
            raise RuntimeError("oops")

    controller = Clumsy([START])

    async def live(steer: Steer) -> None:
        steer.call_started("hanging", anyio.current_time())
        await anyio.sleep(10)

    stage = await watched(controller, live)

    assert len(controller.ticks) == 1
    assert stage.steer.controller is None


@pytest.mark.anyio
async def test_a_controller_that_takes_over_need_not_look() -> None:
    controller = Watching([START])

    def factory(*, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
        return Scripted([start])

    async def live(steer: Steer) -> None:
        steer.call_started("hanging", anyio.current_time())
        await anyio.sleep(0.51)
        steer.factory = factory
        steer.change({"max_size": 50})
        await anyio.sleep(10)

    await watched(controller, live)

    assert len(controller.ticks) == 10


# --- Changes from outside -----------------------------------------------------------------------


def test_what_is_fixed_goes_to_its_new_bound() -> None:
    stage = Stage(None, limits=Limits(100, 8, 0.0))

    limits = stage.steer.change({"max_size": 40, "max_concurrency": 16})

    assert (limits.batch_size, limits.concurrency) == (40, 16)
    assert stage.obeyed == [limits]
    assert [move.reason for move in stage.told] == ["told to: max_size=40, max_concurrency=16"]


def test_what_is_fixed_keeps_what_is_not_changed() -> None:
    stage = Stage(None, limits=Limits(10, 2, 0.0))

    limits = stage.steer.change({"max_concurrency": 4})

    assert (limits.batch_size, limits.concurrency) == (10, 4)


def test_a_controller_that_can_is_told_of_bounds_and_goal() -> None:
    controller = Yielding([START])
    stage = Stage(controller)

    limits = stage.steer.change({"max_size": 50}, Goal(p99=0.2))

    assert controller.told == [(Bounds(min_size=2, max_size=50, min_concurrency=1, max_concurrency=8), Goal(0.2))]
    assert (limits.batch_size, limits.concurrency) == (50, 8)
    assert stage.steer.goal == Goal(0.2)
    assert stage.told[-1].reason == "told to: max_size=50, goal=p99 200 ms"


def test_a_goal_stays_when_only_bounds_change() -> None:
    controller = Yielding([START])
    stage = Stage(controller, goal=Goal(0.1))

    stage.steer.change({"max_size": 50})
    stage.steer.change({}, Goal())

    assert [goal for _, goal in controller.told] == [Goal(0.1), Goal()]
    assert stage.steer.moves[-1].reason == "told to: goal=throughput"


def test_a_controller_that_cannot_is_made_anew_where_it_stands() -> None:
    made: list[tuple[Bounds, Goal | None, Limits]] = []

    def factory(*, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
        made.append((bounds, goal, start))
        return Scripted([start])

    stage = Stage(Scripted([START]), factory=factory)

    stage.steer.change({"max_size": 6}, Goal(1.0))
    stage.call()

    assert made == [(Bounds(min_size=2, max_size=6, max_concurrency=8), Goal(1.0), Limits(6, 2, 0.0))]
    assert stage.steer.limits.batch_size == 6


def test_an_object_that_cannot_follow_is_held_to_the_new_bounds() -> None:
    controller = Scripted([Limits(80, 8, 0.0)])
    stage = Stage(controller)

    stage.call()
    stage.steer.change({"max_size": 20})
    stage.call()

    assert stage.steer.controller is controller
    assert (stage.steer.limits.batch_size, stage.steer.limits.concurrency) == (20, 8)


def test_what_failed_stays_where_it_is_but_within_new_bounds() -> None:
    stage = Stage(Broken(None))
    stage.call()
    stage.call()

    stage.steer.change({"max_size": 90})
    assert stage.steer.limits.batch_size == 30

    stage.steer.change({"max_size": 20})
    assert stage.steer.limits.batch_size == 20


@pytest.mark.parametrize("controller", [None, Scripted([START])])
def test_a_goal_that_nobody_can_follow_is_refused(controller: Controller | None) -> None:
    stage = Stage(controller)

    sentence = (
        r"^stage 's' cannot follow a goal: (nobody steers it|Scripted has no adjust\(\)); pass control='adaptive'"
    )
    with pytest.raises(ValueError, match=sentence):
        stage.steer.change({"max_size": 5}, Goal(1.0))

    assert stage.steer.bounds is BOUNDS


class Refusing(Yielding):
    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> Any:
        if bounds.max_size == 13:
            raise RuntimeError("not that")
        return 7


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"max_size": 0}, ValueError, "max_size must be at least 1, not 0"),
        ({"max_size": 1}, ValueError, "max_size must be at least min_size, which is 2, not 1"),
        ({"min_size": 101}, ValueError, "max_size must be at least min_size, which is 101, not 100"),
        ({"max_concurrency": "4"}, TypeError, "max_concurrency must be a whole number, not '4'"),
        ({"min_concurrency": True}, TypeError, "min_concurrency must be a whole number, not True"),
        ({"max_size": 13}, RuntimeError, "not that"),
        ({"max_size": 14}, TypeError, "it returned 7; return Limits"),
    ],
)
def test_a_bad_change_changes_nothing(changes: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    controller = Refusing([START])
    stage = Stage(controller, goal=Goal(3.0))

    with pytest.raises(kind) as raised:
        stage.steer.change({"max_concurrency": 4, **changes}, Goal(1.0))

    assert str(raised.value) == sentence
    assert (stage.steer.bounds, stage.steer.goal, stage.steer.limits) == (BOUNDS, Goal(3.0), START)
    assert stage.steer.controller is controller
    assert (stage.obeyed, stage.told) == ([], [])


# --- Who steers ---------------------------------------------------------------------------------


def begun(control: object, made: object = None, **options: Any) -> Steer:
    given: dict[str, Any] = {"max_size": 50, "max_concurrency": 4, **options}
    spec = control_spec("s", control, given.pop("goal", None), usual_concurrency=1, most_concurrency=9, **given)
    return begin_steering(spec, made, pipeline="p", stage="s", max_wait=0.05, limits_changed=None, clock=lambda: 0.0)


def test_nobody_steers_what_is_fixed() -> None:
    steer = begun("fixed")

    assert steer.controller is None
    assert steer.limits == Limits(50, 4, 0.0)


@pytest.mark.parametrize("name", sorted(set(built_in_controllers()) - {"fixed"}))
def test_what_is_built_in_begins_where_the_user_says(name: str) -> None:
    steer = begun(name)

    assert steer.controller is not None
    assert (steer.limits.batch_size, steer.limits.concurrency) == (50, 4)


def test_an_object_that_can_be_told_is_told_of_its_bounds() -> None:
    controller = Yielding([START])

    steer = begun(controller, goal=Goal(0.5))

    assert controller.told == [(Bounds(max_size=50, max_concurrency=4), Goal(0.5))]
    assert (steer.limits.batch_size, steer.limits.concurrency) == (50, 4)


def test_a_class_makes_a_controller_for_each_stage() -> None:
    def make(*, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
        return Wandering(bounds, start, 1)

    one, two = begun(make), begun(make)

    assert isinstance(one.controller, Wandering)
    assert one.controller is not two.controller
    assert one.controller.bounds == Bounds(max_size=50, max_concurrency=4)


def test_what_a_plugin_made_steers() -> None:
    made = Scripted([START])

    steer = begun("quantum", made)

    assert steer.controller is made
    assert steer.factory is None


@pytest.mark.parametrize("made", [7, None, Scripted])
def test_what_is_no_controller_is_named(made: object) -> None:
    def factory(**options: object) -> Any:
        return made

    with pytest.raises(TypeError, match=r"^the control of stage 's' made .*, which has no observe\(\); return a contr"):
        begun(factory)


def test_a_controller_that_would_have_to_be_awaited_is_refused() -> None:
    class Later:
        async def observe(self, observation: Observation, /) -> Limits:
            return START

    with pytest.raises(TypeError, match=r"^Later\.observe, which steers stage 's', is async; make it a plain def$"):
        begun(Later())


def test_a_name_of_a_plugin_has_no_factory_here() -> None:
    def planned(control: str) -> ControlSpec:
        options: dict[str, Any] = {"max_size": 5, "max_concurrency": None}
        return control_spec("s", control, None, usual_concurrency=1, most_concurrency=9, **options)

    assert factory_of(planned("quantum")) is None
    assert factory_of(planned("adaptive")) is not None
