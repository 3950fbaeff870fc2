"""What a Trio program sees of scopes: nurseries, cancel scopes and clocks of Trio's own, under pytest-trio."""

import math
import signal

import pytest
import trio
import trio.testing

from forebay._scope import Scope, open_scope
from forebay._worker import abandoned, run_in_thread

pytestmark = pytest.mark.trio


async def test_a_drain_is_cut_off_on_trios_clock(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scope(drain_timeout=7) as scope:
        await trio.sleep(2)
        scope.drain()
        await trio.sleep_forever()

    assert trio.current_time() == 9
    assert scope.cancelled


async def test_a_nursery_inside_a_scope_is_cut_off_with_it(autojump_clock: trio.testing.MockClock) -> None:
    async with open_scope(deadline=5, drain_timeout=1) as scope, trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(trio.sleep, 100)

    assert trio.current_time() == 5
    assert scope.reason == "deadline"


async def test_a_scope_in_a_cancelled_nursery_lets_the_cancellation_through(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scopes: list[Scope] = []

    async def block() -> None:
        async with open_scope() as scope:
            scopes.append(scope)
            scope.start_soon(trio.sleep_forever)
        pytest.fail("went on")  # pragma: no cover -- must not be reached

    async with trio.open_nursery() as nursery:
        nursery.start_soon(block)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert not scopes[0].cancelled


async def test_the_bodys_exception_leaves_bare_into_a_strict_nursery() -> None:
    async def block() -> None:
        async with open_scope() as scope:
            scope.start_soon(trio.sleep_forever)
            raise KeyError("body")

    with pytest.raises(ExceptionGroup) as caught:  # the act is leaving the nursery
        async with trio.open_nursery() as nursery:
            nursery.start_soon(block)

    (error,) = caught.value.exceptions  # one level: the nursery's
    assert isinstance(error, KeyError)


async def test_a_keyboard_interrupt_leaves_bare() -> None:
    async def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # the act is leaving the block
        async with open_scope() as scope:
            scope.start_soon(interrupt)
            await trio.sleep_forever()


async def test_signals_reach_a_scope_of_a_plain_trio_program() -> None:
    async with open_scope(signals=True) as scope:
        signal.raise_signal(signal.SIGTERM)
        with trio.fail_after(5):
            await scope.wait_draining()

    assert (scope.reason, scope.cancelled) == ("SIGTERM", False)


async def test_a_blocked_handler_is_abandoned_by_trios_cancellation() -> None:
    released = trio.Event()

    def block() -> None:
        trio.from_thread.run(released.wait, trio_token=token)

    token = trio.lowlevel.current_trio_token()
    with trio.move_on_after(0.05) as cut:
        await run_in_thread(block, name="blocked")

    assert cut.cancelled_caught
    assert abandoned() == ["blocked"]
    released.set()
    with trio.fail_after(5):
        while abandoned():  # noqa: ASYNC110  # threads set no event of Trio's
            await trio.sleep(0.001)


async def test_steps_interleave_as_a_sequencer_says(autojump_clock: trio.testing.MockClock) -> None:
    sequence = trio.testing.Sequencer()
    seen: list[tuple[str, bool]] = []

    async def library() -> None:
        async with open_scope(drain_timeout=math.inf, name="inner") as inner:
            async with sequence(0):
                seen.append(("before", inner.draining))
            async with sequence(2):
                seen.append(("after", inner.draining))

    async with open_scope(drain_timeout=math.inf) as outer:
        outer.start_soon(library)
        async with sequence(1):
            outer.drain()

    assert seen == [("before", False), ("after", True)]
