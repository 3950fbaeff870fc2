"""One function over batches: its calls, and the outcome of each item."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
from attrs import define, field

from forebay._answer import attributed, check_results, matched
from forebay._batch import Batch, Exit
from forebay._batcher import Piece
from forebay._buffer import Buffer
from forebay._errors import BatchFailed, BatchTooLargeError, HandlerContractError
from forebay._handler import OUTCOMES, BatchContext, Call, set_context
from forebay._intake import Intake
from forebay._lanes import Lanes
from forebay._metrics import StageMetrics
from forebay._retry import Retry
from forebay._steer import Steer
from forebay._types import Again, BatchInfo, Category, Dropped, Failed, Failure, Limits
from forebay._verdict import Verdict
from forebay._waiting import Waiting
from forebay._watch import SLICE_SECONDS
from forebay.abc import Watchful

DIRECT_SECONDS = 0.0001
"""Calls that take less do not wait for anything."""
ENOUGH_ITEMS = 128
"""Where a pump makes such calls itself with so many items, there is nothing to steer, and nobody looks at them."""

StartSoon: TypeAlias = Callable[[Callable[[], Coroutine[Any, Any, object]]], object]
"""Starts a task, as the method of a task group does."""


def _nothing() -> None:
    pass


@define(eq=False, kw_only=True)
class Stage:
    """A stage of one run: its workers' loop, its calls, and what becomes of the items."""

    pipeline: str
    name: str
    call: Call
    exit: Exit
    inbox: Buffer[Piece]
    steer: Steer
    """Who says how large batches may be, and how many calls may be in flight."""
    max_items: int = 0
    """For functions of one item: most that a worker takes at once. 0: they are functions of a batch."""
    resize: Callable[[int], None]
    """Called with the size of batches when it changes."""
    retry: Retry | None = None
    idempotent: bool = False
    last: bool = True
    """Whether nothing follows, so that the handler may return `None`."""
    hands_out: bool = False
    """Whether the last results go to callers that wait for them; otherwise they are thrown away."""
    splits: bool = True
    """Whether a batch that failed without a word about which item is taken apart."""
    lanes: Lanes | None = None
    batch_done: Callable[[BatchInfo], None] | None = None
    ask: Callable[[Failure], Category]
    source: str = ""
    clock: Callable[[], float] = anyio.current_time
    """For measuring only."""
    rng: random.Random = field(factory=random.Random)
    metrics: StageMetrics = field(factory=StageMetrics)
    running: dict[Batch, None] = field(factory=dict[Batch, None])
    """Batches whose handler has been called and whose items have no outcome yet."""
    idle: Callable[[], None] = _nothing
    """Called when no batch is running any more."""
    in_flight: int = 0
    waiting: Waiting = field(init=False)
    intake: Intake = field(init=False)
    concurrency: int = field(init=False)
    """Calls that may be in flight now."""
    workers: int = field(default=0, init=False)
    """Tasks that run `work`."""
    _busy: int = field(default=0, init=False)
    """Workers that have a batch."""
    _resting: deque[anyio.Event] = field(factory=deque[anyio.Event], init=False)
    """Workers that wait until more calls are allowed."""
    _start_soon: StartSoon | None = field(default=None, init=False)
    _observed: Steer | None = field(init=False)
    """Who wants to see each call; nobody where the limits are fixed."""
    _verdict: Verdict = field(init=False)
    _occupied: bool = field(default=False, init=False)
    """Whether a pump runs a batch itself."""
    _call_seconds: float = field(default=0.001, init=False)
    """Length of a call, as the last ones went."""

    def __attrs_post_init__(self) -> None:
        steer = self.steer
        limits = steer.limits
        self.concurrency = limits.concurrency
        self._observed = steer if steer.controller is not None else None
        self.waiting = Waiting(exit=self.exit, inbox=self.inbox, lanes=self.lanes, retry=self.retry, rng=self.rng)
        self.intake = Intake(
            inbox=self.inbox,
            exit=self.exit,
            waiting=self.waiting,
            lanes=self.lanes,
            max_size=self.max_items or limits.batch_size,
            max_bytes=limits.max_bytes,
            per_item=bool(self.max_items),
            max_concurrency=limits.concurrency,
            max_wait=limits.max_wait,
            clock=self.clock,
        )
        self._verdict = Verdict(
            name=self.name,
            source=self.source,
            exit=self.exit,
            waiting=self.waiting,
            lanes=self.lanes,
            retry=self.retry,
            metrics=self.metrics,
            ask=self.ask,
            rng=self.rng,
            running=self.running,
            process=self.process,
            idempotent=self.idempotent,
            last=self.last,
            hands_out=self.hands_out,
            splits=self.splits,
            steered=self._observed is not None,
        )
        steer.obey, steer.queued = self._obey, self._queued

    # --- Workers --------------------------------------------------------------------------------

    def start(self, start_soon: StartSoon) -> None:
        """Start the stage's tasks: a worker for each call that may be in flight, and those that watch the time."""
        self._start_soon = start_soon
        for _ in range(self.concurrency):
            self._hire()
        start_soon(self.waiting.watch_due)
        if self._observed is not None and isinstance(self._observed.controller, Watchful):
            start_soon(self._observed.watch)

    def _hire(self) -> None:
        assert self._start_soon is not None, "the stage has not been started"
        self.workers += 1
        self._start_soon(self.work)

    def _obey(self, limits: Limits) -> None:
        """Work within *limits* from now on. Calls in flight run on, and what has gathered is cut when it is taken."""
        intake = self.intake
        if not self.max_items and limits.batch_size != intake.max_size:
            intake.max_size = limits.batch_size
            self.resize(limits.batch_size)
        intake.max_bytes = limits.max_bytes
        intake.max_wait = limits.max_wait
        if intake.waits_until < math.inf:
            intake.waits_until = math.inf
            self.inbox.wake_one()  # it may be enough for a batch now
        more = limits.concurrency - self.concurrency
        self.concurrency = intake.max_concurrency = limits.concurrency
        while more > 0 and self._resting:
            self._resting.popleft().set()
            more -= 1
        if self.workers < self.concurrency and not self.inbox.waiting_takers:
            self._hire()  # which hires the next one if there is something for it to do

    async def _rest(self) -> None:
        """Wait until more calls are allowed."""
        event = anyio.Event()
        self._resting.append(event)
        try:
            await event.wait()
        finally:
            if not event.is_set():
                self._resting.remove(event)

    # --- Taking ---------------------------------------------------------------------------------

    async def work(self) -> None:
        """Run batches, for as long as the stage lives. So many tasks run this as calls may be in flight, or might."""
        slot: list[Batch] = []  # the one batch that this worker runs
        self.describe_in(slot)
        last_yield = perf_counter()
        inbox, intake, waiting = self.inbox, self.intake, self.waiting
        now: float | None = None  # still true when no other task has run since the last call ended
        while True:
            if self._busy >= self.concurrency:
                await self._rest()  # those that are busy take what is there, so nothing is left lying
                now = None
                continue
            batch = None if self._occupied else intake.next_batch()
            if batch is None:
                if intake.waits_until == math.inf or self._occupied:
                    await inbox.wait_parts()
                else:
                    with anyio.CancelScope(deadline=intake.waits_until):
                        await inbox.wait_parts()
                last_yield = perf_counter()
                now = None
                continue
            if self.workers > 1:
                inbox.pass_on()
            if self.workers < self.concurrency and not inbox.waiting_takers:
                self._hire()  # somebody has to be there for what comes next
            if waiting.paused_until:
                waiting.again.appendleft(batch)  # where a run that is cut off meanwhile finds it
                await waiting.wait_pause()
                now = None
                continue
            batch.slot = slot
            self._busy += 1
            now = await self.process(batch, now)
            self._busy -= 1
            del batch  # freed now, while it is warm
            if not self.running:
                self.idle()
            if perf_counter() - last_yield > SLICE_SECONDS:
                await anyio.lowlevel.checkpoint()
                last_yield = perf_counter()
                now = None

    # --- Calling --------------------------------------------------------------------------------

    def is_busy(self) -> bool:
        """Return whether anything runs here or waits, for whatever reason."""
        if self.running or self.waiting.again or self.waiting.due or self.inbox.parts:
            return True
        return self.lanes is not None and bool(self.lanes.waiting or self.lanes.ready)

    def takes_directly(self) -> bool:
        """Return whether a pump may run its batch itself instead of handing it to the worker.

        That is so while calls do not wait for anything, so that there is nothing to gain from a second task:
        the batch is freed while it is in the processor's cache, and no switch is paid.
        """
        waiting = self.waiting
        return (
            self._call_seconds < DIRECT_SECONDS
            and not self.running  # not just in flight: between two calls a worker may wait for a store
            and not (self.inbox.parts or waiting.again or waiting.due or waiting.paused_until)
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
            if self.waiting.again:
                self.inbox.wake_one()
        self.idle()  # nothing else was running when it began, and nothing has begun since

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
        in_flight = self.in_flight
        steer = self._observed
        if steer is not None:
            steer.call_started(batch, started)
        slot = batch.slot
        assert slot is not None, "who runs a batch says where"
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
            if steer is not None:
                del steer.calls[batch]
        ended = self.clock()
        seconds = ended - started
        self.metrics.call_ended(count, seconds, started - batch.since)
        if self.max_items:
            self.intake.mean_item += 0.2 * (seconds / count - self.intake.mean_item)
        # Rises at once and falls slowly: one call that waits is reason enough to use the workers.
        usual = self._call_seconds
        self._call_seconds = seconds if seconds > usual else 0.5 * (usual + seconds)
        outcomes: Sequence[object] | None = None
        if error is not None or results is not None or not self.last or self.hands_out:
            try:
                outcomes = self._outcomes(results, error, count)
            except HandlerContractError as broken:
                if not self.hands_out:
                    raise
                error, outcomes = broken, None  # the callers are told; others go on
            batch.error = None if isinstance(error, BatchFailed) else error
        if steer is not None and not (
            self._occupied and seconds < DIRECT_SECONDS and count >= min(ENOUGH_ITEMS, steer.bounds.max_size)
        ):
            self._observe(steer, batch, error, outcomes, ended, seconds, in_flight)
        if self.batch_done is not None:
            self.batch_done(self._info(batch, outcomes, error, started, seconds))
        over = True
        if error is not None and outcomes is None:
            over = await self._verdict.failed_whole(batch, error)
        elif outcomes is None:
            self.waiting.outages = 0
            self.metrics.done += count
            self.exit.finish(batch.pieces, ended)
            if self.lanes is not None:
                self.waiting.release(batch)
        elif OUTCOMES.isdisjoint(map(type, outcomes)):
            self.waiting.outages = 0
            self.metrics.done += count
            await self._pass_on(batch, outcomes, ended)
        else:
            await self._verdict.settle_each(batch, outcomes, ended)
        del self.running[batch]
        if over:
            self.exit.ended(batch)
        slot.clear()
        return ended

    def _outcomes(self, results: object, error: Exception | None, count: int) -> Sequence[object] | None:
        if error is not None:
            return attributed(self.name, error, count, last=self.last)
        return check_results(self.name, results, count, hands_out=self.hands_out)

    def _observe(
        self,
        steer: Steer,
        batch: Batch,
        error: Exception | None,
        outcomes: Sequence[object] | None,
        ended: float,
        seconds: float,
        in_flight: int,
    ) -> None:
        """Show a call to who steers."""
        size, size_bytes, weigh = len(batch.items), None, self.inbox.weigh
        if weigh is not None:
            size_bytes = sum(map(weigh, batch.items))
        if self.max_items:  # handled one after the other
            size, seconds = 1, seconds / size
        parts = self.inbox.parts
        steer.call_ended(
            now=ended,
            size=size,
            size_bytes=size_bytes,
            seconds=seconds,
            failed=self._has_failed(batch, error, outcomes),
            too_large=isinstance(error, BatchTooLargeError),
            in_flight=in_flight,
            oldest_wait=max(0.0, ended - parts[0].since) if parts else 0.0,
        )

    def _has_failed(self, batch: Batch, error: Exception | None, outcomes: Sequence[object] | None) -> bool:
        """Return whether a call failed in a way that load may have caused: not for what is wrong with its items."""
        if isinstance(error, BatchTooLargeError):
            return True
        if outcomes is not None:
            if not {Failed, Again}.issuperset(map(type, outcomes)):
                return False
            failed = next((outcome for outcome in outcomes if isinstance(outcome, Failed)), None)
            if failed is None:
                return True
            cause: BaseException | None = failed.error
        else:
            cause = error
        if cause is None:
            return False
        return self.ask(Failure(cause, self.name, self.source, batch.failures + 1)) is not Category.PERMANENT

    def _queued(self) -> int:
        """Return how many items wait here, but for those that wait for their time."""
        lanes = self.lanes
        if lanes is None:
            return self.inbox.held
        return self.inbox.held + lanes.waiting + sum(len(piece.items) for piece in lanes.ready)

    def _info(
        self,
        batch: Batch,
        outcomes: Sequence[object] | None,
        error: Exception | None,
        started: float,
        seconds: float,
    ) -> BatchInfo:
        count = len(batch.items)
        undone = isinstance(error, BatchTooLargeError) and outcomes is None  # it runs again, as if it had not been
        failed = count if error is not None and outcomes is None and not undone else 0
        dropped = 0
        if outcomes is not None and not OUTCOMES.isdisjoint(map(type, outcomes)):
            failed = sum(type(outcome) in (Failed, Again) for outcome in outcomes)
            dropped = sum(type(outcome) is Dropped for outcome in outcomes)
        return BatchInfo(
            pipeline=self.pipeline,
            stage=self.name,
            batch_id=batch.id,
            size=count,
            done=0 if undone else count - failed - dropped,
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
            self.exit.finish(matched(batch.pieces, results) if self.hands_out else batch.pieces, now)
        else:
            await self.exit.forward(matched(batch.pieces, results))
        self.waiting.release(batch)

    def perhaps_done(self) -> list[Piece]:
        """Return what was cut off, now or at an earlier attempt, so that its effect may have happened."""
        return [piece for batch in (*self.running, *self.waiting.perhaps_done()) for piece in batch.pieces]

    def _describe(self, batch: Batch) -> BatchContext:
        records = [piece.record for piece in batch.pieces if piece.record is not None]
        attempt = max([batch.failures, *(record.failures for record in records)]) + 1
        maybe_done = batch.maybe_done or any(record.maybe_done for record in records) or self.exit.maybe_done(batch)
        return BatchContext(self.name, attempt, maybe_done, self.exit.parts(batch))
