"""A queue whose sessions are watched: what they are told is held against the rules of settlement."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from attrs import define, field

import forebay
from forebay._queue import _Session
from forebay.abc import Chunk, Deliveries, Member, Redelivery, Session, Settlement


async def no_fault(method: str) -> None:
    """Let every call go through."""


@define(eq=False)
class Watch:
    """What a session was handed out and told, held against the rules."""

    queue: WatchedQueue
    session: Session[int]
    fetched: list[int] = field(factory=list[int])
    final: set[int] = field(factory=set[int])
    lost: set[int] = field(factory=set[int])
    late: set[int] = field(factory=set[int])
    """Items that came from another member when the mark had passed them: there are no partitions to own here."""
    mark: int = 0
    stranded: list[int] = field(factory=list[int])
    """What was in hand when the session was left."""

    @property
    def claim_seconds(self) -> float | None:
        return self.session.claim_seconds

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[int] | None:
        self._check(settled)
        await self.queue.faults("exchange")
        chunk = await self.session.exchange(settled, max_items=max_items, max_bytes=max_bytes)
        for one in settled:
            self.final.update(offset for offset in one.offsets if isinstance(offset, int))
            self.mark = max(self.mark, one.mark or 0)
        if chunk is not None:
            assert len(chunk.items) <= max_items
            self.fetched += chunk.items
            self.late.update(item for item in chunk.items if item < self.mark)
            self.final.difference_update(chunk.items)
            self._lose(chunk.lost)
        return chunk

    def _check(self, settled: Sequence[Settlement]) -> None:
        fresh = [offset for one in settled for offset in one.offsets if isinstance(offset, int)]
        assert len(fresh) == len(set(fresh)), "settled twice in one call"
        assert not self.final & set(fresh), f"settled again: {self.final & set(fresh)}"
        assert set(fresh) <= set(self.fetched), "settled what was not handed out"
        unreasoned = [offset for offset in fresh if not self.queue.has_reason(offset)]
        assert not unreasoned, f"settled without effect, dead letter or drop: {unreasoned}"
        final = self.final | set(fresh)
        for one in settled:
            assert one.mark is not None
            assert one.mark >= self.mark, "the mark went back"
            passed = {offset for offset in self.fetched if offset < one.mark and offset not in final}
            assert passed <= self.lost | self.late, f"mark {one.mark} passes {passed}"

    async def wait_ready(self) -> None:
        await self.session.wait_ready()

    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        if not refund:
            self.queue.violations.append("given back without a refund")
        await self.queue.faults("give_back")
        await self.session.give_back(deliveries, refund=refund)

    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        if self.queue.is_stalled():
            return []  # the claims lapse, and nobody here knows yet
        lost = await self.session.renew(failures)
        self._lose(lost)
        return lost

    def _lose(self, lost: Sequence[Deliveries]) -> None:
        self.lost.update(offset for one in lost for offset in one.offsets if isinstance(offset, int))

    async def lag(self) -> int | None:
        return await self.session.lag()


class WatchedQueue:
    """A queue in memory whose sessions are watched; offsets and items are the same numbers."""

    def __init__(self, claim_seconds: float, faults: Callable[[str], Awaitable[None]] = no_fault) -> None:
        self.queue = forebay.MemoryQueue[int](claim_seconds=claim_seconds)
        self.count = 0
        self.watches: list[Watch] = []
        self.has_reason: Callable[[int], bool] = lambda item: True
        self.faults = faults
        self.violations: list[str] = []
        self.is_stalled: Callable[[], bool] = lambda: False

    def put(self, count: int) -> None:
        self.queue.put_many(range(self.count, self.count + count))
        self.count += count

    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[Watch]:
        async with self.queue.open(member) as session:
            watch = Watch(self, session)
            self.watches.append(watch)
            try:
                yield watch
            finally:
                assert isinstance(session, _Session)
                watch.stranded = list(session.holder.entries)

    def settled(self) -> set[int]:
        """Offsets that the queue holds for final."""
        table = self.queue._table
        return set(range(self.count)) - {entry.offset for entry in table.fresh} - set(table.out)
