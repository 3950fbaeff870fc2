"""Reading on from where a run ended."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay_sqlite import OffsetSet
from forebay_sqlite._rows import Rows


def ranged(start: int, size: int) -> range:
    return range(start, start + size)


def numbers(count: int) -> Callable[[int], range]:
    return lambda start: range(start, count)


def drained(rows: Rows[int], size: int) -> tuple[list[int], list[int]]:
    offsets, items = list[int](), list[int]()
    while not rows.at_end:
        rows.fill(size)
        some, found, _ = rows.take(size, None)
        assert len(some) == len(found) <= size
        offsets += some
        items += found
    return offsets, items


@given(
    st.integers(0, 60),
    st.lists(st.builds(ranged, st.integers(0, 70), st.integers(0, 20))),
    st.integers(1, 30),
)
def test_rows_that_are_not_done_come_once_in_order_and_under_their_numbers(
    count: int, done: list[range], size: int
) -> None:
    rows = Rows(numbers(count), OffsetSet(done), None)

    offsets, items = drained(rows, size)

    assert offsets == items == [n for n in range(count) if n not in OffsetSet(done)]


def test_reading_starts_at_the_mark() -> None:
    started: list[int] = []

    def read(start: int) -> range:
        started.append(start)
        return range(start, 10)

    rows = Rows(read, OffsetSet([range(4), range(6, 7)]), None)

    assert drained(rows, 100)[1] == [4, 5, 7, 8, 9]
    assert started == [4]


def test_consecutive_rows_come_with_a_range() -> None:
    rows = Rows(numbers(10), OffsetSet([range(3)]), None)
    rows.fill(5)

    assert rows.take(4, None)[0] == range(3, 7)


def test_rows_before_a_failure_come_first() -> None:
    def read(start: int) -> Iterator[int]:
        yield from range(start, 3)
        raise OSError("truncated")

    rows = Rows(read, OffsetSet(), None)
    rows.fill(10)

    assert rows.take(2, None)[1] == [0, 1]
    assert rows.take(2, None)[1] == [2]
    for _ in range(2):
        rows.fill(10)
        with pytest.raises(OSError, match="truncated"):
            rows.take(2, None)
    assert not rows.at_end


def test_a_reader_that_cannot_start_says_why() -> None:
    def read(start: int) -> Iterator[int]:
        raise FileNotFoundError("orders.csv")

    rows = Rows(read, OffsetSet(), None)
    rows.fill(1)

    with pytest.raises(FileNotFoundError, match=r"orders\.csv"):
        rows.take(1, None)


def test_bytes_are_counted_where_there_is_a_scale() -> None:
    texts = ["aa", "bb", "cccccccc", "d"]
    rows = Rows(lambda start: texts[start:], OffsetSet(), len)

    taken = list[tuple[list[str], list[int] | None]]()
    while not rows.at_end:
        rows.fill(10)
        _, found, sizes = rows.take(10, 4)
        taken.append((found, sizes))

    assert taken == [(["aa", "bb"], [2, 2]), (["cccccccc"], [8]), (["d"], [1])]
