"""What waits for another attempt, and the pause of an outage."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest

import forebay
from forebay import EngineError, Retry
from forebay._batch import Batch
from forebay._batcher import Piece, Record
from forebay._buffer import Buffer
from forebay._waiting import Waiting
from forebay.testing import Pause, ScriptedSource

pytestmark = pytest.mark.anyio


class Exit:
    """Knows nothing of its items, and takes all back."""

    def __init__(self) -> None:
        self.given_up: list[tuple[object, float]] = []

    def scatter(self, batch: Batch) -> list[Piece]:
        return [Piece([item], positions=[0]) for piece in batch.pieces for item in piece.items]

    def failures_before(self, piece: Piece, index: int) -> int:
        return 2

    def give_up(self, piece: Piece, record: Record, delay: float) -> str:
        self.given_up.append((piece.items[0], delay))
        return "offset"


def waiting(**options: Any) -> Waiting:
    way_out: Any = Exit()
    return Waiting(exit=way_out, inbox=Buffer(100), rng=random.Random(1), **options)


def batch(*items: object) -> Batch:
    return Batch([Piece(list(items), 0, len(items))])


async def test_what_is_due_comes_back_in_the_order_of_time() -> None:
    one, two, three, queue = batch(1), batch(2), batch(3), waiting()
    back: list[tuple[float, list[Batch]]] = []

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.watch_due)
        await anyio.sleep(1)
        queue.schedule(one, 10.0)
        queue.schedule(two, 5.0)
        queue.schedule(three, 5.0)
        for moment in (5.9, 6.1, 11.1):
            await anyio.sleep(moment - (back[-1][0] if back else 1.0))
            back.append((moment, list(queue.again)))
        tasks.cancel_scope.cancel()

    assert back == [(5.9, []), (6.1, [two, three]), (11.1, [two, three, one])]
    assert queue.due == []


async def test_what_would_be_due_after_the_end_goes_back_at_once() -> None:
    queue = waiting()
    queue.schedule(batch("soon"), 5.0)
    queue.schedule(batch("late", "later"), 50.0)

    queue.drain(anyio.current_time() + 10)
    queue.schedule(batch("too late"), 11.0)
    queue.schedule(batch("in time"), 9.0)

    way_out: Any = queue.exit
    assert way_out.given_up == [("late", 50.0), ("later", 50.0), ("too late", 11.0)]
    assert [entry[2].items for entry in sorted(queue.due)] == [["soon"], ["in time"]]


async def test_a_pause_grows_while_calls_keep_finding_the_service_down() -> None:
    queue = waiting(retry=Retry(base=1.0, jitter="none"))
    lengths: list[float] = []

    for _ in range(3):
        began = anyio.current_time()
        queue.pause(EngineError("down"))
        queue.pause(EngineError("down"))  # a call that was under way when it began
        while queue.paused_until:
            await queue.wait_pause()
        lengths.append(anyio.current_time() - began)

    assert lengths == pytest.approx([1.0, 2.0, 4.0])
    assert queue.outages == 3


async def test_a_pause_without_a_policy_is_short_but_never_none() -> None:
    queue = waiting()

    queue.pause(EngineError("down"))

    assert 0.05 <= queue.paused_until - anyio.current_time() <= 1


async def test_a_record_counts_the_failures_of_earlier_runs_and_of_the_batch() -> None:
    queue, whole = waiting(), batch(1)
    whole.failures, whole.maybe_done = 3, True

    record = queue.record(whole.pieces[0], whole)

    assert (record.failures, record.maybe_done) == (5, True)
    assert queue.record(whole.pieces[0], whole) is record


async def test_what_was_cut_off_before_is_known_while_it_waits() -> None:
    queue = waiting()
    fresh, cut, one_cut = batch(1), batch(2), batch(3)
    cut.maybe_done = True
    one_cut.pieces[0].record = Record(maybe_done=True)

    queue.schedule(cut, 9.0)
    queue.again.extend([fresh, one_cut])

    assert queue.perhaps_done() == [cut, one_cut]


@pytest.mark.parametrize("error", [TimeoutError("busy"), EngineError("down", category="dependency")])
async def test_a_batch_that_was_taken_over_while_it_ran_is_not_run_again(error: Exception) -> None:
    source = ScriptedSource[int]([0, 1, Pause(0.1), 2, Pause(60), 3])
    batches: list[list[int]] = []

    async def store(items: list[int]) -> None:
        batches.append(list(items))
        if items[0] >= 2:
            await anyio.sleep(1)  # then it is settled, and the source tells of the loss
            return
        source.steal(0, 1)
        await anyio.sleep(5)
        raise error

    summary = await forebay.pipeline(source).map_batches(store, max_size=2, max_concurrency=2).run()

    assert batches == [[0, 1], [2], [3]]
    assert (summary.done, summary.lost_ownership) == (2, 2)
    assert not source.violations
