from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import forebay.abc
from forebay._summary import Summary
from forebay._types import (
    BatchInfo,
    BreakerInfo,
    Category,
    DeadLetter,
    DeadLettered,
    DeadLetterFilter,
    DeadLetterId,
    DeadLetterState,
    Failed,
    Limits,
    LimitsInfo,
    Member,
    Outcome,
    PartitionsInfo,
    Pressure,
    Quantiles,
    RunInfo,
)
from forebay.testing import (
    FakeDeadLetterStore,
    FakeSink,
    FakeStateStore,
    Late,
    RecordingObserver,
    ScriptedSource,
)
from forebay_conformance import DeadLetterStoreSuite, SinkSuite, StateStoreSuite

pytestmark = pytest.mark.anyio


me = Member("me-1")


async def test_a_sink_remembers_and_takes_its_time() -> None:
    sink = FakeSink[int](latency=2)
    begin = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sink.write, [1, 2])
        tasks.start_soon(sink.write, [3])

    assert anyio.current_time() == begin + 2
    assert sorted(sink.batches) == [[1, 2], [3]]
    assert sorted(sink.written) == [1, 2, 3]
    assert sink.max_concurrency == 2


async def test_a_sink_answers_by_call_and_by_item() -> None:
    failed = Failed(ValueError("seven"))

    def outcome(item: int) -> Outcome:
        return failed if item == 7 else None

    sink = FakeSink(calls={1: OSError("down"), 3: [None, failed]}, outcome=outcome)

    with pytest.raises(OSError, match="down"):
        await sink.write([1, 7])
    second = await sink.write([1, 7])
    third = await sink.write([7, 8])

    assert (second, third) == ([None, failed], [None, failed])
    assert sink.written == [1, 7]


async def test_a_sink_that_is_cut_off_has_written_nothing() -> None:
    sink = FakeSink[int](latency=2)

    with anyio.move_on_after(1):
        await sink.write([1])

    assert (sink.batches, sink.written, sink.cut) == ([[1]], [], [[1]])


def letter(offset: str) -> DeadLetter:
    return DeadLetter(
        DeadLetterId("pipeline", "source", 0, offset),
        payload=b"{}",
        content_type="application/json",
        category=Category.PERMANENT,
        fingerprint="fp1:0",
        stage="stage",
        error_type="ValueError",
        message="no",
    )


everything = DeadLetterFilter()


async def test_a_dead_letter_store_fails_as_told_and_then_works() -> None:
    store = FakeDeadLetterStore(errors={"put": [OSError("down"), Late(OSError("late")), None]})

    with pytest.raises(OSError, match="down"):
        await store.put([letter("1")])
    assert await store.find(everything, limit=9) == []
    with pytest.raises(OSError, match="late"):
        await store.put([letter("2")])
    await store.put([letter("3")])
    await store.put([letter("4")])

    assert [each.id.offset for each in await store.memory.find(everything, limit=9)] == ["2", "3", "4"]


async def test_a_dead_letter_store_passes_everything_on() -> None:
    store = FakeDeadLetterStore(max_items=2)
    await store.put([letter("1"), letter("2")])
    ids = [each.id for each in await store.find(everything, limit=1)]

    moved = await store.move(ids, old=DeadLetterState.DEAD, new=DeadLetterState.DISCARDED)
    rest = await store.find(everything, limit=9, after=ids[0])
    (group,) = await store.groups(everything)
    purged = await store.purge(everything, limit=9)

    assert (moved, [each.id.offset for each in rest], group.count, purged) == (ids, ["2"], 2, 2)


async def test_a_state_store_fails_as_told_and_then_works() -> None:
    store = FakeStateStore(errors={"cas": [Late(OSError("late"))], "get_many": [OSError("down")]})

    with pytest.raises(OSError, match="late"):
        await store.cas("a", None, b"1", epoch=1)
    with pytest.raises(OSError, match="down"):
        await store.get_many(["a"])
    await store.put_many({"b": b"2", "c": b"3"}, epoch=1)
    await store.delete_many(["c"], epoch=1)

    assert await store.get_many(["a", "b", "c"]) == [b"1", b"2", None]
    assert [key async for key in store.scan("")] == ["a", "b"]


@pytest.mark.parametrize("name", ["putt", "scan", "_script"])
def test_errors_for_what_is_no_method_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"errors names '{name}', which is no async method of FakeStateStore"):
        FakeStateStore(errors={name: [OSError()]})


RECORDS: dict[str, object] = {
    "run_started": RunInfo("p", "r", me, [], [], 0.0),
    "batch_done": BatchInfo("p", "s", 1, 1, 1, 0, 0, 0.1, 0.1, 1, 0.0),
    "limits_changed": LimitsInfo("p", "s", Limits(1, 1, 0.0), Limits(2, 1, 0.0), "why"),
    "breaker_changed": BreakerInfo("p", "s", "k", "closed", "open", "why"),
    "pressure_changed": Pressure("memory", 0.9, "why"),
    "dead_lettered": DeadLettered("p", []),
    "partitions_changed": PartitionsInfo("p", "s", [1], []),
    "run_finished": Summary(
        "p", "r", 0, 0, 0, 0, 0, 0, 0, 0, 0, seconds=0.0, latency=Quantiles(), clean=True, stages=[]
    ),
}


def test_an_observer_records_every_event_of_the_protocol() -> None:
    observer = RecordingObserver()

    for name, record in RECORDS.items():
        getattr(observer, name)(record)

    assert observer.events == list(RECORDS.items())
    assert observer.of("batch_done") == [RECORDS["batch_done"]]
    assert observer.problems == []
    assert set(RECORDS) == {name for name in vars(forebay.abc.Observer) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        (["batch_done"], "batch_done came outside a run"),
        (["run_started", "run_started"], "run_started came twice without run_finished"),
        (["run_started", "run_finished", "run_finished"], "run_finished came outside a run"),
    ],
)
def test_an_observer_notices_events_out_of_order(events: Sequence[str], problem: str) -> None:
    observer = RecordingObserver()
    *before, last = events
    for name in before:
        getattr(observer, name)(RECORDS[name])

    with pytest.raises(AssertionError, match=problem):
        getattr(observer, last)(RECORDS[last])

    assert observer.problems == [problem]


def test_an_observer_notices_another_record() -> None:
    observer = RecordingObserver()
    observer.run_started(RECORDS["run_started"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # it is

    with pytest.raises(AssertionError, match=r"batch_done came with Pressure.*, not a BatchInfo"):
        observer.batch_done(RECORDS["pressure_changed"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_the_fakes_match_the_protocols() -> None:
    source: forebay.abc.Source[int] = ScriptedSource([1])
    sink: forebay.abc.Sink[int] = FakeSink()
    letters: forebay.abc.DeadLetterStore = FakeDeadLetterStore()
    state: forebay.abc.StateStore = FakeStateStore()

    assert isinstance(source, forebay.abc.Source)
    assert isinstance(sink, forebay.abc.Sink)
    assert hasattr(letters, "put")
    assert hasattr(state, "cas")


class TestFakeSink(SinkSuite):
    virtual_time = True
    has_bad_item = False  # it refuses what it is told to

    @asynccontextmanager
    async def open_sink(self) -> AsyncGenerator[FakeSink[Any]]:
        yield FakeSink()

    async def written(self, sink: FakeSink[Any]) -> Sequence[object]:
        return sink.written


class TestFakeDeadLetterStore(DeadLetterStoreSuite):
    virtual_time = True

    @asynccontextmanager
    async def open_store(self) -> AsyncGenerator[FakeDeadLetterStore]:
        yield FakeDeadLetterStore()


class TestFakeStateStore(StateStoreSuite):
    virtual_time = True

    @asynccontextmanager
    async def open_store(self) -> AsyncGenerator[FakeStateStore]:
        yield FakeStateStore()
