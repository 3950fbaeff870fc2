"""A source and its sessions, as the source checks use them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio
from attrs import define, field, frozen

from forebay.abc import Chunk, Deliveries, Member, Redelivery, Session, Settlement, Source
from forebay_conformance._checks import CheckList
from forebay_conformance._probe import Probe
from forebay_conformance._traits import SourceTraits

Offset: TypeAlias = int | str
Place: TypeAlias = tuple[int, Offset]
"""Partition and offset: the identity of an item."""


@frozen
class Taken:
    """One item as it was handed out."""

    item: object
    partition: int
    offset: Offset
    epoch: int
    deliveries: int
    failures: int
    maybe_done: bool

    @property
    def place(self) -> Place:
        """Partition and offset."""
        return (self.partition, self.offset)


@define(eq=False)
class SessionProbe:
    """One member's session; every call is written to the trail and stands under the deadline."""

    probe: SourceProbe
    session: Session[object]
    name: str
    ended: bool = False
    lost: list[Deliveries] = field(factory=list[Deliveries])
    _open: set[Place] = field(factory=set[Place])
    _seen: set[Place] = field(factory=set[Place])

    async def exchange(
        self, settled: Sequence[Settlement] = (), /, *, max_items: int, max_bytes: int | None = None
    ) -> list[Taken]:
        """Call exchange() and return what came, flat; `ended` says whether it was None."""
        text = f"{self.name}.exchange({shown(settled)}, max_items={max_items}, max_bytes={max_bytes})"
        chunk = await self.probe.call(
            text, lambda: self.session.exchange(settled, max_items=max_items, max_bytes=max_bytes)
        )
        return self.received(chunk)

    def received(self, chunk: Chunk[object] | None, /) -> list[Taken]:
        """Note what *chunk* brought and return it flat."""
        self.ended = chunk is None
        if chunk is None:
            return []
        self.lost.extend(chunk.lost)
        taken = self.probe.flat(chunk)
        self._seen.update(each.place for each in taken)
        self._open.update(each.place for each in taken)
        return taken

    async def take(self, count: int, /) -> list[Taken]:
        """Exchange until *count* items are in hand, and fail when they do not come in time."""
        taken: list[Taken] = []
        with anyio.move_on_after(self.probe.traits.patience):
            while len(taken) < count and not self.ended:
                new = await self.exchange(max_items=count - len(taken))
                taken += new
                if not new:
                    await self.pause()
        self.probe.expect(len(taken) == count, expected=f"{count} items", got=told(taken))
        return taken

    async def settle(self, taken: Iterable[Taken], /, *, retries: Sequence[Redelivery] = ()) -> None:
        """Settle *taken*, with the commit mark where offsets are numbers."""
        await self.exchange(self.settlements(taken, retries=retries), max_items=0)

    def settlements(self, taken: Iterable[Taken], /, *, retries: Sequence[Redelivery] = ()) -> list[Settlement]:
        """Return what settles *taken*, one settlement for each partition and epoch."""
        groups: dict[tuple[int, int], list[Taken]] = {}
        for each in taken:
            groups.setdefault((each.partition, each.epoch), []).append(each)
            self._open.discard(each.place)
        for retry in retries:
            groups.setdefault((retry.partition, retry.epoch), [])
        return [self._settlement(partition, epoch, done, retries) for (partition, epoch), done in groups.items()]

    def _settlement(
        self, partition: int, epoch: int, done: Sequence[Taken], retries: Sequence[Redelivery]
    ) -> Settlement:
        again = [retry for retry in retries if (retry.partition, retry.epoch) == (partition, epoch)]
        return Settlement(
            [each.offset for each in done], partition=partition, epoch=epoch, mark=self._mark(partition), retries=again
        )

    def _mark(self, partition: int) -> int | None:
        seen = [offset for place, offset in self._seen if place == partition]
        waiting = [offset for place, offset in self._open if place == partition]
        if not all(isinstance(offset, int) for offset in seen):
            return None
        numbers = [int(offset) for offset in seen]
        return min((int(offset) for offset in waiting), default=max(numbers, default=-1) + 1)

    async def give_back(self, taken: Iterable[Taken], /, *, refund: bool = True) -> None:
        """Give *taken* back."""
        groups = deliveries_of(taken)
        text = f"{self.name}.give_back({shown(groups)}, refund={refund})"
        await self.probe.call(text, lambda: self.session.give_back(groups, refund=refund))

    async def renew(self, failures: Sequence[Redelivery] = (), /) -> Sequence[Deliveries]:
        """Renew all claims."""
        text = f"{self.name}.renew({len(failures)} failures)"
        return await self.probe.call(text, lambda: self.session.renew(failures))

    async def rest(self) -> list[Taken]:
        """Take and settle everything up to the source's end, and return it."""
        traits = self.probe.traits
        taken: list[Taken] = []
        new: list[Taken] = []
        quiet_since = anyio.current_time()
        with anyio.move_on_after(traits.patience) as limit:
            while True:
                new = await self.exchange(self.settlements(new), max_items=100)
                taken += new
                if new:
                    quiet_since = anyio.current_time()
                elif self.ended or (not traits.ends and anyio.current_time() - quiet_since > traits.quiet_seconds):
                    return taken
                else:
                    await self.pause()
        assert limit.cancelled_caught
        self.probe.fail(
            expected=f"the end of the source within {traits.patience:g} s", got=f"{told(taken)}, and no end"
        )

    async def pause(self) -> None:
        """Wait for items, but not for long; time always moves on."""
        with anyio.move_on_after(0.05):
            await self.session.wait_ready()
        await anyio.sleep(0.005)


@define
class SourceProbe(Probe[SourceTraits]):
    """A source check's view of the plugin."""

    def items(self, count: int, /, *, size: int = 16) -> list[object]:
        """Return *count* different items."""
        return [self.traits.make_item(number, size) for number in range(count)]

    @asynccontextmanager
    async def source(self, items: Sequence[object], /) -> AsyncGenerator[Source[object]]:
        """Open a source that holds *items*."""
        self.trail.append(f"open a source of {len(items)} items")
        async with self.opener(items) as source:
            yield source

    @asynccontextmanager
    async def session(self, source: Source[object], name: str = "a", /) -> AsyncGenerator[SessionProbe]:
        """Open a session for a new member called *name*."""
        self.trail.append(f"open session {name}")
        member = Member(id=f"{name}-{id(object()):x}-{len(self.trail)}", name="conformance", host="here")
        async with source.open(member) as session:
            yield SessionProbe(self, session, name)
        self.trail.append(f"leave session {name}")

    def flat(self, chunk: Chunk[object], /) -> list[Taken]:
        """Return the items of *chunk* with everything that belongs to each."""
        self.parallel(chunk, ["offsets", "deliveries", "failures", "maybe_done"])
        return [
            Taken(
                item,
                chunk.partition,
                chunk.offsets[index],
                chunk.epoch,
                _each(chunk.deliveries, index),
                _each(chunk.failures, index),
                bool(_each(chunk.maybe_done, index)),
            )
            for index, item in enumerate(chunk.items)
        ]

    def parallel(self, chunk: Chunk[object], names: Sequence[str], /) -> None:
        """Fail unless the lists called *names* are as long as the items."""
        count = len(chunk.items)
        for name in names:
            values: Sequence[object] | int | None = getattr(chunk, name)
            length = len(values) if isinstance(values, Sequence) else count
            self.expect(length == count, expected=f"{count} {name}, one for each item", got=f"{length} {name}")

    def same(self, taken: Sequence[Taken], wanted: Sequence[object], /, *, what: str) -> None:
        """Fail unless *taken* are exactly the items *wanted*, in any order, each once."""
        missing = list(wanted)
        extra: list[object] = []
        for each in taken:
            if each.item in missing:
                missing.remove(each.item)
            else:
                extra.append(each.item)
        problem = [f"missing {missing!r}"] * bool(missing) + [f"unexpected {extra!r}"] * bool(extra)
        self.expect(not problem, expected=f"{what}: {len(wanted)} items", got="; ".join(problem))


def _each(values: Sequence[int] | int, index: int) -> int:
    return values[index] if isinstance(values, Sequence) else values


def deliveries_of(taken: Iterable[Taken], /) -> list[Deliveries]:
    """Return *taken* grouped by partition and epoch."""
    groups: dict[tuple[int, int], list[Offset]] = {}
    for each in taken:
        groups.setdefault((each.partition, each.epoch), []).append(each.offset)
    return [Deliveries(offsets, partition=partition, epoch=epoch) for (partition, epoch), offsets in groups.items()]


def retry_of(taken: Taken, failures: int, /, *, after: float = 0.0, maybe_done: bool = False) -> Redelivery:
    """Return the failed attempt of *taken*."""
    return Redelivery(
        taken.offset, failures, after, maybe_done, "ValueError: no", partition=taken.partition, epoch=taken.epoch
    )


def left(items: Sequence[object], taken: Iterable[Taken], /) -> list[object]:
    """Return *items* without those of *taken*."""
    gone = [each.item for each in taken]
    return [item for item in items if item not in gone]


def told(taken: Sequence[Taken], /) -> str:
    """Return the items of *taken* for people."""
    return f"{len(taken)} items: {[each.item for each in taken[:6]]!r}"


def shown(groups: Sequence[Settlement] | Sequence[Deliveries], /) -> str:
    """Return settlements or deliveries for people."""
    texts: list[str] = []
    for group in groups:
        retries = f", {len(group.retries)} retries" if isinstance(group, Settlement) and group.retries else ""
        texts.append(f"{list(group.offsets)[:6]} of epoch {group.epoch}{retries}")
    return "[" + ", ".join(texts) + "]"


SOURCE_CHECKS = CheckList("source", SourceProbe)
