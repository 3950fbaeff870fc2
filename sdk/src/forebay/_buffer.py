"""What is inside a channel: parts in order, bounded by items and bytes, and who waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

import anyio
from attrs import define, frozen

from forebay._errors import ChannelClosedError

T = TypeVar("T")


class Part(Generic[T]):
    """Items that cross a channel together. May be cut, never reordered."""

    __slots__ = ("items",)

    def __init__(self, items: list[T]) -> None:
        self.items = items

    def split(self, count: int) -> Self:
        """Remove the first *count* items (fewer than there are) and return them as a part."""
        head = type(self)(self.items[:count])
        self.items = self.items[count:]
        return head


P = TypeVar("P", bound="Part[Any]")


@define(eq=False)
class _Putter:
    """Somebody who waits for room."""

    notify: Callable[[], object]
    count: int
    """Items that it wants to push."""
    nbytes: int


@frozen
class ChannelStatistics:
    """A reading of a channel."""

    items: int
    """Items that wait in it now."""
    items_bytes: int
    """Their weight; 0 where the channel does not weigh."""
    max_items: int
    max_bytes: int | None
    peak_items: int
    """Most items that ever waited at the same time: with `max_items` far above it, the bound is too generous."""
    peak_bytes: int
    sent: int
    """Items sent since the channel was opened."""
    received: int
    open_senders: int
    open_receivers: int
    waiting_senders: int
    """Tasks that wait in `send`."""
    waiting_receivers: int
    """Tasks that wait in `receive`."""


class Buffer(Generic[P]):
    """What is inside a channel: parts in order, and who waits for them.

    Nothing here waits longer than for room or for parts. Who waits for room is served first come, first served.
    Who waits for parts is woken in that order too, but whoever runs first takes them.
    """

    __slots__ = (
        "_putters",
        "_takers",
        "_watchers",
        "closed",
        "held",
        "held_bytes",
        "max_bytes",
        "max_items",
        "parts",
        "peak",
        "peak_bytes",
        "receivers",
        "senders",
        "taken",
        "total",
        "weigh",
        "weights",
    )

    def __init__(
        self, max_items: int, *, max_bytes: int | None = None, weigh: Callable[[Any], int] | None = None
    ) -> None:
        self.max_items: int = max_items
        self.max_bytes: int | None = max_bytes
        self.weigh: Callable[[Any], int] | None = weigh
        self.parts: deque[P] = deque()
        self.weights: deque[int] = deque()  # beside `parts`; stays empty where nothing is weighed
        self.held: int = 0
        self.held_bytes: int = 0
        self.peak: int = 0
        self.peak_bytes: int = 0
        self.total: int = 0
        self.taken: int = 0
        self.senders: int = 1
        self.receivers: int = 1
        self.closed: bool = False  # no more parts will come
        self._takers: deque[anyio.Event] = deque()
        self._putters: deque[_Putter] = deque()
        self._watchers: deque[tuple[Callable[[], object], int]] = deque()

    @property
    def waiting_takers(self) -> int:
        return len(self._takers)

    @property
    def waiting_putters(self) -> int:
        return len(self._putters)

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    def weight(self, part: P) -> int:
        weigh = self.weigh
        return 0 if weigh is None else sum(map(weigh, part.items))

    def fits(self, count: int, nbytes: int) -> bool:
        """Return whether so much may come in now. One part fits an empty channel, whatever its size."""
        if not self.held:
            return True
        if self.held + count > self.max_items:
            return False
        return self.max_bytes is None or self.held_bytes + nbytes <= self.max_bytes

    def push(self, part: P, nbytes: int) -> None:
        """Append *part* without asking for room, and wake one taker."""
        count = len(part.items)
        self.parts.append(part)
        if self.weigh is not None:
            self.weights.append(nbytes)
            self.held_bytes += nbytes
            if self.held_bytes > self.peak_bytes:
                self.peak_bytes = self.held_bytes
        self.held += count
        self.total += count
        if self.held > self.peak:
            self.peak = self.held
        if self._takers:
            self._takers.popleft().set()

    async def put(self, part: P, check: Callable[[], None] | None = None) -> None:
        """Wait for room, then append *part*; cancelled: it was not appended.

        Args:
            part: What to append.
            check: Called when a wait ends or is interrupted; what it raises ends the wait.
        """
        nbytes = self.weight(part)
        if self._putters or not self.fits(len(part.items), nbytes):
            await self._wait_room(len(part.items), nbytes, check)
        self.push(part, nbytes)
        if self._putters:
            self.wake_putters()

    async def _wait_room(self, count: int, nbytes: int, check: Callable[[], None] | None) -> None:
        event = anyio.Event()
        putter = _Putter(event.set, count, nbytes)
        self._putters.append(putter)
        may_push = False
        try:
            while not may_push:
                await event.wait()
                if self.closed or not self.receivers:
                    raise ChannelClosedError("the channel was closed while send() waited for room; nothing was sent")
                if check is not None:
                    check()
                may_push = self._putters[0] is putter and self.fits(count, nbytes)
                event = anyio.Event()
                putter.notify = event.set
        finally:
            self._putters.remove(putter)
            if not may_push:  # the room that it may have been told of belongs to the next one
                self.wake_putters()

    def call_when_room(self, notify: Callable[[], object], count: int) -> None:
        """Call *notify* once, when something is taken and there is room for *count* items.

        Nothing is reserved by it, and it holds up nobody who puts: what is in the queue of those may never be taken
        before they have put. Of several, so many are told as there is room for, in the order they came.
        """
        self._watchers.append((notify, count))

    def wake_putters(self) -> None:
        """Tell those who wait for room, as far as there is some."""
        ended = self.closed or not self.receivers
        if self._putters:
            putter = self._putters[0]
            if ended or self.fits(putter.count, putter.nbytes):
                putter.notify()  # it wakes the next one itself when it has pushed
        promised = 0
        while self._watchers:
            notify, count = self._watchers[0]
            if not (ended or self.fits(promised + count, 0)):
                break
            self._watchers.popleft()
            promised += count
            notify()

    def take_nowait(self, max_items: int, max_bytes: int | None) -> list[P]:
        """Return parts with at most so many items and bytes, at least one item; [] when there are none."""
        if self.parts and self.weigh is None and len(self.parts[0].items) == max_items:
            # Just what is wanted, as pumps make it: the loop below would say the same, but later.
            self.held -= max_items
            self.taken += max_items
            part = self.parts.popleft()
            if self._putters or self._watchers:
                self.wake_putters()
            return [part]
        taken: list[P] = []
        room, room_bytes = max_items, max_bytes
        parts = self.parts
        while parts and room > 0:
            part = parts[0]
            count = len(part.items)
            fitting = min(count, room)
            if room_bytes is not None and self.weigh is not None:
                fitting = self._fitting_bytes(part, fitting, room_bytes, alone=not taken)
                if not fitting:
                    break
            if fitting < count:
                taken.append(self._split_first(fitting))
                break
            taken.append(parts.popleft())
            room -= count
            self.held -= count
            self.taken += count
            if self.weigh is not None:
                nbytes = self.weights.popleft()
                self.held_bytes -= nbytes
                if room_bytes is not None:
                    room_bytes -= nbytes
        if taken and (self._putters or self._watchers):
            self.wake_putters()
        return taken

    def _fitting_bytes(self, part: P, count: int, room_bytes: int, *, alone: bool) -> int:
        """Return how many of the first *count* items fit; one that is larger than the limit goes alone."""
        weigh = self.weigh
        if weigh is None or (self.weights[0] <= room_bytes and count == len(part.items)):
            return count
        for index in range(count):
            room_bytes -= weigh(part.items[index])
            if room_bytes < 0:
                return 1 if alone and index == 0 else index
        return count

    def _split_first(self, count: int) -> P:
        part = self.parts[0]
        head = part.split(count)
        self.held -= count
        self.taken += count
        if self.weigh is not None:
            nbytes = self.weight(head)
            self.weights[0] -= nbytes
            self.held_bytes -= nbytes
        return head

    async def take(self, max_items: int, max_bytes: int | None) -> list[P]:
        """Wait for parts; [] when no more will come. Cancelled: nothing was taken."""
        while not self.parts:
            if self.closed:
                return []
            await self.wait_parts()
        taken = self.take_nowait(max_items, max_bytes)
        self.pass_on()
        return taken

    def wake_one(self) -> None:
        """Let the task that has waited longest look again, though nothing was pushed."""
        if self._takers:
            self._takers.popleft().set()

    def pass_on(self) -> None:
        """Wake the next taker when there is something left for it."""
        if self.parts and self._takers:
            self._takers.popleft().set()

    async def wait_parts(self) -> None:
        """Wait until somebody pushes, or closes an end; what came may be gone again."""
        event = anyio.Event()
        self._takers.append(event)
        woken = False
        try:
            await event.wait()
            woken = True
        finally:
            if not woken:
                if event.is_set():  # woken and cancelled at once: the wake-up belongs to the next one
                    if self._takers:
                        self._takers.popleft().set()
                else:
                    self._takers.remove(event)

    def close(self) -> None:
        """Let no more parts in; those that are held can still be taken."""
        self.closed = True
        self.wake_all()

    def wake_all(self) -> None:
        """Let everybody who waits look again."""
        self.wake_takers()
        self.interrupt_putters()

    def wake_takers(self) -> None:
        """Let all who wait for parts look again."""
        while self._takers:
            self._takers.popleft().set()

    def interrupt_putters(self) -> None:
        """Let all who wait for room look again, whether or not there is some."""
        for putter in tuple(self._putters):
            putter.notify()
        while self._watchers:
            self._watchers.popleft()[0]()

    def drop_receivers(self) -> None:
        """Throw away what is held: nobody is left to take it."""
        self.receivers = 0
        self.parts.clear()
        self.weights.clear()
        self.held = self.held_bytes = 0
        self.wake_all()

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(
            items=self.held,
            items_bytes=self.held_bytes,
            max_items=self.max_items,
            max_bytes=self.max_bytes,
            peak_items=self.peak,
            peak_bytes=self.peak_bytes,
            sent=self.total,
            received=self.taken,
            open_senders=self.senders,
            open_receivers=self.receivers,
            waiting_senders=len(self._putters),
            waiting_receivers=len(self._takers),
        )
