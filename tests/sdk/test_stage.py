"""What becomes of each item of a batch: results, failures, further attempts, batches that are taken apart."""

import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import anyio
import pytest

import forebay
from forebay import (
    Again,
    BatchFailed,
    BatchSizeError,
    Category,
    Dropped,
    EngineError,
    Failed,
    HandlerContractError,
    Retry,
    RetryExhaustedError,
    Summary,
    TimeLimitError,
    current_batch,
)
from forebay.abc import BatchInfo, DeadLetterFilter, Failure
from forebay.hooks import Plugins, hookimpl
from forebay.testing import FakeDeadLetterStore, FakeSink, RecordingObserver, ScriptedSource

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
