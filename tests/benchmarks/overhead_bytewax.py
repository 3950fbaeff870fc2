"""Overhead of bytewax, in a process and often an interpreter of its own, against a bare loop in the same process."""

from __future__ import annotations

import asyncio
import importlib
import platform
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any

from tests.benchmarks.measure import Options, Row, interleave, main, spread
from tests.benchmarks.workload import BATCH, Item, Tally, bare_loop, enrich, orders


class Reader:
    """The source's only partition."""

    def __init__(self, count: int) -> None:
        self.items = orders(count)

    def next_batch(self) -> list[Item]:
        chunk = list(islice(self.items, BATCH))
        if not chunk:
            raise StopIteration
        return chunk


class Writer:
    """Counts what comes as items, or as (key, list of items)."""

    def __init__(self) -> None:
        self.counted = 0

    def write_batch(self, items: list[Any]) -> None:
        self.counted += sum(len(item[1]) for item in items) if isinstance(items[0], tuple) else len(items)


class Opener:
    """A source or sink that hands its only worker a partition."""

    def __init__(self, partition: object) -> None:
        self.partition = partition

    def build(self, step_id: str, worker_index: int, worker_count: int) -> object:
        return self.partition


def _made(ours: type, module: str, base: str) -> Any:
    """Return a class of ours on a base from bytewax, which newer Pythons do not have."""
    return type(ours.__name__, (ours, getattr(importlib.import_module(module), base)), {})


def run_bytewax(count: int, steps: Callable[[Any, Any], Any]) -> int:
    """Run *steps* between a source of lists and a sink; return how many items the sink counted."""
    op: Any = importlib.import_module("bytewax.operators")
    reader = _made(Reader, "bytewax.inputs", "StatelessSourcePartition")(count)
    writer = _made(Writer, "bytewax.outputs", "StatelessSinkPartition")()
    flow = importlib.import_module("bytewax.dataflow").Dataflow("orders")
    stream = op.input("read", flow, _made(Opener, "bytewax.inputs", "DynamicSource")(reader))
    op.output("write", steps(op, stream), _made(Opener, "bytewax.outputs", "DynamicSink")(writer))
    importlib.import_module("bytewax.testing").run_main(flow)
    return int(writer.counted)


def _enriched(chunk: list[Item]) -> list[Item]:
    return [enrich(item) for item in chunk]


def _only_key(item: Item) -> str:
    return "all"


def passed_on(op: Any, stream: Any) -> Any:
    """Map the source's own lists and hand them on: the least that bytewax can do, without batches of its own."""
    return op.flat_map_batch("enrich", stream, _enriched)


def collected(op: Any, stream: Any) -> Any:
    """Gather batches as the other pipelines do, which takes a key."""
    keyed = op.key_on("key", op.map("enrich", stream, enrich), _only_key)
    return op.collect("gather", keyed, timeout=timedelta(seconds=10), max_size=BATCH)


def _seconds(work: Callable[[], int], count: int) -> float:
    started = time.process_time()
    done = work()
    seconds = time.process_time() - started
    if done != count:
        raise AssertionError(f"bytewax counted {done} of {count} items")
    return seconds / count


def _floor(count: int) -> int:
    tally = Tally()
    asyncio.run(bare_loop(count, tally))
    return tally.items


def overhead(options: Options) -> list[Row]:
    """Return a row for each of the two ways."""
    count = 100_000 if options.quick else 500_000
    candidates: dict[str, Callable[[], float]] = {
        "floor": partial(_seconds, partial(_floor, count), count),
        "bytewax, the source's lists passed on": partial(_seconds, partial(run_bytewax, count, passed_on), count),
        "bytewax, key_on and collect": partial(_seconds, partial(run_bytewax, count, collected), count),
    }
    readings = interleave(candidates, options.rounds(5))
    least = min(readings.pop("floor"))
    return [
        Row(
            "overhead",
            name,
            min(seconds) / least,
            note=f"{min(seconds) * 1e9:.0f} ns an item, {spread(seconds)}, on Python {platform.python_version()}",
        )
        for name, seconds in readings.items()
    ]


if __name__ == "__main__":
    main(overhead)
