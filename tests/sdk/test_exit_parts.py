"""What a handler is told about where the items of its batch came from."""

from collections.abc import Callable
from typing import Any

import pytest

import forebay
from forebay.testing import ScriptedSource

pytestmark = pytest.mark.anyio

Build = Callable[[forebay.Pipeline[int]], forebay.Pipeline[Any]]


def twice(number: int) -> list[int]:
    return [number, number]


def once(number: int) -> list[int]:
    return [number]


async def same(numbers: list[int]) -> list[int]:
    return numbers


async def twice_async(number: int) -> list[int]:
    return [number, number]


async def parts_of(build: Build, *, max_size: int = 10) -> list[forebay.BatchPart]:
    parts: list[forebay.BatchPart] = []

    async def store(items: list[object]) -> None:
        parts.extend(forebay.current_batch().parts)

    source = ScriptedSource(range(4))
    await build(forebay.pipeline(source)).map_batches(store, max_size=max_size, max_concurrency=1).run()
    source.assert_settled_once()
    return parts


async def test_a_part_names_source_epoch_and_the_offset_of_each_item() -> None:
    parts = await parts_of(lambda numbers: numbers.filter(lambda number: number != 1))

    assert parts == [forebay.BatchPart("ScriptedSource", 0, 1, [0, 2, 3])]


FLAT: list[Build] = [
    lambda numbers: numbers.flat_map(twice),
    lambda numbers: numbers.flat_map(twice_async, max_concurrency=1),
    lambda numbers: numbers.flat_map(twice).map(str).filter(bool),
    lambda numbers: numbers.flat_map(twice).map_batches(same, max_size=8),
]


@pytest.mark.parametrize("build", FLAT)
async def test_children_repeat_the_offset_of_their_parent_and_their_parts_say_so(build: Build) -> None:
    parts = await parts_of(build, max_size=3)

    assert [offset for part in parts for offset in part.offsets] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(part.children for part in parts)


async def test_a_part_says_so_even_where_each_parent_has_one_child() -> None:
    parts = await parts_of(lambda numbers: numbers.flat_map(once))

    assert [(part.offsets, part.children) for part in parts] == [([0, 1, 2, 3], True)]


async def test_a_part_says_whether_its_items_go_down_other_branches() -> None:
    parts: list[forebay.BatchPart] = []

    async def store(items: list[int]) -> None:
        parts.extend(forebay.current_batch().parts)

    await forebay.pipeline(ScriptedSource(range(2))).map_batches(store, max_size=2).run()
    recipe = forebay.pipeline(ScriptedSource(range(2)))
    await recipe.branch(lambda one: one.map_batches(store, max_size=2), lambda other: other.map(str)).run()

    assert [(part.offsets, part.branches) for part in parts] == [([0, 1], False), ([0, 1], True)]
