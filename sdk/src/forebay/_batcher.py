"""Gathers items into batches by count, age and bytes, and keeps track of what each item stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Self

from attrs import define

from forebay._buffer import Part
from forebay._ledger import Ledger


@define
class Record:
    """What is remembered of an item that has failed; an item that has not failed has none."""

    failures: int = 0
    maybe_done: bool = False
    delay: float | None = None
    """The last wait before another attempt, in seconds."""
    first_failed_at: float = 0.0
    """Unix time."""
    alone: bool = False
    """Whether the item has to be the only one of its batch."""


class Piece(Part[object]):
    """Items on their way, and which positions of the ledger they stand for.

    Two forms. A *span* stands for the positions from `start` to `stop`, one an item, but for the `holes`:
    positions whose items were filtered out, which become final together with the span.
    A *list* names the position of each item; children of one parent repeat the parent's.
    Lists are never changed in place once a piece has been sent on: branches share them.
    """

    __slots__ = ("family", "holes", "keys", "positions", "record", "since", "start", "stop")

    def __init__(
        self,
        items: list[object],
        start: int = 0,
        stop: int = 0,
        positions: list[int] | None = None,
        keys: list[str] | None = None,
        record: Record | None = None,
        since: float = 0.0,
        holes: list[int] | None = None,
        family: Family | None = None,
    ) -> None:
        self.items = items
        self.start = start
        self.stop = stop
        self.positions = positions
        self.keys = keys
        self.record = record
        self.since = since
        self.holes: list[int] | None = holes
        self.family = family  # set where several items may stand for one position

    def like(self, items: list[object]) -> Piece:
        """Return a piece of *items*, one for each of this one's, that stands for the same positions."""
        return Piece(items, self.start, self.stop, self.positions, self.keys, None, 0.0, self.holes, self.family)

    def position(self, index: int) -> int:
        """Return the position of the item at *index*."""
        if self.positions is not None:
            return self.positions[index]
        position = self.start + index
        for hole in self.holes or ():
            if hole > position:
                break
            position += 1
        return position

    def listed(self) -> list[int]:
        """Return the position of every item."""
        if self.positions is not None:
            return self.positions
        if not self.holes:
            return list(range(self.start, self.stop))
        holes = set(self.holes)
        return [position for position in range(self.start, self.stop) if position not in holes]

    def key(self, index: int) -> str | None:
        """Return the ordering key of the item at *index*."""
        return None if self.keys is None else self.keys[index]

    def split(self, count: int) -> Self:
        """Remove the first *count* items (fewer than there are, may be 0) and return them as a piece."""
        head = type(self)(self.items[:count], record=self.record, since=self.since, family=self.family)
        self.items = self.items[count:]
        if self.keys is not None:
            head.keys, self.keys = self.keys[:count], self.keys[count:]
        if self.positions is not None:
            head.positions, self.positions = self.positions[:count], self.positions[count:]
            if self.family is not None:
                self.family.parted(head.positions, self.positions)
            return head
        border = self.start + count
        if self.holes:
            border = _border(self.start, count, self.holes)
            head.holes = [hole for hole in self.holes if hole < border] or None
            self.holes = [hole for hole in self.holes if hole >= border] or None
        head.start, head.stop, self.start = self.start, border, border
        return head

    def cut(self, size: int) -> list[Piece]:
        """Return the items as pieces of at most *size*, in order; use these from now on and not the piece itself."""
        count = len(self.items)
        if count <= size:
            return [self]
        if self.positions is None and self.holes is None and self.keys is None and self.record is None:
            # In one go, because every cut moves all items that are left.
            items, base, since = self.items, self.start, self.since
            pieces = [
                Piece(items[start : start + size], base + start, base + start + size, since=since)
                for start in range(0, count, size)
            ]
            pieces[-1].stop = self.stop
            self.items = []
            return pieces
        pieces = list[Piece]()
        while len(self.items) > size:
            pieces.append(self.split(size))
        return [*pieces, self]

    def extend(self, other: Piece) -> bool:
        """Take in *other* if it follows this span; return whether it did."""
        if self.positions is not None or other.positions is not None or self.stop != other.start:
            return False
        self.items += other.items
        self.stop = other.stop
        if other.holes:
            self.holes = (self.holes or []) + other.holes
        if other.keys is not None:  # a piece whose items were all filtered out has none
            if self.keys is None:
                self.keys = other.keys
            else:
                self.keys += other.keys
        return True


def _border(start: int, count: int, holes: Sequence[int]) -> int:
    """Return the position behind the first *count* items of a span with *holes*."""
    border = start + count
    for hole in holes:
        if hole >= border:
            break
        border += 1
    return border


class Family:
    """Knows what to do when children of one parent part ways.

    A parent has no counter as long as all its children are in one piece, which is nearly always.
    """

    __slots__ = ("_counters",)

    def __init__(self, ledger: Ledger, leaves: Sequence[int]) -> None:
        self._counters = [ledger.children[leaf] for leaf in leaves]

    def born(self, parents: Sequence[int], sizes: Sequence[int]) -> None:
        """Each of *parents* is replaced by so many children (at least 1), in its place."""
        for counter in self._counters:
            if counter:
                for parent, size in zip(parents, sizes, strict=True):
                    if parent in counter:
                        counter[parent] += size - 1

    def parted(self, head: Sequence[int], rest: Sequence[int]) -> None:
        """A piece is cut in two; children of one parent stand beside each other in it."""
        if head and rest and head[-1] == rest[0]:
            parent = rest[0]
            self._count(parent, _run_length(reversed(head), parent) + _run_length(rest, parent))

    def scattered(self, positions: Sequence[int]) -> None:
        """The items of a piece go separate ways from now on."""
        for parent, size in Counter(positions).items():
            if size > 1:
                self._count(parent, size)

    def _count(self, parent: int, size: int) -> None:
        for counter in self._counters:
            counter.setdefault(parent, size)

    def gone(self, positions: Sequence[int], dropped: Sequence[int]) -> list[int]:
        """Some children are filtered out of a piece; return those positions that are to be settled for it.

        Args:
            positions: Positions of all items of the piece, before.
            dropped: Indexes of those that go.
        """
        going = set(dropped)
        staying = {position for index, position in enumerate(positions) if index not in going}
        final: list[int] = []
        for index in dropped:
            parent = positions[index]
            if any(parent in counter for counter in self._counters):
                final.append(parent)
            elif parent not in staying:
                final.append(parent)
                staying.add(parent)  # once is enough where nothing is counted
        return final


def _run_length(positions: Iterable[int], value: int) -> int:
    """Return how often *value* stands at the beginning of *positions*."""
    return sum(1 for _ in takewhile(value.__eq__, positions))


class Gather:
    """Grows one piece until it makes a full batch; who uses it says when."""

    __slots__ = ("loose", "piece")

    def __init__(self) -> None:
        self.piece: Piece | None = None
        self.loose: list[Piece] = []
        """Pieces that could not be joined with what came after them; they go first."""

    @property
    def held(self) -> int:
        """Items that have been gathered."""
        return 0 if self.piece is None else len(self.piece.items)

    def add(self, piece: Piece) -> None:
        """Take in *piece*, behind all that came before."""
        if self.piece is None:
            self.piece = piece
        elif not self.piece.extend(piece):
            self.loose.append(self.piece)
            self.piece = piece

    def flush(self) -> Piece | None:
        """Return what has been gathered, full or not."""
        piece, self.piece = self.piece, None
        return piece
