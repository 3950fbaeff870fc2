"""The work that is done in many ways: dicts from a generator -> map -> batches -> async sink that counts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice

from forebay.abc import Chunk, Deliveries, Member, Redelivery, Session, Settlement

BATCH = 256

Item = dict[str, int]


def orders(count: int) -> Iterator[Item]:
    """Generate *count* items."""
    for number in range(count):
        yield {"id": number, "price": number & 1023, "amount": 3}


def enrich(order: Item) -> Item:
    """Make a new item from an old one."""
    return {"id": order["id"], "total": order["price"] * order["amount"]}


class Tally:
    """A sink that counts."""

    def __init__(self) -> None:
        self.items = 0
        self.total = 0

    async def take(self, batch: Sequence[Item]) -> None:
        self.items += len(batch)
        self.total += batch[0]["total"]


async def bare_loop(count: int, tally: Tally) -> None:
    """Do the work with nothing in between: the floor."""
    batch: list[Item] = []
    for order in orders(count):
        batch.append(enrich(order))
        if len(batch) == BATCH:
            await tally.take(batch)
            batch = []
    if batch:
        await tally.take(batch)


class CountedSource:
    """A source in memory that wants each item acknowledged, and knows afterwards whether it was."""

    name = "counted"

    def __init__(self, items: Iterable[Item], count: int) -> None:
        self._items = iter(items)
        self._taken = 0
        self._ended = False
        self._settled = bytearray(count)
        self.twice = 0
        self.settlements = 0

    @property
    def settled(self) -> int:
        """Items that were settled."""
        return self._settled.count(1)

    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[Session[Item]]:
        yield self

    @property
    def claim_seconds(self) -> float | None:
        return None

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[Item] | None:
        for one in settled:
            self._settle(one)
        items = list(islice(self._items, max_items))
        self._ended = self._ended or (max_items > 0 and not items)
        if self._ended:
            return None
        first = self._taken
        self._taken += len(items)
        return Chunk(items, range(first, self._taken))

    def _settle(self, settlement: Settlement) -> None:
        self.settlements += 1
        offsets = settlement.offsets
        if isinstance(offsets, range):
            self.twice += self._settled.count(1, offsets.start, offsets.stop)
            self._settled[offsets.start : offsets.stop] = b"\1" * len(offsets)
            return
        for offset in offsets:
            assert isinstance(offset, int)
            self.twice += self._settled[offset]
            self._settled[offset] = 1

    async def wait_ready(self) -> None:
        """Return at once: there is always something, or the end."""

    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        raise AssertionError("a run that ends by itself gives nothing back")

    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        return ()

    async def lag(self) -> int | None:
        return None
