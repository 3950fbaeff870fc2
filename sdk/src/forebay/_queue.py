"""A queue in memory with the contract of a durable one: the reference of `forebay.abc.Source`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from heapq import heappop, heappush
from itertools import groupby, repeat
from math import inf
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint
from attrs import define, field, frozen

from forebay._errors import EngineError
from forebay._types import Chunk, Deliveries, Member, Offset, Redelivery, Settlement
from forebay.abc import Session

T = TypeVar("T")
V = TypeVar("V")


@frozen
class QueueStatistics:
    """Where the items of a `MemoryQueue` are; ready, in hand, waiting and settled add up to all that were put."""

    ready: int
    """Items that the next exchange may take."""
    in_hand: int
    """Items that a session has; one whose claim has lapsed counts here until somebody asks for items."""
    waiting: int
    """Failed items that were not due at the last exchange."""
    settled: int
    """Items that are final."""
    deliveries: int
    """Hand-outs, those that were refunded left out."""


class MemoryQueue(Generic[T]):
    """Items that are handed out under a claim until somebody settles them; it is a source and a sink.

    It lives in one process and one event loop. What makes such a queue durable elsewhere (claims, epochs, the two
    counters, due times) works here on the event loop's clock. Any number of members may open it at a time.
    There is one partition, 0, and offsets count from 0.

    Args:
        claim_seconds: Time after which items in hand fall to whoever asks next, unless renewed.
        weigh: Size of an item in bytes; without it `max_bytes` limits nothing.
    """

    def __init__(self, *, claim_seconds: float = 30.0, weigh: Callable[[T], int] | None = None) -> None:
        if not claim_seconds > 0:
            raise ValueError(f"claim_seconds must be greater than 0, not {claim_seconds}")
        self._weigh = weigh
        self._table = _Table[T](claim_seconds=claim_seconds, weighed=weigh is not None)

    def put_many(self, items: Iterable[T], *, keys: Sequence[str] | None = None) -> None:
        """Add *items* at the end, all or none; never waits, there is no bound.

        Call it from the event loop's thread, or before the loop runs.

        Raises:
            EngineError: the queue has been closed.
        """
        if self._table.closed:
            raise EngineError(
                "put_many() was called on a closed queue; put all items before close()", category="permanent"
            )
        added = list(items)
        if keys is not None and len(keys) != len(added):
            raise ValueError(f"keys must hold one key for each item, not {len(keys)} for {len(added)} items")
        sizes = repeat(0) if self._weigh is None else [self._weigh(item) for item in added]
        self._table.add(added, repeat(None) if keys is None else keys, sizes)

    async def write(self, items: Sequence[T], /) -> None:
        """Put *items*; cancelled, none of them was."""
        await checkpoint()
        self.put_many(items)

    def close(self) -> None:
        """Take no more items; sessions end when all that were put are final. May be called twice."""
        self._table.closed = True
        self._table.wake()

    def open(self, member: Member, /) -> AbstractAsyncContextManager[Session[T]]:
        """Open a session of *member*'s own; leaving the block settles nothing.

        What is in hand then falls to others when its claim lapses, as after a crash: give it back before.
        """
        return _open(self._table, member)

    def statistics(self) -> QueueStatistics:
        """Return where the items are now."""
        return self._table.statistics()


@define(eq=False)
class _Entry(Generic[T]):
    offset: int
    item: T
    key: str | None
    size: int
    deliveries: int = 0
    failures: int = 0
    maybe_done: bool = False
    epoch: int = 0  # of the latest hand-out
    withdrawn: bool = False  # whether the latest hand-out ended by its claim lapsing
    holder: _Holder[T] | None = None
    deadline: float = 0.0  # when the claim lapses


@define(eq=False)
class _Holder(Generic[T]):
    """What one session has in hand, and what it has lost without knowing."""

    epoch: int
    open: bool = True
    entries: dict[int, _Entry[T]] = field(factory=dict[int, _Entry[T]])  # the first to lapse first
    lost: set[tuple[int, int]] = field(factory=set[tuple[int, int]])  # (epoch, offset)

    def first_deadline(self) -> float:
        return next(iter(self.entries.values())).deadline if self.entries else inf

    def pop_lost(self) -> list[Deliveries]:
        lost, self.lost = sorted(self.lost), set()
        by_epoch = groupby(lost, key=lambda pair: pair[0])
        return [Deliveries(_compact([offset for _, offset in pairs]), epoch=epoch) for epoch, pairs in by_epoch]


@define(eq=False)
class _Table(Generic[T]):
    """The engine. No method waits, so no cancellation comes between two lines of any."""

    claim_seconds: float
    weighed: bool
    closed: bool = False
    holders: list[_Holder[T]] = field(factory=list["_Holder[T]"])  # open, or with something in hand
    out: dict[int, _Entry[T]] = field(factory=dict[int, _Entry[T]])  # was handed out and is not final
    # Two heaps; all that was returned stands before all that is fresh.
    returned: list[tuple[int, _Entry[T]]] = field(factory=list["tuple[int, _Entry[T]]"])
    waiting: list[tuple[float, int, _Entry[T]]] = field(factory=list["tuple[float, int, _Entry[T]]"])
    fresh: deque[_Entry[T]] = field(factory=deque["_Entry[T]"])
    waiters: set[anyio.Event] = field(factory=set[anyio.Event])
    next_offset: int = 0
    last_epoch: int = 0
    settled: int = 0
    deliveries: int = 0

    # --- Sessions

    def join(self) -> _Holder[T]:
        self.last_epoch += 1
        holder = _Holder[T](self.last_epoch)
        self.holders.append(holder)
        return holder

    def leave(self, holder: _Holder[T]) -> None:
        holder.open = False
        self.forget_gone()

    def forget_gone(self) -> None:
        self.holders = [holder for holder in self.holders if holder.open or holder.entries]

    # --- What there is

    def statistics(self) -> QueueStatistics:
        return QueueStatistics(
            ready=len(self.fresh) + len(self.returned),
            in_hand=sum(len(holder.entries) for holder in self.holders),
            waiting=len(self.waiting),
            settled=self.settled,
            deliveries=self.deliveries,
        )

    def ended(self) -> bool:
        return self.closed and not self.fresh and not self.out

    def has_news(self, holder: _Holder[T], now: float) -> bool:
        there = self.fresh or self.returned or holder.lost or self.ended()
        return bool(there) or self.next_change() <= now

    def next_change(self) -> float:
        """Return when the next item is due or the next claim lapses."""
        due = self.waiting[0][0] if self.waiting else inf
        return min(due, *[holder.first_deadline() for holder in self.holders], inf)

    def wake(self) -> None:
        for event in self.waiters:
            event.set()

    def add(self, items: Sequence[T], keys: Iterable[str | None], sizes: Iterable[int]) -> None:
        offsets = range(self.next_offset, self.next_offset + len(items))
        self.fresh.extend(map(_Entry[T], offsets, items, keys, sizes))
        self.next_offset = offsets.stop
        self.wake()

    # --- Out

    def fetch(self, holder: _Holder[T], max_items: int, max_bytes: int | None, now: float) -> list[_Entry[T]]:
        if max_items == 0:
            return []
        self.refill(now)
        taken = self.take(max_items, max_bytes)
        # Who let a claim lapse may settle nothing under the old epoch, not even if the item is its own again.
        if any(entry.epoch + entry.withdrawn > holder.epoch for entry in taken):
            self.last_epoch += 1
            holder.epoch = self.last_epoch
        for entry in taken:
            entry.deliveries += 1
            entry.epoch, entry.withdrawn, entry.holder = holder.epoch, False, holder
            entry.deadline = now + self.claim_seconds
            self.out[entry.offset] = holder.entries[entry.offset] = entry
        self.deliveries += len(taken)
        return taken

    def refill(self, now: float) -> None:
        """Make ready what is due and what nobody renewed."""
        while self.waiting and self.waiting[0][0] <= now:
            self.put_back(heappop(self.waiting)[2])
        for holder in self.holders:
            while holder.first_deadline() <= now:
                self.withdraw(holder, next(iter(holder.entries.values())))
        self.forget_gone()

    def withdraw(self, holder: _Holder[T], entry: _Entry[T]) -> None:
        holder.lost.add((entry.epoch, entry.offset))
        self.let_go(holder, entry)
        entry.withdrawn = entry.maybe_done = True
        self.put_back(entry)

    def take(self, max_items: int, max_bytes: int | None) -> list[_Entry[T]]:
        """Take the first items that fit, in order; those with a key and those without never come together."""
        taken: list[_Entry[T]] = []
        room = inf if max_bytes is None or not self.weighed else max_bytes
        while len(taken) < max_items and (self.returned or self.fresh):
            entry = self.returned[0][1] if self.returned else self.fresh[0]
            if taken and (entry.size > room or (entry.key is None) != (taken[0].key is None)):
                break
            if self.returned:
                heappop(self.returned)
            else:
                self.fresh.popleft()
            room -= entry.size
            taken.append(entry)
        return taken

    # --- Back

    def held(self, holder: _Holder[T], offset: Offset, partition: int, epoch: int) -> _Entry[T] | None:
        """Return the entry if *holder* has it under *epoch*; note it as lost if somebody else got it.

        One that is final, or that went back under the same epoch, is neither: the same was said before.
        """
        entry = self.out.get(offset) if isinstance(offset, int) and partition == 0 else None
        if entry is None or (entry.epoch == epoch and entry.holder is None and not entry.withdrawn):
            return None
        if entry.holder is holder and entry.epoch == epoch:
            return entry
        holder.lost.add((epoch, entry.offset))
        return None

    def settle(self, holder: _Holder[T], settlement: Settlement, now: float) -> None:
        for offset in settlement.offsets:
            entry = self.held(holder, offset, settlement.partition, settlement.epoch)
            if entry is not None:
                self.let_go(holder, entry)
                del self.out[entry.offset]
                self.settled += 1
        for retry in settlement.retries:
            entry = self.held(holder, retry.offset, retry.partition, retry.epoch)
            if entry is not None:
                self.note(entry, retry)
                self.let_go(holder, entry)
                self.put_back(entry, now + retry.after if retry.after > 0 else None)
        self.wake()

    def note(self, entry: _Entry[T], failure: Redelivery) -> None:
        entry.failures = max(entry.failures, failure.failures)
        entry.maybe_done = entry.maybe_done or failure.maybe_done

    def give_back(self, holder: _Holder[T], entry: _Entry[T], refund: bool, maybe_done: bool) -> None:
        self.let_go(holder, entry)
        if refund:
            entry.deliveries -= 1
            self.deliveries -= 1
        # It was begun, else its delivery would not count.
        entry.maybe_done = entry.maybe_done or maybe_done or not refund
        self.put_back(entry)

    def let_go(self, holder: _Holder[T], entry: _Entry[T]) -> None:
        del holder.entries[entry.offset]
        entry.holder = None

    def put_back(self, entry: _Entry[T], due: float | None = None) -> None:
        if due is None:
            heappush(self.returned, (entry.offset, entry))
        else:
            heappush(self.waiting, (due, entry.offset, entry))


@define(eq=False)
class _Session(Generic[T]):
    """See `forebay.abc.Session`. Each method is a checkpoint before it does anything: cancelled, it did nothing."""

    table: _Table[T]
    holder: _Holder[T]

    @property
    def claim_seconds(self) -> float | None:
        return self.table.claim_seconds

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[T] | None:
        if max_items < 0:
            raise ValueError(f"max_items must be at least 0, not {max_items}")
        now = await self._begin()
        for settlement in settled:
            self.table.settle(self.holder, settlement, now)
        taken = self.table.fetch(self.holder, max_items, max_bytes, now)
        lost = self.holder.pop_lost()
        if not taken and not lost and self.table.ended():
            return None
        return _chunk(taken, self.holder.epoch, lost, self.table.weighed)

    async def wait_ready(self) -> None:
        await self._begin()
        while not self.table.has_news(self.holder, anyio.current_time()):
            event = anyio.Event()
            self.table.waiters.add(event)
            try:
                with anyio.CancelScope(deadline=self.table.next_change()):
                    await event.wait()
            finally:
                self.table.waiters.discard(event)

    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        await self._begin()
        for given in deliveries:
            for offset in given.offsets:
                entry = self.table.held(self.holder, offset, given.partition, given.epoch)
                if entry is not None:
                    self.table.give_back(self.holder, entry, refund, given.maybe_done)
        self.table.wake()

    async def renew(self, failures: Sequence[Redelivery], /) -> list[Deliveries]:
        now = await self._begin()
        for failure in failures:
            entry = self.table.held(self.holder, failure.offset, failure.partition, failure.epoch)
            if entry is not None:
                self.table.note(entry, failure)
        for entry in self.holder.entries.values():
            entry.deadline = now + self.table.claim_seconds
        return self.holder.pop_lost()

    async def lag(self) -> int | None:
        await self._begin()
        return len(self.table.fresh) + len(self.table.returned) + len(self.table.waiting)

    async def _begin(self) -> float:
        await checkpoint()
        if not self.holder.open:
            raise EngineError("the session has been closed; use it inside its `async with` block", category="permanent")
        return anyio.current_time()


@asynccontextmanager
async def _open(table: _Table[T], member: Member) -> AsyncGenerator[Session[T]]:
    del member  # sessions are told apart by their epochs
    await checkpoint()
    holder = table.join()
    try:
        yield _Session(table, holder)
    finally:
        table.leave(holder)


def _chunk(taken: Sequence[_Entry[T]], epoch: int, lost: Sequence[Deliveries], weighed: bool) -> Chunk[T]:
    keys = [entry.key for entry in taken if entry.key is not None]
    return Chunk(
        items=[entry.item for entry in taken],
        offsets=_compact([entry.offset for entry in taken]),
        epoch=epoch,
        deliveries=_alike([entry.deliveries for entry in taken], 1),
        failures=_alike([entry.failures for entry in taken], 0),
        maybe_done=_alike([entry.maybe_done for entry in taken], False),
        keys=keys or None,
        sizes=[entry.size for entry in taken] if weighed else None,
        lost=lost,
    )


def _compact(offsets: list[int]) -> Sequence[int]:
    """Return ascending *offsets* as a `range` if none is missing between them."""
    if not offsets or offsets[-1] - offsets[0] + 1 != len(offsets):
        return offsets
    return range(offsets[0], offsets[-1] + 1)


def _alike(values: list[V], default: V) -> list[V] | V:
    return values if len(set(values)) > 1 else next(iter(values), default)
