"""Rows into tables."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from forebay import EngineError, Failed
from forebay.abc import Outcome
from forebay_sqlite import Row, open_sqlite_sink

pytestmark = pytest.mark.anyio

COLUMNS = {"id": "INTEGER", "name": "TEXT NOT NULL DEFAULT 'nobody'", "age": "INTEGER CHECK (age >= 0)"}


def rows_of(path: Path, table: str = "people") -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    found = connection.execute(f'SELECT * FROM "{table}" ORDER BY 1').fetchall()
    connection.close()
    return found


def failures_in(outcomes: Sequence[Outcome] | None) -> dict[int, str]:
    assert outcomes is not None
    found = {place: outcome for place, outcome in enumerate(outcomes) if outcome is not None}
    errors = {place: outcome.error for place, outcome in found.items() if isinstance(outcome, Failed)}
    assert set(errors) == set(found)
    assert all(isinstance(error, EngineError) and error.category == "permanent" for error in errors.values())
    return {place: str(error) for place, error in errors.items()}


async def test_mappings_and_sequences_are_written_in_one_batch(tmp_path: Path) -> None:
    async with open_sqlite_sink(path=tmp_path / "a.db", table="people", columns=COLUMNS) as sink:
        outcomes = await sink.write([{"id": 1, "name": "Ada", "age": 36}, (2, "Bob", None), [3, "Cy", 5]])

    assert outcomes is None
    assert rows_of(tmp_path / "a.db") == [(1, "Ada", 36), (2, "Bob", None), (3, "Cy", 5)]


async def test_a_column_that_a_mapping_lacks_gets_its_default(tmp_path: Path) -> None:
    async with open_sqlite_sink(path=tmp_path / "a.db", table="people", columns=COLUMNS) as first:
        await first.write([])
    async with open_sqlite_sink(path=tmp_path / "a.db", table="people") as sink:
        await sink.write([{"id": 1}, {"age": 5, "id": 2}, {}])

    assert rows_of(tmp_path / "a.db") == [(None, "nobody", None), (1, "nobody", None), (2, "nobody", 5)]


async def test_named_columns_leave_out_what_else_a_mapping_holds(tmp_path: Path) -> None:
    async with open_sqlite_sink(path=tmp_path / "a.db", table="people", columns=COLUMNS):
        pass
    async with open_sqlite_sink(path=tmp_path / "a.db", table="people", columns="id,name") as sink:
        outcomes = await sink.write([{"id": 1, "name": "Ada", "extra": object()}, {"id": 2}])

    assert failures_in(outcomes) == {1: "table 'people': the row has no 'name'"}
    assert rows_of(tmp_path / "a.db") == [(1, "Ada", None)]


async def test_each_bad_row_fails_alone(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"id": 1, "name": "Ada", "age": 36},
        {"id": 1, "name": "again", "age": 1},
        {"id": 2, "name": None, "age": 1},
        {"id": 3, "name": "Cy", "age": -1},
        {"id": 4, "name": {"not": "a value"}, "age": 1},
        {"id": 2**70, "name": "too large", "age": 1},
        {"id": 5, "name": "half \ud800", "age": 1},
        {"id": 6, "nome": "unknown", "age": 1},
        (7, "too", 1, "long"),
        "text",
        {"id": 8, "name": "Di", "age": 8},
    ]
    columns = {**COLUMNS, "id": "INTEGER PRIMARY KEY"}
    async with open_sqlite_sink(path=tmp_path / "a.db", table="people", columns=columns):
        pass

    async with open_sqlite_sink(path=tmp_path / "a.db", table="people") as sink:
        failed = failures_in(await sink.write(rows))

    assert list(failed) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert "refuses the row: UNIQUE constraint failed: people.id" in failed[1]
    assert "NOT NULL" in failed[2]
    assert "the row has 'nome', which is no column" in failed[7]
    assert "the row has 4 values for 3 columns" in failed[8]
    assert "a row must be a mapping or a sequence of values, not str" in failed[9]
    assert rows_of(tmp_path / "a.db") == [(1, "Ada", 36), (8, "Di", 8)]


async def test_an_upsert_replaces_the_other_columns(tmp_path: Path) -> None:
    async with open_sqlite_sink(
        path=tmp_path / "a.db", table="people", columns=COLUMNS, mode="upsert", key="id"
    ) as sink:
        await sink.write([(1, "Ada", 36), (2, "Bob", 1)])
        await sink.write([(1, "Ada", 37), (1, "Ada", 38)])

    assert rows_of(tmp_path / "a.db") == [(1, "Ada", 38), (2, "Bob", 1)]


async def test_ignoring_keeps_the_first_and_still_refuses_bad_rows(tmp_path: Path) -> None:
    async with open_sqlite_sink(
        path=tmp_path / "a.db", table="people", columns=COLUMNS, mode="ignore", key=["id"]
    ) as sink:
        outcomes = await sink.write([(1, "first", 1), (1, "second", 1), (2, None, 1)])

    assert list(failures_in(outcomes)) == [2]
    assert rows_of(tmp_path / "a.db") == [(1, "first", 1)]


async def test_odd_names_are_only_names(tmp_path: Path) -> None:
    columns = {'a "b"': "TEXT", "select": "TEXT", "; DROP TABLE x": "TEXT"}
    async with open_sqlite_sink(path=tmp_path / "a.db", table="my table", columns=columns) as sink:
        await sink.write([dict.fromkeys(columns, "'; --")])

    assert rows_of(tmp_path / "a.db", "my table") == [("'; --",) * 3]


async def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no table 'people'; make it first, or give columns="):
        async with open_sqlite_sink(path=tmp_path / "a.db", table="people"):
            pass


async def test_arguments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with open_sqlite_sink(path=path, table="people", columns=COLUMNS):
        pass

    with pytest.raises(ValueError, match="mode='upsert' goes by a unique key"):
        async with open_sqlite_sink(path=path, table="people", mode="upsert"):
            pass
    with pytest.raises(ValueError, match="mode must be 'insert', 'upsert' or 'ignore', not 'replace'"):
        async with open_sqlite_sink(path=path, table="people", mode="replace"):  # type: ignore[arg-type]  # the mistake
            pass
    with pytest.raises(ValueError, match=r"table 'people' has no column 'nome' \(it has: id, name, age\)"):
        async with open_sqlite_sink(path=path, table="people", columns=["nome"]):
            pass
    with pytest.raises(EngineError, match="ON CONFLICT clause does not match any PRIMARY KEY or UNIQUE"):
        async with open_sqlite_sink(path=path, table="people", mode="upsert", key="id"):
            pass


async def test_a_full_disk_writes_nothing(tmp_path: Path) -> None:
    async with open_sqlite_sink(path=tmp_path / "a.db", table="people", columns=COLUMNS) as sink:
        await sink.write([(1, "Ada", 36)])
        await sink._database.write("shrinking", lambda c: c.execute("PRAGMA max_page_count=10"))
        with pytest.raises(EngineError, match="is full, while writing into table 'people'") as caught:
            await sink.write([(n, "x" * 1000, 1) for n in range(1000)])

    assert caught.value.category == "dependency"
    assert rows_of(tmp_path / "a.db") == [(1, "Ada", 36)]


async def test_a_trigger_that_ends_the_transaction_fails_the_batch(tmp_path: Path) -> None:
    async with open_sqlite_sink(path=tmp_path / "a.db", table="people", columns=COLUMNS) as sink:
        connection = sqlite3.connect(tmp_path / "a.db")
        connection.execute(
            "CREATE TRIGGER t BEFORE INSERT ON people WHEN new.id = 2 BEGIN SELECT raise(ROLLBACK, 'no twos'); END"
        )
        connection.close()
        with pytest.raises(EngineError, match="no twos"):
            await sink.write([(1, "Ada", 36), (2, "Bob", 2)])

    assert rows_of(tmp_path / "a.db") == []


async def test_tasks_may_write_at_once(tmp_path: Path) -> None:
    async with open_sqlite_sink(path=tmp_path / "a.db", table="people", columns=COLUMNS) as sink:
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(sink.write, [(number, "x", 1)])

    assert [row[0] for row in rows_of(tmp_path / "a.db")] == list(range(20))
