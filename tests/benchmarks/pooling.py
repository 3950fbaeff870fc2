"""Memory pooling: peak, average, allocations and CPU time of buffers, lists and slices used again, beside fresh ones.

    python -m tests.benchmarks.pooling [--only WORD] [--rounds N] [--quick] [--backend NAME] [--json PATH] [--profile]

Each way of doing a workload runs in fresh processes: one traced for exact peak and average, one plain for resident
memory and CPU time, and two under glibc's `libmemusage.so`, which counts calls of the allocator. Prints tables and
writes the rows as JSON; takes about five minutes. Below each way stands its share of what it is held against: `ok` is
a fifth saved at the peak or on average, `SHORT` is less. With `--profile` it shows where a pipeline's memory goes
instead. docs/explanation/memory.md says what was made of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import linecache
import os
import re
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import attrs

import forebay
from forebay.abc import Settlement
from tests.benchmarks.measure import Row
from tests.benchmarks.pooling_ways import WORKLOADS, plugins
from tests.benchmarks.run import ROOT, header
from tests.benchmarks.workload import BATCH, CountedSource, Item, enrich, orders

LAST = ROOT / "build" / "bench" / "pooling.json"
BAR = 0.8
"""Most that a way may use of the memory of what it is held against, to be worth having."""
SAMPLE_SECONDS = 0.0005

# --- One run, in a process of its own ----------------------------------------------------------


class Reading(NamedTuple):
    """What one run used; memory in bytes over what there was when it started."""

    digest: int
    nbytes: int
    peak: int = 0
    average: float = 0.0
    seconds: float = 0.0
    """CPU time of the thread that the event loop runs in."""


class Sampler:
    """Reads memory in a thread, every half millisecond for as long as a block runs."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.total = 0
        self.count = 0

    def __enter__(self) -> Sampler:
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(SAMPLE_SECONDS / 4)  # or it would see the loop only while that waits
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        sys.setswitchinterval(self._switch)

    @property
    def average(self) -> float:
        return self.total / max(1, self.count)

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.total += self._read()
            self.count += 1


async def traced(workload: str, way: str, count: int) -> Reading:
    """Do the work with every allocation of Python traced: exact, and slow."""
    await WORKLOADS[workload].run(way, 0)  # what a first run loads is no growth
    gc.collect()
    tracemalloc.start()
    with Sampler(lambda: tracemalloc.get_traced_memory()[0]) as sampler:
        tally = await WORKLOADS[workload].run(way, count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Reading(tally.digest, tally.nbytes, peak, sampler.average)


async def plain(workload: str, way: str, count: int) -> Reading:
    """Do the work as it is and look at the resident memory of the process."""
    await WORKLOADS[workload].run(way, 0)
    gc.collect()
    before = resident()
    forget_peak()
    started = time.thread_time()
    with Sampler(resident) as sampler:
        tally = await WORKLOADS[workload].run(way, count)
    seconds = time.thread_time() - started
    return Reading(tally.digest, tally.nbytes, resident_peak() - before, sampler.average - before, seconds)


async def counted(workload: str, way: str, count: int) -> Reading:
    """Do the work for whoever counts calls of the allocator from outside."""
    tally = await WORKLOADS[workload].run(way, count)
    return Reading(tally.digest, tally.nbytes)


KINDS: Mapping[str, Callable[[str, str, int], Awaitable[Reading]]] = {
    "traced": traced,
    "plain": plain,
    "counted": counted,
}


def resident() -> int:
    """Return the resident memory of this process; 0 where the system does not say."""
    return _status("VmRSS")


def resident_peak() -> int:
    """Return the most that `resident` has been since `forget_peak`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def forget_peak() -> None:
    """Let the kernel's mark of the peak start again from what is resident now; Linux only."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run_child(kind: str, workload: str, way: str, count: int, backend: str) -> tuple[Reading, int | None]:
    """Run one way in a fresh process; return its reading and, if *kind* is "counted", calls of the allocator."""
    arguments = ["--child", kind, workload, way, str(count), backend]
    environment = dict(os.environ)
    if kind == "counted":
        environment |= {"LD_PRELOAD": "libmemusage.so", "PYTHONMALLOC": "malloc"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.pooling", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{workload}, {way} ended with {done.returncode}: {done.stderr}")
    return Reading(*json.loads(done.stdout)), calls_of_allocator(done.stderr) if kind == "counted" else None


def calls_of_allocator(report: str) -> int | None:
    """Return calls of malloc, realloc and calloc as `libmemusage.so` tells them; `None` where there is none."""
    plain_text = re.sub(r"\x1b\[[\d;]*m", "", report)
    calls = re.findall(r"^ *(?:malloc|realloc|calloc)\| *(\d+)", plain_text, re.MULTILINE)
    return sum(map(int, calls)) if len(calls) == 3 else None


# --- All of them -------------------------------------------------------------------------------


@attrs.define
class Figures:
    """What was read of one way of doing a workload."""

    count: int
    """Units of work in each run."""
    traced: list[Reading] = attrs.field(factory=list[Reading])
    plain: list[Reading] = attrs.field(factory=list[Reading])
    allocations: float | None = None
    """Calls of the allocator for an item more; `None` where they cannot be counted."""

    @property
    def peak(self) -> float:
        return statistics.median(one.peak for one in self.traced)

    @property
    def average(self) -> float:
        return statistics.median(one.average for one in self.traced)

    @property
    def resident_peak(self) -> float:
        return statistics.median(one.peak for one in self.plain)

    @property
    def resident_average(self) -> float:
        return statistics.median(one.average for one in self.plain)

    @property
    def seconds(self) -> float:
        return statistics.median(one.seconds for one in self.plain)


def measure(name: str, *, rounds: int, quick: bool, backend: str) -> dict[str, Figures]:
    """Measure all ways of a workload, interleaved, every other round in reverse.

    Raises:
        AssertionError: two of them did not send the same bytes.
    """
    workload = WORKLOADS[name]
    count = workload.count // 10 if quick else workload.count
    figures = {way: Figures(count) for way in workload.ways}
    for number in range(rounds):
        for way in list(figures)[:: 1 if number % 2 == 0 else -1]:
            figures[way].traced.append(run_child("traced", name, way, count, backend)[0])
            figures[way].plain.append(run_child("plain", name, way, count, backend)[0])
    for way, one in figures.items():
        few, many = (run_child("counted", name, way, part, backend)[1] for part in (count // 4, count // 2))
        if few is not None and many is not None:
            one.allocations = (many - few) / ((count // 2 - count // 4) * workload.items)
    check_same(name, figures)
    return figures


def check_same(name: str, figures: Mapping[str, Figures]) -> None:
    """Raise where not all runs of a workload sent the same bytes."""
    sent = {(one.digest, one.nbytes) for each in figures.values() for one in (*each.traced, *each.plain)}
    if len(sent) != 1:
        raise AssertionError(f"{name}: the ways sent different bytes: {sorted(sent)}")


def rows_of(name: str, figures: Mapping[str, Figures]) -> list[Row]:
    """Return the figures of each way, and the share it uses of what it is held against."""
    workload = WORKLOADS[name]
    rows: list[Row] = []

    def add(label: str, figure: float | None, unit: str, bar: float | None = None) -> None:
        rows.append(Row("pooling", f"{name}: {label}", figure, unit, bar))

    for way, one in figures.items():
        add(f"{way}, peak", one.peak / 1024, "KB")
        add(f"{way}, average", one.average / 1024, "KB")
        add(f"{way}, resident peak", one.resident_peak / 1024, "KB")
        add(f"{way}, resident average", one.resident_average / 1024, "KB")
        add(f"{way}, allocations an item", one.allocations, "")
        add(f"{way}, CPU an item", one.seconds / (one.count * workload.items) * 1e9, "ns")
        for other in workload.ways[way].against:
            add(f"{way} to {other}, peak", one.peak / figures[other].peak, "x", BAR)
            add(f"{way} to {other}, average", one.average / figures[other].average, "x", BAR)
    return rows


def shown(name: str, figures: Mapping[str, Figures]) -> str:
    """Return the table of a workload: memory in KB, and below each way what it saves of others."""
    workload = WORKLOADS[name]
    lines = [f"{name:<34}{'peak':>8}{'average':>9}{'resident':>10}{'average':>9}{'allocs':>8}{'CPU ns':>9}"]
    for way, one in figures.items():
        memory = (one.peak, one.average, one.resident_peak, one.resident_average)
        kilobytes = "".join(f"{each / 1024:>{width},.0f}" for each, width in zip(memory, (8, 9, 10, 9), strict=True))
        allocations = "–" if one.allocations is None else f"{one.allocations:.2f}"
        cpu = one.seconds / (one.count * workload.items) * 1e9
        lines.append(f"  {way:<32}{kilobytes}{allocations:>8}{cpu:>9,.0f}")
        for other in workload.ways[way].against:
            peak, average = one.peak / figures[other].peak, one.average / figures[other].average
            verdict = "ok" if min(peak, average) <= BAR else "SHORT"
            lines.append(f"    to {other:<27}{peak:>8.2f}{average:>9.2f}  {verdict}")
    return "\n".join(lines)


# --- Where the memory of a pipeline goes -------------------------------------------------------

OWNERS: Mapping[str, str] = {
    "_metrics.py": "readings of calls",
    "_stage.py": "readings of calls",  # where they are taken; the metrics keep them
    "_run.py": "readings of calls",
    "_ledger.py": "ledger",
    "_account.py": "ledger",
    "_ranges.py": "ledger",
    "_source.py": "lists of items",
    "_steps.py": "lists of items",
    "_batch.py": "pieces, batches, queue",
    "_batcher.py": "pieces, batches, queue",
    "_buffer.py": "pieces, batches, queue",
    "_feed.py": "pieces, batches, queue",
}
"""Whose memory it is that a module of forebay asks for."""


class UncheckedSource(CountedSource):
    """A source that is told of every item and keeps no account of it, so that none is in the profile."""

    def __init__(self, count: int) -> None:
        super().__init__(orders(count), 0)

    def _settle(self, settlement: Settlement) -> None:
        self.settlements += 1


async def held_at(call: int) -> tracemalloc.Snapshot:
    """Return what a pipeline of dicts holds in the given call of its sink, with its queue full."""
    snapshots: list[tracemalloc.Snapshot] = []
    calls = 0

    async def store(_: list[Item]) -> None:
        nonlocal calls
        calls += 1
        await anyio.sleep(0.001)
        if calls == call:
            gc.collect()
            snapshots.append(tracemalloc.take_snapshot())

    def recipe(count: int) -> forebay.ClosedPipeline:
        return forebay.pipeline(UncheckedSource(count)).map(enrich).map_batches(store, max_size=BATCH)

    await recipe(1).run(plugins=plugins())
    calls = 0
    tracemalloc.start()
    await recipe((call + 20) * BATCH).run(plugins=plugins())
    tracemalloc.stop()
    hidden = [tracemalloc.Filter(False, path) for path in (tracemalloc.__file__, __file__)]
    return snapshots[0].filter_traces(hidden)


def owner(path: Path) -> str:
    """Return whose memory it is that a line in *path* asked for."""
    if path.parent == Path(forebay.__file__).parent:
        return OWNERS.get(path.name, "the rest of forebay")
    return "items" if path == Path(orders.__code__.co_filename) else "event loop and the rest"


def profile(call: int, backend: str) -> str:
    """Return a table of what a pipeline holds in a call of its sink: by owner, and the largest lines."""
    snapshot = anyio.run(held_at, call, backend=backend)
    by_line = snapshot.statistics("lineno")
    total = sum(one.size for one in by_line)
    owners: Counter[str] = Counter()
    for one in by_line:
        owners[owner(Path(one.traceback[0].filename))] += one.size
    lines = [f"held in call {call:,} of the sink: {total / 1024:,.0f} KB"]
    lines += [f"  {size / 1024:>8.1f} KB {size / total:>6.1%}  {name}" for name, size in owners.most_common()]
    for one in by_line[:10]:
        frame = one.traceback[0]
        text = linecache.getline(frame.filename, frame.lineno).strip()
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        lines.append(f"  {one.size / 1024:>8.1f} KB {one.size / total:>6.1%}  {place:<18} {text:.70}")
    return "\n".join(lines)


# --- The command line --------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for."""
    if arguments[:1] == ["--child"]:
        kind, workload, way, count, backend = arguments[1:]
        reading = anyio.run(KINDS[kind], workload, way, int(count), backend=backend)
        json.dump(reading, sys.stdout)
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pooling", description="Compare ways of pooling.")
    parser.add_argument("--only", metavar="WORD", default="", help="workloads with this in their name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="trio", choices=["asyncio", "trio"])
    parser.add_argument("--quick", action="store_true", help="one round and a tenth of the work: a look")
    parser.add_argument("--json", type=Path, default=LAST, metavar="PATH", help="where to write the rows")
    parser.add_argument("--profile", action="store_true", help="show where the memory of a pipeline goes")
    given = parser.parse_args(arguments)
    if given.profile:
        print("\n\n".join(profile(call, given.backend) for call in (100, 1500)))
        return 0
    names = [name for name in WORKLOADS if given.only in name]
    if not names:
        parser.error(f"no workload has {given.only!r} in its name (there are: {', '.join(WORKLOADS)})")
    rows: list[Row] = []
    for name in names:
        figures = measure(name, rounds=1 if given.quick else given.rounds, quick=given.quick, backend=given.backend)
        rows += rows_of(name, figures)
        print(shown(name, figures), flush=True)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    written = [{**attrs.asdict(row), "ok": row.ok} for row in rows]
    given.json.write_text(json.dumps({**header(quick=given.quick), "rows": written}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
