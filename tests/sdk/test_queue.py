import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay import abc
from forebay._errors import EngineError
from forebay._queue import MemoryQueue, QueueStatistics
from forebay._types import Chunk, Deliveries, Member, Redelivery, Settlement
from forebay.testing import run_virtual

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def sessions(queue: MemoryQueue[str], count: int = 2) -> AsyncGenerator[list[abc.Session[str]]]:
    async with anyio.create_task_group():
        opened = [queue.open(Member(id=f"m{number}")) for number in range(count)]
        yield [await each.__aenter__() for each in opened]
        for each in opened:
            await each.__aexit__(None, None, None)


async def take(
    session: abc.Session[str], max_items: int = 100, *settled: Settlement, max_bytes: int | None = None
) -> Chunk[str]:
    chunk = await session.exchange(settled, max_items=max_items, max_bytes=max_bytes)
    assert chunk is not None
    return chunk


def done(chunk: Chunk[str]) -> Settlement:
    return Settlement(offsets=chunk.offsets, epoch=chunk.epoch)


def in_hand(chunk: Chunk[str]) -> Deliveries:
    return Deliveries(offsets=chunk.offsets, epoch=chunk.epoch)


def failed(chunk: Chunk[str], offset: int, failures: int = 1, after: float = 0, maybe_done: bool = False) -> Redelivery:
    return Redelivery(offset=offset, failures=failures, after=after, maybe_done=maybe_done, epoch=chunk.epoch)


def queue_of(count: int, *, claim_seconds: float = 30.0) -> MemoryQueue[str]:
    queue = MemoryQueue[str](claim_seconds=claim_seconds)
    queue.put_many([f"item {number}" for number in range(count)])
    return queue


async def test_it_is_a_source_and_a_sink() -> None:
    queue = MemoryQueue[str]()
    source: abc.Source[str] = queue
    sink: abc.Sink[str] = queue

    assert await sink.write(["a", "b"]) is None
    async with source.open(Member(id="m")) as session:
        chunk = await take(session)

    assert (chunk.items, chunk.offsets, chunk.partition) == (["a", "b"], range(2), 0)
    assert isinstance(queue, abc.Source)
    assert isinstance(queue, abc.Sink)


async def test_items_come_in_order_and_settled_ones_never_again() -> None:
    queue = queue_of(5)
    async with sessions(queue, 1) as [session]:
        first = await take(session, 3)
        second = await take(session, 3, done(first))
        third = await take(session, 3, done(second))

    assert (first.items, first.offsets) == (["item 0", "item 1", "item 2"], range(3))
    assert (second.items, second.offsets) == (["item 3", "item 4"], range(3, 5))
    assert (third.items, third.offsets) == ([], [])
    assert (first.deliveries, first.failures, first.maybe_done, first.keys, first.sizes) == (1, 0, False, None, None)
    assert queue.statistics() == QueueStatistics(ready=0, in_hand=0, waiting=0, settled=5, deliveries=5)


async def test_asking_for_nothing_only_settles() -> None:
    queue = queue_of(2)
    async with sessions(queue, 1) as [session]:
        chunk = await take(session, 1)

        empty = await take(session, 0, done(chunk))

        assert list(empty.items) == []
        assert queue.statistics() == QueueStatistics(ready=1, in_hand=0, waiting=0, settled=1, deliveries=1)


async def test_settling_twice_is_settling_once() -> None:
    queue = queue_of(2)
    async with sessions(queue, 1) as [session]:
        chunk = await take(session)

        again = await take(session, 0, done(chunk), done(chunk))
        later = await take(session, 0, done(chunk))

        assert (list(again.lost), list(later.lost)) == ([], [])
        assert queue.statistics().settled == 2


async def test_keys_come_with_their_items_and_not_with_others() -> None:
    queue = MemoryQueue[str]()
    queue.put_many(["a", "b"], keys=["k", ""])
    queue.put_many(["c"])
    async with sessions(queue, 1) as [session]:
        keyed = await take(session)
        bare = await take(session)

    assert (keyed.items, keyed.keys) == (["a", "b"], ["k", ""])
    assert (bare.items, bare.keys) == (["c"], None)


async def test_bytes_are_limited_and_an_item_that_is_larger_comes_alone() -> None:
    queue = MemoryQueue[str](weigh=len)
    queue.put_many(["aa", "bbb", "cccccccccc", "d", "e"])
    async with sessions(queue, 1) as [session]:
        chunks = [await take(session, max_bytes=5) for _ in range(3)]
        nothing = await take(session, max_bytes=5)

    assert [chunk.items for chunk in chunks] == [["aa", "bbb"], ["cccccccccc"], ["d", "e"]]
    assert [chunk.sizes for chunk in chunks] == [[2, 3], [10], [1, 1]]
    assert nothing.items == []


async def test_without_weigh_bytes_are_not_limited() -> None:
    queue = queue_of(3)
    async with sessions(queue, 1) as [session]:
        assert len((await take(session, max_bytes=1)).items) == 3


# --- The end ------------------------------------------------------------------------------------


async def test_a_session_ends_when_everything_is_final_and_still_takes_settlements() -> None:
    queue = queue_of(1)
    async with sessions(queue) as [one, other]:
        chunk = await take(one)
        queue.close()
        queue.close()

        assert (await take(other)).items == []
        assert await one.exchange([done(chunk)], max_items=5, max_bytes=None) is None
        assert await one.exchange([done(chunk)], max_items=0, max_bytes=None) is None
        assert await other.exchange([], max_items=5, max_bytes=None) is None


async def test_a_session_does_not_end_while_a_failed_item_waits() -> None:
    queue = queue_of(1)
    queue.close()
    async with sessions(queue, 1) as [session]:
        chunk = await take(session)
        assert (await take(session, 5, Settlement(retries=[failed(chunk, 0, after=10)], epoch=chunk.epoch))).items == []

        await session.wait_ready()
        again = await take(session)

        assert again.items == ["item 0"]
        assert await session.exchange([done(again)], max_items=5, max_bytes=None) is None


async def test_a_closed_queue_takes_nothing_more() -> None:
    queue = MemoryQueue[str]()
    queue.close()

    with pytest.raises(EngineError, match=r"put_many\(\) was called on a closed queue; put all items before close\(\)"):
        queue.put_many(["a"])
    with pytest.raises(EngineError):
        await queue.write(["a"])


async def test_a_closed_session_does_nothing_and_says_so() -> None:
    queue = queue_of(1)
    async with queue.open(Member(id="m")) as session:
        pass

    for call in (
        lambda: session.exchange([], max_items=1, max_bytes=None),
        lambda: session.give_back([], refund=True),
        lambda: session.renew([]),
        lambda: session.lag(),
        lambda: session.wait_ready(),
    ):
        with pytest.raises(EngineError, match="the session has been closed; use it inside its `async with` block"):
            await call()
    assert queue.statistics().ready == 1


# --- Giving back and failing --------------------------------------------------------------------


@pytest.mark.parametrize(("refund", "deliveries"), [(True, 1), (False, 2)])
async def test_what_is_given_back_comes_again_at_once_and_in_its_place(refund: bool, deliveries: int) -> None:
    queue = queue_of(4)
    async with sessions(queue) as [one, other]:
        chunk = await take(one, 2)

        await one.give_back([in_hand(chunk)], refund=refund)
        await one.give_back([in_hand(chunk)], refund=refund)
        again = await take(other)

        assert (again.items, again.offsets) == ([f"item {number}" for number in range(4)], range(4))
        assert again.deliveries == (1 if refund else [2, 2, 1, 1])
        assert again.maybe_done == (False if refund else [True, True, False, False])
        assert queue.statistics().deliveries == 2 + 2 * deliveries


async def test_what_goes_back_maybe_done_says_so_to_whoever_gets_it_and_stays_so() -> None:
    queue = queue_of(3)
    async with sessions(queue) as [one, other]:
        chunk = await take(one)
        cut_off = Deliveries([0, 2], epoch=chunk.epoch, maybe_done=True)
        await one.give_back([cut_off, Deliveries([1], epoch=chunk.epoch)], refund=True)

        again = await take(other)
        await other.give_back([in_hand(again)], refund=True)
        last = await take(one)

        assert (again.deliveries, again.maybe_done) == (1, [True, False, True])
        assert (last.deliveries, last.maybe_done) == (1, [True, False, True])


async def test_a_failed_item_comes_again_with_its_count_while_others_are_taken() -> None:
    queue = queue_of(4)
    async with sessions(queue, 1) as [session]:
        chunk = await take(session, 3)
        settlement = Settlement(offsets=[0, 2], epoch=chunk.epoch, retries=[failed(chunk, 1, 2, maybe_done=True)])

        again = await take(session, 5, settlement)

        assert (again.items, again.offsets) == (["item 1", "item 3"], [1, 3])
        assert (again.deliveries, again.failures, again.maybe_done) == ([2, 1], [2, 0], [True, False])


async def test_a_failed_item_waits_until_it_is_due() -> None:
    queue = queue_of(2)
    async with sessions(queue) as [one, other]:
        chunk = await take(one)
        retries = [failed(chunk, 0, after=20), failed(chunk, 1, after=10)]
        await take(one, 0, Settlement(epoch=chunk.epoch, retries=retries))
        assert queue.statistics() == QueueStatistics(ready=0, in_hand=0, waiting=2, settled=0, deliveries=2)
        start = anyio.current_time()

        await other.wait_ready()
        first = await take(other)
        await other.wait_ready()
        second = await take(other)

        assert (first.offsets, second.offsets) == (range(1, 2), range(1))
        assert anyio.current_time() - start == pytest.approx(20)


async def test_the_count_of_failures_never_goes_back() -> None:
    queue = queue_of(1)
    async with sessions(queue, 1) as [session]:
        chunk = await take(session)
        await session.renew([failed(chunk, 0, failures=3)])
        again = await take(session, 1, Settlement(epoch=chunk.epoch, retries=[failed(chunk, 0, failures=1)]))

        assert again.failures == 3


async def test_a_failure_written_with_a_renewal_is_told_to_the_next_who_gets_the_item() -> None:
    queue = queue_of(2, claim_seconds=30)
    async with sessions(queue) as [one, other]:
        chunk = await take(one)

        assert list(await one.renew([failed(chunk, 1, failures=2, after=5)])) == []
        await anyio.sleep(31)
        again = await take(other)

        assert (again.failures, again.deliveries, again.maybe_done) == ([0, 2], 2, True)


async def test_a_settlement_of_what_was_never_handed_out_is_ignored() -> None:
    queue = queue_of(2)
    async with sessions(queue, 1) as [session]:
        chunk = await take(session, 1)

        more = await take(session, 0, Settlement(offsets=[1, 99, "x"], epoch=chunk.epoch))

        assert list(more.lost) == []
        assert queue.statistics() == QueueStatistics(ready=1, in_hand=1, waiting=0, settled=0, deliveries=1)


# --- Claims -------------------------------------------------------------------------------------


async def test_what_nobody_renews_falls_to_others_under_a_new_epoch() -> None:
    queue = queue_of(3, claim_seconds=10)
    async with sessions(queue) as [one, other]:
        assert one.claim_seconds == 10
        chunk = await take(one, 2)
        await anyio.sleep(9.9)
        assert (await take(other)).offsets == range(2, 3)

        await anyio.sleep(0.2)
        again = await take(other)

        assert (again.items, again.offsets) == (["item 0", "item 1"], range(2))
        assert again.epoch > chunk.epoch
        assert (again.deliveries, again.maybe_done) == (2, True)


async def test_an_old_claim_settles_nothing_and_is_told_so() -> None:
    queue = queue_of(3, claim_seconds=10)
    async with sessions(queue) as [one, other]:
        chunk = await take(one)
        await anyio.sleep(11)
        again = await take(other)

        told = await take(one, 5, done(chunk))
        await one.give_back([in_hand(chunk)], refund=True)
        retold = await take(one, 5, Settlement(epoch=chunk.epoch, retries=[failed(chunk, 1)]))

        assert list(told.lost) == [Deliveries(offsets=range(3), epoch=chunk.epoch)]
        assert list(retold.lost) == [Deliveries(offsets=range(3), epoch=chunk.epoch)]
        assert queue.statistics() == QueueStatistics(ready=0, in_hand=3, waiting=0, settled=0, deliveries=6)
        await take(other, 0, done(again))
        assert queue.statistics().settled == 3


async def test_a_member_that_gets_its_own_lapsed_items_gets_them_under_a_new_epoch() -> None:
    queue = queue_of(2, claim_seconds=10)
    async with sessions(queue, 1) as [session]:
        chunk = await take(session)
        await anyio.sleep(11)

        again = await take(session)
        ignored = await take(session, 0, done(chunk))

        assert again.epoch > chunk.epoch
        assert list(again.lost) == [in_hand(chunk)]
        assert list(ignored.lost) == [in_hand(chunk)]
        assert queue.statistics().settled == 0


async def test_epochs_grow_even_if_the_older_session_takes_over() -> None:
    queue = queue_of(1, claim_seconds=10)
    async with sessions(queue) as [older, newer]:
        epochs: list[int] = []
        for session in (newer, older, newer, older):
            epochs.append((await take(session)).epoch)
            await anyio.sleep(11)

        assert epochs == sorted(set(epochs))


async def test_items_given_back_by_a_newer_session_are_fenced_from_it_too() -> None:
    queue = queue_of(1)
    async with sessions(queue) as [older, newer]:
        chunk = await take(newer)
        await newer.give_back([in_hand(chunk)], refund=True)
        again = await take(older)

        told = await take(newer, 0, done(chunk))

        assert again.epoch > chunk.epoch
        assert list(told.lost) == [in_hand(chunk)]


async def test_a_renewed_claim_holds() -> None:
    queue = queue_of(2, claim_seconds=10)
    async with sessions(queue) as [one, other]:
        early = await take(one, 1)
        await anyio.sleep(6)
        late = await take(one, 1)
        for _ in range(5):
            await one.renew([])
            await anyio.sleep(6)

        assert (await take(other)).items == []
        assert list((await take(one, 0, done(early), done(late))).lost) == []
        assert queue.statistics().settled == 2


async def test_a_lapsed_claim_that_nobody_wanted_can_still_be_renewed_or_settled() -> None:
    queue = queue_of(2, claim_seconds=10)
    async with sessions(queue) as [one, other]:
        chunk = await take(one)
        await anyio.sleep(11)

        lost = await one.renew([])
        assert (await take(other)).items == []
        await anyio.sleep(11)
        told = await take(one, 0, done(chunk))

        assert (list(lost), list(told.lost)) == ([], [])
        assert queue.statistics().settled == 2


async def test_a_renewal_tells_what_was_lost_once() -> None:
    queue = queue_of(4, claim_seconds=10)
    async with sessions(queue) as [one, other]:
        chunk = await take(one)
        await take(one, 0, Settlement(offsets=[1], epoch=chunk.epoch))
        await anyio.sleep(11)
        await take(other, 1)

        lost = await one.renew([failed(chunk, 0)])

        assert list(lost) == [Deliveries(offsets=[0, 2, 3], epoch=chunk.epoch)]
        assert list(await one.renew([])) == []
        assert queue.statistics() == QueueStatistics(ready=2, in_hand=1, waiting=0, settled=1, deliveries=5)


async def test_the_end_does_not_come_before_losses_are_told() -> None:
    queue = queue_of(1, claim_seconds=10)
    queue.close()
    async with sessions(queue) as [one, other]:
        chunk = await take(one)
        await anyio.sleep(11)
        again = await take(other)
        assert await other.exchange([done(again)], max_items=1, max_bytes=None) is None

        assert list((await take(one)).lost) == [in_hand(chunk)]
        assert await one.exchange([], max_items=1, max_bytes=None) is None


async def test_leaving_a_session_settles_nothing_and_its_items_come_back_later() -> None:
    queue = queue_of(2, claim_seconds=10)
    async with queue.open(Member(id="gone")) as gone:
        await take(gone)
    assert queue.statistics().in_hand == 2

    async with sessions(queue, 1) as [session]:
        assert (await take(session)).items == []
        await session.wait_ready()

        assert (await take(session)).items == ["item 0", "item 1"]


async def test_another_partition_is_never_this_member_s() -> None:
    queue = queue_of(1)
    async with sessions(queue, 1) as [session]:
        chunk = await take(session)

        await take(session, 0, Settlement(offsets=[0], partition=3, epoch=chunk.epoch))

        assert queue.statistics().in_hand == 1


# --- Waiting ------------------------------------------------------------------------------------


async def ready_after(session: abc.Session[str], act: Callable[[], object]) -> bool:
    """Return whether `wait_ready` waits until *act* and no longer."""
    ready = anyio.Event()
    before = after = False

    async def wait() -> None:
        await session.wait_ready()
        ready.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await wait_all_tasks_blocked()
        before = ready.is_set()
        act()
        await wait_all_tasks_blocked()
        after = ready.is_set()
        group.cancel_scope.cancel()
    return (before, after) == (False, True)


async def test_a_put_and_a_close_wake_who_waits() -> None:
    queue = MemoryQueue[str]()
    async with sessions(queue, 1) as [session]:
        assert await ready_after(session, lambda: queue.put_many(["a"]))
        chunk = await take(session)
        await take(session, 0, done(chunk))
        assert await ready_after(session, queue.close)
        await session.wait_ready()


async def test_what_comes_back_wakes_who_waits() -> None:
    queue = queue_of(1)
    async with sessions(queue) as [one, other], anyio.create_task_group() as group:
        chunk = await take(one)
        group.start_soon(other.wait_ready)
        await wait_all_tasks_blocked()

        await one.give_back([in_hand(chunk)], refund=True)

    assert anyio.current_time() < 1


async def test_the_last_settlement_wakes_who_waits_for_the_end() -> None:
    queue = queue_of(1)
    queue.close()
    async with sessions(queue) as [one, other], anyio.create_task_group() as group:
        chunk = await take(one)
        group.start_soon(other.wait_ready)
        await wait_all_tasks_blocked()

        await one.exchange([done(chunk)], max_items=1, max_bytes=None)

    assert anyio.current_time() < 1


async def test_who_waits_sees_a_claim_that_was_made_meanwhile_lapse() -> None:
    queue = MemoryQueue[str](claim_seconds=10)
    async with sessions(queue) as [one, other], anyio.create_task_group() as group:
        group.start_soon(other.wait_ready)
        await wait_all_tasks_blocked()
        queue.put_many(["a"])
        await take(one)
        claimed = anyio.current_time()

        await other.wait_ready()

        assert anyio.current_time() - claimed == pytest.approx(10)
        assert (await take(other)).items == ["a"]


async def test_waiting_takes_nothing_and_leaves_nothing_behind() -> None:
    queue = MemoryQueue[str]()
    async with sessions(queue, 1) as [session]:
        with anyio.move_on_after(5) as scope:
            await session.wait_ready()

        assert scope.cancelled_caught
        assert queue._table.waiters == set()


async def test_lag_counts_what_is_ready_or_waits() -> None:
    queue = queue_of(5)
    async with sessions(queue, 1) as [session]:
        chunk = await take(session, 2)
        await take(session, 0, Settlement(epoch=chunk.epoch, retries=[failed(chunk, 0, after=10)]))

        assert await session.lag() == 4


# --- Cancellation and arguments -----------------------------------------------------------------


async def test_a_call_that_was_cancelled_has_changed_nothing() -> None:
    queue = queue_of(3)
    async with sessions(queue, 1) as [session]:
        chunk = await take(session, 2)
        before = queue.statistics()

        for call in (
            lambda: session.exchange([done(chunk)], max_items=5, max_bytes=None),
            lambda: session.give_back([in_hand(chunk)], refund=True),
            lambda: session.renew([failed(chunk, 0)]),
            lambda: queue.write(["x"]),
        ):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert scope.cancelled_caught

        assert queue.statistics() == before
        assert (await take(session, 0, Settlement(epoch=chunk.epoch, retries=[failed(chunk, 0, 0)]))).failures == 0


async def test_every_call_lets_others_run() -> None:
    queue, turns = queue_of(1), 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with sessions(queue, 1) as [session], anyio.create_task_group() as group:
        group.start_soon(count)
        await checkpoint()
        for call in (
            lambda: session.exchange([], max_items=0, max_bytes=None),
            lambda: session.give_back([], refund=True),
            lambda: session.renew([]),
            lambda: session.lag(),
            lambda: session.wait_ready(),
            lambda: queue.write([]),
        ):
            before = turns
            await call()
            await checkpoint()  # asyncio may have run the counter last
            assert turns > before
        group.cancel_scope.cancel()


async def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="claim_seconds must be greater than 0, not 0"):
        MemoryQueue[str](claim_seconds=0)
    with pytest.raises(ValueError, match="keys must hold one key for each item, not 1 for 2 items"):
        MemoryQueue[str]().put_many(["a", "b"], keys=["k"])
    async with sessions(queue_of(1), 1) as [session]:
        with pytest.raises(ValueError, match="max_items must be at least 0, not -1"):
            await session.exchange([], max_items=-1, max_bytes=None)


async def test_a_put_whose_weighing_fails_puts_nothing() -> None:
    def weigh(item: str) -> int:
        return 1 if item == "a" else int(item)

    queue = MemoryQueue[str](weigh=weigh)

    with pytest.raises(ValueError, match="invalid literal"):
        queue.put_many(["a", "b"])

    assert queue.statistics().ready == 0


# --- Whole runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
async def test_members_that_come_stall_and_die_lose_nothing(seed: int) -> None:
    rng, queue, effects = random.Random(seed), queue_of(200, claim_seconds=10), dict[object, int]()

    async def member(number: int) -> bool:
        """Work until the end (True) or until dying with items in hand."""
        async with queue.open(Member(id=f"m{number}")) as session:
            settled: list[Settlement] = []
            while True:
                chunk = await session.exchange(settled, max_items=rng.randrange(1, 20), max_bytes=None)
                settled = []
                if chunk is None:
                    return True
                if not chunk.items:
                    await session.wait_ready()
                    continue
                await anyio.sleep(rng.choice([0.1, 1, 3, 15]))
                if rng.random() < 0.2:
                    return False
                settled = [outcome(chunk)]

    def outcome(chunk: Chunk[str]) -> Settlement:
        retries = [
            failed(chunk, int(offset), after=rng.choice([0, 5])) for offset in chunk.offsets if rng.random() < 0.1
        ]
        final = [offset for offset in chunk.offsets if offset not in {retry.offset for retry in retries}]
        for offset in final:
            effects[offset] = effects.get(offset, 0) + 1
        return Settlement(offsets=final, epoch=chunk.epoch, retries=retries)

    async def keep_alive(number: int) -> None:
        while not await member(number):
            number += 10

    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(keep_alive, number)
        queue.close()

    assert sorted(map(str, effects)) == sorted(map(str, range(200)))
    assert queue.statistics() == QueueStatistics(
        ready=0, in_hand=0, waiting=0, settled=200, deliveries=queue.statistics().deliveries
    )


class _Run:
    """Steps on a queue, each checked against what the members were told."""

    def __init__(self, queue: MemoryQueue[str], members: list[abc.Session[str]]) -> None:
        self.queue, self.members = queue, members
        self.hands: list[tuple[abc.Session[str], Chunk[str], float]] = []  # with the time at which the claim lapses
        self.epochs: dict[int, int] = {}  # of the latest hand-out
        self.put = 0

    async def step(self, what: str, number: int, share: int) -> None:
        member, now = self.members[number % len(self.members)], anyio.current_time()
        if what == "put":
            self.queue.put_many([str(self.put + index) for index in range(share)])
            self.put += share
        elif what == "fetch":
            self.check_fetched(member, await take(member, share), now)
        elif what == "sleep":
            await anyio.sleep(share)
        elif what == "renew":
            await member.renew([])
            self.hands = [(m, c, now + 10 if m is member and now < end else end) for m, c, end in self.hands]
        elif self.hands:
            await self.end(what, *self.hands.pop(number % len(self.hands)), share)
        parts = self.queue.statistics()
        assert parts.ready + parts.in_hand + parts.waiting + parts.settled == self.put

    def check_fetched(self, member: abc.Session[str], chunk: Chunk[str], now: float) -> None:
        offsets = [int(offset) for offset in chunk.offsets]
        assert offsets == sorted(set(offsets))
        assert chunk.items == [str(offset) for offset in offsets]
        for _, held, end in self.hands:
            again = set(offsets) & {int(offset) for offset in held.offsets}
            assert not again or (end <= now and chunk.epoch > held.epoch)
        for offset in offsets:
            assert chunk.epoch >= self.epochs.get(offset, 0)
            self.epochs[offset] = chunk.epoch
        if offsets:
            self.hands.append((member, chunk, now + 10))

    async def end(self, what: str, member: abc.Session[str], chunk: Chunk[str], end: float, share: int) -> None:
        before, ours = self.queue.statistics(), end > anyio.current_time()
        if what == "settle":
            told = await member.exchange([done(chunk)], max_items=0, max_bytes=None)
            fenced = {offset for offset in chunk.offsets if self.epochs[int(offset)] > chunk.epoch}
            gained = self.queue.statistics().settled - before.settled
            assert gained == len(chunk.items) if ours else gained <= len(chunk.items) - len(fenced)
            lost = {
                offset for each in (told.lost if told else ()) for offset in each.offsets if each.epoch == chunk.epoch
            }
            assert not (lost & set(chunk.offsets)) if ours else fenced <= lost | self.final()
        elif what == "retry":
            retries = [failed(chunk, int(offset), after=share - 1) for offset in chunk.offsets]
            await take(member, 0, Settlement(epoch=chunk.epoch, retries=retries))
            assert not ours or self.queue.statistics().in_hand == before.in_hand - len(retries)
        else:
            await member.give_back([in_hand(chunk)], refund=share % 2 == 0)
            assert not ours or self.queue.statistics().ready == before.ready + len(chunk.items)

    def final(self) -> set[int | str]:
        table = self.queue._table
        return {offset for offset in range(self.put - len(table.fresh)) if offset not in table.out}

    async def finish(self) -> None:
        self.queue.close()
        while True:
            await anyio.sleep(10)
            chunk = await self.members[0].exchange([], max_items=7, max_bytes=None)
            if chunk is None:
                break
            await self.members[0].exchange([done(chunk)], max_items=0, max_bytes=None)
        assert self.queue.statistics().settled == self.put


kinds = st.sampled_from(["put", "fetch", "fetch", "settle", "settle", "retry", "give back", "renew", "sleep"])


@settings(deadline=None)
@given(st.lists(st.tuples(kinds, st.integers(0, 5), st.integers(1, 12)), max_size=60))
def test_whatever_members_do_each_item_has_one_owner_and_becomes_final_once(steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        queue = queue_of(0, claim_seconds=10)
        async with sessions(queue, 3) as members:
            whole = _Run(queue, members)
            for step in steps:
                await whole.step(*step)
            await whole.finish()

    run_virtual(run, backend="asyncio")
