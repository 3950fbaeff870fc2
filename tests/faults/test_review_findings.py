"""What a review with fresh eyes found: orders, ends and accounts that were wrong in corners of a run."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

import forebay
from forebay import Again, ForebayError, Retry, current_batch
from forebay._account import FeedLedger, Hold
from forebay._ledger import Ledger
from forebay.abc import Chunk, DeadLetter, Deliveries, Member, Outcome, Redelivery, Settlement
from forebay.testing import FakeDeadLetterStore, FakeSink, ScriptedSource, run_virtual

pytestmark = pytest.mark.anyio


class DownError(Exception):
    """What lies behind the handler does not answer."""

    category = "dependency"


class ClaimedSource:
    """Hands items out with claims of a minute; those that went back come again when they are due.

    Args:
        items: What is there from the start.
        later: Items that are there after so many seconds.
        elsewhere: An item that another member finishes once it went back.
        waits: What the first, second, … wait for items fails with.
        back_seconds: How long giving back takes.
    """

    claim_seconds: float | None = 60.0

    def __init__(
        self,
        items: Sequence[str],
        *,
        later: Sequence[tuple[float, str]] = (),
        elsewhere: str | None = None,
        waits: Sequence[Exception] = (),
        back_seconds: float = 0.0,
    ) -> None:
        self.items = [*items, *(item for _, item in later)]
        self.given_back: list[Deliveries] = []
        self._coming = [(0.0, offset) for offset in range(len(items))]
        self._coming += [(seconds, len(items) + index) for index, (seconds, _) in enumerate(later)]
        self._elsewhere = elsewhere
        self._waits = list(waits)
        self._back_seconds = back_seconds
        self._final: set[object] = set()

    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[ClaimedSource]:
        now = anyio.current_time()
        self._coming = [(now + seconds, offset) for seconds, offset in self._coming]
        yield self

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[str] | None:
        await anyio.sleep(0.001)
        now = anyio.current_time()
        for one in settled:
            self._final.update(one.offsets)
            for retry in one.retries:
                assert isinstance(retry.offset, int)
                if self.items[retry.offset] == self._elsewhere:
                    self._final.add(retry.offset)
                else:
                    self._coming.append((now + retry.after, retry.offset))
        if len(self._final) == len(self.items):
            return None
        taken = sorted(entry for entry in self._coming if entry[0] <= now)[:max_items]
        self._coming = [entry for entry in self._coming if entry not in taken]
        offsets = [offset for _, offset in taken]
        return Chunk([self.items[offset] for offset in offsets], offsets, epoch=1)

    async def wait_ready(self) -> None:
        await anyio.sleep(0.05)
        if self._waits:
            raise self._waits.pop(0)

    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        await anyio.sleep(self._back_seconds)
        self.given_back += deliveries

    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        await anyio.lowlevel.checkpoint()
        return []

    async def lag(self) -> int | None:
        await anyio.lowlevel.checkpoint()
        return None


class SlowLetters(FakeDeadLetterStore):
    """A store that takes a second to put something away."""

    async def put(self, records: Sequence[DeadLetter], /) -> None:
        await anyio.sleep(1)
        await super().put(records)


async def drained_after(
    seconds: float, recipe: forebay.ClosedPipeline | forebay.Pipeline[None], *, within: float
) -> forebay.Summary:
    """Run *recipe*, drain it after so many seconds, and return its summary."""
    summaries: list[forebay.Summary] = []

    async def run() -> None:
        summaries.append(await recipe.run(drain_timeout=within))

    async with forebay.open_scope(drain_timeout=within) as scope:
        scope.start_soon(run)
        await anyio.sleep(seconds)
        scope.drain()
    return summaries[0]


# --- Keys ----------------------------------------------------------------------------------------


async def test_a_key_does_not_wait_for_an_item_that_went_back_and_was_done_elsewhere() -> None:
    source, done = ClaimedSource(["A1"], later=[(100, "A2")], elsewhere="A1"), list[str]()

    async def store(items: list[str]) -> Sequence[Outcome]:
        if items == ["A1"]:
            return [Again(after=40)]
        done.extend(items)
        return [None] * len(items)

    with anyio.fail_after(1000):
        await forebay.pipeline(source).key_by(lambda item: item[0]).map_batches(store, max_size=10).run()

    assert done == ["A2"]


async def test_a_head_that_went_back_out_of_a_batch_taken_apart_does_not_hold_its_key_for_ever() -> None:
    source, calls, done = ClaimedSource(["A1", "A2", "B1"]), list[list[str]](), list[str]()

    async def store(items: list[str]) -> Sequence[Outcome]:
        calls.append(items)
        if len(items) > 1:
            raise ValueError("one of them")
        if items == ["A1"] and calls.count(["A1"]) == 1:
            return [Again(after=40)]
        done.extend(items)
        return [None]

    recipe = forebay.pipeline(source).key_by(lambda item: item[0]).map_batches(store, max_size=10, in_order=True)
    with anyio.fail_after(1000):
        await recipe.run()

    assert done == ["B1", "A1", "A2"]


# --- Sources -------------------------------------------------------------------------------------


async def test_what_waits_in_one_source_does_not_use_up_the_gap_of_another() -> None:
    slow, quick, attempts = ScriptedSource(["slow"]), ScriptedSource([str(n) for n in range(100)]), list[str]()

    async def store(items: list[str]) -> Sequence[Outcome]:
        attempts.extend(items)
        return [Again(after=5) if item == "slow" and attempts.count(item) == 1 else None for item in items]

    with anyio.fail_after(100):
        summary = await forebay.pipeline(slow, quick, max_gap=10).map_batches(store, max_size=5).run()

    assert (summary.done, summary.seconds) == (101, 5)


async def test_a_wait_for_items_that_fails_in_passing_does_not_end_the_run() -> None:
    source = ClaimedSource(["A1"], later=[(10, "A2")], waits=[ConnectionError("down for a moment")])
    sink = FakeSink[str]()

    await forebay.pipeline(source).map_batches(sink, max_size=10).run()

    assert sink.written == ["A1", "A2"]


async def test_a_source_that_is_stuck_does_not_keep_another_from_getting_its_items_back() -> None:
    stuck, other, sink = ClaimedSource(["A1"], back_seconds=100), ClaimedSource(["B1"]), FakeSink[str](latency=1000)

    with anyio.move_on_after(3):
        await forebay.pipeline(stuck, other).map_batches(sink, max_size=10, max_concurrency=3).run()

    assert [list(one.offsets) for one in other.given_back] == [[0]]


async def test_what_an_async_generator_had_been_asked_for_ahead_is_handled_by_a_drained_run() -> None:
    taken, sink = list[int](), FakeSink[int](latency=1)

    async def numbers() -> AsyncGenerator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number
            if number % 10 == 0:
                await anyio.sleep(0.01)

    summary = await drained_after(20, forebay.pipeline(numbers()).map_batches(sink, max_size=10), within=1000)

    assert summary.clean
    assert sink.written == taken


# --- Items that another member took over ---------------------------------------------------------


async def test_items_lost_while_a_handler_has_those_that_a_filter_left_are_all_lost_once() -> None:
    source = ScriptedSource(range(10))

    async def store(items: list[int]) -> None:
        source.steal(*source.in_hand)
        await anyio.sleep(1)

    recipe = forebay.pipeline(source).filter(lambda item: item % 2 == 1).map_batches(store, max_size=100)
    with anyio.fail_after(100):
        summary = await recipe.run()

    assert (summary.seen, summary.lost_ownership, summary.done) == (10, 10, 0)


async def test_chunks_of_lost_items_are_let_go_when_no_handler_has_them_any_more() -> None:
    source, before, live = ScriptedSource(range(1000), latency=0.001), count_holds(), list[int]()

    async def store(items: list[int]) -> None:
        source.steal(*source.in_hand)
        await anyio.sleep(0.1)
        if 500 in items:
            live.append(count_holds() - before)

    await forebay.pipeline(source).map_batches(store, max_size=10, capacity=10).run()

    assert live == [pytest.approx(3, abs=3)]


def count_holds() -> int:
    gc.collect()
    return sum(type(one) is Hold for one in gc.get_objects())


async def test_an_item_lost_from_a_later_chunk_is_not_open_while_an_older_chunk_is_in_hand() -> None:
    ledger, feed = Ledger(on_final=lambda hold, count: None, on_empty=lambda: None), FeedLedger("orders")
    ledger.register(2, feed, 0.0, Chunk[object]([0, 1], range(2)))
    lost = ledger.register(1, feed, 0.0, Chunk[object]([2], range(2, 3)))

    ledger.lost_holds[lost.base] = lost
    ledger.settle(2, 3, 0, "lost")

    assert [ledger.is_open(position) for position in range(3)] == [True, True, False]


# --- Calls ---------------------------------------------------------------------------------------


def test_a_handler_cancelled_from_inside_ends_the_run_with_an_error_that_says_so() -> None:
    calls: list[int] = []

    async def store(items: list[int]) -> None:
        calls.append(len(items))
        if len(calls) == 3:
            task = asyncio.ensure_future(asyncio.sleep(1))
            task.cancel()  # as somebody else would
            await task

    async def run() -> None:
        await forebay.pipeline(range(100)).map_batches(store, max_size=10).run()

    with pytest.raises(ForebayError, match="was cancelled from inside"):
        run_virtual(run, backend="asyncio")


@pytest.mark.parametrize("keeps_account", [False, True])
async def test_a_batch_keeps_to_its_bytes_when_its_handler_waits_for_nothing(keeps_account: bool) -> None:
    source, heaviest = [2] * 5000, list[int]([0])

    async def store(items: list[int]) -> None:
        heaviest[0] = max(heaviest[0], sum(items))

    recipe = forebay.pipeline(ScriptedSource(source, weigh=int) if keeps_account else source)
    await recipe.map_batches(store, max_size=50, max_bytes=10, weigh=int).run()

    assert heaviest == [10]


async def test_current_batch_does_not_answer_in_a_map_before_the_first_stage() -> None:
    refused: list[str] = []

    def ask(item: int) -> int:
        try:
            current_batch()
        except RuntimeError as error:
            refused.append(str(error))
        return item

    await forebay.pipeline(range(200)).map(ask).map_batches(FakeSink[int](), max_size=1).run()

    assert len(refused) == 200


async def test_an_outage_pauses_a_batch_that_is_being_taken_apart() -> None:
    calls: list[float] = []

    async def store(items: list[int]) -> None:
        if len(items) > 1:
            raise ValueError("one of them")
        calls.append(anyio.current_time())
        raise DownError

    with anyio.move_on_after(0.04):  # a pause takes 0.05 at least
        await forebay.pipeline(ScriptedSource(range(500), endless=True)).map_batches(store, max_size=500).run()

    assert len(calls) == 1


async def test_a_batch_that_was_cut_off_is_given_back_as_maybe_done_by_a_run_that_ends_in_an_outage() -> None:
    source, calls = ScriptedSource(range(3), endless=True), list[int]()

    async def store(items: list[int]) -> None:
        calls.append(len(items))
        if len(calls) == 1:
            await anyio.sleep(10)
        raise DownError

    retry = Retry(base=0.01, on=["transient", "poison"])
    with anyio.move_on_after(30):
        await forebay.pipeline(source).map_batches(store, max_size=10, time_limit=1, retry=retry).run()

    assert len(calls) > 2
    assert [(list(one.offsets), one.maybe_done) for one, _ in source.given_back] == [([0, 1, 2], True)]


# --- Batches that the pump runs itself -----------------------------------------------------------


class Quick:
    """A handler that takes no time, and notes in which task each call ran and which offsets `current_batch` named.

    Args:
        slow: The item whose call waits, for so many seconds.
        bad: The items whose calls fail.
    """

    def __init__(self, *, slow: tuple[int, float] = (-1, 0), bad: range = range(0)) -> None:
        self.tasks: list[str] = []
        self.offsets: list[object] = []
        self.items: list[int] = []
        self.slow_task = ""
        self.max_concurrency = 0
        self._slow, self._bad = slow, bad
        self._running = 0

    async def __call__(self, items: list[int]) -> None:
        self.tasks.append(anyio.get_current_task().name or "")
        self.offsets += [offset for part in current_batch().parts for offset in part.offsets]
        self._running += 1
        self.max_concurrency = max(self.max_concurrency, self._running)
        try:
            await self._wait(items)
        finally:
            self._running -= 1
        if any(item in self._bad for item in items):
            raise ValueError("one of them")
        self.items += items

    async def _wait(self, items: list[int]) -> None:
        if "_pump" in self.tasks[-1]:
            await anyio.lowlevel.checkpoint()  # the worker may run meanwhile, and must not start a call
        if self._slow[0] in items:
            self.slow_task = self.tasks[-1]
            await anyio.sleep(self._slow[1])

    @property
    def direct(self) -> int:
        """How many calls a pump made."""
        return sum("_pump" in task for task in self.tasks)


# A capacity of one batch keeps the queue empty between calls, however fast this machine is.


def numbers_from(kind: str, count: int) -> forebay.Pipeline[int]:
    return forebay.pipeline(range(count) if kind == "iterable" else ScriptedSource(range(count)))


kinds = pytest.mark.parametrize("kind", ["iterable", "scripted"])


@kinds
async def test_a_handler_that_waits_for_nothing_is_run_by_the_pump(kind: str) -> None:
    handler = Quick()

    summary = await numbers_from(kind, 5000).map_batches(handler, max_size=10, capacity=10).run()

    assert handler.direct > len(handler.tasks) / 2
    assert handler.max_concurrency == 1
    assert handler.items == list(range(5000))
    assert handler.offsets == handler.items
    assert (summary.done, summary.clean) == (5000, True)


@kinds
async def test_more_calls_than_one_in_flight_are_left_to_the_workers(kind: str) -> None:
    handler = Quick()

    await numbers_from(kind, 5000).map_batches(handler, max_size=10, capacity=10, max_concurrency=2).run()

    assert handler.direct == 0


async def test_the_pump_runs_no_batch_while_the_worker_sets_items_of_another_aside() -> None:
    handler, letters = Quick(bad=range(2000, 2002), slow=(2002, 3)), SlowLetters()

    async def numbers() -> AsyncGenerator[int]:
        for number in range(2006):
            if number == 2002:
                await anyio.sleep(0.5)  # so that the two before it are a batch of their own
            yield number

    recipe = forebay.pipeline(numbers()).map_batches(handler, max_size=4, capacity=4, dead_letters=letters)
    summary = await recipe.run()

    assert handler.direct > 0
    assert handler.max_concurrency == 1
    assert (summary.done, summary.dead) == (2004, 2)


@kinds
async def test_a_drain_lets_a_call_of_the_pump_that_waits_for_once_come_to_its_end(kind: str) -> None:
    handler = Quick(slow=(1995, 3))
    began = anyio.current_time()

    recipe = numbers_from(kind, 1_000_000 if kind == "iterable" else 5000).map_batches(
        handler, max_size=10, capacity=10
    )
    summary = await drained_after(1, recipe, within=10)

    assert "_pump" in handler.slow_task
    assert anyio.current_time() - began == pytest.approx(3, abs=0.1)
    assert handler.items == list(range(summary.done))
    assert summary.clean


@kinds
async def test_a_drain_cuts_off_a_call_of_the_pump_that_waits_too_long(kind: str) -> None:
    handler = Quick(slow=(1995, 1000))
    began = anyio.current_time()

    summary = await drained_after(1, numbers_from(kind, 5000).map_batches(handler, max_size=10, capacity=10), within=5)

    assert "_pump" in handler.slow_task
    assert 4 < anyio.current_time() - began <= 6
    assert handler.items == list(range(summary.done))
    assert summary.given_back > 0
