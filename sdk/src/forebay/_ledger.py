"""The ledger: which items are in hand and which are settled, as ranges.

Every item that a run takes in gets a *position*, a number that counts up over all sources of the run.
A batch that is done is one range of positions; only an item that fails has a record of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from attrs import frozen

from forebay._types import Chunk, Deliveries, Offset, Redelivery, Settlement


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


class Hold:
    """One chunk in hand: where its items came from and which of them are final."""

    __slots__ = (
        "ascending",
        "base",
        "chunk",
        "feed",
        "fetched_at",
        "first",
        "items",
        "leaf_done",
        "open",
        "some_done",
        "stop",
    )

    def __init__(
        self, base: int, count: int, feed: FeedLedger, fetched_at: float, chunk: Chunk[object] | None = None
    ) -> None:
        self.base = base
        self.stop = base + count
        self.open = count  # positions that are not final yet
        self.feed = feed
        self.fetched_at = fetched_at
        self.chunk = chunk  # None for sources that keep no account: plain iterables
        self.ascending = True  # whether its offsets are sorted
        self.first = feed.seen  # offset of the first item where there is no chunk: how many came before it
        self.items: Sequence[object] | None = None  # as they came, where a dead letter may need them
        self.some_done: Ranges | None = None  # made with the first part: most chunks become final in one piece
        self.leaf_done: list[Ranges] | None = None  # one a branch, where the recipe has branches

    @property
    def done(self) -> Ranges:
        """The positions that are final."""
        if self.some_done is None:
            self.some_done = Ranges()
        return self.some_done

    def first_open(self) -> int:
        """Return the first position that is not final."""
        return self.base if self.some_done is None else self.some_done.first_missing(self.base)

    def lowest_open(self) -> int | None:
        """Return the smallest offset that is not final; `None` where offsets are not counted numbers."""
        if self.ascending:
            lowest = self.offset(self.first_open())
            return lowest if isinstance(lowest, int) else None
        missing = self.done.missing(self.base, self.stop)
        offsets = [offset for start, stop in missing for offset in self.offsets(start, stop)]
        return min((offset for offset in offsets if isinstance(offset, int)), default=None)

    def offset(self, position: int) -> Offset:
        """Return the source's own name of the item at *position*."""
        index = position - self.base
        return self.first + index if self.chunk is None else self.chunk.offsets[index]

    def offsets(self, start: int, stop: int) -> Sequence[Offset]:
        """Return the offsets of the positions from *start* to *stop*."""
        if self.chunk is None:
            first = self.first + start - self.base
            return range(first, first + stop - start)
        return self.chunk.offsets[start - self.base : stop - self.base]

    def deliveries(self, position: int) -> int:
        """Return how often the item at *position* was handed out."""
        return 1 if self.chunk is None else _at(self.chunk.deliveries, position - self.base)

    def failures(self, position: int) -> int:
        """Return how often the item at *position* had failed when it came."""
        return 0 if self.chunk is None else _at(self.chunk.failures, position - self.base)

    def maybe_done(self, position: int) -> bool:
        """Return whether an earlier attempt was cut off."""
        return False if self.chunk is None else bool(_at(self.chunk.maybe_done, position - self.base))


def _at(figures: Sequence[int] | int, index: int) -> int:
    return figures if isinstance(figures, int) else figures[index]


class _Account:
    """What one partition of a source has to be told under one epoch."""

    __slots__ = ("ranges", "retries")

    def __init__(self) -> None:
        self.ranges: list[tuple[Hold, int, int]] = []
        self.retries: list[Redelivery] = []

    def size(self) -> int:
        return sum(stop - start for _, start, stop in self.ranges) + len(self.retries)


class FeedLedger:
    """The part of the ledger that belongs to one source."""

    __slots__ = ("_accounts", "_away", "_high", "_holds", "_marks", "_sending", "name", "open", "seen", "unsent")

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = 0
        self.open = 0  # items in hand
        self.unsent = 0  # final positions that the source has not been told of
        self._accounts: dict[tuple[int, int], _Account] = {}
        self._sending: dict[tuple[int, int], _Account] = {}
        self._holds: dict[int, list[Hold]] = {}  # by partition, in the order they came
        self._high: dict[int, int] = {}  # by partition: one more than the highest offset seen
        self._marks: dict[int, int] = {}
        self._away: dict[int, set[int]] = {}  # offsets that went back unfinished and hold the mark where it is

    def opened(self, hold: Hold) -> None:
        """Take in a chunk."""
        self.seen += hold.stop - hold.base
        self.open += hold.stop - hold.base
        chunk = hold.chunk
        if chunk is None:
            return
        self._holds.setdefault(chunk.partition, []).append(hold)
        highest = chunk.offsets[-1]
        if isinstance(highest, int):
            if not isinstance(chunk.offsets, range):
                numbers = [offset for offset in chunk.offsets if isinstance(offset, int)]
                hold.ascending = numbers == sorted(numbers)
                highest = max(numbers)
            self._high[chunk.partition] = max(self._high.get(chunk.partition, 0), highest + 1)
        away = self._away.get(chunk.partition)
        if away:
            away.difference_update(offset for offset in chunk.offsets if isinstance(offset, int))

    def closed(self, hold: Hold) -> None:
        """Let go of a chunk whose items are all final."""
        if hold.chunk is not None:
            self._holds[hold.chunk.partition].remove(hold)

    def final(self, hold: Hold, start: int, stop: int) -> None:
        """Write down that the source has to be told of these positions."""
        chunk = hold.chunk
        assert chunk is not None, "a plain iterable is told nothing"
        ranges = self._account(chunk.partition, chunk.epoch).ranges
        self.unsent += stop - start
        last = ranges[-1] if ranges else None
        if last is not None and last[0] is hold and last[2] == start:
            ranges[-1] = (hold, last[1], stop)
        else:
            ranges.append((hold, start, stop))

    def redeliver(self, redelivery: Redelivery) -> None:
        """Write down that an item goes back with its failure."""
        self._account(redelivery.partition, redelivery.epoch).retries.append(redelivery)
        self.unsent += 1
        if isinstance(redelivery.offset, int):
            self._away.setdefault(redelivery.partition, set()).add(redelivery.offset)

    def keep_mark(self, partition: int, offset: Offset) -> None:
        """Let the mark not pass *offset* until it comes again: another member has it, and it may not be final."""
        if isinstance(offset, int):
            self._away.setdefault(partition, set()).add(offset)

    def _account(self, partition: int, epoch: int) -> _Account:
        key = (partition, epoch)
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account()
        return account

    def statement(self) -> list[Settlement]:
        """Return what the source has to be told; until `told` is called the next statement has it all again."""
        for key, account in self._accounts.items():
            sending = self._sending.setdefault(key, account)
            if sending is not account:
                sending.ranges += account.ranges
                sending.retries += account.retries
        self._accounts.clear()
        return [
            Settlement(_joined(account.ranges), partition, epoch, self._mark(partition), tuple(account.retries))
            for (partition, epoch), account in self._sending.items()
        ]

    def told(self) -> None:
        """The source has taken the last statement."""
        self.unsent -= sum(account.size() for account in self._sending.values())
        self._sending.clear()

    def _mark(self, partition: int) -> int | None:
        """Return the commit mark, which never passes an offset that is not final and never goes back."""
        if partition not in self._high:
            return None
        open_offsets = [hold.lowest_open() for hold in self._holds[partition]]
        numbers = [offset for offset in open_offsets if offset is not None]
        lowest = min([self._high[partition], *numbers, *self._away.get(partition, ())])
        self._marks[partition] = max(lowest, self._marks.get(partition, lowest))
        return self._marks[partition]


def _joined(ranges: Iterable[tuple[Hold, int, int]]) -> Sequence[Offset]:
    """Return the offsets of *ranges* as one range where they are consecutive, else as a list."""
    pieces: list[Sequence[Offset]] = []
    for hold, start, stop in ranges:
        offsets = hold.offsets(start, stop)
        last = pieces[-1] if pieces else None
        if isinstance(last, range) and isinstance(offsets, range) and _follows(last, offsets):
            pieces[-1] = range(last.start, offsets.stop)
        else:
            pieces.append(offsets)
    if len(pieces) == 1:
        return pieces[0]
    return [offset for piece in pieces for offset in piece]


def _follows(first: range, second: range) -> bool:
    return first.step == second.step == 1 and first.stop == second.start


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
        if not self._holds or not self._bases[0] <= position < self.next:
            return False
        hold = self.hold(position)
        return position < hold.stop and position not in hold.done

    def settle(self, start: int, stop: int, leaf: int = 0, verdict: str = "done") -> None:
        """Make the positions from *start* to *stop* final in branch *leaf*.

        What is final already keeps its first outcome; it is counted in `settled_twice` and ignored.
        """
        holds, bases = self._holds, self._bases
        if holds and start == bases[0] and stop == holds[0].stop and holds[0].leaf_done is None:
            self._finish(holds[0], 0, start, stop, verdict)  # all of the oldest chunk: nearly always so
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
        # Where the whole chunk becomes final at once, nothing is written into it.
        if (hold.open != count or hold.some_done is not None) and not hold.done.add_new(start, stop):
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
