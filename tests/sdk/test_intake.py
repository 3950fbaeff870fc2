"""What a free worker takes next, and when it waits for company instead."""

from __future__ import annotations

import math
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import forebay
from forebay._batch import Batch
from forebay._batcher import Piece, Record
from forebay._buffer import Buffer
from forebay._intake import Intake
from forebay._lanes import Lanes
from forebay._waiting import Waiting
from forebay.abc import Limits
from tests.support.controllers import Scripted


class Exit:
    """An exit to which all items but those in *lost* belong."""

    def __init__(self) -> None:
        self.lost: set[object] = set()

    def is_ours(self, piece: Piece) -> bool:
        return self.lost.isdisjoint(piece.items)

    def scatter(self, batch: Batch) -> list[Piece]:
        return [
            Piece([item], positions=[0], keys=None if piece.keys is None else [piece.keys[index]])
            for piece in batch.pieces
            for index, item in enumerate(piece.items)
        ]

    def listed(self, piece: Piece) -> None:
        piece.positions = piece.listed()


class Bench:
    def __init__(self, *, weigh: Any = None, lanes: Lanes | None = None, **options: Any) -> None:
        self.now = 0.0
        self.exit = Exit()
        way_out: Any = self.exit
        self.inbox: Buffer[Piece] = Buffer(10_000, weigh=weigh)
        self.waiting = Waiting(exit=way_out, inbox=self.inbox, lanes=lanes)
        self.intake = Intake(
            inbox=self.inbox,
            exit=way_out,
            waiting=self.waiting,
            lanes=lanes,
            max_size=options.pop("max_size", 4),
            clock=lambda: self.now,
            **options,
        )
        self.base = 0

    def push(self, *items: object, record: Record | None = None, since: float = 0.0) -> None:
        piece = Piece(list(items), self.base, self.base + len(items), record=record, since=since)
        self.base += len(items)
        self.inbox.push(piece, self.inbox.weight(piece))

    def taken(self) -> list[list[object]]:
        """Return all that can be taken now, batch by batch."""
        batches: list[list[object]] = []
        while (batch := self.intake.next_batch()) is not None:
            batches.append(batch.items)
        return batches


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 10))
def test_batches_are_as_full_as_can_be_and_in_order(sizes: list[int], limit: int) -> None:
    bench = Bench(max_size=limit)
    items = list(range(sum(sizes)))
    for size in sizes:
        bench.push(*items[bench.base : bench.base + size])

    batches = bench.taken()

    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == limit for batch in batches[:-1])


def test_a_limit_that_changes_holds_from_the_next_batch_on() -> None:
    bench = Bench(max_size=4)
    for start in range(0, 20, 4):
        bench.push(*range(start, start + 4))

    first = bench.intake.next_batch()
    bench.intake.max_size = 6
    second = bench.intake.next_batch()
    bench.intake.max_size = 3

    assert first is not None
    assert second is not None
    assert [first.items, second.items, *bench.taken()] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7, 8, 9],
        [10, 11, 12],
        [13, 14, 15],
        [16, 17, 18],
        [19],
    ]


def test_what_runs_again_goes_first() -> None:
    bench = Bench()
    bench.push(1, 2)
    bench.waiting.again.append(Batch([Piece([0], 9, 10)]))

    assert bench.taken() == [[0], [1, 2]]


def test_what_was_lost_meanwhile_does_not_run_again() -> None:
    bench = Bench()
    bench.waiting.again.append(Batch([Piece([1, 2, 3], 0, 3)]))
    bench.waiting.again.append(Batch([Piece([4], 3, 4)]))
    bench.exit.lost = {2, 4}

    assert bench.taken() == [[1, 3]]


def test_an_item_that_has_to_run_alone_does() -> None:
    bench = Bench()
    bench.push(1)
    bench.push(2, record=Record(alone=True))
    bench.push(3)

    assert bench.taken() == [[1, 3], [2]]


def test_items_that_have_to_run_alone_and_nothing_else_do_too() -> None:
    bench = Bench()
    bench.push(1, record=Record(alone=True))
    bench.push(2, record=Record(alone=True))

    assert sorted(bench.taken()) == [[1], [2]]


def test_nothing_new_is_taken_while_too_much_waits_for_its_time() -> None:
    bench = Bench()
    bench.waiting.max_batches = 1
    bench.waiting.due.append((9.0, 1, Batch([Piece([0], 0, 1)])))
    bench.push(1)

    assert bench.taken() == []


@pytest.mark.parametrize(
    ("seconds", "held", "calls", "expected"),
    [(1.0, 100, 1, 1), (0.00001, 100, 1, 50), (0.00001, 100, 5, 10), (0.0002, 1000, 1, 5), (1e-6, 9000, 1, 256)],
)
def test_single_items_are_shared_out_unless_handing_over_costs_more(
    seconds: float, held: int, calls: int, expected: int
) -> None:
    bench = Bench(max_size=256, per_item=True, max_concurrency=calls, mean_item=seconds)
    bench.push(*range(held))

    batch = bench.intake.next_batch()

    assert batch is not None
    assert len(batch.items) == expected


def test_bytes_bound_a_batch_and_a_larger_item_goes_alone() -> None:
    bench = Bench(weigh=len, max_bytes=5, max_size=10)
    bench.push("aa", "bb", "cc", "dddddddd", "e")

    assert bench.taken() == [["aa", "bb"], ["cc"], ["dddddddd"], ["e"]]


# --- Company ------------------------------------------------------------------------------------


def test_what_is_less_than_a_batch_waits_for_company_until_its_time() -> None:
    bench = Bench(max_size=4, max_wait=0.5)
    bench.now = 1.0
    bench.push(1, 2, since=1.0)

    assert bench.taken() == []
    assert bench.intake.waits_until == 1.5

    bench.now = 1.5
    assert bench.taken() == [[1, 2]]
    assert bench.intake.waits_until == math.inf


def test_a_full_batch_waits_for_nobody() -> None:
    bench = Bench(max_size=4, max_wait=0.5)
    bench.push(1, 2, 3, 4, 5)

    assert bench.taken() == [[1, 2, 3, 4]]
    assert bench.intake.waits_until == 0.5


def test_what_runs_again_waits_for_nobody() -> None:
    bench = Bench(max_size=4, max_wait=0.5)
    bench.waiting.again.append(Batch([Piece([0], 9, 10)]))

    assert bench.taken() == [[0]]


def test_when_too_much_waits_nothing_is_waited_for() -> None:
    bench = Bench(max_size=4, max_wait=0.5)
    bench.push(1)
    assert bench.taken() == []

    bench.waiting.max_batches = 0

    assert bench.taken() == []
    assert bench.intake.waits_until == math.inf


@pytest.mark.anyio
async def test_a_stage_waits_for_company_as_long_as_its_controller_says() -> None:
    controller = Scripted([Limits(10, 2, 0.5)])
    sent: list[tuple[float, int]] = []
    began = anyio.current_time()

    async def double(items: list[int]) -> list[int]:
        sent.append((round(anyio.current_time() - began, 3), len(items)))
        await anyio.sleep(0.01)
        return items

    async with (
        forebay.open_batcher(double, max_size=10, max_age=0.3, max_concurrency=2, control=controller) as batcher,
        anyio.create_task_group() as tasks,
    ):
        for number in range(4):
            tasks.start_soon(batcher.submit, number)
            await anyio.sleep(0.1)
        await anyio.sleep(0.6)
        for number in range(10):
            tasks.start_soon(batcher.submit, number)

    # The first is not waited with; the others for the 0.3 s that the stage allows; a full batch for nobody.
    assert sent == [(0.0, 1), (0.4, 3), (1.0, 10)]


@pytest.mark.anyio
async def test_who_waits_for_company_goes_at_once_when_there_is_no_need_any_more() -> None:
    controller = Scripted([Limits(10, 2, 0.0)])
    tuning = forebay.Tuning()
    sent: list[float] = []
    began = anyio.current_time()

    async def double(items: list[int]) -> list[int]:
        sent.append(round(anyio.current_time() - began, 3))
        return items

    async with (
        forebay.open_batcher(
            double, max_size=10, max_age=60.0, max_concurrency=2, control=controller, tuning=tuning, name="double"
        ) as batcher,
        anyio.create_task_group() as tasks,
    ):
        await batcher.submit(0)
        controller.left = [Limits(10, 2, 60.0)]
        await batcher.submit(1)
        tasks.start_soon(batcher.submit, 2)
        await anyio.sleep(1)
        assert len(sent) == 2
        controller.left = [Limits(10, 2, 0.0)]
        tuning.change("double", max_size=1)

    assert sent == [0.0, 0.0, 1.0]


# --- Behind `key_by` ----------------------------------------------------------------------------


def test_a_batch_holds_one_item_of_a_key_and_keys_are_its_own_until_it_is_over() -> None:
    lanes = Lanes(in_order=False)
    bench = Bench(lanes=lanes, max_size=3)
    piece = Piece(["a0", "a1", "b0", "c0", "d0"], 0, 5, keys=["a", "a", "b", "c", "d"])
    bench.inbox.push(piece, 0)

    batch = bench.intake.next_batch()

    assert batch is not None
    assert batch.items == ["a0", "b0", "c0"]
    assert bench.taken() == [["d0"]]

    bench.waiting.release(batch)
    assert bench.taken() == [["a1"]]


def test_keys_of_items_that_were_lost_go_on_and_those_that_are_left_stay() -> None:
    lanes = Lanes(in_order=False)
    bench = Bench(lanes=lanes)
    bench.inbox.push(Piece(["a0", "b0", "a1", "b1"], 0, 4, keys=["a", "b", "a", "b"]), 0)
    batch = bench.intake.next_batch()
    assert batch is not None
    bench.waiting.again.append(batch)
    bench.exit.lost = {"a0"}

    assert bench.taken() == [["b0"], ["a1"]]
