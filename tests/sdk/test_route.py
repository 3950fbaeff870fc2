"""The way between two stages: steps, and what stands behind them."""

import anyio
import pytest

from forebay._account import FeedLedger
from forebay._batcher import Piece
from forebay._buffer import Buffer
from forebay._ledger import Ledger
from forebay._route import Route
from forebay._steps import Stop

pytestmark = pytest.mark.anyio


async def never(route: Route, stop: Stop, /) -> Piece | None:
    raise AssertionError("nothing goes wrong here")


def route_of(count: int, *, leaves: int = 1) -> tuple[Route, Ledger, Piece]:
    ledger = Ledger(leaves, on_final=lambda hold, number: None, on_empty=lambda: None)
    ledger.register(count, FeedLedger("numbers"), 0.0)
    return Route(ledger, tuple(range(leaves)), never, clock=lambda: 5.0), ledger, Piece(list(range(count)), 0, count)


async def test_without_anything_behind_it_a_piece_is_done() -> None:
    route, ledger, piece = route_of(3)

    await route.send(piece)

    assert (ledger.in_hand, ledger.counts["done"]) == (0, 3)


async def test_a_piece_is_cut_to_what_the_stage_behind_takes() -> None:
    route, ledger, piece = route_of(7)
    route.inbox, route.max_size = Buffer(100), 3

    await route.send(piece)

    assert [part.items for part in route.inbox.parts] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [part.since for part in route.inbox.parts] == [5.0] * 3
    assert ledger.in_hand == 7


async def test_a_full_inbox_makes_a_piece_wait() -> None:
    route, _, piece = route_of(6)
    route.inbox, route.max_size = Buffer(3), 3

    with anyio.move_on_after(1) as scope:
        await route.send(piece)

    assert scope.cancelled_caught
    assert [part.items for part in route.inbox.parts] == [[0, 1, 2]]


async def test_without_waiting_a_piece_goes_as_far_as_there_is_room() -> None:
    route, ledger, piece = route_of(8)
    route.inbox, route.max_size = Buffer(7), 3

    (rest,) = route.send_nowait(piece)

    assert [part.items for part in route.inbox.parts] == [[0, 1, 2], [3, 4, 5]]
    assert isinstance(rest, Piece)
    assert (rest.items, rest.listed()) == ([6, 7], [6, 7])
    assert ledger.in_hand == 8


async def test_a_piece_without_items_is_settled() -> None:
    route, ledger, _ = route_of(4)
    route.inbox = Buffer(10)

    await route.send(Piece([], 0, 4, holes=[0, 1, 2, 3]))

    assert (ledger.in_hand, ledger.counts["filtered"]) == (0, 4)
    assert not route.inbox.parts


async def test_every_branch_settles_for_itself() -> None:
    route, ledger, piece = route_of(4, leaves=2)
    route.branches = (
        Route(ledger, (0,), never, clock=lambda: 0.0),
        Route(ledger, (1,), never, inbox=Buffer(10), max_size=4, clock=lambda: 0.0),
    )

    await route.send(piece)
    before = ledger.in_hand
    inbox = route.branches[1].inbox
    assert inbox is not None
    route.branches[1].finish(inbox.take_nowait(4, None))

    assert (before, ledger.in_hand) == (4, 0)
    assert ledger.settled_twice == 0
