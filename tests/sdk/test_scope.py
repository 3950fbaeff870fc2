import asyncio
import math
import os
import signal
import threading

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from forebay._scope import Scope, open_scope
from forebay.testing import run_virtual

pytestmark = pytest.mark.anyio


async def test_the_block_waits_for_its_children() -> None:
    ended: list[str] = []

    async def child(name: str) -> None:
        await anyio.sleep(5)
        ended.append(name)

    async with open_scope() as scope:
        scope.start_soon(child, "child")
        ended.append("body")

    assert ended == ["body", "child"]
    assert (scope.draining, scope.cancelled, scope.reason) == (False, False, None)


async def test_draining_asks_and_keeps_the_first_reason() -> None:
    async with open_scope() as scope:
        assert not scope.draining

        scope.drain("first")
        scope.drain("second")
        await anyio.sleep(1)

    assert (scope.draining, scope.cancelled, scope.reason) == (True, False, "first")


async def test_a_drain_is_cut_off_after_its_time() -> None:
    start = anyio.current_time()

    async with open_scope(drain_timeout=3) as scope:
        scope.start_soon(anyio.sleep, math.inf)
        await anyio.sleep(1)
        scope.drain()
        assert scope.drain_deadline == pytest.approx(start + 4)
        await anyio.sleep(1)
        scope.drain()
        assert scope.remaining() == pytest.approx(2)
        await anyio.sleep_forever()

    assert anyio.current_time() == pytest.approx(start + 4)
    assert (scope.cancelled, scope.reason) == (True, "drain")


async def test_children_that_outlive_the_body_are_cut_off_by_the_drain_too() -> None:
    start = anyio.current_time()

    async with open_scope(drain_timeout=3) as scope:
        scope.start_soon(anyio.sleep, 100)
        scope.drain()

    assert anyio.current_time() == pytest.approx(start + 3)
    assert scope.cancelled


async def test_a_drain_without_a_time_limit_waits() -> None:
    async with open_scope(drain_timeout=math.inf) as scope:
        scope.drain()
        await anyio.sleep(10**6)
        assert scope.remaining() == math.inf

    assert not scope.cancelled


async def test_a_drain_of_no_time_cuts_off_at_once() -> None:
    async with open_scope(drain_timeout=0) as scope:
        scope.drain()
        await anyio.sleep(0.001)
        pytest.fail("not cut off")  # pragma: no cover -- must not be reached

    assert scope.cancelled


async def test_cancel_cuts_off_body_and_children_and_counts_as_draining() -> None:
    cut: list[str] = []

    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cut.append("child")

    async with open_scope() as scope:
        scope.start_soon(child)
        await wait_all_tasks_blocked()
        scope.cancel("enough")
        assert scope.remaining() == 0.0
        await anyio.sleep_forever()

    assert cut == ["child"]
    assert (scope.draining, scope.cancelled, scope.reason) == (True, True, "enough")


async def test_cancel_after_drain_keeps_the_drains_reason() -> None:
    async with open_scope() as scope:
        scope.drain("maintenance")
        scope.cancel("impatience")

    assert (scope.cancelled, scope.reason) == (True, "maintenance")


async def test_wait_draining_returns_when_draining_starts() -> None:
    start = anyio.current_time()
    seen: list[float] = []

    async def watch(scope: Scope) -> None:
        await scope.wait_draining()
        seen.append(anyio.current_time() - start)

    async with open_scope() as scope:
        scope.start_soon(watch, scope)
        await anyio.sleep(2)
        scope.drain()

    assert seen == [pytest.approx(2)]


async def test_wait_draining_is_a_checkpoint_when_draining_already() -> None:
    async with open_scope() as scope:
        scope.drain()
        with anyio.CancelScope() as around:
            around.cancel()
            await scope.wait_draining()

    assert around.cancelled_caught


async def test_a_deadline_drains_first_and_then_cancels() -> None:
    start = anyio.current_time()
    drained_at = math.nan

    async with open_scope(deadline=10, drain_timeout=4) as scope:
        assert scope.deadline == pytest.approx(start + 10)
        assert scope.remaining() == pytest.approx(10)
        assert scope.drain_deadline == math.inf
        await anyio.sleep(5.9)
        assert not scope.draining
        await scope.wait_draining()
        drained_at = anyio.current_time()
        assert scope.drain_deadline == pytest.approx(start + 10)
        await anyio.sleep_forever()

    assert drained_at == pytest.approx(start + 6)
    assert anyio.current_time() == pytest.approx(start + 10)
    assert (scope.draining, scope.cancelled, scope.reason) == (True, True, "deadline")


async def test_a_deadline_shorter_than_the_drain_drains_at_once() -> None:
    async with open_scope(deadline=1, drain_timeout=10) as scope:
        assert scope.draining
        assert scope.remaining() == pytest.approx(1)

    assert (scope.reason, scope.cancelled) == ("deadline", False)


async def test_a_scope_that_ended_in_time_does_not_begin_to_drain_later() -> None:
    async with open_scope(deadline=10, drain_timeout=4) as scope:
        pass

    await anyio.sleep(20)

    assert (scope.draining, scope.cancelled, scope.reason) == (False, False, None)


async def test_an_endless_deadline_is_none() -> None:
    async with open_scope(deadline=math.inf, drain_timeout=math.inf) as scope:
        assert not scope.draining
        assert scope.deadline == math.inf
        assert scope.remaining() == math.inf


async def library_function() -> tuple[Scope, float]:
    async with open_scope(drain_timeout=2, name="library") as scope:
        await scope.wait_draining()
        began = anyio.current_time()
        await anyio.sleep_forever()
    return scope, began


async def test_a_nested_scope_drains_when_the_outer_one_does_and_is_cut_off_by_its_own_time() -> None:
    start = anyio.current_time()

    async def drain_later(scope: Scope) -> None:
        await anyio.sleep(1)
        scope.drain("outer")

    async with open_scope(drain_timeout=8) as outer:
        outer.start_soon(drain_later, outer)
        inner, began = await library_function()
        ended = anyio.current_time()

    assert [began, ended] == pytest.approx([start + 1, start + 3])
    assert (inner.reason, inner.cancelled) == ("outer", True)
    assert not outer.cancelled


async def test_a_nested_scope_drains_for_the_outer_deadline() -> None:
    start = anyio.current_time()

    async with open_scope(deadline=10, drain_timeout=5) as outer:
        inner, began = await library_function()
        ended = anyio.current_time()

    assert [began, ended] == pytest.approx([start + 5, start + 7])
    assert inner.deadline == outer.deadline
    assert inner.reason == "deadline"


async def test_a_nested_scope_has_no_more_time_than_the_outer_one() -> None:
    start = anyio.current_time()

    async with open_scope(deadline=3, drain_timeout=1) as outer, open_scope(deadline=100, drain_timeout=50) as inner:
        assert inner.deadline == pytest.approx(start + 3)
        assert inner.remaining() == pytest.approx(3)
        await inner.wait_draining()
        assert inner.drain_deadline == pytest.approx(start + 3)
        await anyio.sleep_forever()

    assert anyio.current_time() == pytest.approx(start + 3)
    assert outer.cancelled
    assert inner.cancelled


async def test_a_nested_scope_leaves_the_outer_alone() -> None:
    async with open_scope() as outer:
        async with open_scope() as drained:
            drained.drain()
        async with open_scope() as cancelled:
            cancelled.cancel()
            await anyio.sleep_forever()

    assert (outer.draining, outer.cancelled) == (False, False)


async def test_a_scope_opened_while_the_outer_one_drains_drains_from_the_start() -> None:
    async with open_scope(drain_timeout=5) as outer:
        outer.drain("late")
        await anyio.sleep(1)
        async with open_scope(drain_timeout=100) as inner:
            assert inner.draining
            assert inner.reason == "late"
            assert inner.remaining() == pytest.approx(4)


async def test_an_outer_drain_shortens_a_nested_one_that_runs_already() -> None:
    start = anyio.current_time()

    async with open_scope(drain_timeout=1) as outer, open_scope(drain_timeout=50) as inner:
        inner.drain("own")
        outer.drain("outer")
        assert inner.drain_deadline == pytest.approx(start + 1)
        await anyio.sleep_forever()

    assert inner.reason == "own"
    assert anyio.current_time() == pytest.approx(start + 1)


async def test_a_shield_holds_against_the_outer_scope() -> None:
    start = anyio.current_time()

    async with open_scope() as outer:
        outer.cancel()
        with anyio.CancelScope(shield=True):
            async with open_scope(drain_timeout=7) as inner:
                assert inner.draining
                await anyio.sleep(3)
        assert anyio.current_time() == pytest.approx(start + 3)
        await anyio.sleep_forever()

    assert outer.cancelled


async def test_a_scope_left_behind_is_not_an_outer_scope() -> None:
    reasons: list[str | None] = []

    async def outlive(ended: anyio.Event) -> None:
        await ended.wait()
        async with open_scope() as scope:
            reasons.append(scope.reason)

    async with anyio.create_task_group() as around:
        ended = anyio.Event()
        async with open_scope() as left_behind:
            around.start_soon(outlive, ended)
            left_behind.drain()
        ended.set()

    assert reasons == [None]


async def test_a_task_that_outlives_its_scope_still_hears_of_the_one_around() -> None:
    async with open_scope() as outer, anyio.create_task_group() as around:
        async with open_scope() as left_behind:
            opened = anyio.Event()

            async def outlive() -> None:
                async with open_scope() as scope:
                    opened.set()
                    await scope.wait_draining()
                    assert scope.reason == "outer"

            around.start_soon(outlive)
            await opened.wait()
        assert not left_behind.draining
        await wait_all_tasks_blocked()
        outer.drain("outer")


class BodyError(Exception):
    pass


async def fail(error: Exception) -> None:
    raise error


async def test_the_bodys_exception_leaves_bare_and_unchanged() -> None:
    cause, error = KeyError("cause"), BodyError("body")
    scopes: list[Scope] = []

    with pytest.raises(BodyError) as caught:  # noqa: PT012  # the act is leaving the block
        async with open_scope() as scope:
            scopes.append(scope)
            scope.start_soon(anyio.sleep_forever)
            raise error from cause

    assert caught.value is error
    assert error.__cause__ is cause
    assert not isinstance(error.__context__, BaseExceptionGroup)
    assert not scopes[0].cancelled


async def test_a_childs_exception_leaves_bare() -> None:
    error = BodyError("child")

    with pytest.raises(BodyError) as caught:  # noqa: PT012  # the act is leaving the block
        async with open_scope() as scope:
            scope.start_soon(fail, error)
            await anyio.sleep_forever()

    assert caught.value is error
    assert not isinstance(error.__context__, BaseExceptionGroup)


async def test_a_group_that_the_body_raised_leaves_as_it_was() -> None:
    group = ExceptionGroup("mine", [BodyError()])

    with pytest.raises(ExceptionGroup) as caught:
        async with open_scope():
            raise group

    # Trio takes groups apart to look for cancellations, and puts equal ones together.
    assert (caught.value.message, caught.value.exceptions) == ("mine", group.exceptions)


async def test_several_exceptions_leave_as_a_group() -> None:
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the act is leaving the block
        async with open_scope() as scope:
            scope.start_soon(fail, BodyError("child"))
            scope.start_soon(fail, KeyError("child"))
            await anyio.sleep_forever()

    assert sorted(type(e).__name__ for e in caught.value.exceptions) == ["BodyError", "KeyError"]


async def test_a_failing_child_is_not_hidden_by_the_scopes_own_cancel() -> None:
    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise BodyError("cleanup")

    with pytest.raises(BodyError, match="cleanup"):  # noqa: PT012  # the act is leaving the block
        async with open_scope() as scope:
            scope.start_soon(child)
            await wait_all_tasks_blocked()
            scope.cancel()
            await anyio.sleep_forever()


@pytest.mark.parametrize("error", [StopIteration("x"), StopAsyncIteration("x"), GeneratorExit("x")])
async def test_exceptions_that_generators_treat_specially_leave_bare(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        async with open_scope():
            raise error

    assert caught.value is error


async def test_a_cancellation_from_outside_passes_through() -> None:
    scopes: list[Scope] = []

    with anyio.CancelScope() as around:
        async with open_scope() as scope:
            scopes.append(scope)
            scope.start_soon(anyio.sleep_forever)
            around.cancel()
            await anyio.sleep_forever()
        pytest.fail("went on")  # pragma: no cover -- must not be reached

    assert around.cancelled_caught
    assert not scopes[0].cancelled


async def test_a_cancellation_from_outside_passes_through_even_with_one_of_its_own() -> None:
    with anyio.CancelScope() as around:
        async with open_scope() as scope:
            scope.cancel()
            around.cancel()
            await anyio.sleep_forever()
        pytest.fail("went on")  # pragma: no cover -- must not be reached

    assert around.cancelled_caught


def test_a_native_task_cancel_passes_through() -> None:
    async def main() -> None:
        async def block() -> None:
            async with open_scope() as scope:
                scope.start_soon(anyio.sleep_forever)
                scope.drain()
                await anyio.sleep_forever()

        task = asyncio.create_task(block())
        await wait_all_tasks_blocked()
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()

    run_virtual(main, backend="asyncio")


def test_a_native_task_cancel_reaches_a_block_that_waits_for_children() -> None:
    async def main() -> None:
        ended: list[str] = []

        async def child() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("child")

        async def block() -> None:
            async with open_scope() as scope:
                scope.start_soon(child)

        task = asyncio.create_task(block())
        await wait_all_tasks_blocked()
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        assert ended == ["child"]

    run_virtual(main, backend="asyncio")


def test_a_native_task_cancel_together_with_the_scopes_own_passes_through() -> None:
    async def main() -> None:
        scopes: list[Scope] = []

        async def block() -> None:
            async with open_scope() as scope:
                scopes.append(scope)
                await anyio.sleep_forever()

        task = asyncio.create_task(block())
        await wait_all_tasks_blocked()
        scopes[0].cancel()
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()

    run_virtual(main, backend="asyncio")


def test_asyncios_timeout_around_a_scope_times_out() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):  # noqa: PT012  # the act is leaving the block
            async with asyncio.timeout(3), open_scope() as scope:
                scope.start_soon(anyio.sleep_forever)
                await anyio.sleep_forever()

        assert asyncio.get_running_loop().time() == pytest.approx(3)

    run_virtual(main, backend="asyncio")


async def test_start_soon_names_the_task_and_is_refused_after_the_end() -> None:
    names: list[str | None] = []

    async def child() -> None:
        names.append(anyio.get_current_task().name)

    async with open_scope(name="short") as scope:
        scope.start_soon(child, name="namesake")

    assert names == ["namesake"]
    with pytest.raises(RuntimeError, match="scope 'short' has ended"):
        scope.start_soon(child)


async def test_drain_and_cancel_do_nothing_after_the_end() -> None:
    async with open_scope() as scope:
        pass

    scope.drain()
    scope.cancel()

    assert (scope.draining, scope.cancelled) == (False, False)


async def test_the_repr_tells_where_a_scope_stands() -> None:
    shown: list[str] = []

    async with open_scope(name="a") as scope:
        shown.append(repr(scope))
        scope.drain()
        shown.append(repr(scope))
        scope.cancel()
        shown.append(repr(scope))
    async with open_scope(name="b") as other:
        pass
    shown.append(repr(other))

    assert shown == ["<Scope 'a' open>", "<Scope 'a' draining>", "<Scope 'a' cancelled>", "<Scope 'b' ended>"]


@pytest.mark.parametrize("arguments", [{"drain_timeout": -1.0}, {"deadline": -0.5}, {"deadline": math.nan}])
async def test_times_that_are_not_seconds_are_refused(arguments: dict[str, float]) -> None:
    (argument,) = arguments

    with pytest.raises(ValueError, match=f"{argument} must be 0 or more seconds, not"):
        async with open_scope(**arguments):  # type: ignore[arg-type]  # mypy takes the values for those of `signals`
            pass  # pragma: no cover -- must not be reached


@pytest.mark.usefixtures("real_time")
async def test_the_first_signal_drains_and_the_second_cancels() -> None:
    async with open_scope(signals=True) as scope:
        os.kill(os.getpid(), signal.SIGTERM)
        with anyio.fail_after(5):
            await scope.wait_draining()
        assert not scope.cancelled
        os.kill(os.getpid(), signal.SIGINT)
        with anyio.fail_after(5):
            await anyio.sleep_forever()

    assert (scope.cancelled, scope.reason) == (True, "SIGTERM")


@pytest.mark.usefixtures("real_time")
async def test_the_first_signal_does_not_cancel_what_drains_already() -> None:
    async with open_scope(signals=True) as scope:
        scope.drain("own")
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep(0.05)

        assert not scope.cancelled


@pytest.mark.usefixtures("real_time")
async def test_the_signal_watcher_does_not_keep_the_block_alive_and_gives_the_signals_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with anyio.fail_after(5):
        async with open_scope(signals=True):
            pass

    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.usefixtures("real_time")
async def test_nested_scopes_share_one_watch_over_signals() -> None:
    async with open_scope(signals=True) as outer:
        async with open_scope(signals=True):
            pass
        async with open_scope(signals=True) as inner:
            os.kill(os.getpid(), signal.SIGINT)
            with anyio.fail_after(5):
                await inner.wait_draining()

    assert (outer.reason, inner.reason) == ("SIGINT", "SIGINT")


@pytest.mark.usefixtures("real_time")
async def test_the_bodys_exception_leaves_bare_with_signals_too() -> None:
    with pytest.raises(BodyError):
        async with open_scope(signals=True):
            raise BodyError


@pytest.mark.usefixtures("real_time")
async def test_signals_outside_the_main_thread_are_refused(anyio_backend_name: str) -> None:
    async def main() -> None:
        async with open_scope(signals=True, name="aside"):
            pass  # pragma: no cover -- must not be reached

    def in_thread() -> None:
        with pytest.raises(RuntimeError, match="'aside' works in the main thread only"):
            anyio.run(main, backend=anyio_backend_name)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
