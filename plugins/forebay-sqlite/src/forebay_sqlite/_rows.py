"""Reads numbered rows on from where a run ended, leaving out those that are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Generic, TypeVar

from forebay_sqlite._offsets import OffsetSet

T = TypeVar("T")


class Rows(Generic[T]):
    """Rows from the first that is not done on, read when they are asked for.

    What was read before the reading failed is handed out first; then every call raises the failure.
    """

    def __init__(self, read: Callable[[int], Iterable[T]], done: OffsetSet, weigh: Callable[[T], int] | None) -> None:
        self._read = read
        self._done = done
        self._weigh = weigh
        self._next = done.mark
        self._source: Iterator[T] | None = None
        self._numbers: deque[range] = deque()
        self._ahead: deque[T] = deque()
        self._ended = False
        self._failure: Exception | None = None

    @property
    def at_end(self) -> bool:
        """Whether everything has been handed out."""
        return self._ended and not self._ahead and self._failure is None

    def size(self, row: T) -> int:
        """Return the size of *row* in bytes; 0 without a scale."""
        return 0 if self._weigh is None else self._weigh(row)

    def fill(self, count: int) -> None:
        """Read until *count* rows are ahead, or the end; may run in a thread."""
        while not self._ended and (wanted := count - len(self._ahead)) > 0:
            try:
                self._advance(wanted)
            except Exception as failure:  # raised by `take`, once the rows before it are out
                self._failure = failure
                self._ended = True

    def take(self, max_items: int, max_bytes: int | None) -> tuple[Sequence[int], list[T], list[int] | None]:
        """Return offsets, rows, and their sizes if there is a scale, out of what is ahead."""
        if not self._ahead and self._failure is not None:
            raise self._failure
        rows = list(islice(self._ahead, max_items))
        sizes = None if self._weigh is None else [self._weigh(row) for row in rows]
        if sizes is not None and max_bytes is not None:
            fitting = _fitting(sizes, max_bytes)
            rows, sizes = rows[:fitting], sizes[:fitting]
        for _ in rows:
            self._ahead.popleft()
        return self._numbered(len(rows)), rows, sizes

    def _advance(self, wanted: int) -> None:
        if self._source is None:
            self._source = iter(self._read(self._next))
        free = self._done.first_missing(self._next)
        if free > self._next:
            skipped = sum(1 for _ in islice(self._source, free - self._next))
            self._ended = skipped < free - self._next
            self._next = free
            return
        done_from = self._done.first_present(self._next)
        count = wanted if done_from is None else min(wanted, done_from - self._next)
        before = len(self._ahead)
        try:
            self._ahead.extend(islice(self._source, count))
        finally:  # rows that came before a failure are in and have their numbers
            got = len(self._ahead) - before
            if got:
                self._numbers.append(range(self._next, self._next + got))
            self._next += got
        self._ended = got < count

    def _numbered(self, count: int) -> Sequence[int]:
        """Take *count* numbers off, as one range where they are consecutive."""
        parts: list[range] = []
        while count:
            first = self._numbers.popleft()
            if len(first) > count:
                self._numbers.appendleft(range(first.start + count, first.stop))
                first = range(first.start, first.start + count)
            count -= len(first)
            if parts and parts[-1].stop == first.start:
                parts[-1] = range(parts[-1].start, first.stop)
            else:
                parts.append(first)
        return parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))


def _fitting(sizes: Sequence[int], max_bytes: int) -> int:
    """Return how many of the first rows fit; one that is too large comes alone."""
    total = 0
    for index, size in enumerate(sizes):
        total += size
        if total > max_bytes:
            return max(1, index)
    return len(sizes)
