"""Whole recipes: what goes in, in which order it comes out, and what the summary says of it."""

import math
import operator
import random
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from typing import Any

import anyio
import pytest

import forebay
from forebay import ClosedPipeline, HandlerContractError, Pipeline, Retry, Summary
from forebay.abc import Limits
from forebay.testing import FakeSink, ScriptedSource
from tests.support.controllers import Scripted

pytestmark = pytest.mark.anyio


def assert_conserved(summary: Summary) -> None:
    assert summary.seen == (
        summary.done + summary.filtered + summary.dropped + summary.dead + summary.given_back + summary.lost_ownership
    )


def increment(item: int) -> int:
    return item + 1


def is_even(item: int) -> bool:
    return item % 2 == 0


def repeat(item: int) -> list[int]:
    return [item] * (item % 3)


async def increment_async(item: int) -> int:
    await anyio.sleep(0.01)
    return item + 1


async def is_even_async(item: int) -> bool:
    await anyio.sleep(0.01)
    return item % 2 == 0


async def repeat_async(item: int) -> list[int]:
    await anyio.sleep(0.01)
    return [item] * (item % 3)


STEPS: list[tuple[str, Callable[[Any], Any], Callable[[Any], Any], Callable[[Iterable[int]], list[int]]]] = [
    ("map", increment, increment_async, lambda items: [item + 1 for item in items]),
    ("filter", is_even, is_even_async, lambda items: [item for item in items if item % 2 == 0]),
    ("flat_map", repeat, repeat_async, lambda items: [item for item in items for _ in range(item % 3)]),
    ("tap", increment, increment_async, list),
]


@pytest.mark.parametrize(("method", "plain", "later", "expected"), STEPS)
@pytest.mark.parametrize("place", ["inline", "async", "thread"])
@pytest.mark.parametrize("acked", [False, True])
async def test_a_step_does_the_same_wherever_it_runs(
    method: str,
    plain: Callable[[Any], Any],
    later: Callable[[Any], Any],
    expected: Callable[[Iterable[int]], list[int]],
    place: str,
    acked: bool,
) -> None:
    source: Any = ScriptedSource(range(20)) if acked else range(20)
    sink = FakeSink[int]()
    numbers: Any = forebay.pipeline(source)
    func = later if place == "async" else plain

    stepped = getattr(numbers, method)(func, **({"run_in": "thread"} if place == "thread" else {}))
    summary: Summary = await stepped.map_batches(sink, max_size=7).run()

    assert sorted(sink.written) == sorted(expected(range(20)))
    if place == "inline":
        assert sink.written == expected(range(20))
    assert_conserved(summary)
    assert (summary.seen, summary.done + summary.filtered) == (20, 20)
    assert summary.filtered == 20 - len(set(expected(range(20))))
    assert summary.clean
    if acked:
        source.assert_settled_once()


@pytest.mark.usefixtures("real_time")  # processes know no virtual time
async def test_steps_run_in_processes() -> None:
    sink = FakeSink[int]()

    # Functions of the standard library: a worker that had to import this module would take seconds to start.
    summary = await (
        forebay.pipeline(range(5))
        .filter(operator.truth, run_in="process", max_concurrency=1)
        .map(math.isqrt, run_in="process", max_concurrency=1)
        .flat_map(range, run_in="process", max_concurrency=1)
        .tap(abs, run_in="process", max_concurrency=1)
        .map_batches(sink, max_size=7)
        .run()
    )

    assert sorted(sink.written) == [0, 0, 0, 0, 1]
    assert (summary.seen, summary.done, summary.filtered) == (5, 4, 1)


async def test_items_stay_in_order_from_source_to_sink() -> None:
    sink = FakeSink[int](latency=0.01)

    await (
        forebay.pipeline(range(10_000))
        .filter(is_even)
        .map_batches(lambda items: [item * 2 for item in items], max_size=13)
        .flat_map(lambda item: [item, item + 1])
        .map_batches(sink, max_size=100)
        .run()
    )

    assert sink.written == [item for even in range(0, 20_000, 4) for item in (even, even + 1)]


async def test_a_recipe_can_run_again() -> None:
    sink = FakeSink[int]()
    recipe = forebay.pipeline([1, 2, 3]).map_batches(sink, max_size=2)

    first, second = await recipe.run(), await recipe.run()

    assert sink.written == [1, 2, 3, 1, 2, 3]
    assert first.run_id != second.run_id


async def test_two_runs_at_once_do_not_meet() -> None:
    sink = FakeSink[int](latency=1)
    recipe = forebay.pipeline(range(10)).map_batches(sink, max_size=5)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recipe.run)
        tasks.start_soon(recipe.run)

    assert Counter(sink.written) == dict.fromkeys(range(10), 2)


async def test_a_recipe_needs_no_stage() -> None:
    seen: list[int] = []

    nothing = await forebay.pipeline(range(5)).run()
    steps = await forebay.pipeline(range(5)).map(increment).tap(seen.append).run()
    empty = await forebay.pipeline([]).run()

    assert (nothing.done, steps.done, empty.done) == (5, 5, 0)
    assert seen == [1, 2, 3, 4, 5]
    assert nothing.clean
    assert empty.clean


async def test_sources_are_merged() -> None:
    first, second = ScriptedSource(range(0, 50)), ScriptedSource(range(50, 100))
    sink = FakeSink[int](latency=0.01)

    async def third() -> AsyncGenerator[int]:
        for item in range(100, 120):
            await anyio.sleep(0.01)
            yield item

    summary = await forebay.pipeline(first, second, third(), range(120, 130)).map_batches(sink, max_size=8).run()

    first.assert_settled_once()
    second.assert_settled_once()
    assert sorted(sink.written) == list(range(130))
    assert (summary.seen, summary.done, summary.clean) == (130, 130, True)


async def test_a_slow_source_does_not_hold_back_the_others() -> None:
    sink = FakeSink[int]()

    async def slow() -> AsyncGenerator[int]:
        await anyio.sleep(100)
        yield 100

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forebay.pipeline(slow(), range(10)).map_batches(sink, max_size=5).run)
        await anyio.sleep(1)
        assert sink.written == list(range(10))

    assert sink.written[-1] == 100


# --- Branches -----------------------------------------------------------------------------------


async def test_every_branch_gets_every_item() -> None:
    source = ScriptedSource(range(100))
    left, right = FakeSink[int](), FakeSink[int](latency=1)

    summary = await (
        forebay.pipeline(source)
        .map(increment)
        .branch(
            lambda items: items.filter(is_even).map_batches(left, max_size=7),
            lambda items: items.flat_map(repeat).map(increment_async).map_batches(right, max_size=9),
        )
        .run()
    )

    source.assert_settled_once()
    assert left.written == [item for item in range(1, 101) if item % 2 == 0]
    assert sorted(right.written) == sorted(item + 1 for item in range(1, 101) for _ in range(item % 3))
    assert_conserved(summary)
    assert summary.seen == 100


async def test_an_item_is_settled_when_all_branches_have_it() -> None:
    source = ScriptedSource(range(4))
    quick, slow = FakeSink[int](), FakeSink[int](latency=50)
    settled_early: list[int] = []

    async with anyio.create_task_group() as tasks:
        recipe = forebay.pipeline(source).branch(
            lambda items: items.map_batches(quick, max_size=4), lambda items: items.map_batches(slow, max_size=2)
        )
        tasks.start_soon(recipe.run)
        await anyio.sleep(40)
        settled_early.append(4 - len(source.unsettled))
        await anyio.sleep(30)
        settled_early.append(4 - len(source.unsettled))

    assert settled_early == [0, 2]
    source.assert_settled_once()


@pytest.mark.parametrize("seed", range(6))
async def test_branches_nest(seed: int) -> None:
    source = ScriptedSource(range(60))
    chance = random.Random(seed)
    sinks = [FakeSink[int](latency=chance.random()) for _ in range(4)]

    def end(index: int) -> Callable[[Pipeline[int]], ClosedPipeline]:
        return lambda items: items.map_batches(sinks[index], max_size=chance.randint(1, 20))

    def inner(items: Pipeline[int]) -> ClosedPipeline:
        return items.filter(is_even).branch(end(0), lambda ones: end(1)(ones.flat_map(repeat)))

    with anyio.fail_after(1000):
        summary = await (
            forebay.pipeline(source)
            .flat_map(lambda item: range(item % 4))
            .branch(inner, lambda items: items.map_batches(sinks[2], max_size=5), end(3))
            .run()
        )

    source.assert_settled_once()
    all_items = [child for item in range(60) for child in range(item % 4)]
    even = [item for item in all_items if item % 2 == 0]
    assert sinks[0].written == even
    assert sinks[1].written == [item for one in even for item in repeat(one)]
    assert sinks[2].written == sinks[3].written == all_items
    assert_conserved(summary)


async def test_what_is_dead_in_one_branch_is_dead_in_the_summary() -> None:
    source = ScriptedSource(range(6))

    def odd_fails(item: int) -> int:
        if item % 2:
            raise ValueError("odd")
        return item

    summary = await (
        forebay.pipeline(source, dead_letters="memory")
        .branch(lambda items: items.map(odd_fails), lambda items: items.map_batches(FakeSink[int](), max_size=4))
        .run()
    )

    source.assert_settled_once()
    assert (summary.done, summary.dead) == (3, 3)
    assert_conserved(summary)


async def test_a_branch_may_be_empty() -> None:
    source = ScriptedSource(range(3))

    summary = await forebay.pipeline(source).branch(lambda items: items, lambda items: items.map(increment)).run()

    source.assert_settled_once()
    assert summary.done == 3


async def test_keys_hold_in_each_branch() -> None:
    order: list[str] = []

    async def h(item: str) -> None:
        await anyio.sleep(1 if item.endswith("0") else 0.1)
        order.append(item)

    source = ScriptedSource(["a0", "a1", "b0", "b1"])
    await forebay.pipeline(source).key_by(lambda item: item[0]).branch(lambda one: one.tap(h), lambda one: one).run()

    source.assert_settled_once()
    assert sorted(order, key=lambda item: item[0]) == ["a0", "a1", "b0", "b1"]


# --- Across stages ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(15))
async def test_every_item_is_settled_once_through_any_chain_of_steps(seed: int) -> None:
    chance = random.Random(seed)
    source = ScriptedSource(range(chance.choice([1, 50, 400])))
    items: Any = forebay.pipeline(source, dead_letters="memory", retry=Retry(base=0.01, max_attempts=3))

    def sometimes(result: Callable[[int], Any]) -> Callable[[int], Any]:
        def func(item: int) -> Any:
            roll = chance.random()
            if roll < 0.05:
                raise ConnectionError("may pass")
            if roll < 0.08:
                raise ValueError("never")
            return result(item)

        return func

    def sometimes_async(result: Callable[[int], Any]) -> Callable[[int], Any]:
        func = sometimes(result)

        async def later(item: int) -> Any:
            await anyio.sleep(chance.random() / 10)
            return func(item)

        return later

    async def batch(numbers: list[int]) -> list[Any]:
        await anyio.sleep(chance.random() / 10)
        roll = chance.random()
        if roll < 0.1:
            raise TimeoutError("all")
        if roll < 0.2:
            raise ValueError("one of them")
        kinds: list[Any] = [forebay.Failed(ConnectionError()), forebay.Again(0.1), forebay.Dropped("so")]
        return [number if chance.random() < 0.9 else chance.choice(kinds) for number in numbers]

    for _ in range(chance.randint(1, 6)):
        make = chance.choice([sometimes, sometimes_async])
        match chance.choice(["map", "filter", "flat_map", "tap", "batch", "key_by"]):
            case "map":
                items = items.map(make(increment))
            case "filter":
                items = items.filter(make(lambda item: item % 3))
            case "flat_map":
                items = items.flat_map(make(repeat))
            case "tap":
                items = items.tap(make(increment))
            case "key_by":
                items = items.key_by(by_digit)
            case _:
                items = items.map_batches(
                    batch,
                    max_size=chance.choice([1, 7, 64]),
                    max_concurrency=chance.randint(1, 3),
                    idempotent=chance.random() < 0.5,
                )
    summary: Summary = await items.run(seed=seed)

    source.assert_settled_once()
    assert_conserved(summary)
    assert summary.clean


# --- Functions of the wrong kind ----------------------------------------------------------------


async def wait(item: object) -> bool:
    return True


def promise(item: object) -> object:
    return wait(item)


def by_digit(item: int) -> str:
    return str(item % 5)


@pytest.mark.filterwarnings("ignore:coroutine 'wait' was never awaited:RuntimeWarning")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("method", ["map", "filter", "flat_map", "tap", "key_by"])
async def test_a_plain_function_that_returns_a_coroutine_ends_the_run(method: str, first: bool) -> None:
    source: Any = forebay.pipeline([1])
    numbers = source if first else source.tap(increment)

    with pytest.raises(HandlerContractError) as raised:
        await (
            getattr(numbers, method)(promise, name="here")
            .map_batches(FakeSink[int](), max_size=5, dead_letters="memory")
            .run()
        )

    assert str(raised.value) == (
        f"{method} step 'here' is a plain function that returned a coroutine, so nothing would await it; "
        "pass the async function itself"
    )


async def test_a_function_in_a_thread_that_returns_a_coroutine_ends_the_run() -> None:
    with pytest.raises(HandlerContractError, match="is a plain function that returned a coroutine"):
        await forebay.pipeline([1]).map(lambda item: wait(item), run_in="thread", dead_letters="memory").run()


async def test_results_of_the_wrong_type_behind_an_async_function_are_the_items_failure() -> None:
    source = ScriptedSource(range(3))

    async def forgets(item: int) -> Any: ...

    summary = await forebay.pipeline(source).flat_map(forgets, dead_letters="memory").run()

    source.assert_settled_once()
    assert summary.dead == 3


# --- Concurrency --------------------------------------------------------------------------------


async def test_calls_are_in_flight_at_once_up_to_the_limit() -> None:
    now = most = 0

    async def h(item: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.sleep(1)
        now -= 1
        return item

    began = anyio.current_time()
    await forebay.pipeline(range(64)).map(h).run()
    default, took = most, anyio.current_time() - began
    most = 0
    await forebay.pipeline(range(64)).map(h, max_concurrency=5).run()

    assert (default, most) == (16, 5)
    assert took == pytest.approx(4, abs=0.1)


async def test_batches_are_in_flight_at_once_up_to_the_limit() -> None:
    one, three = FakeSink[int](latency=1), FakeSink[int](latency=1)

    await forebay.pipeline(range(60)).map_batches(one, max_size=5).run()
    await forebay.pipeline(range(60)).map_batches(three, max_size=5, max_concurrency=3).run()

    assert (one.max_concurrency, three.max_concurrency) == (1, 3)


async def test_plain_functions_in_threads_run_at_once() -> None:
    barrier = threading.Barrier(4)

    def meet(item: int) -> int:
        barrier.wait(10)
        return item

    summary = await forebay.pipeline(range(16)).map(meet, run_in="thread", max_concurrency=4).run()

    assert summary.done == 16


# --- What the summary says ----------------------------------------------------------------------


async def test_the_figures_of_a_run_add_up() -> None:
    source = ScriptedSource(range(100))

    def odd_fails(item: int) -> int:
        if item % 10 == 9:
            raise ValueError("nine")
        return item

    async def drop_some(items: list[int]) -> list[int | forebay.Dropped]:
        await anyio.sleep(1)
        return [forebay.Dropped("five") if item % 10 == 5 else item for item in items]

    summary = await (
        forebay.pipeline(source, name="figures", dead_letters="memory")
        .filter(lambda item: item % 10, name="tens")
        .map(odd_fails, name="nines")
        .map_batches(drop_some, max_size=20, name="fives")
        .run()
    )

    source.assert_settled_once()
    assert_conserved(summary)
    assert (summary.pipeline, summary.seen, summary.done) == ("figures", 100, 70)
    assert (summary.filtered, summary.dead, summary.dropped, summary.given_back) == (10, 10, 10, 0)
    assert summary.dead_reasons == {"nines: ValueError": 10}
    assert summary.drop_reasons == {"five": 10}
    assert (summary.clean, summary.unsettled, summary.lost_ownership) == (True, 0, 0)
    tens, nines, fives = summary.stages
    assert (tens.name, tens.received, tens.done, tens.filtered, tens.calls) == ("tens", 100, 90, 10, 0)
    assert (nines.name, nines.received, nines.done, nines.failed) == ("nines", 90, 80, 10)
    assert (fives.name, fives.done, fives.dropped) == ("fives", 70, 10)
    assert fives.batch_sizes.count == fives.calls
    assert fives.seconds == pytest.approx(fives.calls)
    assert summary.latency.count == 100
    assert summary.seconds == pytest.approx(fives.calls, abs=0.5)


async def test_a_step_counts_its_dead_letters() -> None:
    def fails(item: int) -> int:
        raise ValueError("no")

    summary = await forebay.pipeline(range(3), dead_letters="memory").map(fails).run()

    assert summary.stages[0].dead == 3


async def test_a_filter_in_a_stage_of_its_own_counts_what_it_leaves_out() -> None:
    summary = await forebay.pipeline(range(10)).filter(is_even_async, name="even").run()

    figures = {stage.name: stage.filtered for stage in summary.stages}
    assert figures == {"even": 0, "even, filter": 5, "even, map": 0}
    assert (summary.done, summary.filtered) == (5, 5)


async def test_a_million_items_pass_in_bounded_memory() -> None:
    given = taken = most = 0

    def count() -> Iterator[int]:
        nonlocal given, most
        for item in range(50_000):
            given += 1
            most = max(most, given - taken)
            yield item

    async def sink(items: list[int]) -> None:
        nonlocal taken
        await anyio.lowlevel.checkpoint()
        taken += len(items)

    await forebay.pipeline(count()).map_batches(sink, max_size=100, capacity=500).run()

    assert taken == 50_000
    assert most <= 500 + 100 + 100


async def test_async_functions_of_one_item_may_be_steered() -> None:
    running = most = 0

    async def later(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(0.1)
        running -= 1
        return item

    control = Scripted([Limits(1, 5, 0.0)])
    summary = await forebay.pipeline(range(100)).map(later, max_concurrency=20, control=control, name="later").run()

    assert summary.done == 100
    assert most == 20  # before the controller has spoken
    assert [(move.before.concurrency, move.after.concurrency) for move in summary.moves] == [(20, 5)]
    assert summary.seconds > 0.1 * 100 / 20


@pytest.mark.parametrize("method", ["filter", "flat_map", "tap"])
async def test_the_other_steps_take_the_same_options(method: str) -> None:
    async def one(item: int) -> list[int]:
        await anyio.sleep(0.01)
        return [item]

    control = Scripted([Limits(1, 2, 0.0)])
    step = getattr(forebay.pipeline(range(1, 30)), method)
    summary = await step(one, max_concurrency=4, control=control, goal=None).run()

    assert summary.done == 29
    assert len(summary.moves) == 1
