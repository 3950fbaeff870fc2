"""What becomes of items that come to a full queue; everything is either done or dropped, and counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import anyio
import pytest

import forebay
from forebay._overflow import Backpressure
from forebay._summary import Summary
from forebay.testing import ScriptedSource

pytestmark = pytest.mark.anyio


async def hurried(count: int, size: int = 10) -> AsyncIterator[int]:
    for number in range(count):
        yield number
        if number % size == size - 1:
            await anyio.sleep(0.001)


class Slow:
    """A sink that takes ten times as long as its items take to come."""

    def __init__(self) -> None:
        self.items: list[int] = []

    async def write(self, batch: list[int]) -> None:
        await anyio.sleep(0.01)
        self.items += batch


async def run(policy: Backpressure, count: int = 2000) -> tuple[Summary, list[int]]:
    sink = Slow()
    recipe = forebay.pipeline(hurried(count)).map_batches(
        sink.write,
        max_size=10,
        capacity=100,
        backpressure=policy,
    )
    return await recipe.run(seed=1), sink.items


@pytest.mark.parametrize("policy", ["wait", "drop_oldest", "drop_newest", "sample"])
async def test_every_item_is_done_or_dropped_exactly_once(policy: Backpressure) -> None:
    summary, items = await run(policy)

    assert (summary.seen, summary.done + summary.dropped) == (2000, 2000)
    assert (len(items), len(set(items))) == (summary.done, summary.done)
    assert sum(summary.drop_reasons.values()) == summary.dropped
    assert items == sorted(items)
    assert (summary.dropped > 1000) is (policy != "wait")


async def test_the_oldest_make_room_for_what_comes() -> None:
    summary, items = await run("drop_oldest")

    assert items[-100:] == list(range(1900, 2000))
    assert list(summary.drop_reasons) == ["Slow.write: queue full (drop_oldest)"]


async def test_the_newest_are_left_out_while_the_queue_is_full() -> None:
    _, items = await run("drop_newest")

    assert items[:100] == list(range(100))


async def test_a_sample_comes_from_all_of_the_time() -> None:
    _, items = await run("sample")

    shares = [sum(low <= item < low + 500 for item in items) / len(items) for low in range(0, 2000, 500)]
    assert min(shares) > 0.1, shares


async def test_what_was_left_out_is_settled_with_its_source() -> None:
    source = ScriptedSource(range(500))
    sink = Slow()

    summary = (
        await forebay.pipeline(source)
        .map_batches(sink.write, max_size=10, capacity=50, backpressure="drop_oldest")
        .run()
    )

    assert (summary.done + summary.dropped, summary.unsettled) == (500, 0)
    assert summary.dropped > 0


async def test_children_are_left_out_without_their_parent_being_final_twice() -> None:
    sink = Slow()

    summary = (
        await forebay.pipeline(hurried(300))
        .flat_map(lambda item: [item] * 7)
        .map_batches(sink.write, max_size=10, capacity=40, backpressure="drop_newest")
        .run()
    )

    assert (summary.seen, summary.done + summary.dropped) == (300, 300)


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match=r"backpressure must be one of 'wait', 'drop_oldest'.*not 'drop'"):
        forebay.pipeline([1]).map_batches(Slow().write, max_size=1, backpressure=cast("Any", "drop"))
