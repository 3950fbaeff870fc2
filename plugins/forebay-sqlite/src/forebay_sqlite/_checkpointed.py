"""Makes a source with a memory out of anything that can be read again from a given row."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from math import inf
from typing import Generic, TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint
from attrs import define, evolve, field, frozen

from forebay.abc import Chunk, Deliveries, Member, Redelivery, Session, Settlement
from forebay_sqlite._checkpoint import Checkpoint, open_sqlite_checkpoint
from forebay_sqlite._connection import DEADLINE, Synchronous
from forebay_sqlite._offsets import compact
from forebay_sqlite._rows import Rows

T = TypeVar("T")


@frozen
class _Counts:
    """How often a row was handed out and has failed; kept only for rows that come a second time."""

    deliveries: int = 1
    failures: int = 0
    maybe_done: bool = False


_FIRST = _Counts()


@define(eq=False)
class _Pool(Generic[T]):
    """What no session has in hand: rows still to be read, and rows that came back."""

    rows: Rows[T]
    in_thread: bool
    in_hand: int = 0
    """Rows that the sessions have."""
    changed: anyio.Event = field(factory=anyio.Event)
    """Set, and replaced, when rows come back or are settled."""
    reading: anyio.Lock = field(factory=anyio.Lock)
    _due: list[tuple[float, int]] = field(factory=list[tuple[float, int]])
    _back: dict[int, T] = field(factory=dict[int, T])
    _counts: dict[int, _Counts] = field(factory=dict[int, _Counts])

    def put_back(self, offset: int, row: T, counts: _Counts, due: float) -> None:
        self._back[offset] = row
        self._counts[offset] = counts
        heappush(self._due, (due, offset))
        self.in_hand -= 1

    def counts(self, offset: int) -> _Counts:
        return self._counts.get(offset, _FIRST)

    def note(self, failure: Redelivery, offset: int) -> _Counts:
        """Write *failure* down and return the counts that it leads to."""
        known = self.counts(offset)
        maybe_done = known.maybe_done or failure.maybe_done
        self._counts[offset] = evolve(known, failures=failure.failures, maybe_done=maybe_done)
        return self._counts[offset]

    def forget(self, offsets: Sequence[int]) -> None:
        self.in_hand -= len(offsets)
        if self._counts:
            for offset in offsets:
                self._counts.pop(offset, None)

    def tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    @property
    def at_end(self) -> bool:
        return self.rows.at_end and not self._due and not self.in_hand

    @property
    def next_due(self) -> float:
        return self._due[0][0] if self._due else inf

    def lag(self) -> int | None:
        return len(self._due) if self.rows.at_end else None

    async def read_ahead(self, count: int) -> None:
        async with self.reading:
            if self.in_thread:
                await to_thread.run_sync(self.rows.fill, count)
            else:
                self.rows.fill(count)

    def take(self, max_items: int, max_bytes: int | None, epoch: int) -> Chunk[T]:
        """Return rows that are due again, or else rows that are new."""
        if max_items and self.next_due <= anyio.current_time():
            return self._again(max_items, max_bytes, epoch)
        offsets, rows, sizes = self.rows.take(max_items, max_bytes)
        self.in_hand += len(rows)
        return Chunk(rows, offsets, epoch=epoch, sizes=sizes)

    def _again(self, max_items: int, max_bytes: int | None, epoch: int) -> Chunk[T]:
        now = anyio.current_time()
        found: dict[int, T] = {}
        room = inf if max_bytes is None else float(max_bytes)
        while len(found) < max_items and self.next_due <= now:
            offset = self._due[0][1]
            size = self.rows.size(self._back[offset])
            if found and size > room:
                break
            room -= size
            heappop(self._due)
            found[offset] = self._back.pop(offset)
        offsets = sorted(found)
        for offset in offsets:
            self._counts[offset] = evolve(self._counts[offset], deliveries=self._counts[offset].deliveries + 1)
        counts = [self._counts[offset] for offset in offsets]
        self.in_hand += len(offsets)
        return Chunk(
            [found[offset] for offset in offsets],
            compact(offsets),
            epoch=epoch,
            deliveries=[one.deliveries for one in counts],
            failures=[one.failures for one in counts],
            maybe_done=[one.maybe_done for one in counts],
        )


@define(eq=False)
class _Session(Generic[T]):
    """One member's share of the rows."""

    _pool: _Pool[T]
    _checkpoint: Checkpoint
    _epoch: int
    _held: dict[int, T] = field(factory=dict[int, T])

    @property
    def claim_seconds(self) -> None:
        """Nobody else takes the rows: they are this process's own."""
        return None

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[T] | None:
        """Add what is settled to the checkpoint and read on; `None` once every row is settled, in all sessions."""
        lost = await self._settle(settled)
        if not max_items:  # only settles: a reader that has failed must not stand in the way
            return None if self._pool.at_end and not lost else Chunk((), (), epoch=self._epoch, lost=lost)
        await self._pool.read_ahead(max_items)
        chunk = self._pool.take(max_items, max_bytes, self._epoch)
        self._held.update(zip(self._numbers(chunk.offsets), chunk.items, strict=True))
        if lost:
            return evolve(chunk, lost=lost)
        return None if self._pool.at_end else chunk

    async def wait_ready(self) -> None:
        """Wait until there are rows to read, a failed row is due, or the end has come."""
        pool = self._pool
        await checkpoint()
        while pool.rows.at_end and not pool.at_end and (wait := pool.next_due - anyio.current_time()) > 0:
            with anyio.move_on_after(wait):
                await pool.changed.wait()

    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        """Put the rows first in line, for any session."""
        await checkpoint()
        for given in deliveries:
            for offset in self._mine(given.offsets) if given.epoch == self._epoch else ():
                counts = self._pool.counts(offset)
                counts = evolve(
                    counts,
                    deliveries=counts.deliveries - int(refund),
                    maybe_done=counts.maybe_done or given.maybe_done,
                )
                self._pool.put_back(offset, self._held.pop(offset), counts, -inf)
        self._pool.tell()

    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        """Write down *failures*, in memory: they last as long as the source object."""
        await checkpoint()
        for failure in failures:
            for offset in self._mine([failure.offset]) if failure.epoch == self._epoch else ():
                self._pool.note(failure, offset)
        return ()

    async def lag(self) -> int | None:
        """Return how many rows wait once all have been read; `None` before that."""
        await checkpoint()
        return self._pool.lag()

    def close(self) -> None:
        """Leave what is in hand to other sessions; whether it was done is not known."""
        for offset, row in self._held.items():
            self._pool.put_back(offset, row, evolve(self._pool.counts(offset), maybe_done=True), -inf)
        self._held = {}
        self._pool.tell()

    async def _settle(self, settled: Sequence[Settlement]) -> list[Deliveries]:
        mine = [one for one in settled if one.epoch == self._epoch]
        final = [offset for one in mine for offset in self._mine(one.offsets)]
        if final:
            await self._checkpoint.add(final)
        else:
            await checkpoint()
        for offset in final:
            self._held.pop(offset, None)
        self._pool.forget(final)
        for retry in (retry for one in mine for retry in one.retries):
            for offset in self._mine([retry.offset]):
                due = anyio.current_time() + max(0.0, retry.after)
                self._pool.put_back(offset, self._held.pop(offset), self._pool.note(retry, offset), due)
        if settled:
            self._pool.tell()
        return [Deliveries(one.offsets, one.partition, one.epoch) for one in settled if one.epoch != self._epoch]

    def _mine(self, offsets: Sequence[object]) -> list[int]:
        """Return those of *offsets*, each once, that are in hand."""
        return [offset for offset in dict.fromkeys(offsets) if isinstance(offset, int) and offset in self._held]

    def _numbers(self, offsets: Sequence[object]) -> list[int]:
        return [offset for offset in offsets if isinstance(offset, int)]


@define(eq=False)
class CheckpointedSource(Generic[T]):
    """Rows of which a checkpoint knows which are done, as a `forebay.abc.Source`; offsets are row numbers from 0.

    Sessions that are open at the same time share the rows. Use it from one event loop at a time.
    """

    checkpoint: Checkpoint
    _read: Callable[[int], Iterable[T]]
    _weigh: Callable[[T], int] | None
    _in_thread: bool
    _pool: _Pool[T] | None = field(default=None, init=False)
    _epoch: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        """Name of the checkpoint, which is what reports and dead letters call the source."""
        return self.checkpoint.name

    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[Session[T]]:
        """Open a session; what it leaves in hand goes to the other sessions, or to a later one."""
        done = await self.checkpoint.load()
        if self._pool is None:
            self._pool = _Pool(Rows(self._read, done, self._weigh), self._in_thread)
        self._epoch += 1
        session = _Session(self._pool, self.checkpoint, self._epoch)
        try:
            yield session
        finally:
            session.close()


@asynccontextmanager
async def open_checkpointed(
    read: Callable[[int], Iterable[T]],
    /,
    *,
    name: str,
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    weigh: Callable[[T], int] | None = None,
    in_thread: bool = False,
    synchronous: Synchronous = "full",
    deadline: float = DEADLINE,
) -> AsyncGenerator[CheckpointedSource[T]]:
    """Open a source of rows that goes on, after any end, with the rows that are not done.

    What a run has settled is kept in the checkpoint. Where the rows end in `open_sqlite_sink` with the same file and
    `checkpoint=name`, each is written exactly once, whenever the process dies: the sink adds the number of a row
    to the checkpoint in the transaction that writes it.

    Args:
        read: Called with a row number; returns the rows from that one on, the same in every run.
        name: Name of the checkpoint; give every source its own.
        path: The database file; it is made if it does not exist.
        url: The same as `sqlite:///relative.db` or `sqlite:////absolute.db`.
        weigh: Size of a row in bytes, so that limits in bytes hold; without it they are ignored.
        in_thread: Read in a worker thread, for reading that blocks.
        synchronous: With `full` what was settled stays settled after a power cut; with `normal` it may come again.
        deadline: Seconds that one call of the database may take, waiting for locks included.

    Raises:
        ValueError: neither or both of *path* and *url* are given.
        EngineError: the file cannot be opened, or its tables are from a newer version.
    """
    async with open_sqlite_checkpoint(
        name=name, path=path, url=url, synchronous=synchronous, deadline=deadline
    ) as opened:
        yield CheckpointedSource(opened, read, weigh, in_thread)
