"""Pumps at their borders: sources that do not answer or lose items, and steps that run with the stage behind them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import pytest

import forebay
from forebay import HandlerContractError, SettlementError
from forebay.abc import DeadLetterFilter
from forebay.testing import FakeDeadLetterStore, FakeSink, Pause, ScriptedSource
from tests.support.claimed import ClaimedSource, steal_after

pytestmark = pytest.mark.anyio

Build = Callable[[forebay.Pipeline[int]], forebay.Pipeline[int]]


# --- Sources ------------------------------------------------------------------------------------


async def test_a_source_that_does_not_answer_in_time_ends_the_run_after_several_attempts() -> None:
    source = ScriptedSource(range(3), latency=6)

    with pytest.raises(SettlementError) as raised:
        await forebay.pipeline(source).map_batches(FakeSink[int](), max_size=10).run()

    assert str(raised.value) == (
        "source 'ScriptedSource' did not answer within 5 s; asked to take what was settled and hand out more"
    )
    assert raised.value.__notes__ == ["raised by source 'ScriptedSource' after 0 items"]
    assert anyio.current_time() > 8 * 5
    assert source.in_hand == []


async def test_an_item_that_is_lost_while_its_call_runs_is_no_longer_ours() -> None:
    source = ClaimedSource(range(2))
    sink = FakeSink[int](latency=20)

    async with forebay.open_scope() as scope:
        scope.start_soon(steal_after, 5, source, 1)
        summary = await forebay.pipeline(source).map_batches(sink, max_size=10).run()

    source.assert_settled_once()
    assert (summary.done, summary.lost_ownership, summary.clean) == (1, 1, True)
    assert [settlement.offsets for settlement in source.settlements] == [range(1)]
    assert len(source.renewals) >= 15


async def test_a_source_that_takes_no_settlement_any_more_ends_the_run_with_its_first_refusal() -> None:
    refusals = [PermissionError("refused"), PermissionError("refused again")]
    source = ScriptedSource(range(3), settle_errors=refusals, endless=True)

    with pytest.raises(PermissionError) as raised:
        await forebay.pipeline(source).map_batches(FakeSink[int](), max_size=10).run()

    assert raised.value is refusals[0]
    assert raised.value.__notes__ == ["raised by source 'ScriptedSource' after 3 items"]
    source.assert_settled_once()  # with the last call, which the run makes however it ends


async def test_items_that_were_handed_out_again_and_again_run_alone_though_they_come_first() -> None:
    source = ScriptedSource(range(5))
    for offset in (0, 1):
        source._entries[offset].deliveries = 5
    sink = FakeSink[int]()

    await forebay.pipeline(source).map_batches(sink, max_size=10).run()

    source.assert_settled_once()
    assert sorted(sink.batches) == [[0], [1], [2, 3, 4]]


# --- Steps --------------------------------------------------------------------------------------


async def test_a_map_over_an_iterable_that_returns_coroutines_is_named() -> None:
    async def double(item: int) -> int:
        return 2 * item

    with pytest.raises(HandlerContractError) as raised:
        await forebay.pipeline(range(3)).map(lambda item: double(item), name="double").run()

    assert str(raised.value) == (
        "map step 'double' is a plain function that returned a coroutine, so nothing would await it; "
        "pass the async function itself"
    )


def in_pairs(count: int) -> Iterator[int | Pause]:
    """Two at a time, so that the stage behind has nothing to do when they come."""
    for item in range(count):
        yield item
        if item % 2:
            yield Pause(1)


async def batches_of(build: Build, source: ScriptedSource[int], **options: Any) -> Sequence[list[int]]:
    batches: list[list[int]] = []

    def keep(items: list[int]) -> None:  # waits for nothing: the pump comes to run it itself
        batches.append(list(items))

    await build(forebay.pipeline(source, **options)).map_batches(keep, max_size=2).run()
    source.assert_settled_once()
    return batches


async def test_children_are_cut_to_batches_where_the_pump_runs_the_stage() -> None:
    source = ScriptedSource(in_pairs(20))

    batches = await batches_of(lambda numbers: numbers.flat_map(lambda item: [item] * 5), source)

    assert all(len(batch) <= 2 for batch in batches)
    assert [item for batch in batches for item in batch] == [item for item in range(20) for _ in range(5)]


async def test_what_a_filter_leaves_nothing_of_is_settled_where_the_pump_runs_the_stage() -> None:
    source = ScriptedSource(in_pairs(20))

    batches = await batches_of(lambda numbers: numbers.filter(lambda item: not 12 <= item < 16), source)

    assert batches == [[item, item + 1] for item in range(0, 20, 2) if not 12 <= item < 16]


async def test_a_step_that_fails_takes_out_its_item_alone_where_the_pump_runs_the_stage() -> None:
    source = ScriptedSource(in_pairs(20))
    store = FakeDeadLetterStore()

    def refuse(item: int) -> int:
        if item == 13:
            raise ValueError("thirteen")
        return item

    batches = await batches_of(lambda numbers: numbers.map(refuse), source, dead_letters=store)

    assert [item for batch in batches for item in batch] == [item for item in range(20) if item != 13]
    (letter,) = await store.memory.find(DeadLetterFilter(), limit=10)
    assert (letter.id.offset, letter.message) == ("13", "thirteen")
