"""Sets of whole numbers as ranges."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator


class Ranges:
    """A set of whole numbers as sorted, disjoint, half-open ranges."""

    __slots__ = ("starts", "stops")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.stops: list[int] = []

    def add(self, start: int, stop: int) -> int:
        """Add *start* to *stop* (exclusive, above *start*); return how many of them were new."""
        if self.add_new(start, stop):
            return stop - start
        new = list(self.missing(start, stop))
        for new_start, new_stop in new:
            self.add_new(new_start, new_stop)
        return sum(new_stop - new_start for new_start, new_stop in new)

    def add_new(self, start: int, stop: int) -> bool:
        """Add *start* to *stop* if none of them is in the set; return whether they were added."""
        starts, stops = self.starts, self.stops
        if stops and start == stops[-1]:  # in order: the usual case
            stops[-1] = stop
            return True
        index = bisect_right(stops, start)  # the first range that ends behind `start`
        if index < len(starts) and starts[index] < stop:
            return False
        low, high = index, index
        if index and stops[index - 1] == start:
            low, start = index - 1, starts[index - 1]
        if index < len(starts) and starts[index] == stop:
            high, stop = index + 1, stops[index]
        starts[low:high] = [start]
        stops[low:high] = [stop]
        return True

    def missing(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of *start* to *stop* that are not in the set, ascending."""
        for known_start, known_stop in zip(self.starts, self.stops, strict=True):
            if known_stop <= start:
                continue
            if known_start >= stop:
                break
            if known_start > start:
                yield start, known_start
            start = max(start, known_stop)
        if start < stop:
            yield start, stop

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self.starts, number) - 1
        return index >= 0 and number < self.stops[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts, self.stops, strict=True)

    def first_missing(self, start: int) -> int:
        """Return the smallest number from *start* on that is not in the set."""
        index = bisect_right(self.starts, start) - 1
        return self.stops[index] if index >= 0 and start < self.stops[index] else start
