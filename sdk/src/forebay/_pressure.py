"""How near the machine is to its limits, from readings. Pure arithmetic, no I/O, no clock of its own."""

from __future__ import annotations

import math

from attrs import define, field, frozen

from forebay._types import Pressure

RESOURCES = ("cpu", "memory", "loop")
"""What has a level."""

ENTER = 0.5
"""From this level on a resource is under pressure."""
LEAVE = 0.3
"""At this level and below it no longer is."""
SECONDS = 1.0
"""Time constant of the smoothing: a step is followed by 63 % after so long, by 95 % after three times that."""

CPU_FREE = 0.25
"""Share of the usable cores that others may take at level 0: what fits beside us holds nobody up."""
CPU_FULL = 0.9
"""Share of the usable cores that, taken by others, is level 1."""
MEMORY_FREE = 0.6
"""Share of the memory limit up to which the level is 0."""
MEMORY_FULL = 0.95
"""Share of the memory limit from which on it is 1."""
MEMORY_STALLED = 0.2
"""Share of the time stalled on memory that is level 1: a program that waits so much for its own pages thrashes."""
LAG_FREE = 0.002
"""Seconds by which the event loop may run late at level 0."""
LAG_FULL = 0.1
"""Seconds late that are level 1; between the two every doubling of the lag counts the same."""


@frozen(kw_only=True)
class Reading:
    """What the machine's gauges show at one moment; `None` is what is not known.

    Times are CPU or stalled seconds that count up from anywhere: two readings together give a rate.
    """

    now: float
    """Monotonic seconds."""
    cpus: float = 1.0
    """Cores that this process may use at once, by affinity and quota."""
    process_seconds: float | None = None
    """CPU time of this process and its children."""
    processors: frozenset[int] = frozenset()
    """Processors that `busy_seconds` counts."""
    busy_seconds: float | None = None
    """CPU time that all processes together took on `processors`."""
    quota: float | None = None
    """Cores that the tightest CPU quota allows to its control group."""
    quota_seconds: float | None = None
    """CPU time that this group has taken."""
    throttled_seconds: float | None = None
    """Time for which the quota held this group back."""
    cpu_stalled_seconds: float | None = None
    """Time in which a task waited for a processor."""
    memory_stalled_seconds: float | None = None
    """Time in which a task waited for memory."""
    memory_limit: int | None = None
    """Bytes that may be in use, by the limit that is nearest."""
    memory_used: int | None = None
    """Bytes in use under this limit, without what can be dropped."""
    rss: int | None = None
    """Bytes of anonymous memory in this process."""
    loop_lag: float | None = None
    """Seconds by which the event loop ran late, the worst since the last reading."""


@frozen
class _Signal:
    """One way to see a resource's pressure."""

    level: float
    reason: str


@define(eq=False)
class PressureGauge:
    """Turns readings into a level from 0 (nothing in the way) to 1 (at the limit) for `cpu`, `memory` and `loop`.

    `cpu` rises as other processes take what this one could use, from 0 at a quarter of it to 1 at nine tenths, or
    with the share of the time that a quota holds it back or its tasks wait for a processor.
    A program that uses all it has, and waits for others at nothing, is at 0.
    `memory` rises from 0 at 60 % of the limit in use to 1 at 95 %, or with the time stalled on memory.
    `loop` rises with the event loop's lag, from 0 at 2 ms to 1 at 100 ms, on a log scale.
    Levels are smoothed. A resource that cannot be read counts as one without pressure.
    """

    enter: float = ENTER
    leave: float = LEAVE
    seconds: float = SECONDS
    levels: dict[str, float] = field(init=False, factory=lambda: dict.fromkeys(RESOURCES, 0.0))
    """The level of each resource, to be read only."""
    _reasons: dict[str, str] = field(init=False, factory=lambda: dict.fromkeys(RESOURCES, "nothing was read yet"))
    _pressed: set[str] = field(init=False, factory=set[str])
    _last: Reading | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        if not 0.0 < self.leave < self.enter <= 1.0:
            raise ValueError(
                f"leave and enter must be levels with 0 < leave < enter <= 1, not {self.leave} and {self.enter}"
            )
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, not {self.seconds}")

    @property
    def level(self) -> float:
        """The highest level."""
        return max(self.levels.values())

    @property
    def reason(self) -> str:
        """What the highest level comes from, as the end of a sentence."""
        resource = max(self.levels, key=self.levels.__getitem__)
        return f"{resource}: {self._reasons[resource]}"

    def update(self, reading: Reading) -> list[Pressure]:
        """Take a reading; return a record for each resource that came under pressure or left it.

        Twice a second is a good rate. The first reading only tells where the counters stand;
        one that is not later than the last is ignored.
        """
        last = self._last
        if last is not None and reading.now <= last.now:
            return []
        self._last = reading
        if last is None:
            return []
        weight = 1.0 - math.exp((last.now - reading.now) / self.seconds)
        return [record for resource in RESOURCES if (record := self._follow(resource, last, reading, weight))]

    def _follow(self, resource: str, last: Reading, reading: Reading, weight: float) -> Pressure | None:
        found = _SIGNALS[resource](last, reading)
        signal = max(found, key=lambda signal: signal.level) if found else _Signal(0.0, "it cannot be read")
        level = self.levels[resource] = self.levels[resource] + weight * (signal.level - self.levels[resource])
        self._reasons[resource] = signal.reason
        if resource not in self._pressed and level >= self.enter:
            self._pressed.add(resource)
            return Pressure(resource, level, signal.reason)
        if resource in self._pressed and level <= self.leave:
            self._pressed.remove(resource)
            return Pressure(resource, level, f"the pressure is over: {signal.reason}")
        return None


def _rate(before: float | None, after: float | None, seconds: float) -> float | None:
    """Return how fast a counter counts, or `None` where it is not known or has begun anew."""
    if before is None or after is None or after < before:
        return None
    return (after - before) / seconds


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _ramp(value: float, free: float, full: float) -> float:
    return _share((value - free) / (full - free))


def _cpu(last: Reading, reading: Reading) -> list[_Signal]:
    seconds = reading.now - last.now
    cpus = max(reading.cpus, 0.01)
    own = _rate(last.process_seconds, reading.process_seconds, seconds)
    busy = _busy(last, reading, seconds)
    signals: list[_Signal] = []
    if own is not None:
        if busy is not None:
            signals.append(_taken(own, busy, len(reading.processors), cpus, "this process may run on"))
        in_group = _rate(last.quota_seconds, reading.quota_seconds, seconds)
        if in_group is not None and reading.quota is not None and reading.quota == last.quota:
            signals.append(_taken(own, in_group, reading.quota, cpus, "its control group may use"))
    throttled = _rate(last.throttled_seconds, reading.throttled_seconds, seconds)
    if throttled is not None:
        # The kernel adds up the time of each processor that the group was held back on.
        share = _share(throttled / max(1.0, cpus))
        signals.append(
            _Signal(share, f"the CPU quota of {cpus:.3g} cores held this process back {share:.0%} of the time")
        )
    stalled = _rate(last.cpu_stalled_seconds, reading.cpu_stalled_seconds, seconds)
    if stalled is not None:
        signals.append(_waiting(stalled, own, busy, len(reading.processors), cpus))
    return signals


def _busy(last: Reading, reading: Reading, seconds: float) -> float | None:
    if not reading.processors or reading.processors != last.processors:
        return None
    return _rate(last.busy_seconds, reading.busy_seconds, seconds)


def _taken(own: float, used: float, cores: float, cpus: float, which: str) -> _Signal:
    """Judge by what others leave of *cores*, when this process could use *cpus*."""
    others = min(cores, max(0.0, used - own))
    missing = 1.0 - (cores - others) / cpus
    return _Signal(
        _ramp(missing, CPU_FREE, CPU_FULL), f"other processes take {others:.2f} of the {cores:.3g} cores that {which}"
    )


def _waiting(stalled: float, own: float | None, busy: float | None, cores: int, cpus: float) -> _Signal:
    """Judge the time that tasks waited for a processor.

    Tasks of ours that wait while we have all the cores wait for each other: more threads than cores, and no
    pressure from outside. And nobody waits for long while processors are idle: a stall from before is no news.
    """
    if busy is not None:
        stalled = min(stalled, busy / cores)
    had = 0.0 if own is None else _share(own / cpus)
    return _Signal(_share(stalled) * (1.0 - had), f"tasks waited for a processor {_share(stalled):.0%} of the time")


def _memory(last: Reading, reading: Reading) -> list[_Signal]:
    signals: list[_Signal] = []
    limit, used = reading.memory_limit, reading.memory_used
    if limit is not None and used is not None:
        share = used / max(limit, 1)
        in_use = f"{size_text(used)} of {size_text(limit)} are in use ({share:.0%})"
        signals.append(_Signal(_ramp(share, MEMORY_FREE, MEMORY_FULL), in_use))
    stalled = _rate(last.memory_stalled_seconds, reading.memory_stalled_seconds, reading.now - last.now)
    if stalled is not None:
        signals.append(
            _Signal(_share(stalled / MEMORY_STALLED), f"tasks waited for memory {_share(stalled):.0%} of the time")
        )
    return signals


def _loop(last: Reading, reading: Reading) -> list[_Signal]:
    lag = reading.loop_lag
    if lag is None:
        return []
    level = _ramp(math.log(max(lag, LAG_FREE)), math.log(LAG_FREE), math.log(LAG_FULL))
    return [_Signal(level, f"the event loop ran {lag * 1000:.0f} ms late")]


_SIGNALS = {"cpu": _cpu, "memory": _memory, "loop": _loop}


def size_text(nbytes: float) -> str:
    """Return *nbytes* for people to read, in binary units."""
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} GiB"


BUDGET_SHARE = 0.25
"""Share of the free memory that is the budget where none is given."""
BUDGET_UNKNOWN = 256 * 2**20
"""Budget in bytes where none is given and what is free is not known."""
CHUNK_BYTES = 2**20
"""What may always be read when nothing is in flight."""
RESUME = 0.75
"""Share of the ceiling below which a pause ends."""
WORTH = 32
"""Credit left of less than the ceiling divided by this is not worth a read."""
AIM = 0.9
"""Share of the budget that the process is steered to grow by; the rest is for what one reading misses."""
MACHINE = 0.9
"""Share of the machine's or group's memory that this budget does not go beyond."""
NEWS = 0.02
"""Growth beyond the highest so far, as a share of the budget, that counts as new."""
TRIAL = 1 / 256
"""Share of the budget that is tried in addition where the process has grown to its budget, leaks and all."""
PATIENCE = 15.0
"""Seconds without new growth before a trial; doubled each time that a trial made the process grow."""
OVERHEAD_MOST = 16.0
"""Bytes that one byte in flight takes at most, with its objects; what is beyond is not ours."""


@define(eq=False)
class MemoryBudget:
    """Hands out credit for bytes in flight, taken before a read and given back when the items are final.

    Credit is given up to a ceiling. Then there is a pause, until three quarters of the ceiling are in flight.
    When nothing is in flight a chunk may always pass, so there is no pause for ever.

    The ceiling follows what the bytes really cost: it begins at a quarter of the budget, and from reading to reading
    doubles at most, as long as the process has not grown by nine tenths of the budget. Where the process
    outgrows the budget the ceiling comes down. A heap that keeps what was freed has not grown, and is no
    reason to shrink again. Memory that others fill up lowers the ceiling too.
    With neither to read, the ceiling is the budget.
    """

    budget: int
    """Bytes by which the process may grow for what is in flight; change it with `resize`."""
    chunk_bytes: int = CHUNK_BYTES
    in_flight: int = field(init=False, default=0)
    """Credit that is out."""
    reason: str = field(init=False, default="nothing was read yet")
    """Why the ceiling is where it is."""
    paused: bool = field(init=False, default=False)
    """Whether credit is refused until some comes back."""
    _was_paused: bool = field(init=False, default=False)
    """Whether there was a pause since the last reading."""
    _peak: int = field(init=False, default=0)
    """Most that was in flight since the last reading."""
    _own: float = field(init=False)
    """Ceiling by the growth of the process."""
    _room: float = field(init=False, default=math.inf)
    """Ceiling by what the machine or the group has left."""
    _overhead: float = field(init=False, default=1.0)
    _base: int | None = field(init=False, default=None)
    _top: float = field(init=False, default=0.0)
    """Most that the process had grown by, slowly forgotten."""
    _highest: float = field(init=False, default=0.0)
    """Growth that is old news."""
    _trying: bool = field(init=False, default=False)
    _patience: float = field(init=False, default=PATIENCE)
    _quiet_since: float = field(init=False, default=-math.inf)
    _state: str = field(init=False, default="free")

    def __attrs_post_init__(self) -> None:
        for name, value in (("budget", self.budget), ("chunk_bytes", self.chunk_bytes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1 byte, not {value}")
        self._own = self.budget / 4

    @property
    def ceiling(self) -> int:
        """Most bytes that may be in flight now; never more than the budget, nor less than a chunk of it."""
        return int(min(self.budget, max(self._floor, min(self._own, self._room))))

    @property
    def _floor(self) -> int:
        return min(self.budget, self.chunk_bytes)

    def take(self, wanted: int) -> int:
        """Take credit for a read of at most *wanted* bytes; return how much was granted, 0 in a pause."""
        if wanted < 1:
            raise ValueError(f"wanted must be at least 1 byte, not {wanted}")
        ceiling = self.ceiling
        room = ceiling - self.in_flight
        if self.in_flight > 0 and (self.paused or room < max(1, ceiling // WORTH)):
            self.paused = self._was_paused = True
            return 0
        granted = min(wanted, room)
        self._add(granted)
        return granted

    def correct(self, granted: int, weight: int) -> bool:
        """Replace the credit *granted* for a read by the *weight* of what came; return whether this ended a pause.

        An item that is larger than the credit comes alone, and is counted in full.
        """
        if weight <= granted:
            return self.give(granted - weight)
        self._add(weight - granted)
        return False

    def give(self, nbytes: int) -> bool:
        """Give credit back; return whether this ended a pause, so that those who wait may be woken.

        Raises:
            ValueError: more comes back than is out.
        """
        if not 0 <= nbytes <= self.in_flight:
            raise ValueError(f"nbytes must be between 0 and the {self.in_flight} bytes in flight, not {nbytes}")
        self.in_flight -= nbytes
        return self._resume()

    def resize(self, budget: int) -> None:
        """Set another budget; what is in flight stays, and may be above it until it is given back.

        A larger one may end a pause.
        """
        if budget < 1:
            raise ValueError(f"budget must be at least 1 byte, not {budget}")
        self._own *= budget / self.budget
        self.budget = budget
        self._resume()

    def update(self, reading: Reading) -> list[Pressure]:
        """Take a reading; return a record if the budget came to be used up, came free, or is overrun by others.

        Call it before the first read, for growth is measured from there, and then twice a second or so.
        Look at `paused` afterwards: a reading may end a pause.
        """
        if reading.rss is None:
            grown, self._own, self.reason = 0, float(self.budget), "what the process uses cannot be read"
        else:
            self._base = reading.rss if self._base is None else self._base
            grown = max(0, reading.rss - self._base)
            self._follow(grown, reading.now)
        self._room = self._headroom(reading, grown)
        records = self._judge(grown)
        self._peak = self.in_flight
        self._resume()
        self._was_paused = self.paused
        return records

    def _add(self, nbytes: int) -> None:
        self.in_flight += nbytes
        self._peak = max(self._peak, self.in_flight)

    def _resume(self) -> bool:
        if not self.paused or (self.in_flight > 0 and self.in_flight > RESUME * self.ceiling):
            return False
        self.paused = False
        return True

    def _follow(self, grown: int, now: float) -> None:
        """Move the ceiling by the growth of the process, at which `_peak` bytes were in flight."""
        budget = self.budget
        self._learn_overhead(grown)
        if self._quiet_since == -math.inf:
            self._quiet_since = now
        news = self._highest + NEWS * budget * (0.1 if self._trying else 1.0)
        if grown > budget and grown > news:
            self._shrink(grown, now)
            return
        # Forgotten slowly, and never raised here: a slow leak must become news at last.
        self._highest -= 0.1 * max(0.0, self._highest - grown)
        if self._peak < self._own / 2:
            return  # it does not bind, so nothing is known about more
        if grown <= AIM * budget:
            self._raise(max(self._own, min(2 * self._own, self._peak * AIM * budget / max(grown, 1))), grown)
            self._patience = PATIENCE
        elif now - self._quiet_since >= self._patience:
            self._raise(self._own + TRIAL * budget, grown)
            self._quiet_since, self._trying = now, True

    def _learn_overhead(self, grown: int) -> None:
        if self._peak >= self.budget / 64:
            overhead = min(OVERHEAD_MOST, max(1.0, grown / self._peak))
            # With less in flight than before, what the heap keeps would pass for overhead.
            if grown > self._top or overhead < self._overhead:
                self._overhead = overhead
        self._top = max(float(grown), self._top - 0.1 * (self._top - grown))

    def _raise(self, own: float, grown: int) -> None:
        self._own = min(float(self.budget), own)
        self.reason = self._told(grown)

    def _shrink(self, grown: int, now: float) -> None:
        if self._trying:
            self._own -= TRIAL * self.budget
            self._patience *= 2
        else:
            fit = self._peak * AIM * self.budget / grown
            self._own = min(self._own, max(fit, self._own / 4))
        self._own = max(float(self._floor), self._own)
        self._quiet_since, self._trying, self._highest = now, False, float(grown)
        self.reason = self._told(grown)

    def _told(self, grown: float) -> str:
        return f"the process grew by {size_text(grown)} with {size_text(self._peak)} in flight"

    def _headroom(self, reading: Reading, grown: int) -> float:
        limit, used = reading.memory_limit, reading.memory_used
        if limit is None or used is None:
            return math.inf
        # What the process has grown by is there for it to use again, whatever others do.
        mine = max(float(grown), self.in_flight * self._overhead)
        room = max(0.0, mine + MACHINE * limit - used) / self._overhead
        if room < self._own:
            self.reason = f"{size_text(used)} of {size_text(limit)} are in use with {size_text(self._peak)} in flight"
        return room

    def _judge(self, grown: int) -> list[Pressure]:
        ceiling = self.ceiling
        level = _share(self._peak / ceiling)
        if self._overrun(grown, ceiling):
            why = self.reason if self._room < self._own else self._told(grown)
            state, level = "overrun", 1.0
            reason = f"unmanaged memory: {why}; fetching goes on with {size_text(ceiling)} at a time"
        elif self._was_paused:
            state, reason = "used up", f"{size_text(self._peak)} were in flight: fetching waits at {size_text(ceiling)}"
        else:
            state, reason = "free", f"{size_text(self._peak)} were in flight, of {size_text(ceiling)} that may be"
        if state == self._state:
            return []
        self._state = state
        return [Pressure("memory_budget", level, f"{reason}; the budget is {size_text(self.budget)}")]

    def _overrun(self, grown: int, ceiling: int) -> bool:
        if grown > 1.25 * self.budget and grown > OVERHEAD_MOST * self._peak:
            return True
        few = max(self._floor, self.budget // 8 if self._state == "overrun" else 0)
        return ceiling <= few < self.budget


def budget_bytes(reading: Reading, *, share: float = BUDGET_SHARE) -> int:
    """Return a budget where the user gives none: a *share* of the memory that is free at *reading*."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")
    if reading.memory_limit is None or reading.memory_used is None:
        return BUDGET_UNKNOWN
    return max(CHUNK_BYTES, int(share * max(0, reading.memory_limit - reading.memory_used)))
