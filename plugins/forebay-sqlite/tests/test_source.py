"""Taking items out of a queue: what the suite of rules does not see."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from forebay import EngineError
from forebay.abc import Chunk, Deliveries, Member, Redelivery, Session, Settlement
from forebay_sqlite import open_sqlite_queue, open_sqlite_source

pytestmark = pytest.mark.anyio


async def put(
    path: Path,
    items: Sequence[object],
    *,
    keys: Sequence[str | None] | None = None,
    headers: Sequence[Mapping[str, str] | None] | None = None,
    due: float | None = None,
) -> None:
    async with open_sqlite_queue(path=path) as queue:
        await queue.put_many(items, keys=keys, headers=headers, due=due)


@asynccontextmanager
async def opened(
    path: Path, *, claim_seconds: float = 60.0, until_empty: bool = False, poll_seconds: float = 0.2
) -> AsyncGenerator[Session[object]]:
    async with (
        open_sqlite_source(
            path=path, claim_seconds=claim_seconds, until_empty=until_empty, poll_seconds=poll_seconds
        ) as source,
        source.open(Member("m")) as session,
    ):
        yield session


async def take(session: Session[object], count: int = 100, *settled: Settlement) -> Chunk[object]:
    chunk = await session.exchange(settled, max_items=count, max_bytes=None)
    assert chunk is not None
    return chunk


def done(chunk: Chunk[object]) -> Settlement:
    return Settlement(chunk.offsets, epoch=chunk.epoch)


def change(path: Path, sql: str) -> None:
    """Do to the file what another program, or time, would do."""
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(sql)
    connection.close()


async def test_what_goes_back_maybe_done_says_so_to_whoever_gets_it(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(4))

    async with opened(tmp_path / "q.db") as session:
        chunk = await take(session)
        cut_off = Deliveries(chunk.offsets[:2], epoch=chunk.epoch, maybe_done=True)
        untouched = Deliveries(chunk.offsets[2:], epoch=chunk.epoch)
        await session.give_back([cut_off, untouched], refund=True)
    async with opened(tmp_path / "q.db") as session:
        again = await take(session)

    assert (again.items, again.deliveries, again.maybe_done) == ([0, 1, 2, 3], 1, [True, True, False, False])


async def test_an_item_stays_maybe_done_whatever_becomes_of_later_attempts(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(2))

    async with opened(tmp_path / "q.db") as session:
        chunk = await take(session)
        await session.give_back([Deliveries(chunk.offsets, epoch=chunk.epoch, maybe_done=True)], refund=True)
        chunk = await take(session)
        first, second = (Redelivery(offset, 1, epoch=chunk.epoch) for offset in chunk.offsets)
        await session.renew([second])
        settlement = Settlement(epoch=chunk.epoch, retries=[first])
        await session.give_back([Deliveries([second.offset], epoch=chunk.epoch)], refund=True)
        again = await take(session, 100, settlement)

    assert (again.failures, again.maybe_done) == (1, True)


async def test_settling_and_taking_are_one_transaction(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(6))

    async with opened(tmp_path / "q.db") as session:
        first = await take(session, 3)
        second = await take(session, 3, done(first))

        assert second.items == [3, 4, 5]
        assert second.offsets == range(4, 7)
        async with open_sqlite_queue(path=tmp_path / "q.db") as queue:
            assert await queue.count() == 3


async def test_a_retry_comes_before_fresh_items(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(6))

    async with opened(tmp_path / "q.db") as session:
        first = await take(session, 2)
        retry = Redelivery(first.offsets[1], 1, epoch=first.epoch, error="boom")
        second = await take(session, 2, Settlement(first.offsets[:1], epoch=first.epoch, retries=[retry]))

    assert second.items == [1, 2]
    assert (second.failures, second.deliveries, second.maybe_done) == ([1, 0], [2, 1], False)


async def test_a_settlement_that_lost_its_item_changes_nothing_and_says_so(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(4))

    async with opened(tmp_path / "q.db") as slow, opened(tmp_path / "q.db") as other:
        old = await take(slow, 4)
        change(tmp_path / "q.db", "UPDATE forebay_queue SET ready_at = 0 WHERE offset IN (2, 3)")
        taken_over = await take(other, 4)
        answer = await slow.exchange([done(old)], max_items=0, max_bytes=None)

        assert taken_over.items == [1, 2]
        assert taken_over.maybe_done is True
        assert taken_over.deliveries == 2
        assert answer is not None
        assert answer.lost == [Deliveries(range(2, 4), epoch=old.epoch)]
        assert (await take(other, 0, done(taken_over))).lost == []


async def test_an_item_that_others_took_over_and_settled_is_lost_too(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(2))

    async with opened(tmp_path / "q.db") as slow, opened(tmp_path / "q.db") as other:
        old = await take(slow, 2)
        change(tmp_path / "q.db", "UPDATE forebay_queue SET ready_at = 0 WHERE offset = 1")
        await take(other, 0, done(await take(other, 1)))
        first = await take(slow, 0, done(old))
        again = await take(slow, 0, done(old))

    assert first.lost == [Deliveries(range(1, 2), epoch=old.epoch)]
    assert again.lost == []


async def test_a_retry_that_lost_its_item_says_so(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(1))

    async with opened(tmp_path / "q.db") as slow, opened(tmp_path / "q.db") as other:
        old = await take(slow, 1)
        change(tmp_path / "q.db", "UPDATE forebay_queue SET ready_at = 0")
        await take(other, 1)
        retry = Redelivery(old.offsets[0], 1, epoch=old.epoch)
        answer = await take(slow, 0, Settlement(epoch=old.epoch, retries=[retry]))

        assert answer.lost == [Deliveries(range(1, 2), epoch=old.epoch)]
        assert await other.lag() == 0


async def test_renewing_reports_what_others_took_over(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(3))

    async with opened(tmp_path / "q.db") as slow, opened(tmp_path / "q.db") as other:
        old = await take(slow, 3)
        change(tmp_path / "q.db", "UPDATE forebay_queue SET ready_at = 0 WHERE offset = 2")
        await take(other, 1)

        assert await slow.renew([]) == [Deliveries(range(2, 3), epoch=old.epoch)]
        assert await slow.renew([]) == []


async def test_an_own_item_that_came_free_again_is_first_reported_lost(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", ["only"])

    async with opened(tmp_path / "q.db") as slow, opened(tmp_path / "q.db") as other:
        old = await take(slow)
        change(tmp_path / "q.db", "UPDATE forebay_queue SET ready_at = 0")
        borrowed = await take(other)
        await other.give_back([Deliveries(borrowed.offsets, epoch=borrowed.epoch)], refund=True)
        first = await take(slow)
        second = await take(slow)

    assert (first.items, first.lost) == ([], [Deliveries(range(1, 2), epoch=old.epoch)])
    assert (second.items, second.lost) == (["only"], [])


async def test_an_own_claim_that_ran_out_is_not_handed_out_twice(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", ["only"])

    async with opened(tmp_path / "q.db") as session:
        chunk = await take(session)
        change(tmp_path / "q.db", "UPDATE forebay_queue SET ready_at = 0")

        assert (await take(session)).items == []
        assert (await take(session, 0, done(chunk))).lost == []


async def test_a_settlement_sent_again_is_the_same_as_once(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(2))

    async with opened(tmp_path / "q.db") as session:
        chunk = await take(session)
        retry = Redelivery(chunk.offsets[1], 1, after=3600, epoch=chunk.epoch)
        settled = Settlement(chunk.offsets[:1], epoch=chunk.epoch, retries=[retry])
        answers = [await take(session, 10, settled) for _ in range(3)]

        assert [(answer.items, answer.lost) for answer in answers] == [([], [])] * 3
        assert await session.lag() == 1


async def test_keys_and_headers_come_with_the_items(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", [1, 2, 3], keys=["a", None, "b"], headers=[{"x": "1"}, None, {}])
    await put(tmp_path / "q.db", [4])

    async with opened(tmp_path / "q.db") as session:
        chunk = await take(session, 3)
        plain = await take(session)

    assert chunk.keys == ["a", "offset 2", "b"]
    assert chunk.headers == [{"x": "1"}, {}, {}]
    assert (plain.keys, plain.headers) == (None, None)


async def test_items_that_are_due_later_wait(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", ["later"], due=time.time() + 3600)
    await put(tmp_path / "q.db", ["now"])

    async with opened(tmp_path / "q.db", until_empty=True) as session:
        first = await take(session)
        second = await take(session, 10, done(first))
        change(tmp_path / "q.db", "UPDATE forebay_queue SET ready_at = 1")
        third = await take(session)
        end = await session.exchange([done(third)], max_items=1, max_bytes=None)

    assert (first.items, second.items, third.items, end) == (["now"], [], ["later"], None)


async def test_a_queue_without_an_end_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as session:
        assert (await take(session)).items == []


async def test_waiting_ends_at_once_when_this_process_puts(tmp_path: Path) -> None:
    async with (
        opened(tmp_path / "q.db", poll_seconds=30) as session,
        open_sqlite_queue(path=tmp_path / "q.db") as queue,
    ):
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(session.wait_ready)
                await anyio.sleep(0.05)
                await queue.put_many([1])


async def test_waiting_ends_when_another_program_puts(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db", poll_seconds=0.02) as session:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(session.wait_ready)
                await anyio.sleep(0.05)
                change(tmp_path / "q.db", "INSERT INTO forebay_queue (queue, size, item) VALUES ('default', 1, '1')")


async def test_waiting_ends_when_the_queue_has(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db", until_empty=True) as session:
        with anyio.fail_after(5):
            await session.wait_ready()


async def test_text_that_is_no_json_is_named(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as session:
        change(tmp_path / "q.db", "INSERT INTO forebay_queue (queue, size, item) VALUES ('default', 1, '1,2')")
        with pytest.raises(EngineError, match="item 1 of queue 'default' is text but not JSON") as caught:
            await take(session)

    assert caught.value.category == "permanent"


async def test_an_offset_of_another_kind_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "q.db") as session:
        with pytest.raises(ValueError, match="offsets of this source are numbers, not \\['1-0'\\]"):
            await take(session, 0, Settlement(["1-0"]))


async def test_leaving_frees_what_is_in_hand(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(2))

    async with opened(tmp_path / "q.db") as session:
        await take(session)
    async with opened(tmp_path / "q.db") as session:
        again = await take(session)

    assert (again.items, again.deliveries, again.maybe_done) == ([0, 1], 2, True)


async def test_a_file_that_is_locked_at_the_end_does_not_hide_the_bodys_exception(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(2))
    holder = sqlite3.connect(tmp_path / "q.db", isolation_level=None)

    async def fails_while_locked(session: AbstractAsyncContextManager[Session[object]]) -> None:
        async with session:
            holder.execute("BEGIN IMMEDIATE")
            raise LookupError("mine")

    async with open_sqlite_source(path=tmp_path / "q.db", deadline=0.2) as source:
        with pytest.raises(LookupError, match="mine"):
            await fails_while_locked(source.open(Member("m")))

    holder.close()


@pytest.mark.parametrize("delay", [0.0, 0.0002, 0.0004, 0.0007, 0.001, 0.0015, 0.002, 0.004])
async def test_an_exchange_cut_off_at_any_moment_strands_nothing(tmp_path: Path, delay: float) -> None:
    await put(tmp_path / "q.db", range(40))

    async with opened(tmp_path / "q.db", until_empty=True) as session:
        seen: list[object] = []
        settled: list[Settlement] = []
        ended = False
        while not ended:
            chunk: Chunk[object] | None = Chunk((), ())
            with anyio.move_on_after(delay) as scope:
                chunk = await session.exchange(settled, max_items=10, max_bytes=None)
            holder = sqlite3.connect(tmp_path / "q.db", timeout=0, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")  # fails if a transaction were left open
            holder.close()
            if scope.cancelled_caught:
                chunk = await session.exchange(settled, max_items=10, max_bytes=None)
            ended = chunk is None
            if chunk is not None:
                assert chunk.deliveries == 1  # what a cut-off exchange took was refunded
                seen += chunk.items
                settled = [done(chunk)]

    assert seen == list(range(40))


CONSUMER = """
import sys, anyio
from forebay.abc import Member, Settlement
from forebay_sqlite import open_sqlite_source

async def main():
    async with open_sqlite_source(path=sys.argv[1], until_empty=True, claim_seconds=60) as source:
        async with source.open(Member(sys.argv[2])) as session:
            settled = []
            while (chunk := await session.exchange(settled, max_items=7, max_bytes=None)) is not None:
                settled = [Settlement(chunk.offsets, epoch=chunk.epoch)] if chunk.items else []
                if not chunk.items:
                    await session.wait_ready()
                for item in chunk.items:
                    print(item, flush=True)

anyio.run(main)
"""


def test_processes_that_share_a_queue_never_hold_an_item_twice(tmp_path: Path) -> None:
    anyio.run(put, tmp_path / "q.db", range(600))

    racers = [
        subprocess.Popen([sys.executable, "-c", CONSUMER, tmp_path / "q.db", str(n)], stdout=subprocess.PIPE)
        for n in range(3)
    ]
    shares = [list(map(int, racer.communicate(timeout=60)[0].split())) for racer in racers]

    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert sorted(item for share in shares for item in share) == list(range(600))


HOLDER = """
import sys, anyio
from forebay.abc import Member
from forebay_sqlite import open_sqlite_source

async def main():
    async with open_sqlite_source(path=sys.argv[1], claim_seconds=1.0) as source:
        async with source.open(Member("doomed")) as session:
            chunk = await session.exchange([], max_items=2, max_bytes=None)
            print(*chunk.items, flush=True)
            await anyio.sleep_forever()

anyio.run(main)
"""


async def test_what_a_killed_process_held_is_taken_over(tmp_path: Path) -> None:
    await put(tmp_path / "q.db", range(3))
    doomed = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "q.db"], stdout=subprocess.PIPE)
    assert doomed.stdout is not None
    assert doomed.stdout.readline() == b"0 1\n"
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.communicate()

    async with opened(tmp_path / "q.db", until_empty=True, poll_seconds=0.05) as session:
        first = await take(session)
        early = await take(session, 10, done(first))
        with anyio.fail_after(10):
            await session.wait_ready()
        second = await take(session)
        end = await session.exchange([done(second)], max_items=1, max_bytes=None)

    assert (first.items, early.items, second.items, end) == ([2], [], [0, 1], None)
    assert (second.deliveries, second.maybe_done) == (2, True)


async def test_a_claim_of_no_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="claim_seconds must be more than 0"):
        async with open_sqlite_source(path=tmp_path / "q.db", claim_seconds=0):
            pass
