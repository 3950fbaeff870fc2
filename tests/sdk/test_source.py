"""Readers: items out of an iterable, an async iterable, an iterable that blocks."""

import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

import forebay
from forebay._source import AsyncReader, IterableReader, Mapped, Reader, ThreadReader, open_reader

pytestmark = pytest.mark.anyio


class OnlyAsync:
    """An async iterator that is no generator: it has nothing to close."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left


def fails_after(count: int) -> Iterator[int]:
    yield from range(count)
    raise OSError("unplugged")


async def gather(reader: Reader, max_items: int) -> list[list[object]]:
    """Read to the end beside `read`, as a pump does."""
    taken: list[list[object]] = []
    await gather_into(taken, reader, max_items)
    return taken


async def gather_into(taken: list[list[object]], reader: Reader, max_items: int) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.read)
        while (one := reader.take_nowait(max_items)) is not None:
            if one.items:
                taken.append(one.items)
            else:
                await reader.wait_ready()


def take_all(reader: Reader, into: list[object], max_items: int, *, mapped: bool = False) -> None:
    """Take until there is nothing more."""
    while (one := reader.take_mapped(str, max_items) if mapped else reader.take_nowait(max_items)) is not None:
        into += one.items


def open_numbers(source: Any, *, in_thread: bool = False, max_items: int = 4) -> Reader:
    return open_reader(source, in_thread=in_thread, max_items=max_items, name="numbers")


async def test_each_kind_of_source_has_its_reader() -> None:
    assert isinstance(open_numbers([1]), IterableReader)
    assert isinstance(open_numbers([1], in_thread=True), ThreadReader)
    assert isinstance(open_numbers(OnlyAsync(1)), AsyncReader)
    assert isinstance(open_numbers(OnlyAsync(1), in_thread=True), AsyncReader)
    assert [open_numbers(source).blocks for source in ([1], OnlyAsync(1))] == [True, False]


async def test_an_iterable_gives_as_much_as_is_asked_for() -> None:
    assert await gather(open_numbers(range(7)), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert await gather(open_numbers([]), 3) == []


@pytest.mark.parametrize(("count", "max_items"), [(0, 3), (2, 3), (3, 3), (4, 3)])
async def test_what_came_before_an_exception_of_an_iterable_comes_first(count: int, max_items: int) -> None:
    reader = open_numbers(fails_after(count))
    taken: list[object] = []

    with pytest.raises(OSError, match="unplugged"):
        take_all(reader, taken, max_items)

    assert taken == list(range(count))


async def test_items_are_mapped_while_they_are_taken() -> None:
    reader = open_numbers(range(5))

    assert reader.take_mapped(str, 3) == Mapped(["0", "1", "2"])
    assert reader.take_mapped(str, 3) == Mapped(["3", "4"])
    assert reader.take_mapped(str, 3) is None


async def test_an_item_that_cannot_be_mapped_is_set_apart() -> None:
    reader = open_numbers([4, 2, 0, 1])

    one = reader.take_mapped(lambda item: 8 // item, 4)  # type: ignore[operator]
    rest = reader.take_mapped(lambda item: 8 // item, 4)  # type: ignore[operator]

    assert one is not None
    assert (one.items, one.bad, type(one.error)) == ([2, 4], 0, ZeroDivisionError)
    assert rest == Mapped([8])


async def test_a_map_that_raises_stop_iteration_does_not_end_the_source() -> None:
    reader = open_numbers([1, 2])

    one = reader.take_mapped(lambda item: next(iter(())), 2)

    assert one is not None
    assert (one.items, one.bad, type(one.error)) == ([], 1, StopIteration)
    assert reader.take_mapped(str, 2) == Mapped(["2"])


@pytest.mark.parametrize("count", [0, 2])
async def test_what_was_mapped_before_an_exception_of_the_iterable_comes_first(count: int) -> None:
    reader = open_numbers(fails_after(count))
    taken: list[object] = []

    with pytest.raises(OSError, match="unplugged"):
        take_all(reader, taken, 5, mapped=True)

    assert taken == [str(item) for item in range(count)]


async def test_an_iterable_always_has_something() -> None:
    reader = open_numbers([1])

    await reader.wait_ready()
    await reader.read()

    assert reader.take_nowait(5) == Mapped([1])


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_source_beside_the_pump_is_read_to_its_end(in_thread: bool) -> None:
    reader = open_numbers(range(100) if in_thread else OnlyAsync(100), in_thread=in_thread)

    taken = await gather(reader, 3)

    assert sorted(item for items in taken for item in items if isinstance(item, int)) == list(range(100))
    assert max(map(len, taken)) <= 3


async def fails_later(count: int) -> AsyncGenerator[int]:
    for item in range(count):
        yield item
    raise OSError("unplugged")


@pytest.mark.parametrize("in_thread", [False, True])
async def test_what_came_before_an_exception_beside_the_pump_comes_first(in_thread: bool) -> None:
    reader = open_numbers(fails_after(6) if in_thread else fails_later(6), in_thread=in_thread)
    taken: list[list[object]] = []

    with pytest.raises(ExceptionGroup) as raised:
        await gather_into(taken, reader, 10)

    assert [item for items in taken for item in items] == list(range(6))
    assert [repr(error) for error in raised.value.exceptions] == ["OSError('unplugged')"]


async def test_an_async_source_is_not_read_further_ahead_than_the_bound() -> None:
    given = 0

    async def count() -> AsyncGenerator[int]:
        nonlocal given
        for item in range(100):
            given += 1
            yield item

    reader = open_numbers(count(), max_items=4)
    readings: list[int] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.read)
        await anyio.wait_all_tasks_blocked()
        readings.append(given)
        reader.take_nowait(3)
        await anyio.wait_all_tasks_blocked()
        readings.append(given)
        tasks.cancel_scope.cancel()

    assert readings == [4, 7]


async def test_a_thread_is_not_read_further_ahead_than_the_bound() -> None:
    given: list[int] = []

    def count() -> Iterator[int]:
        for item in range(100):
            given.append(item)
            yield item

    reader = open_numbers(count(), in_thread=True, max_items=4)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.read)
        await reader.wait_ready()
        await anyio.sleep(0.01)  # the virtual clock leaves a thread at work some real time
        tasks.cancel_scope.cancel()

    assert len(given) == 4


async def test_a_thread_that_waits_does_not_hold_the_loop() -> None:
    gate = threading.Event()

    def blocked() -> Iterator[str]:
        yield "before"
        gate.wait(10)
        yield "after"

    batches: list[list[str]] = []

    async def open_gate(items: list[str]) -> None:
        batches.append(items)
        gate.set()

    await forebay.pipeline(blocked(), in_thread=True).map_batches(open_gate, max_size=10).run()

    assert batches == [["before"], ["after"]]


async def test_an_async_generator_is_closed_in_the_task_that_read_it() -> None:
    closed: list[str] = []

    async def rows() -> AsyncGenerator[int]:
        try:
            while True:
                yield 1
        finally:
            await anyio.sleep(1)
            closed.append(anyio.get_current_task().name or "")

    reader = open_numbers(rows())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.read, name="reading")
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert closed == ["reading"]


async def test_an_async_generator_that_does_not_close_is_left_after_a_while() -> None:
    async def rows() -> AsyncGenerator[int]:
        try:
            while True:
                yield 1
        finally:
            await anyio.sleep(60)

    began = anyio.current_time()
    reader = open_numbers(rows())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.read)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert anyio.current_time() - began == pytest.approx(5)


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_source_that_is_stopped_before_it_is_read_is_left_alone(in_thread: bool) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(3):
            taken.append(number)
            yield number

    reader = open_numbers(numbers() if in_thread else OnlyAsync(3), in_thread=in_thread)
    reader.stop()

    assert await gather(reader, 2) == []
    assert taken == []


@pytest.mark.usefixtures("real_time")
async def test_an_iterator_stuck_in_a_thread_is_abandoned_and_named() -> None:
    gate = threading.Event()
    began = time.monotonic()

    def endless() -> Iterator[int]:
        yield 1
        gate.wait(10)

    async with forebay.open_scope() as scope:

        async def drain(items: list[int]) -> None:
            scope.drain()

        summary = (
            await forebay.pipeline(endless(), in_thread=True).map_batches(drain, max_size=1).run(drain_timeout=0.2)
        )
    gate.set()

    assert time.monotonic() - began < 5
    assert (summary.done, summary.given_back, summary.abandoned) == (1, 0, ["endless"])
