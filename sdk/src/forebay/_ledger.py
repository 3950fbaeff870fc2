"""The ledger: which items are in hand and which are settled, as ranges.

Every item that a run takes in gets a *position*, a number that counts up over all sources of the run.
A batch that is done is one range of positions; only an item that fails has a record of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from attrs import frozen

from forebay._account import FeedLedger, Hold
from forebay._ranges import Ranges
from forebay._types import Chunk, Deliveries


@frozen
class LedgerStatistics:
    """A reading of the ledger."""

    seen: int
    """Items taken in."""
    in_hand: int
    """Items that are not final yet."""
    done: int
    filtered: int
    dead: int
    dropped: int
    redelivered: int
    """Items that went back to their source with a failure and a due time."""
    lost: int
    """Items that another member took over."""
    settled_twice: int
    """Outcomes that came for an item which had one; ignored.

    Above 0 where nothing was lost and, with branches, nothing was redelivered, it is a bug in forebay.
    """


class Ledger:
    """All positions of a run."""

    __slots__ = (
        "_bases",
        "_holds",
        "_worst",
        "children",
        "counts",
        "in_hand",
        "leaves",
        "lost_holds",
        "next",
        "now",
        "on_empty",
        "on_final",
        "settled_twice",
    )

    def __init__(self, leaves: int = 1, *, on_final: Callable[[Hold, int], None], on_empty: Callable[[], None]) -> None:
        self.leaves = leaves
        self.next = 0
        self.now = 0.0  # the latest reading of the loop's clock by whoever settles
        self.in_hand = 0
        self.settled_twice = 0
        self.counts = {"done": 0, "filtered": 0, "dead": 0, "dropped": 0, "redelivered": 0, "lost": 0}
        # Children still on their way, for parents whose children are in more than one place; one dict a branch.
        self.children: list[dict[int, int]] = [{} for _ in range(leaves)]
        self.lost_holds: dict[int, Hold] = {}  # by position: handlers may still ask where the item came from
        self.on_final = on_final
        self.on_empty = on_empty
        self._bases: list[int] = []
        self._holds: list[Hold] = []
        self._worst: dict[int, str] = {}  # position to `dead` or `dropped`, until the other branches have it too

    def register(self, count: int, feed: FeedLedger, now: float, chunk: Chunk[object] | None = None) -> Hold:
        """Take in *count* items (at least 1) of *feed* and give them positions."""
        hold = Hold(self.next, count, feed, now, chunk)
        if self.leaves > 1:
            hold.leaf_done = [Ranges() for _ in range(self.leaves)]
        self.now = now
        self._bases.append(self.next)
        self._holds.append(hold)
        self.next += count
        self.in_hand += count
        feed.opened(hold)
        return hold

    def hold(self, position: int) -> Hold:
        """Return the chunk that *position* belongs to: it is in hand, or was lost while a handler had it."""
        if position in self.lost_holds:
            return self.lost_holds[position]
        return self._holds[bisect_right(self._bases, position) - 1]

    def holds(self) -> Sequence[Hold]:
        """Return all chunks with items that are not final, oldest first."""
        return self._holds

    def span(self) -> int:
        """Return how far the newest position is from the oldest that is not final."""
        return self.next - self._holds[0].first_open() if self._holds else 0

    def is_open(self, position: int) -> bool:
        """Return whether the item at *position* is in hand and not final."""
        if position in self.lost_holds or not self._holds or not self._bases[0] <= position < self.next:
            return False
        hold = self.hold(position)
        return position < hold.stop and position not in hold.done

    def settle(self, start: int, stop: int, leaf: int = 0, verdict: str = "done") -> None:
        """Make the positions from *start* to *stop* final in branch *leaf*.

        What is final already keeps its first outcome; it is counted in `settled_twice` and ignored.
        """
        holds, bases = self._holds, self._bases
        if holds and bases[0] <= start and stop <= holds[0].stop and holds[0].leaf_done is None:
            self._finish(holds[0], 0, start, stop, verdict)  # of the oldest chunk: nearly always so
            return
        while start < stop:
            index = 0 if holds and bases[0] <= start < holds[0].stop else bisect_right(bases, start) - 1
            if index < 0 or start >= holds[index].stop:  # its chunk is closed: all of it was final before
                known = min(stop, bases[index + 1] if index + 1 < len(bases) else stop)
                self.settled_twice += known - start
                start = known
                continue
            hold = holds[index]
            end = min(stop, hold.stop)
            if hold.leaf_done is None:
                self._finish(hold, index, start, end, verdict)
            else:
                self._finish_leaf(hold, hold.leaf_done, start, end, leaf, verdict)
            start = end

    def _finish(self, hold: Hold, index: int, start: int, stop: int, verdict: str) -> None:
        count = stop - start
        if hold.some_done is None and start == hold.front:  # in order: nearly always so
            hold.front = stop
        elif not hold.done.add_new(start, stop):
            new = list(hold.done.missing(start, stop))
            self.settled_twice += count - sum(b - a for a, b in new)
            for a, b in new:
                self._finish(hold, index, a, b, verdict)
            return
        hold.open -= count
        self.in_hand -= count
        self.counts[verdict] += count
        hold.feed.open -= count
        if hold.chunk is not None and (verdict == "done" or (verdict != "lost" and verdict != "redelivered")):
            hold.feed.final(hold, start, stop)
        self.on_final(hold, count)
        if not hold.open:
            del self._holds[index]
            del self._bases[index]
            hold.feed.closed(hold)
            if not self._holds:
                self.on_empty()

    def _finish_leaf(
        self, hold: Hold, leaves: Sequence[Ranges], start: int, stop: int, leaf: int, verdict: str
    ) -> None:
        """Count the range done in one branch; what all branches have is final.

        An item that leaves this process (lost, redelivered) leaves all branches at once.
        """
        leaving = verdict == "lost" or verdict == "redelivered"
        new = list((hold.done if leaving else leaves[leaf]).missing(start, stop))
        self.settled_twice += (stop - start) - sum(b - a for a, b in new)
        for a, b in new:
            if leaving:
                self._leave(hold, leaves, a, b, verdict)
                continue
            leaves[leaf].add_new(a, b)
            if verdict == "dead":
                self._worst.update(dict.fromkeys(range(a, b), verdict))
            elif verdict == "dropped":
                for position in range(a, b):
                    self._worst.setdefault(position, verdict)
            for x, y in _common(leaves, leaf, a, b):
                self._finish_everywhere(hold, x, y)

    def _leave(self, hold: Hold, leaves: Sequence[Ranges], start: int, stop: int, verdict: str) -> None:
        """Close the range in all branches, whatever became of it in some: it is for somebody else to settle."""
        for ranges in leaves:
            ranges.add(start, stop)
        for position in range(start, stop):
            self._worst.pop(position, None)
        self._finish(hold, self._holds.index(hold), start, stop, verdict)

    def _finish_everywhere(self, hold: Hold, start: int, stop: int) -> None:
        worst = self._worst
        split = sorted(position for position in worst if start <= position < stop) if worst else []
        for position in split:
            if start < position:
                self._finish(hold, self._holds.index(hold), start, position, "done")
            self._finish(hold, self._holds.index(hold), position, position + 1, worst.pop(position))
            start = position + 1
        if start < stop:
            self._finish(hold, self._holds.index(hold), start, stop, "done")

    def recount(self, verdict: str, count: int) -> None:
        """Move *count* of what was counted as done to *verdict*."""
        self.counts["done"] -= count
        self.counts[verdict] += count

    def settle_list(self, positions: Sequence[int], leaf: int = 0, verdict: str = "done") -> None:
        """Make *positions* final, each once its last child is.

        They may be in any order; a parent stands there once for each of its children.
        """
        children = self.children[leaf]
        if children:
            positions = _last_children(positions, children)
        if not positions:
            return
        ordered = sorted(positions)
        start = end = ordered[0]
        for position in ordered:
            if position == end:
                end += 1
            elif position > end:
                self.settle(start, end, leaf, verdict)
                start, end = position, position + 1
        self.settle(start, end, leaf, verdict)

    def statistics(self) -> LedgerStatistics:
        """Return a reading of the ledger."""
        return LedgerStatistics(seen=self.next, in_hand=self.in_hand, settled_twice=self.settled_twice, **self.counts)


def _last_children(positions: Sequence[int], children: dict[int, int]) -> list[int]:
    """Count the children off; return the parents that have none left on their way."""
    final: list[int] = []
    for position in positions:
        left = children.get(position)
        if left is None:
            final.append(position)
        elif left == 1:
            final.append(position)
            del children[position]
        else:
            children[position] = left - 1
    return final


def _common(leaves: Sequence[Ranges], leaf: int, start: int, stop: int) -> list[tuple[int, int]]:
    """Return the parts of *start* to *stop* that every leaf but *leaf* has."""
    common = [(start, stop)]
    for index, ranges in enumerate(leaves):
        if index != leaf:
            common = [part for a, b in common for part in _present(ranges, a, b)]
    return common


def _present(ranges: Ranges, start: int, stop: int) -> Iterator[tuple[int, int]]:
    for known_start, known_stop in ranges:
        low, high = max(start, known_start), min(stop, known_stop)
        if low < high:
            yield low, high


def given_back(holds: Iterable[Hold], running: Ranges) -> dict[FeedLedger, list[Deliveries]]:
    """Return what goes back to each source when a run ends early: all that is not final.

    What is in *running* is marked as maybe done.
    """
    back: dict[FeedLedger, list[Deliveries]] = {}
    for hold in holds:
        chunk = hold.chunk
        if chunk is None:
            continue
        deliveries = back.setdefault(hold.feed, [])
        for start, stop in hold.done.missing(hold.base, hold.stop):
            for a, b in running.missing(start, stop):
                deliveries.append(Deliveries(hold.offsets(a, b), chunk.partition, chunk.epoch))
            for a, b in _present(running, start, stop):
                deliveries.append(Deliveries(hold.offsets(a, b), chunk.partition, chunk.epoch, maybe_done=True))
    return back
