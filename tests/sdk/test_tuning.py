"""A run is changed while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest

import forebay
from forebay import Bounds, ForebayError, Goal, Tuning
from forebay.abc import Limits
from forebay.testing import FakeSink
from tests.support.controllers import Yielding

pytestmark = pytest.mark.anyio


class Counting:
    """A sink whose calls take a second; it keeps how large they were and how many were in flight."""

    def __init__(self) -> None:
        self.running = 0
        self.sizes: list[int] = []
        self.overlaps: list[int] = []

    async def __call__(self, items: Sequence[object]) -> None:
        self.running += 1
        self.sizes.append(len(items))
        self.overlaps.append(self.running)
        await anyio.sleep(1)
        self.running -= 1


async def tuned(recipe: Any, change: Callable[[Tuning], object], after: float = 10.5) -> forebay.Summary:
    tuning = Tuning()
    results: list[forebay.Summary] = []

    async def run() -> None:
        results.append(await recipe.run(tuning=tuning))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await anyio.sleep(after)
        change(tuning)
    return results[0]


async def test_batches_and_calls_follow_a_change() -> None:
    sink = Counting()

    summary = await tuned(
        forebay.pipeline(range(1000)).map_batches(sink, max_size=10, name="store"),
        lambda tuning: tuning.change("store", max_size=30, max_concurrency=3),
    )

    assert summary.done == 1000
    assert set(sink.sizes[:11]) == {10}
    assert max(sink.sizes[11:]) == 30
    assert set(sink.overlaps[:11]) == {1}
    assert max(sink.overlaps) == 3
    assert [move.reason for move in summary.moves] == ["told to: max_size=30, max_concurrency=3"]


async def test_calls_in_flight_run_on_when_fewer_are_allowed() -> None:
    sink = Counting()

    summary = await tuned(
        forebay.pipeline(range(1000)).map_batches(sink, max_size=10, max_concurrency=5, name="store"),
        lambda tuning: tuning.change("store", max_size=4, max_concurrency=2),
        after=5.5,
    )

    assert summary.done == 1000
    assert max(sink.overlaps) == 5
    assert set(sink.overlaps[40:]) == {1, 2}
    assert max(sink.sizes[40:]) == 4


async def test_functions_of_one_item_follow_too() -> None:
    running, most = 0, 0

    async def later(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(1)
        running -= 1
        return item

    summary = await tuned(
        forebay.pipeline(range(100)).map(later, max_concurrency=2, name="later"),
        lambda tuning: tuning.change("later", max_concurrency=9),
    )

    assert (summary.done, most) == (100, 9)


async def test_a_controller_hears_of_new_bounds_and_of_a_goal() -> None:
    controller = Yielding([Limits(5, 1, 0.0)])

    await tuned(
        forebay.pipeline(range(300)).map_batches(
            Counting(), max_size=10, max_concurrency=2, control=controller, name="store"
        ),
        lambda tuning: tuning.change("store", max_concurrency=1, goal=Goal(p99=2.0)),
        after=3.5,
    )

    assert controller.told == [
        (Bounds(max_size=10, max_concurrency=2), None),
        (Bounds(max_size=10, max_concurrency=1), Goal(2.0)),
    ]


async def test_limits_bounds_stages_and_story_can_be_read_while_it_runs() -> None:
    seen: list[object] = []

    def look(tuning: Tuning) -> None:
        limits = tuning.change("store", max_size=7)
        seen.extend([limits, tuning.limits("store"), tuning.bounds("store"), tuning.stages()])
        seen.append(tuning.explain().splitlines()[1].partition(" ")[2])
        seen.append(len(tuning.moves()))

    recipe = forebay.pipeline(range(300)).map(str).map_batches(Counting(), max_size=10, name="store")
    await tuned(recipe, look, after=3.5)

    assert seen == [
        Limits(7, 1, 0.0, reason="told to: max_size=7"),
        Limits(7, 1, 0.0, reason="told to: max_size=7"),
        Bounds(max_size=7, max_concurrency=1),
        ["store"],
        "store: batch 10 -> 7: told to: max_size=7",
        1,
    ]


async def test_a_batcher_is_changed_by_its_name() -> None:
    sizes: list[int] = []
    tuning = Tuning()

    async def double(items: list[int]) -> list[int]:
        sizes.append(len(items))
        await anyio.sleep(1)
        return [2 * item for item in items]

    async with forebay.open_batcher(double, max_size=4, name="double", tuning=tuning) as batcher:
        async with anyio.create_task_group() as tasks:
            for item in range(20):
                tasks.start_soon(batcher.submit, item)
            await anyio.sleep(0.5)
            tuning.change("double", max_size=8)
            for item in range(16):
                tasks.start_soon(batcher.submit, item)
        statistics = batcher.statistics()

    assert sizes[0] <= 4
    assert set(sizes[1:-1]) == {8}
    assert sum(sizes) == 36
    assert statistics.limits == Limits(8, 1, 0.0, reason="told to: max_size=8")
    assert [move.after for move in statistics.moves] == [statistics.limits]


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({}, TypeError, "change('store') changes nothing; pass a goal, or one of min_size, max_size, min_conc"),
        ({"max_size": 0}, ValueError, "max_size must be at least 1, not 0"),
        ({"max_size": "9"}, TypeError, "max_size must be a whole number, not '9'"),
        ({"max_size": 5, "goal": 0.2}, TypeError, "goal must be a Goal, not 0.2; write goal=Goal(p99=0.2)"),
        ({"max_size": 5, "goal": Goal(0.2)}, ValueError, "stage 'store' cannot follow a goal: nobody steers it; "),
    ],
)
async def test_a_bad_value_changes_nothing(options: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    limits: list[Limits] = []

    def change(tuning: Tuning) -> None:
        with pytest.raises(kind) as raised:
            tuning.change("store", **options)
        assert str(raised.value).startswith(sentence)
        limits.append(tuning.limits("store"))

    summary = await tuned(
        forebay.pipeline(range(100)).map_batches(Counting(), max_size=10, name="store"), change, after=2.5
    )

    assert limits == [Limits(10, 1, 0.0)]
    assert not summary.moves


async def test_an_unknown_stage_is_named_with_the_nearest() -> None:
    def change(tuning: Tuning) -> None:
        with pytest.raises(
            ValueError, match=r"^no stage is named 'stor' \(stages: load, store\); did you mean 'store'?"
        ):
            tuning.change("stor", max_size=5)
        with pytest.raises(ValueError, match=r"^no stage is named 'x' \(stages: load, store\)$"):
            tuning.limits("x")

    async def load(items: list[int]) -> list[int]:
        return items

    recipe = forebay.pipeline(range(100)).map_batches(load, max_size=10, name="load")
    await tuned(recipe.map_batches(Counting(), max_size=10, name="store"), change, after=2.5)


async def test_two_stages_of_one_name_have_to_be_told_apart() -> None:
    def change(tuning: Tuning) -> None:
        with pytest.raises(ValueError, match=r"^2 stages are named 'x'; pass name= to the stages to tell them apart"):
            tuning.bounds("x")

    async def load(items: list[int]) -> list[int]:
        return items

    recipe = forebay.pipeline(range(100)).map_batches(load, max_size=10, name="x")
    await tuned(recipe.map_batches(Counting(), max_size=10, name="x"), change, after=2.5)


async def test_a_pipeline_without_stages_has_nothing_to_tune() -> None:
    tuning = Tuning()

    def look(item: int) -> int:
        with pytest.raises(ValueError, match=r"^no stage is named 'x' \(stages: none\)$"):
            tuning.bounds("x")
        return item

    assert (await forebay.pipeline([1]).map(look).run(tuning=tuning)).done == 1


async def test_before_a_run_there_is_nothing_to_tune() -> None:
    tuning = Tuning()

    for read in (tuning.stages, tuning.explain, tuning.moves, lambda: tuning.change("store", max_size=1)):
        with pytest.raises(ForebayError, match=r"^nothing has run with this Tuning; pass it on: run\(tuning=tuning\)$"):
            read()


async def test_after_a_run_only_its_story_is_left() -> None:
    tuning = Tuning()

    summary = (
        await forebay.pipeline([1], name="p").map_batches(FakeSink[int](), max_size=3, name="s").run(tuning=tuning)
    )

    for read in (tuning.stages, lambda: tuning.limits("s"), lambda: tuning.change("s", max_size=1)):
        with pytest.raises(ForebayError, match=r"^p, run .* has ended, so there is nothing to tune; explain"):
            read()
    assert tuning.explain() == summary.explain() == f"p, run {summary.run_id}: no limits were moved"
    assert tuning.moves() == []


async def test_a_run_that_fails_has_ended_too() -> None:
    tuning = Tuning()

    async def fail(items: list[int]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await forebay.pipeline([1]).map_batches(fail, max_size=3).run(tuning=tuning)

    with pytest.raises(ForebayError, match="has ended"):
        tuning.stages()


async def test_one_run_at_a_time_uses_it() -> None:
    tuning = Tuning()
    recipe = forebay.pipeline(range(30), name="p").map_batches(Counting(), max_size=10, name="s")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: recipe.run(tuning=tuning))
        await anyio.sleep(0.5)
        with pytest.raises(ForebayError, match=r"^this Tuning is in use by p, run .*; make one for each run$"):
            await recipe.run(tuning=tuning)
        assert tuning.stages() == ["s"]

    assert (await recipe.run(tuning=tuning)).done == 30
