"""What becomes of each item of a batch: results, failures, further attempts, batches that are taken apart."""

import logging
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest

import forebay
from forebay import (
    Again,
    BatchFailed,
    BatchSizeError,
    BatchTooLargeError,
    Category,
    Dropped,
    EngineError,
    Failed,
    HandlerContractError,
    Retry,
    RetryExhaustedError,
    Summary,
    TimeLimitError,
    _stage,
    _steer,
    current_batch,
)
from forebay.abc import BatchInfo, DeadLetterFilter, Failure, Limits, Observation
from forebay.hooks import Plugins, hookimpl
from forebay.testing import FakeDeadLetterStore, FakeSink, RecordingObserver, ScriptedSource
from tests.support.controllers import Scripted, WanderingFactory

pytestmark = pytest.mark.anyio

at_once = Retry(base=0.0)
Batches = list[list[int]]


def untyped(source: Any) -> Any:
    """Return a pipeline that takes what a type checker would refuse."""
    return forebay.pipeline(source)


class Failing:
    """Keeps the batches it gets, and raises for those that hold a bad item."""

    def __init__(self, *bad: int, error: Callable[[str], Exception] = ValueError) -> None:
        self.bad = frozenset(bad)
        self.error = error
        self.batches: Batches = []
        self.contexts: list[forebay.BatchContext] = []
        self.times: list[float] = []

    async def __call__(self, items: list[int]) -> None:
        self.batches.append(list(items))
        self.contexts.append(current_batch())
        self.times.append(anyio.current_time())
        await anyio.lowlevel.checkpoint()
        if wrong := self.bad.intersection(items):
            raise self.error(f"bad: {sorted(wrong)}")


class Flaky:
    """Raises in its first *times* calls."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left = times
        self.error = error
        self.batches: Batches = []
        self.contexts: list[forebay.BatchContext] = []
        self.times: list[float] = []

    async def __call__(self, items: list[int]) -> None:
        self.batches.append(list(items))
        self.contexts.append(current_batch())
        self.times.append(anyio.current_time())
        if self.left:
            self.left -= 1
            raise self.error


def assert_conserved(summary: Summary, seen: int) -> None:
    assert summary.seen == seen
    assert summary.seen == (
        summary.done + summary.filtered + summary.dropped + summary.dead + summary.given_back + summary.lost_ownership
    )


async def run_batches(
    handler: Callable[[list[int]], Awaitable[Sequence[Any] | None]],
    count: int,
    *,
    max_size: int = 256,
    **options: Any,
) -> tuple[Summary, ScriptedSource[int]]:
    source = ScriptedSource(range(count))
    summary = await forebay.pipeline(source).map_batches(handler, max_size=max_size, **options).run(seed=7)
    return summary, source


# --- What a handler may return ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ([1, 2], "h() got 3 items and returned 2 results; return one result for each item, in order"),
        ([1], "h() got 3 items and returned 1 result; return one result for each item, in order"),
        ((1, 2, 3, 4), "h() got 3 items and returned 4 results; return one result for each item, in order"),
        *[
            (
                answer,
                f"h() returned {type(answer).__name__} for 3 items; "
                "return a list with one result for each item, in order, or None from a sink",
            )
            for answer in ("abc", b"abc", 7, {1: 2})
        ],
    ],
)
async def test_an_answer_of_the_wrong_shape_ends_the_run_with_a_sentence(answer: object, sentence: str) -> None:
    source = ScriptedSource(range(3))

    async def h(items: list[int]) -> object:
        return answer

    with pytest.raises(HandlerContractError) as raised:
        await untyped(source).map_batches(h, max_size=5, name="h", dead_letters="memory").run()

    assert str(raised.value) == sentence
    assert isinstance(raised.value, BatchSizeError) == ("got" in sentence)
    assert source.unsettled == [0, 1, 2]
    assert source.in_hand == []


async def test_a_stage_in_front_of_another_has_to_return_results() -> None:
    async def h(items: list[int]) -> Any:
        return None

    with pytest.raises(HandlerContractError) as raised:
        await forebay.pipeline([1]).map_batches(h, max_size=5, name="h").map_batches(FakeSink[int](), max_size=5).run()

    assert str(raised.value) == (
        "h() returned None for 1 item, but a later stage needs results; return one result for each item, in order"
    )


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_a_plain_function_of_a_batch_that_returns_a_coroutine_is_named(run_in: Any) -> None:
    async def h(items: list[int]) -> None: ...

    def plain(items: list[int]) -> object:
        return h(items)

    with pytest.raises(HandlerContractError) as raised:
        await untyped([1]).map_batches(plain, max_size=5, name="h", run_in=run_in).run()

    assert str(raised.value) == (
        "h() is a plain function that returned a coroutine, so nothing would await it; pass the async function"
    )


async def test_an_awaitable_that_cannot_be_closed_is_named_too() -> None:
    class Promise:
        def __await__(self) -> Any: ...

    def promise(items: list[int]) -> Promise:
        return Promise()

    with pytest.raises(HandlerContractError, match="is a plain function that returned a coroutine"):
        await untyped([1]).map_batches(promise, max_size=5).run()


async def test_any_sequence_of_results_will_do() -> None:
    sink = FakeSink[str]()

    async def h(items: list[int]) -> tuple[str, ...]:
        return tuple(map(str, items))

    await forebay.pipeline(range(5)).map_batches(h, max_size=2).map_batches(sink, max_size=10).run()

    assert sink.written == ["0", "1", "2", "3", "4"]


async def test_results_of_the_last_stage_are_thrown_away() -> None:
    async def h(items: list[int]) -> list[int]:
        return items

    summary, source = await run_batches(h, 5, max_size=2)

    source.assert_settled_once()
    assert (summary.done, summary.clean) == (5, True)


# --- Outcomes in an item's place ----------------------------------------------------------------


async def test_outcomes_stand_in_the_place_of_items() -> None:
    attempts: Counter[int] = Counter()
    source = ScriptedSource(range(6))
    sink = FakeSink[str]()
    store = FakeDeadLetterStore()

    async def h(items: list[int]) -> list[str | Failed | Again | Dropped]:
        attempts.update(items)
        answers: dict[int, Failed | Again | Dropped] = {
            1: Failed(ValueError("one")),
            2: Dropped("two"),
            4: Dropped("two"),
        }
        if attempts[3] == 1:
            answers[3] = Again(5.0)
        return [answers.get(item, str(item)) for item in items]

    began = anyio.current_time()
    summary = (
        await forebay.pipeline(source)
        .map_batches(h, max_size=10, dead_letters=store, name="h")
        .map_batches(sink, max_size=10)
        .run()
    )

    source.assert_settled_once()
    assert sink.written == ["0", "5", "3"]
    assert attempts == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}
    assert anyio.current_time() - began == pytest.approx(5.0)
    assert_conserved(summary, 6)
    assert (summary.done, summary.dead, summary.dropped, summary.retried) == (3, 1, 2, 1)
    assert summary.drop_reasons == {"two": 2}
    assert summary.dead_reasons == {"h: ValueError": 1}


async def test_a_sink_reports_failures_by_index() -> None:
    store = FakeDeadLetterStore()

    async def h(items: list[int]) -> None:
        raise BatchFailed({index: ValueError(f"no {item}") for index, item in enumerate(items) if item % 2})

    summary, source = await run_batches(h, 6, dead_letters=store)

    source.assert_settled_once()
    assert (summary.done, summary.dead) == (3, 3)
    assert [letter.message for letter in await store.find(DeadLetterFilter(), limit=9)] == ["no 1", "no 3", "no 5"]


@pytest.mark.parametrize("index", [3, -1])
async def test_a_wrong_index_in_batch_failed_is_named(index: int) -> None:
    async def h(items: list[int]) -> None:
        raise BatchFailed({index: ValueError()})

    with pytest.raises(HandlerContractError) as raised:
        await run_batches(h, 3, name="h", dead_letters="memory")

    assert str(raised.value) == (
        f"h() got 3 items and raised BatchFailed with index {index}; use the item's place in the batch, from 0"
    )


async def test_batch_failed_has_no_results_for_a_later_stage() -> None:
    async def h(items: list[int]) -> list[int]:
        raise BatchFailed({1: ValueError()})

    with pytest.raises(HandlerContractError) as raised:
        await (
            forebay.pipeline([1, 2]).map_batches(h, max_size=5, name="h").map_batches(FakeSink[int](), max_size=5).run()
        )

    assert str(raised.value) == (
        "h() raised BatchFailed, which has no results for the items that succeeded; "
        "a later stage needs them: return Failed(error) in the place of each item that failed"
    )


async def test_batch_failed_may_name_all_items_in_front_of_a_later_stage() -> None:
    async def h(items: list[int]) -> list[int]:
        raise BatchFailed({0: ValueError(), 1: ValueError()})

    stage = forebay.pipeline([1, 2], dead_letters="memory").map_batches(h, max_size=5)
    summary = await stage.map_batches(FakeSink[int](), max_size=5).run()

    assert (summary.dead, summary.done) == (2, 0)


async def test_again_is_an_attempt_like_any_other() -> None:
    calls = 0

    async def h(items: list[int]) -> list[Again]:
        nonlocal calls
        calls += 1
        return [Again(1.0)]

    with pytest.raises(RetryExhaustedError) as raised:
        await run_batches(h, 1, name="h", retry=Retry(max_attempts=4))

    assert str(raised.value) == "h() asked for another attempt of an item, but 4 attempts were made"
    assert calls == 4


# --- Attempts -----------------------------------------------------------------------------------


async def test_a_batch_that_may_pass_is_retried_as_a_whole() -> None:
    handler = Flaky(2, TimeoutError("slow"))

    summary, source = await run_batches(handler, 5, retry=Retry(base=1.0, jitter="none"))

    source.assert_settled_once()
    assert handler.batches == [[0, 1, 2, 3, 4]] * 3
    assert [context.attempt for context in handler.contexts] == [1, 2, 3]
    assert [time - handler.times[0] for time in handler.times] == pytest.approx([0.0, 1.0, 3.0])
    assert (summary.done, summary.retried) == (5, 10)


async def test_attempts_end_with_the_policy() -> None:
    handler = Flaky(99, TimeoutError("slow"))

    summary, source = await run_batches(handler, 3, dead_letters="memory", retry=Retry(max_attempts=5, base=0.1))

    source.assert_settled_once()
    assert len(handler.batches) == 5
    assert (summary.dead, summary.dead_reasons) == (3, {"Flaky: TimeoutError": 3})


async def test_an_item_is_tried_three_times_by_default() -> None:
    calls: Counter[int] = Counter()

    async def h(items: list[int]) -> list[Failed | None]:
        calls.update(items)
        return [Failed(ConnectionError("gone")) if item == 1 else None for item in items]

    summary, source = await run_batches(h, 3, dead_letters="memory")

    source.assert_settled_once()
    assert calls == {0: 1, 1: 3, 2: 1}
    assert (summary.done, summary.dead, summary.retried) == (2, 1, 2)


async def test_only_what_may_pass_is_tried_again() -> None:
    handler = Failing(0)

    summary, _ = await run_batches(handler, 1, dead_letters="memory", retry=Retry(max_attempts=9))

    assert len(handler.batches) == 1
    assert (summary.dead, summary.retried) == (1, 0)


async def test_a_policy_may_name_other_categories() -> None:
    handler = Failing(0)

    await run_batches(handler, 1, dead_letters="memory", retry=Retry(max_attempts=4, base=0, on={"permanent"}))

    assert len(handler.batches) == 4


@pytest.mark.parametrize("asked", [30, "30", timedelta(seconds=30)])
async def test_an_error_may_ask_for_a_longer_wait(asked: object) -> None:
    class BusyError(Exception):
        retry_after = asked

    handler = Flaky(1, BusyError())

    await run_batches(handler, 2, retry=at_once)

    assert handler.times[1] - handler.times[0] == pytest.approx(30)


async def test_the_wait_is_the_same_for_the_same_seed() -> None:
    waits: list[float] = []
    for seed in (1, 1, 2):
        handler = Flaky(1, TimeoutError())
        await forebay.pipeline([1, 2]).map_batches(handler, max_size=5, retry=Retry(base=10)).run(seed=seed)
        waits.append(handler.times[1] - handler.times[0])

    assert waits[0] == pytest.approx(waits[1])
    assert waits[0] != pytest.approx(waits[2])
    assert all(0 < wait < 10 for wait in waits)


async def test_a_pipelines_policy_holds_for_stages_without_their_own() -> None:
    first, second = Flaky(4, TimeoutError()), Flaky(4, TimeoutError())
    policy = Retry(max_attempts=5, base=0)

    await forebay.pipeline([1], retry=policy).map_batches(first, max_size=5).run()
    with pytest.raises(TimeoutError):
        await (
            forebay.pipeline([1], retry=policy)
            .map_batches(second, max_size=5, retry=Retry(max_attempts=2, base=0))
            .run()
        )

    assert (len(first.batches), len(second.batches)) == (5, 2)


async def test_failures_in_an_earlier_run_count() -> None:
    source = ScriptedSource(range(1))
    source._entries[0].failures = 2
    handler = Flaky(99, TimeoutError())

    await forebay.pipeline(source).map_batches(handler, max_size=5, dead_letters="memory").run()

    assert len(handler.batches) == 1
    source.assert_settled_once()


async def test_an_item_that_waits_lets_others_pass() -> None:
    order: list[int] = []

    async def h(items: list[int]) -> list[Again | None]:
        again = [item for item in items if item == 0 and 0 not in order]
        order.extend(items)
        return [Again(10.0) if item in again else None for item in items]

    _, source = await run_batches(h, 5, max_size=1)

    source.assert_settled_once()
    assert order == [0, 1, 2, 3, 4, 0]


# --- Time limits --------------------------------------------------------------------------------


async def test_a_call_that_is_cut_off_is_retried_and_told_that_it_may_be_done() -> None:
    contexts: list[forebay.BatchContext] = []

    async def h(items: list[int]) -> None:
        contexts.append(current_batch())
        await anyio.sleep(60 if len(contexts) == 1 else 1)

    summary, source = await run_batches(h, 3, time_limit=5, retry=at_once)

    source.assert_settled_once()
    assert [(context.attempt, context.maybe_done) for context in contexts] == [(1, False), (2, True)]
    assert (summary.done, summary.clean) == (3, True)


async def test_an_item_that_is_cut_off_is_retried_alone_and_told_that_it_may_be_done() -> None:
    contexts: dict[int, list[forebay.BatchContext]] = defaultdict(list)

    async def h(item: int) -> int:
        contexts[item].append(current_batch())
        await anyio.sleep(60 if item == 1 and len(contexts[1]) == 1 else 1)
        return item

    source = ScriptedSource(range(3))
    await forebay.pipeline(source).map(h, time_limit=5, retry=at_once).run()

    source.assert_settled_once()
    assert [(context.attempt, context.maybe_done) for context in contexts[1]] == [(1, False), (2, True)]
    assert len(contexts[0]) == len(contexts[2]) == 1


async def test_the_last_time_limit_is_the_items_failure() -> None:
    async def h(items: list[int]) -> None:
        await anyio.sleep(60)

    with pytest.raises(TimeLimitError, match=r"^h\(\) was cut off at its time limit of 5 s"):
        await run_batches(h, 1, time_limit=5, retry=Retry(max_attempts=1), name="h")


# --- Batches that are taken apart ---------------------------------------------------------------


async def test_a_failure_that_names_no_item_is_found_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    handler = Failing(2, 6)

    with caplog.at_level(logging.WARNING, "forebay"):
        summary, source = await run_batches(handler, 8, max_size=4, dead_letters="memory", name="h")

    source.assert_settled_once()
    assert handler.batches == [[0, 1, 2, 3], [0], [1], [2], [3], [4, 5, 6, 7], [4], [5], [6], [7]]
    assert (summary.done, summary.dead) == (6, 2)
    (advice,) = [record.getMessage() for record in caplog.records]
    assert advice == (
        "h() failed for a batch without saying which item it was (ValueError: bad: [2]); its items now run one by one. "
        "Raise BatchFailed({index: error}) or return Failed(error) in the item's place, "
        "or pass idempotent=True to have batches bisected"
    )


@pytest.mark.parametrize("idempotent", [False, True])
async def test_the_parts_of_a_batch_are_told_what_they_are(idempotent: bool) -> None:
    handler = Failing(2)

    await run_batches(handler, 4, dead_letters="memory", idempotent=idempotent)

    assert [[list(part.offsets) for part in context.parts] for context in handler.contexts] == [
        [batch] for batch in handler.batches
    ]
    assert [context.maybe_done for context in handler.contexts] == [False] + [True] * (len(handler.batches) - 1)


@pytest.mark.parametrize(("count", "bad"), [(2, 1), (8, 1), (8, 3), (64, 1), (64, 5), (100, 2), (256, 1), (256, 8)])
async def test_an_idempotent_handler_is_bisected_in_few_calls(count: int, bad: int) -> None:
    for seed in range(5):
        wrong = random.Random(seed).sample(range(count), bad)
        handler = Failing(*wrong)

        summary, source = await run_batches(handler, count, dead_letters="memory", idempotent=True)

        source.assert_settled_once()
        assert len(handler.batches) <= 2 * bad * math.log2(count) + 1
        assert (summary.done, summary.dead) == (count - bad, bad)


async def test_parts_that_may_pass_are_retried_as_they_are() -> None:
    calls: Batches = []

    async def h(items: list[int]) -> None:
        calls.append(list(items))
        if items == [0, 1, 2, 3]:
            raise ValueError("which?")
        if len(calls) < 4:
            raise TimeoutError("slow")

    summary, source = await run_batches(h, 4, idempotent=True, retry=at_once)

    source.assert_settled_once()
    assert sorted(calls[1:3]) == [[0, 1], [2, 3]]
    assert sorted(calls[3:]) == [[0, 1], [2, 3]]
    assert summary.done == 4


# --- Outages ------------------------------------------------------------------------------------


async def test_an_outage_pauses_the_stage_and_uses_up_no_attempt() -> None:
    handler = Flaky(20, EngineError("down", category="dependency"))

    summary, source = await run_batches(handler, 10, max_size=5, dead_letters="memory", max_concurrency=2)

    source.assert_settled_once()
    assert (summary.done, summary.dead, summary.retried) == (10, 0, 0)
    assert {context.attempt for context in handler.contexts} == {1}
    assert all(
        later - earlier >= 0.05 or later == earlier
        for earlier, later in zip(handler.times, handler.times[1:], strict=False)
    )
    assert handler.times[-1] - handler.times[0] > 1
    assert source.failures == [0] * 10


async def test_an_outage_of_single_items_uses_up_no_attempt() -> None:
    down = 10

    async def h(item: int) -> int:
        nonlocal down
        if down:
            down -= 1
            raise EngineError("down", category="dependency")
        return item

    source = ScriptedSource(range(4))
    summary = await forebay.pipeline(source).map(h, dead_letters="memory").run()

    source.assert_settled_once()
    assert (summary.done, summary.dead, summary.retried) == (4, 0, 0)


async def test_a_plugin_may_say_what_is_an_outage() -> None:
    class Judge:
        @hookimpl
        def forebay_classify(self, failure: Failure) -> Category | None:
            return Category.DEPENDENCY if "down" in str(failure.error) else None

    handler = Flaky(5, ValueError("down"))
    summary = (
        await forebay.pipeline(range(3)).map_batches(handler, max_size=5).run(plugins=Plugins(Judge(), discover=False))
    )

    assert (summary.done, len(handler.batches)) == (3, 6)


# --- Keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_each_keys_items_take_effect_in_order(seed: int) -> None:
    chance = random.Random(seed)
    running: Counter[str] = Counter()
    effects: dict[str, list[int]] = defaultdict(list)
    items = [(chance.choice("abcdefg"), number) for number in range(120)]

    async def h(batch: list[tuple[str, int]]) -> list[Failed | Again | None]:
        keys = [key for key, _ in batch]
        running.update(keys)
        assert max(running.values()) == 1
        await anyio.sleep(chance.random())
        running.subtract(keys)
        if chance.random() < 0.1:
            raise TimeoutError("all of them")
        outcomes: list[Failed | Again | None] = []
        for key, number in batch:
            kinds: list[Failed | Again | None] = [None] * 8
            outcome = chance.choice([*kinds, Failed(ConnectionError()), Again(chance.random())])
            if outcome is None:
                effects[key].append(number)
            outcomes.append(outcome)
        return outcomes

    source = ScriptedSource(items)
    summary = (
        await forebay.pipeline(source)
        .key_by(lambda item: item[0])
        .map_batches(h, max_size=4, max_concurrency=3, retry=Retry(max_attempts=50))
        .run(seed=seed)
    )

    source.assert_settled_once()
    assert summary.done == 120
    assert effects == {key: [number for own, number in items if own == key] for key in effects}


async def test_a_retry_keeps_the_head_of_its_lane_and_others_go_on() -> None:
    order: list[tuple[str, float]] = []
    failed = False
    began = anyio.current_time()

    async def h(items: list[str]) -> list[Again | None]:
        nonlocal failed
        outcomes: list[Again | None] = []
        for item in items:
            again = item == "a0" and not failed
            failed = failed or again
            outcomes.append(Again(60.0) if again else None)
            order.append((item, anyio.current_time() - began))
        return outcomes

    source = ScriptedSource(["a0", "b0", "a1", "b1", "a2", "b2"])
    await forebay.pipeline(source).key_by(lambda item: item[0]).map_batches(h, max_size=10).run()

    source.assert_settled_once()
    assert [item for item, time in order if time < 1] == ["a0", "b0", "b1", "b2"]
    assert [item for item, time in order if time > 59] == ["a0", "a1", "a2"]


async def test_a_handler_in_order_gets_several_items_of_a_key() -> None:
    handler = FakeSink[str]()

    await (
        forebay.pipeline(["a0", "a1", "b0", "a2"])
        .key_by(lambda item: item[0])
        .map_batches(handler.write, max_size=10, in_order=True)
        .run()
    )

    assert handler.batches == [["a0", "a1", "b0", "a2"]]


async def test_a_handler_not_in_order_gets_one_item_of_a_key() -> None:
    handler = FakeSink[str]()

    await (
        forebay.pipeline(["a0", "a1", "b0", "a2"]).key_by(lambda item: item[0]).map_batches(handler, max_size=10).run()
    )

    assert handler.batches == [["a0", "b0"], ["a1"], ["a2"]]


@pytest.mark.parametrize("in_order", [False, True])
async def test_an_item_that_is_dead_or_dropped_frees_its_lane(in_order: bool) -> None:
    done: list[str] = []

    async def h(items: list[str]) -> list[Failed | Dropped | None]:
        answers: dict[str, Failed | Dropped] = {"a0": Failed(ValueError()), "a1": Dropped("no")}
        done.extend(item for item in items if item not in answers)
        return [answers.get(item) for item in items]

    source = ScriptedSource(["a0", "a1", "a2"])
    await (
        forebay.pipeline(source)
        .key_by(lambda item: item[0])
        .map_batches(h, max_size=10, in_order=in_order, dead_letters="memory")
        .run()
    )

    source.assert_settled_once()
    assert done == ["a2"]


async def test_keys_hold_for_functions_of_one_item() -> None:
    running: Counter[str] = Counter()
    order: list[str] = []

    async def h(item: str) -> str:
        running[item[0]] += 1
        assert running[item[0]] == 1
        await anyio.sleep(0.1)
        running[item[0]] -= 1
        order.append(item)
        return item

    source = ScriptedSource([f"{key}{number}" for number in range(5) for key in "ab"])
    await forebay.pipeline(source).key_by(lambda item: item[0]).map(h).run()

    source.assert_settled_once()
    assert [item for item in order if item[0] == "a"] == ["a0", "a1", "a2", "a3", "a4"]


async def test_max_bytes_holds_behind_key_by() -> None:
    sink = FakeSink[str](latency=1)

    await (
        forebay.pipeline([f"{number:03d}" for number in range(20)])
        .key_by(str)
        .map_batches(sink, max_size=10, max_bytes=6, weigh=len)
        .run()
    )

    assert max(map(len, sink.batches)) == 2


# --- Figures ------------------------------------------------------------------------------------


async def test_a_stage_counts_what_arrives_at_it() -> None:
    async def h(items: list[int]) -> list[Failed | Dropped | None]:
        return [Failed(ValueError()) if item == 0 else Dropped("no") if item == 1 else None for item in items]

    summary, _ = await run_batches(h, 5, dead_letters="memory")

    (stage,) = summary.stages
    assert (stage.received, stage.done, stage.dead, stage.dropped) == (5, 3, 1, 1)


async def test_batches_are_reported_as_they_end() -> None:
    observer = RecordingObserver()
    source = ScriptedSource(range(5))

    async def h(items: list[int]) -> list[Failed | Dropped | Again | None]:
        await anyio.sleep(2)
        if items == [4]:
            raise ValueError("four")
        answers: list[Failed | Dropped | Again | None] = [None, Failed(ValueError()), Dropped("no"), None]
        return answers

    await (
        forebay.pipeline(source, name="p")
        .map_batches(h, max_size=4, name="h", dead_letters="memory")
        .run(observers=[observer])
    )

    first, second = observer.of("batch_done")
    assert isinstance(first, BatchInfo)
    assert isinstance(second, BatchInfo)
    assert (first.pipeline, first.stage, first.size, first.done, first.failed, first.dropped) == ("p", "h", 4, 2, 1, 1)
    assert first.seconds == pytest.approx(2)
    assert (first.attempt, first.error) == (1, None)
    assert second.waited == pytest.approx(2)
    assert (second.done, second.failed, repr(second.error)) == (0, 1, "ValueError('four')")
    assert second.batch_id > first.batch_id
    assert not observer.problems


# --- Limits that move ---------------------------------------------------------------------------


class Gauge:
    """A sink whose calls take *seconds* each; it keeps when each began, its size, and how many were in flight then."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.running = 0
        self.calls: list[tuple[float, int, int]] = []

    async def __call__(self, items: list[Any]) -> None:
        self.running += 1
        self.calls.append((anyio.current_time(), len(items), self.running))
        await anyio.sleep(self.seconds)
        self.running -= 1

    def overlaps(self, start: float = 0.0, stop: float = math.inf) -> list[int]:
        return [running for began, _, running in self.calls if start <= began < stop]


class Timed:
    """A controller whose answer depends on the time: concurrency by the second from which on it holds."""

    def __init__(self, *steps: tuple[float, int], size: int = 5) -> None:
        self.began = anyio.current_time()
        self.steps = steps
        self.size = size
        self.seen: list[Observation] = []

    def observe(self, observation: Observation, /) -> Limits:
        self.seen.append(observation)
        passed = observation.now - self.began
        calls = next(calls for since, calls in reversed(self.steps) if passed >= since)
        return Limits(self.size, calls, 0.0, reason=f"{calls} calls")


async def test_as_many_workers_run_as_the_controller_allows() -> None:
    gauge = Gauge()
    controller = Timed((0.0, 1), (10.0, 6), (20.0, 2), (30.0, 8), (40.0, 1), (50.0, 3))
    began = anyio.current_time()
    source = ScriptedSource(range(1000))

    summary = (
        await forebay.pipeline(source)
        .map_batches(gauge, max_size=5, max_concurrency=8, control=controller, name="h")
        .run()
    )

    source.assert_settled_once()
    assert summary.done == 1000
    wanted = {10: 1, 20: 6, 30: 2, 40: 8, 50: 1, 60: 3}
    for stop, calls in wanted.items():
        overlaps = gauge.overlaps(began + stop - 7.5, began + stop - 0.5)
        assert max(overlaps) == calls, (stop, overlaps)
    assert [move.after.concurrency for move in summary.moves] == [1, 6, 2, 8, 1, 3]


async def test_no_more_workers_are_started_than_have_something_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[_stage.Stage] = []
    start = _stage.Stage.start

    def started(stage: _stage.Stage, start_soon: Any) -> None:
        stages.append(stage)
        start(stage, start_soon)

    monkeypatch.setattr(_stage.Stage, "start", started)
    gauge = Gauge()

    await (
        forebay.pipeline(ScriptedSource(range(40)))
        .map_batches(gauge, max_size=5, max_concurrency=100, control=Scripted([Limits(5, 100, 0.0)] * 2))
        .run()
    )
    await forebay.pipeline(ScriptedSource(range(40))).map_batches(gauge, max_size=5, control=Timed((0.0, 100))).run()

    eager, lazy = stages
    assert eager.workers == 100  # so many were allowed from the start
    assert lazy.workers <= 9  # a call of the first, then seven at once, and one who waits for more
    assert max(gauge.overlaps()) == 8


async def test_a_controller_sees_each_call_as_it_was() -> None:
    controller = Timed((0.0, 2))
    seconds = iter([2.0, 3.0, 2.0, 2.0])

    async def h(items: list[str]) -> None:
        await anyio.sleep(next(seconds))

    await (
        forebay.pipeline(ScriptedSource(["a", "bb", "ccc", "d", "ee", "f", "g"]))
        .map_batches(h, max_size=2, max_bytes=100, weigh=len, max_concurrency=2, control=controller)
        .run()
    )

    assert [(one.size, one.size_bytes) for one in controller.seen] == [(2, 3), (2, 4), (2, 3), (1, 1)]
    assert [one.seconds for one in controller.seen] == pytest.approx([2.0, 3.0, 2.0, 2.0])
    assert [one.in_flight for one in controller.seen] == [1, 2, 2, 2]
    assert [one.queued for one in controller.seen] == [3, 1, 0, 0]
    assert [one.oldest_wait for one in controller.seen] == pytest.approx([2.0, 3.0, 0.0, 0.0])
    assert [one.oldest_call for one in controller.seen] == pytest.approx([2.0, 1.0, 1.0, 0.0])
    assert {(one.failed, one.too_large, one.pressure) for one in controller.seen} == {(False, False, 0.0)}


async def test_a_function_of_one_item_is_seen_as_calls_of_one() -> None:
    controller = Timed((0.0, 3))

    async def later(item: int) -> int:
        await anyio.sleep(0.5)
        return item

    summary = await forebay.pipeline(range(20)).map(later, max_concurrency=4, control=controller).run()

    assert summary.done == 20
    assert {one.size for one in controller.seen} == {1}
    assert {one.seconds for one in controller.seen} == {0.5}
    assert summary.moves[0].after.batch_size == 1


async def test_what_is_wrong_with_items_is_no_sign_of_load() -> None:
    controller = Timed((0.0, 1))
    answers: list[Any] = [
        ValueError("bad"),
        TimeoutError("slow"),
        RuntimeError("what?"),
        [Failed(ValueError())] * 2,
        [Failed(ConnectionError())] * 2,
        [Failed(ConnectionError()), None],
        [Again(), Again()],
        [Dropped("no"), Again()],
        None,
    ]
    shown: dict[str, bool] = {}

    async def h(items: list[int]) -> list[Any] | None:
        await anyio.sleep(1)
        answer = answers[items[0] // 2] if len(items) == 2 else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    await (
        forebay.pipeline(range(18))
        .map_batches(h, max_size=2, control=controller, dead_letters="memory", retry=Retry(max_attempts=1))
        .run()
    )

    shown = {repr(answers[index]): one.failed for index, one in enumerate(o for o in controller.seen if o.size == 2)}
    assert list(shown.values()) == [False, True, True, False, True, False, True, False, False]


async def test_what_is_fixed_is_not_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("somebody looks")

    monkeypatch.setattr(_steer.Steer, "call_started", refuse)
    monkeypatch.setattr(_steer.Steer, "call_ended", refuse)
    monkeypatch.setattr(_steer.Steer, "watch", refuse)

    summary = await forebay.pipeline(range(100)).map_batches(Gauge(), max_size=5, max_concurrency=3).run()

    assert summary.done == 100


@pytest.mark.parametrize("acked", [False, True])
async def test_calls_that_a_pump_makes_itself_are_not_observed(acked: bool) -> None:
    controller = Timed((0.0, 4), size=256)
    source: Any = ScriptedSource(range(51_200)) if acked else range(51_200)

    def quick(items: list[int]) -> None: ...

    summary = await forebay.pipeline(source).map_batches(quick, max_size=256, control=controller).run()

    assert (summary.done, summary.stages[0].calls) == (51_200, 200)
    assert len(controller.seen) < 50  # the first ones, until it is known that they wait for nothing


@pytest.mark.parametrize("acked", [False, True])
@pytest.mark.parametrize("seconds", [0.0, 0.01])
@pytest.mark.parametrize("sizes", [(7, 50, 3, 20), (50, 1), (1, 50), (80, 79)])
async def test_batches_follow_the_limit_whoever_makes_the_calls(
    acked: bool, seconds: float, sizes: tuple[int, ...]
) -> None:
    wanted = [size for size in sizes for _ in range(10)]
    source: Any = ScriptedSource(range(3000)) if acked else range(3000)
    seen: list[int] = []

    async def h(items: list[int]) -> None:
        seen.append(len(items))
        if seconds:
            await anyio.sleep(seconds)

    summary = (
        await forebay.pipeline(source)
        .map_batches(h, max_size=100, control=Scripted([Limits(size, 1, 0.0) for size in wanted]))
        .run()
    )

    assert summary.done == 3000
    # A pump has a few batches of the size before in hand when the limit changes.
    late = 0 if seconds else 4
    for start in range(0, len(wanted), 10):
        assert set(seen[1 + start + late : 11 + start]) == {wanted[start]}
    assert max(seen[11:]) <= max(wanted)


async def test_what_waits_in_front_of_a_stage_follows_its_batches() -> None:
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        while read < 100_000:
            read += 1
            yield read

    ahead: list[int] = []
    done = 0

    async def h(items: list[int]) -> None:
        nonlocal done
        await anyio.sleep(1)
        done += len(items)
        ahead.append(read - done)

    await (
        forebay.pipeline(numbers())
        .map_batches(h, control=Scripted([Limits(200, 1, 0.0)] * 30 + [Limits(4000, 1, 0.0)]))
        .run()
    )

    assert max(ahead[:30]) <= 9 * 200
    assert max(ahead) > 20_000


async def test_what_a_pump_has_gathered_is_cut_when_batches_have_to_be_smaller() -> None:
    def slow() -> Iterator[int]:
        for item in range(100):
            time.sleep(0.0025)  # so long that the pump looks up after each item
            yield item

    sizes: list[int] = []

    async def h(items: list[int]) -> None:
        sizes.append(len(items))
        for _ in range(20):
            await anyio.lowlevel.checkpoint()

    await forebay.pipeline(slow()).map_batches(h, max_size=50, max_age=60, control=Scripted([Limits(5, 1, 0.0)])).run()

    assert sizes[0] == 50
    assert set(sizes[1:]) <= {1, 2, 3, 4, 5}
    assert sum(sizes) == 100


async def test_the_room_in_front_of_a_stage_stays_as_the_user_says() -> None:
    read = done = 0
    ahead: list[int] = []

    def numbers() -> Iterator[int]:
        nonlocal read
        while read < 5000:
            read += 1
            yield read

    async def h(items: list[int]) -> None:
        nonlocal done
        await anyio.sleep(1)
        done += len(items)
        ahead.append(read - done)

    await (
        forebay.pipeline(numbers())
        .map_batches(h, capacity=300, control=Scripted([Limits(50, 1, 0.0)] * 5 + [Limits(200, 1, 0.0)]))
        .run()
    )

    assert max(ahead) <= 300 + 2 * 200


async def test_a_controller_that_fails_leaves_the_run_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Timed):
        def observe(self, observation: Observation, /) -> Limits:
            if len(self.seen) == 5:
                raise ZeroDivisionError("oops")
            return super().observe(observation)

    source = ScriptedSource(range(100))

    summary = (
        await forebay.pipeline(source)
        .map_batches(Gauge(), max_size=5, max_concurrency=3, control=Failing((0.0, 2)), name="h")
        .run()
    )

    source.assert_settled_once()
    assert summary.clean
    assert [move.reason for move in summary.moves] == [
        "2 calls",
        "Failing failed with ZeroDivisionError, and the limits stay as they are",
    ]
    assert "Failing, the controller of stage 'h', failed" in caplog.text


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("keyed", [False, True])
async def test_nothing_is_lost_while_limits_go_anywhere(seed: int, keyed: bool) -> None:
    chance = random.Random(seed)
    source = ScriptedSource(range(300))
    most = [0, 0]
    running = 0
    attempts: Counter[int] = Counter()

    async def h(items: list[int]) -> list[Any]:
        nonlocal running
        running += 1
        most[:] = max(most[0], running), max(most[1], len(items))
        attempts.update(items)
        await anyio.sleep(chance.random() * 0.1)
        running -= 1
        fate = chance.random()
        if fate < 0.03:
            raise TimeoutError("busy")
        if fate < 0.06 and len(items) > 1:
            raise BatchTooLargeError
        return [Failed(ConnectionError()) if chance.random() < 0.02 and attempts[item] < 5 else item for item in items]

    numbers: Any = forebay.pipeline(source, retry=Retry(max_attempts=50, base=0.1))
    if keyed:
        numbers = numbers.key_by(week_day)
    sink = FakeSink[int](latency=0.01)
    summary: Summary = await (
        numbers.map_batches(h, max_size=40, max_concurrency=5, control=WanderingFactory(seed))
        .map_batches(sink, max_size=30, max_concurrency=2, control=WanderingFactory(seed + 1000))
        .run(seed=seed)
    )

    source.assert_settled_once()
    assert summary.done == 300
    assert sorted(sink.written) == list(range(300))
    assert most[0] <= 5
    assert most[1] <= 40
    assert max(map(len, sink.batches)) <= 30


# --- Batches that are too large -----------------------------------------------------------------


def week_day(item: int) -> str:
    return str(item % 7)


class Narrow:
    """Takes at most *most* items at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.batches: Batches = []
        self.contexts: list[forebay.BatchContext] = []

    async def __call__(self, items: list[int]) -> None:
        self.batches.append(list(items))
        self.contexts.append(current_batch())
        await anyio.lowlevel.checkpoint()
        if len(items) > self.most:
            raise BatchTooLargeError(f"{len(items)} are too many")


async def test_a_batch_that_is_too_large_is_cut_in_two_until_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    handler = Narrow(3)
    observer = RecordingObserver()
    source = ScriptedSource(range(20))

    summary = (
        await forebay.pipeline(source)
        .map_batches(handler, max_size=10, name="h", retry=Retry(max_attempts=1))
        .run(observers=[observer])
    )

    source.assert_settled_once()
    assert handler.batches[:7] == [
        list(range(10)),
        [0, 1, 2, 3, 4],
        [0, 1],
        [2, 3, 4],
        [5, 6, 7, 8, 9],
        [5, 6],
        [7, 8, 9],
    ]
    assert {(context.attempt, context.maybe_done) for context in handler.contexts} == {(1, False)}
    assert (summary.done, summary.retried, summary.dead) == (20, 0, 0)
    assert (summary.stages[0].failed, summary.stages[0].done) == (0, 20)
    assert source.failures == [0] * 20
    infos: list[Any] = list(observer.of("batch_done"))
    assert [(info.size, info.done, info.failed) for info in infos][:3] == [
        (10, 0, 0),
        (5, 0, 0),
        (2, 2, 0),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "h() refused a batch of 10 items as too large; it is cut in two, and so is every one that is refused. "
        "Pass a smaller max_size, or control='adaptive' to have the size found"
    ]


async def test_an_item_that_is_too_large_by_itself_has_failed() -> None:
    source = ScriptedSource(range(3))
    store = FakeDeadLetterStore()

    async def h(items: list[int]) -> None:
        if 1 in items:
            raise BatchTooLargeError("1 MB over")

    summary = await forebay.pipeline(source).map_batches(h, max_size=10, dead_letters=store).run()

    source.assert_settled_once()
    assert (summary.done, summary.dead) == (2, 1)
    (letter,) = await store.find(DeadLetterFilter(), limit=9)
    assert (letter.category, letter.message) == (Category.PERMANENT, "1 MB over")


async def test_a_controller_hears_that_a_batch_was_too_large_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    handler = Narrow(4)

    class Halving(Timed):
        def observe(self, observation: Observation, /) -> Limits:
            if observation.too_large:
                assert observation.failed
                self.size = min(self.size, observation.size // 2)
            return super().observe(observation)

    controller = Halving((0.0, 1), size=16)
    summary = await forebay.pipeline(range(100)).map_batches(handler, max_size=16, control=controller).run()

    assert summary.done == 100
    assert [len(batch) for batch in handler.batches] == [16, 8, 4, 4, 8, 4, 4, *[4] * 21]
    assert not caplog.records


async def test_the_halves_of_a_batch_pass_their_results_on_in_order() -> None:
    sink = FakeSink[int]()

    async def h(items: list[int]) -> list[int]:
        if len(items) > 2:
            raise BatchTooLargeError
        return [10 * item for item in items]

    summary = await forebay.pipeline(range(9)).map_batches(h, max_size=9).map_batches(sink, max_size=100).run()

    assert sink.written == [10 * item for item in range(9)]
    assert summary.done == 9


@pytest.mark.parametrize("in_order", [False, True])
async def test_the_halves_of_a_batch_keep_the_order_of_keys(in_order: bool) -> None:
    written: list[str] = []
    tried: Counter[str] = Counter()

    async def h(items: list[str]) -> list[Any]:
        await anyio.sleep(0.1)
        if len(items) > 2:
            raise BatchTooLargeError
        tried.update(items)
        failed: set[str] = set()
        outcomes: list[Any] = []
        for item in items:
            if item[0] in failed or (item == "a1" and tried[item] == 1):
                failed.add(item[0])
                outcomes.append(Failed(ConnectionError()))
            else:
                written.append(item)
                outcomes.append(None)
        return outcomes

    source = ScriptedSource([f"{key}{number}" for number in range(5) for key in "abc"])
    summary = (
        await forebay.pipeline(source)
        .key_by(lambda item: item[0])
        .map_batches(h, max_size=12, max_concurrency=2, in_order=in_order)
        .run(seed=1)
    )

    source.assert_settled_once()
    assert summary.done == 15
    for key in "abc":
        assert [item for item in written if item[0] == key] == [f"{key}{number}" for number in range(5)]
