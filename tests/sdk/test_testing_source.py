from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from forebay._types import (
    Chunk,
    Deliveries,
    Member,
    Redelivery,
    Settlement,
)
from forebay.testing import (
    Empty,
    Pause,
    Raise,
    ScriptedSession,
    ScriptedSource,
)
from forebay_conformance import SourceSuite

pytestmark = pytest.mark.anyio


async def fetch(session: ScriptedSession[Any], *settled: Settlement, max_items: int = 100) -> Chunk[Any] | None:
    return await session.exchange(settled, max_items=max_items, max_bytes=None)


async def items_of(session: ScriptedSession[Any], max_items: int = 100) -> list[Any]:
    chunk = await fetch(session, max_items=max_items)
    assert chunk is not None
    return list(chunk.items)


me = Member("me-1")


async def test_a_source_hands_out_and_ends() -> None:
    source = ScriptedSource(["a", "b", "c"])

    async with source.open(me) as session:
        chunk = await fetch(session, max_items=2)
        assert chunk == Chunk(items=["a", "b"], offsets=range(2), epoch=1)
        assert (source.in_hand, source.unsettled, await session.lag()) == ([0, 1], ["a", "b", "c"], 1)
        last = await fetch(session, Settlement(range(2), epoch=1, mark=2))
        assert last == Chunk(items=["c"], offsets=range(2, 3), epoch=1)
        assert await fetch(session) == Chunk(items=[], offsets=range(0), epoch=1)
        assert await fetch(session, Settlement([2], epoch=1, mark=3), max_items=0) is None
        assert session.claim_seconds is None

    source.assert_settled_once()
    assert source.max_in_hand == 2


async def test_the_script_can_find_nothing_pause_and_fail() -> None:
    source = ScriptedSource([1, Empty(), 2, Pause(5), Raise(OSError("gone")), 3])

    async with source.open(me) as session:
        assert await items_of(session) == [1]
        assert await items_of(session) == []
        assert await items_of(session) == [2]
        assert await items_of(session) == []
        begin = anyio.current_time()
        await session.wait_ready()
        assert anyio.current_time() == begin + 5
        with pytest.raises(OSError, match="gone"):
            await fetch(session)
        await session.wait_ready()
        assert await items_of(session) == [3]


async def test_settling_alone_plays_no_step() -> None:
    source = ScriptedSource([1, Raise(OSError("gone"))])

    async with source.open(me) as session:
        await items_of(session)
        await fetch(session, Settlement([0], epoch=1), max_items=0)
        with pytest.raises(OSError, match="gone"):
            await fetch(session)


@pytest.mark.parametrize("settled", [False, True])
async def test_a_failing_exchange_may_have_settled_or_not(settled: bool) -> None:
    source = ScriptedSource([1, Raise(OSError("gone"), settled=settled)])

    async with source.open(me) as session:
        await items_of(session)
        with pytest.raises(OSError, match="gone"):
            await fetch(session, Settlement([0], epoch=1, mark=1))
        assert source.unsettled == ([] if settled else [1])
        assert await fetch(session, Settlement([0], epoch=1, mark=1)) is None

    source.assert_settled_once()


async def test_settle_errors_come_by_call() -> None:
    source = ScriptedSource([1, 2], settle_errors=[None, OSError("second")])

    async with source.open(me) as session:
        await items_of(session)
        await fetch(session, Settlement([0], epoch=1))
        with pytest.raises(OSError, match="second"):
            await fetch(session, Settlement([1], epoch=1))
        assert source.unsettled == [2]
        assert await fetch(session, Settlement([1], epoch=1)) is None


async def test_items_given_back_come_first_and_count() -> None:
    source = ScriptedSource([1, 2, 3, 4])

    async with source.open(me) as session:
        await items_of(session, 3)
        await session.give_back([Deliveries([1], epoch=1)], refund=True)
        await session.give_back([Deliveries([0], epoch=1)], refund=False)
        await session.give_back([Deliveries([0], epoch=1), Deliveries([2], epoch=7)], refund=True)
        assert source.deliveries == [1, 0, 1, 0]
        assert await session.lag() == 3
        chunk = await fetch(session)

    assert chunk is not None
    assert (list(chunk.items), chunk.offsets, chunk.deliveries) == ([1, 2, 4], [0, 1, 3], [2, 1, 1])
    assert [refund for _, refund in source.given_back] == [True, False, True, True]


async def test_what_goes_back_maybe_done_says_so_and_stays_so() -> None:
    source = ScriptedSource([1, 2, 3])

    async with source.open(me) as session:
        await items_of(session)
        await session.give_back([Deliveries([0, 2], epoch=1, maybe_done=True), Deliveries([1], epoch=1)], refund=True)
        second = await fetch(session)
        await session.renew([Redelivery(2, failures=1, epoch=1)])
        await session.give_back([Deliveries([2], epoch=1)], refund=True)
        third = await fetch(session, Settlement(retries=[Redelivery(0, failures=1, epoch=1)], epoch=1))

    assert second is not None
    assert (list(second.items), second.deliveries, second.maybe_done) == ([1, 2, 3], 1, [True, False, True])
    assert third is not None
    assert (list(third.items), third.failures, third.maybe_done) == ([1, 3], 1, True)


async def test_retries_come_when_they_are_due_with_their_failures() -> None:
    source = ScriptedSource([1])

    async with source.open(me) as session:
        await items_of(session)
        retry = Redelivery(0, failures=2, after=3, maybe_done=True, epoch=1)
        chunk = await fetch(session, Settlement(retries=[retry], epoch=1))
        assert chunk is not None
        assert not chunk.items
        begin = anyio.current_time()
        await session.wait_ready()
        assert anyio.current_time() == begin + 3
        chunk = await fetch(session)

    assert chunk == Chunk(items=[1], offsets=range(1), epoch=1, deliveries=2, failures=2, maybe_done=True)
    assert (source.retries, source.failures) == ([retry], [2])


async def test_renewals_keep_failures() -> None:
    source = ScriptedSource([1, 2])
    retry = Redelivery(0, failures=4, epoch=1)

    async with source.open(me) as session:
        await items_of(session)
        assert await session.renew([retry, Redelivery(1, failures=1, epoch=9)]) == []

    assert (source.renewals[0][0], source.failures) == (retry, [4, 0])


async def test_a_session_that_is_left_gives_its_items_back() -> None:
    source = ScriptedSource([1, 2])

    async with source.open(me) as session:
        await items_of(session)
        await fetch(session, Settlement([1], epoch=1))
    async with source.open(me) as session:
        chunk = await fetch(session)

    assert chunk == Chunk(items=[1], offsets=range(1), epoch=2, deliveries=2)


async def test_an_old_epoch_changes_nothing_and_is_told() -> None:
    source = ScriptedSource([1, 2])

    async with source.open(me) as session:
        await items_of(session)
    async with source.open(me) as session:
        await items_of(session)
        old = Settlement([0], epoch=1, retries=[Redelivery(1, failures=1, epoch=1)])
        chunk = await fetch(session, old)
        assert chunk is not None
        assert chunk.lost == [Deliveries([0], epoch=1), Deliveries([1], epoch=1)]
        assert source.in_hand == [0, 1]

    assert source.violations == []


async def test_stolen_items_are_told_of_once_and_are_not_missed() -> None:
    source = ScriptedSource([1, 2, 3])

    async with source.open(me) as session:
        await items_of(session)
        source.steal(0, 1)
        assert await session.renew([]) == [Deliveries([0], epoch=1), Deliveries([1], epoch=1)]
        assert await session.renew([]) == []
        chunk = await fetch(session, Settlement([0, 2], epoch=1, mark=3))
        assert chunk is not None
        assert chunk.lost == [Deliveries([0], epoch=1)]
        assert await fetch(session) is None

    source.assert_settled_once()


async def test_only_items_in_hand_can_be_stolen() -> None:
    with pytest.raises(ValueError, match=r"offset 0 is not in hand; steal one of \[\]"):
        ScriptedSource([1]).steal(0)


async def test_sizes_bound_a_fetch() -> None:
    source = ScriptedSource(["aaa", "bb", "c", "dddddd", "e"], weigh=len)
    taken: list[Any] = []

    async with source.open(me) as session:
        for _ in range(3):
            chunk = await session.exchange([], max_items=10, max_bytes=5)
            assert chunk is not None
            taken.append((list(chunk.items), chunk.sizes))

    assert taken == [(["aaa", "bb"], [3, 2]), (["c"], [1]), (["dddddd"], [6])]


async def test_an_endless_source_waits_at_the_end() -> None:
    source = ScriptedSource([1], endless=True)

    async with source.open(me) as session:
        await items_of(session)
        assert await fetch(session, Settlement([0], epoch=1)) is not None
        with anyio.move_on_after(1000) as scope:
            await session.wait_ready()

    assert scope.cancelled_caught


async def test_wait_ready_hears_of_what_comes_back_and_of_the_end() -> None:
    source = ScriptedSource([1])
    heard: list[float] = []

    async def listen(session: ScriptedSession[int]) -> None:
        await session.wait_ready()
        heard.append(anyio.current_time() - begin)

    async with source.open(me) as session:
        await items_of(session)
        begin = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, session)
            await anyio.sleep(1)
            await session.give_back([Deliveries([0], epoch=1)], refund=True)
        await items_of(session)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, session)
            await anyio.sleep(1)
            await fetch(session, Settlement([0], epoch=1), max_items=0)

    assert heard == [1, 2]


async def test_two_sessions_may_wait_at_the_same_time() -> None:
    source = ScriptedSource([1])

    async with source.open(me) as first, source.open(me) as second:
        await items_of(first)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first.wait_ready)
                tasks.start_soon(second.wait_ready)
                await anyio.sleep(1)
                await first.give_back([Deliveries([0], epoch=1)], refund=True)

        assert await items_of(second) == [1]


async def test_an_exchange_takes_its_time_and_does_nothing_when_cut_off() -> None:
    source = ScriptedSource([1], latency=2)

    async with source.open(me) as session:
        begin = anyio.current_time()
        await items_of(session)
        assert anyio.current_time() == begin + 2
        with anyio.move_on_after(1):
            await fetch(session, Settlement([0], epoch=1))
        assert source.in_hand == [0]


@pytest.mark.parametrize(
    ("settled", "violation"),
    [
        ([Settlement([0], epoch=1), Settlement([0], epoch=1)], "offset 0 was settled again although"),
        ([Settlement([2], epoch=1)], "offset 2 was settled under epoch 1 when it was not in hand"),
        ([Settlement(["x"], epoch=1)], "offset 'x' is none of this source's"),
        ([Settlement([9], epoch=1)], "offset 9 is none of this source's"),
        ([Settlement([1], epoch=1, mark=2)], "the commit mark 2 passes offset 0, which is not final"),
        ([Settlement([0], epoch=1, mark=1), Settlement(mark=0)], "the commit mark went back from 1 to 0"),
    ],
)
async def test_what_breaks_the_contract_is_noticed(settled: Sequence[Settlement], violation: str) -> None:
    source = ScriptedSource([1, 2, 3])

    async with source.open(me) as session:
        await items_of(session, 2)
        for settlement in settled:
            await fetch(session, settlement, max_items=0)

    assert len(source.violations) == 1
    with pytest.raises(AssertionError, match=violation):
        source.assert_settled_once()


async def test_unsettled_items_are_noticed() -> None:
    with pytest.raises(AssertionError, match=r"unsettled: \['a', 'b'\]"):
        ScriptedSource(["a", Empty(), "b"]).assert_settled_once()


class TestScriptedSource(SourceSuite):
    virtual_time = True
    supports_claims = False

    @asynccontextmanager
    async def open_source(self, items: Sequence[Any], /) -> AsyncGenerator[ScriptedSource[Any]]:
        yield ScriptedSource(items, weigh=len)
