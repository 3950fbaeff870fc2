"""Runs the flights demo as a program, and counts what its table must hold without any of its code."""

import csv
import gzip
import io
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples/data"
JANUARY = DATA / "flights-2013-01.csv.gz"
ROWS, GOOD, DAMAGED = 27_013, 27_004, 9


def command(database: Path, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "examples/flights.py"), "--database", str(database), *options]


def run(database: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(database, *options), capture_output=True, text=True, timeout=60)


def start(database: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(database, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def wait_for_lines(process: subprocess.Popen[str], count: int) -> None:
    """Wait until *process* has said *count* times how far it is."""
    assert process.stderr is not None
    for _ in range(count):
        line = process.stderr.readline()
        assert "left" in line, line + process.stderr.read()


def table(name: str) -> list[dict[str, str]]:
    with gzip.open(DATA / f"{name}.csv.gz", "rb") as file:
        return list(csv.DictReader(io.StringIO(file.read().decode(errors="replace"))))


Totals = dict[str, object]


def expected() -> Totals:
    """Return what the table must hold, from an independent pass over the files."""
    flights = [row for row in table("flights-2013-01") if not row["tailnum"].startswith("DAMAGED-")]
    planes = {row["tailnum"]: row for row in table("planes")}
    airports = {row["faa"]: row["name"] for row in table("airports")}
    airlines = {row["carrier"]: row["name"] for row in table("airlines")}
    weather = {(row["origin"], row["time_hour"]): row for row in table("weather")}
    found = [weather[key] for row in flights if (key := (row["origin"], row["time_hour"])) in weather]
    totals: Totals = {
        "rows": len(flights),
        "keys": len({(row["time_hour"], row["carrier"], row["flight"]) for row in flights}),
        "cancelled": sum(row["dep_time"] == "NA" for row in flights),
        "no tail number": sum(row["tailnum"] == "NA" for row in flights),
        "known planes": sum(row["tailnum"] in planes for row in flights),
        "seats": sum(int(planes[row["tailnum"]]["seats"]) for row in flights if row["tailnum"] in planes),
        "destinations": sum(row["dest"] in airports for row in flights),
        "airlines": dict(Counter(airlines[row["carrier"]] for row in flights)),
        "origins": dict(Counter(airports[row["origin"]] for row in flights)),
        "days": dict(Counter(int(row["day"]) for row in flights)),
    }
    for name in ("flight", "distance", "air_time", "dep_delay", "arr_delay"):
        totals[name] = sum(int(row[name]) for row in flights if row[name] != "NA")
    for name in ("temp", "wind_speed", "precip", "visib"):
        totals[name] = round(sum(float(row[name]) for row in found if row[name] != "NA"), 3)
    return totals


def written(database: Path) -> Totals:
    """Return what the table holds."""
    connection = sqlite3.connect(database)
    try:
        (check,) = connection.execute("PRAGMA integrity_check").fetchone()
        assert check == "ok"

        def one(expression: str) -> object:
            return connection.execute(f"SELECT {expression} FROM flights").fetchone()[0]

        def by(column: str) -> dict[str, int]:
            return dict(connection.execute(f"SELECT {column}, count(*) FROM flights GROUP BY {column}").fetchall())

        totals: Totals = {
            "rows": one("count(*)"),
            "keys": one("count(DISTINCT time_hour || carrier || flight)"),
            "cancelled": one("count(*) - count(dep_time)"),
            "no tail number": one("count(*) - count(tailnum)"),
            "known planes": one("count(manufacturer)"),
            "seats": one("sum(seats)"),
            "destinations": one("count(dest_name)"),
            "airlines": by("airline"),
            "origins": by("origin_name"),
            "days": by("day"),
        }
        for name in ("flight", "distance", "air_time", "dep_delay", "arr_delay"):
            totals[name] = one(f"sum({name})")
        for name in ("temp", "wind_speed", "precip", "visib"):
            totals[name] = one(f"round(sum({name}), 3)")
        return totals
    finally:
        connection.close()


def set_aside(database: Path) -> dict[int, tuple[str, str]]:
    """Return row number (the first is 1) -> stage and message of each dead letter."""
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute('SELECT "offset", stage, message FROM forebay_dead_letters').fetchall()
    finally:
        connection.close()
    assert len({row[0] for row in rows}) == len(rows)
    return {int(offset) + 1: (stage, message) for offset, stage, message in rows}


def rows_written(database: Path) -> int:
    """Return how many flights are in the table, 0 if there is none yet."""
    connection = sqlite3.connect(database)
    try:
        return int(connection.execute("SELECT count(*) FROM flights").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()
