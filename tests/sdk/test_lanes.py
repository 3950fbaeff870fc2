import random
from collections import deque

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay._batcher import Piece, Record
from forebay._lanes import Lanes
from forebay._types import Offset


def keyed(text: str, start: int = 0, *, record: Record | None = None, since: float = 0.0) -> Piece:
    """Return a span of the items of *text*, each a key and a number: `a1 b1 a2`."""
    items: list[object] = list(text.split())
    keys = [str(item)[0] for item in items]
    return Piece(items, start, start + len(items), keys=keys, record=record, since=since)


def chosen(piece: Piece | None) -> list[object]:
    return [] if piece is None else piece.items


def ready(lanes: Lanes, max_items: int = 100) -> list[list[object]]:
    return [piece.items for piece in lanes.take_ready(max_items, set())]


def test_a_batch_holds_one_item_of_a_key_and_the_others_wait() -> None:
    lanes = Lanes(in_order=False)
    owned: set[str] = set()

    piece = lanes.choose(keyed("a1 b1 a2 a3 c1", 10, since=4.0), owned)

    assert piece is not None
    assert (piece.items, piece.listed(), piece.keys) == (["a1", "b1", "c1"], [10, 11, 14], ["a", "b", "c"])
    assert piece.since == 4.0
    assert owned == {"a", "b", "c"}
    assert (lanes.waiting, lanes.waiting_for("a"), lanes.waiting_for("b"), lanes.waiting_for("x")) == (2, 2, 0, 0)


def test_a_piece_that_can_run_whole_is_passed_on_as_it_is() -> None:
    lanes = Lanes(in_order=False)
    piece = keyed("a1 b1")

    assert lanes.choose(piece, set()) is piece


def test_a_key_stays_busy_until_it_is_released() -> None:
    lanes = Lanes(in_order=False)
    lanes.choose(keyed("a1"), set())

    assert lanes.choose(keyed("a2 a3", 1, since=7.0), set()) is None
    assert not lanes.ready
    assert lanes.release(["a"])

    (piece,) = lanes.take_ready(10, set())
    assert (piece.items, piece.listed(), piece.keys, piece.since) == (["a2"], [1], ["a"], 7.0)
    assert (lanes.waiting, lanes.waiting_for("a")) == (1, 1)
    assert lanes.release(["a"])
    assert ready(lanes) == [["a3"]]
    assert not lanes.release(["a", "unknown"])
    assert chosen(lanes.choose(keyed("a4"), set())) == ["a4"]


def test_an_item_that_is_ready_holds_its_lane() -> None:
    lanes = Lanes(in_order=False)
    lanes.choose(keyed("a1 a2"), set())
    lanes.release(["a"])

    assert lanes.choose(keyed("a3"), set()) is None

    owned: set[str] = set()
    assert [piece.items for piece in lanes.take_ready(1, owned)] == [["a2"]]
    assert owned == {"a"}


def test_a_handler_that_keeps_order_gets_several_items_of_a_key() -> None:
    lanes = Lanes(in_order=True)
    owned: set[str] = set()

    assert chosen(lanes.choose(keyed("a1 b1 a2"), owned)) == ["a1", "b1", "a2"]
    assert chosen(lanes.choose(keyed("a3 c1"), owned)) == ["a3", "c1"]
    assert chosen(lanes.choose(keyed("a4 a5 d1"), set())) == ["d1"]
    lanes.release(["a", "b", "c"])

    assert ready(lanes) == [["a4", "a5"]]
    assert lanes.waiting == 0


def test_ready_pieces_are_cut_to_the_batch_and_the_rest_keeps_its_place() -> None:
    lanes = Lanes(in_order=True)
    lanes.choose(keyed("a0"), set())
    lanes.choose(keyed("a1 a2 a3 a4"), set())
    lanes.release(["a"])

    assert ready(lanes, 3) == [["a1", "a2", "a3"]]
    assert (lanes.waiting, lanes.waiting_for("a")) == (1, 1)
    lanes.choose(keyed("a5"), set())
    lanes.release(["a"])

    assert ready(lanes, 0) == []
    assert ready(lanes, 1) == [["a4"]]
    assert lanes.waiting_for("a") == 1


def test_a_rest_goes_in_front_of_what_waits_in_its_lane_already() -> None:
    lanes = Lanes(in_order=True)
    lanes.choose(keyed("a0"), set())
    lanes.choose(keyed("a1 a2"), set())
    lanes.release(["a"])
    lanes.choose(keyed("a3"), set())

    assert ready(lanes, 1) == [["a1"]]

    lanes.release(["a"])
    assert ready(lanes) == [["a2", "a3"]]


def test_the_peak_counts_what_goes_back_to_its_lane() -> None:
    lanes = Lanes(in_order=True)
    lanes.choose(keyed("a0 b0"), set())
    lanes.choose(keyed("a1 a2 a3"), set())
    lanes.release(["a"])
    lanes.choose(keyed("b1 b2 b3"), set())
    assert lanes.peak == 3

    assert ready(lanes, 1) == [["a1"]]

    assert (lanes.waiting, lanes.peak) == (5, 5)


def test_a_ready_piece_that_does_not_fit_behind_others_waits_for_the_next_batch() -> None:
    lanes = Lanes(in_order=True)
    lanes.choose(keyed("a0 b0"), set())
    lanes.choose(keyed("a1 b1 b2"), set())
    lanes.release(["a", "b"])

    assert ready(lanes, 2) == [["a1"]]
    assert ready(lanes, 2) == [["b1", "b2"]]


@pytest.mark.parametrize("in_order", [False, True])
def test_an_item_that_has_to_run_alone_still_does_after_it_waited_in_its_lane(in_order: bool) -> None:
    lanes = Lanes(in_order=in_order)
    record = Record(failures=1, alone=True)
    lanes.choose(keyed("a0 b0 c0"), set())
    lanes.choose(keyed("b1"), set())
    lanes.choose(keyed("a1", record=record), set())
    lanes.choose(keyed("a2 c1"), set())
    lanes.release(["b", "a", "c"])

    assert ready(lanes) == [["b1"]]
    (alone,) = lanes.take_ready(100, set())
    assert (alone.items, alone.record) == (["a1"], record)
    assert ready(lanes) == [["c1"]]
    lanes.release(["a"])
    assert ready(lanes) == [["a2"]]


def test_a_lane_gives_back_what_is_too_much_behind_an_item_that_failed() -> None:
    gone: list[tuple[int, float]] = []

    def shed(position: int, until: float) -> Offset | None:
        gone.append((position, until))
        return position

    lanes = Lanes(in_order=False, max_lane=2, shed=shed, offset=lambda position: position)
    lanes.choose(keyed("a0"), set())
    lanes.choose(keyed("a1 a2 a3", 1), set())
    assert (gone, lanes.waiting) == ([], 3)
    lanes.block(["a"], 9.0)

    lanes.choose(keyed("a4 b1 a5", 4), set())
    assert gone == [(4, 9.0), (6, 9.0)]
    lanes.unblock(["a"])
    lanes.release(["a", "b"])
    lanes.choose(keyed("a6", 7), set())
    assert gone[2:] == [(7, 0.0)]

    for number in (1, 2, 3):
        assert ready(lanes) == [[f"a{number}"]]
        lanes.release(["a"])
    assert lanes.choose(keyed("a5", 6), set()) is None
    assert gone[3:] == [(6, 0.0)]
    assert chosen(lanes.choose(keyed("a4", 4), set())) == ["a4"]
    lanes.release(["a"])
    assert chosen(lanes.choose(keyed("a5", 6), set())) == ["a5"]
    lanes.release(["a"])
    assert chosen(lanes.choose(keyed("a6", 7), set())) == ["a6"]


def test_an_item_that_cannot_go_back_waits_however_full_its_lane_is() -> None:
    lanes = Lanes(in_order=False, max_lane=1)
    lanes.choose(keyed("a0"), set())
    lanes.block(["a"], 9.0)

    lanes.choose(keyed("a1 a2 a3", 1), set())

    assert lanes.waiting_for("a") == 3


def test_items_behind_all_keys_together_are_bounded_too() -> None:
    gone: list[int] = []

    def shed(position: int, until: float) -> Offset | None:
        gone.append(position)
        return position

    lanes = Lanes(in_order=False, max_waiting=2, shed=shed, offset=lambda position: position)
    lanes.choose(keyed("a0 b0"), set())
    lanes.block(["a", "b"], 9.0)

    lanes.choose(keyed("a1 b1 a2 b2", 2), set())

    assert (gone, lanes.waiting) == ([4, 5], 2)
    lanes.release(["a"])
    assert ready(lanes) == [["a1"]]
    lanes.choose(keyed("b2", 5), set())
    assert lanes.waiting_for("b") == 2


def test_while_some_are_away_an_item_that_can_wait_nowhere_else_runs() -> None:
    refuses = False

    def shed(position: int, until: float) -> Offset | None:
        return None if refuses else position

    lanes = Lanes(in_order=False, max_lane=0, shed=shed, offset=lambda position: position)
    lanes.choose(keyed("a0"), set())
    lanes.block(["a"], 9.0)
    lanes.choose(keyed("a1 a2", 1), set())
    lanes.release(["a"])
    refuses = True

    assert chosen(lanes.choose(keyed("x1", 8), set())) == ["x1"]
    assert chosen(lanes.choose(keyed("a9", 9), set())) == ["a9"]
    lanes.release(["a"])
    assert chosen(lanes.choose(keyed("a2", 2), set())) == ["a2"]
    lanes.release(["a"])
    assert chosen(lanes.choose(keyed("a1", 1), set())) == ["a1"]


def test_what_waits_behind_an_item_that_went_back_follows_it_in_order() -> None:
    gone: list[tuple[int, float]] = []

    def shed(position: int, until: float) -> Offset | None:
        gone.append((position, until))
        return position

    lanes = Lanes(in_order=False, shed=shed, offset=lambda position: position)
    lanes.choose(keyed("a0 a1 a2 b0 b1"), set())

    lanes.depart(["a"], 0, 9.0)

    assert gone == [(1, 9.0), (2, 9.0)]
    assert (lanes.waiting, lanes.waiting_for("a"), lanes.waiting_for("b"), ready(lanes)) == (1, 0, 1, [])
    assert lanes.choose(keyed("a3", 5), set()) is None
    assert gone[2:] == [(5, 9.0)]
    for number, position in enumerate([0, 1, 2, 5]):
        assert chosen(lanes.choose(keyed(f"a{number}", position), set())) == [f"a{number}"]
        lanes.release(["a"])


def test_an_item_without_a_source_to_wait_in_runs_when_the_one_before_it_went_back() -> None:
    lanes = Lanes(in_order=False)
    lanes.choose(keyed("a0 a1 a2"), set())

    lanes.depart(["a", "unknown"], 0, 9.0)

    assert lanes.waiting == 1
    assert ready(lanes) == [["a1"]]
    assert lanes.release(["a"])
    assert ready(lanes) == [["a2"]]
    assert lanes.waiting == 0


def test_a_piece_that_is_alone_ready_holds_its_lane_after_the_one_before_it_went_back() -> None:
    lanes = Lanes(in_order=False)
    lanes.choose(keyed("a0 a1"), set())
    lanes.depart(["a"], 0, 9.0)

    assert lanes.choose(keyed("a2", 2), set()) is None

    assert ready(lanes) == [["a1"]]


def test_items_that_were_not_reached_and_have_no_source_to_wait_in_go_on_when_their_head_went_back() -> None:
    lanes = Lanes(in_order=True)
    lanes.choose(keyed("a0 a1 a2"), set())
    lanes.depart(["a"], 0, 9.0)

    lanes.put_back([Piece(["a1"], positions=[1], keys=["a"]), Piece(["a2"], positions=[2], keys=["a"])])

    assert ready(lanes) == [["a1", "a2"]]


def test_an_item_that_was_not_reached_goes_on_though_one_before_it_followed_their_head() -> None:
    lanes = Lanes(in_order=True, shed=lambda position, until: position if position == 1 else None)
    lanes.choose(keyed("a0 a1 a2"), set())
    lanes.depart(["a"], 0, 9.0)

    lanes.put_back([Piece(["a1"], positions=[1], keys=["a"]), Piece(["a2"], positions=[2], keys=["a"])])

    assert ready(lanes) == [["a2"]]


def test_the_caller_says_how_much_of_a_ready_piece_fits() -> None:
    lanes = Lanes(in_order=True)
    lanes.choose(keyed("a0 b0"), set())
    lanes.choose(keyed("a1 a2 a3 b1"), set())
    lanes.release(["a", "b"])

    taken = lanes.take_ready(9, set(), lambda taken, piece: 2)

    assert [piece.items for piece in taken] == [["a1", "a2"], ["b1"]]
    assert lanes.waiting_for("a") == 1


def test_items_that_were_not_reached_go_in_front_of_their_lane_in_order() -> None:
    lanes = Lanes(in_order=True)
    lanes.choose(keyed("a0 a1 a2 b0 b1"), set())
    lanes.choose(keyed("a3", 5), set())
    record = Record(alone=True)

    lanes.put_back([Piece(["a1"], positions=[1], keys=["a"], since=2.0), Piece(["a2"], positions=[2], keys=["a"])])
    lanes.put_back([Piece(["b1"], positions=[4], keys=["b"], record=record)])

    assert (lanes.waiting, lanes.waiting_for("a"), lanes.waiting_for("b"), lanes.peak) == (4, 3, 1, 4)
    lanes.release(["a", "b"])
    (first,) = lanes.take_ready(9, set())
    assert (first.items, first.listed(), first.since) == (["a1", "a2", "a3"], [1, 2, 5], 2.0)
    (second,) = lanes.take_ready(9, set())
    assert (second.items, second.record) == (["b1"], record)


# --- Against a model ---------------------------------------------------------------------------


@define
class Stage:
    """Workers that take batches as a stage does, ready pieces first; some items fail and are tried again."""

    lanes: Lanes
    rng: random.Random
    inbox: deque[Piece]
    max_size: int
    running: list[list[Piece]] = field(factory=list[list[Piece]])
    failed: list[list[Piece]] = field(factory=list[list[Piece]])
    away: list[Piece] = field(factory=list[Piece])
    """What was given back to the source."""
    effects: list[tuple[str, int]] = field(factory=list[tuple[str, int]])

    def run(self) -> None:
        for _ in range(20_000):
            if not self._step():
                return
        raise AssertionError("the items do not come to an end")

    def _step(self) -> bool:
        possible = [
            (self._begin, self.inbox or self.lanes.ready),
            (self._finish, self.running),
            (self._again, self.failed),
            (self._hand_out_again, self.away),
        ]
        moves = [move for move, has_work in possible if has_work]
        if not moves:
            return False
        self.rng.choice(moves)()
        self._check()
        return True

    def _begin(self) -> None:
        owned: set[str] = set()
        pieces = self.lanes.take_ready(self.max_size, owned)
        room = self.max_size - sum(len(piece.items) for piece in pieces)
        while room > 0 and self.inbox:
            piece = self.inbox.popleft()
            if len(piece.items) > room:
                self.inbox.appendleft(piece)
                piece = piece.split(room)
            chosen = self.lanes.choose(piece, owned)
            if chosen is not None:
                pieces.append(chosen)
                room -= len(chosen.items)
        if pieces:
            self.running.append(pieces)

    def _finish(self) -> None:
        """All of a key's items in a batch are done, or all of them are tried again."""
        batch = self.running.pop(self.rng.randrange(len(self.running)))
        items = [(key, item) for piece in batch for key, item in zip(piece.keys or (), piece.items, strict=True)]
        keys = list(dict.fromkeys(key for key, _ in items))
        for key in keys:
            ours = [item for other, item in items if other == key]
            assert self.lanes.in_order or len(ours) == 1
            if self.rng.random() < 0.3:
                positions = [int(str(item)) for item in ours]
                self.failed.append([Piece(ours, positions=positions, keys=[key] * len(ours))])
                self.lanes.block([key], 1.0)
            else:
                self.effects += [(key, int(str(item))) for item in ours]
                self.lanes.release([key])

    def _again(self) -> None:
        batch = self.failed.pop(self.rng.randrange(len(self.failed)))
        self.lanes.unblock(batch[0].keys or ())
        self.running.append(batch)

    def _hand_out_again(self) -> None:
        piece = self.away.pop(self.rng.randrange(len(self.away)))
        self.inbox.insert(self.rng.randint(0, len(self.inbox)), piece)

    def _check(self) -> None:
        holders = [
            key
            for batch in [*self.running, *self.failed, list(self.lanes.ready)]
            for key in {key for piece in batch for key in piece.keys or ()}
        ]
        assert len(holders) == len(set(holders)), "a key is in two batches"
        assert self.lanes.waiting == sum(self.lanes.waiting_for(key) for key in "abc")
        assert all(sum(len(piece.items) for piece in batch) <= self.max_size for batch in self.running)


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=40),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_any_run_keeps_the_order_of_each_key_and_one_batch_a_key(
    keys: list[str], max_size: int, in_order: bool, seed: int, sheds: bool
) -> None:
    rng = random.Random(seed)
    inbox: deque[Piece] = deque()

    def shed(position: int, until: float) -> Offset | None:
        stage.away.append(Piece([position], positions=[position], keys=[keys[position]]))
        return position

    lanes = Lanes(in_order=in_order)
    if sheds:
        lanes = Lanes(in_order=in_order, max_lane=2, max_waiting=3, shed=shed, offset=lambda position: position)
    stage = Stage(lanes, rng, inbox, max_size)
    start = 0
    while start < len(keys):
        stop = min(len(keys), start + rng.randint(1, 8))
        inbox.append(Piece(list(range(start, stop)), start, stop, keys=keys[start:stop]))
        start = stop

    stage.run()

    assert sorted(number for _, number in stage.effects) == list(range(len(keys)))
    for key in "abc":
        ours = [number for other, number in stage.effects if other == key]
        assert ours == sorted(ours)
    assert lanes.waiting == 0
    assert lanes.peak <= len(keys)
