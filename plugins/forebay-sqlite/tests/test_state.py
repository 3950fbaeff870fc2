"""State: what the suite of rules does not see."""

import sqlite3
from pathlib import Path

import anyio
import pytest

from forebay import LostOwnershipError
from forebay_sqlite import open_sqlite_state

pytestmark = pytest.mark.anyio


async def test_values_outlive_the_process_and_so_does_the_fence(tmp_path: Path) -> None:
    async with open_sqlite_state(path=tmp_path / "s.db") as store:
        await store.put_many({"a": b"1"}, epoch=7)

    async with open_sqlite_state(path=tmp_path / "s.db") as store:
        assert await store.get_many(["a", "b"]) == [b"1", None]
        with pytest.raises(LostOwnershipError, match="epoch 6 may not write to state 'default': epoch 7 has written"):
            await store.put_many({"a": b"2"}, epoch=6)
        assert await store.get_many(["a"]) == [b"1"]


async def test_namespaces_have_keys_and_fences_of_their_own(tmp_path: Path) -> None:
    async with (
        open_sqlite_state(path=tmp_path / "s.db", namespace="left") as left,
        open_sqlite_state(path=tmp_path / "s.db", namespace="right") as right,
    ):
        await left.put_many({"a": b"1"}, epoch=9)
        await right.put_many({"a": b"2"}, epoch=1)

        assert (await left.get_many(["a"]), await right.get_many(["a"])) == ([b"1"], [b"2"])


async def test_what_has_expired_is_deleted_by_later_writes(tmp_path: Path) -> None:
    async with open_sqlite_state(path=tmp_path / "s.db") as store:
        await store.put_many({f"k{n}": b"" for n in range(150)}, epoch=1, ttl=60)
        connection = sqlite3.connect(tmp_path / "s.db")
        with connection:
            connection.execute("UPDATE forebay_state SET expires = 1")
        gone = await store.get_many(["k1"])
        keys = [key async for key in store.scan("")]
        for _ in range(2):
            await store.put_many({"kept": b""}, epoch=1)
        left = connection.execute("SELECT key FROM forebay_state").fetchall()
        connection.close()

    assert (gone, keys, left) == ([None], [], [("kept",)])


async def test_a_time_to_live_of_nothing_is_refused(tmp_path: Path) -> None:
    async with open_sqlite_state(path=tmp_path / "s.db") as store:
        with pytest.raises(ValueError, match="ttl must be greater than 0 seconds, not 0"):
            await store.put_many({"a": b""}, epoch=1, ttl=0)


async def test_a_scan_pages_through_more_than_one_page(tmp_path: Path) -> None:
    async with open_sqlite_state(path=tmp_path / "s.db") as store:
        await store.put_many({f"{prefix}{n:04}": b"" for n in range(1200) for prefix in "abc"}, epoch=1)

        assert [key async for key in store.scan("b")] == [f"b{n:04}" for n in range(1200)]


async def test_of_many_tasks_that_compare_and_set_each_step_succeeds_once(tmp_path: Path) -> None:
    async with (
        open_sqlite_state(path=tmp_path / "s.db") as first,
        open_sqlite_state(path=tmp_path / "s.db", synchronous="normal") as second,
    ):
        await first.put_many({"n": b"0"}, epoch=1)

        async def count(store_number: int) -> None:
            store = (first, second)[store_number]
            for _ in range(10):
                done = False
                while not done:
                    (old,) = await store.get_many(["n"])
                    assert old is not None
                    done = await store.cas("n", old, str(int(old) + 1).encode(), epoch=1)

        async with anyio.create_task_group() as group:
            for task in range(6):
                group.start_soon(count, task % 2)

        assert await first.get_many(["n"]) == [b"60"]
