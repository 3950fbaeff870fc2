"""The pooling benchmark: all ways of a workload send the same bytes, and what is reused is reused safely."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import forebay
from forebay.testing import BackendName, run_virtual
from tests.benchmarks import pooling
from tests.benchmarks.pooling import Figures, Reading
from tests.benchmarks.pooling_ways import (
    BLOCK,
    LENGTH_BYTES,
    NUMBER_BYTES,
    ROWS,
    SLOTS,
    WORKLOADS,
    BufferPool,
    ClearedReader,
    OverwrittenReader,
    RowBuffer,
    Tally,
    blocks,
    drain,
    ids,
    json_row,
    reading_with,
    small_ints,
    wide_row,
)
from tests.benchmarks.run import ROOT
from tests.benchmarks.workload import orders

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def sum_of(parts: list[bytes]) -> tuple[int, int]:
    """Return what a sink that got *parts* has counted."""
    return sum(map(len, parts)), sum(map(crc32, parts))


def payloads(count: int, size: int, *, few: bool = False) -> list[bytes]:
    """Return what the ways to cut blocks send, cut here by hand."""
    found: list[bytes] = []
    for block in blocks(count, size):
        items = [block[start + LENGTH_BYTES : start + size] for start in range(0, BLOCK, size)]
        found += [item[NUMBER_BYTES:] for item in (items[:1] if few else items)]
    return found


# --- What is sent ------------------------------------------------------------------------------

ENCODED = 2 * ROWS + 7  # the last batch is short
LISTED = 2 * SLOTS + 7
EXPECTED = {
    "encode 1 KB rows, 1 call": (ENCODED, [wide_row(number) for number in range(ENCODED)], ROWS),
    "encode 1 KB rows, 8 calls": (ENCODED, [wide_row(number) for number in range(ENCODED)], ROWS),
    "encode dicts, 1 call": (ENCODED, [json_row(order) for order in orders(ENCODED)], ROWS),
}


def in_batches(rows: list[bytes], size: int) -> list[bytes]:
    return [b"".join(rows[start : start + size]) for start in range(0, len(rows), size)]


def expected(workload: str) -> tuple[int, list[bytes]]:
    """Return units of work, and what they come to at the sink, by other means than the pipeline."""
    if workload in EXPECTED:
        count, rows, size = EXPECTED[workload]
        return count, in_batches(rows, size)
    if workload == "lists of small ints":
        return LISTED, in_batches([bytes([number]) for number in small_ints(LISTED)], SLOTS)
    if workload == "lists of dicts":
        items = list(orders(LISTED))
        return LISTED, [ids(items[start : start + SLOTS]) for start in range(0, LISTED, SLOTS)]
    size, few = {
        "slices of 128 KB": (128 * 1024, False),
        "slices of 64 B": (64, False),
        "slices of 32 KB, one of 64 kept": (32 * 1024, True),
    }[workload]
    return 2, payloads(2, size, few=few)


@backends
@pytest.mark.parametrize("workload", WORKLOADS)
def test_all_ways_of_a_workload_send_the_same_bytes(workload: str, backend: BackendName) -> None:
    count, parts = expected(workload)
    nbytes, digest = sum_of(parts)

    for way in WORKLOADS[workload].ways:
        tally = run_virtual(WORKLOADS[workload].run, way, count, backend=backend)
        assert (tally.nbytes, tally.digest) == (nbytes, digest), way


def test_every_way_but_the_first_is_held_against_one_before_it() -> None:
    for workload in WORKLOADS.values():
        names = list(workload.ways)
        for index, way in enumerate(workload.ways.values()):
            assert set(way.against) <= set(names[:index])
            assert bool(way.against) is (index > 0)


# --- The pool ----------------------------------------------------------------------------------


@given(st.lists(st.lists(st.binary(max_size=9000), max_size=4), max_size=4))
def test_a_buffer_that_is_used_again_holds_what_was_written_since_and_no_more(batches: list[list[bytes]]) -> None:
    buffer = RowBuffer()

    for rows in batches:
        buffer.clear()
        for row in rows:
            buffer.write(row)
        with buffer.written() as written:
            assert written == b"".join(rows)


def test_a_buffer_keeps_its_room_and_grows_no_further_for_the_same_rows() -> None:
    buffer = RowBuffer()
    rooms: list[int] = []

    for _ in range(3):
        buffer.clear()
        for number in range(100):
            buffer.write(wide_row(number))
        rooms.append(buffer.room)

    assert len(set(rooms)) == 1
    assert sum(len(wide_row(number)) for number in range(100)) <= rooms[0] < 1.2 * 100 * len(wide_row(0))


def test_a_buffer_does_not_grow_under_what_somebody_still_reads() -> None:
    buffer = RowBuffer()
    buffer.write(b"row")

    with buffer.written(), pytest.raises(BufferError):
        buffer.write(bytes(buffer.room))


@backends
@pytest.mark.parametrize("max_buffers", [1, 3])
def test_the_pool_hands_no_buffer_to_two_at_once_and_makes_no_more_than_its_bound(
    max_buffers: int, backend: BackendName
) -> None:
    async def main() -> tuple[int, int]:
        pool = BufferPool(max_buffers)
        borrowed: list[int] = []
        most = 0

        async def work(number: int) -> None:
            nonlocal most
            for _ in range(5):
                async with pool.borrow() as buffer:
                    assert id(buffer) not in borrowed
                    borrowed.append(id(buffer))
                    most = max(most, len(borrowed))
                    buffer.write(b"%d" % number)
                    await anyio.sleep(0.01 * (number % 3))
                    with buffer.written() as written:
                        assert written == b"%d" % number
                    borrowed.remove(id(buffer))

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(work, number)
        return most, pool.made

    most, made = run_virtual(main, backend=backend)

    assert most == made == max_buffers


@backends
def test_a_borrower_that_is_cancelled_or_fails_brings_its_buffer_back(backend: BackendName) -> None:
    async def main() -> int:
        pool = BufferPool(1)

        async def hold() -> None:
            async with pool.borrow():
                await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold)
            tasks.start_soon(hold)  # this one waits for the other
            await anyio.sleep(1)  # of virtual time: both have begun
            tasks.cancel_scope.cancel()
        with pytest.raises(OSError, match="unplugged"):
            async with pool.borrow():
                raise OSError("unplugged")
        with anyio.fail_after(1):
            async with pool.borrow():
                return pool.made

    assert run_virtual(main, backend=backend) == 1


# --- The lists ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reader_type", [ClearedReader, OverwrittenReader])
def test_a_list_that_was_given_back_is_filled_again_and_another_is_not(reader_type: type[ClearedReader]) -> None:
    reader = reader_type(iter(range(8)))

    first, second = reader.take_nowait(3), reader.take_nowait(3)
    assert first is not None
    assert second is not None
    held = list(second.items)
    reader.give_back(first.items)
    third = reader.take_nowait(3)

    assert third is not None
    assert third.items is first.items
    assert third.items == [6, 7]
    assert second.items == held == [3, 4, 5]
    assert reader.take_nowait(3) is None
    assert reader.made == 3


@backends
@pytest.mark.parametrize("reader_type", [ClearedReader, OverwrittenReader])
def test_a_run_goes_on_with_the_lists_that_its_handlers_give_back(
    reader_type: type[ClearedReader], backend: BackendName
) -> None:
    async def main() -> tuple[list[int], int]:
        reader = reader_type(iter(range(3200)))
        taken: list[int] = []

        async def store(batch: list[int]) -> None:
            await anyio.sleep(0.01)
            taken.extend(batch)
            reader.give_back(batch)

        with reading_with(reader):
            await drain(forebay.pipeline(()), store, max_size=16, capacity=64)
        return taken, reader.made

    taken, made = run_virtual(main, backend=backend)

    assert taken == list(range(3200))
    assert made <= 4 + 4 + 3  # in the queue, taken at a time, in hand; of 200 batches


# --- The program -------------------------------------------------------------------------------


def test_a_quick_run_measures_each_way_in_processes_of_its_own_and_writes_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    only = "encode 1 KB rows, 1 call"

    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.pooling", "--quick", "--only", only, "--json", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    rows = {row["name"]: row for row in written["rows"]}
    rows_nbytes = sum(len(wide_row(number)) for number in range(ROWS))
    for way in WORKLOADS[only].ways:
        assert rows[f"{only}: {way}, peak"]["figure"] > rows_nbytes / 1024  # a batch at least
        assert 0 < rows[f"{only}: {way}, average"]["figure"] < rows[f"{only}: {way}, peak"]["figure"]
        assert rows[f"{only}: {way}, CPU an item"]["figure"] > 0
        allocations = rows[f"{only}: {way}, allocations an item"]["figure"]
        assert allocations is None or allocations >= 1  # where glibc counts: the row itself at least
    ratios = [row for name, row in rows.items() if " to " in name]
    assert len(ratios) == 6
    assert all(row["ok"] is (row["figure"] <= pooling.BAR) for row in ratios)
    assert "    to fresh bytearray" in done.stdout


def test_a_way_that_sends_other_bytes_is_told() -> None:
    same = Figures(1, traced=[Reading(5, 1)], plain=[Reading(5, 1)])
    other = Figures(1, traced=[Reading(5, 1)], plain=[Reading(6, 1)])

    pooling.check_same("lists", {"fresh": same, "cleared": same})
    with pytest.raises(AssertionError, match="lists: the ways sent different bytes"):
        pooling.check_same("lists", {"fresh": same, "cleared": other})


def test_a_saving_of_a_fifth_at_the_peak_or_on_average_is_ok_and_less_is_short() -> None:
    def figures(peak: int, average: float) -> Figures:
        one = Reading(0, 0, peak, average, 1e-6)
        return Figures(1, traced=[one], plain=[one])

    measured = {
        "fresh lists": figures(1000, 500.0),
        "cleared lists": figures(800, 600.0),
        "overwritten lists": figures(810, 405.0),
    }

    lines = [line.split() for line in pooling.shown("lists of dicts", measured).splitlines()]

    assert lines[3] == ["to", "fresh", "lists", "0.80", "1.20", "ok"]
    assert lines[5] == ["to", "fresh", "lists", "0.81", "0.81", "SHORT"]


def test_calls_of_the_allocator_are_read_from_the_report_and_missing_where_there_is_none() -> None:
    report = (
        "\x1b[01;32mMemory usage summary:\x1b[0;0m heap total: 5, heap peak: 3, stack peak: 6\n"
        "\x1b[00;34m malloc|\x1b[0m      69143        5221651              0\x1b[00;00m\n"
        "\x1b[00;34mrealloc|\x1b[0m        813          75834              0  (nomove:172, dec:101, free:0)\n"
        "\x1b[00;34m calloc|\x1b[0m        382         171080              0\x1b[00;00m\n"
        "\x1b[00;34m   free|\x1b[0m      67428        5233526\n"
    )

    assert pooling.calls_of_allocator(report) == 69143 + 813 + 382
    assert pooling.calls_of_allocator("ERROR: ld.so: object 'libmemusage.so' cannot be preloaded: ignored.\n") is None


@backends
def test_the_profile_finds_that_items_are_most_of_what_a_pipeline_holds(backend: BackendName) -> None:
    lines = pooling.profile(20, backend).splitlines()

    owners = [line.split("%  ")[1] for line in lines[1:] if ":" not in line]
    assert owners[0] == "items"
    assert {"ledger", "lists of items", "readings of calls"} <= set(owners)


def test_the_digest_tells_swapped_bytes_apart() -> None:
    first, second = Tally(), Tally()

    first.add(b"ab")
    second.add(b"ba")

    assert first.nbytes == second.nbytes
    assert first.digest != second.digest
