"""Deadlines, cancellation, and what SQLite's failures become; over real files."""

import sqlite3
import threading
import time
from pathlib import Path
from typing import cast

import anyio
import pytest

from forebay import EngineError
from forebay_sqlite._connection import open_database

pytestmark = pytest.mark.anyio

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def made(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE t (x)")


def inserted(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO t VALUES (1)")


def counted(connection: sqlite3.Connection) -> int:
    return cast("int", connection.execute("SELECT count(*) FROM t").fetchone()[0])


def endless(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO t VALUES (1)")
    connection.execute(ENDLESS)


async def can_write_now(path: Path) -> bool:
    """Whether no transaction is open: a foreign connection gets the lock at once."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


async def test_what_was_written_can_be_read(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:
        await database.write("making", made)
        await database.write("writing", inserted)

        assert await database.read("reading", counted) == 1


async def test_a_write_that_fails_leaves_nothing_and_no_transaction(tmp_path: Path) -> None:
    def half(connection: sqlite3.Connection) -> None:
        inserted(connection)
        raise LookupError("half-way")

    async with open_database(tmp_path / "a.db") as database:
        await database.write("making", made)
        with pytest.raises(LookupError, match="half-way"):
            await database.write("writing", half)

        assert await database.read("reading", counted) == 0
        assert await can_write_now(tmp_path / "a.db")


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:
        await database.write("making", made)

        with pytest.raises(EngineError, match="cannot be written"):
            await database.read("writing", inserted)


async def test_objects_on_one_file_share_its_connections(tmp_path: Path) -> None:
    before = threading.active_count()

    async with open_database(tmp_path / "a.db") as first:
        await first.write("making", made)
        async with open_database(tmp_path / "a.db") as second, anyio.create_task_group() as group:
            for database in [first, second] * 20:
                group.start_soon(database.write, "writing", inserted)
        assert await first.read("reading", counted) == 40  # closing the second has not closed the first's

    assert threading.active_count() <= before + 12  # worker threads are anyio's and are used again


async def test_every_commit_is_seen_by_other_connections(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db", synchronous="normal") as database:
        await database.write("making", made)
        await database.write("writing", inserted)
        other = sqlite3.connect(tmp_path / "a.db")

        assert counted(other) == 1
        other.close()


async def test_a_locked_file_is_transient_and_names_what_was_being_done(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db", deadline=0.3) as database:
        await database.write("making", made)
        holder = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"a\.db: .*locked.* while writing rows") as caught:
            await database.write("writing rows", inserted)
        seconds = time.monotonic() - started
        holder.execute("ROLLBACK")
        holder.close()

        assert caught.value.category == "transient"
        assert 0.2 < seconds < 0.3 + 0.5
        await database.write("writing rows", inserted)


async def test_an_exclusively_locked_file_cannot_be_opened_past_the_deadline(tmp_path: Path) -> None:
    holder = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    holder.execute("CREATE TABLE t (x)")

    started = time.monotonic()
    async with open_database(tmp_path / "a.db", deadline=0.2) as database:
        with pytest.raises(EngineError, match="locked"):
            await database.read("looking", counted)

    assert time.monotonic() - started < 0.2 + 0.5
    holder.close()


@pytest.mark.parametrize("way", ["read", "write"])
async def test_a_call_that_takes_too_long_is_cut_off(tmp_path: Path, way: str) -> None:
    def slow(connection: sqlite3.Connection) -> None:
        connection.execute(ENDLESS)

    async with open_database(tmp_path / "a.db", deadline=0.2) as database:
        await database.write("making", made)
        call = database.read if way == "read" else database.write
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"counting for ever did not end in 0\.2 seconds") as caught:
            await call("counting for ever", slow)

        assert time.monotonic() - started < 0.2 + 0.5
        assert caught.value.category == "transient"
        assert await can_write_now(tmp_path / "a.db")


async def test_a_call_that_waits_behind_others_keeps_to_its_deadline(tmp_path: Path) -> None:
    blocked = threading.Event()

    def stuck(connection: sqlite3.Connection) -> None:
        blocked.wait(1.0)

    async with open_database(tmp_path / "a.db") as slow, open_database(tmp_path / "a.db", deadline=0.1) as quick:
        async with anyio.create_task_group() as group:
            group.start_soon(slow.write, "being stuck", stuck)
            await anyio.sleep(0.05)
            with pytest.raises(EngineError, match="other calls of this process came first"):
                await quick.write("writing", made)
            blocked.set()


async def test_a_cancelled_call_ends_soon_and_has_no_effect(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db", deadline=30) as database:
        await database.write("making", made)
        started = time.monotonic()
        with anyio.move_on_after(0.1) as scope:
            await database.write("counting for ever", endless)

        assert scope.cancelled_caught
        assert time.monotonic() - started < 0.1 + 0.5
        assert await can_write_now(tmp_path / "a.db")
        assert await database.read("reading", counted) == 0


async def test_a_call_cancelled_while_the_file_is_locked_ends_soon(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db", deadline=30) as database:
        await database.write("making", made)
        holder = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with anyio.move_on_after(0.1) as scope:
            await database.write("writing", inserted)
        holder.execute("ROLLBACK")
        holder.close()

        assert scope.cancelled_caught
        assert time.monotonic() - started < 0.1 + 0.5
        assert await database.read("reading", counted) == 0


@pytest.mark.parametrize("delay", [0.0, 0.0001, 0.0003, 0.001, 0.003, 0.01])
async def test_a_write_cancelled_at_any_moment_is_whole_or_absent(tmp_path: Path, delay: float) -> None:
    def pair(connection: sqlite3.Connection) -> None:
        inserted(connection)
        time.sleep(0.002)
        inserted(connection)

    async with open_database(tmp_path / "a.db") as database:
        await database.write("making", made)
        for _ in range(5):
            with anyio.move_on_after(delay):
                await database.write("writing a pair", pair)

            assert await can_write_now(tmp_path / "a.db")
            assert await database.read("reading", counted) % 2 == 0


async def test_an_interrupt_does_not_hit_the_next_call(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db", deadline=30) as database:
        await database.write("making", made)
        with anyio.move_on_after(0.05):
            await database.write("counting for ever", endless)

        for _ in range(20):
            await database.write("writing", inserted)
        assert await database.read("reading", counted) == 20


async def test_a_full_disk_is_a_dependency_and_nothing_is_half_written(tmp_path: Path) -> None:
    def shrunk(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (1)")
        connection.execute("PRAGMA max_page_count=2")
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")

    async with open_database(tmp_path / "a.db") as database:
        await database.write("making", made)
        with pytest.raises(EngineError, match=r"full, while writing") as caught:
            await database.write("writing", shrunk)

        assert caught.value.category == "dependency"
        assert await database.read("reading", counted) == 0
        assert await can_write_now(tmp_path / "a.db")


async def test_a_file_that_is_no_database_is_permanent(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"this is not a database, it only looks like a file" * 100)

    async with open_database(tmp_path / "a.db") as database:
        with pytest.raises(EngineError, match="not an SQLite database, while reading") as caught:
            await database.read("reading", counted)

    assert caught.value.category == "permanent"


async def test_a_missing_table_is_permanent(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:
        with pytest.raises(EngineError, match="no such table: t") as caught:
            await database.read("reading", counted)

    assert caught.value.category == "permanent"


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    async with open_database(tmp_path / "nowhere" / "a.db") as database:
        with pytest.raises(EngineError, match="see that its folder exists") as caught:
            await database.read("reading", counted)

    assert caught.value.category == "dependency"


async def test_a_level_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="synchronous must be 'full' or 'normal', not 'off'"):
        async with open_database(tmp_path / "a.db", synchronous="off"):  # type: ignore[arg-type]  # the mistake
            pass


async def test_the_bodys_exception_leaves_bare(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_database(tmp_path / "a.db"):
            raise LookupError("mine")


async def test_the_levels_are_what_they_say(tmp_path: Path) -> None:
    def level(connection: sqlite3.Connection) -> int:
        return cast("int", connection.execute("PRAGMA synchronous").fetchone()[0])

    async with open_database(tmp_path / "a.db") as full:
        async with open_database(tmp_path / "a.db", synchronous="normal") as normal:
            assert await full.read("reading the level", level) == 2
            assert await normal.read("reading the level", level) == 1
