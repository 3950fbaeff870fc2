"""A recipe is a value: it says what is to happen and resolves nothing."""

import attrs
import pytest

import forebay
from forebay import Pipeline
from forebay._recipe import ForkSpec, InlineSpec, SourceSpec, StageSpec, count_leaves, stores_of
from forebay.testing import FakeDeadLetterStore, FakeSink


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
