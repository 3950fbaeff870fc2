"""Where items go that are lost, wait behind their key or cannot go back: sources, branches and children at once."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import anyio
import pytest

import forebay
from forebay import Again, EngineError, Failed, Retry
from forebay.abc import Offset
from forebay.testing import Pause, ScriptedSource
from tests.support.claimed import ClaimedSource, steal_after

pytestmark = pytest.mark.anyio


async def drain_after(scope: forebay.Scope, seconds: float) -> None:
    await anyio.sleep(seconds)
    scope.drain()


async def test_children_know_where_they_came_from_after_their_parent_was_lost() -> None:
    source = ClaimedSource([0, 10])
    offsets: list[tuple[list[int], list[Offset]]] = []

    async def store(items: list[int]) -> None:
        await anyio.sleep(10)
        offsets.append((items, [offset for part in forebay.current_batch().parts for offset in part.offsets]))

    async with forebay.open_scope() as scope:
        scope.start_soon(steal_after, 5, source, 0)
        recipe = forebay.pipeline(source).flat_map(lambda item: range(item, item + 4))
        summary = await recipe.map_batches(store, max_size=2).run()

    assert offsets == [([0, 1], [0, 0]), ([2, 3], [0, 0]), ([10, 11], [1, 1]), ([12, 13], [1, 1])]
    assert (summary.done, summary.lost_ownership, summary.clean) == (1, 1, True)
    source.assert_settled_once()


Numbers = forebay.Pipeline[int]
Store = Callable[[list[int]], Awaitable[Sequence[int | Failed]]]


def straight(numbers: Numbers, store: Store) -> Numbers:
    return numbers.map_batches(store, max_size=5)


def in_a_branch(numbers: Numbers, store: Store) -> forebay.ClosedPipeline:
    return numbers.branch(lambda one: one.map_batches(store, max_size=5), lambda other: other.map(str))


def twice(numbers: Numbers, store: Store) -> Numbers:
    return numbers.flat_map(lambda number: [number, number]).map_batches(store, max_size=5)


@pytest.mark.parametrize(
    ("acked", "build"),
    [(False, straight), (True, in_a_branch), (True, twice)],
    ids=["iterable", "branch", "children"],
)
async def test_what_cannot_go_back_waits_behind_its_key_however_much_it_is(
    acked: bool, build: Callable[[Numbers, Store], Numbers | forebay.ClosedPipeline]
) -> None:
    source = ScriptedSource[int]([0, Pause(1), *range(1, 20)])
    written: list[int] = []
    failed: list[int] = []

    async def numbers() -> AsyncGenerator[int]:
        yield 0
        await anyio.sleep(1)
        for number in range(1, 20):
            yield number

    async def store(items: list[int]) -> Sequence[int | Failed]:
        if not failed:
            failed.extend(items)
            return [Failed(TimeoutError("busy")) for _ in items]
        written.extend(items)
        return items

    recipe = forebay.pipeline(source if acked else numbers(), max_lane=1, retry=Retry(base=10, jitter="none"))
    summary = await build(recipe.key_by(lambda number: "k"), store).run()

    assert list(dict.fromkeys(written)) == list(range(20))
    assert written == sorted(written)
    assert (failed, summary.done, summary.given_back, summary.clean) == ([0], 20, 0, True)
    if acked:
        source.assert_settled_once()
        assert source.retries == []


async def test_what_waits_for_another_attempt_ends_with_a_draining_run_though_its_iterable_takes_nothing_back() -> None:
    async def store(items: list[int]) -> list[Again | None]:
        return [Again(1000.0) if item == 1 else None for item in items]

    async with forebay.open_scope() as scope:
        scope.start_soon(drain_after, scope, 1)
        summary = await forebay.pipeline(range(3)).map_batches(store, max_size=5).run(drain_timeout=8)

    assert anyio.current_time() < 5
    assert (summary.done, summary.given_back, summary.clean) == (2, 1, True)


async def test_an_outage_behind_an_inline_step_uses_up_no_attempt() -> None:
    source = ScriptedSource(range(4))
    seen: list[int] = []
    outages = iter([EngineError("down", category="dependency")] * 5)

    def ask(item: int) -> int:
        if item == 2 and (error := next(outages, None)) is not None:
            raise error
        return item

    summary = await forebay.pipeline(source).map(ask, retry=Retry(max_attempts=1)).tap(seen.append).run()

    source.assert_settled_once()
    assert seen == [0, 1, 2, 3]
    assert (summary.done, summary.dead, next(outages, None)) == (4, 0, None)
    assert anyio.current_time() > 0
