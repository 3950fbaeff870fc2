"""The queue in front of a batcher: slips of items whose callers wait together for their results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import anyio
from attrs import frozen

from forebay._batcher import Piece
from forebay._buffer import Buffer

GONE = object()
"""Stands in the place of an item whose caller has gone before its batch started."""


@frozen
class Refusal:
    """Stands in the place of a result: the caller gets this exception."""

    error: BaseException


@frozen
class Moved:
    """Stands in the place of a result: the item goes on at another place."""

    slip: Slip
    index: int


SPECIAL = frozenset({Refusal, Moved})


class Slip(Piece):
    """The items of callers who wait together, and their results when there are any."""

    __slots__ = ("answered", "gone", "outcomes", "started", "ticket")

    def __init__(self, items: list[object], ticket: int, since: float) -> None:
        super().__init__(items, since=since)
        self.ticket = ticket  # number of the first item, counted over all that were submitted
        self.answered = anyio.Event()
        self.outcomes: Sequence[object] = ()
        self.started = False
        self.gone = 0  # items whose callers went before it started: asking them would run the items' own `==`

    def like(self, items: list[object]) -> Piece:
        """Return what stands for results of this slip."""
        return Answer(self, items)


class Answer(Piece):
    __slots__ = ("slip",)

    def __init__(self, slip: Slip, results: list[object]) -> None:
        super().__init__(results)
        self.slip = slip


class Waiter:
    """A caller that waits for a place, and then the place."""

    __slots__ = ("index", "item", "size", "slip", "woken")

    def __init__(self, item: object, size: int) -> None:
        self.item = item
        self.size = size
        self.slip: Slip | None = None
        self.index = 0
        self.woken = anyio.Event()


class Desk(Buffer[Piece]):
    """The queue in front of the stage: slips, of which the last is open for more items."""

    __slots__ = (
        "_clock",
        "_open_bytes",
        "_slip_bytes",
        "all_answered",
        "max_size",
        "open_slip",
        "submitted",
        "unanswered",
        "waiters",
    )

    def __init__(self, capacity: int, max_size: int, slip_bytes: int | None, clock: Callable[[], float]) -> None:
        super().__init__(capacity)
        self.held: int = 0
        self.submitted = 0
        self.all_answered: anyio.Event | None = None
        self.open_slip: Slip | None = None
        self.unanswered: dict[Slip, None] = {}
        self.waiters: dict[Waiter, None] = {}  # first come, first served
        self.max_size = max_size  # items that a slip may gather; what is taken may be cut smaller
        self._slip_bytes = math.inf if slip_bytes is None else slip_bytes
        self._open_bytes = 0
        self._clock = clock

    def place(self, item: object, size: int) -> tuple[Slip, int]:
        """Put *item* of *size* bytes into the open slip, or into a new one; return where it is."""
        slip = self.open_slip
        if slip is None or self._open_bytes + size > self._slip_bytes:
            slip = self._new_slip()
        items = slip.items
        index = len(items)
        items.append(item)
        self._open_bytes += size
        self.held += 1
        self.submitted += 1
        if index + 1 >= self.max_size:
            self.open_slip = None
        return slip, index

    def _new_slip(self) -> Slip:
        slip = Slip([], self.submitted, self._clock())
        self.unanswered[slip] = None
        self.open_slip = slip
        self._open_bytes = 0
        self.push(slip, 0)
        return slip

    def leave(self, slip: Slip, index: int) -> None:
        """The caller of the item at *index* of *slip* has gone: take the item out, unless its batch has started."""
        while slip.started:
            moved = slip.outcomes[index] if slip.outcomes else None
            if not isinstance(moved, Moved):
                return
            slip, index = moved.slip, moved.index
        slip.items[index] = GONE
        slip.gone += 1
        self.free(1)

    def forget(self, waiter: Waiter) -> None:
        """The caller has gone, before or after it got its place."""
        self.waiters.pop(waiter, None)
        if waiter.slip is not None:
            self.leave(waiter.slip, waiter.index)

    def resize(self, size: int) -> None:
        """Gather so many items from now on."""
        self.max_size = size
        if self.open_slip is not None and len(self.open_slip.items) >= size:
            self.open_slip = None

    def free(self, count: int) -> None:
        """Free so many places and give them to those who have waited longest, whoever of them runs first."""
        self.held -= count
        while self.waiters and self.held < self.max_items:
            waiter = next(iter(self.waiters))
            del self.waiters[waiter]
            waiter.slip, waiter.index = self.place(waiter.item, waiter.size)
            waiter.woken.set()

    def wake_all(self) -> None:
        """Let everybody who waits look again; nobody gets a place any more."""
        super().wake_all()
        for waiter in self.waiters:
            waiter.woken.set()
        self.waiters.clear()

    def take_nowait(self, max_items: int, max_bytes: int | None) -> list[Piece]:
        """Return the oldest slips that fit, closed, without the items whose callers have gone.

        Only the first is cut. Where slips are bounded by bytes there is one: they are as large as they may be.
        """
        taken: list[Piece] = []
        while self.parts and max_items > 0:
            slip = self.parts[0]
            assert isinstance(slip, Slip)
            live_count = len(slip.items) - slip.gone
            if live_count > max_items and taken:
                break
            self.parts.popleft()
            if slip is self.open_slip:
                self.open_slip = None
            slip.started = True
            if slip.gone or live_count > max_items:
                slip = self._take_apart(slip, max_items)
                live_count = len(slip.items)
                if not live_count:
                    self.answer(slip, ())
                    continue
            taken.append(slip)
            self.taken += live_count
            self.free(live_count)
            if self._slip_bytes != math.inf:
                break
            max_items -= live_count
        return taken

    def _take_apart(self, slip: Slip, max_items: int) -> Slip:
        """Return the first *max_items* of the items that callers wait for as a slip that has started.

        The others stay in front as one that has not.
        """
        live = [index for index, item in enumerate(slip.items) if item is not GONE]
        first = self._part(slip, live[:max_items])
        first.started = True
        outcomes: list[object] = [None] * len(slip.items)
        for place, index in enumerate(live[:max_items]):
            outcomes[index] = Moved(first, place)
        if len(live) > max_items:
            rest = self._part(slip, live[max_items:])
            for place, index in enumerate(live[max_items:]):
                outcomes[index] = Moved(rest, place)
            self.parts.appendleft(rest)
        self.answer(slip, outcomes)
        return first

    def _part(self, slip: Slip, indexes: Sequence[int]) -> Slip:
        ticket = slip.ticket + (indexes[0] if indexes else 0)
        part = Slip([slip.items[index] for index in indexes], ticket, slip.since)
        self.unanswered[part] = None
        return part

    def single(self, slip: Slip, index: int) -> Slip:
        """Return a slip for the item at *index* alone; the caller links the old one to it."""
        one = Slip([slip.items[index]], slip.ticket + index, slip.since)
        one.started = True
        self.unanswered[one] = None
        return one

    def answer(self, slip: Slip, outcomes: Sequence[object]) -> None:
        """Give every caller of *slip* its result."""
        slip.outcomes = outcomes
        slip.answered.set()
        del self.unanswered[slip]
        if not self.unanswered and self.all_answered is not None:
            self.all_answered.set()
