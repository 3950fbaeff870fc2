"""Ways for an item to leave a run that were once wrong: back to its source, past a drain, with another attempt due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import anyio
import pytest

import forebay
from forebay import Failed, Retry
from forebay._queue import _Session
from forebay.abc import DeadLetterFilter, Deliveries, Outcome, Redelivery
from forebay.testing import FakeDeadLetterStore, Pause, ScriptedSession, ScriptedSource

pytestmark = pytest.mark.anyio


class FailsFirst:
    """A sink in which the first attempt at some items fails, with a failure that may pass."""

    def __init__(self, *items: int) -> None:
        self.items = items
        self.attempts: Counter[int] = Counter()
        self.done: list[int] = []

    async def write(self, items: Sequence[int], /) -> Sequence[Outcome]:
        await anyio.lowlevel.checkpoint()
        self.attempts.update(items)
        outcomes: list[Outcome] = []
        for item in items:
            if item in self.items and self.attempts[item] == 1:
                outcomes.append(Failed(TimeoutError("busy")))
            else:
                self.done.append(item)
                outcomes.append(None)
        return outcomes


def queue_of(count: int, *, claim_seconds: float) -> forebay.MemoryQueue[int]:
    queue = forebay.MemoryQueue[int](claim_seconds=claim_seconds)
    queue.put_many(range(count))
    queue.close()
    return queue


async def test_a_run_ends_after_an_item_went_back_to_its_source_and_came_again() -> None:
    queue, sink = queue_of(3, claim_seconds=1), FailsFirst(1)
    recipe = forebay.pipeline(queue).map_batches(sink, max_size=10, retry=Retry(base=5, jitter="none"))

    with anyio.fail_after(100):
        summary = await recipe.run()

    assert sorted(sink.done) == [0, 1, 2]
    assert queue.statistics().settled == 3
    assert summary.clean


async def test_a_key_stays_in_order_though_its_head_waits_longer_than_half_a_claim() -> None:
    queue, sink = queue_of(4, claim_seconds=1), FailsFirst(0)
    recipe = (
        forebay.pipeline(queue)
        .key_by(lambda _: "one key")
        .map_batches(sink, max_size=10, retry=Retry(base=5, jitter="none"))
    )

    with anyio.move_on_after(100):
        await recipe.run()

    assert sink.done == [0, 1, 2, 3]


async def test_a_branch_that_is_done_does_not_get_the_item_again_when_the_other_sends_it_back() -> None:
    queue, quick, slow = queue_of(3, claim_seconds=1), FailsFirst(), FailsFirst(1)
    recipe = forebay.pipeline(queue, retry=Retry(base=5, jitter="none")).branch(
        lambda items: items.map_batches(quick, max_size=10), lambda items: items.map_batches(slow, max_size=10)
    )

    with anyio.move_on_after(100):
        await recipe.run()

    assert sorted(slow.done) == [0, 1, 2]
    assert sorted(quick.done) == [0, 1, 2]


async def test_a_drain_gives_back_a_batch_that_waits_as_a_whole_for_another_attempt() -> None:
    queue = queue_of(3, claim_seconds=600)

    async def fail(items: list[int]) -> None:
        raise TimeoutError("busy")

    recipe = forebay.pipeline(queue).map_batches(fail, max_size=10, retry=Retry(base=100, cap=100, jitter="none"))
    async with forebay.open_scope(drain_timeout=5) as scope:
        scope.start_soon(recipe.run)
        await anyio.sleep(1)
        scope.drain()

    assert queue.statistics().in_hand == 0


async def test_a_drain_while_children_of_one_item_wait_for_another_attempt_gives_the_item_back_once() -> None:
    queue = queue_of(2, claim_seconds=600)

    async def fail_some(items: list[tuple[int, int]]) -> Sequence[Outcome]:
        return [None if child == 1 else Failed(TimeoutError("busy")) for _, child in items]

    recipe = (
        forebay.pipeline(queue)
        .flat_map(lambda item: [(item, child) for child in range(3)])
        .map_batches(fail_some, max_size=2, retry=Retry(base=100, cap=100, jitter="none"))
    )
    summaries: list[forebay.Summary] = []

    async def run() -> None:
        summaries.append(await recipe.run())

    async with forebay.open_scope(drain_timeout=5) as scope:
        scope.start_soon(run)
        await anyio.sleep(1)
        scope.drain()

    assert queue.statistics().in_hand == 0
    assert [(summary.seen, summary.given_back) for summary in summaries] == [(2, 2)]


async def test_a_drain_does_not_wait_for_items_that_it_sent_back() -> None:
    queue = queue_of(1, claim_seconds=600)
    recipe = forebay.pipeline(queue).map_batches(
        FailsFirst(0), max_size=10, retry=Retry(base=100, cap=100, jitter="none")
    )
    summaries: list[forebay.Summary] = []

    async def run() -> None:
        summaries.append(await recipe.run())

    async with forebay.open_scope(drain_timeout=5) as scope:
        scope.start_soon(run)
        await anyio.sleep(1)
        drained = anyio.current_time()
        scope.drain()
    took = anyio.current_time() - drained

    assert took < 1
    assert [summary.clean for summary in summaries] == [True]


async def test_fetching_goes_on_after_max_gap_held_it_back() -> None:
    source = ScriptedSource(range(20))

    async def handle(item: int) -> int:
        await anyio.sleep(10 if item == 0 else 0.1)
        return item

    with anyio.fail_after(100):
        summary = await forebay.pipeline(source, max_gap=4).map(handle).run()

    assert summary.done == 20


async def test_an_item_cut_off_by_its_time_limit_comes_back_as_maybe_done_when_the_run_is_cancelled() -> None:
    source = ScriptedSource([1])

    async def hang(items: list[int]) -> None:
        await anyio.sleep_forever()

    with anyio.move_on_after(3):
        await (
            forebay.pipeline(source)
            .map_batches(hang, max_size=2, time_limit=1, retry=Retry(base=50, jitter="none"))
            .run()
        )

    assert [(list(given.offsets), given.maybe_done) for given, _ in source.given_back] == [([0], True)]


async def test_the_memory_queue_tells_the_next_attempt_that_a_cancelled_one_may_be_done() -> None:
    queue = queue_of(1, claim_seconds=30)
    told: list[bool] = []

    async def hang(items: list[int]) -> None:
        await anyio.sleep_forever()

    async def look(items: list[int]) -> None:
        told.append(forebay.current_batch().maybe_done)

    with anyio.move_on_after(3):
        await forebay.pipeline(queue).map_batches(hang, max_size=2).run()
    await forebay.pipeline(queue).map_batches(look, max_size=2).run()

    assert told == [True]


async def test_what_is_done_is_settled_even_if_the_source_refuses_what_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(self: object, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        raise ConnectionError("lost")

    monkeypatch.setattr(ScriptedSession, "give_back", refuse)
    source = ScriptedSource([0, 1, 2, 3])

    async def handle(item: int) -> int:
        await anyio.sleep(100 if item >= 2 else 0)
        return item

    with anyio.move_on_after(0.01):
        await forebay.pipeline(source).map(handle).run()

    assert source.unsettled == [2, 3]


async def test_a_renewal_that_fails_once_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    renewals: list[int] = []
    renew = _Session[int].renew

    async def stumble(self: _Session[int], failures: Sequence[Redelivery], /) -> list[Deliveries]:
        renewals.append(len(failures))
        if len(renewals) == 1:
            raise ConnectionError("lost")
        return await renew(self, failures)

    monkeypatch.setattr(_Session, "renew", stumble)
    queue = queue_of(4, claim_seconds=3)

    async def take_long(items: list[int]) -> None:
        await anyio.sleep(2)

    summary = await forebay.pipeline(queue).map_batches(take_long, max_size=2).run()

    assert len(renewals) > 1
    assert summary.done == 4


@pytest.mark.parametrize("failure", [TimeoutError("busy"), ValueError("bad")], ids=["another attempt", "dead letter"])
async def test_an_item_that_fails_after_another_member_took_it_over_does_not_end_the_run(failure: Exception) -> None:
    source = ScriptedSource[int]([0, 1, Pause(0.1), 2])
    letters = FakeDeadLetterStore()
    failed: list[int] = []

    async def handle(item: int) -> int:
        await anyio.sleep(10 if item == 2 else 1)
        if item == 1:
            source.steal(1)
            await anyio.sleep(2)  # meanwhile item 0 is settled, and the source tells of the loss
            failed.append(item)
            raise failure
        return item

    summary = await forebay.pipeline(source, dead_letters=letters).map(handle).run()

    assert failed[0] == 1
    assert (summary.done, summary.lost_ownership) == (2, 1)
    assert {letter.id.offset for letter in await letters.find(DeadLetterFilter(), limit=10)} <= {"1"}
    assert not source.violations


async def test_an_item_that_another_member_took_over_is_not_tried_again_here() -> None:
    source = ScriptedSource[int]([0, 1, Pause(0.1), 2])
    attempts: list[int] = []

    async def handle(item: int) -> int:
        attempts.append(item)
        await anyio.sleep(10 if item == 2 else 1)
        if item == 1:
            if attempts.count(1) == 1:
                source.steal(1)
            await anyio.sleep(2)
            raise TimeoutError("busy")
        return item

    await forebay.pipeline(source, dead_letters=FakeDeadLetterStore()).map(handle).run()

    assert attempts.count(1) == 1


async def test_a_handler_may_ask_where_it_is_after_another_member_took_the_item_over() -> None:
    source = ScriptedSource[int]([0, 1, Pause(0.1), 2])
    told: list[forebay.BatchContext] = []

    async def handle(item: int) -> int:
        await anyio.sleep(10 if item == 2 else 1)
        if item == 1:
            source.steal(1)
            await anyio.sleep(2)
            told.append(forebay.current_batch())
        return item

    await forebay.pipeline(source).map(handle).run()

    assert [context.parts[0].offsets for context in told] == [[1]]
