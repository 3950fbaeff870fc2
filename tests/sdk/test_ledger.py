from collections.abc import Sequence
from itertools import pairwise

import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st

from forebay._account import FeedLedger, Hold
from forebay._ledger import Ledger, LedgerStatistics, given_back
from forebay._ranges import Ranges
from forebay._types import Chunk, Deliveries, Offset, Redelivery, Settlement


@define
class Book:
    """A ledger that notes what it is called back with."""

    leaves: int = 1
    finals: list[int] = field(factory=list[int])
    empties: int = 0
    ledger: Ledger = field(init=False)
    feed: FeedLedger = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.ledger = Ledger(self.leaves, on_final=self._final, on_empty=self._empty)
        self.feed = FeedLedger("orders")

    def _final(self, hold: Hold, count: int) -> None:
        self.finals.append(count)

    def _empty(self) -> None:
        self.empties += 1

    def fetch(self, offsets: Sequence[Offset], *, partition: int = 0, epoch: int = 0) -> Hold:
        chunk: Chunk[object] = Chunk(list(offsets), offsets, partition, epoch)
        return self.ledger.register(len(offsets), self.feed, 0.0, chunk)

    def reading(self) -> dict[str, int]:
        """Return what is not 0."""
        reading = self.ledger.statistics()
        names = ("in_hand", "done", "filtered", "dead", "dropped", "redelivered", "lost", "settled_twice")
        return {name: getattr(reading, name) for name in names if getattr(reading, name)}


# --- Ranges ------------------------------------------------------------------------------------

spans = st.tuples(st.integers(0, 40), st.integers(1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(st.tuples(spans, st.booleans()), max_size=30), spans)
def test_ranges_are_a_set_of_numbers(added: list[tuple[tuple[int, int], bool]], asked: tuple[int, int]) -> None:
    ranges = Ranges()
    model: set[int] = set()

    for (start, stop), only_new in added:
        new = set(range(start, stop)) - model
        if only_new:
            assert ranges.add_new(start, stop) == (len(new) == stop - start)
            model |= new if len(new) == stop - start else set()
        else:
            assert ranges.add(start, stop) == len(new)
            model |= new

    parts = list(ranges)
    assert {number for start, stop in parts for number in range(start, stop)} == model
    assert all(start < stop for start, stop in parts)
    assert all(stop < next_start for (_, stop), (next_start, _) in pairwise(parts))
    missing = list(ranges.missing(*asked))
    assert [number for a, b in missing for number in range(a, b)] == sorted(set(range(*asked)) - model)
    assert ranges.first_missing(asked[0]) == min(set(range(asked[0], 100)) - model)
    assert all((number in ranges) == (number in model) for number in range(60))


# --- Holds -------------------------------------------------------------------------------------


def test_a_hold_knows_what_the_source_said_of_each_item() -> None:
    book = Book()
    chunk: Chunk[object] = Chunk(
        ["a", "b"], ["7-0", "7-1"], deliveries=[1, 4], failures=[0, 2], maybe_done=[False, True]
    )
    book.fetch(range(10))
    hold = book.ledger.register(2, book.feed, 0.0, chunk)

    assert [hold.offset(position) for position in (10, 11)] == ["7-0", "7-1"]
    assert hold.offsets(11, 12) == ["7-1"]
    assert [hold.deliveries(position) for position in (10, 11)] == [1, 4]
    assert [hold.failures(position) for position in (10, 11)] == [0, 2]
    assert [hold.maybe_done(position) for position in (10, 11)] == [False, True]


def test_one_figure_for_all_items_of_a_chunk_will_do() -> None:
    book = Book()
    hold = book.ledger.register(2, book.feed, 0.0, Chunk([1, 2], range(2), deliveries=3, failures=1, maybe_done=True))

    assert (hold.deliveries(1), hold.failures(1), hold.maybe_done(1)) == (3, 1, True)


def test_items_of_a_source_without_offsets_are_counted() -> None:
    book = Book()
    other = FeedLedger("lines")
    book.ledger.register(3, other, 0.0)
    book.fetch(range(5))
    hold = book.ledger.register(2, other, 0.0)

    assert hold.offset(hold.base + 1) == 4
    assert hold.offsets(hold.base, hold.stop) == range(3, 5)
    assert (hold.deliveries(hold.base), hold.failures(hold.base), hold.maybe_done(hold.base)) == (1, 0, False)


# --- Settling ----------------------------------------------------------------------------------


def test_a_chunk_that_is_done_at_once_leaves_nothing_in_hand() -> None:
    book = Book()
    hold = book.fetch(range(100, 110))

    book.ledger.settle(hold.base, hold.stop)

    assert book.ledger.statistics() == LedgerStatistics(
        seen=10, in_hand=0, done=10, filtered=0, dead=0, dropped=0, redelivered=0, lost=0, settled_twice=0
    )
    assert (book.finals, book.empties, list(book.ledger.holds())) == ([10], 1, [])


def test_a_range_may_go_over_several_chunks() -> None:
    book = Book()
    for start in (0, 10, 20):
        book.fetch(range(start, start + 5))

    book.ledger.settle(3, 12)

    assert book.finals == [2, 5, 2]
    assert book.reading() == {"in_hand": 6, "done": 9}
    assert [hold.base for hold in book.ledger.holds()] == [0, 10]


def test_the_first_outcome_of_an_item_is_kept_and_later_ones_are_counted_and_ignored() -> None:
    book = Book()
    book.fetch(range(4))
    book.ledger.settle(1, 2, verdict="dead")

    book.ledger.settle(0, 3)

    assert book.reading() == {"in_hand": 1, "done": 2, "dead": 1, "settled_twice": 1}
    assert book.feed.unsent == 3
    assert sorted(book.feed.statement()[0].offsets, key=str) == [0, 1, 2]


def test_outcomes_for_chunks_that_are_closed_or_unknown_are_counted_and_ignored() -> None:
    book = Book()
    for start in (0, 10, 20):
        book.fetch(range(start, start + 2))
    book.ledger.settle(0, 4)

    book.ledger.settle(0, 5)
    book.ledger.settle(5, 6)
    book.ledger.settle(0, 2)

    assert book.reading() == {"done": 6, "settled_twice": 6}
    assert book.empties == 1
    assert book.feed.unsent == 6


@pytest.mark.parametrize("verdict", ["lost", "redelivered"])
def test_the_source_is_not_told_of_an_item_that_left_however_late_its_outcome_comes(verdict: str) -> None:
    book = Book()
    book.fetch(range(4))
    book.ledger.settle(1, 2, verdict=verdict)

    book.ledger.settle(0, 3)

    assert sorted(book.feed.statement()[0].offsets, key=str) == [0, 2]
    assert sum(book.finals) == 3
    assert book.reading() == {"in_hand": 1, "done": 2, verdict: 1, "settled_twice": 1}


def test_a_list_of_positions_is_settled_in_ranges_whatever_its_order() -> None:
    book = Book()
    book.fetch(range(10))

    book.ledger.settle_list([7, 2, 3, 1, 8, 5])
    book.ledger.settle_list([])

    assert book.finals == [3, 1, 2]
    assert book.reading() == {"in_hand": 4, "done": 6}


def test_a_parent_without_a_counter_is_settled_once_for_all_children_in_a_list() -> None:
    book = Book()
    book.fetch(range(3))

    book.ledger.settle_list([0, 0, 0, 1, 2, 2])

    assert book.reading() == {"done": 3}


def test_a_parent_with_a_counter_is_settled_with_its_last_child() -> None:
    book = Book()
    book.fetch(range(2))
    book.ledger.children[0][0] = 3

    book.ledger.settle_list([0, 1])
    assert book.reading() == {"in_hand": 1, "done": 1}
    book.ledger.settle_list([0])
    assert book.reading() == {"in_hand": 1, "done": 1}
    book.ledger.settle_list([0], verdict="filtered")

    assert book.reading() == {"done": 1, "filtered": 1}
    assert book.ledger.children == [{}]


def test_what_was_counted_as_done_can_be_counted_otherwise() -> None:
    book = Book()
    book.fetch(range(5))
    book.ledger.settle(0, 5)

    book.ledger.recount("filtered", 2)

    assert book.reading() == {"done": 3, "filtered": 2}


def test_an_item_is_open_until_it_is_final() -> None:
    book = Book()
    assert not book.ledger.is_open(0)
    book.fetch(range(3))
    book.fetch(range(3, 6))
    book.fetch(range(6, 9))
    book.ledger.settle(1, 7)

    assert [position for position in range(-1, 12) if book.ledger.is_open(position)] == [0, 7, 8]


def test_the_span_goes_from_the_oldest_open_item_to_the_newest() -> None:
    book = Book()
    assert book.ledger.span() == 0
    book.fetch(range(10))
    assert book.ledger.span() == 10
    book.ledger.settle(0, 4)
    book.ledger.settle(6, 9)
    assert book.ledger.span() == 6
    book.fetch(range(10, 15))
    assert book.ledger.span() == 11
    book.ledger.settle(4, 10)
    assert book.ledger.span() == 5


@given(st.permutations(range(24)), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_items_settle_in_any_order(order: list[int], sizes: list[int]) -> None:
    book = Book()
    for start in range(0, 24, 4):
        book.fetch(range(start, start + 4))
    left = list(order)

    while left:
        count = sizes[len(left) % len(sizes)]
        batch, left = left[:count], left[count:]
        book.ledger.settle_list(batch)
        open_ones = [position for position in range(24) if book.ledger.is_open(position)]
        assert open_ones == sorted(left)
        assert book.ledger.in_hand == len(left)

    assert book.empties == 1
    assert book.feed.unsent == sum(book.finals) == 24
    (settlement,) = book.feed.statement()
    assert sorted(settlement.offsets, key=int) == list(range(24))
    assert settlement.mark == 24


def test_the_chunk_of_an_item_is_known_while_it_is_in_hand_and_after_it_was_lost_while_it_ran() -> None:
    book = Book()
    first, second = book.fetch(range(3)), book.fetch(range(3, 6))
    assert [book.ledger.hold(position) for position in range(6)] == [first] * 3 + [second] * 3

    book.ledger.lost_holds[1] = first
    book.ledger.settle(0, 3, verdict="lost")

    assert book.ledger.hold(1) is first
    assert book.ledger.hold(4) is second


# --- What the source is told -------------------------------------------------------------------


def test_a_statement_names_what_is_final_as_a_range() -> None:
    book = Book()
    book.fetch(range(100, 110))
    book.fetch(range(110, 120))

    book.ledger.settle(0, 20)

    assert book.feed.statement() == [Settlement(range(100, 120), 0, 0, 120)]


def test_a_statement_falls_back_to_a_list_where_offsets_are_not_consecutive() -> None:
    book = Book()
    book.fetch(range(100, 105))
    book.fetch(["x-1", "x-2"], partition=3, epoch=7)

    book.ledger.settle(0, 2)
    book.ledger.settle(3, 4)
    book.ledger.settle(5, 7)

    assert book.feed.statement() == [Settlement([100, 101, 103], 0, 0, 102), Settlement(["x-1", "x-2"], 3, 7, None)]


def test_partitions_and_epochs_have_statements_of_their_own() -> None:
    book = Book()
    book.fetch(range(3), partition=1, epoch=1)
    book.fetch(range(3), partition=2, epoch=1)
    book.fetch(range(3, 6), partition=1, epoch=2)

    book.ledger.settle(0, 9)

    assert book.feed.statement() == [
        Settlement(range(3), 1, 1, 6),
        Settlement(range(3), 2, 1, 3),
        Settlement(range(3, 6), 1, 2, 6),
    ]


def test_a_statement_that_was_not_taken_is_made_again_with_what_came_since() -> None:
    book = Book()
    book.fetch(range(6))
    book.ledger.settle(0, 2)
    assert book.feed.statement()[0].offsets == range(2)
    assert book.feed.statement()[0].offsets == range(2)

    book.ledger.settle(2, 4)
    assert book.feed.statement()[0].offsets == range(4)
    book.ledger.settle(4, 5)
    book.feed.told()

    assert book.feed.unsent == 1
    assert book.feed.statement() == [Settlement(range(4, 5), 0, 0, 5)]
    book.feed.told()
    assert book.feed.statement() == []
    assert book.feed.unsent == 0


def test_a_redelivery_is_part_of_the_statement_until_it_was_taken() -> None:
    book = Book()
    book.fetch(range(3), epoch=4)
    redelivery = Redelivery(1, failures=2, after=30.0, epoch=4)

    book.feed.redeliver(redelivery)
    book.ledger.settle(1, 2, verdict="redelivered")

    assert book.feed.statement() == [Settlement([], 0, 4, 0, (redelivery,))]
    book.ledger.settle(0, 1)
    assert book.feed.statement() == [Settlement(range(1), 0, 4, 1, (redelivery,))]
    assert book.feed.unsent == 2
    book.feed.told()
    assert (book.feed.unsent, book.feed.statement()) == (0, [])


def test_a_plain_iterable_is_told_nothing() -> None:
    book = Book()
    book.ledger.register(3, book.feed, 0.0)

    book.ledger.settle(0, 3)

    assert (book.feed.unsent, book.feed.statement()) == (0, [])
    assert book.finals == [3]


def test_the_mark_waits_for_an_item_that_went_back_until_it_came_again_and_was_done() -> None:
    book = Book()
    book.fetch(range(5))
    book.feed.redeliver(Redelivery(2, failures=1))
    book.ledger.settle(2, 3, verdict="redelivered")
    book.ledger.settle(0, 5)
    assert book.feed.statement()[0].mark == 2

    book.fetch([2])
    book.ledger.settle(4, 4)
    assert book.feed.statement()[0].mark == 2
    book.ledger.settle(5, 6)

    assert book.feed.statement()[0].mark == 5


def test_an_item_with_an_engines_own_id_goes_back_without_a_mark() -> None:
    book = Book()
    book.fetch(["a", "b"])
    book.feed.redeliver(Redelivery("a", failures=1))
    book.ledger.settle(0, 1, verdict="redelivered")

    book.ledger.settle(1, 2)

    (settlement,) = book.feed.statement()
    assert (settlement.offsets, settlement.mark) == (["b"], None)


def test_an_item_with_an_engines_own_id_that_another_member_has_holds_no_mark() -> None:
    book = Book()
    book.fetch(["a", "b"])
    book.feed.keep_mark(0, "a")
    book.ledger.settle(0, 1, verdict="lost")

    book.ledger.settle(1, 2)

    (settlement,) = book.feed.statement()
    assert (settlement.offsets, settlement.mark) == (["b"], None)


def test_the_mark_does_not_pass_an_open_offset_of_a_chunk_that_is_not_sorted() -> None:
    book = Book()
    book.fetch([5, 2, 7])

    book.ledger.settle(2, 3)
    assert book.feed.statement()[0].mark == 2
    book.ledger.settle(0, 1)
    assert book.feed.statement()[0].mark == 2
    book.ledger.settle(1, 2)

    assert book.feed.statement()[0].mark == 8


# --- Branches ----------------------------------------------------------------------------------


def test_an_item_is_final_when_all_branches_have_settled_it() -> None:
    book = Book(leaves=3)
    book.fetch(range(6))

    book.ledger.settle(0, 6, 0)
    book.ledger.settle(2, 4, 1)
    assert book.reading() == {"in_hand": 6}
    book.ledger.settle(1, 6, 2)
    assert book.reading() == {"in_hand": 4, "done": 2}
    book.ledger.settle(0, 2, 1)
    book.ledger.settle(4, 6, 1)
    book.ledger.settle(0, 1, 2)

    assert book.reading() == {"done": 6}
    assert book.empties == 1


@pytest.mark.parametrize(
    ("verdicts", "counted"),
    [
        (("done", "dead"), "dead"),
        (("dead", "done"), "dead"),
        (("dropped", "done"), "dropped"),
        (("dropped", "dead"), "dead"),
        (("dead", "dropped"), "dead"),
        (("filtered", "done"), "done"),
    ],
)
def test_an_item_that_fared_badly_in_one_branch_is_counted_so_when_all_have_it(
    verdicts: tuple[str, str], counted: str
) -> None:
    book = Book(leaves=2)
    book.fetch(range(5))

    for leaf, verdict in enumerate(verdicts):
        book.ledger.settle(2, 3, leaf, verdict)
        book.ledger.settle(0, 2, leaf)
        book.ledger.settle(3, 5, leaf)

    expected = {"done": 5} if counted == "done" else {"done": 4, counted: 1}
    assert book.reading() == expected
    assert sorted(book.feed.statement()[0].offsets, key=int) == list(range(5))


def test_a_range_with_a_dead_letter_inside_is_settled_around_it() -> None:
    book = Book(leaves=2)
    book.fetch(range(5))
    for position in (0, 2, 4):
        book.ledger.settle(position, position + 1, 0, "dead")
    book.ledger.settle(1, 2, 0)
    book.ledger.settle(3, 4, 0)

    book.ledger.settle(0, 5, 1)

    assert book.reading() == {"done": 2, "dead": 3}


def test_an_outcome_that_comes_twice_in_one_branch_is_counted_and_ignored() -> None:
    book = Book(leaves=2)
    book.fetch(range(3))

    book.ledger.settle(0, 2, 0)
    book.ledger.settle(1, 3, 0)

    assert book.reading() == {"in_hand": 3, "settled_twice": 1}


@pytest.mark.parametrize("verdict", ["lost", "redelivered"])
@pytest.mark.parametrize("before", ["done", "dead", None])
def test_an_item_that_leaves_in_one_branch_has_left_in_all(verdict: str, before: str | None) -> None:
    book = Book(leaves=2)
    book.fetch(range(3))
    if before is not None:
        book.ledger.settle(1, 2, 0, before)

    book.ledger.settle(1, 2, 1 if verdict == "redelivered" else 0, verdict)

    assert book.reading() == {"in_hand": 2, verdict: 1}
    assert not book.ledger.is_open(1)
    assert book.feed.unsent == 0
    book.ledger.settle(0, 3, 1)
    book.ledger.settle(0, 3, 0)
    assert book.ledger.counts == {"done": 2, "filtered": 0, "dead": 0, "dropped": 0, "redelivered": 0, "lost": 0} | {
        verdict: 1
    }
    assert sorted(book.feed.statement()[0].offsets, key=int) == [0, 2]
    assert book.empties == 1


def test_late_outcomes_after_the_last_item_of_a_chunk_left_are_ignored() -> None:
    book = Book(leaves=2)
    book.fetch(range(3))
    book.ledger.settle(0, 1, 0)
    book.ledger.settle(2, 3, 0, "redelivered")
    book.ledger.settle(1, 2, 1, "redelivered")

    book.ledger.settle(0, 3, 1)

    assert book.reading() == {"done": 1, "redelivered": 2, "settled_twice": 2}


@given(
    st.lists(
        st.tuples(
            spans,
            st.integers(0, 2),
            st.sampled_from(["done", "done", "filtered", "dead", "dropped", "lost", "redelivered"]),
        ),
        max_size=40,
    )
)
def test_branches_against_a_model(steps: list[tuple[tuple[int, int], int, str]]) -> None:
    book = Book(leaves=3)
    for start in range(0, 48, 8):
        book.fetch(range(start, start + 8))
    seen: dict[int, dict[int, str]] = {position: {} for position in range(48)}
    final: dict[int, str] = {}
    twice = 0

    for (start, stop), leaf, verdict in steps:
        book.ledger.settle(start, stop, leaf, verdict)
        for position in range(start, stop):
            if position in final:
                twice += 1
            elif verdict in ("lost", "redelivered"):
                final[position] = verdict
            elif leaf in seen[position]:
                twice += 1
            else:
                seen[position][leaf] = verdict
                if len(seen[position]) == 3:
                    verdicts = set(seen[position].values())
                    final[position] = next((v for v in ("dead", "dropped") if v in verdicts), "done")

        assert {position for position in range(48) if not book.ledger.is_open(position)} == set(final)
        counts = {verdict: list(final.values()).count(verdict) for verdict in book.ledger.counts}
        assert (book.ledger.counts, book.ledger.settled_twice) == (counts, twice)

    told = [offset for settlement in book.feed.statement() for offset in settlement.offsets]
    assert sorted(told, key=int) == [p for p in range(48) if final.get(p, "lost") not in ("lost", "redelivered")]
    assert sum(book.finals) == len(final)


# --- Giving back -------------------------------------------------------------------------------


def test_what_is_not_final_goes_back_and_what_was_running_is_marked() -> None:
    book = Book()
    lines = FeedLedger("lines")
    other = FeedLedger("other")
    book.fetch(range(100, 110), partition=1, epoch=2)
    book.ledger.register(5, lines, 0.0)
    book.ledger.register(2, other, 0.0, Chunk(["x", "y"], ["x-1", "x-2"]))
    book.ledger.settle(2, 4)
    book.ledger.settle(9, 10)
    running = Ranges()
    running.add(5, 7)
    running.add(11, 12)
    running.add(16, 17)

    back = given_back(book.ledger.holds(), running)

    assert back == {
        book.feed: [
            Deliveries(range(100, 102), 1, 2),
            Deliveries(range(104, 105), 1, 2),
            Deliveries(range(107, 109), 1, 2),
            Deliveries(range(105, 107), 1, 2, maybe_done=True),
        ],
        other: [Deliveries(["x-1"]), Deliveries(["x-2"], maybe_done=True)],
    }


@given(st.lists(spans, max_size=8), st.lists(spans, max_size=8))
def test_all_that_is_open_goes_back_exactly_once(done: list[tuple[int, int]], runs: list[tuple[int, int]]) -> None:
    book = Book()
    for start in range(0, 48, 6):
        book.fetch(range(start, start + 6))
    running = Ranges()
    for start, stop in runs:
        running.add(start, stop)
    for start, stop in done:
        book.ledger.settle(start, stop)
    open_ones = {position for position in range(48) if book.ledger.is_open(position)}

    back = given_back(book.ledger.holds(), running).get(book.feed, [])

    calm = [offset for deliveries in back if not deliveries.maybe_done for offset in deliveries.offsets]
    cut = [offset for deliveries in back if deliveries.maybe_done for offset in deliveries.offsets]
    at_work = {number for start, stop in running for number in range(start, stop)}
    assert sorted(calm, key=int) == sorted(open_ones - at_work)
    assert sorted(cut, key=int) == sorted(open_ones & at_work)
