"""Permits at several levels: what is held of a kind at each, and who waits for more, in the order they came."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heapreplace

import anyio
from attrs import define, field

MEMORY = "memory"
_LOOK = 0.05


@define(eq=False)
class _Waiter:
    items: int
    nbytes: int
    came: int
    woken: anyio.Event = field(factory=anyio.Event)
    served: bool = False


@define(eq=False, kw_only=True)
class Permits:
    """What is held of one kind at one level.

    An ask needs room here and at every level above, and takes from all of them or from none. Those who wait are served
    in the order they came, over all levels; who waits for room at a level below the top holds up nobody above it.
    """

    names: tuple[str, ...]
    """The limit on items and, where bytes count, the one on bytes."""
    keeps: bool
    """Whether those who wait are given what they wait for; else they are only told that there is room."""
    note: Callable[[str, int, int | None, bool], object]
    """Told of a limit what is used of how much, and whether somebody is refused or waits for it."""
    crowded: Callable[[], bool] | None = None
    """Returns whether nothing may be taken at this level for want of memory."""
    parent: Permits | None = None
    max_items: int | None = None
    max_bytes: int | None = None
    held: int = 0
    held_bytes: int = 0
    peak: int = 0
    peak_bytes: int = 0
    line: deque[_Waiter] = field(init=False, factory=deque[_Waiter])
    # Used at the top only:
    _lines: dict[Permits, None] = field(init=False, factory=dict["Permits", None])
    """Levels with somebody in line."""
    _shut: dict[Permits, str] = field(init=False, factory=dict["Permits", str])
    """Levels that nobody may take from now, because somebody waits for them, and the limit that is in his way."""
    _came: int = field(init=False, default=0)

    @property
    def top(self) -> Permits:
        """The highest level."""
        return self if self.parent is None else self.parent.top

    def levels(self) -> Iterator[Permits]:
        """Iterate from this level to the top."""
        level: Permits | None = self
        while level is not None:
            yield level
            level = level.parent

    def is_shut(self) -> bool:
        """Return whether somebody is in line whom a take would overtake."""
        shut = self.top._shut
        return bool(shut) and any(level in shut for level in self.levels())

    def try_take(self, items: int, nbytes: int) -> bool:
        """Take so much at all levels if there is room and nobody is overtaken."""
        if self.is_shut():
            return False
        obstacle = self._obstacle(items, nbytes)
        if obstacle is None:
            self.add(items, nbytes)
            return True
        level, name = obstacle
        level._look(name, refused=True)
        return False

    def add(self, items: int, nbytes: int) -> None:
        """Hold so much more at all levels, or less, whether or not there is room."""
        for level in self.levels():
            level.held += items
            level.held_bytes += nbytes
            level.peak = max(level.peak, level.held)
            level.peak_bytes = max(level.peak_bytes, level.held_bytes)
            level.look()

    def give(self, items: int, nbytes: int) -> None:
        """Give so much back at all levels and let those go on who may."""
        self.add(-items, -nbytes)
        if self.top._lines:
            self.serve()

    def look(self) -> None:
        """Say of each limit of this level what is used of it."""
        for name in self.names:
            self._look(name, refused=self.top._shut.get(self) == name)

    def _look(self, name: str, *, refused: bool) -> None:
        if name == self.names[0]:
            self.note(name, self.held, self.max_items, refused)
        elif name != MEMORY:  # who asked about memory has said so
            self.note(name, self.held_bytes, self.max_bytes, refused)

    def _obstacle(self, items: int, nbytes: int, *, in_line: bool = False) -> tuple[Permits, str] | None:
        for level in self.levels():
            if name := level._lacks(items, nbytes, in_line):
                return level, name
        return None

    def _lacks(self, items: int, nbytes: int, in_line: bool) -> str:
        """Return the limit of this level that is in the way, or nothing."""
        crowded = self.crowded is not None and self.crowded()
        if not self.held and (items == 1 or in_line):
            return ""  # there will never be more room: who waits for too much must not hold up the others for ever
        if self.max_items is not None and self.held + items > self.max_items:
            return self.names[0]
        if self.max_bytes is not None and self.held_bytes + nbytes > self.max_bytes:
            return self.names[1]
        return MEMORY if crowded else ""

    def serve(self) -> None:
        """Let those in line go on who may, in the order they came; note at which levels somebody is left waiting."""
        top = self.top
        before, top._shut = top._shut, {}
        heads = [(level.line[0].came, level) for level in top._lines]
        heapify(heads)
        while heads:
            level = heads[0][1]
            waiter = level.line[0]
            if not level._lets_go(waiter):
                heappop(heads)
                continue
            level._leave(waiter)
            waiter.served = True
            waiter.woken.set()
            if level.line:
                heapreplace(heads, (level.line[0].came, level))
            else:
                heappop(heads)
        for level in before | top._shut:
            level.look()

    def _lets_go(self, waiter: _Waiter) -> bool:
        """Take for the first in line if there is room and nobody is overtaken; else let nobody overtake him."""
        if self.is_shut():
            return False
        obstacle = self._obstacle(waiter.items, waiter.nbytes, in_line=True)
        if obstacle is not None:
            level, name = obstacle
            self.top._shut[level] = name
            return False
        if self.keeps:
            self.add(waiter.items, waiter.nbytes)
        return True

    def _leave(self, waiter: _Waiter) -> None:
        self.line.remove(waiter)  # the first, unless one has given up
        if not self.line:
            del self.top._lines[self]

    async def wait(self, items: int, nbytes: int, tell: Callable[[], object]) -> None:
        """Wait in line until there is room; cancelled: nothing was taken.

        *tell* is called whenever `note` may have been.
        """
        top = self.top
        top._came += 1
        waiter = _Waiter(items, nbytes, top._came)
        self.line.append(waiter)
        top._lines[self] = None
        done = False
        try:
            while not waiter.served:
                waiter.woken = anyio.Event()
                self.serve()
                tell()
                with anyio.move_on_after(self._next_look()):
                    await waiter.woken.wait()
            done = True
        finally:
            if not done:
                self._withdraw(waiter)
                tell()

    def wake(self) -> None:
        """Let everybody in line look again: the limits are others."""
        for level in self.top._lines:
            for waiter in level.line:
                waiter.woken.set()
        self.serve()

    def _next_look(self) -> float:
        # Nobody says so when memory falls: those who may wait for that have to look.
        return math.inf if all(level.crowded is None for level in self.levels()) else _LOOK

    def _withdraw(self, waiter: _Waiter) -> None:
        if not waiter.served:
            self._leave(waiter)
        elif self.keeps:
            self.add(-waiter.items, -waiter.nbytes)
        self.serve()
