"""State in memory: the reference that every `StateStore` is held against."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heappush
from itertools import takewhile

import anyio
from anyio.lowlevel import checkpoint
from attrs import define, field

from forebay._errors import LostOwnershipError

_PAGE = 256  # keys that a scan holds at a time


@define(eq=False)
class MemoryStateStore:
    """Values of one namespace, kept in this object and gone with it.

    Use it from one event loop at a time. Every method is a checkpoint before it does anything,
    so a call that was cancelled has changed nothing. A write that is accepted raises the fence
    to its epoch even if it changes nothing: `put_many({}, epoch=7)` shuts out epoch 6.
    """

    namespace: str = field(default="default", kw_only=True)
    """Name that messages show."""
    _values: dict[str, bytes] = field(init=False, factory=dict[str, bytes])
    _ends: dict[str, float] = field(init=False, factory=dict[str, float])
    _by_end: list[tuple[float, str]] = field(init=False, factory=list[tuple[float, str]])
    _order: list[str] | None = field(init=False, default=None)
    _epoch: int = field(init=False, default=0)

    async def get_many(self, keys: Sequence[str], /) -> list[bytes | None]:
        """Return the value of each key in order, `None` where there is none."""
        await checkpoint()
        self._expire()
        return [self._values.get(key) for key in keys]

    async def put_many(self, values: Mapping[str, bytes], /, *, epoch: int, ttl: float | None = None) -> None:
        """Store all of *values* or none; with *ttl* they are gone after so many seconds.

        Raises:
            LostOwnershipError: a higher epoch has written here.
        """
        if ttl is not None and not ttl > 0:
            raise ValueError(f"ttl must be greater than 0 seconds, not {ttl}; leave it out to keep the values")
        copies = {key: bytes(value) for key, value in values.items()}
        await checkpoint()
        self._fence(epoch)
        self._expire()
        end = None if ttl is None else anyio.current_time() + ttl
        for key, value in copies.items():
            self._store(key, value, end)

    async def delete_many(self, keys: Sequence[str], /, *, epoch: int) -> None:
        """Delete all of *keys*; those that do not exist are ignored.

        Raises:
            LostOwnershipError: a higher epoch has written here.
        """
        await checkpoint()
        self._fence(epoch)
        for key in keys:
            self._drop(key)

    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        """Set *key* to *new* if it holds *old* now; `None` stands for no value.

        A value that is set this way lives until it is deleted, whatever the `ttl` of the old one.

        Raises:
            LostOwnershipError: a higher epoch has written here.
        """
        await checkpoint()
        self._fence(epoch)
        self._expire()
        if self._values.get(key) != old:
            return False
        if new is None:
            self._drop(key)
        else:
            self._store(key, bytes(new), None)
        return True

    async def scan(self, prefix: str, /) -> AsyncGenerator[str]:
        """Iterate over the keys that start with *prefix*, ascending, a page in memory at a time.

        A checkpoint once a page, not once a key. The store may change meanwhile: no key comes twice,
        one that is there all the while comes, one that is gone by its turn does not.
        """
        await checkpoint()
        page = self._page(bisect_left(self._ordered(), prefix), prefix)
        while page:
            for key in page:
                self._expire()
                if key in self._values:
                    yield key
            await checkpoint()
            page = self._page(bisect_right(self._ordered(), page[-1]), prefix)

    def _page(self, start: int, prefix: str) -> list[str]:
        keys = self._ordered()[start : start + _PAGE]
        return list(takewhile(lambda key: key.startswith(prefix), keys))

    def _ordered(self) -> list[str]:
        if self._order is None:
            self._order = sorted(self._values)
        return self._order

    def _fence(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise LostOwnershipError(
                f"epoch {epoch} may not write to state {self.namespace!r}: epoch {self._epoch} has written there"
            )
        self._epoch = epoch

    def _store(self, key: str, value: bytes, end: float | None) -> None:
        if key not in self._values:
            self._order = None
        self._values[key] = value
        if end is None or math.isinf(end):
            self._ends.pop(key, None)
            return
        self._ends[key] = end
        heappush(self._by_end, (end, key))
        if len(self._by_end) > 2 * len(self._ends) + 64:  # mostly ends that were moved since
            self._by_end = [(end, key) for key, end in self._ends.items()]
            heapify(self._by_end)

    def _drop(self, key: str) -> None:
        if self._values.pop(key, None) is not None:
            self._order = None
        self._ends.pop(key, None)

    def _expire(self) -> None:
        for key in self._overdue(anyio.current_time() if self._by_end else 0.0):
            self._drop(key)

    def _overdue(self, now: float) -> Iterator[str]:
        while self._by_end and self._by_end[0][0] <= now:
            end, key = heappop(self._by_end)
            if self._ends.get(key) == end:
                yield key


@asynccontextmanager
async def open_memory_state(*, namespace: str = "default") -> AsyncGenerator[MemoryStateStore]:
    """Open an empty state store in memory; two that are open at once share nothing, whatever their names."""
    await checkpoint()
    yield MemoryStateStore(namespace=namespace)
