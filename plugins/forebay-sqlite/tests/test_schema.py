"""Tables are made once, whoever comes first."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from forebay import EngineError
from forebay_sqlite._connection import open_database
from forebay_sqlite._schema import Schema, prepare

pytestmark = pytest.mark.anyio

OLD = Schema("things", [["CREATE TABLE forebay_things (a)", "CREATE INDEX forebay_things_a ON forebay_things (a)"]])
NEW = Schema("things", [*OLD.steps, ["ALTER TABLE forebay_things ADD COLUMN b"]])

PROGRAM = """
import sys, anyio
from forebay_sqlite import open_sqlite_dead_letters, open_sqlite_queue, open_sqlite_state

async def main():
    sys.stdin.readline()
    async with open_sqlite_queue(path=sys.argv[1]) as queue:
        await queue.put_many([sys.argv[2]])
    async with open_sqlite_dead_letters(path=sys.argv[1]), open_sqlite_state(path=sys.argv[1]):
        pass

anyio.run(main)
"""


def columns(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    names = [row[0] for row in connection.execute("SELECT name FROM pragma_table_info('forebay_things')")]
    connection.close()
    return names


async def test_a_schema_is_made_once(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:
        await prepare(database, OLD)
        await prepare(database, OLD)

    assert columns(tmp_path / "a.db") == ["a"]


async def test_an_older_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:
        await prepare(database, OLD)
        await prepare(database, NEW)

    assert columns(tmp_path / "a.db") == ["a", "b"]


async def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    async with open_database(tmp_path / "a.db") as database:
        await prepare(database, NEW)

        with pytest.raises(EngineError, match="have version 2 and this forebay-sqlite knows 1; install the newer"):
            await prepare(database, OLD)


async def test_the_version_that_belongs_to_the_program_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("PRAGMA user_version = 42")
    connection.close()

    async with open_database(tmp_path / "a.db") as database:
        await prepare(database, OLD)

        assert await database.read("reading", lambda c: c.execute("PRAGMA user_version").fetchone()) == (42,)


def test_processes_that_start_at_once_share_the_tables(tmp_path: Path) -> None:
    for attempt in range(3):
        path = tmp_path / f"{attempt}.db"
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, path, str(number)], stdin=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for number in range(4)
        ]

        ends = [racer.communicate(b"go\n", timeout=60)[1] for racer in racers]

        assert [racer.returncode for racer in racers] == [0] * 4, b"\n".join(ends).decode()
        connection = sqlite3.connect(path)
        items = connection.execute("SELECT item FROM forebay_queue ORDER BY item").fetchall()
        connection.close()
        assert items == [(f'"{number}"',) for number in range(4)]
