"""A recipe is a value: it says what is to happen and resolves nothing."""

import os
from typing import Any

import attrs
import pytest

import forebay
from forebay import Bounds, Goal, Pipeline
from forebay._recipe import ControlSpec, ForkSpec, InlineSpec, SourceSpec, StageSpec, count_leaves, stores_of
from forebay.abc import Limits
from forebay.testing import FakeDeadLetterStore, FakeSink
from tests.support.controllers import Scripted, Yielding


def one(item: int) -> int:
    return item


async def later(item: int) -> int:
    return item


def test_each_method_makes_a_longer_recipe_and_leaves_the_shorter_alone() -> None:
    short = forebay.pipeline([1])

    long = short.map(one).filter(one).map(later)

    assert short.recipe.nodes == ()
    assert [type(node) for node in long.recipe.nodes] == [InlineSpec, InlineSpec, StageSpec]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(long.recipe, "name", "other")  # noqa: B010  # a type checker would stop it


def test_names_and_urls_stay_unresolved() -> None:
    closed = forebay.pipeline("redis://nowhere/0").map_batches("kafka://nowhere/topic", max_size=5, dead_letters="x")

    (source,), (stage,) = closed.recipe.sources, closed.recipe.nodes
    assert source.source == "redis://nowhere/0"
    assert isinstance(stage, StageSpec)
    assert (stage.func, stage.dead_letters) == ("kafka://nowhere/topic", "x")


def test_sources_of_one_name_are_numbered() -> None:
    merged = forebay.pipeline([1], [2], range(3), "urls", "urls")

    assert [source.name for source in merged.recipe.sources] == ["list-0", "list-1", "range", "urls-3", "urls-4"]


def test_a_source_may_have_a_name_of_its_own() -> None:
    class Rows(list[int]):
        name = "rows"

    class Numbered(list[int]):
        name = 3

    def generate() -> "list[int]":
        return [1]

    names = [forebay.pipeline(source).recipe.sources[0].name for source in (Rows(), Numbered(), map(one, generate()))]

    assert names == ["rows", "Numbered", "map"]


def test_in_thread_is_kept_with_each_source() -> None:
    assert forebay.pipeline([1], [2], in_thread=True).recipe.sources == (
        SourceSpec([1], "list-0", in_thread=True),
        SourceSpec([2], "list-1", in_thread=True),
    )


def test_the_ends_of_nested_branches_are_counted() -> None:
    def two(items: Pipeline[int]) -> forebay.ClosedPipeline:
        return items.branch(lambda one: one, lambda one: one.map(later))

    nested = forebay.pipeline([1]).branch(two, lambda one: one, two)

    assert count_leaves(()) == 1
    assert count_leaves(nested.recipe.nodes) == 5


def test_each_store_is_found_once() -> None:
    first, second = FakeDeadLetterStore(), FakeDeadLetterStore()
    recipe = (
        forebay.pipeline([1], dead_letters="memory")
        .map(one, dead_letters=first)
        .map(later, dead_letters="memory")
        .branch(
            lambda items: items.map(one, dead_letters=second),
            lambda items: items.map_batches(FakeSink[int](), max_size=1, dead_letters=first),
        )
        .recipe
    )

    assert stores_of(recipe) == ["memory", first, second]
    assert stores_of(forebay.pipeline([1]).map(one).recipe) == []


def test_steps_that_unpack_results_fail_as_their_stage_does() -> None:
    retry = forebay.Retry(max_attempts=9)

    nodes = forebay.pipeline([1]).filter(later, name="odd", retry=retry, dead_letters="memory").recipe.nodes

    assert [node.name for node in nodes if not isinstance(node, ForkSpec)] == ["odd", "odd, filter", "odd, map"]
    assert all(
        node.retry is retry and node.dead_letters == "memory" for node in nodes if not isinstance(node, ForkSpec)
    )


# --- Who steers ---------------------------------------------------------------------------------


def plan_of(node: object) -> ControlSpec:
    assert isinstance(node, StageSpec)
    return node.control


def sink(items: list[int]) -> None: ...


async def store(items: list[int]) -> None: ...


def batches(func: Any = store, **options: Any) -> ControlSpec:
    untyped: Any = forebay.pipeline([1])
    return plan_of(untyped.map_batches(func, **options).recipe.nodes[-1])


def test_what_is_fixed_begins_at_its_bounds_and_stays() -> None:
    assert batches(max_size=50, control="fixed") == ControlSpec(
        "fixed", None, Bounds(max_size=50, max_concurrency=1), Limits(50, 1, 0.0)
    )
    assert batches(max_size=50, max_concurrency=3, max_bytes=9, weigh=len, control="fixed") == ControlSpec(
        "fixed", None, Bounds(max_size=50, max_concurrency=3), Limits(50, 3, 0.0, 9)
    )


def test_what_is_steered_begins_with_what_the_user_names_and_stays_below() -> None:
    assert batches(max_size=500, max_concurrency=7, control="adaptive", goal=Goal(0.2)) == ControlSpec(
        "adaptive", Goal(0.2), Bounds(max_size=500, max_concurrency=7), Limits(500, 7, 0.0)
    )


def test_what_the_user_does_not_name_is_found() -> None:
    assert batches(control="adaptive") == ControlSpec("adaptive", None, Bounds(), Limits(128, 1, 0.0))


@pytest.mark.parametrize(
    ("func", "options", "most"),
    [
        (store, {}, 256),
        (FakeSink[int](), {}, 256),
        ("kafka://nowhere/topic", {}, 256),
        (sink, {}, 1),
        (sink, {"run_in": "thread"}, 64),
        (print, {"run_in": "process"}, os.cpu_count()),
    ],
)
def test_how_many_calls_make_sense_depends_on_where_they_run(func: object, options: dict[str, Any], most: int) -> None:
    assert batches(func, control="adaptive", **options).bounds.max_concurrency == most


def test_a_function_of_one_item_has_only_its_calls_steered() -> None:
    plan = plan_of(forebay.pipeline([1]).map(later, control="adaptive").recipe.nodes[-1])
    bound = plan_of(forebay.pipeline([1]).filter(later, control="adaptive", max_concurrency=4).recipe.nodes[0])

    assert plan == ControlSpec("adaptive", None, Bounds(max_size=1), Limits(1, 16, 0.0))
    assert bound.bounds.max_concurrency == bound.start.concurrency == 4


CONTROLS: list[Any] = [Scripted([]), Scripted, len]


@pytest.mark.parametrize("control", CONTROLS)
def test_a_controller_or_what_makes_one_is_kept_as_it_is(control: Any) -> None:
    assert batches(control=control).control is control


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {},
        TypeError,
        "max_size is missing for stage 's', whose control is 'fixed'; "
        "pass max_size=…, or control='adaptive' to have it found",
    ),
    (
        {"max_size": 5, "goal": Goal(0.1)},
        ValueError,
        "goal has no meaning for stage 's', whose control is 'fixed'; pass control='adaptive'",
    ),
    (
        {"control": Scripted([]), "goal": Goal(0.1)},
        ValueError,
        "goal has no meaning for stage 's': Scripted has no adjust() to be told of it; "
        "pass a function that makes the controller",
    ),
    (
        {"control": 7},
        TypeError,
        "control must be the name of a controller, a controller, or a function that makes one, not 7",
    ),
    ({"control": "adaptive", "goal": 0.1}, TypeError, "goal must be a Goal, not 0.1; write goal=Goal(p99=0.2)"),
    ({"control": "adaptive", "max_size": 0}, ValueError, "max_size must be at least 1, not 0"),
]


@pytest.mark.parametrize(("options", "kind", "sentence"), WRONG)
def test_each_wrong_way_to_steer_has_its_sentence(
    options: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as raised:
        batches(name="s", **{"control": "fixed", **options})

    assert str(raised.value) == sentence


def test_a_step_that_runs_inline_has_nothing_to_steer() -> None:
    untyped: Any = forebay.pipeline([1])

    with pytest.raises(ValueError, match=r"^control has no meaning for 'map one', a plain function that runs inline"):
        untyped.map(one, control="adaptive", name="map one")


def test_a_goal_is_for_who_can_be_told_of_it() -> None:
    told = Yielding([Limits(1, 1, 0.0)])

    assert batches(control=told, goal=Goal(0.1)).goal == Goal(0.1)
