"""Inline steps: plain loops over a piece, which stop at the item that fails."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from forebay._account import FeedLedger
from forebay._batcher import Piece
from forebay._errors import BlockedLoopWarning, HandlerContractError
from forebay._ledger import Ledger
from forebay._metrics import StageMetrics
from forebay._route import Route
from forebay._steps import Step, Stop, run_steps


async def unreachable(route: Route, stop: Stop, /) -> Piece | None:
    raise AssertionError("nothing goes wrong here")


class Bench:
    """A route with a ledger, and a piece of the first *count* numbers on it."""

    def __init__(self, count: int, *, listed: bool = False, keys: list[str] | None = None) -> None:
        self.ledger = Ledger(1, on_final=lambda hold, number: None, on_empty=lambda: None)
        self.ledger.register(count, FeedLedger("numbers"), 0.0)
        self.route = Route(self.ledger, (0,), unreachable, clock=lambda: 0.0)
        self.piece = Piece(list(range(count)), 0, count, keys=keys, since=7.0)
        if listed:
            self.route.listed(self.piece)

    def step(self, kind: str, func: Callable[[Any], object]) -> Step:
        return Step(kind, func, func.__name__, StageMetrics(), self.route.filter_out, self.route.become_parents)

    def run(self, *steps: tuple[str, Callable[[Any], object]]) -> Stop | None:
        self.steps = tuple(self.step(kind, func) for kind, func in steps)
        return run_steps(self.steps, 0, self.piece)


def odd(item: int) -> bool:
    return item % 2 == 1


def fail_at_three(item: int) -> int:
    if item == 3:
        raise ValueError("three")
    return item + 1


@pytest.mark.parametrize("listed", [False, True])
def test_steps_follow_one_another_over_the_whole_piece(listed: bool) -> None:
    bench = Bench(6, listed=listed)
    seen: list[int] = []

    stop = bench.run(("map", lambda item: item + 1), ("filter", odd), ("tap", seen.append), ("key_by", str))

    assert stop is None
    assert bench.piece.items == seen == [1, 3, 5]
    assert bench.piece.listed() == [0, 2, 4]
    assert bench.piece.keys == ["1", "3", "5"]
    figures = [(step.metrics.received, step.metrics.done, step.metrics.filtered) for step in bench.steps]
    assert figures == [(6, 6, 0), (6, 3, 3), (3, 3, 0), (3, 3, 0)]


def test_what_is_filtered_out_of_a_span_is_final_with_the_span() -> None:
    bench = Bench(6)

    bench.run(("filter", odd), ("filter", lambda item: item != 3))

    assert (bench.piece.items, bench.piece.holes) == ([1, 5], [0, 2, 3, 4])
    assert bench.ledger.in_hand == 6
    bench.route.settle(bench.piece)
    assert (bench.ledger.counts["done"], bench.ledger.counts["filtered"]) == (2, 4)


def test_what_is_filtered_out_of_a_list_is_final_at_once() -> None:
    bench = Bench(6, listed=True, keys=list("abcdef"))

    bench.run(("filter", odd))

    assert (bench.piece.items, bench.piece.keys, bench.piece.positions) == ([1, 3, 5], ["b", "d", "f"], [1, 3, 5])
    assert (bench.ledger.in_hand, bench.ledger.counts["filtered"]) == (3, 3)


def test_steps_behind_one_that_left_nothing_are_not_run() -> None:
    bench = Bench(3)

    bench.run(("filter", lambda item: False), ("map", fail_at_three))

    assert bench.piece.items == []
    assert bench.steps[1].metrics.received == 0


def test_children_stand_in_the_place_of_their_parents() -> None:
    bench = Bench(4, keys=list("abcd"))

    bench.run(("flat_map", lambda item: [item] * item))

    assert bench.piece.items == [1, 2, 2, 3, 3, 3]
    assert bench.piece.positions == [1, 2, 2, 3, 3, 3]
    assert bench.piece.keys == ["b", "c", "c", "d", "d", "d"]
    assert bench.ledger.counts["filtered"] == 1
    bench.route.settle(bench.piece)
    assert (bench.ledger.in_hand, bench.ledger.settled_twice) == (0, 0)


def test_a_parent_is_settled_with_its_last_child() -> None:
    bench = Bench(2)
    bench.run(("flat_map", lambda item: [item, item + 10]), ("flat_map", lambda item: [item, item]))

    bench.route.settle(bench.piece.split(3))
    early = bench.ledger.in_hand
    bench.route.settle(bench.piece.split(4))
    middle = bench.ledger.in_hand
    bench.route.settle(bench.piece)

    assert (early, middle, bench.ledger.in_hand) == (2, 1, 0)
    assert bench.ledger.settled_twice == 0


@pytest.mark.parametrize("kind", ["map", "tap", "filter", "flat_map", "key_by"])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("count", [4, 6])
def test_a_step_stops_at_the_item_that_fails(kind: str, listed: bool, count: int) -> None:
    bench = Bench(count, listed=listed, keys=[str(item) for item in range(count)])

    def func(item: int) -> object:
        return {"flat_map": [fail_at_three(item)], "key_by": str(fail_at_three(item))}.get(kind, fail_at_three(item))

    stop = bench.run((kind, func))

    assert stop is not None
    assert (stop.step, str(stop.error)) == (0, "three")
    assert (stop.bad.items, stop.bad.listed(), stop.bad.keys, stop.bad.since) == ([3], [3], ["3"], 7.0)
    assert stop.head.listed() == [0, 1, 2]
    assert stop.head.items == ([1, 2, 3] if kind in ("map", "flat_map") else [0, 1, 2])
    assert stop.tail.items == stop.tail.listed() == list(range(4, count))
    assert bench.steps[0].metrics.failed == 1
    assert (bench.steps[0].metrics.received, bench.steps[0].metrics.done) == (4, 3)


def test_a_parent_that_loses_a_child_to_a_filter_is_settled_with_its_last_child() -> None:
    bench = Bench(3)

    bench.run(("flat_map", lambda item: [item, -1]), ("filter", lambda item: item >= 0))
    filtered = bench.ledger.statistics()
    bench.route.finish([bench.piece])

    assert (bench.piece.items, filtered.in_hand) == ([0, 1, 2], 3)
    after = bench.ledger.statistics()
    assert (after.done, after.filtered, after.in_hand, after.settled_twice) == (3, 0, 0, 0)


def test_the_first_item_may_fail() -> None:
    for kind in ("map", "tap", "filter", "flat_map", "key_by"):
        bench = Bench(1)

        stop = bench.run((kind, lambda item: 1 // item))

        assert stop is not None
        assert (stop.head.items, stop.bad.items, stop.tail.items) == ([], [0], [])
        assert (stop.head.listed(), stop.bad.listed(), stop.tail.listed()) == ([], [0], [])


def test_a_filter_that_fails_has_left_out_what_came_before() -> None:
    bench = Bench(5)

    stop = bench.run(("filter", lambda item: fail_at_three(item) % 2))

    assert stop is not None
    assert (stop.head.items, stop.head.holes) == ([0, 2], [1])


async def coroutine(item: object) -> object:
    return item


@pytest.mark.filterwarnings("ignore:coroutine 'coroutine' was never awaited:RuntimeWarning")
@pytest.mark.parametrize("kind", ["map", "tap", "filter", "key_by"])
def test_a_plain_function_that_returns_a_coroutine_is_named(kind: str) -> None:
    bench = Bench(1)

    with pytest.raises(HandlerContractError) as raised:
        bench.run((kind, lambda item: coroutine(item)))

    assert str(raised.value) == (
        f"{kind} step '<lambda>' is a plain function that returned a coroutine, so nothing would await it; "
        "pass the async function itself"
    )


def test_a_plain_function_that_returns_a_coroutine_now_and_then_is_named_too() -> None:
    bench = Bench(2)

    with pytest.raises(HandlerContractError, match="map step '<lambda>' is a plain function that returned a coroutine"):
        bench.run(("map", lambda item: item or coroutine(item)))


def test_a_flat_map_that_returns_a_coroutine_is_named() -> None:
    bench = Bench(1)

    with pytest.raises(HandlerContractError, match="flat_map step '<lambda>' is a plain function that returned a cor"):
        bench.run(("flat_map", lambda item: coroutine(item)))


def test_a_flat_map_that_returns_no_iterable_fails_for_the_item() -> None:
    bench = Bench(2)

    stop = bench.run(("flat_map", lambda item: item if item else [item]))

    assert stop is not None
    assert str(stop.error) == "'int' object is not iterable"
    assert (stop.head.items, stop.bad.items) == ([0], [1])


def test_a_key_has_to_be_a_string() -> None:
    bench = Bench(2)

    with pytest.raises(HandlerContractError) as raised:
        bench.run(("key_by", lambda item: item))

    assert str(raised.value) == (
        "key_by step '<lambda>' returned 0, an int; return a str, the same for all items that have to stay in order"
    )


def test_a_kind_of_string_is_a_key() -> None:
    class Key(str):
        __slots__ = ()

    bench = Bench(1)

    assert bench.run(("key_by", lambda item: Key("a"))) is None
    assert bench.piece.keys == ["a"]


def test_a_step_that_holds_the_loop_three_times_in_a_row_is_named_once() -> None:
    bench = Bench(2)

    def slow(item: object) -> None:
        time.sleep(0.03)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bench.run(("tap", slow))
        run_steps(bench.steps, 0, bench.piece)
        assert not caught  # may be the computer's doing
        for _ in range(3):
            run_steps(bench.steps, 0, bench.piece)

    (warning,) = caught
    assert warning.category is BlockedLoopWarning
    assert str(warning.message).startswith("tap step 'slow' held the event loop for ")
    assert str(warning.message).endswith(
        " ms over 2 items; pass run_in='thread' or run_in='process' to move it off the loop"
    )


def test_a_step_that_holds_the_loop_now_and_then_is_not_named() -> None:
    bench = Bench(1)
    pauses = iter([0.06, 0.06, 0.0, 0.06, 0.06])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bench.run(("tap", lambda item: time.sleep(next(pauses))))
        for _ in range(4):
            run_steps(bench.steps, 0, bench.piece)

    assert caught == []
