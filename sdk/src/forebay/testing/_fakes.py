"""Sinks, stores and observers that fail when they are told to and remember what happened."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
from attrs import define, frozen

from forebay._dead_letter import MemoryDeadLetterStore
from forebay._state import MemoryStateStore
from forebay._summary import Summary
from forebay._types import (
    BatchInfo,
    BreakerInfo,
    DeadLetter,
    DeadLettered,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetterId,
    DeadLetterState,
    LimitsInfo,
    Outcome,
    PartitionsInfo,
    Pressure,
    RunInfo,
)

T = TypeVar("T")
R = TypeVar("R")


class FakeSink(Generic[T]):
    """A sink that remembers what was written, and answers as it was told.

        sink = FakeSink(latency=0.1, calls={2: OSError("down")}, outcome=lambda item: Failed(…) if item == 7 else None)

    Args:
        latency: Virtual seconds that every call takes; cut off before they are over, it has written nothing.
        calls: What the first (1), second (2), … call answers instead: an exception to raise, or an outcome for each
            item.
        outcome: Outcome of each item in the other calls; done without it.
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        calls: Mapping[int, Exception | Sequence[Outcome]] | None = None,
        outcome: Callable[[T], Outcome] | None = None,
    ) -> None:
        self.batches: list[list[T]] = []
        """The items of every call, in the order of the calls, whatever became of them."""
        self.written: list[T] = []
        """Items that are done, in the order in which their calls ended."""
        self.cut: list[list[T]] = []
        """The items of every call that was cut off."""
        self.max_concurrency: int = 0
        """The most calls that ran at the same time."""
        self._latency = latency
        self._calls = dict(calls or {})
        self._outcome = outcome
        self._running = 0

    async def write(self, items: Sequence[T], /) -> Sequence[Outcome] | None:
        """Write *items*, as the script has it."""
        self.batches.append(list(items))
        number = len(self.batches)
        await self._pass_time(items)
        answer = self._calls.get(number)
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            answer = [None if self._outcome is None else self._outcome(item) for item in items]
        self.written.extend(item for item, outcome in zip(items, answer, strict=True) if outcome is None)
        return answer

    async def _pass_time(self, items: Sequence[T]) -> None:
        self._running += 1
        self.max_concurrency = max(self.max_concurrency, self._running)
        passed = False
        try:
            await anyio.lowlevel.checkpoint()
            if self._latency:
                await anyio.sleep(self._latency)
            passed = True
        finally:
            self._running -= 1
            if not passed:
                self.cut.append(list(items))


@frozen
class Late:
    """The call is carried out, and fails all the same: only its answer is lost."""

    error: Exception


Errors = Mapping[str, Iterable[Exception | Late | None]]


@define
class _Script:
    """What the next calls of each method end with."""

    errors: dict[str, Iterator[Exception | Late | None]]

    @classmethod
    def of(cls, errors: Errors | None, owner: type) -> _Script:
        for name in errors or {}:
            if name.startswith("_") or not inspect.iscoroutinefunction(getattr(owner, name, None)):
                raise ValueError(f"errors names {name!r}, which is no async method of {owner.__name__}")
        return cls({name: iter(steps) for name, steps in (errors or {}).items()})

    async def play(self, name: str, call: Callable[[], Awaitable[R]]) -> R:
        step = next(self.errors.get(name, iter(())), None)
        if isinstance(step, Exception):
            await anyio.lowlevel.checkpoint()
            raise step
        result = await call()
        if step is not None:
            raise step.error
        return result


class FakeDeadLetterStore:
    """A `MemoryDeadLetterStore` with calls that fail.

        store = FakeDeadLetterStore(errors={"put": [OSError("down"), None, Late(OSError("answer lost"))]})

    Args:
        errors: For each method, what its first, second, … call fails with, without having done anything; `None` for one
            that succeeds, `Late` for one that is carried out and fails. After the last one all succeed.
        max_items: How many it holds.
    """

    def __init__(self, *, errors: Errors | None = None, max_items: int = 100_000) -> None:
        self.memory: MemoryDeadLetterStore = MemoryDeadLetterStore(max_items=max_items)
        """The store behind, to look into without failures."""
        self._script = _Script.of(errors, type(self))

    async def put(self, records: Sequence[DeadLetter], /) -> None:
        """Store *records*, unless the script says otherwise."""
        await self._script.play("put", lambda: self.memory.put(records))

    async def find(
        self, wanted: DeadLetterFilter, /, *, limit: int, after: DeadLetterId | None = None
    ) -> Sequence[DeadLetter]:
        """Find records, unless the script says otherwise."""
        return await self._script.play("find", lambda: self.memory.find(wanted, limit=limit, after=after))

    async def groups(self, wanted: DeadLetterFilter, /) -> Sequence[DeadLetterGroup]:
        """Return the groups, unless the script says otherwise."""
        return await self._script.play("groups", lambda: self.memory.groups(wanted))

    async def move(
        self, ids: Sequence[DeadLetterId], /, *, old: DeadLetterState, new: DeadLetterState
    ) -> Sequence[DeadLetterId]:
        """Change states, unless the script says otherwise."""
        return await self._script.play("move", lambda: self.memory.move(ids, old=old, new=new))

    async def purge(self, wanted: DeadLetterFilter, /, *, limit: int) -> int:
        """Delete records, unless the script says otherwise."""
        return await self._script.play("purge", lambda: self.memory.purge(wanted, limit=limit))


class FakeStateStore:
    """A `MemoryStateStore` with calls that fail.

    Args:
        errors: As for `FakeDeadLetterStore`; `scan` never fails.
    """

    def __init__(self, *, errors: Errors | None = None) -> None:
        self.memory: MemoryStateStore = MemoryStateStore()
        """The store behind, to look into without failures."""
        self._script = _Script.of(errors, type(self))

    async def get_many(self, keys: Sequence[str], /) -> Sequence[bytes | None]:
        """Return the values, unless the script says otherwise."""
        return await self._script.play("get_many", lambda: self.memory.get_many(keys))

    async def put_many(self, values: Mapping[str, bytes], /, *, epoch: int, ttl: float | None = None) -> None:
        """Store values, unless the script says otherwise."""
        await self._script.play("put_many", lambda: self.memory.put_many(values, epoch=epoch, ttl=ttl))

    async def delete_many(self, keys: Sequence[str], /, *, epoch: int) -> None:
        """Delete values, unless the script says otherwise."""
        await self._script.play("delete_many", lambda: self.memory.delete_many(keys, epoch=epoch))

    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        """Compare and set, unless the script says otherwise."""
        return await self._script.play("cas", lambda: self.memory.cas(key, old, new, epoch=epoch))

    def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """Iterate over the keys."""
        return self.memory.scan(prefix)


class RecordingObserver:
    """Keeps every event in `events`, as (name, record), and checks their order and kind.

    An event before `run_started` or after `run_finished`, or with a record of another kind, is kept in `problems` and
    raises an `AssertionError`, which the run counts as a listener's error.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []
        self.problems: list[str] = []
        self._open = False

    def of(self, name: str, /) -> list[object]:
        """Return the records of one kind of event, in order."""
        return [record for event, record in self.events if event == name]

    def _record(self, name: str, record: object, kind: type) -> None:
        self.events.append((name, record))
        starts = name == "run_started"
        if self._open == starts:
            self._object(f"{name} came {'twice without run_finished' if starts else 'outside a run'}")
        if type(record) is not kind:
            self._object(f"{name} came with {record!r}, not a {kind.__name__}")
        self._open = name != "run_finished"

    def _object(self, problem: str) -> None:
        self.problems.append(problem)
        raise AssertionError(problem)

    def run_started(self, info: RunInfo, /) -> None:
        """Keep it."""
        self._record("run_started", info, RunInfo)

    def batch_done(self, info: BatchInfo, /) -> None:
        """Keep it."""
        self._record("batch_done", info, BatchInfo)

    def limits_changed(self, info: LimitsInfo, /) -> None:
        """Keep it."""
        self._record("limits_changed", info, LimitsInfo)

    def breaker_changed(self, info: BreakerInfo, /) -> None:
        """Keep it."""
        self._record("breaker_changed", info, BreakerInfo)

    def pressure_changed(self, info: Pressure, /) -> None:
        """Keep it."""
        self._record("pressure_changed", info, Pressure)

    def dead_lettered(self, info: DeadLettered, /) -> None:
        """Keep it."""
        self._record("dead_lettered", info, DeadLettered)

    def partitions_changed(self, info: PartitionsInfo, /) -> None:
        """Keep it."""
        self._record("partitions_changed", info, PartitionsInfo)

    def run_finished(self, summary: Summary, /) -> None:
        """Keep it."""
        self._record("run_finished", summary, Summary)
