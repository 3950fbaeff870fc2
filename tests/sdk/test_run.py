"""A run from its first fetch to its last settlement, however it ends."""

import logging
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import forebay
from forebay import Again, PluginError, Retry, Summary
from forebay.abc import BatchInfo, Bounds, Controller, Goal, Limits, Member, RunInfo
from forebay.hooks import Plugins, Registry, hookimpl
from forebay.testing import FakeSink, Pause, Raise, RecordingObserver, ScriptedSession, ScriptedSource
from tests.support.controllers import Scripted

pytestmark = pytest.mark.anyio


async def drain_after(scope: forebay.Scope, seconds: float) -> None:
    await anyio.sleep(seconds)
    scope.drain()


# --- Drain --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["acked", "iterable", "async"])
async def test_a_drain_finishes_what_is_in_hand(kind: str) -> None:
    acked = ScriptedSource(range(10_000), endless=True)

    async def later() -> AsyncGenerator[int]:
        for item in range(10_000):
            yield item

    source: Any = {"acked": acked, "iterable": range(10_000_000), "async": later()}[kind]
    sink = FakeSink[int](latency=1)

    async with forebay.open_scope(drain_timeout=60) as scope:
        scope.start_soon(drain_after, scope, 3.5)
        summary: Summary = (
            await forebay.pipeline(source).map_batches(sink, max_size=10, capacity=50).run(drain_timeout=60)
        )

    assert sink.cut == []
    assert sink.written == list(range(len(sink.written)))
    assert summary.seen == summary.done == len(sink.written)
    assert (summary.clean, summary.given_back, summary.unsettled) == (True, 0, 0)
    assert anyio.current_time() < 30
    if kind == "acked":
        assert acked.in_hand == []
        assert not acked.violations
        assert acked.unsettled == list(range(len(sink.written), 10_000))


async def test_a_run_inside_a_draining_scope_ends_at_once() -> None:
    source = ScriptedSource(range(5))

    async with forebay.open_scope() as scope:
        scope.drain()
        summary = await forebay.pipeline(source).map_batches(FakeSink[int](), max_size=10).run()

    assert (summary.seen, summary.clean) == (0, True)
    assert source.unsettled == [0, 1, 2, 3, 4]


async def test_a_handler_that_is_stuck_is_cut_off_at_the_drain_timeout() -> None:
    source = ScriptedSource(range(100), endless=True)
    sink = FakeSink[int](latency=1e9)

    async with forebay.open_scope() as scope:
        scope.start_soon(drain_after, scope, 1)
        summary = await forebay.pipeline(source).map_batches(sink, max_size=10).run(drain_timeout=5)

    assert sink.cut == [list(range(10))]
    assert (summary.clean, summary.done, summary.given_back) == (False, 0, 100)
    assert source.in_hand == []
    assert all(refund for _, refund in source.given_back)
    maybe = [offset for group, _ in source.given_back if group.maybe_done for offset in group.offsets]
    assert sorted(str(offset) for offset in maybe) == [str(offset) for offset in range(10)]


@pytest.mark.usefixtures("real_time")
async def test_a_handler_stuck_in_a_thread_is_abandoned_and_named() -> None:
    source = ScriptedSource(range(3), endless=True)
    gate = threading.Event()

    def stuck(items: list[int]) -> None:
        gate.wait(30)

    async with forebay.open_scope() as scope:
        scope.start_soon(drain_after, scope, 0.2)
        began = time.monotonic()
        summary = await forebay.pipeline(source).map_batches(stuck, max_size=5, run_in="thread").run(drain_timeout=0.5)
        took = time.monotonic() - began
    gate.set()

    assert took < 1.7
    assert "test_a_handler_stuck_in_a_thread_is_abandoned_and_named.stuck" in summary.abandoned
    assert (summary.clean, summary.given_back) == (False, 3)
    assert source.given_back[0][0].maybe_done


async def test_what_waits_for_another_attempt_goes_back_when_the_run_drains() -> None:
    source = ScriptedSource(range(3), endless=True)

    async def h(items: list[int]) -> list[Again | None]:
        return [Again(1000.0) if item == 1 else None for item in items]

    async with forebay.open_scope() as scope:
        scope.start_soon(drain_after, scope, 1)
        summary = await forebay.pipeline(source).map_batches(h, max_size=5).run(drain_timeout=8)

    assert anyio.current_time() < 5
    assert (summary.clean, summary.done, summary.given_back) == (True, 2, 1)
    (retry,) = source.retries
    assert (retry.offset, retry.failures) == (1, 1)
    assert retry.after == pytest.approx(999, abs=1)
    assert source.failures == [0, 1, 0]


async def test_what_fails_while_the_run_drains_goes_back_too() -> None:
    source = ScriptedSource(range(2), endless=True)

    async def h(items: list[int]) -> list[Again | None]:
        await anyio.sleep(2)
        return [Again(1000.0) if item == 0 else None for item in items]

    async with forebay.open_scope() as scope:
        scope.start_soon(drain_after, scope, 1)
        summary = await forebay.pipeline(source).map_batches(h, max_size=5).run(drain_timeout=20)

    assert (summary.clean, summary.given_back, source.failures) == (True, 1, [1, 0])


async def test_a_head_that_goes_back_takes_its_lane_along() -> None:
    source = ScriptedSource(["a0", "a1", "b0"], endless=True)

    async def h(items: list[str]) -> list[Again | None]:
        return [Again(1000.0) if item == "a0" else None for item in items]

    async with forebay.open_scope() as scope:
        scope.start_soon(drain_after, scope, 1)
        summary = await (
            forebay.pipeline(source).key_by(lambda item: item[0]).map_batches(h, max_size=5).run(drain_timeout=8)
        )

    assert (summary.clean, source.in_hand) == (True, [])


async def test_a_run_that_is_cut_off_while_it_opens_its_source_has_a_summary() -> None:
    class SlowToOpen(ScriptedSource[int]):
        @asynccontextmanager
        async def open(self, member: Member, /) -> AsyncGenerator[ScriptedSession[int]]:
            await anyio.sleep(60)
            async with super().open(member) as session:
                yield session

    async with forebay.open_scope() as scope:
        scope.start_soon(drain_after, scope, 1)
        summary = await forebay.pipeline(SlowToOpen([1])).map(str).run(drain_timeout=2)

    assert summary.seen == 0


# --- Cancellation -------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.5])
async def test_a_cancelled_run_settles_what_is_done_and_gives_back_the_rest(seconds: float) -> None:
    source = ScriptedSource(range(50))
    sink = FakeSink[int](latency=1)

    with anyio.move_on_after(seconds) as scope:
        await forebay.pipeline(source).map_batches(sink, max_size=10).run()

    assert scope.cancelled_caught
    assert source.in_hand == []
    assert not source.violations
    assert source.unsettled == [item for item in range(50) if item not in sink.written]


# --- Sources that fail --------------------------------------------------------------------------


async def test_items_before_a_sources_exception_are_processed() -> None:
    error = OSError("truncated")

    def rows() -> Iterator[int]:
        yield from range(25)
        raise error

    sink = FakeSink[int](latency=1)
    with pytest.raises(OSError, match="truncated") as raised:
        await forebay.pipeline(rows()).map_batches(sink, max_size=10).run()

    assert raised.value is error
    assert raised.value.__notes__[0].startswith("raised by source 'rows' after ")
    assert sink.written == list(range(25))


async def test_the_note_of_a_sources_exception_counts_all_items_before_it() -> None:
    def rows() -> Iterator[int]:
        yield from range(25)
        raise OSError("truncated")

    with pytest.raises(OSError, match="truncated") as raised:
        await forebay.pipeline(rows()).map_batches(FakeSink[int](), max_size=10).run()

    assert raised.value.__notes__ == ["raised by source 'rows' after 25 items"]


async def test_an_engine_that_fails_for_a_while_is_asked_again() -> None:
    source = ScriptedSource[int]([1, Raise(ConnectionError("gone")), 2, Raise(TimeoutError("slow"), settled=True), 3])

    summary = await forebay.pipeline(source).map_batches(FakeSink[int](), max_size=1).run()

    source.assert_settled_once()
    assert (summary.done, summary.clean) == (3, True)


async def test_an_engine_that_fails_for_good_ends_the_run_with_its_own_exception() -> None:
    error = PermissionError("not yours")
    source = ScriptedSource[int]([1, 2, Pause(5), Raise(error), 3])
    sink = FakeSink[int](latency=60)

    with pytest.raises(PermissionError) as raised:
        await forebay.pipeline(source).map_batches(sink, max_size=1).run()

    assert raised.value is error
    assert raised.value.__notes__[0].startswith("raised by source 'ScriptedSource' after 2 items")
    assert source.in_hand == []


async def test_items_that_another_member_took_are_not_settled() -> None:
    source = ScriptedSource[int]([1, 2, 3, Pause(3), 4])
    sink = FakeSink[int](latency=10)

    async def steal() -> None:
        await anyio.sleep(1)
        source.steal(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(steal)
        summary = await forebay.pipeline(source).map_batches(sink, max_size=10).run()

        assert (summary.seen, summary.lost_ownership, summary.done) == (4, 1, 3)

    source.assert_settled_once()


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: forebay.pipeline("memoyr", name="p").map(str),
            "pipeline 'p', source 'memoyr': no source is named 'memoyr'",
        ),
        (
            lambda: forebay.pipeline([1], name="p").map_batches("memoyr", max_size=1, name="store"),
            "pipeline 'p', stage 'store', sink: no sink is named 'memoyr'",
        ),
        (
            lambda: forebay.pipeline([1], name="p").map(str, dead_letters="memoyr"),
            "pipeline 'p', dead_letters: no dead-letter store is named 'memoyr' (registered: memory); "
            "did you mean 'memory'?",
        ),
    ],
)
async def test_a_name_that_nobody_knows_is_refused_before_the_first_fetch(build: Any, sentence: str) -> None:
    with pytest.raises(PluginError) as raised:
        await build().run(plugins=Plugins(discover=False))

    assert str(raised.value).startswith(sentence)


# --- Listeners ----------------------------------------------------------------------------------


async def test_observers_and_plugins_hear_of_the_run() -> None:
    observer = RecordingObserver()
    heard: list[BatchInfo] = []

    class Listener:
        @hookimpl
        def forebay_batch_done(self, info: BatchInfo) -> None:
            heard.append(info)

    summary = await (
        forebay.pipeline([1, 2, 3], name="p")
        .map_batches(FakeSink[int](), max_size=2, name="store")
        .run(observers=[observer], plugins=Plugins(Listener(), discover=False))
    )

    assert [name for name, _ in observer.events] == ["run_started", "batch_done", "batch_done", "run_finished"]
    (started,), (finished,) = observer.of("run_started"), observer.of("run_finished")
    assert isinstance(started, RunInfo)
    assert (started.pipeline, started.sources, started.stages) == ("p", ["list"], ["store"])
    assert started.run_id == summary.run_id == started.member.id
    assert finished is summary
    assert heard == observer.of("batch_done")
    assert observer.problems == []


async def test_a_listener_that_raises_does_not_reach_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def batch_done(self, info: BatchInfo, /) -> None:
            raise ValueError("broken")

    observer = RecordingObserver()
    with caplog.at_level(logging.CRITICAL, "forebay"):
        summary = await (
            forebay.pipeline(range(3)).map_batches(FakeSink[int](), max_size=1).run(observers=[Broken(), observer])
        )

    assert (summary.done, summary.clean, summary.listener_errors) == (3, True, 3)
    assert len(observer.of("batch_done")) == 3


async def test_run_finished_is_told_when_the_run_fails() -> None:
    observer = RecordingObserver()

    def fails(item: int) -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await forebay.pipeline([1]).map(fails, retry=Retry()).run(observers=[observer])

    (summary,) = observer.of("run_finished")
    assert isinstance(summary, Summary)
    assert not summary.clean


# --- Who steers ---------------------------------------------------------------------------------


class Quantum:
    """A plugin that has a controller which must be closed, and one that is no controller."""

    name = "quantum"

    def __init__(self) -> None:
        self.made: list[tuple[Bounds, Goal | None, Limits]] = []
        self.closed = 0

    @hookimpl
    def forebay_register_controllers(self, register: Registry[Controller]) -> None:
        @asynccontextmanager
        async def open_quantum(bounds: Bounds, goal: Goal | None, start: Limits) -> AsyncGenerator[Controller]:
            self.made.append((bounds, goal, start))
            yield Scripted([Limits(3, 2, 0.0, reason="quantum")])
            self.closed += 1

        def nothing(bounds: Bounds, goal: Goal | None, start: Limits) -> Any:
            return 7

        register("quantum", open_quantum)
        register("nothing", nothing)


async def test_a_plugin_may_steer_and_is_told_where_to_begin() -> None:
    plugin = Quantum()
    sink = FakeSink[int](latency=1)

    summary = (
        await forebay.pipeline(range(20))
        .map_batches(sink, max_size=8, max_concurrency=4, control="quantum", goal=Goal(0.5), name="store")
        .run(plugins=Plugins(plugin, discover=False))
    )

    assert summary.done == 20
    assert plugin.made == [(Bounds(max_size=8, max_concurrency=4), Goal(0.5), Limits(8, 4, 0.0))]
    assert plugin.closed == 1
    assert [(move.stage, move.after.batch_size, move.reason) for move in summary.moves] == [("store", 3, "quantum")]


@pytest.mark.parametrize("name", ["fixed", "adaptive", "inverse-load"])
async def test_each_controller_that_is_built_in_runs_by_its_name(name: str) -> None:
    sink = FakeSink[int](latency=0.01)
    source = ScriptedSource(range(5000))

    summary = (
        await forebay.pipeline(source).map_batches(sink, max_size=100, max_concurrency=3, control=name).run(seed=1)
    )

    source.assert_settled_once()
    assert (summary.done, summary.clean) == (5000, True)
    assert max(map(len, sink.batches)) <= 100


async def test_a_controller_that_nobody_knows_is_named_before_anything_is_fetched() -> None:
    source = ScriptedSource(range(5))

    with pytest.raises(PluginError) as raised:
        await (
            forebay.pipeline(source, name="p")
            .map_batches(FakeSink[int](), control="adaptive-ish", name="store")
            .run(plugins=Plugins(discover=False))
        )

    assert str(raised.value) == (
        "pipeline 'p', stage 'store', control: no controller is named 'adaptive-ish' "
        "(registered: fixed, adaptive, inverse-load); did you mean 'adaptive'?"
    )
    assert source.unsettled == list(range(5))
    assert source.deliveries == [0] * 5


async def test_what_a_plugin_makes_has_to_be_a_controller() -> None:
    with pytest.raises(TypeError, match=r"^the control of stage 'store' made 7, which has no observe\(\)"):
        await (
            forebay.pipeline([1])
            .map_batches(FakeSink[int](), control="nothing", name="store")
            .run(plugins=Plugins(Quantum(), discover=False))
        )


async def test_each_run_has_a_controller_of_its_own_unless_it_is_given_one() -> None:
    made: list[Controller] = []

    def factory(*, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
        made.append(Scripted([start]))
        return made[-1]

    recipe = forebay.pipeline(range(5)).map_batches(FakeSink[int](), max_size=2, control=factory)
    await recipe.run()
    await recipe.run()

    assert len(made) == 2


async def test_moves_reach_observers_and_the_report() -> None:
    observer = RecordingObserver()
    control = Scripted([Limits(8, 1, 0.0), Limits(4, 1, 0.0, reason="for once")])

    summary = (
        await forebay.pipeline(range(40))
        .map_batches(FakeSink[int](latency=1), max_size=8, control=control, name="store")
        .run(observers=[observer])
    )

    (move,) = observer.of("limits_changed")
    assert [move] == list(summary.moves)
    assert "store: batch 8 -> 4: for once" in summary.report()
    assert "store: batch 8 -> 4: for once" in summary.explain()


async def test_a_reader_in_a_thread_reads_ahead_for_batches_that_may_grow() -> None:
    sink = FakeSink[int](latency=1)

    summary = (
        await forebay.pipeline(iter(range(30_000)), in_thread=True)
        .map_batches(sink, control=Scripted([Limits(5000, 1, 0.0)]), max_age=60)
        .run()
    )

    assert summary.done == 30_000
    assert max(map(len, sink.batches)) == 5000
