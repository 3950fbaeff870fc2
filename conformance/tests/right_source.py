"""A source that keeps every rule, small enough to be wrong in one place at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import checkpoint
from attrs import define, field

from forebay.abc import Chunk, Deliveries, Member, Redelivery, Session, Settlement
from forebay_conformance._source_probe import Offset


@define(eq=False)
class Entry:
    item: object
    offset: int
    due: float = 0.0
    epoch: int = 0  # of the session that has it
    held: bool = False
    until: float = 0.0  # when its claim runs out
    settled: bool = False
    deliveries: int = 0
    failures: int = 0
    maybe_done: bool = False


class RightSource:
    """Items in memory, one partition; each session has an epoch of its own and frees its items when it is left."""

    claim_seconds = 0.5

    def __init__(self, items: Sequence[object]) -> None:
        self.entries = [Entry(item, offset) for offset, item in enumerate(items)]
        self.epoch = 0
        self.changed = anyio.Event()

    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[Session[object]]:
        await checkpoint()
        self.epoch += 1
        session = self.session(self.epoch)
        try:
            yield session
        finally:
            self.left(session)

    def session(self, epoch: int) -> RightSession:
        return RightSession(self, epoch)

    def left(self, session: RightSession) -> None:
        for entry in self.entries:
            if entry.held and entry.epoch == session.epoch:
                entry.held = False
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


@define(eq=False, slots=False)
class RightSession:
    source: RightSource
    epoch: int
    lost: list[Deliveries] = field(factory=list[Deliveries])

    @property
    def claim_seconds(self) -> float | None:
        return self.source.claim_seconds

    # --- The protocol

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[object] | None:
        await checkpoint()
        for settlement in settled:
            self.settle(settlement)
        entries = self.pick(max_items, max_bytes)
        if not entries and self.ended() and not self.lost:
            return None
        for entry in entries:
            self.hand_out(entry)
        return self.chunk(entries)

    async def wait_ready(self) -> None:
        await checkpoint()
        while not self.news():
            with anyio.move_on_after(0.1):
                await self.source.changed.wait()

    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        await checkpoint()
        for group in deliveries:
            for entry in self.mine(group.offsets, group.epoch):
                self.return_one(entry, refund)
        self.source.wake()

    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        await checkpoint()
        for failure in failures:
            for entry in self.mine([failure.offset], failure.epoch):
                self.note(entry, failure)
        self.extend()
        return self.take_lost()

    async def lag(self) -> int | None:
        await checkpoint()
        return sum(1 for entry in self.source.entries if not entry.held and not entry.settled)

    # --- Its parts

    def ready(self, entry: Entry) -> bool:
        now = anyio.current_time()
        return not entry.settled and entry.due <= now and (not entry.held or entry.until <= now)

    def news(self) -> bool:
        return self.ended() or any(self.ready(entry) for entry in self.source.entries)

    def pick(self, max_items: int, max_bytes: int | None) -> list[Entry]:
        entries = [entry for entry in self.source.entries if self.ready(entry)][:max_items]
        return entries if max_bytes is None else self.fitting(entries, max_bytes)

    def fitting(self, entries: list[Entry], max_bytes: int) -> list[Entry]:
        fits: list[Entry] = []
        room = max_bytes
        for entry in entries:
            room -= size_of(entry)
            if room < 0 and fits:
                break
            fits.append(entry)
        return fits

    def hand_out(self, entry: Entry) -> None:
        entry.held, entry.epoch = True, self.epoch
        entry.until = anyio.current_time() + self.source.claim_seconds
        entry.deliveries += 1

    def ended(self) -> bool:
        return all(entry.settled for entry in self.source.entries)

    def chunk(self, entries: Sequence[Entry]) -> Chunk[object]:
        return Chunk(
            [entry.item for entry in entries],
            [self.offset(entry) for entry in entries],
            epoch=self.epoch,
            deliveries=[entry.deliveries for entry in entries],
            failures=[entry.failures for entry in entries],
            maybe_done=[entry.maybe_done for entry in entries],
            lost=self.take_lost(),
        )

    def offset(self, entry: Entry) -> Offset:
        return entry.offset

    def entry_at(self, offset: Offset) -> Entry:
        return self.source.entries[int(offset)]

    def take_lost(self) -> list[Deliveries]:
        lost, self.lost = self.lost, []
        return lost

    def mine(self, offsets: Sequence[Offset], epoch: int) -> list[Entry]:
        """Return those that are in hand under *epoch*; note those that somebody else took over."""
        lost = [offset for offset in offsets if self.entry_at(offset).epoch != epoch]
        if lost:
            self.lost.append(Deliveries(lost, epoch=epoch))
        entries = [self.entry_at(offset) for offset in offsets if offset not in lost]
        return [entry for entry in entries if entry.held and not entry.settled]

    def settle(self, settlement: Settlement) -> None:
        for entry in self.mine(settlement.offsets, settlement.epoch):
            entry.settled, entry.held = True, False
        for retry in settlement.retries:
            for entry in self.mine([retry.offset], retry.epoch):
                self.note(entry, retry)
                entry.due = anyio.current_time() + retry.after
                entry.held = False
        self.source.wake()

    def note(self, entry: Entry, failure: Redelivery) -> None:
        entry.failures = failure.failures
        entry.maybe_done = failure.maybe_done

    def return_one(self, entry: Entry, refund: bool) -> None:
        entry.held = False
        if refund:
            entry.deliveries -= 1

    def extend(self) -> None:
        for entry in self.source.entries:
            if entry.held and entry.epoch == self.epoch:
                entry.until = anyio.current_time() + self.source.claim_seconds


def size_of(entry: Entry) -> int:
    return len(entry.item) if isinstance(entry.item, bytes) else 1


@asynccontextmanager
async def open_right_source(items: Sequence[object]) -> AsyncGenerator[RightSource]:
    yield RightSource(items)
