"""What the pooling benchmark compares: buffers, lists and slices used again beside fresh ones, each in a pipeline."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from functools import cache, partial
from itertools import islice
from typing import Any, TypeAlias
from unittest.mock import patch
from zlib import crc32

import anyio
import attrs

import forebay
from forebay import _run
from forebay._blocks import slice_blocks
from forebay._source import IterableReader, Mapped
from forebay.hooks import Plugins
from tests.benchmarks.workload import Item, orders

Data: TypeAlias = bytes | bytearray | memoryview


CALL_SECONDS = 0.002


class Tally:
    """A slow sink that knows what came: how much, and a sum over all parts of it."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.digest = 0

    def add(self, data: Data) -> None:
        self.nbytes += len(data)
        self.digest += crc32(data)

    async def send(self, data: Data) -> None:
        """Take *data*, and be busy until queues are full, however slow tracing makes what fills them."""
        self.add(data)
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(CALL_SECONDS)


Run: TypeAlias = Callable[[Tally, int], Awaitable[None]]
"""Does so many units of work and sends the result."""


@attrs.frozen
class Way:
    """One way of doing a workload."""

    run: Run
    against: tuple[str, ...] = ()
    """Ways that it is held against."""


@attrs.frozen
class Workload:
    """What is done in several ways, all of which send the same bytes."""

    count: int
    """Units of work in a whole run."""
    items: int
    """Items in a unit."""
    ways: Mapping[str, Way]

    async def run(self, way: str, count: int) -> Tally:
        """Do *count* units of work in one of the ways."""
        await anyio.wait_all_tasks_blocked()  # loads what it needs, several megabytes, also where there is no work
        tally = Tally()
        await self.ways[way].run(tally, count)
        return tally


@cache
def plugins() -> Plugins:
    """Return what all runs share: looking for installed plugins is not what is measured."""
    return Plugins()


async def drain(items: forebay.Pipeline[Any], store: Callable[[list[Any]], Awaitable[None]], **options: Any) -> None:
    """Run *items* into *store*; no batch goes out before it is full, so that all ways send the same."""
    await items.map_batches(store, max_age=60.0, **options).run(plugins=plugins())


# --- A bounded pool of encode buffers ----------------------------------------------------------


class RowBuffer:
    """A bytearray that rows are written into from its beginning; it keeps its room when it is used again."""

    def __init__(self) -> None:
        self._room = bytearray(4096)
        self._view = memoryview(self._room)
        self._used = 0

    @property
    def room(self) -> int:
        """Bytes that it holds on to."""
        return len(self._room)

    def clear(self) -> None:
        """Write from the beginning again. `bytearray.clear` would give the room back."""
        self._used = 0

    def write(self, row: bytes) -> None:
        end = self._used + len(row)
        if end > len(self._room):
            self._view.release()
            self._room += bytes(max(end - len(self._room), len(self._room) // 8))
            self._view = memoryview(self._room)
        self._view[self._used : end] = row
        self._used = end

    def written(self) -> memoryview:
        """Return what has been written; release it before more is."""
        return self._view[: self._used]


class BufferPool:
    """At most so many buffers, each with one borrower at a time."""

    def __init__(self, max_buffers: int) -> None:
        self.made = 0
        self._free: list[RowBuffer] = []
        self._permits = anyio.Semaphore(max_buffers)

    @asynccontextmanager
    async def borrow(self) -> AsyncGenerator[RowBuffer]:
        """Wait for a buffer; it goes back when the block ends."""
        async with self._permits:
            if not self._free:
                self.made += 1
                self._free.append(RowBuffer())
            buffer = self._free.pop()
            buffer.clear()
            try:
                yield buffer
            finally:
                self._free.append(buffer)


# --- Encoding ----------------------------------------------------------------------------------

ROWS = 2048
"""Rows in a batch: memory has to be large beside what a process has lying about, or its resident size says nothing."""
WIDE = b"x" * 950
Encode: TypeAlias = Callable[[Any], bytes]


def wide_row(number: int) -> bytes:
    """Return a line of about 1 KB for an item of almost nothing: memory is the encoded bytes."""
    return b'{"id":%d,"text":"%b"}\n' % (number, WIDE)


def json_row(order: Item) -> bytes:
    """Return a line of about 40 bytes for a dict: memory is the items."""
    return json.dumps(order).encode() + b"\n"


def encoding(encode: Encode, calls: int, source: Callable[[int], Iterable[Any]], count: int) -> Workload:
    """Return the ways to encode batches, with so many calls in flight."""

    def start(count: int) -> Callable[[Callable[[list[Any]], Awaitable[None]]], Awaitable[None]]:
        return partial(drain, forebay.pipeline(source(count)), max_size=ROWS, max_concurrency=calls)

    async def by_join(tally: Tally, count: int) -> None:
        async def store(batch: list[Any]) -> None:
            await tally.send(b"".join([encode(item) for item in batch]))

        await start(count)(store)

    async def by_bytearray(tally: Tally, count: int) -> None:
        async def store(batch: list[Any]) -> None:
            rows = bytearray()
            for item in batch:
                rows += encode(item)
            await tally.send(rows)

        await start(count)(store)

    async def by_pool(tally: Tally, count: int) -> None:
        pool = BufferPool(calls)

        async def store(batch: list[Any]) -> None:
            async with pool.borrow() as buffer:
                for item in batch:
                    buffer.write(encode(item))
                with buffer.written() as rows:
                    await tally.send(rows)

        await start(count)(store)

    ways = {
        "bytes joined": Way(by_join),
        "fresh bytearray": Way(by_bytearray, ("bytes joined",)),
        "pooled bytearray": Way(by_pool, ("bytes joined", "fresh bytearray")),
    }
    return Workload(count, 1, ways)


# --- Lists of batches --------------------------------------------------------------------------

SLOTS = 8192
"""Items in a batch."""


@attrs.define(eq=False)
class ClearedReader(IterableReader):
    """Fills lists that handlers have done with: emptied, then extended."""

    spare: list[list[Any]] = attrs.field(factory=list[list[Any]])
    made: int = 0

    def take_nowait(self, max_items: int) -> Mapped | None:
        items = self.a_list()
        items.extend(islice(self._iterator, max_items))
        return Mapped(items) if items else None

    def a_list(self) -> list[Any]:
        if self.spare:
            return self.spare.pop()
        self.made += 1
        return []

    def give_back(self, items: list[Any]) -> None:
        items.clear()
        self.spare.append(items)


@attrs.define(eq=False)
class OverwrittenReader(ClearedReader):
    """Fills lists that handlers have done with slot by slot, since `list.clear` gives the room back."""

    def take_nowait(self, max_items: int) -> Mapped | None:
        items = self.a_list()
        count = 0
        for count, item in enumerate(islice(self._iterator, max_items), 1):
            if count > len(items):
                items.append(item)
            else:
                items[count - 1] = item
        del items[count:]
        return Mapped(items) if items else None

    def give_back(self, items: list[Any]) -> None:
        self.spare.append(items)


def reading_with(reader: IterableReader) -> AbstractContextManager[object]:
    """Let runs read with *reader*: there is no way to ask for that in a recipe."""

    def open_reader(*_: object, **__: object) -> IterableReader:
        return reader

    return patch.object(_run, "open_reader", open_reader)


def small_ints(count: int) -> Iterator[int]:
    """Generate items that the interpreter has already: memory is the lists."""
    return (number & 255 for number in range(count))


def ids(batch: list[Item]) -> bytes:
    return b"%d" % sum(order["id"] for order in batch)


def listing(pack: Callable[[list[Any]], bytes], source: Callable[[int], Iterable[Any]], count: int) -> Workload:
    """Return the ways to have a list for each batch."""

    async def by_fresh_lists(tally: Tally, count: int) -> None:
        async def store(batch: list[Any]) -> None:
            await tally.send(pack(batch))

        await drain(forebay.pipeline(source(count)), store, max_size=SLOTS)

    async def by_reused_lists(reader_type: type[ClearedReader], tally: Tally, count: int) -> None:
        reader = reader_type(iter(source(count)))

        async def store(batch: list[Any]) -> None:
            await tally.send(pack(batch))
            reader.give_back(batch)  # read no more: only then may it be changed

        with reading_with(reader):
            await drain(forebay.pipeline(()), store, max_size=SLOTS)

    fresh = "fresh lists"
    ways = {
        fresh: Way(by_fresh_lists),
        "cleared lists": Way(partial(by_reused_lists, ClearedReader), (fresh,)),
        "overwritten lists": Way(partial(by_reused_lists, OverwrittenReader), (fresh,)),
    }
    return Workload(count, 1, ways)


# --- Slices of a block -------------------------------------------------------------------------

BLOCK = 2 * 2**20
LENGTH_BYTES = 4
NUMBER_BYTES = 8
"""Bytes in front of a payload: the first item of a block has the block's number, the others have all ones."""


def blocks(count: int, size: int) -> Iterator[bytes]:
    """Generate blocks of items of *size* bytes, length included, as a file would be read; each is a new object."""
    length = (size - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "big")
    item = length + b"\xff" * NUMBER_BYTES + bytes(size - LENGTH_BYTES - NUMBER_BYTES)
    rest = (item * (BLOCK // size))[LENGTH_BYTES + NUMBER_BYTES :]
    for number in range(count):
        yield length + number.to_bytes(NUMBER_BYTES, "big") + rest


def cut(as_data: Callable[[bytes], Data], size: int, block: bytes) -> list[Data]:
    """Return the items of a block, all at once."""
    data = as_data(block)
    return [data[start + LENGTH_BYTES : start + size] for start in range(0, len(data), size)]


def copies(source: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the items of blocks one after the other, as bytes of their own."""
    for block in source:
        for start in range(0, len(block), size):
            yield block[start + LENGTH_BYTES : start + size]
        del block  # or it would live while the next one is read


def views(source: Iterable[bytes], _: int) -> Iterator[memoryview]:
    """Yield the items of blocks one after the other, as forebay slices them."""
    return slice_blocks(source, length_bytes=LENGTH_BYTES)


def is_first(item: Data) -> bool:
    """Return whether the item is the first of its block."""
    return item[0] == 0


async def strip(batch: list[Data]) -> list[Data]:
    return [item[NUMBER_BYTES:] for item in batch]


async def send_stripped(items: forebay.Pipeline[Any], batch: int, few: bool, tally: Tally) -> None:
    """Drop the number of each item in one stage, send the payloads in another; as many items wait as are in a batch."""

    async def store(payloads: list[Data]) -> None:
        for payload in payloads[1:]:
            tally.add(payload)
        await tally.send(payloads[0])

    kept = items.filter(is_first) if few else items
    await drain(
        kept.map_batches(strip, max_age=60.0, max_size=batch, capacity=batch), store, max_size=batch, capacity=batch
    )


def slicing(size: int, batch: int, count: int, *, few: bool = False) -> Workload:
    """Return the ways to cut blocks into items of *size* bytes.

    Args:
        size: Bytes of an item with its length.
        batch: Items in a batch.
        count: Blocks.
        few: Whether only the first item of each block is kept.
    """

    def by_step(as_data: Callable[[bytes], Data]) -> Run:
        async def run(tally: Tally, count: int) -> None:
            items = forebay.pipeline(blocks(count, size)).flat_map(partial(cut, as_data, size))
            await send_stripped(items, batch, few, tally)

        return run

    def while_read(cutter: Callable[[Iterable[bytes], int], Iterable[Data]]) -> Run:
        async def run(tally: Tally, count: int) -> None:
            await send_stripped(forebay.pipeline(cutter(blocks(count, size), size)), batch, few, tally)

        return run

    plain, lazy = "bytes, cut by a step", "bytes, cut while read"
    ways = {
        plain: Way(by_step(bytes)),
        "views, cut by a step": Way(by_step(memoryview), (plain,)),
        lazy: Way(while_read(copies), (plain,)),
        "views, cut while read": Way(while_read(views), (plain, lazy)),
    }
    return Workload(count, BLOCK // size, ways)


WORKLOADS: Mapping[str, Workload] = {
    "encode 1 KB rows, 1 call": encoding(wide_row, 1, range, 60_000),
    "encode 1 KB rows, 8 calls": encoding(wide_row, 8, range, 80_000),
    "encode dicts, 1 call": encoding(json_row, 1, orders, 60_000),
    "lists of small ints": listing(bytes, small_ints, 300_000),
    "lists of dicts": listing(ids, orders, 150_000),
    "slices of 128 KB": slicing(128 * 1024, 16, 60),
    "slices of 64 B": slicing(64, 256, 4),
    "slices of 32 KB, one of 64 kept": slicing(32 * 1024, 16, 80, few=True),
}
