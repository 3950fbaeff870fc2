"""Where items go that failed for good: into a dead-letter store, or out of the run with the exception."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

import forebay
from forebay import Again, Category, Failed, MemoryQueue, Retry
from forebay.abc import DeadLetter, DeadLettered, DeadLetterFilter
from forebay.testing import FakeDeadLetterStore, FakeSink, Late, RecordingObserver, ScriptedSource

pytestmark = pytest.mark.anyio


async def letters_of(store: FakeDeadLetterStore) -> Sequence[DeadLetter]:
    return await store.memory.find(DeadLetterFilter(), limit=1000)


def parse(line: str) -> int:
    return int(line)


async def three_fails(items: list[int]) -> list[Failed | int]:
    return [Failed(ValueError("three")) if item == 3 else item for item in items]


# --- Without a store ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["inline", "async", "batch"])
async def test_without_a_store_a_permanent_failure_ends_the_run_with_the_handlers_own_exception(kind: str) -> None:
    source = ScriptedSource(["1", "2", "three", "4"])
    error = ValueError("not a number")

    def fails(line: str) -> str:
        if line == "three":
            raise error
        return line

    async def fails_async(line: str) -> str:
        return fails(line)

    async def fails_batch(lines: list[str]) -> list[Failed | str]:
        return [Failed(error) if line == "three" else line for line in lines]

    numbers: Any = forebay.pipeline(source, name="p")
    recipe = {
        "inline": lambda: numbers.map(fails, name="parse"),
        "async": lambda: numbers.map(fails_async, name="parse", max_concurrency=1),
        "batch": lambda: numbers.map_batches(fails_batch, max_size=2, name="parse"),
    }[kind]()
    with pytest.raises(ValueError, match="not a number") as raised:
        await recipe.run()

    assert raised.value is error
    assert raised.value.__context__ is None
    (note,) = raised.value.__notes__
    assert note == (
        "raised in stage 'parse' for the item at offset 2 of source 'ScriptedSource', "
        "permanent failure after 1 attempt; the run ends because no dead_letters= was given"
    )
    assert "three" in source.unsettled
    assert source.in_hand == []
    assert all(refund for _, refund in source.given_back)
    assert not source.violations


async def test_what_was_done_before_the_failure_is_settled() -> None:
    source = ScriptedSource(range(6))

    with pytest.raises(ValueError, match="three"):
        await forebay.pipeline(source).map_batches(three_fails, max_size=2).run()

    assert source.unsettled == [3, 4, 5]
    assert source.deliveries == [1, 1, 1, 0, 0, 0]


async def test_several_failures_of_one_stage_leave_as_the_first() -> None:
    async def fails(item: int) -> int:
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        await forebay.pipeline(range(3)).map(fails).run()


async def test_a_failure_in_an_earlier_attempt_is_told() -> None:
    async def fails(items: list[int]) -> None:
        raise TimeoutError("slow")

    with pytest.raises(TimeoutError) as raised:
        await forebay.pipeline([7], name="p").map_batches(fails, max_size=2, name="store", retry=Retry(base=0)).run()

    assert "transient failure after 3 attempts" in raised.value.__notes__[0]


# --- With a store -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["stage", "pipeline"])
async def test_a_dead_letter_tells_where_the_item_came_from_and_what_happened(place: str) -> None:
    source = ScriptedSource(["1", "2", "three"])
    store = FakeDeadLetterStore()
    observer = RecordingObserver()

    summary = await (
        forebay.pipeline(source, name="orders", dead_letters=store if place == "pipeline" else None)
        .map(str.upper)
        .key_by(lambda line: line[0])
        .map(parse, name="parse", dead_letters=store if place == "stage" else None)
        .run(observers=[observer])
    )

    source.assert_settled_once()
    (letter,) = await letters_of(store)
    assert (letter.id.pipeline, letter.id.source, letter.id.partition, letter.id.offset) == (
        "orders",
        "ScriptedSource",
        0,
        "2",
    )
    assert (letter.payload, letter.content_type) == (b"three", "text/plain")
    assert (letter.stage, letter.category, letter.attempts, letter.key) == ("parse", Category.PERMANENT, 1, "T")
    assert letter.error_type == "ValueError"
    assert letter.message == "invalid literal for int() with base 10: 'THREE'"
    assert "in parse" in letter.traceback
    assert letter.member.startswith("orders-")
    assert letter.epoch == 1
    assert (summary.done, summary.dead) == (2, 1)
    (event,) = observer.of("dead_lettered")
    assert isinstance(event, DeadLettered)
    assert list(event.letters) == [letter]


async def test_the_payload_is_the_sources_item_whatever_became_of_it() -> None:
    store = FakeDeadLetterStore()

    await (
        forebay.pipeline([{"id": 1}, {"id": 3}], dead_letters=store)
        .map(lambda row: row["id"])
        .map_batches(three_fails, max_size=5)
        .run()
    )

    (letter,) = await letters_of(store)
    assert (letter.payload, letter.content_type, letter.id.offset) == (b'{"id":3}', "application/json", "1")
    assert letter.batch_id


async def test_attempts_are_counted_in_the_dead_letter() -> None:
    store = FakeDeadLetterStore()

    async def never(items: list[int]) -> list[Again]:
        return [Again(1.0) for _ in items]

    def busy(item: int) -> int:
        raise ConnectionError("busy")

    retry = Retry(max_attempts=4, base=0.1)
    await forebay.pipeline([1], dead_letters=store, name="a").map_batches(never, max_size=2, retry=retry).run()
    await forebay.pipeline([1], dead_letters=store, name="b").map(busy, retry=retry).run()

    first, second = await letters_of(store)
    assert (first.attempts, first.error_type.rpartition(".")[2], first.category) == (
        4,
        "RetryExhaustedError",
        Category.TRANSIENT,
    )
    assert (second.attempts, second.error_type, second.category) == (4, "ConnectionError", Category.TRANSIENT)


async def test_a_store_may_be_chosen_by_name() -> None:
    summary = await forebay.pipeline(["x"]).map(parse, name="parse", dead_letters="memory").run()

    assert (summary.dead, summary.dead_reasons) == (1, {"parse: ValueError": 1})


async def test_a_stages_store_goes_before_the_pipelines() -> None:
    own, common = FakeDeadLetterStore(), FakeDeadLetterStore()

    await (
        forebay.pipeline(["1", "x"], dead_letters=common)
        .map(parse, dead_letters=own)
        .map_batches(lambda items: [Failed(ValueError()) for _ in items], max_size=3)
        .run()
    )

    assert [letter.payload for letter in await letters_of(own)] == [b"x"]
    assert [letter.payload for letter in await letters_of(common)] == [b"1"]


async def test_a_store_that_fails_for_a_while_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = ScriptedSource(range(10))
    store = FakeDeadLetterStore(errors={"put": [OSError("disk full")] * 5 + [Late(OSError("answer lost"))]})

    async def fails(items: list[int]) -> list[Failed | None]:
        return [Failed(ValueError(str(item))) if item % 2 else None for item in items]

    began = anyio.current_time()
    summary = await forebay.pipeline(source).map_batches(fails, max_size=4, dead_letters=store).run(seed=3)

    source.assert_settled_once()
    assert [letter.message for letter in await letters_of(store)] == ["1", "3", "5", "7", "9"]
    assert (summary.done, summary.dead) == (5, 5)
    assert anyio.current_time() > began
    assert len([record for record in caplog.records if "dead-letter store failed" in record.message]) == 1


async def test_a_store_that_never_answers_holds_the_item_until_the_run_is_cut_off() -> None:
    source = ScriptedSource(range(1), endless=True)

    class Stuck(FakeDeadLetterStore):
        async def put(self, records: Sequence[DeadLetter], /) -> None:
            await anyio.sleep_forever()

    async with forebay.open_scope() as scope:

        async def drain_soon() -> None:
            await anyio.sleep(1)
            scope.drain()

        scope.start_soon(drain_soon)
        began = anyio.current_time()
        summary = await (
            forebay.pipeline(source)
            .map_batches(lambda items: [Failed(ValueError()) for _ in items], max_size=3, dead_letters=Stuck())
            .run(drain_timeout=4)
        )

    assert anyio.current_time() - began < 12
    assert source.unsettled == [0]
    assert (summary.dead, summary.given_back, summary.clean) == (0, 1, False)


# --- Back to the source -------------------------------------------------------------------------


async def test_a_long_wait_is_spent_at_the_source() -> None:
    queue = MemoryQueue[int](claim_seconds=30)
    queue.put_many(range(3))
    queue.close()
    calls: list[list[int]] = []

    async def h(items: list[int]) -> list[Again | None]:
        calls.append(list(items))
        return [Again(100.0) if item == 1 and len(calls) == 1 else None for item in items]

    began = anyio.current_time()
    with anyio.fail_after(1000):
        summary = await forebay.pipeline(queue).map_batches(h, max_size=4).run()

    assert calls == [[0, 1, 2], [1]]
    assert anyio.current_time() - began == pytest.approx(100, abs=1)
    assert (summary.done, summary.given_back) == (3, 1)


async def test_a_short_wait_is_spent_here() -> None:
    queue = MemoryQueue[int](claim_seconds=30)
    queue.put_many(range(3))
    queue.close()
    sink = FakeSink[int](calls={1: [None, Again(10.0), None]})

    summary = await forebay.pipeline(queue).map_batches(sink, max_size=4).run()

    assert sink.batches == [[0, 1, 2], [1]]
    assert (summary.seen, summary.done, summary.given_back) == (3, 3, 0)


async def test_current_batch_names_the_place_of_every_item() -> None:
    places: list[tuple[str, int, list[Any]]] = []

    async def h(items: list[int]) -> None:
        places.extend((part.source, part.epoch, list(part.offsets)) for part in forebay.current_batch().parts)

    await (
        forebay.pipeline(ScriptedSource([10, 11, 12]), [20, 21])
        .flat_map(lambda item: [item, item] if item == 11 else [item])
        .map_batches(h, max_size=50)
        .run()
    )

    assert sorted(places) == [("ScriptedSource", 1, [0, 1, 1, 2]), ("list", 0, [0, 1])]
