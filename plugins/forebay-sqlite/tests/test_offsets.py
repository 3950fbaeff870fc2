"""`OffsetSet` against a plain set of numbers."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_sqlite import OffsetSet
from forebay_sqlite._offsets import compact, runs


def ranged(start: int, size: int) -> range:
    return range(start, start + size)


ranges = st.builds(ranged, st.integers(0, 60), st.integers(0, 12))
changes = st.lists(st.tuples(st.sampled_from(["add", "discard"]), ranges), max_size=40)


def applied(steps: list[tuple[str, range]]) -> tuple[OffsetSet, set[int]]:
    offsets, plain = OffsetSet(), set[int]()
    for step, numbers in steps:
        if step == "add":
            offsets.add(numbers)
            plain.update(numbers)
        else:
            offsets.discard(numbers)
            plain.difference_update(numbers)
    return offsets, plain


@given(changes)
def test_it_holds_what_a_set_holds(steps: list[tuple[str, range]]) -> None:
    offsets, plain = applied(steps)

    assert list(offsets) == sorted(plain)
    assert len(offsets) == len(plain)
    assert bool(offsets) == bool(plain)
    assert [n for n in range(-1, 80) if n in offsets] == sorted(plain)


@given(changes)
def test_its_ranges_neither_overlap_nor_touch(steps: list[tuple[str, range]]) -> None:
    offsets, _ = applied(steps)

    ranges = offsets.ranges

    assert all(ranges)
    assert all(before.stop < after.start for before, after in pairwise(ranges))


@given(changes, st.integers(0, 80))
def test_it_finds_the_next_that_is_in_and_the_next_that_is_not(steps: list[tuple[str, range]], start: int) -> None:
    offsets, plain = applied(steps)

    assert offsets.first_missing(start) == next(n for n in range(start, 200) if n not in plain)
    assert offsets.first_present(start) == next((n for n in range(start, 200) if n in plain), None)
    assert offsets.mark == next(n for n in range(200) if n not in plain)


@given(changes)
def test_sets_with_the_same_numbers_are_equal(steps: list[tuple[str, range]]) -> None:
    offsets, plain = applied(steps)

    assert offsets == OffsetSet(range(n, n + 1) for n in sorted(plain, reverse=True))
    assert offsets != OffsetSet([range(90, 91), *offsets.ranges])
    assert offsets != plain


@given(st.lists(st.integers(0, 50)))
def test_runs_cover_exactly_what_was_given(numbers: list[int]) -> None:
    found = runs(numbers)

    assert [n for one in found for n in one] == sorted(set(numbers))


def test_consecutive_offsets_become_a_range() -> None:
    assert compact([4, 5, 6]) == range(4, 7)
    assert compact([4, 6]) == [4, 6]
    assert compact([]) == []


@pytest.mark.parametrize("bad", [range(0, 10, 2), range(-1, 3)])
def test_a_range_that_is_no_range_of_offsets_is_refused(bad: range) -> None:
    with pytest.raises(ValueError, match="offsets must"):
        OffsetSet().add(bad)
