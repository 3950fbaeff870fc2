"""The benchmarks do what they say; how fast is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest

from forebay.abc import Settlement
from tests.benchmarks import cost, latency, memory, overhead_bytewax, push, run
from tests.benchmarks.measure import Options, Row
from tests.benchmarks.pipelines import EVERYWHERE, ON_ASYNCIO, Pipeline, floor, with_aiostream
from tests.benchmarks.workload import CountedSource, orders

COUNT = 1_000  # no multiple of the batch: the last one is short
BACKENDS = ("trio", "asyncio")


def test_one_quick_benchmark_writes_rows_as_json_and_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"

    done = subprocess.run(
        [sys.executable, str(run.__file__), "--quick", "--only", "import", "--json", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert set(written) == {"commit", "changed", "date", "python", "machine", "quick", "rows"}
    assert set(written["machine"]) == {"cpu", "cores", "system", "load"}
    assert [set(row) for row in written["rows"]] == [
        {"benchmark", "name", "figure", "unit", "bar", "note", "ok"} for _ in range(2)
    ]
    ratio, loaded = written["rows"]
    assert ratio["figure"] > 0
    assert ratio["ok"] is (ratio["figure"] <= ratio["bar"])
    assert loaded["figure"] == 0, loaded["note"]
    assert "import: import forebay to import anyio, pluggy, attr" in done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["floor", *EVERYWHERE])
def test_every_pipeline_on_both_backends_counts_all_items(name: str, backend: str) -> None:
    pipeline: Pipeline = {"floor": floor, **EVERYWHERE}[name]

    assert anyio.run(pipeline, COUNT, backend=backend) == COUNT


@pytest.mark.parametrize("name", list(ON_ASYNCIO))
def test_every_pipeline_on_asyncio_counts_all_items(name: str) -> None:
    assert anyio.run(ON_ASYNCIO[name], COUNT, backend="asyncio") == COUNT


@pytest.mark.skipif(find_spec("aiostream") is None, reason="aiostream comes with make bench")
def test_aiostream_counts_all_items() -> None:
    assert anyio.run(with_aiostream, COUNT, backend="asyncio") == COUNT


@pytest.mark.skipif(
    find_spec("bytewax") is None, reason="bytewax has no wheel for this Python, or comes with make bench"
)
@pytest.mark.parametrize("steps", [overhead_bytewax.passed_on, overhead_bytewax.collected])
def test_bytewax_counts_all_items(steps: Any) -> None:
    assert overhead_bytewax.run_bytewax(COUNT, steps) == COUNT


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stages", list(cost.LOOPS))
def test_a_pipeline_of_several_maps_counts_what_its_loop_counts(stages: int, backend: str) -> None:
    by_loop = anyio.run(cost.staged_loop, stages, COUNT, backend=backend)

    assert anyio.run(cost.staged_pipeline, stages, COUNT, backend=backend) == by_loop == COUNT


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keys", [1, 1_000])
def test_a_keyed_pipeline_counts_all_items(keys: int, backend: str) -> None:
    names = [str(number) for number in range(keys)]

    assert anyio.run(cost.keyed_pipeline, names, COUNT, backend=backend) == COUNT


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("way", [latency.by_pipeline, latency.by_batcher, latency.by_hand])
def test_every_item_of_the_open_loop_comes_to_the_sink(way: latency.Way, backend: str) -> None:
    sink = latency.SlowSink()

    anyio.run(way, 2_000, 0.1, sink, backend=backend)

    assert len(sink.seconds) == 200


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_caller_of_the_closed_loop_gets_its_own_answer(backend: str) -> None:
    anyio.run(push.with_forebay, push.answer, 3, backend=backend)


def test_the_memory_benchmark_sees_what_an_unbounded_queue_holds() -> None:
    growth, _ = anyio.run(memory.by_unbounded_queue, 0.1, backend="asyncio")

    assert growth > 2**20


def test_a_source_that_counts_sees_what_is_missing_and_what_comes_twice() -> None:
    async def settle() -> tuple[int, int]:
        source = CountedSource(orders(10), 10)
        chunk = await source.exchange((), max_items=10, max_bytes=None)
        assert chunk is not None
        await source.exchange([Settlement(range(6)), Settlement([4, 7])], max_items=0, max_bytes=None)
        return source.settled, source.twice

    assert anyio.run(settle) == (7, 1)


def test_a_row_without_bar_or_figure_has_no_verdict() -> None:
    rows = [Row("b", "n", 1.0), Row("b", "n", None, bar=1.0), Row("b", "n", 1.0, bar=1.0), Row("b", "n", 1.1, bar=1.0)]

    assert [row.ok for row in rows] == [None, None, True, False]


def test_the_table_marks_a_figure_that_is_short_of_its_bar() -> None:
    short, beside = Row("push", "call", 1.5, bar=1.3), Row("push", "beside", 2.0)
    gone = Row("push", "gone", None, note="why")

    lines = run.table(as_dicts([short, beside, gone]), {"push: call": 1.4}).splitlines()

    assert [line.split() for line in lines] == [
        ["reached", "bar", "baseline"],
        ["push:", "call", "1.50", "x", "1.30", "x", "SHORT", "1.40", "x"],
        ["push:", "beside", "2.00", "x", "–"],
        ["push:", "gone", "–", "–", "why"],
    ]


def test_a_line_of_the_history_holds_ratios_and_barred_figures_and_becomes_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = as_dicts([Row("a", "ratio", 1.23456), Row("a", "late", 5.0, "ms", bar=6.0), Row("a", "cost", 300.0, "ns")])
    monkeypatch.setattr(run, "HISTORY", tmp_path / "history.jsonl")

    line = run.history_line({**run.header(quick=False), "python": "3.13.9"}, rows)
    run.HISTORY.write_text(line + "\n")

    assert json.loads(line)["ratios"] == {"a: ratio": 1.235}
    assert json.loads(line)["figures"] == {"a: late [ms]": 5.0}
    assert run.baseline("3.13.0") == {"a: ratio": 1.235, "a: late": 5.0}
    assert run.baseline("3.11.0") == {}


def test_a_benchmark_that_breaks_gives_a_row_and_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"push": (run.Process("no_such_module"),)}
    monkeypatch.setattr(run, "processes", lambda: broken)

    rows, well = run.run_benchmark("push", quick=True)

    assert not well
    assert rows[0]["note"] == "broke: it ended with 1; its message is above"


def test_part_of_a_run_is_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--record", "--quick"])

    assert "leave out --only and --quick" in capsys.readouterr().err


def test_a_quick_run_has_fewer_rounds() -> None:
    counted = partial(Options, "trio")

    assert [counted(quick).rounds(7) for quick in (False, True)] == [7, 3]


def as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as a process hands them over."""
    return [
        {
            "benchmark": row.benchmark,
            "name": row.name,
            "figure": row.figure,
            "unit": row.unit,
            "bar": row.bar,
            "ok": row.ok,
            "note": row.note,
        }
        for row in rows
    ]
