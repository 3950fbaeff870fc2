"""Runs the benchmarks and prints a table.

    python tests/benchmarks/run.py [--only NAME] [--quick] [--json PATH] [--record]

Each benchmark is a module beside this one, run as a process of its own: none inherits another's caches or memory.
A figure above its bar is marked and is no failure; a benchmark that breaks is one.
docs/benchmarks/README.md says how to read the table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HISTORY = ROOT / "docs" / "benchmarks" / "history.jsonl"
LAST = ROOT / "build" / "bench" / "last.json"
TIME_LIMIT = 180.0
"""Seconds that one process may take; the whole run takes about five minutes."""


class Process(NamedTuple):
    """One process of a benchmark."""

    module: str
    arguments: tuple[str, ...] = ()
    python: str = sys.executable


def _on_both(module: str) -> tuple[Process, ...]:
    return tuple(Process(module, ("--backend", backend)) for backend in ("trio", "asyncio"))


def _bytewax() -> Process | None:
    """Return the process for bytewax, in this interpreter or in the project's older one; `None` if neither has it."""
    if find_spec("bytewax") is not None:
        return Process("overhead_bytewax")
    older = ROOT / ".venv-3.11" / "bin" / "python"
    if older.exists() and any(older.parents[1].glob("lib/python3.*/site-packages/bytewax")):
        return Process("overhead_bytewax", (), str(older))
    return None


def processes() -> dict[str, tuple[Process, ...]]:
    """Return the processes of each benchmark."""
    bytewax = _bytewax()
    return {
        "overhead": (*_on_both("overhead"), *([bytewax] if bytewax else [])),
        "cost": _on_both("cost"),
        "push": _on_both("push"),
        "latency": _on_both("latency"),
        "memory": (*_on_both("memory"), Process("memory", ("--unbounded",))),
        "import": (Process("startup"),),
    }


Row = dict[str, Any]


def run_process(process: Process, *, quick: bool) -> list[Row]:
    """Run one process and return its rows.

    Raises:
        subprocess.SubprocessError: it failed, or took too long.
    """
    command = [process.python, "-m", f"tests.benchmarks.{process.module}", *process.arguments, *["--quick"] * quick]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True, timeout=TIME_LIMIT)
    rows: list[Row] = json.loads(done.stdout)
    return rows


def run_benchmark(name: str, *, quick: bool) -> tuple[list[Row], bool]:
    """Return the rows of all processes of a benchmark, and whether all of them ended well."""
    rows: list[Row] = []
    well = True
    for process in processes()[name]:
        _progress(f"{name}: {process.module} {' '.join(process.arguments)}")
        try:
            rows += run_process(process, quick=quick)
        except subprocess.SubprocessError as error:
            well = False
            failed = f"{process.module} {' '.join(process.arguments)}".strip()
            rows.append({**_no_row(name, failed), "note": f"broke: {_reason(error)}"})
    if name == "overhead" and _bytewax() is None:
        rows.append({**_no_row(name, "bytewax"), "note": "not run: it is not installed, and has no wheel from 3.13 on"})
    return rows, well


def _reason(error: subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"it ended with {error.returncode}; its message is above"
    return f"it took more than {TIME_LIMIT:g} s"


def _no_row(benchmark: str, name: str) -> Row:
    return {"benchmark": benchmark, "name": name, "figure": None, "unit": "x", "bar": None, "ok": None, "note": ""}


def _progress(text: str) -> None:
    print(f"  … {text}", file=sys.stderr, flush=True)


# --- What is known about this run --------------------------------------------------------------


def cpu_model() -> str:
    """Return what kind of processor this is."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def header(*, quick: bool) -> Row:
    """Return what a later reader has to know of this run; nothing that names the machine."""
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD") or "none",
        "changed": bool(_git("status", "--porcelain")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        },
        "quick": quick,
    }


def key_of(row: Mapping[str, Any]) -> str:
    """Return the name of a row in the history."""
    return f"{row['benchmark']}: {row['name']}"


def history_line(head: Row, rows: Sequence[Row]) -> str:
    """Return the line that `--record` appends: ratios, and the figures with a bar that are none."""
    ratios = {key_of(row): _rounded(row["figure"]) for row in rows if row["unit"] == "x" and row["figure"] is not None}
    figures = {
        f"{key_of(row)} [{row['unit']}]": _rounded(row["figure"])
        for row in rows
        if row["unit"] != "x" and row["bar"] is not None and row["figure"] is not None
    }
    kept = {name: value for name, value in head.items() if name != "quick"}
    return json.dumps({**kept, "ratios": ratios, "figures": figures}, ensure_ascii=False)


def _rounded(figure: float) -> float:
    return float(f"{figure:.4g}")


def baseline(python: str) -> dict[str, float]:
    """Return the figures of the first line for this minor version of Python; empty where there is none."""
    minor = python.rpartition(".")[0]
    lines = HISTORY.read_text().splitlines() if HISTORY.exists() else []
    for line in lines:
        entry = json.loads(line)
        if entry["python"].rpartition(".")[0] == minor:
            return {**entry["ratios"], **{name.rpartition(" [")[0]: value for name, value in entry["figures"].items()}}
    return {}


# --- The table ---------------------------------------------------------------------------------


def table(rows: Sequence[Row], first: Mapping[str, float]) -> str:
    """Return the rows aligned, with the bar, what was reached, and the baseline where the history has one."""
    cells = [("", "reached", "bar", "", "baseline" if first else "", "")]
    for row in rows:
        before = first.get(key_of(row))
        cells.append(
            (
                key_of(row),
                _shown(row["figure"], row["unit"]),
                _shown(row["bar"], row["unit"]),
                {True: "ok", False: "SHORT", None: ""}[row["ok"]],
                "" if before is None else _shown(before, row["unit"]),
                row["note"],
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join(
        f"{name:<{widths[0]}}  {reached:>{widths[1]}}  {bar:>{widths[2]}}  {verdict:<{widths[3]}}  "
        f"{before:>{widths[4]}}  {note}".rstrip()
        for name, reached, bar, verdict, before, note in cells
    )


def _shown(figure: float | None, unit: str) -> str:
    if figure is None:
        return "–"
    if unit == "ns":
        return f"{figure:,.0f} ns"
    if not unit:
        return f"{figure:g}"
    return f"{figure:.2f} {unit}" if abs(figure) < 100 else f"{figure:,.0f} {unit}"


def _plot(path: Path) -> None:
    """Draw the cost benchmark from the JSON that was written."""
    if find_spec("matplotlib") is None:
        print("plot: not drawn, matplotlib is not installed")
        return
    subprocess.run([sys.executable, "-m", "tests.benchmarks.plot", str(path.resolve())], cwd=ROOT, check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return 1 if a benchmark broke."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description="Run the benchmarks and print a table.")
    parser.add_argument("--only", choices=list(processes()), help="run this benchmark alone")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and items: a look, not a measurement")
    parser.add_argument("--json", type=Path, default=LAST, metavar="PATH", help="where to write the rows")
    parser.add_argument("--record", action="store_true", help="append the ratios to docs/benchmarks/history.jsonl")
    given = parser.parse_args(arguments)
    if given.record and (given.only or given.quick):
        parser.error("--record keeps whole runs only; leave out --only and --quick")
    head = header(quick=given.quick)
    rows: list[Row] = []
    well = True
    for name in [given.only] if given.only else processes():
        some, ended_well = run_benchmark(name, quick=given.quick)
        rows += some
        well = well and ended_well
    _report(head, rows, given.json)
    if given.record and well:
        with HISTORY.open("a") as history:
            history.write(history_line(head, rows) + "\n")
    return 0 if well else 1


def _report(head: Row, rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, "rows": rows}, indent=1, ensure_ascii=False) + "\n")
    machine = head["machine"]
    print(f"{head['date']}  commit {head['commit']}{' (changed)' * head['changed']}  Python {head['python']}")
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']} when it began")
    print(table(rows, {} if head["quick"] else baseline(head["python"])))
    short = sum(row["ok"] is False for row in rows)
    barred = sum(row["ok"] is not None for row in rows)
    print(f"{barred - short} of {barred} figures are within their bars")
    if head["quick"]:
        print("quick: too few rounds to judge by")
    if any(row["benchmark"] == "cost" and row["figure"] is not None for row in rows):
        _plot(path)


if __name__ == "__main__":
    sys.exit(main())
