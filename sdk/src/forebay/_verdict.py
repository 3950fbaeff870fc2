"""What becomes of items whose call did not simply succeed: another attempt, set aside, dropped, run again in parts."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence

import anyio
from attrs import define, field

from forebay._batch import Batch, Dead, Exit
from forebay._batcher import Piece, Record
from forebay._errors import BatchTooLargeError, HandlerContractError, RetryExhaustedError, TimeLimitError
from forebay._handler import OUTCOMES
from forebay._lanes import Lanes
from forebay._metrics import StageMetrics
from forebay._retry import Retry
from forebay._types import Again, Category, Dropped, Failed, Failure
from forebay._waiting import Waiting

_logger = logging.getLogger("forebay")


@define(eq=False, kw_only=True)
class Verdict:
    """Decides about the items of one stage."""

    name: str
    source: str
    exit: Exit
    waiting: Waiting
    lanes: Lanes | None
    retry: Retry | None
    metrics: StageMetrics
    ask: Callable[[Failure], Category]
    rng: random.Random
    running: dict[Batch, None]
    process: Callable[[Batch], Awaitable[object]]
    """Calls the handler with a part of a batch."""
    idempotent: bool
    last: bool
    hands_out: bool
    splits: bool
    steered: bool
    """Whether somebody hears that batches are too large."""
    _advised: bool = field(default=False, init=False)
    _too_large: bool = field(default=False, init=False)
    """Whether it has been said that batches are too large."""

    async def settle_each(self, batch: Batch, outcomes: Sequence[object], now: float) -> None:
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
            self.waiting.release_keys(lanes, batch.keys() - held - buried)
        if dead:
            await self.exit.set_aside(dead, batch)
            self.metrics.dead += len(dead)
            if lanes is not None:
                self.waiting.release_keys(lanes, buried)

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
        record = self.waiting.record(single, batch)
        category = self.ask(Failure(error, self.name, self.source, record.failures + 1))
        self.metrics.failed += 1
        if category is Category.DEPENDENCY:
            self.waiting.pause(error)
            self._later(single, record, self.waiting.paused_until - anyio.current_time(), error, held)
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
        record = self.waiting.record(single, batch)
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

    def _later(self, single: Piece, record: Record, delay: float, error: BaseException, held: set[str]) -> None:
        """Run one item again after *delay* seconds, here or wherever its source hands it out next."""
        held.update(single.keys or ())
        offset = self.exit.send_back(single, record, delay, error)
        if offset is not None:
            if self.lanes is not None:
                self.lanes.depart(single.keys or (), offset, anyio.current_time() + delay)
                self.waiting.inbox.wake_one()
        else:
            self.waiting.schedule(Batch([single]), delay)

    async def failed_whole(self, batch: Batch, error: Exception) -> bool:
        """Decide about a batch that failed without a word about which item it was.

        Return whether its items have had their outcomes; if not, it waits to be run again, or its parts do.
        """
        count = len(batch.items)
        if isinstance(error, BatchTooLargeError):
            await self._halve(batch, count)
            return False
        category = self.ask(Failure(error, self.name, self.source, batch.failures + 1))
        self.metrics.failed += count
        if category is Category.DEPENDENCY:
            self.waiting.pause(error)
            self._wait_as_a_whole(batch)
            self.waiting.again.appendleft(batch)
            self.waiting.inbox.wake_one()
            return False
        if category is Category.TRANSIENT:
            return await self._retry_whole(batch, error, category)
        if isinstance(error, HandlerContractError) or not (self.idempotent or self.splits):
            return await self._fail_all(batch, error)
        if self.idempotent:
            singles = self.exit.scatter(batch)
            await self._process_parts(batch, [singles[: count // 2], singles[count // 2 :]], maybe_done=True)
        else:
            self._advise(error)
            await self._process_parts(batch, [[single] for single in self.exit.scatter(batch)], maybe_done=True)
        return False

    async def _retry_whole(self, batch: Batch, error: Exception, category: Category) -> bool:
        retry = self.retry
        batch.maybe_done = batch.maybe_done or isinstance(error, TimeLimitError)
        failures = [self._failures_of(piece, index) + batch.failures + 1 for piece, index in batch.places()]
        batch.failures += 1
        if retry is not None and all(retry.allows(number, category) for number in failures):
            self.metrics.retried += len(batch.items)
            self._wait_as_a_whole(batch)
            self.waiting.schedule(batch, retry.delay(batch.failures, error, None, self.rng))
            return False
        batch.failures -= 1
        return await self._fail_all(batch, error)

    async def _fail_all(self, batch: Batch, error: Exception) -> bool:
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
        return True

    def _wait_as_a_whole(self, batch: Batch) -> None:
        batch.held = batch.keys()
        batch.is_part = False  # from here on it frees its keys itself

    def _failures_of(self, piece: Piece, index: int) -> int:
        return piece.record.failures if piece.record is not None else self.exit.failures_before(piece, index)

    async def _halve(self, batch: Batch, count: int) -> None:
        """Run a batch that was refused for its size again as two; that is no failed attempt."""
        if not self.steered and not self._too_large:
            self._too_large = True
            _logger.warning(
                "%s() refused a batch of %s items as too large; it is cut in two, and so is every one that is refused. "
                "Pass a smaller max_size, or control='adaptive' to have the size found",
                self.name,
                count,
            )
        singles = self.exit.scatter(batch)
        halves = [singles[: count // 2], singles[count // 2 :]]
        await self._process_parts(batch, halves, maybe_done=batch.maybe_done)

    async def _process_parts(self, batch: Batch, groups: Sequence[list[Piece]], *, maybe_done: bool) -> None:
        """Run the parts of a batch that failed one after the other, each told whether it may be done already."""
        parts = [Batch(pieces) for pieces in groups]
        for part in parts:
            part.failures, part.maybe_done, part.since, part.slot = batch.failures, maybe_done, batch.since, batch.slot
            part.is_part = True
            self.running[part] = None
        for part in parts:
            if self.lanes is not None and batch.held:
                self._hold_back(self.lanes, part, batch.held)
            while self.waiting.paused_until:
                await self.waiting.wait_pause()
            if part.items:
                await self.process(part)
                batch.held = batch.held | part.held
            else:
                del self.running[part]
        if self.lanes is not None and not batch.is_part:
            keys = {key for pieces in groups for piece in pieces for key in piece.keys or ()}
            self.waiting.release_keys(self.lanes, keys - batch.held)

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
