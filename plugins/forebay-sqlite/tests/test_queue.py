"""Putting items into a queue."""

import sqlite3
from pathlib import Path

import anyio
import pytest

from forebay import EngineError
from forebay.abc import Member
from forebay_sqlite import open_sqlite_queue, open_sqlite_source

pytestmark = pytest.mark.anyio

ITEMS: list[object] = [
    {"text": "größe \ud800 \x00 'quoted'", "list": [1, 2.5, None, True], "nested": {"": {}}},
    b"\x00\xff bytes",
    b"",
    "text",
    "",
    17,
    -0.1,
    2**80,
    None,
    False,
    [],
]


async def taken(path: Path, queue: str = "default") -> list[object]:
    async with open_sqlite_source(path=path, queue=queue) as source, source.open(Member("m")) as session:
        chunk = await session.exchange([], max_items=1000, max_bytes=None)
        assert chunk is not None
        return list(chunk.items)


async def test_items_come_out_as_they_went_in(tmp_path: Path) -> None:
    async with open_sqlite_queue(path=tmp_path / "q.db") as queue:
        await queue.put_many(ITEMS)

    came = await taken(tmp_path / "q.db")

    assert came == ITEMS
    assert list(map(type, came)) == list(map(type, ITEMS))


async def test_offsets_count_on_and_are_never_used_again(tmp_path: Path) -> None:
    async with open_sqlite_queue(path=tmp_path / "q.db") as queue:
        first = await queue.put_many(["a", "b"])
        connection = sqlite3.connect(tmp_path / "q.db")
        with connection:
            connection.execute("DELETE FROM forebay_queue")
        connection.close()
        second = await queue.put_many(["c"])

    assert (first, second) == (range(1, 3), range(3, 4))


async def test_putting_nothing_is_allowed(tmp_path: Path) -> None:
    async with open_sqlite_queue(path=tmp_path / "q.db") as queue:
        assert await queue.put_many([]) == range(0)


async def test_queues_in_one_file_are_apart(tmp_path: Path) -> None:
    async with (
        open_sqlite_queue(path=tmp_path / "q.db", queue="left") as left,
        open_sqlite_queue(path=tmp_path / "q.db", queue="right") as right,
    ):
        await left.put_many([1, 2])
        await right.write([3])

        assert (await left.count(), await right.count()) == (2, 1)
    assert await taken(tmp_path / "q.db", queue="right") == [3]
    assert await taken(tmp_path / "q.db", queue="left") == [1, 2]


async def test_an_item_that_json_cannot_hold_is_named_and_nothing_is_put(tmp_path: Path) -> None:
    async with open_sqlite_queue(path=tmp_path / "q.db") as queue:
        with pytest.raises(TypeError, match=r"items\[1\] is neither bytes nor fit for JSON: .*set.*encode it"):
            await queue.put_many([1, {2}])

        assert await queue.count() == 0


async def test_a_list_beside_the_items_has_one_entry_for_each(tmp_path: Path) -> None:
    async with open_sqlite_queue(path=tmp_path / "q.db") as queue:
        with pytest.raises(ValueError, match="keys has 1 entries for 2 items"):
            await queue.put_many([1, 2], keys=["a"])
        with pytest.raises(ValueError, match="headers has 3 entries"):
            await queue.put_many([1, 2], headers=[{}, {}, {}])
        with pytest.raises(ValueError, match="due has 1 entries"):
            await queue.put_many([1, 2], due=[0.0])


async def test_a_full_disk_takes_nothing(tmp_path: Path) -> None:
    async with open_sqlite_queue(path=tmp_path / "q.db") as queue:
        await queue.put_many(["before"])
        await queue._database.write("shrinking", lambda c: c.execute("PRAGMA max_page_count=30"))
        with pytest.raises(EngineError, match="is full, while putting items into queue 'default'") as caught:
            await queue.put_many([b"x" * 1000] * 1000)

        assert caught.value.category == "dependency"
        assert await queue.count() == 1
        await queue.put_many(["after"])
    assert await taken(tmp_path / "q.db") == ["before", "after"]


@pytest.mark.parametrize("delay", [0.0, 0.0002, 0.0005, 0.001, 0.002, 0.005])
async def test_a_put_cut_off_at_any_moment_is_whole_or_absent(tmp_path: Path, delay: float) -> None:
    async with open_sqlite_queue(path=tmp_path / "q.db") as queue:
        with anyio.move_on_after(delay):
            await queue.put_many(list(range(200)))

        assert await queue.count() in (0, 200)
        holder = sqlite3.connect(tmp_path / "q.db", timeout=0, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")  # fails if a transaction were left open
        holder.close()
