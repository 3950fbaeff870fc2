"""Dead letters: what the suite of rules does not see."""

import sqlite3
from pathlib import Path

import anyio
import pytest

from forebay.abc import Category, DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterState
from forebay_sqlite import SqliteDeadLetterStore, open_sqlite_dead_letters

pytestmark = pytest.mark.anyio

ALL = DeadLetterFilter()


def letter(number: int, *, fingerprint: str = "fp1:a", last_seen: float = 2.0, payload: bytes = b"{}") -> DeadLetter:
    return DeadLetter(
        id=DeadLetterId("orders", "file", 0, f"{number:06}"),
        payload=payload,
        content_type="application/json",
        category=Category.PERMANENT,
        fingerprint=fingerprint,
        stage="store",
        error_type="ValueError",
        message=f"row {number} is bad",
        first_seen=1.0,
        last_seen=last_seen,
    )


async def test_they_outlive_the_process(tmp_path: Path) -> None:
    async with open_sqlite_dead_letters(path=tmp_path / "d.db") as store:
        await store.put([letter(1)])

    async with open_sqlite_dead_letters(path=tmp_path / "d.db") as store:
        assert await store.find(ALL, limit=10) == [letter(1)]


async def test_tables_are_apart(tmp_path: Path) -> None:
    async with (
        open_sqlite_dead_letters(path=tmp_path / "d.db") as first,
        open_sqlite_dead_letters(path=tmp_path / "d.db", table='the "other" ones') as second,
    ):
        await second.put([letter(1)])

        assert (await first.find(ALL, limit=9), await second.find(ALL, limit=9)) == ([], [letter(1)])


async def test_a_state_that_moves_to_itself_is_refused(tmp_path: Path) -> None:
    async with open_sqlite_dead_letters(path=tmp_path / "d.db") as store:
        with pytest.raises(ValueError, match="new must differ from old, not be 'dead' too"):
            await store.move([letter(1).id], old=DeadLetterState.DEAD, new=DeadLetterState.DEAD)


async def test_a_negative_limit_is_refused(tmp_path: Path) -> None:
    async with open_sqlite_dead_letters(path=tmp_path / "d.db") as store:
        with pytest.raises(ValueError, match="limit must be at least 0, not -1"):
            await store.find(ALL, limit=-1)
        with pytest.raises(ValueError, match="limit must be at least 0, not -1"):
            await store.purge(ALL, limit=-1)


async def test_a_put_cut_off_at_any_moment_is_whole_or_absent(tmp_path: Path) -> None:
    async with open_sqlite_dead_letters(path=tmp_path / "d.db") as store:
        for batch in range(10):
            with anyio.move_on_after(batch / 5000):
                await store.put([letter(batch * 100 + number) for number in range(100)])

            found = await store.find(ALL, limit=10_000)
            assert len(found) % 100 == 0


def plan_of(path: Path, sql: str) -> str:
    connection = sqlite3.connect(path)
    plan = " / ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}"))
    connection.close()
    return plan


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (DeadLetterFilter(pipeline="orders"), "forebay_dead_letters_id"),
        (DeadLetterFilter(fingerprint="fp1:a"), "forebay_dead_letters_newest"),
        (DeadLetterFilter(state=DeadLetterState.DEAD), "forebay_dead_letters_state"),
        (DeadLetterFilter(since=10.0), "forebay_dead_letters_"),
    ],
)
async def test_each_way_to_look_has_an_index(tmp_path: Path, wanted: DeadLetterFilter, index: str) -> None:
    async with open_sqlite_dead_letters(path=tmp_path / "d.db") as store:
        plans = await _plans(store, wanted)

    assert any(index in plan for plan in plans), plans


async def _plans(store: SqliteDeadLetterStore, wanted: DeadLetterFilter) -> list[str]:
    """Return SQLite's plan of every statement that a `find` runs."""
    statements: list[str] = []
    await store._database.read("tracing", lambda c: c.set_trace_callback(statements.append))
    await store.find(wanted, limit=10)
    await store._database.read("tracing", lambda c: c.set_trace_callback(None))
    found = [statement for statement in statements if statement.startswith("SELECT")]
    assert found
    return [plan_of(store._database.file, statement) for statement in found]


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_a_hundred_thousand_are_listed_and_grouped_inside_the_deadline(tmp_path: Path) -> None:
    async with open_sqlite_dead_letters(path=tmp_path / "d.db", synchronous="normal") as store:
        for first in range(0, 100_000, 10_000):
            numbers = range(first, first + 10_000)
            await store.put([letter(n, fingerprint=f"fp1:{n % 50}", payload=b"x" * 500) for n in numbers])

        groups = await store.groups(ALL)
        found = await store.find(DeadLetterFilter(fingerprint="fp1:7"), limit=100, after=letter(50_000).id)

    assert [group.count for group in groups] == [2000] * 50
    assert [one.id.offset for one in found[:2]] == ["050007", "050057"]
    assert len(found) == 100
