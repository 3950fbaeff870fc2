"""Makes items out of what a program has at hand: an iterable, an async iterable, an iterable that blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import anyio
import anyio.from_thread
import anyio.lowlevel
from attrs import define, field

from forebay._worker import run_in_thread


class Mapped(NamedTuple):
    """What was taken from a source, and perhaps put through a function."""

    items: list[object]
    error: Exception | None = None
    """What the function raised for the item that comes next."""
    bad: object = None
    """That item."""


class Reader(Protocol):
    """Gives what can be had without waiting. It keeps no account: nothing is acknowledged to it."""

    @property
    def blocks(self) -> bool:
        """Whether taking runs the program's own code, which may hold the event loop."""
        ...

    def take_nowait(self, max_items: int) -> Mapped | None:
        """Return at most so many items; none when it would have to wait, `None` at the end."""
        ...

    def take_mapped(self, func: Callable[[object], object], max_items: int) -> Mapped | None:
        """Take like `take_nowait` and call *func* with each item."""
        ...

    async def wait_ready(self) -> None:
        """Wait until `take_nowait` has something; cancelled at will, loses nothing."""
        ...

    async def read(self) -> None:
        """Run beside the pump for as long as the run lasts, to fill what is taken from."""
        ...

    def stop(self) -> None:
        """Read no more; what has been read can still be taken, and then the end comes."""
        ...


@define(eq=False)
class IterableReader:
    """Reads a synchronous iterable in the pump itself."""

    _iterator: Iterator[object]
    _error: Exception | None = None
    blocks: bool = True

    def take_nowait(self, max_items: int) -> Mapped | None:
        """Return the next items; what came before an exception comes first."""
        if self._error is not None:
            raise self._error
        items: list[object] = []
        try:
            items.extend(islice(self._iterator, max_items))
        except Exception as error:
            if not items:
                raise
            self._error = error
        return Mapped(items) if items else None

    def take_mapped(self, func: Callable[[object], object], max_items: int) -> Mapped | None:
        """Return what *func* returns for the next items; stop at the first item for which it raises."""
        if self._error is not None:
            raise self._error
        out: list[object] = []
        try:
            for item in islice(self._iterator, max_items):
                try:
                    out.append(func(item))
                except Exception as error:
                    return Mapped(out, error, item)
        except Exception as error:
            if not out:
                raise
            self._error = error
        return Mapped(out) if out else None

    async def wait_ready(self) -> None:
        """Never called: an iterable always has something, or is at its end."""
        await anyio.lowlevel.checkpoint()

    async def read(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Come to the end."""
        self._iterator = iter(())


@define(eq=False)
class _QueuedReader:
    """What is common to readers that run beside the pump: a bounded queue between the two."""

    max_items: int
    blocks: bool = field(default=False, init=False)
    _items: deque[object] = field(factory=deque[object], init=False)
    _ended: bool = field(default=False, init=False)
    _error: Exception | None = field(default=None, init=False)
    _filled: anyio.Event | None = field(default=None, init=False)
    _emptied: anyio.Event | None = field(default=None, init=False)
    _reading: anyio.CancelScope | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)

    def take_mapped(self, func: Callable[[object], object], max_items: int) -> Mapped | None:
        """Not called: only what runs in the pump is mapped while it is taken."""
        raise NotImplementedError  # pragma: no cover -- see ReaderFeed

    def take_nowait(self, max_items: int) -> Mapped | None:
        """Return the next items; what came before an exception or the end comes first."""
        items = self._items
        if items:
            taken = [items.popleft() for _ in range(min(max_items, len(items)))]
            if self._emptied is not None:
                self._emptied.set()
                self._emptied = None
            return Mapped(taken)
        if self._error is not None:
            raise self._error
        return None if self._ended else Mapped([])

    async def wait_ready(self) -> None:
        """Wait for an item, an exception or the end."""
        while True:
            self._filled = anyio.Event()
            # Looked at after the event is in its place: a thread may append in between.
            if self._items or self._ended or self._error:
                return
            await self._filled.wait()

    async def read(self) -> None:
        """Read until the end, as far ahead as the bound allows."""
        with anyio.CancelScope() as self._reading:
            if not self._stopped:
                try:
                    await self._read_all()
                except Exception as error:
                    self._error = error
        self._ended = True
        self._wake()

    def stop(self) -> None:
        """Read no more; what has been read can still be taken, and then the end comes."""
        self._stopped = True
        if self._reading is not None:
            self._reading.cancel()

    async def _read_all(self) -> None:
        raise NotImplementedError  # pragma: no cover -- each reader has its own

    def _wake(self) -> None:
        if self._filled is not None:
            self._filled.set()
            self._filled = None

    async def _wait_room(self) -> None:
        while len(self._items) >= self.max_items:
            self._emptied = anyio.Event()
            await self._emptied.wait()


@define(eq=False)
class AsyncReader(_QueuedReader):
    """Reads an asynchronous iterable in a task of its own."""

    source: AsyncIterable[object] = field(kw_only=True)

    async def _read_all(self) -> None:
        iterator = aiter(self.source)
        append = self._items.append
        try:
            async for item in iterator:
                append(item)
                if self._filled is not None:
                    self._wake()
                if len(self._items) >= self.max_items:
                    await self._wait_room()
        finally:
            await _close(iterator)


async def _close(iterator: AsyncIterator[object]) -> None:
    """Let an async generator run its `finally` now and in this task, not at some later collection."""
    if isinstance(iterator, AsyncGenerator):
        with anyio.move_on_after(5, shield=True):
            await iterator.aclose()


@define(eq=False)
class ThreadReader(_QueuedReader):
    """Reads a blocking iterable in a thread."""

    iterator: Iterator[object] = field(kw_only=True)
    name: str = field(kw_only=True)

    async def _read_all(self) -> None:
        token = anyio.lowlevel.current_token()
        while await run_in_thread(self._pull, token, name=self.name):
            await self._wait_room()

    def _pull(self, token: anyio.lowlevel.EventLoopToken) -> bool:
        """Append items until there is no room, in a thread; return whether there may be more."""
        for item in self.iterator:
            self._items.append(item)
            if self._filled is not None:
                anyio.from_thread.run_sync(self._wake, token=token)
            if self._stopped or len(self._items) >= self.max_items:
                return True
        return False


def open_reader(
    source: Iterable[object] | AsyncIterable[object], *, in_thread: bool, max_items: int, name: str
) -> Reader:
    """Return a reader of *source*, which is an iterable or an async iterable."""
    if isinstance(source, AsyncIterable):
        return AsyncReader(max_items, source=source)
    if in_thread:
        return ThreadReader(max_items, iterator=iter(source), name=name)
    return IterableReader(iter(source))
