# Batchers and task groups may swallow a cancellation, so what is set inside looks unbound behind them.
# pyright: reportPossiblyUnboundVariable=false
from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forebay
from forebay import (
    Again,
    Batcher,
    BatcherClosedError,
    BatchError,
    BatchFailed,
    BatchSizeError,
    BatchTooLargeError,
    Dropped,
    Failed,
    ItemDroppedError,
    PluginError,
    Retry,
    RetryExhaustedError,
    TimeLimitError,
    open_batcher,
)
from forebay.abc import BatchInfo, Bounds, Controller, DeadLetterFilter, Goal, Limits
from forebay.hooks import Plugins, Registry, hookimpl
from forebay.testing import BackendName, FakeDeadLetterStore, run_virtual, wait_all_tasks_blocked
from tests.support.controllers import Scripted, WanderingFactory

pytestmark = pytest.mark.anyio

T = TypeVar("T")
backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Handler:
    """A function of a list that takes a second, remembers its batches and answers ten times each item.

    Batches wait at *gate* as long as it is closed.
    """

    def __init__(self, answer: Callable[[int], int | Failed | Again | Dropped] = lambda item: 10 * item) -> None:
        self.batches: list[list[int]] = []
        self.ended: list[list[int]] = []
        self.answer = answer

    async def __call__(self, items: list[int]) -> list[int | Failed | Again | Dropped]:
        self.batches.append(list(items))
        await anyio.sleep(1)
        self.ended.append(list(items))
        return [self.answer(item) for item in items]


class Callers:
    """Tasks that submit, and what came of each."""

    def __init__(self, tasks: TaskGroup, batcher: Batcher[int, int]) -> None:
        self.answers: dict[int, object] = {}
        self.order: list[int] = []
        self.scopes: dict[int, anyio.CancelScope] = {}
        self._tasks = tasks
        self._batcher = batcher

    async def start(self, *items: int) -> None:
        """Start a caller for each item, one behind the other."""
        for item in items:
            self._tasks.start_soon(self._call, item)
            await wait_all_tasks_blocked()

    async def _call(self, item: int) -> None:
        with anyio.CancelScope() as self.scopes[item]:
            try:
                self.answers[item] = await self._batcher.submit(item)
            except Exception as error:
                self.answers[item] = error
            self.order.append(item)


async def all_of(batcher: Batcher[Any, T], items: Sequence[Any]) -> list[T | Exception]:
    """Submit all *items* at once; return the answers in the order of the items."""
    answers: list[T | Exception] = [RuntimeError("no answer")] * len(items)

    async def call(index: int) -> None:
        try:
            answers[index] = await batcher.submit(items[index])
        except Exception as error:
            answers[index] = error

    async with anyio.create_task_group() as tasks:
        for index in range(len(items)):
            tasks.start_soon(call, index)
    return answers


# --- Results -----------------------------------------------------------------------------------


async def test_every_caller_gets_the_result_of_its_own_item() -> None:
    async with open_batcher(Handler(), max_size=7) as batcher:
        answers = await all_of(batcher, range(50))

    assert answers == [10 * item for item in range(50)]


async def test_results_find_their_callers_whatever_the_order_in_which_batches_end() -> None:
    async def slower_at_first(items: list[int]) -> list[int]:
        await anyio.sleep(10 - items[0] / 10)
        return [10 * item for item in items]

    async with open_batcher(slower_at_first, max_size=3, max_concurrency=5) as batcher:
        answers = await all_of(batcher, range(40))

    assert answers == [10 * item for item in range(40)]


async def test_a_plain_function_runs_on_the_loop_by_default() -> None:
    def where(items: list[int]) -> list[int]:
        return [threading.get_ident()] * len(items)

    async with open_batcher(where, max_size=3) as batcher:
        assert await batcher.submit(1) == threading.get_ident()


async def test_a_plain_function_runs_in_a_thread_on_demand() -> None:
    def where(items: list[int]) -> list[int]:
        return [threading.get_ident()] * len(items)

    async with open_batcher(where, max_size=3, run_in="thread") as batcher:
        assert await batcher.submit(1) != threading.get_ident()


async def test_a_result_may_be_none() -> None:
    async def forget(items: list[int]) -> list[None]:
        return [None] * len(items)

    async with open_batcher(forget, max_size=3) as batcher:
        assert await all_of(batcher, [1, 2]) == [None, None]


async def test_a_handler_that_forgot_its_results_is_named() -> None:
    async def store(items: list[int]) -> Any:
        return None

    async with open_batcher(store, max_size=3, name="store") as batcher:
        with pytest.raises(BatchError, match=r"store\(\) returned None for 1 item, but the callers wait for results"):
            await batcher.submit(1)


async def test_items_are_not_compared() -> None:
    class Array:
        """Refuses to be compared, as arrays do in a condition."""

        def __eq__(self, other: object) -> bool:
            raise ValueError("the truth value of an array is ambiguous")

        __hash__ = None  # type: ignore[assignment]

    async def count(items: list[Array]) -> list[int]:
        return [len(items)] * len(items)

    async with open_batcher(count, max_size=3) as batcher:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await batcher.submit(Array())
        assert await batcher.submit(Array()) == 1


async def test_a_caller_that_is_cancelled_already_gets_no_result() -> None:
    async with open_batcher(Handler(), max_size=3) as batcher:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await batcher.submit(1)

    assert scope.cancelled_caught


# --- Sizes -------------------------------------------------------------------------------------


async def test_a_batch_starts_at_once_with_what_has_been_submitted() -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=4) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0, 1, 2, 3, 4, 5, 6)
        await anyio.sleep(5)

    assert handler.batches == [[0], [1, 2, 3, 4], [5, 6]]


@pytest.mark.parametrize("max_size", [1, 2, 7])
async def test_no_batch_is_larger_than_max_size(max_size: int) -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=max_size, max_concurrency=2) as batcher:
        await all_of(batcher, range(20))

    assert max(map(len, handler.batches)) == max_size
    assert sorted(item for batch in handler.batches for item in batch) == list(range(20))


async def test_no_batch_is_larger_than_max_bytes() -> None:
    handler = Handler()
    sizes = [3, 4, 4, 2, 5, 1, 9, 1]
    async with (
        open_batcher(handler, max_size=10, max_bytes=8, weigh=lambda item: item) as batcher,
        anyio.create_task_group() as tasks,
    ):
        callers = Callers(tasks, batcher)
        await callers.start(8)
        for size in sizes:
            tasks.start_soon(batcher.submit, size)
            await wait_all_tasks_blocked()

    assert handler.batches == [[8], [3, 4], [4, 2], [5, 1], [9], [1]]


async def test_an_item_larger_than_max_bytes_goes_alone() -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=10, max_bytes=8, weigh=lambda item: item) as batcher:
        answers = await all_of(batcher, [100, 1, 100, 100, 2, 3])

    assert answers == [1000, 10, 1000, 1000, 20, 30]
    assert all(len(batch) == 1 for batch in handler.batches if 100 in batch)


async def test_a_weigh_that_fails_fails_its_caller_alone() -> None:
    def weigh(item: int) -> int:
        if item == 1:
            raise ValueError("no size")
        return item

    async with open_batcher(Handler(), max_size=10, max_bytes=8, weigh=weigh) as batcher:
        answers = await all_of(batcher, [0, 1, 2])

    assert [answers[0], answers[2]] == [0, 20]
    assert isinstance(answers[1], ValueError)


# --- Capacity ----------------------------------------------------------------------------------


async def test_a_full_batcher_makes_submit_wait_first_come_first_served() -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=2, capacity=3) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(*range(12))

        assert batcher.statistics().waiting == 3
        assert batcher.statistics().submitted == 4

    assert [item for batch in handler.batches for item in batch] == list(range(12))


async def test_who_comes_while_others_wait_for_a_place_waits_behind_them() -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=1, capacity=1) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0, 1, 2, 3)

        async def barge() -> None:
            for item in range(100, 103):
                await anyio.sleep(1)
                await callers.start(item)

        tasks.start_soon(barge)

    assert [item for batch in handler.batches for item in batch] == [0, 1, 2, 3, 100, 101, 102]


async def test_a_caller_that_gives_up_waiting_for_a_place_does_not_hold_up_others() -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=1, capacity=1) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0, 1, 2, 3, 4)
        callers.scopes[2].cancel()
        callers.scopes[4].cancel()

    assert handler.batches == [[0], [1], [3]]
    assert callers.answers == {0: 0, 1: 10, 3: 30}


async def test_a_caller_that_goes_before_its_batch_starts_makes_room() -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=2, capacity=2) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0, 1, 2, 3)
        callers.scopes[1].cancel()
        await wait_all_tasks_blocked()

        assert batcher.statistics().submitted == 4
        assert batcher.statistics().waiting == 2

    assert handler.batches == [[0], [2, 3]]


# --- Callers that go ---------------------------------------------------------------------------


async def test_an_item_whose_caller_goes_before_its_batch_starts_is_dropped() -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=4) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0, 1, 2, 3)
        callers.scopes[2].cancel()

    assert handler.batches == [[0], [1, 3]]
    assert callers.answers == {0: 0, 1: 10, 3: 30}


async def test_a_batch_all_of_whose_callers_have_gone_before_it_started_does_not_run() -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=4) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0, 1, 2)
        callers.scopes[1].cancel()
        callers.scopes[2].cancel()
        await anyio.sleep(3)
        await callers.start(3)

    assert handler.batches == [[0], [3]]
    assert batcher.statistics().waiting == 0


async def test_a_batch_runs_on_when_one_of_its_callers_goes() -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=4) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0, 1, 2)
        await anyio.sleep(1.5)
        callers.scopes[1].cancel()

    assert handler.ended == [[0], [1, 2]]
    assert callers.answers == {0: 0, 2: 20}


async def test_a_batch_runs_on_when_all_of_its_callers_go() -> None:
    handler = Handler()
    async with open_batcher(handler, max_size=4) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0)
        callers.scopes[0].cancel()

    assert handler.ended == [[0]]
    assert callers.answers == {}


@pytest.mark.parametrize("when", [0.5, 1.5])
def test_a_native_cancellation_of_a_caller_is_its_own_affair(when: float) -> None:
    async def main() -> tuple[list[list[int]], list[object]]:
        handler = Handler()
        async with open_batcher(handler, max_size=4) as batcher:
            tasks = [asyncio.create_task(batcher.submit(item)) for item in range(3)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            more = asyncio.create_task(batcher.submit(3))
            await asyncio.sleep(when)
            tasks[1].cancel()
            more.cancel()
            answers = await asyncio.gather(*tasks, more, return_exceptions=True)
        return handler.ended, [type(one) if isinstance(one, BaseException) else one for one in answers]

    ended, answers = run_virtual(main, backend="asyncio")

    gone = asyncio.CancelledError
    assert answers in ([0, gone, 20, gone], [0, 10, 20, gone])
    assert [3] in ended if when > 1 else [3] not in ended


# --- Failures ----------------------------------------------------------------------------------


async def test_a_failure_of_the_whole_batch_reaches_each_caller_as_an_error_of_its_own() -> None:
    cause = RuntimeError("down")

    async def broken(items: list[int]) -> list[int]:
        raise cause

    async with open_batcher(broken, max_size=4) as batcher:
        answers = await all_of(batcher, [1, 2, 3])

    assert [type(answer) for answer in answers] == [BatchError] * 3
    assert len(set(map(id, answers))) == 3
    assert [answer.__cause__ for answer in answers if isinstance(answer, BatchError)] == [cause] * 3
    assert "broken() failed: RuntimeError: down" in str(answers[0])


async def test_after_a_failure_the_next_batch_runs() -> None:
    calls: list[int] = []

    async def first_fails(items: list[int]) -> list[int]:
        calls.append(len(items))
        if len(calls) == 1:
            raise RuntimeError("down")
        return items

    async with open_batcher(first_fails, max_size=1) as batcher:
        answers = await all_of(batcher, [1, 2])

    assert sorted(map(type, answers), key=str) == [BatchError, int]


async def together(process: Callable[[list[int]], Awaitable[list[Any]]], *items: int, **options: Any) -> Callers:
    """Let callers submit *items* in their order and in one batch, behind item 0; return what became of them."""

    async def after_a_second(batch: list[int]) -> list[Any]:
        if batch == [0]:
            await anyio.sleep(1)
            return batch
        return await process(batch)

    async with open_batcher(after_a_second, name="process", **options) as batcher:
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            await callers.start(0, *items)
    del callers.answers[0]
    return callers


async def test_an_item_that_failed_raises_in_its_own_caller() -> None:
    async def one_fails(items: list[int]) -> list[int | Failed]:
        return [Failed(ValueError("two")) if item == 2 else item for item in items]

    callers = await together(one_fails, 1, 2, 3, max_size=10)

    assert isinstance(failure := callers.answers.pop(2), ValueError)
    assert str(failure) == "two"
    assert callers.answers == {1: 1, 3: 3}


async def test_batch_failed_answers_the_others_with_none() -> None:
    async def one_fails(items: list[int]) -> list[int]:
        raise BatchFailed({1: ValueError("two")})

    callers = await together(one_fails, 1, 2, 3, max_size=10)

    assert isinstance(callers.answers.pop(2), ValueError)
    assert callers.answers == {1: None, 3: None}


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (1, "process() got 2 items and returned 1 result; return one result for each item, in order"),
        (3, "process() got 2 items and returned 3 results; return one result for each item, in order"),
    ],
)
async def test_a_wrong_count_reaches_every_caller_and_names_the_function(count: int, sentence: str) -> None:
    async def wrong(items: list[int]) -> list[int]:
        return [1] * count

    callers = await together(wrong, 1, 2, max_size=2)

    causes = [answer.__cause__ for answer in callers.answers.values() if isinstance(answer, BatchError)]
    assert [str(cause) for cause in causes] == [sentence] * 2
    assert {type(cause) for cause in causes} == {BatchSizeError}


async def test_something_else_than_a_list_reaches_every_caller() -> None:
    async def wrong(items: list[int]) -> Any:
        return "ab"

    async with open_batcher(wrong, max_size=2) as batcher:
        answers = await all_of(batcher, [1, 2])

    assert [type(answer) for answer in answers] == [BatchError] * 2
    assert "returned str for" in str(answers[0])


async def test_a_plain_function_that_returns_a_coroutine_is_told_so() -> None:
    async def real(items: list[int]) -> list[int]:
        return items

    def wrapper(items: list[int]) -> Any:
        return real(items)

    async with open_batcher(wrapper, max_size=2, name="wrapper") as batcher:
        answers = await all_of(batcher, [1])

    assert "wrapper() is a plain function that returned a coroutine" in str(answers[0])


async def test_dropped_reaches_the_caller_with_its_reason() -> None:
    async with open_batcher(Handler(lambda item: Dropped("stale")), max_size=2, name="look") as batcher:
        answers = await all_of(batcher, [1])

    assert isinstance(answers[0], ItemDroppedError)
    assert str(answers[0]) == "look() dropped the item: stale"
    assert batcher.statistics().stage.dropped == 1


async def test_again_without_a_policy_is_a_failure() -> None:
    async with open_batcher(Handler(lambda item: Again(1)), max_size=2, name="look") as batcher:
        answers = await all_of(batcher, [1])

    assert isinstance(answers[0], RetryExhaustedError)
    assert "no retry= was given" in str(answers[0])


async def test_nothing_is_tried_again_unless_asked() -> None:
    calls: list[list[int]] = []

    async def busy(items: list[int]) -> list[int]:
        calls.append(items)
        raise TimeoutError("busy")

    async with open_batcher(busy, max_size=4) as batcher:
        answers = await all_of(batcher, [1, 2])

    assert [type(answer) for answer in answers] == [BatchError] * 2
    assert sum(map(len, calls)) == 2


async def test_an_outage_is_no_reason_to_wait_without_a_policy() -> None:
    async def full(items: list[int]) -> list[int]:
        raise OSError(28, "no space left")

    async with open_batcher(full, max_size=4) as batcher:
        with anyio.fail_after(10):
            answers = await all_of(batcher, [1, 2])

    assert [type(answer) for answer in answers] == [BatchError] * 2


async def test_the_time_limit_reaches_every_caller() -> None:
    async def hang(items: list[int]) -> list[int]:
        await anyio.sleep_forever()
        return items

    async with open_batcher(hang, max_size=4, time_limit=2, name="hang") as batcher:
        answers = await all_of(batcher, [1, 2])

    causes = [answer.__cause__ for answer in answers if isinstance(answer, BatchError)]
    assert [type(cause) for cause in causes] == [TimeLimitError] * 2
    assert str(causes[0]) == "hang() was cut off at its time limit of 2 s"


class Stop(BaseException):
    pass


async def test_what_is_no_exception_of_the_usual_kind_ends_the_block() -> None:
    async def stop(items: list[int]) -> list[int]:
        raise Stop

    callers: Callers | None = None
    async with anyio.create_task_group() as tasks:
        try:
            async with open_batcher(stop, max_size=4) as batcher:
                callers = Callers(tasks, batcher)
                await callers.start(1)
        except Stop:
            pass
        else:
            pytest.fail("the exception was lost")

    assert callers is not None
    assert isinstance(callers.answers[1], BatcherClosedError)


# --- Retries -----------------------------------------------------------------------------------

RETRY = Retry(max_attempts=3, base=1, jitter="none")


class Flaky:
    """Fails the first *times* attempts at each item, naming it, or the whole batch if *whole*."""

    def __init__(self, times: int, *, whole: bool = False, again: bool = False) -> None:
        self.attempts: Counter[int] = Counter()
        self.batches: list[list[int]] = []
        self._times = times
        self._whole = whole
        self._again = again

    async def __call__(self, items: list[int]) -> list[int | Failed | Again | Dropped]:
        await anyio.lowlevel.checkpoint()
        self.batches.append(list(items))
        self.attempts.update(items)
        if self._whole and self.attempts[items[0]] <= self._times:
            raise TimeoutError("busy")
        return [self._answer(item) for item in items]

    def _answer(self, item: int) -> int | Failed | Again | Dropped:
        if self.attempts[item] > self._times:
            return 10 * item
        return Again(5) if self._again else Failed(TimeoutError("busy"))


@pytest.mark.parametrize("how", [{}, {"whole": True}, {"again": True}], ids=["item", "batch", "again"])
async def test_with_a_policy_a_failure_that_passes_is_not_seen_by_the_caller(how: dict[str, bool]) -> None:
    flaky = Flaky(2, **how)
    async with open_batcher(flaky, max_size=4, retry=RETRY) as batcher:
        answers = await all_of(batcher, [1, 2, 3])

    assert answers == [10, 20, 30]
    assert flaky.attempts == {1: 3, 2: 3, 3: 3}


@pytest.mark.parametrize("whole", [False, True])
async def test_attempts_end_and_the_caller_gets_the_last_failure(whole: bool) -> None:
    flaky = Flaky(99, whole=whole)
    async with open_batcher(flaky, max_size=1, retry=RETRY) as batcher:
        with pytest.raises(TimeoutError if not whole else BatchError, match="busy"):
            await batcher.submit(1)

    assert flaky.attempts[1] == 3


async def test_again_is_limited_by_the_policy() -> None:
    flaky = Flaky(99, again=True)
    async with open_batcher(flaky, max_size=1, retry=RETRY) as batcher:
        with pytest.raises(RetryExhaustedError, match="3 attempts were made"):
            await batcher.submit(1)

    assert flaky.attempts[1] == 3


async def test_an_outage_is_waited_out_with_a_policy() -> None:
    calls: list[float] = []

    async def full(items: list[int]) -> list[int]:
        calls.append(anyio.current_time())
        if len(calls) < 6:
            raise OSError(28, "no space left")
        return items

    async with open_batcher(full, max_size=4, retry=RETRY) as batcher:
        assert await batcher.submit(1) == 1

    assert len(calls) == 6


@pytest.mark.parametrize(("idempotent", "most"), [(True, 2 * 1 * 4 + 1), (False, 16 + 1)])
async def test_a_batch_that_says_nothing_is_taken_apart(idempotent: bool, most: int) -> None:
    calls: list[list[int]] = []

    async def poisoned(items: list[int]) -> list[int]:
        calls.append(list(items))
        if 5 in items:
            raise ValueError("five")
        return items

    async with open_batcher(
        poisoned, max_size=16, idempotent=idempotent, retry=None if idempotent else RETRY
    ) as batcher:
        await batcher.submit(99)
        calls.clear()
        answers = await all_of(batcher, range(16))

    assert [answer for answer in answers if not isinstance(answer, Exception)] == [*range(5), *range(6, 16)]
    assert isinstance(answers[5], BatchError)
    assert isinstance(answers[5].__cause__, ValueError)
    assert len(calls) <= most + 2


async def test_a_caller_may_go_while_its_item_waits_for_another_attempt() -> None:
    flaky = Flaky(2)
    async with open_batcher(flaky, max_size=1, retry=RETRY) as batcher:
        with anyio.move_on_after(0.5):
            await batcher.submit(1)

    assert flaky.attempts[1] == 3


# --- Dead letters ------------------------------------------------------------------------------


async def test_an_item_that_failed_for_good_is_kept_and_its_caller_told() -> None:
    store = FakeDeadLetterStore()

    async with open_batcher(
        Handler(lambda item: Failed(ValueError("bad")) if item == 2 else item), max_size=4, dead_letters=store, name="h"
    ) as batcher:
        answers = await all_of(batcher, [1, 2, 3])

    (letter,) = await store.find(DeadLetterFilter(), limit=10)
    assert isinstance(answers[1], ValueError)
    assert (letter.payload, letter.stage, letter.error_type) == (b"2", "h", "ValueError")


async def test_the_caller_is_told_only_after_the_store_has_the_letter() -> None:
    store = FakeDeadLetterStore(errors={"put": [OSError("down"), OSError("down")]})

    async with open_batcher(Handler(lambda item: Failed(ValueError("bad"))), max_size=4, dead_letters=store) as batcher:
        with pytest.raises(ValueError, match="bad"):
            await batcher.submit(1)

        assert len(await store.find(DeadLetterFilter(), limit=10)) == 1


async def test_a_store_may_be_named() -> None:
    async with open_batcher(Handler(lambda item: Failed(ValueError("bad"))), max_size=4, dead_letters="memory") as one:
        with pytest.raises(ValueError, match="bad"):
            await one.submit(1)


async def test_an_unknown_store_is_named_before_the_block_begins() -> None:
    with pytest.raises(PluginError, match=r"batcher 'h', dead_letters: .*'memry'.*did you mean 'memory'"):
        async with open_batcher(Handler(), max_size=4, dead_letters="memry", name="h"):
            pytest.fail("the block began")


# --- The end -----------------------------------------------------------------------------------


class OwnError(Exception):
    pass


async def test_an_exception_of_the_body_leaves_bare_and_ends_the_batcher_at_once() -> None:
    handler = Handler()
    callers: Callers | None = None
    caught: OwnError | None = None
    async with anyio.create_task_group() as tasks:
        began = anyio.current_time()
        try:
            async with open_batcher(handler, max_size=1) as batcher:
                callers = Callers(tasks, batcher)
                await callers.start(0, 1)
                raise OwnError
        except OwnError as error:
            caught = error

    assert callers is not None
    assert caught is not None
    assert caught.__context__ is None
    assert anyio.current_time() - began < 1
    assert handler.ended == []
    assert [type(answer) for answer in callers.answers.values()] == [BatcherClosedError] * 2
    assert callers.answers[0] is not callers.answers[1]


async def test_cancelling_the_block_answers_those_who_wait() -> None:
    handler = Handler()
    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(1.5) as scope:
            async with open_batcher(handler, max_size=1, capacity=1) as batcher:
                callers = Callers(tasks, batcher)
                await callers.start(0, 1, 2, 3)
                await anyio.sleep_forever()

    assert scope.cancelled_caught
    assert callers.answers[0] == 0
    assert [type(callers.answers[item]) for item in (1, 2, 3)] == [BatcherClosedError] * 3


async def test_leaving_the_block_finishes_what_waits_and_takes_nothing_new() -> None:
    handler = Handler()
    async with anyio.create_task_group() as tasks:
        async with open_batcher(handler, max_size=1, capacity=3) as batcher:
            callers = Callers(tasks, batcher)
            await callers.start(0, 1, 2, 3, 4)

    assert handler.ended == [[0], [1], [2], [3]]
    assert {item: callers.answers[item] for item in range(4)} == {item: 10 * item for item in range(4)}
    assert isinstance(callers.answers[4], BatcherClosedError)


async def test_leaving_the_block_waits_for_attempts_that_are_due() -> None:
    flaky = Flaky(2)
    async with anyio.create_task_group() as tasks:
        async with open_batcher(flaky, max_size=1, retry=RETRY) as batcher:
            callers = Callers(tasks, batcher)
            await callers.start(1)

    assert callers.answers == {1: 10}


async def test_the_end_takes_no_longer_than_the_drain_timeout() -> None:
    async def hang(items: list[int]) -> list[int]:
        await anyio.sleep_forever()
        return items

    async with anyio.create_task_group() as tasks:
        async with open_batcher(hang, max_size=1, drain_timeout=5) as batcher:
            callers = Callers(tasks, batcher)
            await callers.start(1, 2)
            left = anyio.current_time()
        took = anyio.current_time() - left

    assert took == pytest.approx(5)
    assert [type(answer) for answer in callers.answers.values()] == [BatcherClosedError] * 2


async def test_the_batcher_drains_with_the_scope_around_it() -> None:
    handler = Handler()
    async with anyio.create_task_group() as tasks:
        async with forebay.open_scope(drain_timeout=10) as scope:
            async with open_batcher(handler, max_size=1) as batcher:
                callers = Callers(tasks, batcher)
                await callers.start(0, 1)
                scope.drain()
                await wait_all_tasks_blocked()
                await callers.start(2)

    assert isinstance(callers.answers.pop(2), BatcherClosedError)
    assert callers.answers == {0: 0, 1: 10}


async def test_submit_after_the_block_says_that_the_batcher_is_closed() -> None:
    async with open_batcher(Handler(), max_size=1, name="embed") as batcher:
        pass

    with pytest.raises(BatcherClosedError, match="batcher 'embed' is shutting down and takes no more items"):
        await batcher.submit(1)


async def test_who_waits_for_a_place_is_told_when_the_batcher_closes() -> None:
    async with anyio.create_task_group() as tasks:
        async with open_batcher(Handler(), max_size=1, capacity=1) as batcher:
            callers = Callers(tasks, batcher)
            await callers.start(0, 1, 2)

    assert isinstance(callers.answers[2], BatcherClosedError)
    assert callers.order[0] == 2


# --- What can be read, what is refused ------------------------------------------------------------


async def test_statistics_tell_what_waits_and_what_runs() -> None:
    async with open_batcher(Handler(), max_size=2, name="embed") as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0, 1, 2, 3)
        during = batcher.statistics()
        await anyio.sleep(10)
        after = batcher.statistics()

    assert (during.waiting, during.in_flight, during.submitted) == (3, 1, 4)
    assert (after.waiting, after.in_flight, after.submitted) == (0, 0, 4)
    assert (after.stage.name, after.stage.done, after.stage.calls) == ("embed", 4, 3)


async def test_observers_hear_of_each_batch() -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[BatchInfo] = []

        def batch_done(self, info: BatchInfo) -> None:
            self.heard.append(info)

    listener = Listener()
    async with open_batcher(Handler(), max_size=2, name="embed", observers=[listener]) as batcher:
        await all_of(batcher, [1, 2, 3])

    assert sum(info.size for info in listener.heard) == 3
    assert {info.stage for info in listener.heard} == {"embed"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_size": 0}, "max_size must be at least 1, not 0"),
        ({"max_size": 1, "capacity": 0}, "capacity must be at least 1, not 0"),
        ({"max_size": 1, "max_age": -1}, "max_age must be at least 0 seconds, not -1"),
        ({"max_size": 1, "max_concurrency": 0}, "max_concurrency must be at least 1, not 0"),
        ({"max_size": 1, "time_limit": 0}, "time_limit must be more than 0 seconds, not 0"),
        ({"max_size": 1, "max_bytes": 10}, "max_bytes needs weigh"),
        ({"max_size": 1, "max_bytes": 0, "weigh": len}, "max_bytes must be at least 1, not 0"),
        ({"max_size": 1, "run_in": "thread"}, "run_in='thread' is for plain functions"),
        ({"max_size": 1, "run_in": "cloud"}, "run_in must be 'loop', 'thread' or 'process', not 'cloud'"),
    ],
)
async def test_bad_arguments_are_refused_with_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        async with open_batcher(Handler(), **options):
            pytest.fail("the block began")


async def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="open_batcher needs a function, not 3, an int"):
        async with open_batcher(3, max_size=1):  # type: ignore[call-overload]
            pytest.fail("the block began")


# --- All together ------------------------------------------------------------------------------


async def test_two_hundred_callers_lose_and_gain_nothing() -> None:
    handler = Handler(lambda item: Failed(ValueError(str(item))) if item % 10 == 3 else 10 * item)

    async with open_batcher(handler, max_size=16, max_concurrency=3, capacity=20) as batcher:
        rounds = [await all_of(batcher, range(200 * turn, 200 * turn + 200)) for turn in range(3)]

    answers = [answer for one in rounds for answer in one]
    for item, answer in enumerate(answers):
        assert (str(answer) == str(item)) if item % 10 == 3 else (answer == 10 * item)
    assert sorted(item for batch in handler.batches for item in batch) == list(range(600))
    assert batcher.statistics().submitted == 600


def run_callers(
    backend: BackendName,
    seed: int,
    plans: list[tuple[float, float | None]],
    capacity: int,
    leave: float | None,
    steering: dict[str, Any],
) -> tuple[dict[int, object], list[int], set[int]]:
    """Let callers come and go as planned: (when to come, when to go); return answers, what ran, and who was cut."""

    async def main() -> tuple[dict[int, object], list[int], set[int]]:
        handler = Handler(lambda item: Failed(ValueError(str(item))) if item % 5 == 4 else 10 * item)
        answers: dict[int, object] = {}
        cut: set[int] = set()

        async def call(batcher: Batcher[int, int], item: int, comes: float, goes: float | None) -> None:
            await anyio.sleep(comes)
            with anyio.move_on_after(999 if goes is None else goes) as scope:
                try:
                    answers[item] = await batcher.submit(item)
                except Exception as error:
                    answers[item] = error
            if scope.cancelled_caught:
                cut.add(item)

        async with anyio.create_task_group() as tasks:
            async with open_batcher(handler, max_concurrency=2, capacity=capacity, **steering) as batcher:
                for item, (comes, goes) in enumerate(plans):
                    tasks.start_soon(call, batcher, item, comes, goes)
                await anyio.sleep(500 if leave is None else leave)
        return answers, [item for batch in handler.ended for item in batch], cut

    return run_virtual(main, backend=backend, seed=seed)


@backends
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    plans=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 1.0, 1.5]), st.sampled_from([None, None, 0.0, 0.4, 0.5, 1.0, 1.1, 2.0, 3.0])
        ),
        min_size=1,
        max_size=25,
    ),
    capacity=st.integers(1, 6),
    leave=st.sampled_from([None, None, 0.0, 1.0, 2.2]),
    steered=st.booleans(),
)
def test_callers_that_come_and_go_at_random_all_get_an_answer_of_their_own(
    backend: BackendName,
    seed: int,
    plans: list[tuple[float, float | None]],
    capacity: int,
    leave: float | None,
    steered: bool,
) -> None:
    steering = {"max_size": 6, "control": WanderingFactory(seed)} if steered else {"max_size": 3}
    answers, ran, cut = run_callers(backend, seed, plans, capacity, leave, steering)

    assert set(answers) | cut == set(range(len(plans)))
    assert not set(answers) & cut
    assert len(ran) == len(set(ran)), "an item ran twice"
    for item, answer in answers.items():
        if isinstance(answer, BatcherClosedError):
            assert leave is not None
            assert item not in ran
        else:
            assert item in ran
            assert str(answer) == str(item if item % 5 == 4 else 10 * item)
    if leave is None and all(goes is None for _, goes in plans):
        assert sorted(ran) == list(range(len(plans)))


# --- Limits that move ---------------------------------------------------------------------------


async def test_what_waits_is_cut_when_batches_have_to_be_smaller() -> None:
    handler = Handler()
    controller = Scripted([Limits(8, 1, 0.0), Limits(3, 1, 0.0)])
    async with open_batcher(handler, max_size=8, control=controller) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0)
        await callers.start(*range(1, 25))

    assert handler.batches[:2] == [[0], list(range(1, 9))]
    assert handler.batches[2:] == [[9, 10, 11], [12, 13, 14], [15, 16], [17, 18, 19], [20, 21, 22], [23, 24]]
    assert callers.answers == {item: 10 * item for item in range(25)}


async def test_what_waits_is_put_together_when_batches_may_be_larger() -> None:
    handler = Handler()
    controller = Scripted([Limits(2, 1, 0.0), Limits(2, 1, 0.0), Limits(7, 1, 0.0)])
    async with open_batcher(handler, max_size=8, control=controller) as batcher, anyio.create_task_group() as tasks:
        callers = Callers(tasks, batcher)
        await callers.start(0)
        await anyio.sleep(1)
        await callers.start(*range(1, 18))

    assert handler.batches == [[0], [1], [2, 3], [4, 5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15], [16, 17]]
    assert callers.answers == {item: 10 * item for item in range(18)}


@pytest.mark.parametrize("gone", [[4], [7, 8], [4, 5, 6], [4, 5, 6, 7, 8], [9]])
async def test_a_caller_may_go_after_what_waits_was_cut(gone: list[int]) -> None:
    handler = Handler()
    controller = Scripted([Limits(5, 1, 0.0), Limits(2, 1, 0.0)])
    async with (
        open_batcher(handler, max_size=5, max_age=0, control=controller, capacity=9) as batcher,
        anyio.create_task_group() as tasks,
    ):
        callers = Callers(tasks, batcher)
        await callers.start(*range(10))
        await anyio.sleep(2.5)  # [0] and [1, 2, 3, 4, 5] are over or run; what is behind is cut in twos
        ran = [item for batch in handler.batches for item in batch]
        for item in gone:
            callers.scopes[item].cancel()
        await wait_all_tasks_blocked()
        waiting = batcher.statistics().waiting

    assert waiting == len({*range(10)} - {*ran} - {*gone})
    assert sorted(item for batch in handler.batches for item in batch) == sorted({*range(10)} - ({*gone} - {*ran}))
    assert {item: answer for item, answer in callers.answers.items() if item not in gone} == {
        item: 10 * item for item in range(10) if item not in gone
    }


async def test_as_many_calls_run_as_the_controller_allows() -> None:
    running = done = 0
    most: Counter[str] = Counter()
    phases = {range(5): "one", range(10, 24): "four", range(30, 60): "two"}
    controller = Scripted([Limits(1, 1, 0.0)] * 5 + [Limits(1, 4, 0.0)] * 20 + [Limits(1, 2, 0.0)])

    async def h(items: list[int]) -> list[int]:
        nonlocal running, done
        running += 1
        for span, phase in phases.items():
            if done in span:
                most[phase] = max(most[phase], running)
        await anyio.sleep(1)
        running -= 1
        done += 1
        return items

    async with open_batcher(h, max_size=1, max_concurrency=4, control=controller) as batcher:
        answers = await all_of(batcher, range(60))

    assert answers == list(range(60))
    assert most == {"one": 4, "four": 4, "two": 2}  # the user's own 4 until the controller has spoken


async def test_a_batch_that_is_too_large_is_cut_in_two_and_its_callers_do_not_notice() -> None:
    sizes: list[int] = []

    async def h(items: list[int]) -> list[int]:
        sizes.append(len(items))
        await anyio.sleep(1)
        if len(items) > 2:
            raise BatchTooLargeError
        return [10 * item for item in items]

    async with open_batcher(h, max_size=8) as batcher:
        answers = await all_of(batcher, range(17))

    assert answers == [10 * item for item in range(17)]
    assert max(sizes) == 8


async def test_an_item_that_is_too_large_by_itself_fails_for_its_caller() -> None:
    async def h(items: list[int]) -> list[int]:
        await anyio.sleep(1)
        if 3 in items:
            raise BatchTooLargeError("too long")
        return items

    async with open_batcher(h, max_size=8) as batcher:
        answers = await all_of(batcher, range(5))

    assert [answer for answer in answers if not isinstance(answer, Exception)] == [0, 1, 2, 4]
    assert (
        repr(answers[3]) == "BatchError('test_an_item_that_is_too_large_by_itself_fails_for_its_caller.h() failed: "
        "BatchTooLargeError: too long')"
    )


class Quantum:
    """A plugin that has a controller."""

    name = "quantum"

    def __init__(self) -> None:
        self.made: list[tuple[Bounds, Goal | None, Limits]] = []

    @hookimpl
    def forebay_register_controllers(self, register: Registry[Controller]) -> None:
        def quantum(bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
            self.made.append((bounds, goal, start))
            return Scripted([Limits(3, 2, 0.0, reason="quantum")])

        register("quantum", quantum)


async def test_a_plugin_may_steer() -> None:
    plugin = Quantum()
    handler = Handler()

    async with open_batcher(
        handler, control="quantum", goal=Goal(0.5), name="h", plugins=Plugins(plugin, discover=False)
    ) as batcher:
        await all_of(batcher, range(10))

    assert plugin.made == [(Bounds(), Goal(0.5), Limits(128, 1, 0.0))]
    assert [move.reason for move in batcher.statistics().moves] == ["quantum"]


async def test_a_controller_that_nobody_knows_is_named() -> None:
    with pytest.raises(
        PluginError, match=r"^batcher 'h', control: no controller is named 'adaptve' \(registered: fixed, "
    ):
        async with open_batcher(Handler(), control="adaptve", name="h", plugins=Plugins(discover=False)):
            raise AssertionError("it is open")


def test_a_batcher_that_is_steered_by_name_loads_no_plugins() -> None:
    code = (
        "import sys, anyio, forebay\n"
        "async def double(items): return [2 * item for item in items]\n"
        "async def main():\n"
        "    async with forebay.open_batcher(double, control='adaptive') as batcher:\n"
        "        print(await batcher.submit(4), 'pluggy' in sys.modules)\n"
        "anyio.run(main)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "8 False\n"


async def test_moves_reach_observers() -> None:
    class Watch:
        def __init__(self) -> None:
            self.moves: list[object] = []

        def limits_changed(self, info: object) -> None:
            self.moves.append(info)

    watch = Watch()
    controller = Scripted([Limits(4, 1, 0.0), Limits(5, 1, 0.0)])
    async with open_batcher(Handler(), max_size=8, control=controller, observers=[watch]) as batcher:
        await all_of(batcher, range(20))

    assert watch.moves == list(batcher.statistics().moves)
    assert len(watch.moves) == 2
