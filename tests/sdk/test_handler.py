"""How the user's function is called, wherever it runs."""

import functools
import os
import threading
import time
from collections.abc import AsyncGenerator, Awaitable
from typing import Any

import anyio
import pytest

import forebay
from forebay import Again, BlockedLoopWarning, Dropped, Failed, HandlerContractError, TimeLimitError
from forebay._handler import OUTCOMES, BatchContext, build_call, current_batch, is_async, name_of, set_context

pytestmark = pytest.mark.anyio


async def double(item: int) -> int:
    if item < 0:
        raise ValueError("negative")
    return 2 * item


def halve(item: int) -> int:
    if item % 2:
        raise ValueError("odd")
    return item // 2


def process_id(items: list[int]) -> list[int]:
    return [os.getpid()] * len(items)


def thread_name(items: list[int]) -> list[str]:
    return [threading.current_thread().name] * len(items)


class Doubler:
    async def __call__(self, item: int) -> int:
        return 2 * item

    async def method(self, item: int) -> int:
        return 2 * item

    def plain(self, item: int) -> int:
        return 2 * item


async def test_async_functions_are_known_in_all_their_forms() -> None:
    for func in (double, functools.partial(double), Doubler(), Doubler().method, functools.partial(Doubler())):
        assert is_async(func)
    for plain in (halve, functools.partial(halve), Doubler, Doubler().plain, len, 3):
        assert not is_async(plain)


async def test_functions_are_named_for_people() -> None:
    def inner() -> None: ...

    assert name_of(double) == "double"
    assert name_of(functools.partial(functools.partial(double))) == "double"
    assert name_of(Doubler()) == "Doubler"
    assert name_of(Doubler().method) == "Doubler.method"
    assert name_of(inner) == "test_functions_are_named_for_people.inner"


@pytest.mark.usefixtures("real_time")  # processes know no virtual time
@pytest.mark.parametrize("run_in", ["loop", "thread", "process"])
async def test_a_function_of_one_item_fails_for_its_item_alone(run_in: Any) -> None:
    call = build_call(halve, name="halve", per_item=True, run_in=run_in, time_limit=None)

    results: Any = await call([2, 3, 4])

    assert (results[0], results[2]) == (1, 2)
    assert isinstance(results[1], Failed)
    assert repr(results[1].error) == "ValueError('odd')"


async def test_an_async_function_of_one_item_fails_for_its_item_alone() -> None:
    call = build_call(double, name="double", per_item=True, run_in="loop", time_limit=None)

    results: Any = await call([2, -3, 4])

    assert (results[0], results[2]) == (4, 8)
    assert repr(results[1].error) == "ValueError('negative')"


@pytest.mark.parametrize("per_item", [True, False])
async def test_a_broken_contract_is_not_the_items_fault(per_item: bool) -> None:
    async def broken(argument: object) -> object:
        raise HandlerContractError("broken")

    call = build_call(broken, name="broken", per_item=per_item, run_in="loop", time_limit=None)

    with pytest.raises(HandlerContractError, match="broken"):
        await call([1])


@pytest.mark.usefixtures("real_time")
async def test_functions_run_where_they_are_told_to() -> None:
    in_loop = build_call(thread_name, name="where", per_item=False, run_in="loop", time_limit=None)
    in_thread = build_call(thread_name, name="where", per_item=False, run_in="thread", time_limit=None)
    in_process = build_call(process_id, name="where", per_item=False, run_in="process", time_limit=None)

    places: list[Any] = [await call([1, 2]) for call in (in_loop, in_thread, in_process)]

    assert places[:2] == [["MainThread"] * 2, ["forebay worker"] * 2]
    assert places[2][0] != os.getpid()


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_a_plain_function_of_one_item_that_returns_a_coroutine_is_named(run_in: Any) -> None:
    def halves(item: int) -> object:
        return double(item) if item else 0

    call = build_call(halves, name="halves", per_item=True, run_in=run_in, time_limit=None)

    with pytest.raises(HandlerContractError) as raised:
        await call([0, 1])

    assert str(raised.value) == (
        "halves() is a plain function that returned a coroutine, so nothing would await it; pass the async function"
    )


async def test_an_async_function_of_one_item_that_forgets_to_await_is_named() -> None:
    async def forgetful(item: int) -> Awaitable[int]:
        return double(item)

    with pytest.raises(HandlerContractError) as raised:
        await forebay.pipeline([1]).map(forgetful, name="f", dead_letters="memory").run()

    assert str(raised.value) == "f() returned a coroutine that nobody awaited; write `return await ...` in it"


async def test_an_async_function_of_one_item_that_returns_an_async_generator_is_named() -> None:
    async def rows(item: int) -> AsyncGenerator[int]:
        yield item

    async def read(item: int) -> Any:
        return rows(item)

    with pytest.raises(HandlerContractError) as raised:
        await forebay.pipeline([1]).flat_map(read, name="f", dead_letters="memory").run()

    assert str(raised.value) == (
        "f() is an async generator, which yields and returns nothing; return the result, or a list for flat_map"
    )


async def test_a_plain_function_that_holds_the_loop_three_times_in_a_row_is_named_once() -> None:
    def slow(items: list[int]) -> None:
        time.sleep(0.06)  # it holds the loop, so no virtual time can stand in

    with pytest.warns(BlockedLoopWarning) as caught:
        await forebay.pipeline(range(4)).map_batches(slow, max_size=1, name="store").run()

    (warning,) = caught
    assert str(warning.message).startswith("store() held the event loop for ")
    assert str(warning.message).endswith(
        " ms over 1 item; pass run_in='thread' or run_in='process' to move it off the loop"
    )


async def test_a_time_limit_cuts_a_batch_off() -> None:
    async def slow(items: list[int]) -> list[int]:
        await anyio.sleep(items[0])
        return items

    call = build_call(slow, name="slow", per_item=False, run_in="loop", time_limit=1.5)
    began = anyio.current_time()

    quick = await call([1])
    with pytest.raises(TimeLimitError) as raised:
        await call([2])

    assert quick == [1]
    assert str(raised.value) == "slow() was cut off at its time limit of 1.5 s"
    assert anyio.current_time() == pytest.approx(began + 2.5)


async def test_a_time_limit_is_for_each_item_of_a_function_of_one_item() -> None:
    async def slow(item: float) -> float:
        await anyio.sleep(item)
        return item

    call = build_call(slow, name="slow", per_item=True, run_in="loop", time_limit=1.5)

    results: Any = await call([1.0, 2.0, 1.25])

    assert (results[0], results[2]) == (1.0, 1.25)
    assert isinstance(results[1].error, TimeLimitError)


async def test_a_cancellation_from_outside_is_no_time_limit() -> None:
    async def slow(items: object) -> None:
        await anyio.sleep(60)

    call = build_call(slow, name="slow", per_item=False, run_in="loop", time_limit=90)

    with anyio.move_on_after(1) as scope:
        await call([1])

    assert scope.cancelled_caught


async def test_current_batch_belongs_to_a_handler() -> None:
    with pytest.raises(RuntimeError) as raised:
        current_batch()

    assert str(raised.value) == ("current_batch() was called outside a handler; call it in a function given to a stage")


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_current_batch_follows_the_handler_into_a_thread(run_in: Any) -> None:
    context = BatchContext("stage", 2, True, ())
    set_context(lambda: context)

    def ask(items: list[int]) -> BatchContext:
        return current_batch()

    call = build_call(ask, name="ask", per_item=False, run_in=run_in, time_limit=None)

    assert await call([1]) is context


async def test_outcomes_are_what_is_no_result() -> None:
    assert {type(outcome) for outcome in (Failed(ValueError()), Again(), Dropped("old"))} == OUTCOMES


async def test_each_batch_of_a_run_is_described_to_its_handler() -> None:
    seen: list[BatchContext] = []

    async def store(items: list[str]) -> None:
        await anyio.sleep(0.1)
        seen.append(forebay.current_batch())

    await forebay.pipeline(["a", "b", "c"], name="letters").map(str.upper).map_batches(store, max_size=2).run()

    (first, second) = seen
    assert (first.stage, first.attempt, first.maybe_done) == (
        "test_each_batch_of_a_run_is_described_to_its_handler.store",
        1,
        False,
    )
    assert [(part.source, part.offsets) for part in first.parts + second.parts] == [("list", [0, 1]), ("list", [2])]
