"""The protocols that plugins match. Nobody has to inherit from them.

Data is positional-only, so a plugin may name its parameters as it likes.
Every method may be cancelled at any await; each protocol says what that leaves behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar, runtime_checkable

from forebay._summary import Summary as Summary
from forebay._types import Again as Again
from forebay._types import BatchInfo as BatchInfo
from forebay._types import Bounds as Bounds
from forebay._types import BreakerInfo as BreakerInfo
from forebay._types import CacheEntry as CacheEntry
from forebay._types import CallOutcome as CallOutcome
from forebay._types import Category as Category
from forebay._types import Chunk as Chunk
from forebay._types import DeadLetter as DeadLetter
from forebay._types import DeadLettered as DeadLettered
from forebay._types import DeadLetterFilter as DeadLetterFilter
from forebay._types import DeadLetterGroup as DeadLetterGroup
from forebay._types import DeadLetterId as DeadLetterId
from forebay._types import DeadLetterState as DeadLetterState
from forebay._types import Deliveries as Deliveries
from forebay._types import Dropped as Dropped
from forebay._types import Failed as Failed
from forebay._types import Failure as Failure
from forebay._types import Goal as Goal
from forebay._types import Limits as Limits
from forebay._types import LimitsInfo as LimitsInfo
from forebay._types import Member as Member
from forebay._types import MetricPoint as MetricPoint
from forebay._types import Observation as Observation
from forebay._types import Offset as Offset
from forebay._types import Outcome as Outcome
from forebay._types import PartitionsInfo as PartitionsInfo
from forebay._types import Pressure as Pressure
from forebay._types import Quantiles as Quantiles
from forebay._types import Redelivery as Redelivery
from forebay._types import RunInfo as RunInfo
from forebay._types import Settlement as Settlement
from forebay._types import Span as Span
from forebay._types import StageSummary as StageSummary

T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class Session(Protocol[T_co]):
    """One member's conversation with a source; its methods are never called at the same time, `wait_ready` excepted."""

    @property
    def claim_seconds(self) -> float | None:
        """Seconds after which items in hand fall to others unless renewed; `None` where they never do."""
        ...

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[T_co] | None:
        """Settle what is done and take the next items, in one round trip.

        Answers as soon as the engine does: when nothing is ready it returns an empty chunk, it never waits for items.
        Either part may be empty: `max_items=0` only settles.
        Returns `None` at the end of the source, after which it still takes settlements.
        Idempotent by offset and epoch: settling twice is the same as once.
        A single item larger than *max_bytes* comes alone.
        If it raises or is cut off, the same settlements are sent again. When it raises something that will not pass,
        nothing more is fetched, what is in hand is finished, and the run raises it.
        """
        ...

    async def wait_ready(self) -> None:
        """Wait until an `exchange` may find something; cancelled at will, takes nothing.

        May return early. A source that cannot know sleeps for its poll interval.
        If it raises something that may pass, it is asked again after a while.
        """
        ...

    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        """Return items unfinished, so that they are handed out again at once.

        With *refund* the delivery is not counted. Those that are `maybe_done` come again with `Chunk.maybe_done`,
        to whoever gets them. Idempotent; items of an old epoch are ignored.
        """
        ...

    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        """Extend the claim on all that is in hand and write down *failures* of items that stay here.

        Returns what is no longer this member's. Called at least every third of `claim_seconds`.
        """
        ...

    async def lag(self) -> int | None:
        """Return how many items wait behind this session, or `None` where the source cannot know."""
        ...


@runtime_checkable
class Source(Protocol[T_co]):
    """Where items come from. One source object may be opened by several members.

    A source whose items of one key may be in the hands of several members at once says so with an attribute
    `shared = True`; a pipeline with `key_by` then warns that order holds within a process only.
    """

    def open(self, member: Member, /) -> AbstractAsyncContextManager[Session[T_co]]:
        """Open a session; leaving the block closes it and does not settle anything."""
        ...


@runtime_checkable
class Sink(Protocol[T_contra]):
    """Where items end. Use one with `map_batches`."""

    async def write(self, items: Sequence[T_contra], /) -> Sequence[Outcome] | None:
        """Write *items*; return an outcome for each, in order, or `None` when all are done.

        Cancelled: any, all or none of them may have been written.
        """
        ...


class DeadLetterStore(Protocol):
    """Where items are set aside."""

    async def put(self, records: Sequence[DeadLetter], /) -> None:
        """Store *records*, all or none; those whose id is stored already are left as they are."""
        ...

    async def find(
        self, wanted: DeadLetterFilter, /, *, limit: int, after: DeadLetterId | None = None
    ) -> Sequence[DeadLetter]:
        """Return at most *limit* records in the order of their ids, from behind *after* on."""
        ...

    async def groups(self, wanted: DeadLetterFilter, /) -> Sequence[DeadLetterGroup]:
        """Return the groups by fingerprint, the largest first, then by fingerprint."""
        ...

    async def move(
        self, ids: Sequence[DeadLetterId], /, *, old: DeadLetterState, new: DeadLetterState
    ) -> Sequence[DeadLetterId]:
        """Set the state of those that are in *old* to *new*; return which, so that two callers never both get one."""
        ...

    async def purge(self, wanted: DeadLetterFilter, /, *, limit: int) -> int:
        """Delete at most *limit* matching records; return how many."""
        ...


class StateStore(Protocol):
    """Small values by key, for one namespace, fenced by an epoch.

    A write whose epoch is lower than the highest that has written here raises `LostOwnershipError` and writes nothing.
    """

    async def get_many(self, keys: Sequence[str], /) -> Sequence[bytes | None]:
        """Return the value of each key in order, `None` where there is none."""
        ...

    async def put_many(self, values: Mapping[str, bytes], /, *, epoch: int, ttl: float | None = None) -> None:
        """Store all of *values* or none; with *ttl* they are gone after so many seconds."""
        ...

    async def delete_many(self, keys: Sequence[str], /, *, epoch: int) -> None:
        """Delete all of *keys*; those that do not exist are ignored."""
        ...

    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        """Set *key* to *new* if it holds *old* now, atomically; `None` stands for no value."""
        ...

    def scan(self, prefix: str, /) -> AsyncIterator[str]:
        """Iterate over the keys that start with *prefix*, ascending, in bounded memory."""
        ...


class CacheTier(Protocol):
    """One level of a cache; a single key is a batch of one."""

    async def get_many(self, keys: Sequence[str], /) -> Sequence[CacheEntry | None]:
        """Return the entry of each key in order, `None` where there is none."""
        ...

    async def set_many(self, entries: Mapping[str, CacheEntry], /) -> None:
        """Store *entries*; one with a lower version than the stored one is ignored."""
        ...

    async def delete_many(self, keys: Sequence[str], /) -> None:
        """Delete *keys*; those that do not exist are ignored."""
        ...


class Breaker(Protocol):
    """Decides whether a call may go out. Pure arithmetic: no clock and no I/O of its own."""

    def admit(self, now: float, /) -> bool:
        """Return whether a call may start now; each `True` is answered by one `record`."""
        ...

    def record(self, outcome: CallOutcome, seconds: float, now: float, /) -> None:
        """Learn how an admitted call ended."""
        ...


class Controller(Protocol):
    """Decides what batch size and concurrency to try next. Pure arithmetic: no clock and no I/O of its own.

    `Limits.reason` says why it moved. A controller may also be `Watchful` and `Adjustable`; forebay asks for the
    methods, nothing is declared. What it answers is cut to the bounds of the stage; if it raises, the stage stays
    where it is until its end, and says so.
    """

    def observe(self, observation: Observation, /) -> Limits:
        """Learn from one finished call; return what holds from now on."""
        ...


@runtime_checkable
class Watchful(Protocol):
    """A controller that also wants to know of calls that take longer than expected, before they end."""

    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        """Look at what is going on; return what holds from now on.

        Called while a call is in flight that takes twice as long as the last ones did: every 50 ms in its first
        second, later less often. Never called when nothing is in flight.

        Args:
            now: Monotonic seconds, as in `Observation`.
            in_flight: Calls running.
            oldest_call: Age in seconds of the oldest of them.
            queued: Items that wait for the stage.
            pressure: System load between 0 (idle) and 1 (at its limit).
        """
        ...


@runtime_checkable
class Adjustable(Protocol):
    """A controller whose bounds and goal can be changed while it works, with `Tuning.change`."""

    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> Limits:
        """Work within *bounds* towards *goal* from now on, and return what holds. If it raises, nothing changes."""
        ...


class ControllerFactory(Protocol):
    """Makes a controller for one stage of one run. Its arguments are passed by name."""

    def __call__(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
        """Return a controller that begins with *start*, which is within *bounds*."""
        ...


class ShardRouter(Protocol):
    """Spreads keys over partitions and partitions over members; the same answer in every process."""

    def partition(self, key: str, /) -> int:
        """Return the partition of *key*, from 0."""
        ...

    def assign(self, members: Sequence[Member], current: Mapping[int, str], /) -> Mapping[int, str]:
        """Return the member id of every partition; *current* is who has them now."""
        ...


class Observer:
    """Base that does nothing, for observers that want some of the events.

    An observer may be any object: forebay calls those of these methods that it has.
    They are called in the event loop, must not block, and an exception never reaches the batch.
    """

    def run_started(self, info: RunInfo, /) -> None:
        """Called before the first fetch."""

    def batch_done(self, info: BatchInfo, /) -> None:
        """Called after each call of a batch handler."""

    def limits_changed(self, info: LimitsInfo, /) -> None:
        """Called when a controller moves."""

    def breaker_changed(self, info: BreakerInfo, /) -> None:
        """Called when a breaker changes its state."""

    def pressure_changed(self, info: Pressure, /) -> None:
        """Called when a resource nears or leaves its limit."""

    def dead_lettered(self, info: DeadLettered, /) -> None:
        """Called after dead letters were stored."""

    def partitions_changed(self, info: PartitionsInfo, /) -> None:
        """Called when this member gains or loses partitions."""

    def run_finished(self, summary: Summary, /) -> None:
        """Called after the last settlement."""


class TracingExporter(Protocol):
    """Takes finished spans out of the process."""

    async def export_spans(self, spans: Sequence[Span], /) -> None:
        """Export *spans*; cancelled: some may have gone out."""
        ...


class MetricsExporter(Protocol):
    """Takes readings out of the process."""

    async def export_metrics(self, points: Sequence[MetricPoint], /) -> None:
        """Export one reading of all metrics; cancelled: some may have gone out."""
        ...
