"""Limits on what a run or a stage may use: memory, CPU, connections, disk, and what is in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import anyio.lowlevel
from attrs import Attribute, field, frozen

from forebay._permits import Permits
from forebay._types import Pressure, check_limit

_LEFT = 0.8
"""Share of a limit at which it counts as left: nobody wants to be told of every item that comes and goes at a limit."""
_MEMORY_LEFT = 0.95
_CPU_SAVED = 0.05
"""Seconds of the share that may be saved up: over any time at most so much more is used."""

_Tell: TypeAlias = Callable[[Pressure], object]
_UNMANAGED = "what holds it is unmanaged, so one read goes at a time"
_CONSEQUENCES = {
    "in_flight_items": "nothing more is read until some are done",
    "in_flight_bytes": "nothing more is read until some are done",
    "memory": "nothing more is read until it falls",
    "connections": "calls wait for one in the order they came",
    "disk": "nothing more is put there until some of it is freed",
    "cpu_share": "work pauses now and then to stay within it",
}


def _check_share(_: ResourceLimits, attribute: Attribute[float | None], value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"cpu_share must be a number, not {value!r:.100}")
    if not 0 < value <= 1:
        raise ValueError(f"cpu_share must be more than 0 and at most 1, not {value}; 0.5 is half of the usable cores")


@frozen(kw_only=True)
class ResourceLimits:
    """What a run or a stage may use at most; `None` is no limit. Reaching one makes work wait, it fails nothing."""

    memory: int | None = field(default=None, validator=check_limit)
    """Bytes of memory in use from which on nothing is read until it has fallen."""
    cpu_share: float | None = field(default=None, validator=_check_share)
    """Share of the usable cores, above 0 and at most 1, over every second."""
    connections: int | None = field(default=None, validator=check_limit)
    """Connections, or calls that need one each, at a time."""
    disk: int | None = field(default=None, validator=check_limit)
    """Bytes on disk."""
    in_flight_items: int | None = field(default=None, validator=check_limit)
    """Items read and not yet final."""
    in_flight_bytes: int | None = field(default=None, validator=check_limit)
    """Their bytes. One item that is larger goes when nothing else is in flight."""


@frozen(kw_only=True)
class LimiterStatistics:
    """A reading of a limiter."""

    in_flight_items: int
    in_flight_bytes: int
    peak_items: int
    """Most items that were ever in flight at the same time."""
    peak_bytes: int
    connections: int
    """Connections held."""
    peak_connections: int
    waiting_connections: int
    """Tasks that wait for a connection at this level."""
    disk: int
    """Bytes reserved."""
    reached: tuple[str, ...]
    """Names of the limits that have been reached and not left."""


class Limiter:
    """Holds a run, or a stage of it, to its `ResourceLimits`; what does not fit waits.

        limiter = Limiter(ResourceLimits(in_flight_bytes=2**20, connections=8), on_pressure=print)

        while not limiter.try_take(1, len(item)):
            await limiter.wait_room(1, len(item))
        async with limiter.connection():
            await send(item)
        limiter.give(1, len(item))

    A limiter with a *parent* takes from both or from neither. Whatever a limit holds up waits; nothing is raised, and a
    record that names the limit goes to *on_pressure*. Its methods are for the event loop's own thread.

    Args:
        limits: What may be used.
        parent: Limiter of the run that this one is a stage of.
        name: Name of the stage, for the records.
        memory: Returns the bytes of memory in use. It is asked at every take, so let it answer from a reading that was
            made before. The parent's, if there is none.
        cores: Returns how many cores there are to have a share of; the parent's or 1.0, if there is none.
        on_pressure: Told once when a limit holds something up, and once when that is over: nobody waits for it and four
            fifths of it or less are used. May call the limiter, must not raise. The parent's, if there is none.
    """

    def __init__(
        self,
        limits: ResourceLimits,
        parent: Limiter | None = None,
        *,
        name: str = "",
        memory: Callable[[], int] | None = None,
        cores: Callable[[], float] | None = None,
        on_pressure: Callable[[Pressure], object] | None = None,
    ) -> None:
        self._parent = parent
        self._prefix = f"{name}: " if name else ""
        self._memory: Callable[[], int] | None = memory or (None if parent is None else parent._memory)
        self._cores: Callable[[], float] | None = cores or (None if parent is None else parent._cores)
        self._on_pressure: _Tell | None = on_pressure or (None if parent is None else parent._on_pressure)
        self._flight: Permits = Permits(
            names=("in_flight_items", "in_flight_bytes"),
            keeps=False,
            note=self._note,
            parent=None if parent is None else parent._flight,
        )
        self._links: Permits = Permits(
            names=("connections",), keeps=True, note=self._note, parent=None if parent is None else parent._links
        )
        self._disk = 0
        self._cpu_at: float | None = None
        self._cpu_used = 0.0
        self._cpu_credit = 0.0
        self._reached: set[str] = set()
        self._unmanaged = False
        self._untold: deque[tuple[_Tell, Pressure]] = deque() if parent is None else parent._untold
        self._set(limits)

    @property
    def limits(self) -> ResourceLimits:
        """What holds now."""
        return self._limits

    def change(self, limits: ResourceLimits) -> None:
        """Put *limits* in place of those before, all at once; a bad value changes nothing.

        What is held stays held: a lower limit lets nothing in until enough has been given back.
        """
        self._set(limits)
        for name in sorted(self._reached):
            if getattr(limits, name) is None:
                self._leave(name, 0.0, f"{name} has no limit now")
        self._note("disk", self._disk, limits.disk, False)
        for permits in (self._flight, self._links):
            permits.wake()
            permits.look()
        self._tell()

    def _set(self, limits: object) -> None:
        if not isinstance(limits, ResourceLimits):
            raise TypeError(f"limits must be ResourceLimits, not {limits!r:.100}; write ResourceLimits(connections=…)")
        if limits.memory is not None and self._memory is None:
            raise ValueError(
                f"limits.memory={limits.memory} needs memory=, a function that returns the bytes of memory in use"
            )
        self._limits = limits
        self._flight.max_items, self._flight.max_bytes = limits.in_flight_items, limits.in_flight_bytes
        self._flight.crowded = None if limits.memory is None else self._is_crowded
        self._links.max_items = limits.connections

    def statistics(self) -> LimiterStatistics:
        """Return a reading."""
        return LimiterStatistics(
            in_flight_items=self._flight.held,
            in_flight_bytes=self._flight.held_bytes,
            peak_items=self._flight.peak,
            peak_bytes=self._flight.peak_bytes,
            connections=self._links.held,
            peak_connections=self._links.peak,
            waiting_connections=len(self._links.line),
            disk=self._disk,
            reached=tuple(sorted(self._reached)),
        )

    # --- In flight ------------------------------------------------------------------------------

    def try_take(self, items: int, bytes: int = 0) -> bool:
        """Take so much and return `True`, or nothing and `False`: at a limit, or while others wait for room.

        One item that is larger than `in_flight_bytes` goes when nothing else is in flight. While memory is over its
        limit one take at a time goes, so that work never stops for memory that is not its own.
        Several items that are more than a limit allows never fit: `room` says how many do.
        """
        _check_ask(items, bytes)
        taken = self._flight.try_take(items, bytes)
        self._tell()
        return taken

    def room(self) -> tuple[int | None, int | None]:
        """Return how many items and bytes may be taken now; `None` where nothing limits them."""
        if self._flight.is_shut():
            return 0, 0
        items: list[int] = []
        nbytes: list[int] = []
        for level in self._flight.levels():
            if level.max_items is not None:
                items.append(max(0, level.max_items - level.held))
            if level.max_bytes is not None:
                nbytes.append(max(0, level.max_bytes - level.held_bytes))
        for one in self._levels():
            if one._limits.memory is not None:
                crowded = one._is_crowded()
                items += [0] if crowded else [1] if "memory" in one._reached else []
        self._tell()
        return min(items, default=None), min(nbytes, default=None)

    async def wait_room(self, items: int = 1, bytes: int = 0) -> None:
        """Wait until there is room for so much, or for all that a limit allows where it is more; take nothing.

        Those who wait are told in the order they came. Somebody else may be quicker: look again in a loop.
        """
        _check_ask(items, bytes)
        await anyio.lowlevel.checkpoint()
        await self._flight.wait(items, bytes, self._tell)

    def give(self, items: int, bytes: int = 0) -> None:
        """Give back what was taken."""
        self._give("give", items, bytes)

    def correct(self, items: int, bytes: int) -> None:
        """Hold so much more than was taken, or less where it is negative: what a read really brought.

        Nothing is asked, so that it may be more than a limit allows; then nothing is let in until it is less again.
        """
        self._give("correct", -items, -bytes)

    def _give(self, function: str, items: int, nbytes: int) -> None:
        flight = self._flight
        if items > flight.held or nbytes > flight.held_bytes:
            raise ValueError(
                f"{function}() would give back {items} items and {nbytes} bytes, but {flight.held} items and "
                f"{flight.held_bytes} bytes are held; give back just what was taken"
            )
        flight.give(items, nbytes)
        self._tell()

    # --- Connections and disk -------------------------------------------------------------------

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[None]:
        """Hold one of the connections for the block; those who wait get theirs in the order they came.

        Cancelled while it waits: none is taken.
        """
        await anyio.lowlevel.checkpoint()
        if not self._links.try_take(1, 0):
            await self._links.wait(1, 0, self._tell)
        try:
            self._tell()
            yield
        finally:
            self._links.give(1, 0)
            self._tell()

    def reserve_disk(self, n: int) -> bool:
        """Reserve *n* bytes and return `True`, or return `False` where they do not fit."""
        _check_amount("n", n, 0)
        full = next((one for one in self._levels() if one._limits.disk and one._disk + n > one._limits.disk), None)
        if full is None:
            self._add_disk(n)
        else:
            full._note("disk", full._disk, full._limits.disk, True)
        self._tell()
        return full is None

    def free_disk(self, n: int) -> None:
        """Give back *n* bytes that were reserved."""
        _check_amount("n", n, 0)
        if n > self._disk:
            raise ValueError(f"free_disk() would free {n} bytes, but {self._disk} are reserved; free what was reserved")
        self._add_disk(-n)
        self._tell()

    def _add_disk(self, n: int) -> None:
        for one in self._levels():
            one._disk += n
            one._note("disk", one._disk, one._limits.disk, False)

    # --- CPU ------------------------------------------------------------------------------------

    def duty(self, now: float, cpu_seconds: float) -> float:
        """Return how many seconds to pause now, so that `cpu_share` is kept.

        Call it after each piece of work: what it took is known only then, and the pause makes up for it. In any second
        no more is used than the share, 5 % of it, and the last piece of work. The parent's share is its own to ask.

        Args:
            now: Monotonic seconds.
            cpu_seconds: CPU time used so far by what the limit is for, as `time.process_time` counts it.
        """
        share = self._limits.cpu_share
        if share is None:
            self._cpu_at = None
            return 0.0
        allowed = share * (1.0 if self._cores is None else self._cores())
        saved = _CPU_SAVED * allowed
        if self._cpu_at is None:
            self._cpu_credit = saved
        else:
            used = max(0.0, cpu_seconds - self._cpu_used)
            self._cpu_credit = min(saved, self._cpu_credit + allowed * max(0.0, now - self._cpu_at) - used)
        self._cpu_at, self._cpu_used = now, cpu_seconds
        pause = max(0.0, -self._cpu_credit / allowed)
        text = f"cpu_share {share} ({allowed:.3g} cores)"
        if pause:
            self._enter("cpu_share", 1.0 + pause, f"{text} used up")
        elif self._cpu_credit == saved:
            self._leave("cpu_share", 1.0 - _CPU_SAVED, text)
        self._tell()
        return pause

    # --- What is told ---------------------------------------------------------------------------

    def _levels(self) -> Iterator[Limiter]:
        one: Limiter | None = self
        while one is not None:
            yield one
            one = one._parent

    def _is_crowded(self) -> bool:
        """Return whether nothing may be taken for want of memory."""
        limit, memory, held = self._limits.memory, self._memory, self._flight.held
        assert limit is not None
        assert memory is not None
        used = memory()
        text = f"memory {_size(used)} of {_size(limit)}"
        if used >= limit:
            self._enter("memory", used / limit, text)
            if not held and not self._unmanaged:
                self._unmanaged = True
                self._record("memory", used / limit, f"{text} and nothing in flight: {_UNMANAGED}")
        elif used <= _MEMORY_LEFT * limit or not held:
            self._leave("memory", used / limit, text)
            self._unmanaged = False
        return held > 0 and "memory" in self._reached

    def _note(self, name: str, used: int, limit: int | None, refused: bool) -> None:
        if limit is None or refused is (name in self._reached):
            return
        if refused:
            self._enter(name, used / limit, f"{name} {_of(name, used, limit)}")
        elif used <= _LEFT * limit:
            self._leave(name, used / limit, f"{name} {_of(name, used, limit)}")

    def _enter(self, name: str, level: float, text: str) -> None:
        if name not in self._reached:
            self._reached.add(name)
            self._record(name, level, f"{text}: {_CONSEQUENCES[name]}")

    def _leave(self, name: str, level: float, text: str) -> None:
        if name in self._reached:
            self._reached.discard(name)
            self._record(name, level, f"{text}: there is room again")

    def _record(self, name: str, level: float, reason: str) -> None:
        if self._on_pressure is not None:
            self._untold.append((self._on_pressure, Pressure(name, level, self._prefix + reason)))

    def _tell(self) -> None:
        """Tell what has happened, now that everything is in its place again."""
        while self._untold:
            on_pressure, record = self._untold.popleft()
            on_pressure(record)


def _of(name: str, used: int, limit: int) -> str:
    return f"{_size(used)} of {_size(limit)}" if name in ("disk", "in_flight_bytes") else f"{used} of {limit}"


def _size(nbytes: int) -> str:
    if nbytes < 2**10:
        return f"{nbytes} bytes"
    unit, name = next((pair for pair in ((2**30, "GiB"), (2**20, "MiB")) if nbytes >= pair[0]), (2**10, "KiB"))
    return f"{nbytes / unit:.1f} {name}"


def _check_ask(items: object, nbytes: object) -> None:
    _check_amount("items", items, 1)
    _check_amount("bytes", nbytes, 0)


def _check_amount(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r:.100}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
