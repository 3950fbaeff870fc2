"""Runs at their borders: what two sources share, order that cannot be kept, and drains without an end."""

import math
import warnings
from collections.abc import Callable

import anyio
import pytest

import forebay
from forebay import OrderWarning
from forebay.testing import FakeSink, ScriptedSource
from tests.support.claimed import ClaimedSource, steal_after

pytestmark = pytest.mark.anyio


async def drain_after(scope: forebay.Scope, seconds: float) -> None:
    await anyio.sleep(seconds)
    scope.drain()


class SharedSource(ScriptedSource[str]):
    """A source that hands the items of a key to any of its members."""

    shared = True


Letters = forebay.Pipeline[str]
Build = Callable[[Letters], Letters | forebay.ClosedPipeline]


def in_a_branch(build: Callable[[Letters], Letters]) -> Build:
    return lambda letters: letters.map(str).branch(lambda one: one.map(str), build)


def keyed(letters: Letters) -> Letters:
    return letters.key_by(str)


def upper(letters: Letters) -> Letters:
    return letters.map(str.upper)


@pytest.mark.parametrize("build", [keyed, in_a_branch(keyed)], ids=["straight", "in a branch"])
async def test_a_shared_source_says_that_key_by_keeps_order_within_the_process_only(build: Build) -> None:
    source = SharedSource(["a", "b"])

    with pytest.warns(OrderWarning) as caught:
        await build(forebay.pipeline(source)).run()

    assert [str(one.message) for one in caught] == [
        "source 'SharedSource' hands the items of a key to several members, so key_by keeps their order "
        "within this process only; run one member, or use a source that keeps each key with one"
    ]


@pytest.mark.parametrize("build", [upper, in_a_branch(upper)], ids=["straight", "in a branch"])
async def test_a_shared_source_without_keys_needs_no_warning(build: Build) -> None:
    source = SharedSource(["a", "b"])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = await build(forebay.pipeline(source)).run()

    assert summary.done == 2


async def test_a_handler_cannot_keep_the_order_of_keys_that_nobody_made() -> None:
    source = ScriptedSource(range(3))

    with pytest.raises(ValueError, match="in_order") as raised:
        await forebay.pipeline(source).map_batches(FakeSink[int](), max_size=5, in_order=True, name="store").run()

    assert str(raised.value) == ("stage 'store': in_order=True has no meaning without key_by() before it; leave it out")
    assert source.deliveries == [0, 0, 0]


async def test_what_one_source_loses_is_lost_to_no_other() -> None:
    first, second = ClaimedSource(range(4)), ClaimedSource(range(4))
    sink = FakeSink[int](latency=10)

    async with forebay.open_scope() as scope:
        scope.start_soon(steal_after, 5, first, 2)
        summary = await forebay.pipeline(first, second).map_batches(sink, max_size=2, max_concurrency=4).run()

    first.assert_settled_once()
    second.assert_settled_once()
    assert sorted(sink.written) == sorted([*range(4), *range(4)])
    assert (summary.done, summary.lost_ownership, summary.given_back) == (7, 1, 0)
    assert sorted(offset for one in second.settlements for offset in one.offsets if isinstance(offset, int)) == [
        0,
        1,
        2,
        3,
    ]


async def test_a_drain_without_a_limit_waits_for_what_is_in_hand_as_long_as_it_takes() -> None:
    source = ScriptedSource(range(3), endless=True)
    sink = FakeSink[int](latency=100_000)

    async with forebay.open_scope(drain_timeout=math.inf) as scope:
        scope.start_soon(drain_after, scope, 1)
        summary = await forebay.pipeline(source).map_batches(sink, max_size=5).run(drain_timeout=math.inf)

    assert (summary.done, summary.clean, sink.cut) == (3, True, [])
