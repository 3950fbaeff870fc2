"""Hands the items of a durable queue out to members and settles them."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from typing import Final, NamedTuple, TypeAlias, TypeVar

import anyio
from attrs import define, field

from forebay import EngineError
from forebay.abc import Chunk, Deliveries, Member, Offset, Redelivery, Session, Settlement
from forebay_sqlite._connection import DEADLINE, Database, Synchronous, open_database
from forebay_sqlite._location import file_of, positive
from forebay_sqlite._offsets import OffsetSet, compact, runs
from forebay_sqlite._queue import QUEUE_SCHEMA, listening, wake
from forebay_sqlite._schema import prepare

V = TypeVar("V")

Item: TypeAlias = object
"""What was put: bytes, or what JSON holds."""

_COLUMNS: Final = "offset, item, size, key, headers, deliveries, failures, maybe_done OR epoch IS NOT NULL"

# Retries that are due, items given back, and claims that have run out come before fresh items: they waited longest.
_RETURNED: Final = f"""
    SELECT {_COLUMNS} FROM forebay_queue
    WHERE queue = ? AND ready_at <= ? AND epoch IS NOT ? ORDER BY ready_at LIMIT ?
"""
_FRESH: Final = f"""
    SELECT {_COLUMNS} FROM forebay_queue
    WHERE queue = ? AND ready_at IS NULL AND epoch IS NULL ORDER BY offset LIMIT ?
"""
# NOT INDEXED: go by the offset; left to itself SQLite may walk the whole queue through the index.
_CLAIM: Final = """
    UPDATE forebay_queue NOT INDEXED
    SET deliveries = deliveries + 1, maybe_done = maybe_done OR epoch IS NOT NULL, ready_at = ?, epoch = ?
    WHERE offset BETWEEN ? AND ?
"""
_SETTLE: Final = "DELETE FROM forebay_queue NOT INDEXED WHERE offset BETWEEN ? AND ? AND queue = ? AND epoch = ?"
_MINE: Final = """
    SELECT offset FROM forebay_queue NOT INDEXED WHERE offset BETWEEN ? AND ? AND queue = ? AND epoch = ?
"""
_THERE: Final = "SELECT offset FROM forebay_queue NOT INDEXED WHERE offset BETWEEN ? AND ? AND queue = ?"
_GIVE_BACK: Final = """
    UPDATE forebay_queue NOT INDEXED
    SET ready_at = 0, epoch = NULL, deliveries = deliveries - ?, maybe_done = maybe_done OR ?
    WHERE offset BETWEEN ? AND ? AND queue = ? AND epoch = ?
"""
_RETRY: Final = """
    UPDATE forebay_queue NOT INDEXED
    SET failures = ?, maybe_done = maybe_done OR ?, error = ?, ready_at = ?, epoch = NULL
    WHERE offset = ? AND queue = ? AND epoch = ?
"""
_FAILURE: Final = """
    UPDATE forebay_queue NOT INDEXED SET failures = ?, maybe_done = maybe_done OR ?, error = ?
    WHERE offset = ? AND queue = ? AND epoch = ?
"""
_RENEW: Final = """
    UPDATE forebay_queue NOT INDEXED SET ready_at = ? WHERE offset BETWEEN ? AND ? AND queue = ? AND epoch = ?
"""
_SOMETHING: Final = """
    SELECT EXISTS (SELECT 1 FROM forebay_queue WHERE queue = ? AND ready_at IS NULL)
        OR EXISTS (SELECT 1 FROM forebay_queue WHERE queue = ? AND ready_at <= ? AND epoch IS NOT ?)
"""
_ANYTHING: Final = "SELECT EXISTS (SELECT 1 FROM forebay_queue WHERE queue = ?)"
_WAITING: Final = """
    SELECT count(*) FROM forebay_queue WHERE queue = ? AND (epoch IS NULL OR (ready_at <= ? AND epoch IS NOT ?))
"""
_OPENED: Final = """
    INSERT INTO forebay_queue_sessions (queue, member, host, opened_at) VALUES (?, ?, ?, ?) RETURNING epoch
"""
_MONTH: Final = 30 * 86_400.0


class _Fetched(NamedTuple):
    """One row of the queue as it is handed out."""

    offset: int
    item: str | bytes
    size: int
    key: str | None
    headers: str | None
    deliveries: int
    failures: int
    maybe_done: int


@define(eq=False)
class _Turn:
    """What one exchange does in its transaction; nothing in the session changes before the commit."""

    now: float
    released: OffsetSet = field(factory=OffsetSet)
    """No longer in hand: settled, retried, or lost."""
    retried: set[int] = field(factory=set[int])
    lost: list[Deliveries] = field(factory=list[Deliveries])
    rows: list[_Fetched] = field(factory=list[_Fetched])
    at_end: bool = False


@define(eq=False)
class _Session:
    """One member's conversation with a queue.

    Every session has an epoch of its own, in the rows of its items: a write whose epoch is not there changes nothing.
    """

    claim_seconds: float
    _database: Database
    _queue: str
    _epoch: int
    _until_empty: bool
    _poll_seconds: float
    _held: OffsetSet = field(factory=OffsetSet)
    # Claimed and committed, but not known to have reached the caller: a cancelled exchange leaves its items here,
    # and the next call gives them back.
    _undelivered: Sequence[int] = ()

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[Item] | None:
        """Settle and take in one transaction; `None` once an `until_empty` source holds nothing at all."""
        chunk = await self._database.write_then(
            f"exchanging with queue {self._queue!r}",
            lambda c: self._turn(c, settled, max_items, max_bytes),
            self._committed,
        )
        for one in runs(self._undelivered):
            self._held.add(one)
        self._undelivered = ()
        return chunk

    async def wait_ready(self) -> None:
        """Wait for a put in this process, for the end of the queue if that is wanted, or look every `poll_seconds`."""
        while True:
            with listening(self._database, self._queue) as event:
                if await self._database.read(f"looking into queue {self._queue!r}", self._may_find):
                    return
                with anyio.move_on_after(self._poll_seconds):
                    await event.wait()

    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        """Free the items for any member, before all that waits."""
        await self._database.write(
            f"giving back to queue {self._queue!r}", lambda c: self._give_back(c, deliveries, refund)
        )
        for given in deliveries:
            for one in self._mine(given):
                self._held.discard(one)
        wake(self._database, self._queue)

    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        """Extend the claims by `claim_seconds` from now."""
        lost = await self._database.write(
            f"renewing claims of queue {self._queue!r}", lambda c: self._renew(c, failures)
        )
        for one in lost:
            self._held.discard(one)
        return [Deliveries(one, epoch=self._epoch) for one in lost]

    async def lag(self) -> int:
        """Return how many items are in nobody's hands, those due later included."""
        return await self._database.read(f"counting queue {self._queue!r}", self._count_waiting)

    async def close(self) -> None:
        """Free what is still in hand; whether it was done is not known."""
        await self._database.write(f"leaving queue {self._queue!r}", self._leave)
        wake(self._database, self._queue)

    # --- In the writing thread, inside a transaction ------------------------------------------------------------------

    def _turn(
        self, connection: sqlite3.Connection, settled: Sequence[Settlement], max_items: int, max_bytes: int | None
    ) -> _Turn:
        turn = _Turn(time.time())
        self._free(connection, runs(self._undelivered), refund=True, maybe_done=False)
        for settlement in settled:
            self._settle(connection, settlement, turn)
        self._take(connection, turn, max_items, max_bytes)
        turn.at_end = self._until_empty and not turn.rows and not _truth(connection, _ANYTHING, self._queue)
        return turn

    def _settle(self, connection: sqlite3.Connection, settlement: Settlement, turn: _Turn) -> None:
        missing: list[int] = []
        for one in runs(_counted(settlement.offsets)):
            missing += self._delete(connection, one, settlement.epoch)
            if settlement.epoch == self._epoch:
                turn.released.add(one)
        for retry in settlement.retries:
            missing += self._retry(connection, retry, turn)
        if missing:
            turn.lost.append(Deliveries(compact(sorted(missing)), settlement.partition, settlement.epoch))

    def _delete(self, connection: sqlite3.Connection, one: range, epoch: int) -> list[int]:
        """Delete the rows of *one* that carry *epoch*; return those that were lost."""
        mine = (one.start, one.stop - 1, self._queue, epoch)
        connection.execute("SAVEPOINT settle")
        if connection.execute(_SETTLE, mine).rowcount == len(one):
            connection.execute("RELEASE settle")
            return []
        # Seldom: look at what was there before the deletion.
        connection.execute("ROLLBACK TO settle")
        connection.execute("RELEASE settle")
        lost = self._lost(connection, one, epoch)
        connection.execute(_SETTLE, mine)
        return lost

    def _retry(self, connection: sqlite3.Connection, retry: Redelivery, turn: _Turn) -> list[int]:
        """Give a failed item back for later; return its offset if it was lost."""
        one = runs(_counted([retry.offset]))[0]
        values = (retry.failures, retry.maybe_done, retry.error, turn.now + max(0.0, retry.after))
        applied = connection.execute(_RETRY, (*values, one.start, self._queue, retry.epoch)).rowcount
        lost = [] if applied else self._lost(connection, one, retry.epoch)
        if retry.epoch == self._epoch:
            turn.released.add(one)
            turn.retried.update(one if applied else ())
        return lost

    def _lost(self, connection: sqlite3.Connection, one: range, epoch: int) -> list[int]:
        """Return those of *one* that are not *epoch*'s to settle.

        Of this session's own, those in hand whose row is another's or gone; what is not in hand was settled before.
        """
        if epoch != self._epoch:
            return sorted(self._offsets(connection, _THERE, one))
        mine = self._offsets(connection, _MINE, one, epoch)
        return [offset for offset in one if offset in self._held and offset not in mine]

    def _offsets(self, connection: sqlite3.Connection, query: str, one: range, *epoch: int) -> set[int]:
        rows = connection.execute(query, (one.start, one.stop - 1, self._queue, *epoch))
        return {row[0] for row in rows}

    def _take(self, connection: sqlite3.Connection, turn: _Turn, max_items: int, max_bytes: int | None) -> None:
        """Claim what is ready."""
        gone: list[int] = []
        room = float("inf") if max_bytes is None else float(max_bytes)
        for row in self._ready(connection, turn.now, max_items):
            if row.offset in self._held and row.offset not in turn.retried:
                # It ran out and another member has had it. It is reported as lost first, and may come again after that.
                gone.append(row.offset)
                continue
            if len(turn.rows) >= max_items or (turn.rows and row.size > room):
                break
            turn.rows.append(row)
            room -= row.size
        turn.rows.sort()
        for one in runs([row.offset for row in turn.rows]):
            connection.execute(_CLAIM, (turn.now + self.claim_seconds, self._epoch, one.start, one.stop - 1))
        for one in runs(gone):
            turn.released.add(one)
            turn.lost.append(Deliveries(one, epoch=self._epoch))

    def _ready(self, connection: sqlite3.Connection, now: float, max_items: int) -> Iterator[_Fetched]:
        for query, values in ((_RETURNED, (self._queue, now, self._epoch)), (_FRESH, (self._queue,))):
            with closing(connection.execute(query, (*values, max_items))) as cursor:
                yield from map(_Fetched._make, cursor)

    def _renew(self, connection: sqlite3.Connection, failures: Sequence[Redelivery]) -> list[range]:
        self._free(connection, runs(self._undelivered), refund=True, maybe_done=False)
        until = time.time() + self.claim_seconds
        missing: list[int] = []
        for one in self._held.ranges:
            mine = (one.start, one.stop - 1, self._queue, self._epoch)
            if connection.execute(_RENEW, (until, *mine)).rowcount < len(one):
                missing.extend(set(one) - self._offsets(connection, _MINE, one, self._epoch))
        for failure in failures:
            values = (failure.failures, failure.maybe_done, failure.error, failure.offset, self._queue, failure.epoch)
            connection.execute(_FAILURE, values)
        return runs(missing)

    def _give_back(self, connection: sqlite3.Connection, deliveries: Sequence[Deliveries], refund: bool) -> None:
        self._free(connection, runs(self._undelivered), refund=True, maybe_done=False)
        for given in deliveries:
            self._free(connection, self._mine(given), refund=refund, maybe_done=given.maybe_done)

    def _leave(self, connection: sqlite3.Connection) -> None:
        self._free(connection, runs(self._undelivered), refund=True, maybe_done=False)
        self._free(connection, self._held.ranges, refund=False, maybe_done=True)
        connection.execute("DELETE FROM forebay_queue_sessions WHERE epoch = ?", (self._epoch,))

    def _free(
        self, connection: sqlite3.Connection, offsets: Sequence[range], *, refund: bool, maybe_done: bool
    ) -> None:
        for one in offsets:
            mine = (one.start, one.stop - 1, self._queue, self._epoch)
            connection.execute(_GIVE_BACK, (int(refund), int(maybe_done), *mine))

    def _mine(self, given: Deliveries) -> list[range]:
        return runs(_counted(given.offsets)) if given.epoch == self._epoch else []

    def _may_find(self, connection: sqlite3.Connection) -> bool:
        if self._until_empty and not _truth(connection, _ANYTHING, self._queue):
            return True
        return _truth(connection, _SOMETHING, self._queue, self._queue, time.time(), self._epoch)

    def _count_waiting(self, connection: sqlite3.Connection) -> int:
        row: tuple[int] = connection.execute(_WAITING, (self._queue, time.time(), self._epoch)).fetchone()
        return row[0]

    # --- In the writing thread, after the commit ----------------------------------------------------------------------

    def _committed(self, turn: _Turn) -> Chunk[Item] | None:
        for one in turn.released.ranges:
            self._held.discard(one)
        self._undelivered = [row.offset for row in turn.rows]
        if turn.at_end and not turn.lost:
            return None
        return self._chunk(turn.rows, turn.lost)

    def _chunk(self, rows: Sequence[_Fetched], lost: Sequence[Deliveries]) -> Chunk[Item]:
        return Chunk(
            items=self._decoded(rows),
            offsets=compact([row.offset for row in rows]),
            epoch=self._epoch,
            deliveries=_alike([row.deliveries + 1 for row in rows], 1),
            failures=_alike([row.failures for row in rows], 0),
            maybe_done=_alike([bool(row.maybe_done) for row in rows], False),
            keys=[_lane(row) for row in rows] if any(row.key is not None for row in rows) else None,
            headers=[_headers(row) for row in rows] if any(row.headers for row in rows) else None,
            sizes=[row.size for row in rows],
            lost=lost,
        )

    def _decoded(self, rows: Sequence[_Fetched]) -> list[Item]:
        texts = [row.item for row in rows if isinstance(row.item, str)]
        if len(texts) == len(rows):
            # One call of the parser for all is half the price of one for each.
            with suppress(ValueError):
                items: list[Item] = json.loads(f"[{','.join(texts)}]")
                if len(items) == len(rows):
                    return items
        return [row.item if isinstance(row.item, bytes) else self._parsed(row.offset, row.item) for row in rows]

    def _parsed(self, offset: int, text: str) -> Item:
        try:
            item: Item = json.loads(text)
        except ValueError as error:
            raise EngineError(
                f"{self._database.file}: item {offset} of queue {self._queue!r} is text but not JSON ({error}); "
                "something else has written it: put items with open_sqlite_queue",
                category="permanent",
            ) from error
        return item


@define(eq=False)
class SqliteSource:
    """A durable queue as a `forebay.abc.Source`; any number of members, in any number of processes, may open it."""

    queue: str
    claim_seconds: float
    _until_empty: bool
    _poll_seconds: float
    _database: Database

    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[Session[Item]]:
        """Open a session with an epoch of its own; leaving the block frees what is still in hand."""
        epoch = await self._database.write(f"joining queue {self.queue!r}", lambda c: self._joined(c, member))
        session = _Session(self.claim_seconds, self._database, self.queue, epoch, self._until_empty, self._poll_seconds)
        try:
            yield session
        finally:
            # Ends by the database's own deadline. If it fails, the claims run out by themselves.
            with anyio.CancelScope(shield=True), suppress(EngineError):
                await session.close()

    def _joined(self, connection: sqlite3.Connection, member: Member) -> int:
        now = time.time()
        connection.execute("DELETE FROM forebay_queue_sessions WHERE opened_at < ?", (now - _MONTH,))
        row: tuple[int] = connection.execute(_OPENED, (self.queue, member.id, member.host, now)).fetchone()
        return row[0]


def _truth(connection: sqlite3.Connection, query: str, *values: object) -> bool:
    row: tuple[int] = connection.execute(query, values).fetchone()
    return bool(row[0])


def _lane(row: _Fetched) -> str:
    # Among items with keys, one without is in a lane of its own.
    return f"offset {row.offset}" if row.key is None else row.key


def _headers(row: _Fetched) -> Mapping[str, str]:
    headers: dict[str, str] = json.loads(row.headers) if row.headers else {}
    return headers


def _alike(values: list[V], default: V) -> list[V] | V:
    """Return one value where all are alike."""
    first = values[0] if values else default
    return first if values.count(first) == len(values) else values


def _counted(offsets: Sequence[Offset]) -> Sequence[int]:
    """Return *offsets* as numbers.

    Raises:
        ValueError: one of them is not a number; this source gives out no such offset.
    """
    if isinstance(offsets, range):
        return offsets
    numbers = [offset for offset in offsets if isinstance(offset, int)]
    if len(numbers) != len(offsets):
        raise ValueError(f"offsets of this source are numbers, not {list(offsets)[:5]!r}; pass what it gave out")
    return numbers


@asynccontextmanager
async def open_sqlite_source(
    *,
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    queue: str = "default",
    claim_seconds: float = 60.0,
    until_empty: bool = False,
    poll_seconds: float = 0.2,
    synchronous: Synchronous = "full",
    deadline: float = DEADLINE,
) -> AsyncGenerator[SqliteSource]:
    """Open the queue *queue* in a file to take items out of it; `open_sqlite_queue` puts them in.

    Args:
        path: The database file; it is made if it does not exist.
        url: The same as `sqlite:///relative.db` or `sqlite:////absolute.db`.
        queue: Name of the queue; a file holds any number.
        claim_seconds: Seconds after which the items of a member that has died, or has not renewed, go to others.
        until_empty: End once the queue holds nothing: nothing ready, in anybody's hands, or due later.
        poll_seconds: How often to look for what other processes have put; what this event loop puts is seen at once.
        synchronous: With `full` what was settled stays settled after a power cut; with `normal` it may come again.
        deadline: Seconds that one call may take, waiting for locks included.

    Raises:
        ValueError: neither or both of *path* and *url* are given, or a number of seconds is not more than 0.
        EngineError: the file cannot be opened, or its tables are from a newer version.
    """
    file = file_of("open_sqlite_source", path, url)
    claim, poll = positive("claim_seconds", claim_seconds), positive("poll_seconds", poll_seconds)
    async with open_database(file, synchronous=synchronous, deadline=positive("deadline", deadline)) as database:
        await prepare(database, QUEUE_SCHEMA)
        yield SqliteSource(queue, claim, until_empty, poll, database)
