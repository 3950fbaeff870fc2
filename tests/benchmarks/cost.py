"""Cost of an item, start-up subtracted, by count of items, stages and keys; one process for each backend.

The runs share one `Plugins`, so that what is subtracted is small; a run that finds its own is timed apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import forebay
from forebay.hooks import Plugins
from tests.benchmarks.measure import Options, Row, cpu_seconds, interleave, main, spread
from tests.benchmarks.pipelines import floor, with_forebay
from tests.benchmarks.workload import BATCH, Item, Tally, orders

# --- By count of items -------------------------------------------------------------------------


def by_count(options: Options) -> list[Row]:
    """Measure 10^4 to 10^7 items; the small counts are run more often, for their best reading is as noisy."""
    backend, plugins = options.backend, Plugins()
    alone = [cpu_seconds(partial(with_forebay, 0), backend) for _ in range(options.rounds(9))]
    startup = min(cpu_seconds(partial(with_forebay, 0, plugins), backend) for _ in range(options.rounds(40)))
    rows = [Row("cost", f"start-up of a run, {backend}", min(alone) * 1e3, "ms", note=_shared(startup))]
    costs: list[float] = []
    for power, rounds in ((4, 40), (5, 20), (6, 7)) if options.quick else ((4, 40), (5, 20), (6, 7), (7, 3)):
        count = 10**power
        candidates: dict[str, Callable[[], float]] = {
            "forebay": partial(cpu_seconds, partial(with_forebay, count, plugins), backend)
        }
        if power < 7:
            candidates["floor"] = partial(cpu_seconds, partial(floor, count), backend)
        readings = interleave(candidates, rounds if power < 6 else options.rounds(rounds))
        costs.append((min(readings["forebay"]) - startup) / count)
        beside = f", bare loop {min(readings['floor']) / count * 1e9:.0f} ns" if "floor" in readings else ""
        name = f"an item of 10^{power}, {backend}"
        rows.append(Row("cost", name, costs[-1] * 1e9, "ns", note=spread(readings["forebay"]) + beside))
    return [*rows, Row("cost", f"largest to smallest of these, {backend}", max(costs) / min(costs), bar=1.15)]


def _shared(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms with plugins found before"


# --- By count of stages ------------------------------------------------------------------------
# Eight functions, for the interpreter's caches make one function called eight times cheaper than any real recipe.


def _total(item: Item) -> Item:
    return {"id": item["id"], "total": item["price"] * item["amount"]}


def _tax(item: Item) -> Item:
    item["tax"] = item["total"] // 5
    return item


def _gross(item: Item) -> Item:
    item["gross"] = item["total"] + item["tax"]
    return item


def _shard(item: Item) -> Item:
    item["shard"] = item["id"] & 15
    return item


def _rank(item: Item) -> Item:
    item["rank"] = item["total"] >> 8
    return item


def _rebate(item: Item) -> Item:
    item["rebate"] = item["gross"] // 100
    return item


def _net(item: Item) -> Item:
    item["net"] = item["gross"] - item["rebate"]
    return item


def _checked(item: Item) -> Item:
    item["checked"] = 1
    return item


MAPS: tuple[Callable[[Item], Item], ...] = (_total, _tax, _gross, _shard, _rank, _rebate, _net, _checked)


async def _loop_of_1(count: int, tally: Tally) -> None:
    batch: list[Item] = []
    for item in orders(count):
        batch.append(_total(item))
        if len(batch) == BATCH:
            await tally.take(batch)
            batch = []
    if batch:
        await tally.take(batch)


async def _loop_of_2(count: int, tally: Tally) -> None:
    batch: list[Item] = []
    for item in orders(count):
        batch.append(_tax(_total(item)))
        if len(batch) == BATCH:
            await tally.take(batch)
            batch = []
    if batch:
        await tally.take(batch)


async def _loop_of_4(count: int, tally: Tally) -> None:
    batch: list[Item] = []
    for item in orders(count):
        batch.append(_shard(_gross(_tax(_total(item)))))
        if len(batch) == BATCH:
            await tally.take(batch)
            batch = []
    if batch:
        await tally.take(batch)


async def _loop_of_8(count: int, tally: Tally) -> None:
    batch: list[Item] = []
    for item in orders(count):
        batch.append(_checked(_net(_rebate(_rank(_shard(_gross(_tax(_total(item)))))))))
        if len(batch) == BATCH:
            await tally.take(batch)
            batch = []
    if batch:
        await tally.take(batch)


LOOPS = {1: _loop_of_1, 2: _loop_of_2, 4: _loop_of_4, 8: _loop_of_8}


async def staged_loop(stages: int, count: int) -> int:
    """Run a bare loop with so many maps."""
    tally = Tally()
    await LOOPS[stages](count, tally)
    return tally.items


async def staged_pipeline(stages: int, count: int, plugins: Plugins | None = None) -> int:
    """Run a pipeline with so many maps."""
    tally = Tally()
    recipe = forebay.pipeline(orders(count))
    for func in MAPS[:stages]:
        recipe = recipe.map(func)
    await recipe.map_batches(tally.take, max_size=BATCH).run(plugins=plugins)
    return tally.items


def by_stages(options: Options) -> list[Row]:
    """Measure 1, 2, 4 and 8 maps."""
    count = 50_000 if options.quick else 200_000
    plugins = Plugins()
    rows: list[Row] = []
    for stages in LOOPS:
        candidates: dict[str, Callable[[], float]] = {
            "floor": partial(cpu_seconds, partial(staged_loop, stages, count), options.backend),
            "forebay": partial(cpu_seconds, partial(staged_pipeline, stages, count, plugins), options.backend),
            "start-up": partial(cpu_seconds, partial(staged_pipeline, stages, 0, plugins), options.backend),
        }
        readings = interleave(candidates, options.rounds(7))
        best = {name: min(seconds) for name, seconds in readings.items()}
        cost = best["forebay"] - best["start-up"]
        beside = f"{cost / count * 1e9:.0f} ns an item beside {best['floor'] / count * 1e9:.0f}"
        note = f"{beside}, {spread(readings['forebay'])}"
        name = f"{stages} map{'s' * (stages > 1)}, {options.backend}"
        rows.append(Row("cost", name, cost / best["floor"], bar=1.2, note=note))
    return rows


# --- By count of keys --------------------------------------------------------------------------

Keyed = tuple[str, int]


def _keyed(names: Sequence[str], count: int) -> Iterator[Keyed]:
    keys = len(names)
    for number in range(count):
        yield names[number % keys], number


def _key_of(item: Keyed) -> str:
    return item[0]


async def keyed_pipeline(names: Sequence[str], count: int, plugins: Plugins | None = None) -> int:
    """Run a pipeline whose items have one of the keys *names*, in turn."""
    taken = 0

    async def take(batch: list[Keyed]) -> None:
        nonlocal taken
        taken += len(batch)

    recipe = forebay.pipeline(_keyed(names, count)).key_by(_key_of)
    await recipe.map_batches(take, max_size=BATCH, in_order=True).run(plugins=plugins)
    return taken


def by_keys(options: Options) -> list[Row]:
    """Measure one key and 10^5."""
    count = 100_000 if options.quick else 300_000
    plugins = Plugins()
    one, many = ["0"], [str(number) for number in range(100_000)]
    candidates: dict[str, Callable[[], float]] = {
        "start-up": partial(cpu_seconds, partial(keyed_pipeline, one, 0, plugins), options.backend),
        "1": partial(cpu_seconds, partial(keyed_pipeline, one, count, plugins), options.backend),
        "10^5": partial(cpu_seconds, partial(keyed_pipeline, many, count, plugins), options.backend),
    }
    readings = interleave(candidates, options.rounds(7))
    startup = min(readings["start-up"])
    single, several = ((min(readings[name]) - startup) / count for name in ("1", "10^5"))
    return [
        Row("cost", f"an item of 1 key, {options.backend}", single * 1e9, "ns", note=spread(readings["1"])),
        Row("cost", f"an item of 10^5 keys, {options.backend}", several * 1e9, "ns", note=spread(readings["10^5"])),
        Row("cost", f"10^5 keys to 1 key, {options.backend}", several / single, bar=2.0),
    ]


def cost(options: Options) -> list[Row]:
    """Return the rows of all three."""
    return [*by_count(options), *by_stages(options), *by_keys(options)]


if __name__ == "__main__":
    main(cost)
