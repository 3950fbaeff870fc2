"""Files that are read on from where a run ended: what the suite of rules does not see."""

import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from forebay.abc import Chunk, Deliveries, Member, Redelivery, Session, Settlement
from forebay_sqlite import open_checkpointed, open_sqlite_checkpoint

pytestmark = pytest.mark.anyio


def hundred(start: int) -> range:
    return range(start, 100)


@asynccontextmanager
async def opened(path: Path, *, in_thread: bool = False) -> AsyncGenerator[Session[int]]:
    async with open_checkpointed(hundred, path=path, name="rows", in_thread=in_thread) as source:
        async with source.open(Member("m")) as session:
            yield session


async def take(session: Session[int], count: int, *settled: Settlement) -> Chunk[int]:
    chunk = await session.exchange(settled, max_items=count, max_bytes=None)
    assert chunk is not None
    return chunk


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_later_run_goes_on_with_what_is_not_settled(tmp_path: Path, in_thread: bool) -> None:
    async with opened(tmp_path / "c.db", in_thread=in_thread) as session:
        chunk = await take(session, 10)
        assert chunk.offsets == range(10)
        await take(session, 10, Settlement([0, 1, 2, 5], epoch=chunk.epoch))

    async with opened(tmp_path / "c.db", in_thread=in_thread) as session:
        again = await take(session, 5)

    assert again.items == [3, 4, 6, 7, 8]


async def test_the_end_waits_for_what_is_in_hand(tmp_path: Path) -> None:
    async with opened(tmp_path / "c.db") as session:
        chunk = await take(session, 1000)
        empty = await take(session, 1000)
        end = await session.exchange([Settlement(range(100), epoch=chunk.epoch)], max_items=1, max_bytes=None)

    assert (len(chunk.items), empty.items, end) == (100, [], None)


async def test_what_is_settled_is_in_the_checkpoint_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    async with opened(path) as session, open_sqlite_checkpoint(path=path, name="rows") as done:
        chunk = await take(session, 10)
        await take(session, 0, Settlement(range(4, 8), epoch=chunk.epoch))

        assert (await done.load()).ranges == [range(4, 8)]


async def test_a_settlement_of_another_session_changes_nothing(tmp_path: Path) -> None:
    async with (
        open_checkpointed(hundred, path=tmp_path / "c.db", name="rows") as source,
        source.open(Member("a")) as first,
        source.open(Member("b")) as second,
        open_sqlite_checkpoint(path=tmp_path / "c.db", name="rows") as done,
    ):
        mine = await take(first, 5)
        other = await take(second, 5)
        answer = await take(second, 0, Settlement(mine.offsets, epoch=mine.epoch))

        assert (mine.items, other.items) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
        assert answer.lost == [Deliveries(mine.offsets, epoch=mine.epoch)]
        assert not await done.load()


async def test_waiting_ends_when_a_retry_is_due(tmp_path: Path) -> None:
    async with opened(tmp_path / "c.db") as session:
        chunk = await take(session, 100)
        retry = Redelivery(99, 1, after=0.05, epoch=chunk.epoch)
        early = await take(session, 10, Settlement(range(99), epoch=chunk.epoch, retries=[retry]))
        with anyio.fail_after(5):
            await session.wait_ready()
        late = await take(session, 10)

    assert (early.items, late.items, late.failures, late.deliveries) == ([], [99], [1], [2])


async def test_waiting_ends_when_something_comes_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "c.db") as session:
        chunk = await take(session, 100)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(session.wait_ready)
                await anyio.sleep(0.01)
                await session.give_back([Deliveries([7], epoch=chunk.epoch)], refund=False)
        again = await take(session, 10)

    assert (again.items, again.deliveries, again.offsets) == ([7], [2], range(7, 8))


async def test_what_goes_back_maybe_done_says_so_and_stays_so(tmp_path: Path) -> None:
    async with opened(tmp_path / "c.db") as session:
        chunk = await take(session, 100)
        cut_off = Deliveries([3], epoch=chunk.epoch, maybe_done=True)
        await session.give_back([cut_off, Deliveries([5], epoch=chunk.epoch)], refund=True)
        second = await take(session, 100)
        retries = [Redelivery(offset, 1, epoch=chunk.epoch) for offset in (3, 5)]
        third = await take(session, 100, Settlement(epoch=chunk.epoch, retries=retries))

    assert (second.items, second.deliveries, second.maybe_done) == ([3, 5], [1, 1], [True, False])
    assert (third.items, third.failures, third.maybe_done) == ([3, 5], [1, 1], [True, False])


async def test_the_lag_is_known_once_all_is_read(tmp_path: Path) -> None:
    async with opened(tmp_path / "c.db") as session:
        before = await session.lag()
        chunk = await take(session, 101)
        await session.give_back([Deliveries([1, 2], epoch=chunk.epoch)], refund=True)

        assert (before, await session.lag()) == (None, 2)


async def test_rows_that_fail_to_be_read_lose_none_before_them(tmp_path: Path) -> None:
    def damaged(start: int) -> Iterator[int]:
        yield from range(start, 5)
        raise ValueError("row 5 is cut off")

    async with open_checkpointed(damaged, path=tmp_path / "c.db", name="rows") as source:
        async with source.open(Member("m")) as session:
            chunk = await take(session, 100)
            with pytest.raises(ValueError, match="row 5 is cut off"):
                await session.exchange([Settlement(chunk.offsets, epoch=chunk.epoch)], max_items=100, max_bytes=None)

    async with open_sqlite_checkpoint(path=tmp_path / "c.db", name="rows") as done:
        assert (await done.load()).ranges == [range(5)]


JOB = """
import sys, anyio, forebay
from forebay_sqlite import open_checkpointed, open_sqlite_sink

def read(start):
    return range(start, 20_000)

def parse(number):
    if number % 1000 == 999:
        raise ValueError(f"row {number} is damaged")
    return {"id": number}

async def main():
    path = sys.argv[1]
    async with (
        open_sqlite_sink(
            path=path, table="t", columns={"id": "INTEGER"}, checkpoint="rows", synchronous="normal"
        ) as sink,
        open_checkpointed(read, path=path, name="rows", synchronous="normal") as rows,
    ):
        print("started", flush=True)
        await (
            forebay.pipeline(rows, dead_letters=f"sqlite:///{path}")
            .map(parse)
            .filter(lambda row: row["id"] % 10)
            .map_batches(sink.write, max_size=100)
            .run()
        )

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_job_killed_again_and_again_writes_each_row_once(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "job.db"
    chance = random.Random(20_000)
    kills = 0
    for _ in range(8):
        job = subprocess.Popen([sys.executable, "-c", JOB, path, backend], stdout=subprocess.PIPE)
        assert job.stdout is not None
        job.stdout.readline()
        try:
            job.wait(chance.uniform(0.01, 0.2))
        except subprocess.TimeoutExpired:
            job.kill()
            kills += 1
        job.communicate()
    for _ in range(2):  # the second finds nothing to do
        subprocess.run([sys.executable, "-c", JOB, path, backend], check=True, stdout=subprocess.DEVNULL)

    connection = sqlite3.connect(path)
    ids = [row[0] for row in connection.execute("SELECT id FROM t ORDER BY id")]
    dead = [int(row[0]) for row in connection.execute("SELECT offset FROM forebay_dead_letters")]
    done = connection.execute("SELECT mark, ranges FROM forebay_checkpoints").fetchall()
    connection.close()
    assert kills >= 3
    assert ids == [number for number in range(20_000) if number % 10 and number % 1000 != 999]
    assert sorted(dead) == list(range(999, 20_000, 1000))
    assert done == [(20_000, "[]")]
