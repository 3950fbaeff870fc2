"""One SQLite file: its connections, and calls in worker threads that end by a deadline.

In a process there is one connection for writing and one for reading per file, however many objects use it:
writers in one process wait for each other on a lock, which is quick, and not in SQLite's busy handler, which sleeps.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypeVar

import anyio
from anyio import to_thread
from attrs import define, field

from forebay import EngineError
from forebay_sqlite._failures import engine_error, primary_code

R = TypeVar("R")
S = TypeVar("S")

Synchronous = Literal["full", "normal"]
"""`full`: a commit survives a power cut. `normal`: it survives the end of the process, kill -9 too, and is quicker."""

DEADLINE: Final = 5.0
"""Seconds that one call may take, waiting for locks included."""
_GRACE: Final = 0.4
"""Seconds past the deadline after which a cancelled caller stops waiting for a thread that hangs in the disk."""
_LOCK_SLICE: Final = 0.025
"""Longest wait for a lock between two looks at the deadline and at cancellation."""
_STEPS: Final = 10_000
"""Steps of SQLite's machine, about 1 ms, between two looks at the deadline and at cancellation."""


@define(eq=False)
class _Ticket:
    """How long one call may still take; shared between the task that waits and the thread that works."""

    doing: str
    seconds: float
    expires: float = field(init=False)
    cancelled: bool = field(default=False, init=False)
    started: bool = field(default=False, init=False)
    ended: threading.Event = field(factory=threading.Event, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self.expires = time.monotonic() + self.seconds

    def start(self) -> bool:
        """Return whether the thread may begin; no if the caller has gone already."""
        with self._lock:
            self.started = not self.cancelled
            return self.started

    def cancel(self) -> bool:
        """Make the thread stop; return whether it has begun, so that its end must be waited for."""
        with self._lock:
            self.cancelled = True
            return self.started

    def is_over(self) -> bool:
        return self.cancelled or time.monotonic() >= self.expires


@define(eq=False)
class _Lane:
    """One connection, used by one thread at a time, opened when it is first needed."""

    file: Path
    synchronous: Synchronous
    read_only: bool
    _lock: threading.Lock = field(factory=threading.Lock)
    _connection: sqlite3.Connection | None = None
    _ticket: _Ticket | None = None

    @contextmanager
    def using(self, ticket: _Ticket) -> Generator[sqlite3.Connection]:
        """Take the connection; SQLite's errors leave the block as `EngineError`."""
        while not self._lock.acquire(timeout=_LOCK_SLICE):
            if ticket.is_over():
                raise self._late(ticket, "other calls of this process came first")
        try:
            self._ticket = ticket
            if self._connection is None:
                self._connection = retried(ticket, self._opened)
            yield self._connection
        except sqlite3.OperationalError as error:
            if primary_code(error) == sqlite3.SQLITE_INTERRUPT:
                raise self._late(ticket, "it took too long") from None
            raise engine_error(error, self.file, ticket.doing) from error
        except sqlite3.Error as error:
            raise engine_error(error, self.file, ticket.doing) from error
        finally:
            self._ticket = None
            self._lock.release()

    def close(self) -> None:
        # Without the lock a thread hangs in the disk: the connection is left to it.
        if self._lock.acquire(timeout=DEADLINE):
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._lock.release()

    def _late(self, ticket: _Ticket, why: str) -> EngineError:
        return EngineError(f"{self.file}: {ticket.doing} did not end in {ticket.seconds:g} seconds: {why}")

    def _must_stop(self) -> bool:
        ticket = self._ticket
        return ticket is not None and ticket.is_over()

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.file, timeout=_LOCK_SLICE, isolation_level=None, check_same_thread=False)
        try:
            mode: tuple[str] = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode[0] != "wal":
                raise EngineError(
                    f"{self.file}: the file system has no write-ahead log (journal mode {mode[0]!r}); "
                    "put the database on a local disk",
                    category="permanent",
                )
            connection.execute(f"PRAGMA synchronous={self.synchronous}")
            connection.execute(f"PRAGMA query_only={int(self.read_only)}")
        except BaseException:
            connection.close()
            raise
        connection.set_progress_handler(self._must_stop, _STEPS)
        return connection


def retried(ticket: _Ticket, action: Callable[[], R]) -> R:
    """Do *action* again while the file is locked, until the call's time is over."""
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if primary_code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or ticket.is_over():
                raise
            time.sleep(0.001)


@define(eq=False)
class _File:
    """The connections of one process to one file, and how many objects use them."""

    writer: _Lane
    reader: _Lane
    users: int = 0


_Key: TypeAlias = tuple[int, str, Synchronous]

# Not a registry of names: only what makes two objects of one process share a file's connections.
_files: dict[_Key, _File] = {}
_files_lock = threading.Lock()


def _key(file: Path, synchronous: Synchronous) -> _Key:
    # A connection must not cross a fork, hence the process id.
    return (os.getpid(), os.path.realpath(file), synchronous)


def _join(key: _Key, file: Path, synchronous: Synchronous) -> _File:
    with _files_lock:
        lanes = _Lane(file, synchronous, read_only=False), _Lane(file, synchronous, read_only=True)
        shared = _files.setdefault(key, _File(*lanes))
        shared.users += 1
        return shared


def _leave(key: _Key) -> None:
    with _files_lock:
        shared = _files[key]
        shared.users -= 1
        if shared.users:
            return
        del _files[key]
    shared.reader.close()
    shared.writer.close()


def _nothing_more(result: R) -> R:
    return result


@define(eq=False)
class Database:
    """A file in use by one object.

    Any number of tasks may call `read` and `write` at once. Every call ends by its deadline.
    Cancelled: the call is cut off and its end waited for, at most until its deadline and half a second;
    then the whole of its transaction is committed or none of it is, and no transaction stays open.
    """

    file: Path
    deadline: float
    _shared: _File
    _writing: anyio.CapacityLimiter = field(factory=lambda: anyio.CapacityLimiter(1))
    _reading: anyio.CapacityLimiter = field(factory=lambda: anyio.CapacityLimiter(1))

    async def write(
        self,
        doing: str,
        work: Callable[[sqlite3.Connection], R],
        /,
    ) -> R:
        """Run *work* in a transaction of its own and return what it returns."""
        return await self.write_then(doing, work, _nothing_more)

    async def write_then(self, doing: str, work: Callable[[sqlite3.Connection], R], then: Callable[[R], S], /) -> S:
        """Like `write`, and in the same thread run *then* on the result once it is committed.

        *then* runs even if the caller has gone, before any later call on the same file.
        """

        def run(ticket: _Ticket) -> S:
            with self._shared.writer.using(ticket) as connection:
                retried(ticket, lambda: connection.execute("BEGIN IMMEDIATE"))
                return then(_finished(connection, ticket, work))

        return await self._call(doing, run, self._writing)

    async def read(self, doing: str, work: Callable[[sqlite3.Connection], R], /) -> R:
        """Run *work*, which sees the database as it is at one moment and must not write."""

        def attempt(connection: sqlite3.Connection, ticket: _Ticket) -> R:
            connection.execute("BEGIN")
            return _finished(connection, ticket, work)

        def run(ticket: _Ticket) -> R:
            with self._shared.reader.using(ticket) as connection:
                return retried(ticket, lambda: attempt(connection, ticket))

        return await self._call(doing, run, self._reading)

    async def _call(self, doing: str, run: Callable[[_Ticket], R], limiter: anyio.CapacityLimiter) -> R:
        ticket = _Ticket(doing, self.deadline)

        def in_thread() -> R:
            # The machine's clock counts, read in this thread: virtual time in the event loop cannot cut a call short.
            if not ticket.start():
                raise EngineError(f"{self.file}: {doing} was cancelled before it began")
            try:
                return run(ticket)
            finally:
                ticket.ended.set()

        try:
            return await to_thread.run_sync(in_thread, abandon_on_cancel=True, limiter=limiter)
        except anyio.get_cancelled_exc_class():
            if ticket.cancel():
                await _wait_for_end(ticket)
            raise


async def _wait_for_end(ticket: _Ticket) -> None:
    seconds = max(0.0, ticket.expires - time.monotonic()) + _GRACE
    with anyio.CancelScope(shield=True):
        await to_thread.run_sync(ticket.ended.wait, seconds, limiter=anyio.CapacityLimiter(1))


def _finished(connection: sqlite3.Connection, ticket: _Ticket, work: Callable[[sqlite3.Connection], R]) -> R:
    try:
        result = work(connection)
        if ticket.is_over():
            raise _interrupted()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled back already
            connection.execute("ROLLBACK")
        raise
    return result


def _interrupted() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("interrupted")
    error.sqlite_errorcode = sqlite3.SQLITE_INTERRUPT
    return error


@asynccontextmanager
async def open_database(
    file: Path, *, synchronous: Synchronous = "full", deadline: float = DEADLINE
) -> AsyncGenerator[Database]:
    """Open *file*, which is made if it does not exist; its folder must exist.

    Raises:
        ValueError: *synchronous* is neither `full` nor `normal`.
    """
    if synchronous not in ("full", "normal"):
        raise ValueError(f"synchronous must be 'full' or 'normal', not {synchronous!r}")
    key = _key(file, synchronous)
    shared = _join(key, file, synchronous)
    try:
        yield Database(file, deadline, shared)
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(_leave, key, limiter=anyio.CapacityLimiter(1))
