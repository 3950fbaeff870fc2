"""One function over batches: its calls, and the outcome of each item."""

from __future__ import annotations

import heapq
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import cast

import anyio
import anyio.lowlevel
from attrs import define, field

from forebay._batch import Batch, Dead, Exit
from forebay._batcher import Piece, Record
from forebay._buffer import Buffer
from forebay._errors import BatchFailed, BatchSizeError, HandlerContractError, RetryExhaustedError, TimeLimitError
from forebay._handler import OUTCOMES, BatchContext, Call, returned_coroutine, set_context
from forebay._lanes import Lanes
from forebay._metrics import StageMetrics
from forebay._retry import Retry
from forebay._types import Again, BatchInfo, Category, Dropped, Failed, Failure
from forebay._watch import SLICE_SECONDS

DIRECT_SECONDS = 0.0001
"""Calls that take less do not wait for anything."""

_logger = logging.getLogger("forebay")


@define(eq=False, kw_only=True)
class Stage:
    """A stage of one run: its queue, its workers' loop, and what waits for another attempt."""

    pipeline: str
    name: str
    call: Call
    exit: Exit
    inbox: Buffer[Piece]
    max_size: int
    max_bytes: int | None = None
    max_concurrency: int = 1
    retry: Retry | None = None
    idempotent: bool = False
    last: bool = True
    """Whether nothing follows, so that the handler may return `None`."""
    hands_out: bool = False
    """Whether the last results go to callers that wait for them; otherwise they are thrown away."""
    per_item: bool = False
    splits: bool = True
    """Whether a batch that failed without a word about which item is taken apart."""
    lanes: Lanes | None = None
    max_waiting: int = 10_000
    """Batches that may wait for another attempt before the stage takes no new ones."""
    batch_done: Callable[[BatchInfo], None] | None = None
    ask: Callable[[Failure], Category]
    source: str = ""
    clock: Callable[[], float] = anyio.current_time
    """For measuring only."""
    rng: random.Random = field(factory=random.Random)
    metrics: StageMetrics = field(factory=StageMetrics)
    running: dict[Batch, None] = field(factory=dict[Batch, None])
    """Batches whose handler has been called and whose items have no outcome yet."""
    idle: Callable[[], None] | None = None
    """Called when no batch is running any more."""
    in_flight: int = 0
    end: float = math.inf
    """Time of the loop's clock after which nothing is tried again, because the run drains."""
    _due: list[tuple[float, int, Batch]] = field(factory=list[tuple[float, int, Batch]])
    _due_changed: anyio.Event | None = None
    _again: deque[Batch] = field(factory=deque[Batch])
    _paused_until: float = 0.0
    _outages: int = 0
    _sequence: int = 0
    _advised: bool = False
    _occupied: bool = False
    """Whether a pump runs a batch itself."""
    _call_seconds: float = 0.001
    """Length of a call, as the last ones went."""
    _mean_item: float = 1.0
    """Smoothed seconds of one item, for handlers of single items."""

    # --- Taking ---------------------------------------------------------------------------------

    async def work(self) -> None:
        """Run batches until the inbox is closed. As many tasks run this as calls may be in flight."""
        slot: list[Batch] = []  # the one batch that this worker runs
        self.describe_in(slot)
        last_yield = perf_counter()
        inbox = self.inbox
        others = self.max_concurrency > 1
        now: float | None = None  # still true when no other task has run since the last call ended
        while True:
            batch = None if self._occupied else self._next_batch()
            if batch is None:
                if inbox.closed:
                    return
                await inbox.wait_parts()
                last_yield = perf_counter()
                now = None
                continue
            if others:
                inbox.pass_on()
            if self._paused_until:
                self._again.appendleft(batch)  # where a run that is cut off meanwhile finds it
                await self._wait_pause()
                now = None
                continue
            batch.slot = slot
            now = await self.process(batch, now)
            del batch  # freed now, while it is warm
            if self.idle is not None and not self.running:
                self.idle()
            if perf_counter() - last_yield > SLICE_SECONDS:
                await anyio.lowlevel.checkpoint()
                last_yield = perf_counter()
                now = None

    def _next_batch(self) -> Batch | None:
        """Return what a free worker does next: as much as has gathered, up to the limits."""
        while self._again:
            batch = self._still_ours(self._again.popleft())
            if batch.items:
                return batch
        if len(self._due) >= self.max_waiting:
            return None  # enough waits for another attempt; what is due wakes a worker
        if self.lanes is not None:
            return self._next_in_lanes(self.lanes)
        pieces = self.inbox.take_nowait(self._size_now() if self.per_item else self.max_size, self.max_bytes)
        if len(pieces) > 1:
            pieces = self._without_loners(pieces)
        return Batch(pieces) if pieces else None

    def _still_ours(self, batch: Batch) -> Batch:
        """Take those items out of *batch* that another member has taken over while they waited."""
        if all(self.exit.is_ours(piece) for piece in batch.pieces):
            return batch
        singles = self.exit.scatter(batch)
        self._release(batch)
        batch.pieces = [single for single in singles if self.exit.is_ours(single)]
        batch.items = [item for single in batch.pieces for item in single.items]
        return batch

    def _without_loners(self, pieces: list[Piece]) -> list[Piece]:
        """Put what has to run alone into batches of its own."""
        loners = [piece for piece in pieces if _is_alone(piece)]
        self._again.extend(Batch([piece]) for piece in loners)
        return [piece for piece in pieces if piece not in loners] or self._again.pop().pieces if loners else pieces

    def _size_now(self) -> int:
        """Return how many items a worker takes that handles them one by one.

        One, so that all workers have something to do; several only where an item takes so little time that
        handing it over would cost more.
        """
        share = self.inbox.held // (2 * self.max_concurrency)
        return max(1, min(self.max_size, share, int(0.001 / self._mean_item) if self._mean_item else 1))

    def _next_in_lanes(self, lanes: Lanes) -> Batch | None:
        owned: set[str] = set()
        limit = self._size_now() if self.per_item else self.max_size
        pieces = lanes.take_ready(limit, owned, self._fitting)
        room = limit - sum(len(piece.items) for piece in pieces)
        if pieces and _is_alone(pieces[-1]):
            room = 0
        while room > 0 and lanes.waiting <= lanes.max_waiting:
            taken = self._take_beside(pieces, room)
            if not taken:
                break
            for piece in taken:
                self.exit.listed(piece)
                chosen = lanes.choose(piece, owned)
                if chosen is None:
                    continue
                if pieces and (_is_alone(chosen) or _is_alone(pieces[-1])):
                    self._again.append(Batch([chosen]))
                else:
                    pieces.append(chosen)
                    room = 0 if _is_alone(chosen) else room - len(chosen.items)
        return Batch(pieces) if pieces else None

    def _take_beside(self, pieces: Sequence[Piece], room: int) -> list[Piece]:
        """Take what fits into a batch that has *pieces* already."""
        weigh, max_bytes = self.inbox.weigh, self.max_bytes
        if weigh is None or max_bytes is None:
            return self.inbox.take_nowait(room, None)
        room_bytes = max_bytes - sum(weigh(item) for piece in pieces for item in piece.items)
        parts = self.inbox.parts
        if pieces and parts and weigh(parts[0].items[0]) > room_bytes:
            return []
        return self.inbox.take_nowait(room, max(room_bytes, 1))

    def _fitting(self, taken: Sequence[Piece], piece: Piece) -> int:
        """Return how many of the items of *piece* fit into a batch beside *taken*; one that is too large goes alone."""
        weigh, max_bytes = self.inbox.weigh, self.max_bytes
        if weigh is None or max_bytes is None:
            return len(piece.items)
        room = max_bytes - sum(weigh(item) for other in taken for item in other.items)
        for index, item in enumerate(piece.items):
            room -= weigh(item)
            if room < 0:
                return 1 if not taken and index == 0 else index
        return len(piece.items)

    async def _wait_pause(self) -> None:
        await anyio.sleep(max(0.0, self._paused_until - anyio.current_time()))
        if self._paused_until <= anyio.current_time():
            self._paused_until = 0.0

    # --- Calling --------------------------------------------------------------------------------

    def is_busy(self) -> bool:
        """Return whether anything runs here or waits, for whatever reason."""
        if self.running or self._again or self._due or self.inbox.parts:
            return True
        return self.lanes is not None and bool(self.lanes.waiting or self.lanes.ready)

    def takes_directly(self) -> bool:
        """Return whether a pump may run its batch itself instead of handing it to the worker.

        That is so while calls do not wait for anything, so that there is nothing to gain from a second task:
        the batch is freed while it is in the processor's cache, and no switch is paid.
        """
        return (
            self._call_seconds < DIRECT_SECONDS
            and not self.running  # not just in flight: between two calls a worker may wait for a store
            and not (self.inbox.parts or self._again or self._due or self._paused_until)
        )

    async def run_directly(self, batch: Batch, slot: list[Batch]) -> None:
        """Run *batch* in the task of the pump, while the worker starts nothing."""
        self._occupied = True
        try:
            batch.slot = slot
            self.inbox.total += len(batch.items)
            await self.process(batch)
        finally:
            self._occupied = False
            if self._again:
                self.inbox.wake_one()
        if self.idle is not None and not self.running:
            self.idle()

    def describe_in(self, slot: list[Batch]) -> None:
        """Let `current_batch` answer in this task with the batch in *slot*."""
        set_context(lambda: self._describe(slot[0]) if slot else None)

    async def process(self, batch: Batch, started: float | None = None) -> float:
        """Call the handler with *batch* and give every item its outcome; return the time when the call ended.

        Cancelled: the batch stays in `running`; its items have no outcome and are for the run to give back.
        """
        count = len(batch.items)
        started = self.clock() if started is None else started
        self.running[batch] = None
        self.in_flight += 1
        slot = batch.slot
        if slot is not None:
            slot[:] = (batch,)
        if self.lanes is not None:
            batch.held = set()
        error: Exception | None = None
        results: object = None
        try:
            results = await self.call(batch.items)
        except Exception as raised:
            error = raised
        finally:
            self.in_flight -= 1
        ended = self.clock()
        seconds = ended - started
        self.metrics.call_ended(count, seconds, started - batch.since)
        if self.per_item:
            self._mean_item += 0.2 * (seconds / count - self._mean_item)
        # Rises at once and falls slowly: one call that waits is reason enough to use the workers.
        usual = self._call_seconds
        self._call_seconds = seconds if seconds > usual else 0.5 * (usual + seconds)
        outcomes: Sequence[object] | None = None
        if error is not None or results is not None or not self.last or self.hands_out:
            try:
                outcomes = self._check(results, count) if error is None else self._attributed(error, count)
            except HandlerContractError as broken:
                if not self.hands_out:
                    raise
                error, outcomes = broken, None  # the callers are told; others go on
            batch.error = None if isinstance(error, BatchFailed) else error
        if self.batch_done is not None:
            self.batch_done(self._info(batch, outcomes, error, started, seconds))
        if error is not None and outcomes is None:
            await self._failed_whole(batch, error)
        elif outcomes is None:
            self._outages = 0
            self.metrics.done += count
            self.exit.finish(batch.pieces, ended)
            if self.lanes is not None:
                self._release(batch)
        elif OUTCOMES.isdisjoint(map(type, outcomes)):
            self._outages = 0
            self.metrics.done += count
            await self._pass_on(batch, outcomes, ended)
        else:
            await self._settle_each(batch, outcomes, ended)
        del self.running[batch]
        self.exit.ended(batch)
        if slot is not None:
            slot.clear()
        return ended

    def _check(self, results: object, count: int) -> Sequence[object] | None:
        """Return the results, one for each item; `None` for a sink whose items are all done."""
        if results is None:
            if not self.last or self.hands_out:
                who = "the callers wait for" if self.hands_out else "a later stage needs"
                raise HandlerContractError(
                    f"{self.name}() returned None for {_items(count)}, but {who} results; "
                    f"return one result for each item, in order"
                )
            return None
        if type(results) is not list and (isinstance(results, (str, bytes)) or not isinstance(results, Sequence)):
            if hasattr(results, "__await__"):
                getattr(results, "close", lambda: None)()
                raise HandlerContractError(returned_coroutine(self.name))
            raise HandlerContractError(
                f"{self.name}() returned {type(results).__name__} for {_items(count)}; "
                f"return a list with one result for each item, in order, or None from a sink"
            )
        answers = cast("Sequence[object]", results)
        if len(answers) != count:
            raise BatchSizeError(
                f"{self.name}() got {_items(count)} and returned {len(answers)} "
                f"{'result' if len(answers) == 1 else 'results'}; return one result for each item, in order"
            )
        return answers

    def _attributed(self, error: Exception, count: int) -> Sequence[object] | None:
        """Return the outcomes where the handler has said which items failed."""
        if isinstance(error, HandlerContractError):
            raise error
        if not isinstance(error, BatchFailed):
            return [Failed(error)] if count == 1 else None
        wrong = [index for index in error.failures if not 0 <= index < count]
        if wrong:
            raise HandlerContractError(
                f"{self.name}() got {_items(count)} and raised BatchFailed with index {wrong[0]!r}; "
                f"use the item's place in the batch, from 0"
            ) from error
        if not self.last and len(error.failures) < count:
            raise HandlerContractError(
                f"{self.name}() raised BatchFailed, which has no results for the items that succeeded; "
                f"a later stage needs them: return Failed(error) in the place of each item that failed"
            ) from error
        return [Failed(error.failures[index]) if index in error.failures else None for index in range(count)]

    def _info(
        self,
        batch: Batch,
        outcomes: Sequence[object] | None,
        error: Exception | None,
        started: float,
        seconds: float,
    ) -> BatchInfo:
        count = len(batch.items)
        failed = count if error is not None and outcomes is None else 0
        dropped = 0
        if outcomes is not None and not OUTCOMES.isdisjoint(map(type, outcomes)):
            failed = sum(type(outcome) in (Failed, Again) for outcome in outcomes)
            dropped = sum(type(outcome) is Dropped for outcome in outcomes)
        return BatchInfo(
            pipeline=self.pipeline,
            stage=self.name,
            batch_id=batch.id,
            size=count,
            done=count - failed - dropped,
            failed=failed,
            dropped=dropped,
            seconds=seconds,
            waited=started - batch.since,
            attempt=batch.failures + 1,
            started_at=started,
            error=error,
        )

    async def _pass_on(self, batch: Batch, results: Sequence[object], now: float) -> None:
        if self.last:
            self.exit.finish(_matched(batch.pieces, results) if self.hands_out else batch.pieces, now)
        else:
            await self.exit.forward(_matched(batch.pieces, results))
        self._release(batch)

    def _release(self, batch: Batch) -> None:
        """Let the next items of the batch's keys run."""
        if self.lanes is not None and not batch.is_part:
            self._release_keys(self.lanes, batch.keys())

    def _release_keys(self, lanes: Lanes, keys: set[str]) -> None:
        if lanes.release(keys) or lanes.waiting <= lanes.max_waiting:
            self.inbox.wake_one()

    # --- Outcomes other than success ------------------------------------------------------------

    async def _settle_each(self, batch: Batch, outcomes: Sequence[object], now: float) -> None:
        """Give each item the outcome that the handler named."""
        singles = self.exit.scatter(batch)
        if self.lanes is not None and self.lanes.in_order:
            singles, outcomes = self._reached(self.lanes, singles, outcomes)
        good: list[Piece] = []
        good_results: list[Piece] = []
        dead: list[Dead] = []
        held: set[str] = set()  # keys with an item that waits for another attempt
        for single, outcome in zip(singles, outcomes, strict=True):
            if type(outcome) in OUTCOMES and not self.exit.is_ours(single):
                continue  # another member has it; what becomes of it is told there
            if isinstance(outcome, Failed):
                self._failed(single, batch, outcome.error, dead, held)
            elif isinstance(outcome, Again):
                self._again_after(single, batch, outcome, dead, held)
            elif isinstance(outcome, Dropped):
                self.metrics.dropped += 1
                self.exit.drop(single, outcome.reason)
            else:
                good.append(single)
                good_results.append(single.like([outcome]))
        self.metrics.done += len(good)
        if good:
            if self.last:
                self.exit.finish(good_results if self.hands_out else good, now)
            else:
                await self.exit.forward(good_results)
        await self._bury(dead, batch, held)

    async def _bury(self, dead: list[Dead], batch: Batch, held: set[str]) -> None:
        """Set *dead* aside; let the keys of *batch* go on, those of the dead when they are buried."""
        batch.held = batch.held | held
        lanes = None if batch.is_part else self.lanes
        buried = {key for one in dead for key in one.piece.keys or ()} - held
        if lanes is not None:
            self._release_keys(lanes, batch.keys() - held - buried)
        if dead:
            await self.exit.set_aside(dead, batch)
            self.metrics.dead += len(dead)
            if lanes is not None:
                self._release_keys(lanes, buried)

    def _reached(
        self, lanes: Lanes, singles: Sequence[Piece], outcomes: Sequence[object]
    ) -> tuple[list[Piece], list[object]]:
        """Put the items of a key behind the first one that failed back into its lane; return the others."""
        failed: set[str] = set()
        back: list[Piece] = []
        kept: list[tuple[Piece, object]] = []
        for single, outcome in zip(singles, outcomes, strict=True):
            key = single.key(0)
            if type(outcome) in (Failed, Again) and key is not None:
                if key in failed:
                    back.append(single)
                    continue
                failed.add(key)
            kept.append((single, outcome))
        lanes.put_back(back)
        return [single for single, _ in kept], [outcome for _, outcome in kept]

    def _failed(self, single: Piece, batch: Batch, error: BaseException, dead: list[Dead], held: set[str]) -> None:
        """Decide about one item that failed: another attempt, or out."""
        record = self.record(single, batch)
        category = self.ask(Failure(error, self.name, self.source, record.failures + 1))
        self.metrics.failed += 1
        if category is Category.DEPENDENCY:
            self._pause(error)
            self._later(single, record, self._paused_until - anyio.current_time(), error, held)
            return
        record.failures += 1
        record.maybe_done = record.maybe_done or isinstance(error, TimeLimitError)
        if self.retry is not None and self.retry.allows(record.failures, category):
            record.delay = self.retry.delay(record.failures, error, record.delay, self.rng)
            self.metrics.retried += 1
            self._later(single, record, record.delay, error, held)
        else:
            dead.append(Dead(single, error, category, record.failures))

    def _again_after(self, single: Piece, batch: Batch, outcome: Again, dead: list[Dead], held: set[str]) -> None:
        record = self.record(single, batch)
        record.failures += 1
        self.metrics.failed += 1
        if self.retry is not None and record.failures < self.retry.max_attempts:
            self.metrics.retried += 1
            error = RetryExhaustedError(f"{self.name}() asked for another attempt")
            self._later(single, record, outcome.after, error, held)
        else:
            reason = "no retry= was given" if self.retry is None else f"{self.retry.max_attempts} attempts were made"
            exhausted = RetryExhaustedError(f"{self.name}() asked for another attempt of an item, but {reason}")
            dead.append(Dead(single, exhausted, Category.TRANSIENT, record.failures))

    def record(self, single: Piece, batch: Batch) -> Record:
        """Return what is remembered of a single item of *batch*."""
        record = single.record
        if record is None:
            failures = self.exit.failures_before(single, 0) + batch.failures
            record = single.record = Record(failures=failures, maybe_done=batch.maybe_done)
        return record

    def _later(self, single: Piece, record: Record, delay: float, error: BaseException, held: set[str]) -> None:
        """Run one item again after *delay* seconds, here or wherever its source hands it out next."""
        held.update(single.keys or ())
        offset = self.exit.send_back(single, record, delay, error)
        if offset is not None:
            if self.lanes is not None:
                self.lanes.depart(single.keys or (), offset, anyio.current_time() + delay)
                self.inbox.wake_one()
        else:
            self._schedule(Batch([single]), delay)

    async def _failed_whole(self, batch: Batch, error: Exception) -> None:
        """Decide about a batch that failed without a word about which item it was."""
        count = len(batch.items)
        category = self.ask(Failure(error, self.name, self.source, batch.failures + 1))
        self.metrics.failed += count
        if category is Category.DEPENDENCY:
            self._pause(error)
            self._wait_as_a_whole(batch)
            self._again.appendleft(batch)
            self.inbox.wake_one()
        elif category is Category.TRANSIENT:
            await self._retry_whole(batch, error, category)
        elif isinstance(error, HandlerContractError):
            await self._fail_all(batch, error)
        elif self.idempotent:
            singles = self.exit.scatter(batch)
            await self._process_parts(batch, [singles[: count // 2], singles[count // 2 :]])
        elif self.splits:
            self._advise(error)
            await self._process_parts(batch, [[single] for single in self.exit.scatter(batch)])
        else:
            await self._fail_all(batch, error)

    async def _retry_whole(self, batch: Batch, error: Exception, category: Category) -> None:
        retry = self.retry
        batch.maybe_done = batch.maybe_done or isinstance(error, TimeLimitError)
        failures = [self._failures_of(piece, index) + batch.failures + 1 for piece, index in batch.places()]
        batch.failures += 1
        if retry is not None and all(retry.allows(number, category) for number in failures):
            self.metrics.retried += len(batch.items)
            self._wait_as_a_whole(batch)
            self._schedule(batch, retry.delay(batch.failures, error, None, self.rng))
            return
        batch.failures -= 1
        await self._fail_all(batch, error)

    async def _fail_all(self, batch: Batch, error: Exception) -> None:
        """Decide about each item of a batch that failed as a whole."""
        dead: list[Dead] = []
        self.metrics.failed -= len(batch.items)  # counted with the batch already, and again below
        singles: Sequence[Piece] = self.exit.scatter(batch)
        if self.lanes is not None and self.lanes.in_order:
            singles, _ = self._reached(self.lanes, singles, [Failed(error)] * len(singles))
        held: set[str] = set()
        for single in singles:
            if self.exit.is_ours(single):
                self._failed(single, batch, error, dead, held)
        await self._bury(dead, batch, held)

    def _wait_as_a_whole(self, batch: Batch) -> None:
        batch.held = batch.keys()
        batch.is_part = False  # from here on it frees its keys itself

    def _failures_of(self, piece: Piece, index: int) -> int:
        return piece.record.failures if piece.record is not None else self.exit.failures_before(piece, index)

    async def _process_parts(self, batch: Batch, groups: Sequence[list[Piece]]) -> None:
        """Run the parts of a batch that failed one after the other, each told that it may be done already."""
        parts = [Batch(pieces) for pieces in groups]
        for part in parts:
            part.failures, part.maybe_done, part.since, part.slot = batch.failures, True, batch.since, batch.slot
            part.is_part = True
            self.running[part] = None
        for part in parts:
            if self.lanes is not None and batch.held:
                self._hold_back(self.lanes, part, batch.held)
            while self._paused_until:
                await self._wait_pause()
            if part.items:
                await self.process(part)
                batch.held = batch.held | part.held
            else:
                del self.running[part]
        if self.lanes is not None and not batch.is_part:
            keys = {key for pieces in groups for piece in pieces for key in piece.keys or ()}
            self._release_keys(self.lanes, keys - batch.held)

    def _hold_back(self, lanes: Lanes, part: Batch, held: set[str]) -> None:
        """Take those items out of *part* whose key has an earlier one that waits for another attempt."""
        behind = [piece for piece in part.pieces if piece.keys and piece.keys[0] in held]
        if behind:
            lanes.put_back(behind)
            part.pieces = [piece for piece in part.pieces if piece not in behind]
            part.items = [item for piece in part.pieces for item in piece.items]

    def _advise(self, error: Exception) -> None:
        if not self._advised:
            self._advised = True
            _logger.warning(
                "%s() failed for a batch without saying which item it was (%s: %s); its items now run one by one. "
                "Raise BatchFailed({index: error}) or return Failed(error) in the item's place, "
                "or pass idempotent=True to have batches bisected",
                self.name,
                type(error).__name__,
                error,
            )

    # --- Waiting for another attempt ------------------------------------------------------------

    def _pause(self, error: BaseException) -> None:
        """Start no call for a while: what lies behind is down, and no attempt is used up."""
        if self._paused_until > anyio.current_time():
            return  # calls that were under way when it began
        self._outages += 1
        policy = self.retry or Retry()
        delay = policy.delay(self._outages, error, None, self.rng)
        self._paused_until = max(self._paused_until, anyio.current_time() + max(delay, 0.05))

    def _schedule(self, batch: Batch, delay: float) -> None:
        self._sequence += 1
        due = anyio.current_time() + delay
        if due > self.end:
            self._give_up(batch, due)
            return
        heapq.heappush(self._due, (due, self._sequence, batch))
        if self.lanes is not None:
            for piece in batch.pieces:
                self.lanes.block(piece.keys or (), due)
        if self._due_changed is not None:
            self._due_changed.set()

    async def watch_due(self) -> None:
        """Bring back what waits for another attempt when it is due."""
        while True:
            self._due_changed = anyio.Event()
            wait = self._due[0][0] - anyio.current_time() if self._due else None
            if wait is None:
                await self._due_changed.wait()
            elif wait > 0:
                with anyio.move_on_after(wait):
                    await self._due_changed.wait()
            while self._due and self._due[0][0] <= anyio.current_time():
                batch = heapq.heappop(self._due)[2]
                if self.lanes is not None:
                    for piece in batch.pieces:
                        self.lanes.unblock(piece.keys or ())
                self._again.append(batch)
                self.inbox.wake_one()

    def perhaps_done(self) -> list[Piece]:
        """Return what was cut off, now or at an earlier attempt, so that its effect may have happened."""
        waiting = [batch for _, _, batch in self._due] + list(self._again)
        cut = [
            batch
            for batch in waiting
            if batch.maybe_done or any(piece.record is not None and piece.record.maybe_done for piece in batch.pieces)
        ]
        return [piece for batch in (*self.running, *cut) for piece in batch.pieces]

    def drain(self, end: float) -> None:
        """Let nothing wait for an attempt later than *end*, now and from now on: it goes back to its source."""
        self.end = end
        late = [(due, batch) for due, _, batch in self._due if due > end]
        self._due = [entry for entry in self._due if entry[0] <= end]
        heapq.heapify(self._due)
        for due, batch in late:
            self._give_up(batch, due)

    def _give_up(self, batch: Batch, due: float) -> None:
        delay = due - anyio.current_time()
        departed: set[str] = set()
        for single in self.exit.scatter(batch):
            offset = self.exit.give_up(single, self.record(single, batch), delay)
            if self.lanes is not None and offset is not None:
                self.lanes.depart(single.keys or (), offset, due)
                departed.update(single.keys or ())
        if self.lanes is not None:
            self._release_keys(self.lanes, batch.keys() - departed)
        self.inbox.wake_one()

    def _describe(self, batch: Batch) -> BatchContext:
        records = [piece.record for piece in batch.pieces if piece.record is not None]
        attempt = max([batch.failures, *(record.failures for record in records)]) + 1
        maybe_done = batch.maybe_done or any(record.maybe_done for record in records) or self.exit.maybe_done(batch)
        return BatchContext(self.name, attempt, maybe_done, self.exit.parts(batch))


def _is_alone(piece: Piece) -> bool:
    return piece.record is not None and piece.record.alone


def _matched(pieces: Sequence[Piece], results: Sequence[object]) -> list[Piece]:
    """Return pieces that hold *results* and stand for the same positions."""
    if len(pieces) == 1:
        return [pieces[0].like(list(results))]
    matched: list[Piece] = []
    start = 0
    for piece in pieces:
        stop = start + len(piece.items)
        matched.append(piece.like(list(results[start:stop])))
        start = stop
    return matched


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"
