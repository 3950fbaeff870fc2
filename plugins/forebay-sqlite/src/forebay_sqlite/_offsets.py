"""A set of offsets that is small where they are consecutive."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence


class OffsetSet:
    """Offsets as sorted ranges that neither overlap nor touch.

    Costs memory for each gap, not for each offset. Not safe to change from two threads at once.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, ranges: Iterable[range] = (), /) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for one in ranges:
            self.add(one)

    def add(self, offsets: range, /) -> None:
        """Add *offsets*, a range with step 1.

        Raises:
            ValueError: the step is another, or the range begins below 0.
        """
        start, stop = _bounds(offsets)
        if start >= stop:
            return
        first = bisect_left(
            self._stops, start
        )  # the first range that ends at or behind start: it touches or lies behind
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def discard(self, offsets: range, /) -> None:
        """Take *offsets* out, as far as they are in."""
        start, stop = _bounds(offsets)
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if start >= stop or first >= last:
            return
        kept = [(self._starts[first], start), (stop, self._stops[last - 1])]
        kept = [(low, high) for low, high in kept if low < high]
        self._starts[first:last] = [low for low, _ in kept]
        self._stops[first:last] = [high for _, high in kept]

    def __contains__(self, offset: object, /) -> bool:
        if not isinstance(offset, int):
            return False
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and offset < self._stops[index]

    def first_missing(self, offset: int, /) -> int:
        """Return the first offset from *offset* on that is not in."""
        index = bisect_right(self._starts, offset) - 1
        return self._stops[index] if index >= 0 and offset < self._stops[index] else offset

    def first_present(self, offset: int, /) -> int | None:
        """Return the first offset from *offset* on that is in, or `None` where there is none."""
        index = bisect_right(self._stops, offset)
        return max(offset, self._starts[index]) if index < len(self._starts) else None

    @property
    def mark(self) -> int:
        """The largest number below which every offset from 0 on is in."""
        return self.first_missing(0)

    @property
    def ranges(self) -> list[range]:
        """The ranges, ascending."""
        return [range(start, stop) for start, stop in zip(self._starts, self._stops, strict=True)]

    def __iter__(self) -> Iterator[int]:
        for one in self.ranges:
            yield from one

    def __len__(self) -> int:
        return sum(self._stops) - sum(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object, /) -> bool:
        if not isinstance(other, OffsetSet):
            return NotImplemented
        return self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]  # a set that changes has no hash, like `set`

    def __repr__(self) -> str:
        return f"OffsetSet({self.ranges!r})"


def _bounds(offsets: range) -> tuple[int, int]:
    if offsets.step != 1:
        raise ValueError(f"offsets must be a range with step 1, not {offsets!r}")
    if offsets and offsets.start < 0:
        raise ValueError(f"offsets must not be below 0, as in {offsets!r}")
    return offsets.start, offsets.stop


def runs(offsets: Sequence[int], /) -> list[range]:
    """Return *offsets*, in any order and as often as they like, as ascending ranges."""
    if isinstance(offsets, range) and offsets.step == 1:
        return [offsets] if offsets else []
    found: list[range] = []
    for offset in sorted(set(offsets)):
        if found and found[-1].stop == offset:
            found[-1] = range(found[-1].start, offset + 1)
        else:
            found.append(range(offset, offset + 1))
    return found


def compact(offsets: Sequence[int], /) -> Sequence[int]:
    """Return ascending *offsets* as a range where they are consecutive, else as they are."""
    if offsets and offsets[-1] - offsets[0] + 1 == len(offsets):
        return range(offsets[0], offsets[-1] + 1)
    return offsets
