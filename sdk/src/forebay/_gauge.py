"""Reads the machine: processors, memory, control groups and stalls. Nothing is remembered but where the files are.

Linux is read from its files. Elsewhere, and where a file says nothing, psutil is asked if it is installed;
what nobody knows is `None`. A reading takes a fraction of a millisecond and never waits for a device.

Source of the files' meanings: the kernel's Documentation/admin-guide/cgroup-v1, cgroup-v2.rst and accounting/psi.rst.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from attrs import define, field, frozen

from forebay._pressure import Reading

T = TypeVar("T")

_logger = logging.getLogger("forebay")

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESRCH, errno.EOPNOTSUPP}
"""The file, or what it tells about, is not there (any more): nothing to log."""
_UNLIMITED = 2**62
"""Control groups of version 1 write the largest number of pages where there is no limit."""
_BUSY = (0, 1, 2, 5, 6, 7)
"""Fields of a processor's line that count as taken: user, nice, system, irq, softirq, stolen by the host."""
_LISTED = re.compile(r"^([A-Za-z]\w*)(?::\s*| )(\d{1,19})( kB)?$", re.MULTILINE | re.ASCII)
"""A line of `memory.stat`, or one of `/proc/meminfo`."""
_STALLS = ("cpu", "memory", "io")


@frozen
class Memory:
    """One limit on memory, and what is in use under it."""

    limit: int
    """Bytes of RAM; swap is not part of it."""
    used: int | None
    """Bytes that cannot be dropped: anonymous and shared memory, but no page cache and nothing that is swapped out."""


@frozen
class Busy:
    """CPU time that all processes together have taken."""

    seconds: float
    processors: frozenset[int]
    """The processors that were counted: those that this process may run on, where they can be told apart."""


@frozen
class _Mount:
    """Where a hierarchy of control groups can be seen."""

    controllers: frozenset[str]
    """Names of its controllers; that of version 2 is empty."""
    root: str
    """The group that is seen at `point`."""
    point: str


@frozen
class _Group:
    """A control group that this process is in, itself or through a group below it."""

    name: str
    """Path below the mount."""
    folder: str
    version: int


@define(eq=False)
class Machine:
    """The machine as this process may use it; every method reads afresh, for quotas and limits change in mid-run."""

    root: Path = Path("/")
    """Folder in which `proc` and `sys` are."""
    _base: str = field(init=False)
    _mounts: list[_Mount] | None = field(init=False, default=None)
    _told: set[str] = field(init=False, factory=set[str])

    def __attrs_post_init__(self) -> None:
        self._base = str(self.root).rstrip("/\\")

    def read(self, now: float, *, loop_lag: float | None = None) -> Reading:
        """Read everything that the pressure gauge and the memory budget look at."""
        tightest, busy, memory = self._tightest(), self.busy(), self.memory()
        return Reading(
            now=now,
            cpus=_cpus(tightest),
            process_seconds=self.process_seconds(),
            processors=busy.processors if busy else frozenset(),
            busy_seconds=busy.seconds if busy else None,
            quota=tightest[1] if tightest else None,
            quota_seconds=self._group_seconds(tightest[0]) if tightest else None,
            throttled_seconds=self._group_throttled(tightest[0]) if tightest else None,
            cpu_stalled_seconds=self.stalled_seconds("cpu"),
            memory_stalled_seconds=self.stalled_seconds("memory"),
            memory_limit=memory.limit if memory else None,
            memory_used=memory.used if memory else None,
            rss=self.rss(),
            loop_lag=loop_lag,
        )

    # --- Processors --------------------------------------------------------------------------

    def cpus(self) -> float:
        """Return how many cores this process may use at once: by affinity and by quota, whichever is less."""
        return _cpus(self._tightest())

    def quota(self) -> float | None:
        """Return the cores that the tightest CPU quota over all groups allows, `None` where there is no quota."""
        tightest = self._tightest()
        return tightest[1] if tightest else None

    def cpu_seconds(self) -> float:
        """Return the CPU time taken by the group with the tightest quota, by this process where there is none."""
        tightest = self._tightest()
        seconds = self._group_seconds(tightest[0]) if tightest else None
        return self.process_seconds() if seconds is None else seconds

    def throttled_seconds(self) -> float | None:
        """Return how long the tightest quota held its group back, summed over processors; `None` without quota."""
        tightest = self._tightest()
        return self._group_throttled(tightest[0]) if tightest else None

    def process_seconds(self) -> float:
        """Return the CPU time of this process and its children, those that have ended and been waited for included."""
        times = os.times()
        return time.process_time() + times.children_user + times.children_system + self._children_seconds()

    def busy(self) -> Busy | None:
        """Return the CPU time that all processes together took on the processors that this one may run on."""
        counted = self._processor_times()
        if not counted:
            return self._ask(_busy_elsewhere)
        allowed = _affinity()
        if allowed is None or not allowed <= counted.keys():
            allowed = frozenset(counted)  # a container may be shown processors of its own numbering
        return Busy(sum(counted[number] for number in allowed), allowed)

    def _processor_times(self) -> dict[int, float]:
        counted: dict[int, float] = {}
        for line in (self._read("/proc/stat") or "").splitlines():
            if not line.startswith("cpu"):
                break
            name, *fields = line.split()
            ticks = self._numbers(fields, "/proc/stat")
            if name[3:].isdecimal() and len(ticks) > _BUSY[-1]:
                counted[int(name[3:])] = sum(ticks[index] for index in _BUSY) / _ticks_per_second()
        return counted

    def _children_seconds(self) -> float:
        pending = self._children("self")
        if pending is None:
            return self._ask(_children_elsewhere) or 0.0
        ticks, seen = 0, set[str]()
        while pending:
            pid = pending.pop()
            if pid not in seen:
                seen.add(pid)
                # The name in brackets may hold anything, brackets too.
                fields = (self._read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
                ticks += sum(self._numbers(fields[11:15], f"/proc/{pid}/stat"))
                pending += self._children(pid) or []
        return ticks / _ticks_per_second() if ticks else 0.0

    def _children(self, pid: str) -> list[str] | None:
        """Return the ids of the children of *pid*, `None` where the kernel does not list them."""
        try:
            threads = os.listdir(f"{self._base}/proc/{pid}/task")
        except OSError:
            return None
        lists = [self._read(f"/proc/{pid}/task/{thread}/children") for thread in threads]
        known = [listed for listed in lists if listed is not None]
        return [child for listed in known for child in listed.split() if child.isdecimal()] if known else None

    def _tightest(self) -> tuple[_Group, float] | None:
        quotas = [(group, quota) for group in self._groups("cpu") if (quota := self._group_quota(group)) is not None]
        return min(quotas, key=lambda found: found[1], default=None)

    def _group_quota(self, group: _Group) -> float | None:
        if group.version == 2:
            path = f"{group.folder}/cpu.max"
            words = (self._read(path) or "max").split()
            if words[:1] == ["max"]:
                return None
            numbers = self._numbers(words, path)
            quota, period = (numbers[0], numbers[1]) if len(numbers) > 1 else (None, None)
        else:
            path = f"{group.folder}/cpu.cfs_quota_us"
            quota, period = self._number(path), self._number(f"{group.folder}/cpu.cfs_period_us")
        if quota is None or period is None:
            return None
        if quota <= 0 or period <= 0:
            self._tell(path, f"a quota of {quota} in {period} µs")
            return None
        return quota / period

    def _group_seconds(self, group: _Group) -> float | None:
        if group.version == 2:
            usage = self._table(f"{group.folder}/cpu.stat").get("usage_usec")
            return None if usage is None else usage / 1e6
        # Mounted with the quota or by itself; the names agree.
        for other in self._groups("cpuacct"):
            if other.name == group.name:
                usage = self._number(f"{other.folder}/cpuacct.usage")
                return None if usage is None else usage / 1e9
        return None

    def _group_throttled(self, group: _Group) -> float | None:
        table = self._table(f"{group.folder}/cpu.stat")
        name, unit = ("throttled_usec", 1e6) if group.version == 2 else ("throttled_time", 1e9)
        return table[name] / unit if name in table else None

    # --- Memory ------------------------------------------------------------------------------

    def memory(self) -> Memory | None:
        """Return the limit that leaves the least: a group's, of all that this process is in, or the machine's."""
        found = [self._machine_memory(), *map(self._group_memory, self._memory_groups())]
        limits = [memory for memory in found if memory is not None]
        return min(limits, key=lambda memory: (memory.limit - (memory.used or 0), memory.limit), default=None)

    def memory_limit(self) -> int | None:
        """Return the bytes of RAM that the limit which leaves the least allows."""
        memory = self.memory()
        return memory.limit if memory else None

    def memory_used(self) -> int | None:
        """Return the bytes in use under this limit, without page cache and what is swapped out."""
        memory = self.memory()
        return memory.used if memory else None

    def rss(self) -> int | None:
        """Return the bytes of anonymous memory that this process has in RAM; with mapped files where not told apart."""
        table = self._table("/proc/self/status")
        return table.get("RssAnon", table.get("VmRSS")) or self._ask(_rss_elsewhere)

    def _machine_memory(self) -> Memory | None:
        table = self._table("/proc/meminfo")
        total = table.get("MemTotal")
        if total is None:
            return self._ask(_memory_elsewhere)
        available = table.get("MemAvailable")
        if available is None and "MemFree" in table:  # before Linux 3.14
            cache = sum(table.get(name, 0) for name in ("Buffers", "Cached", "SReclaimable"))
            available = table["MemFree"] + cache - table.get("Shmem", 0)
        return Memory(total, None if available is None else max(0, total - available))

    def _memory_groups(self) -> list[_Group]:
        """Return the groups whose limits hold for this process, the innermost first."""
        groups = self._groups("memory")
        if groups and groups[0].version == 2:
            return groups
        # A group of version 1 that is not hierarchical puts no limit on those below it.
        return groups[:1] + [
            group for group in groups[1:] if self._number(f"{group.folder}/memory.use_hierarchy") in (1, None)
        ]

    def _group_memory(self, group: _Group) -> Memory | None:
        table = self._table(f"{group.folder}/memory.stat")
        if group.version == 2:
            names, prefix = ("memory.max", "memory.high"), ""
            limits = [self._number(f"{group.folder}/{name}") for name in names]
        else:
            # With swap included is a limit on memory too. The hierarchical ones know of groups that are out of sight.
            names, prefix = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), "total_"
            limits = [self._number(f"{group.folder}/{name}") for name in names]
            limits += [table.get("hierarchical_memory_limit"), table.get("hierarchical_memsw_limit")]
        known = [limit for limit in limits if limit is not None and 0 <= limit < _UNLIMITED]
        if not known:
            return None
        anonymous = "anon" if group.version == 2 else "rss"
        used = table.get(prefix + anonymous, table.get(anonymous))
        shared = table.get(f"{prefix}shmem", table.get("shmem", 0))
        return Memory(min(known), None if used is None else used + shared)

    # --- Stalls ------------------------------------------------------------------------------

    def psi(self, resource: str) -> float | None:
        """Return the share of the last ten seconds in which some task waited for *resource*: cpu, memory or io.

        For this process's control group where it is told, else for the machine.
        """
        percent = self._stall(resource, "avg10")
        return None if percent is None else percent / 100

    def stalled_seconds(self, resource: str) -> float | None:
        """Return the time in which some task waited for *resource*; two readings tell more quickly than `psi`."""
        microseconds = self._stall(resource, "total")
        return None if microseconds is None else microseconds / 1e6

    def _stall(self, resource: str, name: str) -> float | None:
        if resource not in _STALLS:
            raise ValueError(f"resource must be one of {', '.join(_STALLS)}, not {resource!r}")
        own = [f"{group.folder}/{resource}.pressure" for group in self._groups("")[:1]]
        for path in (*own, f"/proc/pressure/{resource}"):
            text = self._read(path)
            if text is not None:
                found = re.search(rf"^some .*?\b{name}=(\d+(?:\.\d+)?)(?:\s|$)", text, re.MULTILINE)
                if found:
                    return float(found[1])
                self._tell(path, f"no {name} in {text!r:.80}")
        return None

    # --- Control groups ----------------------------------------------------------------------

    def _groups(self, controller: str) -> list[_Group]:
        """Return the groups of this process under *controller* (empty: version 2), the innermost first."""
        paths: dict[str, str] = {}
        for line in (self._read("/proc/self/cgroup") or "").splitlines():
            _, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            paths.update(dict.fromkeys(names.split(","), path))
        for name in (controller, ""):
            groups = self._ladder(name, paths[name]) if name in paths else []
            if groups:
                return [_Group(group, folder, 1 if name else 2) for group, folder in groups]
        return []

    def _ladder(self, controller: str, path: str) -> list[tuple[str, str]]:
        """Return name and folder of the group at *path* and of those above it, as far up as can be seen."""
        if self._mounts is None:
            self._mounts = self._find_mounts()
        mounts = [mount for mount in self._mounts if controller in mount.controllers]
        for mount in mounts:
            below = _below(path, mount.root)
            if below is not None and self._is_folder(mount.point + below):
                parts = below.split("/")[1:]
                names = ["/".join(["", *parts[:depth]]) for depth in range(len(parts), -1, -1)]
                return [(name, mount.point + name) for name in names]
        # In a container the path may be that of the host: what is seen there is the container's own group.
        for mount in mounts:
            if self._is_folder(mount.point):
                return [("", mount.point)]
        if mounts:
            self._mounts = None  # they were moved: look for them at the next reading
        return []

    def _find_mounts(self) -> list[_Mount]:
        """Return the mounts of control groups; those that show most of the tree come first."""
        lines = (self._read("/proc/self/mountinfo") or "").splitlines()
        mounts = [mount for line in lines if (mount := _mount(line))]
        return sorted(mounts, key=lambda mount: len(mount.root))

    def _is_folder(self, path: str) -> bool:
        return os.path.isdir(self._base + path)

    # --- Files -------------------------------------------------------------------------------

    def _read(self, path: str) -> str | None:
        try:
            with open(self._base + path, "rb") as file:
                return file.read().decode("utf-8", "surrogateescape")
        except OSError as exc:
            if exc.errno not in _ABSENT:
                self._tell(path, str(exc))
            return None

    def _number(self, path: str) -> int | None:
        """Return the number in a file, `None` where it says that there is no limit."""
        words = (self._read(path) or "max").split()
        if words in (["max"], ["-1"]):
            return None
        numbers = self._numbers(words, path)
        return numbers[0] if numbers else None

    def _numbers(self, words: Sequence[str], path: str) -> list[int]:
        """Return the numbers that *words* are; none at all if one of them is something else."""
        if words and all(word.isascii() and word.isdecimal() and len(word) < 20 for word in words):
            return [int(word) for word in words]
        if words:
            self._tell(path, f"{' '.join(words)!r:.80} where numbers are due")
        return []

    def _table(self, path: str) -> dict[str, int]:
        """Return the numbers that a file lists by name, in its unit, or in bytes where that is kB."""
        text = self._read(path) or ""
        found = _LISTED.findall(text)
        if text and not found:
            self._tell(path, f"{text!r:.80} where names and numbers are due")
        return {name: int(digits) * (1024 if unit else 1) for name, digits, unit in found}

    def _ask(self, question: Callable[[], T]) -> T | None:
        """Ask psutil, which may be missing or know as little of this platform."""
        try:
            return question()
        except Exception as exc:
            self._tell(question.__name__.strip("_").replace("_", " "), f"{type(exc).__name__}: {exc}")
            return None

    def _tell(self, what: str, why: str) -> None:
        """Log once that something cannot be read."""
        if what not in self._told:
            self._told.add(what)
            _logger.warning("a gauge is unknown, %r cannot be read: %s", what, why)


def _cpus(tightest: tuple[_Group, float] | None) -> float:
    count = float(_processor_count())
    return min(count, tightest[1]) if tightest else count


def _mount(line: str) -> _Mount | None:
    place, _, kind = line.partition(" - ")
    fields, kinds = place.split(" "), kind.split(" ")
    if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
        return None
    controllers = frozenset({""}) if kinds[0] == "cgroup2" else frozenset(kinds[2].split(","))
    return _Mount(controllers, _unescaped(fields[3]).rstrip("/"), _unescaped(fields[4]))


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _below(path: str, root: str) -> str | None:
    """Return what follows *root* in *path*, `None` where it is not below it."""
    if ".." in path.split("/") or not f"{path}/".startswith(f"{root}/"):
        return None
    return path[len(root) :].rstrip("/")


def _affinity() -> frozenset[int] | None:
    ask: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return frozenset(ask(0)) if ask else None


def _processor_count() -> int:
    """Return the processors that this process may run on, or as many as the user told Python (3.13)."""
    ask: Callable[[], int | None] | None = getattr(os, "process_cpu_count", None)
    if ask:
        return ask() or 1
    return len(_affinity() or ()) or os.cpu_count() or 1


def _ticks_per_second() -> int:
    return os.sysconf("SC_CLK_TCK")


def _busy_elsewhere() -> Busy:
    import psutil

    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return Busy(sum(times) - idle, frozenset(range(psutil.cpu_count() or 1)))


def _children_elsewhere() -> float:
    import psutil

    seconds = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # it has ended
            continue
        seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def _memory_elsewhere() -> Memory:
    import psutil

    memory = psutil.virtual_memory()
    return Memory(memory.total, memory.total - memory.available)


def _rss_elsewhere() -> int:
    import psutil

    return psutil.Process().memory_info().rss
