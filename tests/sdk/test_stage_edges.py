"""Batches at their borders: items that others take over, keys that hold back, outages, too much to try again."""

from collections import Counter
from collections.abc import Iterator, Sequence

import anyio
import pytest

import forebay
from forebay import Again, BatchFailed, EngineError, Retry
from forebay.abc import DeadLetterFilter
from forebay.testing import BackendName, FakeDeadLetterStore, FakeSink, Pause, ScriptedSource, run_virtual
from tests.support.claimed import ClaimedSource, steal_after

pytestmark = pytest.mark.anyio

later = Retry(max_attempts=9, base=10.0, jitter="none")


# --- Items that another member takes over -------------------------------------------------------


@pytest.mark.parametrize("stolen", [[0], [1, 2], [0, 1, 2]])
async def test_a_batch_that_waits_for_another_attempt_runs_without_what_was_lost_meanwhile(stolen: list[int]) -> None:
    source = ScriptedSource[int]([0, 1, 2, Pause(5), 3, Pause(10), 4])
    batches: list[list[int]] = []

    async def store(items: list[int]) -> None:
        batches.append(list(items))
        if len(batches) == 1:
            raise TimeoutError("busy")

    async with forebay.open_scope() as scope:
        scope.start_soon(steal_after, 2, source, *stolen)
        summary = await forebay.pipeline(source, retry=later).map_batches(store, max_size=5).run()

    left = [item for item in (0, 1, 2) if item not in stolen]
    assert batches == [[0, 1, 2], [3], *([left] if left else []), [4]]
    assert (summary.done, summary.lost_ownership) == (5 - len(stolen), len(stolen))
    source.assert_settled_once()


async def test_what_is_left_of_a_batch_after_a_loss_holds_its_keys_until_it_is_done() -> None:
    source = ScriptedSource[str](["a0", "b0", Pause(1), "b1", "b2", Pause(3), "c0"])
    written: list[str] = []
    failing = iter([TimeoutError("busy"), TimeoutError("busy")])

    async def store(items: list[str]) -> None:
        if "b0" in items and (error := next(failing, None)) is not None:
            raise error
        await anyio.sleep(5)
        written.extend(items)

    async with forebay.open_scope() as scope:
        scope.start_soon(steal_after, 2, source, 0)
        keyed = forebay.pipeline(source, retry=later).key_by(lambda item: item[0])
        summary = await keyed.map_batches(store, max_size=2, max_concurrency=3).run()

    assert [item for item in written if item != "c0"] == ["b0", "b1", "b2"]
    assert (summary.done, summary.lost_ownership) == (4, 1)


async def test_a_batch_that_fails_for_good_buries_no_item_that_was_lost_meanwhile() -> None:
    source = ClaimedSource(range(3))
    store = FakeDeadLetterStore()

    async def refuse(items: list[int]) -> None:
        await anyio.sleep(10)
        raise TimeoutError("busy")

    async with forebay.open_scope() as scope:
        scope.start_soon(steal_after, 5, source, 1)
        recipe = forebay.pipeline(source, retry=Retry(max_attempts=1), dead_letters=store)
        summary = await recipe.map_batches(refuse, max_size=5).run()

    letters = await store.memory.find(DeadLetterFilter(), limit=10)
    assert [letter.id.offset for letter in letters] == ["0", "2"]
    assert (summary.dead, summary.lost_ownership) == (2, 1)
    source.assert_settled_once()


# --- Keys ---------------------------------------------------------------------------------------


async def test_what_waits_behind_its_key_goes_on_in_batches_of_the_bytes_allowed() -> None:
    sizes = [4, 9, 4, 4, 4, 12, 2, 2, 2, 2, 2, 2, 1]
    texts = [f"{index:x}" * size for index, size in enumerate(sizes)]
    batches: list[list[str]] = []

    async def store(items: list[str]) -> None:
        batches.append(list(items))
        await anyio.sleep(1)

    keyed = forebay.pipeline(texts).key_by(lambda text: "k")
    await keyed.map_batches(
        store, max_size=4, max_bytes=10, weigh=len, max_concurrency=2, in_order=True, max_age=0
    ).run()

    assert [text for batch in batches for text in batch] == texts
    assert all(len(batch) <= 4 for batch in batches)
    assert all(sum(map(len, batch)) <= 10 or len(batch) == 1 for batch in batches)
    assert [texts[5]] in batches


async def test_nothing_new_starts_while_too_much_waits_behind_keys() -> None:
    started: list[tuple[float, str]] = []

    async def store(items: list[str]) -> None:
        for item in items:
            started.append((anyio.current_time(), item))
        await anyio.sleep(100 if items[0] == "a0" else 1)

    items = ["a0", "b0", "a1", "a2", "a3", "a4", "c0"]
    began = anyio.current_time()
    recipe = forebay.pipeline(items, max_blocked=2).key_by(lambda item: item[0])
    summary = await recipe.map_batches(store, max_size=1, max_concurrency=3).run()

    times = {item: moment - began for moment, item in started}
    assert [item for _, item in started if item[0] == "a"] == ["a0", "a1", "a2", "a3", "a4"]
    assert times["b0"] < 1
    assert times["c0"] >= 100
    assert summary.done == 7


async def test_of_a_key_that_failed_in_a_batch_only_the_first_is_tried_again_before_the_others() -> None:
    attempts: Counter[str] = Counter()
    written: list[str] = []

    async def store(items: list[str]) -> None:
        attempts.update(items)
        bad = [index for index, item in enumerate(items) if item[0] == "a" and attempts["a0"] == 1]
        written.extend(item for index, item in enumerate(items) if index not in bad)
        if bad:
            raise BatchFailed({index: TimeoutError("busy") for index in bad})

    keyed = forebay.pipeline(["a0", "b0", "a1", "a2", "b1"], retry=later).key_by(lambda item: item[0])
    summary = await keyed.map_batches(store, max_size=5, in_order=True).run()

    assert written[:2] == ["b0", "b1"]
    assert written[2:] == ["a0", "a1", "a2"]
    assert (summary.done, summary.retried) == (5, 1)


async def test_of_a_key_in_a_batch_that_failed_for_good_only_the_first_is_buried_with_it() -> None:
    store = FakeDeadLetterStore()
    batches: list[list[str]] = []

    async def busy_once(items: list[str]) -> None:
        batches.append(list(items))
        if len(batches) == 1:
            raise TimeoutError("busy")

    keyed = forebay.pipeline(["a0", "b0", "a1", "a2"], dead_letters=store).key_by(lambda item: item[0])
    summary = await keyed.map_batches(busy_once, max_size=5, in_order=True, retry=Retry(max_attempts=1)).run()

    letters = await store.memory.find(DeadLetterFilter(), limit=10)
    assert sorted(letter.id.offset for letter in letters) == ["0", "1"]
    assert batches == [["a0", "b0", "a1", "a2"], ["a1", "a2"]]
    assert (summary.done, summary.dead) == (2, 2)


@pytest.mark.parametrize("suspect", ["a1", "b0"], ids=["behind its key", "beside others"])
async def test_an_item_that_was_handed_out_again_and_again_runs_alone_behind_key_by_too(suspect: str) -> None:
    items = ["a0", "a1", "b0", "c0", "d0"]
    source = ScriptedSource[str]([*items[:4], Pause(1), *items[4:]])
    source._entries[items.index(suspect)].deliveries = 5
    sink = FakeSink[str](latency=10)

    await forebay.pipeline(source).key_by(lambda item: item[0]).map_batches(sink, max_size=10).run()

    source.assert_settled_once()
    assert [suspect] in sink.batches
    assert sink.written.index("a0") < sink.written.index("a1")
    assert sorted(sink.written) == items


# --- Waiting for another attempt ----------------------------------------------------------------


async def test_an_outage_that_meets_a_batch_of_the_pump_makes_it_wait_and_go_first() -> None:
    def in_pairs() -> Iterator[int | Pause]:
        for item in range(20):
            yield item
            if item % 2:
                yield Pause(1)

    source = ScriptedSource(in_pairs())
    outages = iter([EngineError("down", category="dependency")])
    batches: list[list[int]] = []

    def store(items: list[int]) -> None:  # waits for nothing: the pump comes to run it itself
        batches.append(list(items))
        if 12 in items and (error := next(outages, None)) is not None:
            raise error

    summary = await forebay.pipeline(source).map_batches(store, max_size=2).run()

    pairs = [[item, item + 1] for item in range(0, 20, 2)]
    assert batches == [*pairs[:7], *pairs[6:]]
    assert (summary.done, summary.retried, summary.dead) == (20, 0, 0)
    source.assert_settled_once()


async def test_a_stage_takes_nothing_new_while_ten_thousand_batches_wait_for_another_attempt() -> None:
    began = anyio.current_time()
    first_seen: dict[int, float] = {}

    async def store(items: list[int]) -> Sequence[Again | None]:
        fresh = [item for item in items if item not in first_seen]
        first_seen.update(dict.fromkeys(fresh, anyio.current_time() - began))
        return [Again(60.0) if item in fresh else None for item in items]

    summary = await forebay.pipeline(range(12_000)).map_batches(store, max_size=1000).run()

    assert sum(moment < 60 for moment in first_seen.values()) == 10_000
    assert (summary.done, summary.retried) == (12_000, 12_000)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_item_that_fails_before_the_time_is_watched_is_tried_again_all_the_same(backend: BackendName) -> None:
    async def run_once() -> None:
        errors = iter([TimeoutError("busy")])

        def store(items: list[int]) -> None:
            if (error := next(errors, None)) is not None:
                raise error

        summary = await forebay.pipeline([7]).map_batches(store, max_size=1, retry=Retry(base=0.0)).run()
        assert (summary.done, summary.retried) == (1, 1)

    for seed in range(20):  # the order in which the run's tasks start: each way comes up several times
        run_virtual(run_once, backend=backend, seed=seed)
