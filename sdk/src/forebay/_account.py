"""What a source is owed: which of its items are in hand, which are final, and what it has not been told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from forebay._ranges import Ranges
from forebay._types import Chunk, Offset, Redelivery, Settlement


class Hold:
    """One chunk in hand: where its items came from and which of them are final."""

    __slots__ = (
        "ascending",
        "base",
        "chunk",
        "feed",
        "fetched_at",
        "first",
        "front",
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
        self.front = base  # all before it are final, as long as they become so in order
        self.feed = feed
        self.fetched_at = fetched_at
        self.chunk = chunk  # None for sources that keep no account: plain iterables
        self.ascending = True  # whether its offsets are sorted
        self.first = feed.seen  # offset of the first item where there is no chunk: how many came before it
        self.items: Sequence[object] | None = None  # as they came, where a dead letter may need them
        self.some_done: Ranges | None = None  # made with the first part that is out of order
        self.leaf_done: list[Ranges] | None = None  # one a branch, where the recipe has branches

    @property
    def done(self) -> Ranges:
        """The positions that are final."""
        if self.some_done is None:
            self.some_done = Ranges()
            if self.front > self.base:
                self.some_done.add_new(self.base, self.front)
        return self.some_done

    def first_open(self) -> int:
        """Return the first position that is not final."""
        return self.front if self.some_done is None else self.some_done.first_missing(self.base)

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


class _Span:
    """Positions of one chunk that are final and have not been told yet."""

    __slots__ = ("hold", "start", "stop")

    def __init__(self, hold: Hold, start: int, stop: int) -> None:
        self.hold = hold
        self.start = start
        self.stop = stop


class _Account:
    """What one partition of a source has to be told under one epoch."""

    __slots__ = ("retries", "spans")

    def __init__(self) -> None:
        self.spans: list[_Span] = []
        self.retries: list[Redelivery] = []

    def size(self) -> int:
        return sum(span.stop - span.start for span in self.spans) + len(self.retries)


class FeedLedger:
    """The part of the ledger that belongs to one source."""

    __slots__ = (
        "_accounts",
        "_away",
        "_high",
        "_holds",
        "_last",
        "_marks",
        "_sending",
        "name",
        "open",
        "seen",
        "unsent",
    )

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
        self._last: _Span | None = None  # what was written down last
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

    def gap(self) -> int:
        """Return how many items of this source there are from the oldest that is not final to the newest."""
        oldest = [holds[0] for holds in self._holds.values() if holds]
        return self.seen - min((hold.first + hold.first_open() - hold.base for hold in oldest), default=self.seen)

    def closed(self, hold: Hold) -> None:
        """Let go of a chunk whose items are all final."""
        if hold.chunk is not None:
            self._holds[hold.chunk.partition].remove(hold)

    def final(self, hold: Hold, start: int, stop: int) -> None:
        """Write down that the source has to be told of these positions."""
        chunk = hold.chunk
        assert chunk is not None, "a plain iterable is told nothing"
        self.unsent += stop - start
        last = self._last
        if last is not None and last.hold is hold and last.stop == start:  # in order: the usual case
            last.stop = stop
            return
        self._last = _Span(hold, start, stop)
        self._account(chunk.partition, chunk.epoch).spans.append(self._last)

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
                sending.spans += account.spans
                sending.retries += account.retries
        self._accounts.clear()
        self._last = None
        return [
            Settlement(_joined(account.spans), partition, epoch, self._mark(partition), tuple(account.retries))
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


def _joined(spans: Iterable[_Span]) -> Sequence[Offset]:
    """Return the offsets of *spans* as one range where they are consecutive, else as a list."""
    pieces: list[Sequence[Offset]] = []
    for span in spans:
        offsets = span.hold.offsets(span.start, span.stop)
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
