"""The story of a run: a line for each move of a controller."""

import time

import pytest

from forebay._explain import in_order, move_line, story
from forebay.abc import Limits, LimitsInfo

NOON = time.mktime((2025, 3, 1, 12, 3, 7, 0, 0, -1))
BEFORE = Limits(64, 8, 0.0)


def move(after: Limits, reason: str = "why not", at: float = NOON, stage: str = "enrich") -> LimitsInfo:
    return LimitsInfo("orders", stage, BEFORE, after, reason, at)


def test_a_line_says_when_where_what_and_why() -> None:
    line = move_line(move(Limits(64, 5, 0.0), "p99 210 ms over goal 200 ms, queueing not cost"))

    assert line == "12:03:07 enrich: concurrency 8 -> 5: p99 210 ms over goal 200 ms, queueing not cost"


@pytest.mark.parametrize(
    ("after", "shown"),
    [
        (Limits(96, 8, 0.0), "batch 64 -> 96"),
        (Limits(96, 9, 0.0), "batch 64 -> 96, concurrency 8 -> 9"),
        (Limits(64, 8, 0.0025), "wait 0 -> 2.5 ms"),
        (Limits(64, 8, 0.0, 1_048_576), "bytes unlimited -> 1,048,576"),
        (Limits(1, 2, 1.5, 7), "batch 64 -> 1, concurrency 8 -> 2, wait 0 -> 1500 ms, bytes unlimited -> 7"),
    ],
)
def test_a_line_shows_what_has_changed(after: Limits, shown: str) -> None:
    assert move_line(move(after)) == f"12:03:07 enrich: {shown}: why not"


def test_where_nothing_has_changed_the_reason_stands_alone() -> None:
    assert move_line(move(BEFORE, "told to: goal=throughput")) == "12:03:07 enrich: told to: goal=throughput"


def test_a_move_without_a_reason_ends_with_what_has_changed() -> None:
    assert move_line(move(Limits(65, 8, 0.0), "")) == "12:03:07 enrich: batch 64 -> 65"


@pytest.mark.parametrize(
    ("known", "made", "title"),
    [
        (0, 0, "orders: no limits were moved"),
        (1, 1, "orders: 1 move"),
        (2, 2, "orders: 2 moves"),
        (2, 1300, "orders: 1,300 moves, of which the last 2 are known"),
    ],
)
def test_a_story_begins_with_how_many_moves_there_were(known: int, made: int, title: str) -> None:
    moves = [move(Limits(65 + index, 8, 0.0)) for index in range(known)]

    lines = story("orders", moves, made).splitlines()

    assert lines == [title, *map(move_line, moves)]


def test_moves_of_several_stages_are_told_in_the_order_of_time() -> None:
    moves = [move(BEFORE, at=3.0, stage="a"), move(BEFORE, at=5.0, stage="a"), move(BEFORE, at=4.0, stage="b")]

    assert [one.at for one in in_order(moves)] == [3.0, 4.0, 5.0]
