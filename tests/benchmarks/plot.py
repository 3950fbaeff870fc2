"""Draws the cost of an item from the JSON of a run: python -m tests.benchmarks.plot build/bench/last.json."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BACKENDS = {"trio": "tab:blue", "asyncio": "tab:orange"}

Points = list[tuple[int, float]]


def points(rows: Sequence[dict[str, Any]], pattern: str, backend: str) -> Points:
    """Return (number in the name, figure) of the cost rows whose names match *pattern* on *backend*."""
    found: Points = []
    for row in rows:
        match = re.fullmatch(f"{pattern}, {backend}", row["name"])
        if row["benchmark"] == "cost" and match is not None and row["figure"] is not None:
            base, _, power = match[1].partition("^")
            found.append((int(base) ** int(power or 1), float(row["figure"])))
    return found


def floors(rows: Sequence[dict[str, Any]], backend: str) -> Points:
    """Return (items, ns) of the bare loop, which stands in the notes."""
    found: Points = []
    for row in rows:
        name = re.fullmatch(rf"an item of 10\^(\d), {backend}", row["name"])
        beside = re.search(r"bare loop (\d+) ns", row["note"])
        if name is not None and beside is not None:
            found.append((10 ** int(name[1]), float(beside[1])))
    return found


def _draw(axes: Any, values: Points, label: str, **style: Any) -> None:
    if values:
        axes.plot([x for x, _ in values], [y for _, y in values], label=label, **style)


def draw(rows: Sequence[dict[str, Any]], path: Path, caption: str) -> None:
    """Draw three panels into *path*: by count of items, of maps and of keys."""
    importlib.import_module("matplotlib").use("Agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    figure, (items, maps, keys) = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for backend, colour in BACKENDS.items():
        _draw(items, points(rows, r"an item of (10\^\d)", backend), f"forebay, {backend}", color=colour, marker="o")
        _draw(items, floors(rows, backend), f"bare loop beside {backend}", color=colour, marker=".", ls=":")
        _draw(maps, points(rows, r"(\d) maps?", backend), f"forebay, {backend}", color=colour, marker="o")
        by_keys = points(rows, r"an item of (1|10\^5) keys?", backend)
        _draw(keys, by_keys, f"forebay, {backend}", color=colour, marker="o")
    maps.axhline(1.2, color="grey", ls="--", label="bar")
    maps.axhline(1.0, color="grey", ls=":", label="bare loop with as many maps")
    for axes, title, x, y, log in (
        (items, "Cost by items in the run", "items", "CPU ns an item, start-up subtracted", True),
        (maps, "Cost by maps", "sync maps", "ratio to a bare loop with as many", False),
        (keys, "Cost by keys (key_by, in_order)", "keys", "CPU ns an item, start-up subtracted", True),
    ):
        axes.set(title=title, xlabel=x, ylabel=y, xscale="log" if log else "linear")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="lower right")
    maps.set_xticks([1, 2, 4, 8])
    figure.suptitle(caption, fontsize="medium")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draw beside the JSON that the command line names."""
    source = Path(sys.argv[1]).resolve()
    run = json.loads(source.read_text())
    path = source.with_name("cost.png")
    caption = f"Cost of an item, Python {run['python']}, {run['machine']['cpu']}, {run['date'][:10]}"
    draw(run["rows"], path, caption + ", quick" * run["quick"])
    print(f"plot: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
