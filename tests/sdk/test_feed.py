"""What is taken from a source, when, and how much of it at once."""

import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import anyio
import pytest

import forebay
from forebay import MemoryQueue
from forebay.testing import FakeSink, Pause, ScriptedSource

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("latency", [0.0, 1.0])
@pytest.mark.parametrize("max_size", [1, 7, 100, 1000])
async def test_a_plain_iterable_always_fills_batches(latency: float, max_size: int) -> None:
    sink = FakeSink[int](latency=latency)

    await forebay.pipeline(iter(range(700))).filter(lambda item: item % 3).map_batches(sink, max_size=max_size).run()

    wanted = [item for item in range(700) if item % 3]
    assert sink.batches == [wanted[start : start + max_size] for start in range(0, len(wanted), max_size)]


async def test_an_async_source_that_waits_sends_what_has_gathered() -> None:
    sink = FakeSink[int]()

    async def bursts() -> AsyncGenerator[int]:
        for burst in (3, 1, 5):
            for item in range(burst):
                yield item
            await anyio.sleep(10)

    await forebay.pipeline(bursts()).map_batches(sink, max_size=100, max_age=60).run()

    assert sink.batches == [[0, 1, 2], [0], [0, 1, 2, 3, 4]]


async def test_batches_grow_while_the_handler_is_busy() -> None:
    sink = FakeSink[int](latency=1)

    async def steady() -> AsyncGenerator[int]:
        for item in range(50):
            yield item
            await anyio.sleep(0.1)

    await forebay.pipeline(steady()).map_batches(sink, max_size=100).run()

    assert sink.batches[0] == [0]
    assert all(9 <= len(batch) <= 11 for batch in sink.batches[1:-1])


async def test_items_of_a_slow_iterable_do_not_wait_for_a_full_batch() -> None:
    batches: list[list[int]] = []

    def slow() -> Iterator[int]:
        for item in range(32):
            time.sleep(0.02)  # it holds the loop, so no virtual time can stand in
            yield item

    async def sink(items: list[int]) -> None:
        batches.append(items)

    with pytest.warns(forebay.BlockedLoopWarning, match="pass in_thread=True to pipeline"):
        await forebay.pipeline(slow()).map_batches(sink, max_size=100, max_age=0).run()

    assert [item for batch in batches for item in batch] == list(range(32))
    assert len(batches) > 1


@pytest.mark.parametrize("source", ["acked", "iterable"])
async def test_bytes_bound_a_batch_and_a_larger_item_goes_alone(source: str) -> None:
    texts = ["a" * size for size in (3, 3, 5, 30, 2, 2, 2, 2, 2, 9, 1)]
    sink = FakeSink[str](latency=1)
    origin: Any = ScriptedSource(texts, weigh=len) if source == "acked" else texts

    await forebay.pipeline(origin).map_batches(sink, max_size=4, max_bytes=10, weigh=len).run()

    assert [item for batch in sink.batches for item in batch] == texts
    assert all(sum(map(len, batch)) <= 10 or len(batch) == 1 for batch in sink.batches)
    assert ["a" * 30] in sink.batches
    assert all(len(batch) <= 4 for batch in sink.batches)


@pytest.mark.parametrize("capacity", [1, 10, 64])
async def test_a_source_is_not_read_ahead_beyond_the_capacity(capacity: int) -> None:
    acked = ScriptedSource(range(500))
    sink = FakeSink[int](latency=1)

    await forebay.pipeline(acked).map_batches(sink, max_size=8, capacity=capacity).run()

    acked.assert_settled_once()
    assert acked.max_in_hand <= capacity + 2 * 8


async def test_max_gap_bounds_how_far_a_run_gets_ahead_of_its_oldest_item() -> None:
    acked = ScriptedSource(range(500))
    stuck = anyio.Event()

    async def h(item: int) -> int:
        if item == 0:
            await stuck.wait()
        return item

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forebay.pipeline(acked, max_gap=40).map(h).run)
        await anyio.sleep(60)
        assert 30 <= sum(acked.deliveries) <= 40
        stuck.set()

    acked.assert_settled_once()


async def test_settlements_are_sent_while_the_source_waits() -> None:
    acked = ScriptedSource[int]([1, 2, Pause(1000), 3])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forebay.pipeline(acked).map_batches(FakeSink[int](), max_size=10).run)
        await anyio.sleep(10)
        assert len(acked.settlements) == 1

    acked.assert_settled_once()


async def test_a_settlement_that_fails_is_sent_again() -> None:
    acked = ScriptedSource(range(20), settle_errors=[ConnectionError("gone"), None, TimeoutError("slow")])

    summary = await forebay.pipeline(acked).map_batches(FakeSink[int](), max_size=3, capacity=3).run()

    acked.assert_settled_once()
    assert (summary.clean, summary.unsettled) == (True, 0)


async def test_claims_are_renewed_while_a_call_takes_long() -> None:
    queue = MemoryQueue[int](claim_seconds=3)
    queue.put_many(range(4))
    queue.close()
    sink = FakeSink[int](latency=50)

    summary = await forebay.pipeline(queue).map_batches(sink, max_size=2).run()

    assert sink.batches == [[0, 1], [2, 3]]
    assert (summary.done, summary.lost_ownership, summary.clean) == (4, 0, True)


async def test_an_item_that_was_handed_out_again_and_again_runs_alone() -> None:
    acked = ScriptedSource(range(6))
    acked._entries[3].deliveries = 5
    sink = FakeSink[int]()

    await forebay.pipeline(acked).map_batches(sink, max_size=10).run()

    acked.assert_settled_once()
    assert [3] in sink.batches
    assert sorted(item for batch in sink.batches for item in batch) == list(range(6))


async def test_a_slow_first_map_is_named_and_not_the_source() -> None:
    def slow(item: int) -> int:
        time.sleep(0.02)
        return item

    with pytest.warns(forebay.BlockedLoopWarning, match="map step 'slow'"):
        await forebay.pipeline(range(32)).map(slow, name="slow").map_batches(FakeSink[int](), max_size=5).run()


async def test_a_source_may_be_a_queue_that_the_program_fills() -> None:
    queue = MemoryQueue[str]()
    sink = FakeSink[str]()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forebay.pipeline(queue).map_batches(sink, max_size=10).run)
        for text in "abc":
            queue.put_many([text])
            await anyio.sleep(1)
        queue.close()

    assert sink.batches == [["a"], ["b"], ["c"]]
