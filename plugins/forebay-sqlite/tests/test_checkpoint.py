"""What a checkpoint remembers, alone and together with a sink."""

from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

import forebay
from forebay import HandlerContractError
from forebay._handler import BatchContext, BatchPart, set_context
from forebay.abc import DeadLetterFilter
from forebay_sqlite import (
    OffsetSet,
    SqliteSink,
    open_checkpointed,
    open_sqlite_checkpoint,
    open_sqlite_dead_letters,
    open_sqlite_sink,
)

pytestmark = pytest.mark.anyio

COLUMNS = {"id": "INTEGER", "name": "TEXT NOT NULL"}


def in_batch(*parts: tuple[int, Sequence[int | str]], source: str = "rows") -> None:
    """Let `current_batch` answer as it does in a handler whose batch has these offsets."""
    made = tuple(BatchPart(source, partition, 1, list(offsets)) for partition, offsets in parts)
    set_context(lambda: BatchContext("store", 1, False, made))


async def ids(sink: SqliteSink) -> list[int]:
    return await sink._database.read(
        "looking", lambda c: [row[0] for row in c.execute("SELECT id FROM t ORDER BY rowid")]
    )


async def test_it_starts_empty_and_remembers(tmp_path: Path) -> None:
    async with open_sqlite_checkpoint(path=tmp_path / "c.db", name="rows") as checkpoint:
        assert await checkpoint.load() == OffsetSet()
        await checkpoint.add([3, 0, 1])
        await checkpoint.add(range(7, 9))
        await checkpoint.add([])

    async with open_sqlite_checkpoint(path=tmp_path / "c.db", name="rows") as checkpoint:
        done = await checkpoint.load()

    assert done.ranges == [range(2), range(3, 4), range(7, 9)]
    assert done.mark == 2


async def test_names_and_partitions_are_apart(tmp_path: Path) -> None:
    async with (
        open_sqlite_checkpoint(path=tmp_path / "c.db", name="a") as first,
        open_sqlite_checkpoint(path=tmp_path / "c.db", name="b") as second,
        open_sqlite_checkpoint(path=tmp_path / "c.db", name="a", partition=1) as third,
    ):
        await first.add([0])

        assert [len(await one.load()) for one in (first, second, third)] == [1, 0, 0]


async def test_it_can_be_cleared(tmp_path: Path) -> None:
    async with open_sqlite_checkpoint(path=tmp_path / "c.db", name="a") as checkpoint:
        await checkpoint.add([0])
        await checkpoint.clear()

        assert not await checkpoint.load()


async def test_tasks_may_add_at_once(tmp_path: Path) -> None:
    async with open_sqlite_checkpoint(path=tmp_path / "c.db", name="a") as checkpoint:
        async with anyio.create_task_group() as group:
            for number in range(30):
                group.start_soon(checkpoint.add, [number])

        assert (await checkpoint.load()).ranges == [range(30)]


async def test_a_sink_adds_the_offsets_of_its_rows(tmp_path: Path) -> None:
    async with (
        open_sqlite_sink(path=tmp_path / "c.db", table="t", columns=COLUMNS, checkpoint="a") as sink,
        open_sqlite_checkpoint(path=tmp_path / "c.db", name="a") as checkpoint,
        open_sqlite_checkpoint(path=tmp_path / "c.db", name="a", partition=5) as fifth,
    ):
        in_batch((0, [0, 1, 2]), (5, [40]))
        outcomes = await sink.write([(0, "a"), (1, None), (2, "c"), (40, "d")])

        assert outcomes is not None
        assert [outcome is None for outcome in outcomes] == [True, False, True, True]
        assert (await checkpoint.load()).ranges == [range(1), range(2, 3)]
        assert (await fifth.load()).ranges == [range(40, 41)]


async def test_a_sink_leaves_out_what_is_in_the_checkpoint(tmp_path: Path) -> None:
    for _ in range(2):
        async with open_sqlite_sink(path=tmp_path / "c.db", table="t", columns=COLUMNS, checkpoint="a") as sink:
            in_batch((0, [0, 1]))
            assert await sink.write([(0, "a"), (1, "b")]) is None
            in_batch((0, [1, 2]))
            assert await sink.write([(1, "b"), (2, "c")]) is None

            assert await ids(sink) == [0, 1, 2]


async def test_rows_and_offsets_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    async with (
        open_sqlite_sink(path=tmp_path / "c.db", table="t", columns=COLUMNS, checkpoint="a") as sink,
        open_sqlite_checkpoint(path=tmp_path / "c.db", name="a") as checkpoint,
    ):
        for first in range(0, 400, 20):
            in_batch((0, range(first, first + 20)))
            with anyio.move_on_after(first / 200_000):
                await sink.write([(number, "x") for number in range(first, first + 20)])

        assert sorted(await ids(sink)) == list(await checkpoint.load())


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([(0, [1, 1])], "several rows of a batch come from one item of source 'rows'"),
        ([(0, ["1-0", "1-1"])], "source 'rows' has offsets that are no numbers, such as '1-0'"),
        ([(0, [1])], r"the batch has 1 items and write\(\) got 2 rows"),
        ([], r"the batch has 0 items and write\(\) got 2 rows"),
    ],
)
async def test_a_batch_whose_offsets_say_too_little_is_refused(
    tmp_path: Path, parts: list[tuple[int, list[int | str]]], why: str
) -> None:
    async with open_sqlite_sink(path=tmp_path / "c.db", table="t", columns=COLUMNS, checkpoint="a") as sink:
        in_batch(*parts)
        with pytest.raises(HandlerContractError, match=f"{why}; open the sink without checkpoint="):
            await sink.write([(0, "a"), (1, "b")])

        assert await ids(sink) == []


async def test_a_checkpoint_belongs_to_one_source(tmp_path: Path) -> None:
    async with open_sqlite_sink(path=tmp_path / "c.db", table="t", columns=COLUMNS, checkpoint="a") as sink:
        in_batch((0, [0]), source="left")
        await sink.write([(0, "a")])
        in_batch((0, [1]), source="right")
        with pytest.raises(HandlerContractError, match="rows come from the sources 'left' and 'right'"):
            await sink.write([(1, "b")])


async def test_rows_that_may_share_an_offset_are_refused_even_if_these_do_not(tmp_path: Path) -> None:
    async with open_sqlite_sink(path=tmp_path / "c.db", table="t", columns=COLUMNS, checkpoint="a") as sink:
        set_context(lambda: BatchContext("store", 1, False, (BatchPart("rows", 0, 1, [0, 1], children=True),)))
        with pytest.raises(HandlerContractError, match=r"several rows may come from one item of source 'rows'"):
            await sink.write([(0, "a"), (1, "b")])

        assert await ids(sink) == []


async def test_the_offsets_of_a_plain_iterable_are_refused_since_another_run_has_the_same(tmp_path: Path) -> None:
    async with open_sqlite_sink(path=tmp_path / "c.db", table="t", columns=COLUMNS, checkpoint="a") as sink:
        recipe = forebay.pipeline([(0, "a"), (1, "b")]).map_batches(sink, max_size=2)
        with pytest.raises(HandlerContractError, match=r"is a plain iterable.*open_checkpointed\(\) reads one"):
            await recipe.run()

        assert await ids(sink) == []


async def test_behind_flat_map_a_run_ends_with_nothing_written_dead_lettered_or_done(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with (
        open_sqlite_sink(path=path, table="t", columns=COLUMNS, checkpoint="a") as sink,
        open_sqlite_dead_letters(path=path) as letters,
        open_checkpointed(lambda start: range(start, 10), path=path, name="a") as rows,
    ):
        recipe = forebay.pipeline(rows, dead_letters=letters).flat_map(lambda number: [(number, "x"), (number, "y")])
        with pytest.raises(HandlerContractError, match=r"open the sink without checkpoint="):
            await recipe.map_batches(sink.write, max_size=3).run()

        assert await ids(sink) == []
        assert not await letters.find(DeadLetterFilter(), limit=1)
        assert not await rows.checkpoint.load()


async def test_in_branches_a_sink_needs_a_checkpoint_that_is_not_the_sources(tmp_path: Path) -> None:
    path = tmp_path / "c.db"

    async def run(checkpoint: str) -> list[int]:
        async with (
            open_sqlite_sink(path=path, table="t", columns=COLUMNS, checkpoint=checkpoint) as sink,
            open_checkpointed(lambda start: range(start, 10), path=path, name="rows") as rows,
        ):
            seen: list[int] = []
            await (
                forebay.pipeline(rows)
                .branch(
                    lambda branch: branch.map(lambda number: (number, "x")).map_batches(sink.write, max_size=3),
                    lambda branch: branch.map(seen.append),
                )
                .run()
            )
            assert seen == list(range(10))
            return await ids(sink)

    with pytest.raises(HandlerContractError, match=r"checkpoint 'rows' is that of the source.*; give the sink a"):
        await run("rows")
    assert await run("table") == list(range(10))


async def test_outside_a_handler_there_are_no_offsets(tmp_path: Path) -> None:
    async with open_sqlite_sink(path=tmp_path / "c.db", table="t", columns=COLUMNS, checkpoint="a") as sink:
        with pytest.raises(RuntimeError, match="outside a handler"):
            await sink.write([(0, "a")])
