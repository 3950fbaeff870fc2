import random
from collections import Counter, deque
from collections.abc import Sequence

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from forebay._account import FeedLedger, Hold
from forebay._batcher import Family, Gather, Piece, Record
from forebay._ledger import Ledger


def pairs(piece: Piece) -> list[tuple[object, int, str | None]]:
    """Return every item with its position and key."""
    return [(item, piece.position(index), piece.key(index)) for index, item in enumerate(piece.items)]


@st.composite
def spans(draw: st.DrawFn, start: int | None = None, keyed: bool | None = None) -> Piece:
    """Draw a span, with holes here and there; each item is ten times its position."""
    first = draw(st.integers(0, 50)) if start is None else start
    length = draw(st.integers(1, 12))
    holes = sorted(draw(st.sets(st.integers(first, first + length - 1), max_size=length - 1)))
    positions = [position for position in range(first, first + length) if position not in holes]
    has_keys = draw(st.booleans()) if keyed is None else keyed
    keys = [f"k{position % 3}" for position in positions] if has_keys else None
    items: list[object] = [10 * position for position in positions]
    return Piece(items, first, first + length, keys=keys, holes=holes or None, since=1.5)


# --- Pieces ------------------------------------------------------------------------------------


@given(spans())
def test_every_item_of_a_span_knows_its_position(piece: Piece) -> None:
    assert [position for _, position, _ in pairs(piece)] == piece.listed()
    assert all(item == 10 * position for item, position, _ in pairs(piece))


@given(spans(), st.data())
def test_a_span_that_is_split_stands_for_the_same_positions_in_two_parts(piece: Piece, data: st.DataObject) -> None:
    before, start, stop, holes = pairs(piece), piece.start, piece.stop, piece.holes or []
    count = data.draw(st.integers(0, len(piece.items) - 1))

    head = piece.split(count)

    assert pairs(head) == before[:count]
    assert pairs(piece) == before[count:]
    assert (head.start, head.stop, piece.stop) == (start, piece.start, stop)
    assert (head.holes or []) + (piece.holes or []) == holes
    assert all(hole < head.stop for hole in head.holes or ())
    assert all(hole >= piece.start for hole in piece.holes or ())
    assert (head.since, head.record) == (1.5, None)


@given(st.data(), st.booleans())
def test_a_span_takes_in_the_one_that_follows_it(data: st.DataObject, keyed: bool) -> None:
    first = data.draw(spans(keyed=keyed))
    second = data.draw(spans(start=first.stop, keyed=keyed))
    expected = pairs(first) + pairs(second)
    start, stop, holes = first.start, second.stop, (first.holes or []) + (second.holes or [])

    assert first.extend(second)

    assert pairs(first) == expected
    assert (first.start, first.stop, first.holes or []) == (start, stop, holes)


def test_a_span_takes_in_nothing_but_the_span_that_follows_it() -> None:
    piece = Piece([1, 2], 4, 6)

    assert not piece.extend(Piece([3], 7, 8))
    assert not piece.extend(Piece([3], positions=[6]))
    assert not Piece([3], positions=[6]).extend(Piece([4], 7, 8))

    assert (piece.items, piece.start, piece.stop) == ([1, 2], 4, 6)


def test_a_span_whose_items_were_all_filtered_out_takes_over_the_keys_of_the_next() -> None:
    piece = Piece([], 0, 2, holes=[0, 1])

    assert piece.extend(Piece(["a"], 2, 4, keys=["k"], holes=[3]))
    assert piece.extend(Piece([], 4, 5, holes=[4]))
    assert piece.extend(Piece(["b"], 5, 6, keys=["l"]))

    assert pairs(piece) == [("a", 2, "k"), ("b", 5, "l")]
    assert piece.holes == [0, 1, 3, 4]


@given(st.lists(st.tuples(st.integers(0, 9), st.text(max_size=1)), min_size=1, max_size=9), st.data())
def test_a_list_is_split_like_its_items(entries: list[tuple[int, str]], data: st.DataObject) -> None:
    positions, keys = [position for position, _ in entries], [key for _, key in entries]
    record = Record(failures=2)
    piece = Piece(list(range(len(entries))), positions=positions, keys=keys, record=record, since=3.0)
    before = pairs(piece)
    count = data.draw(st.integers(0, len(entries) - 1))

    head = piece.split(count)

    assert pairs(head) == before[:count]
    assert pairs(piece) == before[count:]
    assert head.listed() + piece.listed() == positions == [position for position, _ in entries]
    assert (head.record, head.since) == (record, 3.0)


@pytest.mark.parametrize(
    "piece",
    [
        Piece(list("abcde"), 3, 8),
        Piece(list("abcde"), 3, 8, keys=list("klmno")),
        Piece(list("abcde"), 3, 10, holes=[4, 9]),
        Piece(list("abcde"), positions=[3, 3, 4, 7, 9]),
        Piece(list("abcde"), 3, 8, record=Record(failures=2)),
    ],
    ids=["span", "keys", "holes", "list", "record"],
)
def test_a_piece_is_cut_in_parts_that_stand_for_the_same_positions(piece: Piece) -> None:
    before, record, stop = pairs(piece), piece.record, piece.stop

    parts = piece.cut(2)

    assert [len(part.items) for part in parts] == [2, 2, 1]
    assert [pair for part in parts for pair in pairs(part)] == before
    assert all(part.record is record for part in parts)
    assert parts[-1].stop == stop


def test_a_piece_that_is_small_enough_is_not_cut() -> None:
    piece = Piece(["a", "b"], 3, 5, keys=["k", "l"])

    assert piece.cut(2) == [piece]


def test_a_piece_of_results_stands_for_the_same_positions() -> None:
    piece = Piece(["a", "b"], 4, 7, holes=[5], keys=["x", "y"], record=Record(), since=2.0)

    results = piece.like(["A", "B"])

    assert pairs(results) == [("A", 4, "x"), ("B", 6, "y")]
    assert (results.start, results.stop, results.holes, results.record, results.since) == (4, 7, [5], None, 0.0)


# --- Gathering ---------------------------------------------------------------------------------


def test_gathering_joins_what_follows_and_keeps_apart_what_does_not() -> None:
    gather = Gather()
    assert (gather.held, gather.flush()) == (0, None)

    gather.add(Piece([1], 0, 1))
    gather.add(Piece([2, 3], 1, 3))
    assert gather.held == 3
    gather.add(Piece([9], positions=[3]))
    gather.add(Piece([4], 4, 5))

    assert [piece.items for piece in gather.loose] == [[1, 2, 3], [9]]
    assert gather.held == 1
    last = gather.flush()
    assert last is not None
    assert last.items == [4]
    assert gather.flush() is None


# --- Families ----------------------------------------------------------------------------------


@define
class Nursery:
    """Parents in a ledger, and a tree of pieces that is treated at random as stages and steps treat it."""

    leaves: int
    count: int
    rng: random.Random
    ledger: Ledger = field(init=False)
    alive: list[Counter[int]] = field(init=False)
    """By leaf: children of each parent that have not been settled."""

    def __attrs_post_init__(self) -> None:
        self.ledger = Ledger(self.leaves, on_final=_ignore_final, on_empty=_ignore_empty)
        self.ledger.register(self.count, FeedLedger("parents"), 0.0)
        self.alive = [Counter(range(self.count)) for _ in range(self.leaves)]

    def run(self) -> None:
        piece = self._piece(list(range(self.count)), tuple(range(self.leaves)))
        on_their_way: deque[tuple[Piece, tuple[int, ...]]] = deque([(piece, tuple(range(self.leaves)))])
        budget = 25
        while on_their_way:
            self.rng.shuffle(on_their_way)
            piece, leaves = on_their_way.pop()
            budget -= 1
            what = (
                self.rng.choice(["breed", "cut", "filter", "scatter", "branch", "settle"]) if budget > 0 else "settle"
            )
            if not piece.items:
                continue
            if what == "breed":
                self._breed(piece, leaves)
                on_their_way.append((piece, leaves))
            elif what == "cut" and len(piece.items) > 1:
                on_their_way.append((piece.split(self.rng.randrange(len(piece.items))), leaves))
                on_their_way.append((piece, leaves))
            elif what == "filter":
                self._filter(piece, leaves)
                on_their_way.append((piece, leaves))
            elif what == "scatter":
                on_their_way += [(single, leaves) for single in self._singles(piece, leaves)]
            elif what == "branch" and len(leaves) > 1:
                self._family(piece).scattered(piece.listed())
                on_their_way += [(self._piece(piece.listed(), (leaf,)), (leaf,)) for leaf in leaves]
            elif what == "settle":
                self._settle(piece.listed(), leaves)
            else:
                on_their_way.append((piece, leaves))

    def _piece(self, positions: list[int], leaves: tuple[int, ...]) -> Piece:
        return Piece(list(positions), positions=list(positions), family=Family(self.ledger, leaves))

    def _family(self, piece: Piece) -> Family:
        assert piece.family is not None
        return piece.family

    def _breed(self, piece: Piece, leaves: tuple[int, ...]) -> None:
        """Give each item up to four children; those without any are filtered out first, as flat_map does."""
        positions = piece.listed()
        sizes = [self.rng.randrange(5) for _ in positions]
        childless = [index for index, size in enumerate(sizes) if not size]
        if childless:
            self._leave_out(piece, childless, leaves)
        positions, sizes = piece.listed(), [size for size in sizes if size]
        self._family(piece).born(positions, sizes)
        for position, size in zip(positions, sizes, strict=True):
            for leaf in leaves:
                self.alive[leaf][position] += size - 1
        piece.positions = [p for p, size in zip(positions, sizes, strict=True) for _ in range(size)]
        piece.items = list[object](piece.positions)

    def _filter(self, piece: Piece, leaves: tuple[int, ...]) -> None:
        self._leave_out(piece, [index for index in range(len(piece.items)) if self.rng.random() < 0.5], leaves)

    def _leave_out(self, piece: Piece, dropped: Sequence[int], leaves: tuple[int, ...]) -> None:
        positions = piece.listed()
        final = self._family(piece).gone(positions, dropped)
        piece.positions = [position for index, position in enumerate(positions) if index not in dropped]
        piece.items = list[object](piece.positions)
        self._count_off([positions[index] for index in dropped], leaves)
        for leaf in leaves:
            self.ledger.settle_list(final, leaf, "filtered")
        self.check()

    def _singles(self, piece: Piece, leaves: tuple[int, ...]) -> list[Piece]:
        positions = piece.listed()
        self._family(piece).scattered(positions)
        return [self._piece([position], leaves) for position in positions]

    def _settle(self, positions: list[int], leaves: tuple[int, ...]) -> None:
        self._count_off(positions, leaves)
        for leaf in leaves:
            self.ledger.settle_list(positions, leaf)
        self.check()

    def _count_off(self, positions: Sequence[int], leaves: tuple[int, ...]) -> None:
        for leaf in leaves:
            self.alive[leaf].subtract(positions)

    def check(self) -> None:
        """Exactly those parents are final that have no child left in any branch."""
        for parent in range(self.count):
            has_children = any(alive[parent] for alive in self.alive)
            assert self.ledger.is_open(parent) == has_children, (parent, self.alive, self.ledger.children)


def _ignore_final(hold: Hold, count: int) -> None: ...


def _ignore_empty() -> None: ...


@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**32))
def test_a_parent_is_settled_exactly_once_and_exactly_with_its_last_child(leaves: int, count: int, seed: int) -> None:
    nursery = Nursery(leaves, count, random.Random(seed))

    nursery.run()

    reading = nursery.ledger.statistics()
    assert (reading.in_hand, reading.settled_twice) == (0, 0)
    assert nursery.ledger.children == [{}] * leaves


def test_children_that_stay_together_need_no_counter() -> None:
    ledger = Ledger(on_final=_ignore_final, on_empty=_ignore_empty)
    piece = Piece([0, 0, 1, 2, 2], positions=[0, 0, 1, 2, 2], family=Family(ledger, [0]))

    piece.split(2)
    assert ledger.children == [{}]
    piece.split(2)

    assert ledger.children == [{2: 2}]


def test_filtering_many_children_settles_each_parent_once() -> None:
    ledger = Ledger(on_final=_ignore_final, on_empty=_ignore_empty)

    final = Family(ledger, [0]).gone([0, 0, 1, 1, 2, 2], [0, 1, 2, 4, 5])

    assert final == [0, 2]
