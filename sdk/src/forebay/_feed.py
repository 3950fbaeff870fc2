"""Pumps: each takes items from one source, enters them in the ledger and sends them on their way."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import TypeVar

import anyio
import anyio.lowlevel
from attrs import define, field

from forebay._account import FeedLedger, Hold
from forebay._batch import Batch
from forebay._batcher import Gather, Piece, Record
from forebay._buffer import Buffer
from forebay._errors import SettlementError
from forebay._ledger import Ledger
from forebay._retry import Retry
from forebay._route import Route
from forebay._scope import raise_bare
from forebay._source import Mapped, Reader
from forebay._stage import Stage
from forebay._steps import Step, Stop, is_coroutine, refuse_coroutines, run_steps
from forebay._types import Category, Chunk, Deliveries, Failure, Redelivery
from forebay._watch import BLOCKED_SECONDS, SLICE_SECONDS, LoopWatch
from forebay.abc import Session

R = TypeVar("R")

CALL_SECONDS = 5.0
"""Deadline of one call to a source."""
LINGER_SECONDS = 0.02
"""How long a settlement waits for others while nothing is fetched."""
ALONE_FROM = 3
"""An item that was handed out so often, failures not counted, may have killed the process before: it runs alone."""
FETCH_ITEMS = 1024
"""Most items of a fetch, unless a batch is larger: more would not be cheaper, and would leave the processor's cache."""


@define(eq=False)
class ReaderFeed:
    """Pumps from an iterable: nothing is acknowledged to it."""

    account: FeedLedger
    reader: Reader
    route: Route
    ledger: Ledger
    clock: Callable[[], float]
    max_age: float
    keep_items: bool
    direct: Stage | None = None
    """The stage behind, where this is its only source and one call is in flight at a time."""
    stopped: bool = False
    error: Exception | None = None
    """What the source raised; raised by the run when all that came before has its outcome."""
    _slot: list[Batch] = field(factory=list[Batch])
    _ended: bool = False
    _watch: LoopWatch = field(init=False)
    _mapped: Step | None = None
    """The first step where it is a map and nobody needs the items as they came: it runs with the source."""

    def __attrs_post_init__(self) -> None:
        self._watch = LoopWatch(
            f"source {self.account.name!r}", "pass in_thread=True to pipeline() to read it in a thread"
        )
        steps = self.route.steps
        if steps and steps[0].kind == "map" and not self.keep_items and self.reader.blocks:
            self._mapped = steps[0]

    def stop(self) -> None:
        """Read no more; what has been read goes on."""
        self.stopped = True
        self.reader.stop()

    async def pump(self) -> None:
        """Run until the source is at its end, or `stop` is called."""
        route, inbox, direct = self.route, self.route.inbox, self.direct
        size = route.max_size or FETCH_ITEMS
        gather = Gather()
        share = 16  # items taken between two looks at the clock
        if direct is not None:
            direct.describe_in(self._slot)
        position = 0
        last_yield = perf_counter()
        while not self._ended:
            if size != route.max_size and route.max_size:  # the stage behind takes other batches than before
                size = route.max_size
                share = min(share, 4 * size)
                if gather.held >= size:
                    await self._flush(gather)
            if inbox is not None and route.overflow is None and not inbox.fits(size, 0):
                await self._wait_room(inbox, size)
                last_yield = perf_counter()
                continue
            started = perf_counter()
            slices = self._take(share, size, size - gather.held)
            if not slices and not self._ended:
                await self._flush(gather)
                await self._wait_ready()
                last_yield = perf_counter()
                continue
            if self.reader.blocks:
                self._watch_taking(perf_counter() - started, slices)
            now = self.clock()
            if slices:
                position = self._register(slices, now)
                slices.reverse()
            while slices:
                # Popped, not iterated over: a batch is freed when its handler is done, while it is warm.
                one = slices.pop()
                stop = self._take_in(one, gather, position, now)
                position += len(one.items)
                if stop is not None:
                    position += 1
                    await self._flush(gather)
                    await route.mend(stop)
                elif gather.loose:
                    await self._send_loose(gather)
                piece = gather.piece
                if piece is None or len(piece.items) < size:
                    continue
                gather.piece = None
                if direct is not None and direct.takes_directly() and len(piece.items) == route.max_size:
                    batch = Batch([piece])
                    del one, piece
                    await direct.run_directly(batch, self._slot)
                    del batch
                else:
                    await self._send_full(piece, inbox)
            if gather.piece is not None and gather.piece.since + self.max_age <= now:
                await self._flush(gather)
            ended = perf_counter()
            if ended - started < SLICE_SECONDS / 2:
                share = min(2 * share, 4 * size)
            elif ended - started > 2 * SLICE_SECONDS:
                share = max(1, share // 2)
            if ended - last_yield > SLICE_SECONDS:
                await anyio.lowlevel.checkpoint()
                last_yield = perf_counter()
        await self._flush(gather)

    def _take(self, share: int, size: int, missing: int) -> list[Mapped]:
        """Take about *share* items from the source, in lists that make full batches.

        Several at once, and the first map with them: the loops stay hot, and what each batch costs besides
        is paid in one go. Taking and mapping apart costs an eighth more per item.
        """
        reader, mapped = self.reader, self._mapped
        inbox = self.route.inbox
        slices: list[Mapped] = []
        waits = inbox is not None and self.route.overflow is None
        room = min(share, max(inbox.max_items - inbox.held, 1)) if waits and inbox is not None else share
        count = min(missing, room)
        try:
            while room > 0:
                one = reader.take_nowait(count) if mapped is None else reader.take_mapped(mapped.func, count)
                if one is None:
                    self._ended = True
                    break
                if not one.items and one.error is None:
                    break
                slices.append(one)
                room -= count
                count = min(size, room)
                if one.error is not None or room < size:
                    break
        except Exception as error:
            seen = self.account.seen + sum(len(one.items) for one in slices)
            error.add_note(f"raised by source {self.account.name!r} after {_items(seen)}")
            self.error = error
            self._ended = True
        return slices

    def _register(self, slices: Sequence[Mapped], now: float) -> int:
        """Enter what was taken in the ledger, as one chunk; return the position of the first item."""
        count = sum(len(one.items) for one in slices)
        if slices[-1].error is not None:
            count += 1
        hold = self.ledger.register(count, self.account, now)
        if self.keep_items:
            hold.items = [item for one in slices for item in one.items]
        return hold.base

    def _take_in(self, one: Mapped, gather: Gather, position: int, now: float) -> Stop | None:
        """Run the steps over items, the first of which has *position*, and add what is left to *gather*."""
        items = one.items
        count = len(items) if one.error is None else len(items) + 1
        piece = Piece(items, position, position + count, since=now)
        mapped = self._mapped
        first = 0
        if mapped is not None:
            first = 1
            if items and is_coroutine(items[0]):
                refuse_coroutines(mapped, items)
            mapped.metrics.received += count
            mapped.metrics.done += len(items)
            if one.error is not None:
                mapped.metrics.failed += 1
                piece.stop -= 1
                bad = Piece([one.bad], piece.stop, piece.stop + 1, since=now)
                return Stop(0, piece, bad, Piece([], piece.stop + 1, piece.stop + 1), one.error)
        steps = self.route.steps
        if first < len(steps):
            stop = run_steps(steps, first, piece)
            if stop is not None:
                return stop
        gather.add(piece)
        return None

    async def _send_full(self, piece: Piece, inbox: Buffer[Piece] | None) -> None:
        if (
            inbox is not None
            and len(piece.items) == self.route.max_size
            and inbox.weigh is None
            and inbox.fits(len(piece.items), 0)
        ):
            inbox.push(piece, 0)
        else:
            await self.route.deliver(piece)

    async def _send_loose(self, gather: Gather) -> None:
        loose, gather.loose = gather.loose, []
        for piece in loose:
            await self.route.deliver(piece)

    async def _flush(self, gather: Gather) -> None:
        await self._send_loose(gather)
        piece = gather.flush()
        if piece is not None:
            await self.route.deliver(piece)

    def _watch_taking(self, seconds: float, slices: Sequence[Mapped]) -> None:
        if seconds <= BLOCKED_SECONDS:
            self._watch.passed()
            return
        items = sum(len(one.items) for one in slices)
        # What runs with the source cannot be told from it here; the step is asked first, since it is the user's.
        (self._watch if self._mapped is None else self._mapped.watch).held(seconds, items)

    async def _wait_room(self, inbox: Buffer[Piece], size: int) -> None:
        event = anyio.Event()
        inbox.call_when_room(event.set, max(size, inbox.max_items // 2))
        await event.wait()

    async def _wait_ready(self) -> None:
        await self.reader.wait_ready()


@define(eq=False)
class SessionFeed:
    """Pumps from a source that keeps an account of what it handed out."""

    account: FeedLedger
    session: Session[object]
    route: Route
    ledger: Ledger
    clock: Callable[[], float]
    keep_items: bool
    max_gap: int
    ask: Callable[[Failure], Category]
    lost: Callable[[FeedLedger, Sequence[Deliveries]], None]
    rng: random.Random
    direct: Stage | None = None
    """The stage behind, where this is its only source and one call is in flight at a time."""
    stopped: bool = False
    ended: bool = False
    error: Exception | None = None
    """What the source raised; raised by the run when all that came before has its outcome."""
    failures: list[Redelivery] = field(factory=list[Redelivery])
    """Failures of items that wait here for another attempt, for the next renewal."""
    waiting: anyio.CancelScope | None = None
    """What to cancel when there is something to do, while it waits."""
    _poked: anyio.Event | None = None
    _listens: bool = False
    """Whether it waits for the source."""
    _lingers: bool = False
    """Whether the wait has an end by which a settlement goes out."""
    _renewed: float = 0.0
    _troubles: int = 0
    _asked_for_room: bool = False
    _rest: list[Piece | Stop] = field(factory=list[Piece | Stop])
    """What waits to be sent on; nothing is fetched meanwhile."""
    _rest_came: anyio.Event | None = None
    _fetched: Chunk[object] | None = None
    _slot: list[Batch] = field(factory=list[Batch])
    _last_yield: float = 0.0

    def stop(self) -> None:
        """Fetch no more; what is in hand goes on and is settled."""
        self.stopped = True
        self.poke()

    def poke(self) -> None:
        """Look again at once: there is room, or the end is near."""
        if self._poked is not None:
            self._poked.set()
        elif self.waiting is not None and self._listens:
            self.waiting.cancel()

    def has_rest(self) -> bool:
        """Return whether something waits to be sent on."""
        return bool(self._rest)

    def _has_room(self) -> None:
        self._asked_for_room = False
        self.poke()

    def settled(self) -> None:
        """Items of this source are in hand no more, and it waits."""
        assert self.waiting is not None
        if not self.account.open:
            self.poke()
        elif not self._lingers:
            self._lingers = True
            self.waiting.deadline = min(self.waiting.deadline, anyio.current_time() + LINGER_SECONDS)

    async def pump(self) -> None:
        """Fetch, settle and renew until the source is at its end, or stopped, and has been told of everything."""
        self._renewed = self.clock()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_rest)
                await self._converse()
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise_bare(group)

    async def _converse(self) -> None:
        """Talk to the source. Nothing in here waits for a stage: a claim has to be renewed in time."""
        self._last_yield = perf_counter()
        if self.direct is not None:
            self.direct.describe_in(self._slot)
        while True:
            room = 0 if self.stopped or self.ended or self._rest else self._room()
            if self._is_done():
                return
            await self._renew_if_due()
            busy = False
            if room or self.account.unsent:
                busy = await self._exchange(room)
            if not (busy or self._is_done()):
                await self._wait(room)
                self._last_yield = perf_counter()
            elif perf_counter() - self._last_yield > SLICE_SECONDS:
                await anyio.lowlevel.checkpoint()
                self._last_yield = perf_counter()

    def _is_done(self) -> bool:
        """Return whether nothing more comes and the source has been told of everything."""
        return (self.stopped or self.ended) and not (self.account.open or self.account.unsent)

    async def _send_rest(self) -> None:
        """Send on what could not be sent at once: there was no room, or a step failed."""
        while True:
            while self._rest:
                rest = self._rest[0]
                if isinstance(rest, Stop):
                    await self.route.mend(rest)
                elif len(rest.items) > self.route.max_size > 0:
                    await self.route.send(rest.split(self.route.max_size))
                    await anyio.lowlevel.checkpoint()
                    continue
                else:
                    await self.route.send(rest)
                del self._rest[0]
            self.poke()
            self._rest_came = anyio.Event()
            await self._rest_came.wait()

    def _room(self) -> int:
        """Return how many items may be fetched now."""
        inbox = self.route.inbox
        room = FETCH_ITEMS
        if inbox is not None and self.route.overflow is None:
            if inbox.held and inbox.held + self.route.max_size > inbox.max_items:
                return 0
            if inbox.max_bytes is not None and inbox.held and inbox.held_bytes >= inbox.max_bytes:
                return 0
            room = min(max(inbox.max_items - inbox.held, 1), max(FETCH_ITEMS, self.route.max_size))
        return max(0, min(room, self.max_gap - self.account.gap()))

    def _room_bytes(self) -> int | None:
        inbox = self.route.inbox
        if inbox is None or inbox.max_bytes is None:
            return None
        return max(1, inbox.max_bytes - inbox.held_bytes)

    async def _exchange(self, room: int) -> bool:
        """Tell the source what is final and take what it has; return whether anything came."""
        statement = self.account.statement()
        try:
            self._fetched = await self._bounded(
                lambda: self.session.exchange(statement, max_items=room, max_bytes=self._room_bytes()),
                "take what was settled and hand out more",
            )
        except Exception as error:
            await self._trouble(error)
            return True
        # No checkpoint from here to the ledger: what was fetched is in it before anything can be cut off.
        self.account.told()
        self._troubles = 0
        if self._fetched is None:
            self.ended = True
            return True
        if self._fetched.lost:
            self.lost(self.account, self._fetched.lost)
        if not self._fetched.items:
            return False
        await self._pass_on(self._take_in())
        return True

    async def _pass_on(self, pieces: list[Piece]) -> None:
        """Run *pieces* here if that is the thing to do, else send them on; what needs waiting goes to the other task.

        They run here only where there is no claim to renew: a call may take long although none did before.
        """
        route, direct = self.route, self.direct
        if self.session.claim_seconds is not None:
            direct = None
        pieces.reverse()
        while pieces:
            # Popped, not iterated over: a batch is freed when its handler is done, while it is warm.
            piece = pieces.pop()
            if self._rest:
                self._leave([piece])
            elif direct is not None and direct.takes_directly():
                stop = run_steps(route.steps, 0, piece)
                if stop is not None:
                    self._leave([stop])
                elif len(piece.items) > route.max_size:  # children
                    route.push(piece)
                elif piece.items:
                    batch = Batch([piece])
                    del piece
                    await direct.run_directly(batch, self._slot)
                    del batch
                    if perf_counter() - self._last_yield > SLICE_SECONDS:
                        await anyio.lowlevel.checkpoint()
                        self._last_yield = perf_counter()
                else:
                    route.settle(piece)
            else:
                rest = route.send_nowait(piece)
                if rest:
                    self._leave(rest)

    def _leave(self, rest: Sequence[Piece | Stop]) -> None:
        """Leave *rest* to the task that may wait."""
        self._rest += rest
        if self._rest_came is not None:
            self._rest_came.set()

    def _take_in(self) -> list[Piece]:
        """Enter what was fetched in the ledger and return it.

        Only the pieces keep the items alive, so that a step frees them while they are warm.
        """
        chunk, self._fetched = self._fetched, None
        assert chunk is not None
        items = list(chunk.items)
        chunk = _without_items(chunk)
        now = self.clock()
        hold = self.ledger.register(len(items), self.account, now, chunk)
        if self.keep_items:
            hold.items = list(items)
        pieces = _pieces(hold, items, now)
        size = self.route.max_size
        return [part for piece in pieces for part in piece.cut(size)] if size else pieces

    async def wind_up(self, back: Sequence[Deliveries]) -> None:
        """Make the last settlement and give back *back*; for the end of a run, when `pump` runs no more."""
        try:
            if self.account.unsent:
                await self.session.exchange(self.account.statement(), max_items=0, max_bytes=None)
                self.account.told()
        finally:
            if back:
                await self.session.give_back(back, refund=True)

    async def _trouble(self, error: Exception) -> None:
        """Wait before the same call is made again, or fetch no more: the run ends when what is in hand is final."""
        category = self.ask(Failure(error, "source", self.account.name, self._troubles + 1))
        self._troubles += 1
        if category not in (Category.TRANSIENT, Category.DEPENDENCY) or self._troubles >= 8:
            if self.error is not None:
                raise self.error  # it takes no settlement either: what is in hand is given back
            error.add_note(f"raised by source {self.account.name!r} after {_items(self.account.seen)}")
            self.error, self.stopped, self._troubles = error, True, 0
            return
        await anyio.sleep(Retry().delay(self._troubles, error, None, self.rng))

    async def _renew_if_due(self) -> None:
        claim = self.session.claim_seconds
        if claim is None or self.clock() < self._renewed + claim / 3:
            return
        failures, self.failures = self.failures, []
        started = self.clock()
        try:
            gone = await self._bounded(lambda: self.session.renew(failures), "renew its claims")
        except Exception as error:
            self.failures = failures + self.failures
            await self._trouble(error)
            return
        self._renewed = started
        if gone:
            self.lost(self.account, gone)

    async def _bounded(self, call: Callable[[], Awaitable[R]], purpose: str) -> R:
        """Make one call that changes who owns items: not cut off by cancellation, but by a deadline."""
        with anyio.move_on_after(CALL_SECONDS, shield=True):
            return await call()
        raise SettlementError(
            f"source {self.account.name!r} did not answer within {CALL_SECONDS:g} s; asked to {purpose}"
        )

    async def _wait(self, room: int) -> None:
        """Wait until something is to be done."""
        claim = self.session.claim_seconds
        until = math.inf if claim is None else self._renewed + claim / 3
        self._lingers = bool(self.account.unsent)
        if self._lingers:
            until = min(until, anyio.current_time() + (LINGER_SECONDS if self.account.open else 0))
        failure: Exception | None = None
        with anyio.CancelScope(deadline=until) as self.waiting:
            if room:
                self._listens = True
                try:
                    await self.session.wait_ready()
                except Exception as error:
                    failure = error
            else:
                self._ask_for_room()
                # An event, because cutting off a wait costs several times as much as ending one.
                self._poked = anyio.Event()
                await self._poked.wait()
        self.waiting, self._poked, self._listens = None, None, False
        if failure is not None:
            await self._trouble(failure)

    def _ask_for_room(self) -> None:
        inbox = self.route.inbox
        if inbox is None or not inbox.held or self._asked_for_room or self.stopped or self.ended or self._rest:
            return
        self._asked_for_room = True
        inbox.call_when_room(self._has_room, max(self.route.max_size, inbox.max_items // 2))


def _without_items(chunk: Chunk[object]) -> Chunk[object]:
    # Spelled out: attrs.evolve costs five times as much, for every chunk.
    return Chunk(
        (),
        chunk.offsets,
        chunk.partition,
        chunk.epoch,
        chunk.deliveries,
        chunk.failures,
        chunk.maybe_done,
        chunk.keys,
        chunk.headers,
        chunk.sizes,
    )


def _pieces(hold: Hold, items: list[object], now: float) -> list[Piece]:
    """Return the items as one piece, but for those that were handed out so often that they have to run alone."""
    chunk = hold.chunk
    assert chunk is not None
    keys = list(chunk.keys) if chunk.keys is not None else None
    rest = Piece(items, hold.base, hold.stop, keys=keys, since=now)
    if isinstance(chunk.deliveries, int) and chunk.deliveries < ALONE_FROM:
        return [rest]
    pieces: list[Piece] = []
    done = 0
    for index in range(len(items)):
        position = hold.base + index
        if hold.deliveries(position) - hold.failures(position) >= ALONE_FROM:
            if index > done:
                pieces.append(rest.split(index - done))
            alone = rest.split(1)
            alone.record = Record(failures=hold.failures(position), alone=True)
            pieces.append(alone)
            done = index + 1
    return [*pieces, rest] if rest.items else pieces


def _items(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"
