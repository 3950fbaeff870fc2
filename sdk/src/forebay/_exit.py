"""What becomes of a pipeline's items once a stage has decided: on to the next, settled, set aside, sent back."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import anyio
from attrs import define

from forebay._account import FeedLedger, Hold
from forebay._batch import Batch, Dead
from forebay._batcher import Piece, Record
from forebay._dead_letter import make_dead_letter, put_letters
from forebay._feed import SessionFeed
from forebay._handler import BatchPart
from forebay._ledger import Ledger
from forebay._retry import Retry
from forebay._route import Route
from forebay._steps import Stop, run_steps
from forebay._types import Category, DeadLetter, DeadLettered, DeadLetterId, Failure, Member, Offset, Redelivery
from forebay.abc import DeadLetterStore

SHED_SECONDS = 0.1
"""Shortest time that an item which waits behind its key stays with its source before it comes again."""


class Office(Protocol):
    """What the exits of a run share."""

    pipeline: str
    member: Member
    ledger: Ledger
    feeds: dict[FeedLedger, SessionFeed]
    dead_reasons: dict[str, int]
    drop_reasons: dict[str, int]
    dead_lettered: Callable[[DeadLettered], None] | None
    ending: bool
    """Whether an exception is on its way that ends the run."""

    def retry_delay(self, attempt: int, error: BaseException) -> float:
        """Return how long to wait before a store is asked again."""
        ...


@define(eq=False)
class PipelineExit:
    """Where the items of one stage, or of the inline steps before it, go."""

    office: Office
    stage: str
    route: Route
    """What follows."""
    store: DeadLetterStore | None

    def finish(self, pieces: Sequence[Piece], now: float) -> None:
        """All items of *pieces* are done, since *now*, and nothing follows."""
        self.office.ledger.now = now
        self.route.finish(pieces)

    async def forward(self, pieces: Sequence[Piece]) -> None:
        """Send results on to what follows."""
        for piece in pieces:
            await self.route.send(piece)

    def scatter(self, batch: Batch) -> list[Piece]:
        """Return a piece for each item of *batch*; they go separate ways from now on."""
        return [single for piece in batch.pieces for single in self.singles(piece)]

    def singles(self, piece: Piece) -> list[Piece]:
        """Return a piece for each item of *piece*; what was filtered out of it becomes final."""
        self.listed(piece)
        positions = piece.listed()
        if len(positions) == 1:
            return [piece]
        return [
            Piece(
                [item],
                positions=[position],
                keys=None if piece.keys is None else [piece.keys[index]],
                since=piece.since,
                family=piece.family,
            )
            for index, (item, position) in enumerate(zip(piece.items, positions, strict=True))
        ]

    def listed(self, piece: Piece) -> None:
        """Make *piece* ready for its items to go separate ways."""
        positions = self.route.listed(piece).listed()
        if piece.family is not None:
            piece.family.scattered(positions)

    def drop(self, piece: Piece, reason: str) -> None:
        """Throw the items of *piece*, which lists their positions, away on purpose."""
        self.office.drop_reasons[reason] = self.office.drop_reasons.get(reason, 0) + len(piece.items)
        self.route.settle_positions(piece.listed(), "dropped")

    def leave_out(self, piece: Piece, reason: str) -> None:
        """Throw the items of *piece* away because there is no room for them."""
        self.listed(piece)
        self.drop(piece, f"{self.stage}: {reason}")

    async def set_aside(self, dead: Sequence[Dead], batch: Batch | None) -> None:
        """Put items that failed for good into the dead-letter store, then settle them.

        Raises the first item's exception where the stage has no store: that ends the run.
        """
        if self.store is None:
            if self.office.ending:
                await anyio.sleep_forever()  # another failure ends the run already, and this task with it
            self.office.ending = True
            error = dead[0].error
            error.add_note(
                f"raised in stage {self.stage!r} for the item at {self._where(dead[0].piece)}, "
                f"{dead[0].category} failure after {_attempts(dead[0].attempts)}; "
                f"the run ends because no dead_letters= was given"
            )
            raise error
        letters = [self._letter(one, batch) for one in dead]
        await put_letters(self.store, letters, self.office.retry_delay)
        for one in dead:
            reason = f"{self.stage}: {type(one.error).__name__}"
            self.office.dead_reasons[reason] = self.office.dead_reasons.get(reason, 0) + 1
            self.route.settle_positions(one.piece.listed(), "dead")
        if self.office.dead_lettered is not None:
            self.office.dead_lettered(DeadLettered(self.office.pipeline, letters))

    def _letter(self, dead: Dead, batch: Batch | None) -> DeadLetter:
        position = dead.piece.position(0)
        hold = self.office.ledger.hold(position)
        chunk, index = hold.chunk, position - hold.base
        now = time.time()
        record = dead.piece.record
        return make_dead_letter(
            id=DeadLetterId(
                self.office.pipeline,
                hold.feed.name,
                0 if chunk is None else chunk.partition,
                str(hold.offset(position)),
            ),
            item=dead.piece.items[0] if hold.items is None else hold.items[index],
            error=dead.error,
            category=dead.category,
            stage=self.stage,
            attempts=dead.attempts,
            first_seen=record.first_failed_at if record is not None and record.first_failed_at else now,
            now=now,
            key=dead.piece.key(0),
            headers=chunk.headers[index] if chunk is not None and chunk.headers is not None else None,
            member=self.office.member,
            epoch=0 if chunk is None else chunk.epoch,
            batch_id="" if batch is None else str(batch.id),
        )

    def _where(self, piece: Piece) -> str:
        position = piece.position(0)
        hold = self.office.ledger.hold(position)
        return f"offset {hold.offset(position)} of source {hold.feed.name!r}"

    def is_ours(self, piece: Piece) -> bool:
        """Return whether all items of *piece* are in hand: another member may have taken some over."""
        ledger = self.office.ledger
        return not ledger.lost_holds or not any(position in ledger.lost_holds for position in piece.listed())

    def ended(self, batch: Batch) -> None:
        """Forget where items came from that were lost while they were in *batch*, unless others may still ask."""
        ledger = self.office.ledger
        if ledger.lost_holds and ledger.leaves == 1 and self.route.inbox is None:
            for piece in batch.pieces:
                if piece.family is None:
                    for position in piece.listed():
                        ledger.lost_holds.pop(position, None)

    def failures_before(self, piece: Piece, index: int) -> int:
        """Return how often the item failed before this run had it."""
        position = piece.position(index)
        return self.office.ledger.hold(position).failures(position)

    def maybe_done(self, batch: Batch) -> bool:
        """Return whether an attempt at an item of *batch* was cut off before this run had it."""
        return any(
            self.office.ledger.hold(position).maybe_done(position)
            for piece in batch.pieces
            for position in piece.listed()
        )

    def send_back(self, piece: Piece, record: Record, delay: float, error: BaseException) -> Offset | None:
        """Return a single item to its source if it would wait here longer than half a claim; its offset then."""
        position = piece.position(0)
        hold = self.office.ledger.hold(position)
        feed = self.office.feeds.get(hold.feed)
        claim = feed.session.claim_seconds if feed is not None else None
        if feed is None or claim is None or hold.chunk is None:
            return None
        redelivery = self._redelivery(hold, position, record, delay, error)
        ledger = self.office.ledger
        if delay <= claim / 2 or ledger.leaves > 1 or any(position in children for children in ledger.children):
            feed.failures.append(redelivery)
            return None
        self._redeliver(hold, position, redelivery)
        return _place(hold, position)

    def offset(self, position: int) -> Offset | None:
        """Return a name of the item at *position*, unique over the sources of the run."""
        return _place(self.office.ledger.hold(position), position)

    def shed(self, position: int, until: float) -> Offset | None:
        """Give an item that waits behind its key back to its source until then; return its offset if that works."""
        ledger = self.office.ledger
        hold = ledger.hold(position)
        feed = self.office.feeds.get(hold.feed)
        if feed is None or ledger.leaves > 1 or any(position in children for children in ledger.children):
            return None
        record = Record(failures=hold.failures(position), maybe_done=hold.maybe_done(position))
        error = TimeoutError("too many items wait behind the one of the same key that is being tried again")
        delay = max(SHED_SECONDS, until - anyio.current_time())
        self._redeliver(hold, position, self._redelivery(hold, position, record, delay, error))
        feed.poke()
        return _place(hold, position)

    def give_up(self, piece: Piece, record: Record, delay: float) -> Offset | None:
        """Return a single item to its source, because the run drains and will not live to see its next attempt.

        Its offset comes back if the source hands it out again.
        """
        position = piece.position(0)
        if not self.office.ledger.is_open(position):
            return None  # a child of the same parent has taken it back already
        hold = self.office.ledger.hold(position)
        if hold.chunk is not None:
            error = TimeoutError("the run drained while the item waited for another attempt")
            hold.feed.redeliver(self._redelivery(hold, position, record, delay, error))
        self.office.ledger.settle(position, position + 1, self.route.leaves[0], "redelivered")
        return None if hold.chunk is None else _place(hold, position)

    def _redeliver(self, hold: Hold, position: int, redelivery: Redelivery) -> None:
        hold.feed.redeliver(redelivery)
        self.office.ledger.settle(position, position + 1, self.route.leaves[0], "redelivered")

    def _redelivery(self, hold: Hold, position: int, record: Record, delay: float, error: BaseException) -> Redelivery:
        chunk = hold.chunk
        assert chunk is not None
        return Redelivery(
            offset=hold.offset(position),
            failures=record.failures,
            after=max(0.0, delay),
            maybe_done=record.maybe_done,
            error=f"{type(error).__name__}: {error}"[:500],
            partition=chunk.partition,
            epoch=chunk.epoch,
        )

    def parts(self, batch: Batch) -> tuple[BatchPart, ...]:
        """Return where the items of *batch* came from."""
        parts: list[BatchPart] = []
        last: tuple[FeedLedger, int, int, bool] | None = None
        offsets: list[Offset] = []
        branches = self.office.ledger.leaves > 1
        for piece in batch.pieces:
            children = piece.family is not None
            for position in piece.listed():
                hold = self.office.ledger.hold(position)
                partition, epoch = (0, 0) if hold.chunk is None else (hold.chunk.partition, hold.chunk.epoch)
                origin = (hold.feed, partition, epoch, children)
                if origin != last:
                    offsets = []
                    parts.append(
                        BatchPart(hold.feed.name, partition, epoch, offsets, children, hold.chunk is not None, branches)
                    )
                    last = origin
                offsets.append(hold.offset(position))
        return tuple(parts)


def _place(hold: Hold, position: int) -> str:
    partition = 0 if hold.chunk is None else hold.chunk.partition
    return f"{hold.feed.name}/{partition}/{hold.offset(position)}"


def _attempts(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"


@define(eq=False)
class InlineMishaps:
    """Decides about items that fail in the inline steps of one route.

    Such a step makes no I/O, so a failure that may pass is tried again on the spot and the item keeps its place.
    """

    exits: Sequence[PipelineExit]
    """One for each step."""
    retries: Sequence[Retry]
    """One for each step."""
    ask: Callable[[Failure], Category]
    rng: random.Random

    async def __call__(self, route: Route, stop: Stop, /) -> Piece | None:
        """Return the item after a later attempt succeeded; `None` when it has been set aside."""
        way_out, retry = self.exits[stop.step], self.retries[stop.step]
        (bad,) = way_out.singles(stop.bad)
        error: Exception = stop.error
        failures = outages = 0
        while True:
            category = self.ask(Failure(error, way_out.stage, "", failures + 1))
            if category is Category.DEPENDENCY:
                outages += 1
                await anyio.sleep(retry.delay(outages, error, None, self.rng))
            else:
                failures += 1
                if not retry.allows(failures, category):
                    await way_out.set_aside([Dead(bad, error, category, failures)], None)
                    route.steps[stop.step].metrics.dead += 1
                    return None
                await anyio.sleep(retry.delay(failures, error, None, self.rng))
            again = bad.like(list(bad.items))
            failed = run_steps(route.steps[stop.step : stop.step + 1], 0, again)
            if failed is None:
                return again
            error = failed.error
