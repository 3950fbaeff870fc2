"""The main job: a month of real flights, from a CSV file into SQLite, each flight once whatever happens.

It reads rows, parses and checks them, adds airline, airports, plane and weather, and writes them in batches.
Rows that are malformed are set aside with the reason, in the same SQLite file.
Stop it with Ctrl-C or `kill -9` and start it again: it goes on where it was.

    python examples/flights.py                      # January 2013, into build/flights.db
    python examples/flights.py --fresh              # from the beginning
    python examples/flights.py --backend asyncio
    python examples/flights.py --year build/data/flights-2013.csv.gz      # the whole year; `make demo-year` fetches it
"""

from __future__ import annotations

import argparse
import csv
import gzip
import logging
import os
import signal
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import date
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple, TextIO

import anyio
from attrs import define, field, frozen

import forebay
from forebay.abc import BatchInfo, DeadLettered, DeadLetterFilter, Outcome
from forebay_sqlite import (
    SqliteDeadLetterStore,
    SqliteSink,
    open_checkpointed,
    open_sqlite_dead_letters,
    open_sqlite_sink,
)

DATA = Path(__file__).parent / "data"
HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,"
    "tailnum,origin,dest,air_time,distance,hour,minute,time_hour"
)
FIELDS: Sequence[str] = HEADER.split(",")
WEATHER = ["temp", "wind_speed", "precip", "visib"]
COLUMNS = {  # of the table, in the order of the values that enrich() returns
    "time_hour": "TEXT NOT NULL",
    "carrier": "TEXT NOT NULL",
    "flight": "INTEGER NOT NULL",
    "month": "INTEGER NOT NULL",
    "day": "INTEGER NOT NULL",
    "sched_dep_time": "INTEGER NOT NULL",
    **dict.fromkeys(["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "distance"], "INTEGER"),
    **dict.fromkeys(["tailnum", "origin", "dest", "airline", "origin_name", "dest_name"], "TEXT"),
    **{"manufacturer": "TEXT", "model": "TEXT", "seats": "INTEGER"},
    **dict.fromkeys(WEATHER, "REAL"),
}
KEY = ["time_hour", "carrier", "flight"]


class InputError(Exception):
    """The input file cannot be read, or not to its end."""


# --- Reading -------------------------------------------------------------------------------------


def read(path: Path, start: int) -> Iterator[bytes]:
    """Yield the rows of *path* from number *start* (0 is the first) on, as bytes: one may be no text at all."""
    row = start
    try:
        with gzip.open(path) as file:
            header = file.readline().decode(errors="replace").strip()
            if header != HEADER:
                raise InputError(f"{path} is no file of flights: it begins with {header[:60]!r}")
            for line in islice(file, start, None):
                yield line.rstrip(b"\r\n")
                row += 1
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged behind row {row:,} ({error}); fetch it again and go on") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def count_rows(path: Path) -> int:
    """Return how many rows *path* has, for the progress bar; of a damaged file, how many can be read."""
    count = 0
    with suppress(EOFError, zlib.error, OSError), gzip.open(path) as file:
        while block := file.read1(1 << 20):
            count += block.count(b"\n")
    return max(0, count - 1)


# --- Parsing: a ValueError sets the row aside ----------------------------------------------------


class Flight(NamedTuple):
    """A flight as the file tells it, checked; what was `NA` is `None`, such as the times of a cancelled flight."""

    time_hour: str
    carrier: str
    flight: int
    month: int
    day: int
    sched_dep_time: int
    dep_time: int | None
    dep_delay: int | None
    arr_time: int | None
    arr_delay: int | None
    air_time: int | None
    distance: int
    tailnum: str | None
    origin: str
    dest: str


def parse(line: bytes) -> Flight:
    """Return the flight in a row of the file."""
    values = next(csv.reader((decoded(line),)))
    if len(values) < len(FIELDS):
        raise ValueError(f"{FIELDS[len(values)]} is missing: the row ends after {values[-1]!r}")
    if len(values) > len(FIELDS):
        raise ValueError(f"a row has {len(FIELDS)} fields, not {len(values)}")
    raw = dict(zip(FIELDS, values, strict=True))
    year, month, day = (whole(raw, name) for name in ("year", "month", "day"))
    if not 1 <= month <= 12:
        raise ValueError(f"month must be 1 to 12, not {month}")
    try:
        date(year, month, day)
    except ValueError:
        raise ValueError(f"day must be a day of month {month}, not {day}") from None
    if (distance := whole(raw, "distance")) <= 0:
        raise ValueError(f"distance must be more than 0 miles, not {distance}")
    return Flight(
        time_hour=text(raw, "time_hour"),
        carrier=text(raw, "carrier"),
        flight=whole(raw, "flight"),
        month=month,
        day=day,
        sched_dep_time=whole(raw, "sched_dep_time"),
        dep_time=whole_or_na(raw, "dep_time"),
        dep_delay=whole_or_na(raw, "dep_delay"),
        arr_time=whole_or_na(raw, "arr_time"),
        arr_delay=whole_or_na(raw, "arr_delay"),
        air_time=whole_or_na(raw, "air_time"),
        distance=distance,
        tailnum=None if raw["tailnum"] == "NA" else raw["tailnum"],
        origin=text(raw, "origin"),
        dest=text(raw, "dest"),
    )


def decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        parts = dict(zip(FIELDS, line.split(b","), strict=False))
        name = next((name for name, part in parts.items() if "\ufffd" in part.decode(errors="replace")), "the row")
        raise ValueError(f"{name} must be UTF-8, not {parts.get(name, line)!r}") from None


def text(raw: Mapping[str, str], name: str) -> str:
    value = raw[name]
    if not value or value == "NA":
        raise ValueError(f"{name} must not be empty, but is {value!r}")
    return value


def whole(raw: Mapping[str, str], name: str) -> int:
    try:
        return int(raw[name])
    except ValueError:
        raise ValueError(f"{name} must be a whole number, not {raw[name]!r}") from None


def whole_or_na(raw: Mapping[str, str], name: str) -> int | None:
    return None if raw[name] == "NA" else whole(raw, name)


# --- Enriching -----------------------------------------------------------------------------------


@frozen
class Tables:
    """What is known about airlines, airports, planes and the weather, by their keys."""

    airlines: Mapping[str, str]
    airports: Mapping[str, str]
    planes: Mapping[str, tuple[object, ...]]
    weather: Mapping[tuple[str, str], tuple[object, ...]]

    def enrich(self, flight: Flight) -> tuple[object, ...]:
        """Return the row to write. What nobody recorded of planes, destinations and weather becomes NULL."""
        if flight.origin not in self.airports:
            raise ValueError(f"origin must be a known airport, not {flight.origin!r}")
        if flight.carrier not in self.airlines:
            raise ValueError(f"carrier must be a known airline, not {flight.carrier!r}")
        return (
            *flight,
            self.airlines[flight.carrier],
            self.airports[flight.origin],
            self.airports.get(flight.dest),
            *self.planes.get(flight.tailnum or "", (None, None, None)),
            *self.weather.get((flight.origin, flight.time_hour), (None, None, None, None)),
        )


def load_tables() -> Tables:
    """Read the four look-up tables."""
    return Tables(
        {row["carrier"]: row["name"] for row in table("airlines")},
        {row["faa"]: row["name"] for row in table("airports")},
        {row["tailnum"]: (row["manufacturer"], row["model"], whole_or_na(row, "seats")) for row in table("planes")},
        {(row["origin"], row["time_hour"]): tuple(map(measured, WEATHER, repeat(row))) for row in table("weather")},
    )


def measured(name: str, row: Mapping[str, str]) -> float | None:
    return None if row[name] == "NA" else float(row[name])


def table(name: str) -> Iterator[dict[str, str]]:
    with gzip.open(DATA / f"{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


# --- Showing how far it is -----------------------------------------------------------------------


@define
class Progress:
    """An observer: draws a bar on a terminal, and elsewhere prints a line for every tenth."""

    total: int
    before: int
    """Rows that earlier runs have done."""
    out: TextIO = field(factory=lambda: sys.stderr)
    done: int = 0
    dead: int = 0
    started: float = field(factory=time.monotonic)
    shown: float = 0.0
    tenth: int = 0

    def batch_done(self, info: BatchInfo, /) -> None:
        self.done += info.done
        self.show()

    def dead_lettered(self, info: DeadLettered, /) -> None:
        self.dead += len(info.letters)
        self.show()

    def show(self) -> None:
        now = time.monotonic()
        if self.out.isatty():
            if now >= self.shown + 0.1:
                self.shown = now
                self.out.write(f"\r{self.bar(os.get_terminal_size(self.out.fileno()).columns)}\x1b[K")
                self.out.flush()
        elif int(10 * self.share) > self.tenth:
            self.tenth = int(10 * self.share)
            print(f"flights: {self.text()}", file=self.out, flush=True)

    @property
    def share(self) -> float:
        return min(1.0, (self.before + self.done + self.dead) / max(1, self.total))

    def text(self) -> str:
        rows = self.done + self.dead
        rate = rows / max(time.monotonic() - self.started, 1e-9)
        minutes, seconds = divmod(round((1 - self.share) * self.total / max(rate, 1e-9)), 60)
        shown = f"{self.share:4.0%}  {self.before + rows:>7,} of {self.total:,} rows {rate:>7,.0f}/s"
        return f"{shown}  {minutes}:{seconds:02} left  {self.dead} set aside"

    def bar(self, columns: int) -> str:
        text = self.text()
        width = min(40, columns - len(text) - 4)
        return f"[{'#' * int(width * self.share):-<{width}}] {text}" if width >= 4 else text[: columns - 1]

    def clear(self) -> None:
        if self.out.isatty():
            self.out.write("\r\x1b[K")
            self.out.flush()


def report(summary: forebay.Summary, before: int, database: Path) -> Iterator[str]:
    """Yield the lines about this run."""
    seconds = max(summary.seconds, 1e-9)
    rows = summary.done + summary.dead
    yield f"read       {summary.seen:>9,} rows in {seconds:.2f} s" + (
        f", {before:,} were done before" if before else ""
    )
    yield f"written    {summary.done:>9,} rows into table flights of {database}"
    yield f"set aside  {summary.dead:>9,} rows into its table forebay_dead_letters"
    latency = ", ".join(f"{name} {getattr(summary.latency, name) * 1000:.0f} ms" for name in ("p50", "p95", "p99"))
    yield f"rate       {rows / seconds:>9,.0f} rows/s"
    yield f"from read to settled: {latency}"
    yield ""
    yield f"{'stage':<10} {'rows':>9} {'failed':>8} {'seconds':>8} {'of run':>7} {'batches':>8}  of rows"
    for stage in summary.stages:
        sizes, share = stage.batch_sizes, stage.seconds / seconds
        row = f"{stage.name:<10} {stage.received:>9,} {stage.failed:>8,} {stage.seconds:>8.3f} {share:>7.0%}"
        yield f"{row} {stage.calls:>8,}  p50 {sizes.p50:.0f}, up to {sizes.maximum:.0f}" if stage.calls else row
    yield ""


async def reasons(store: SqliteDeadLetterStore, job: str) -> list[str]:
    """Return a line for each kind of dead letter in the database, those of earlier runs too, with an example."""
    lines: list[tuple[int, int, str]] = []
    for group in await store.groups(DeadLetterFilter(pipeline=job)):
        (letter,) = await store.find(DeadLetterFilter(pipeline=job, fingerprint=group.fingerprint), limit=1)
        row = int(letter.id.offset) + 1
        line = f"{group.stage:<10} {group.count:>9,}  row {row:,}: {letter.message}"
        lines.append((-group.count, row, line[:79]))
    return [f"{'stage':<10} {'set aside':>9}  such as", *(line for _, _, line in sorted(lines))] if lines else []


# --- The job -------------------------------------------------------------------------------------


async def write(sink: SqliteSink, flights: list[tuple[object, ...]]) -> Sequence[Outcome] | None:
    """Write a batch. While a disk is full forebay pauses and tries again; this job ends instead and says so."""
    try:
        return await sink.write(flights)
    except forebay.EngineError as error:
        if error.category != forebay.Category.DEPENDENCY:
            raise
        # The stage has no dead letters, so that a failure for good ends the run and the rows count as not done.
        return [forebay.Failed(forebay.EngineError(str(error), category="permanent"))] * len(flights)


async def run(options: argparse.Namespace) -> int:
    """Run the job, print the report, and return the exit code."""
    data, database = Path(options.data), Path(options.database)
    job = data.name.removesuffix(".csv.gz")  # each file has a checkpoint of its own
    after = total = 0
    lines: list[str] = []
    # `normal`: a power cut may cost the last transactions, but rows and checkpoint are lost together.
    async with (
        forebay.open_scope(signals=True, name=job) as scope,
        open_checkpointed(partial(read, data), name=job, path=database, synchronous="normal") as rows,
        open_sqlite_dead_letters(path=database, synchronous="normal") as store,
        open_sqlite_sink(
            table="flights", columns=COLUMNS, key=KEY, checkpoint=job, path=database, synchronous="normal"
        ) as sink,
    ):
        tables, total = load_tables(), count_rows(data)
        before = len(await rows.checkpoint.load())
        flights = (
            forebay.pipeline(rows, name=job)
            .map(parse, name="parse", dead_letters=store)
            .map(tables.enrich, name="enrich", dead_letters=store)
            .map_batches(partial(write, sink), name="write", max_size=options.max_size)
        )
        progress = Progress(total, before)
        try:
            summary = await flights.run(observers=[progress])
        finally:
            progress.clear()
        after = len(await rows.checkpoint.load())
        if summary.seen or scope.draining:
            lines = [*report(summary, before, database), *await reasons(store, job)]
        else:
            lines = [f"nothing to do: all {after:,} rows are dealt with in {database}; --fresh starts over"]
    if lines:
        print(*lines, sep="\n", flush=True)
    if scope.reason is None:
        return 0
    where = f"after {after:,} of {total:,} rows" if lines else "at once"
    print(f"flights: stopped by {scope.reason} {where}; the same command goes on there", file=sys.stderr)
    return 128 + signal.Signals[scope.reason]


def main() -> int:
    """Read the command line, run the job, and put what went wrong into one sentence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", metavar="PATH", default=DATA / "flights-2013-01.csv.gz", help="rows to read")
    parser.add_argument("--year", metavar="PATH", help="rows of the whole year instead, into build/flights-2013.db")
    parser.add_argument("--database", metavar="PATH", help="SQLite file to write (build/flights.db)")
    parser.add_argument("--fresh", action="store_true", help="delete the database first")
    parser.add_argument("--max-size", metavar="N", type=int, default=256, help="most rows in a batch (256)")
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    options = parser.parse_args()
    if options.max_size < 1:
        parser.error(f"--max-size must be at least 1, not {options.max_size}")
    options.database = options.database or ("build/flights-2013.db" if options.year else "build/flights.db")
    options.data = options.year or options.data
    # What forebay logs on the way is said below in one sentence; a service would set up its logging here.
    logging.getLogger("forebay").addHandler(logging.NullHandler())
    try:
        if options.fresh:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{options.database}{suffix}").unlink(missing_ok=True)
        Path(options.database).parent.mkdir(parents=True, exist_ok=True)
        return anyio.run(run, options, backend=options.backend)
    except (InputError, forebay.ForebayError, OSError) as error:
        print(f"flights: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
