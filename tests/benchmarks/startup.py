"""Import: `import forebay` against the three packages it stands on, each in fresh processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from tests.benchmarks.measure import Options, Row, interleave, main, spread

UNWANTED = ("trio", "redis", "asyncpg", "psutil", "opentelemetry")
CODE = """
import json, sys, time
started = time.process_time()
import {}
seconds = time.process_time() - started
json.dump([seconds, sorted({{name.partition(".")[0] for name in sys.modules}})], sys.stdout)
"""


def imported(modules: str) -> tuple[float, set[str]]:
    """Import *modules* in a fresh process; return the CPU time it took and all that is loaded now."""
    done = subprocess.run([sys.executable, "-c", CODE.format(modules)], check=True, capture_output=True, text=True)
    seconds, names = json.loads(done.stdout)
    return float(seconds), set(names)


def seconds_of(modules: str) -> float:
    """Return the CPU time of `import modules` alone."""
    return imported(modules)[0]


def startup(options: Options) -> list[Row]:
    """Return the ratio of the medians, and what was loaded that should not be."""
    loaded = imported("forebay")[1] & set(UNWANTED)
    candidates: dict[str, Callable[[], float]] = {
        "forebay": partial(seconds_of, "forebay"),
        "floor": partial(seconds_of, "anyio, pluggy, attr"),
    }
    readings = interleave(candidates, options.rounds(9))
    ours, floor = statistics.median(readings["forebay"]), statistics.median(readings["floor"])
    note = f"{ours * 1e3:.0f} ms beside {floor * 1e3:.0f}, {spread(readings['forebay'])}"
    return [
        Row("import", "import forebay to import anyio, pluggy, attr", ours / floor, bar=1.7, note=note),
        Row("import", f"modules loaded of {', '.join(UNWANTED)}", len(loaded), "", 0, ", ".join(sorted(loaded))),
    ]


if __name__ == "__main__":
    main(startup)
