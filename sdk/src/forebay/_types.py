"""Frozen records that cross the borders between forebay, handlers and plugins."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from attrs import Attribute, field, frozen

T_co = TypeVar("T_co", covariant=True)

Offset: TypeAlias = int | str
"""Place of an item within its partition: a counted number, or the engine's own id."""


class Category(enum.StrEnum):
    """What kind of failure this is, and so what is done about it."""

    TRANSIENT = "transient"
    """Another attempt may well succeed: time-outs, lost connections, deadlocks."""
    DEPENDENCY = "dependency"
    """What lies behind is down: the stage pauses, no attempt is used up, nothing is dead-lettered."""
    PERMANENT = "permanent"
    """This item will never succeed: it cannot be decoded, it breaks a constraint."""
    POISON = "poison"
    """The process died, or the time limit was hit, with this item in hand."""
    UNKNOWN = "unknown"
    """Nothing is known about this failure; treated as permanent."""


# --- What a handler may put in an item's place -------------------------------------------------


def _check_error(_: Failed, __: Attribute[BaseException], value: object) -> None:
    if not isinstance(value, BaseException):
        raise TypeError(f"Failed() needs an exception, not {value!r:.100}; write Failed(ValueError(...))")


def _check_after(_: Again, __: Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"after must be a number of seconds, 0 or more, not {value!r:.100}")


@frozen
class Failed:
    """This item failed with *error*; the others in the batch are not touched by it."""

    error: BaseException = field(validator=_check_error)


@frozen
class Again:
    """Run this item again, *after* seconds from now at the earliest."""

    after: float = field(default=0.0, validator=_check_after)


@frozen
class Dropped:
    """Throw this item away on purpose; it is counted under *reason*."""

    reason: str


Outcome: TypeAlias = Failed | Again | Dropped | None
"""What became of one item at a sink: `None` is done."""


# --- Sources -----------------------------------------------------------------------------------


@frozen
class Member:
    """One running instance of a pipeline, new at every process start."""

    id: str
    """Unique for every start: a name and a random part."""
    name: str = "forebay"
    """Name of the pipeline that the member runs."""
    host: str = ""
    """Host that it runs on, for people to read."""


@frozen
class Chunk(Generic[T_co]):
    """Items of one partition, in the order of the source, as one fetch returned them."""

    items: Sequence[T_co]
    """The items; may be empty when nothing is ready."""
    offsets: Sequence[Offset]
    """One for each item: a `range` as long as it can be, else a parallel list."""
    partition: int = 0
    """Partition that all of the items belong to."""
    epoch: int = 0
    """Fencing token of this member for the partition; 0 where the source has none."""
    deliveries: Sequence[int] | int = 1
    """How often each item was handed out, this time included; one number when all are alike."""
    failures: Sequence[int] | int = 0
    """How often each item failed before; one number when all are alike."""
    maybe_done: Sequence[bool] | bool = False
    """Whether an earlier attempt of each item was cut off and may have had its effect."""
    keys: Sequence[str] | None = None
    """Ordering keys where the source knows them."""
    headers: Sequence[Mapping[str, str]] | None = None
    """Headers of each item where the source has them."""
    sizes: Sequence[int] | None = None
    """Size of each item in bytes where the source knows it."""
    lost: Sequence[Deliveries] = ()
    """Items handed out earlier that are no longer this member's to settle."""


@frozen
class Deliveries:
    """Items in hand, named by where they came from."""

    offsets: Sequence[Offset]
    """Offsets as the source gave them; a `range` where they are consecutive."""
    partition: int = 0
    """Partition of all of them."""
    epoch: int = 0
    """Epoch under which they were handed out."""
    maybe_done: bool = False
    """Whether a handler was cut off with them in hand, so that its effect may have happened."""


@frozen
class Redelivery:
    """One failed attempt that the source should keep count of."""

    offset: Offset
    """The item's offset."""
    failures: int
    """Failed attempts in all, this one included."""
    after: float = 0.0
    """Seconds from now until the item may be handed out again."""
    maybe_done: bool = False
    """Whether the attempt was cut off, so that its effect may have happened."""
    error: str = ""
    """One line about the failure, for people to read."""
    partition: int = 0
    """The item's partition."""
    epoch: int = 0
    """Epoch under which the item was handed out."""


@frozen
class Settlement:
    """What became final in one partition since the last exchange, and what goes back."""

    offsets: Sequence[Offset] = ()
    """Items that are final: done, dead-lettered or dropped."""
    partition: int = 0
    """Partition of all of them."""
    epoch: int = 0
    """Epoch under which they were handed out."""
    mark: int | None = None
    """Commit mark: every offset below it is final; `None` where offsets are not counted numbers."""
    retries: Sequence[Redelivery] = ()
    """Failed items that go back to the source to be handed out again when they are due."""


# --- Dead letters ------------------------------------------------------------------------------


class DeadLetterState(enum.StrEnum):
    """Where a dead letter stands."""

    DEAD = "dead"
    """Waiting for somebody to look at it."""
    REPLAYING = "replaying"
    """Handed back to its pipeline; not known yet how it went."""
    RESOLVED = "resolved"
    """A replay succeeded."""
    DISCARDED = "discarded"
    """Thrown away on purpose."""
    EXPIRED = "expired"
    """Older than the store keeps them."""


@frozen(order=True)
class DeadLetterId:
    """Identity of a dead letter; putting the same one twice stores it once."""

    pipeline: str
    source: str
    partition: int
    offset: str
    """The offset as text, so that all kinds of offset have one type."""
    generation: int = 0
    """How often the item has been replayed."""


@frozen
class DeadLetter:
    """An item that was set aside, with all that a person needs to judge it."""

    id: DeadLetterId
    payload: bytes
    """The item exactly as the source gave it, encoded as `content_type` says."""
    content_type: str
    """`application/octet-stream` (bytes), `text/plain` (str), `application/json`, or `text/x-python-repr`."""
    category: Category
    fingerprint: str
    """Equal for failures of one kind; starts with its version, `fp1:`."""
    stage: str
    """Name of the stage that the item failed in."""
    error_type: str
    """Qualified name of the exception's class."""
    message: str
    """Text of the exception."""
    masked_message: str = ""
    """The text with numbers, ids, dates and quoted values masked."""
    frames: Sequence[str] = ()
    """`module:function` of the program's own frames, outermost first."""
    traceback: str = ""
    """The formatted traceback, cut at 16 KiB."""
    key: str | None = None
    headers: Mapping[str, str] = field(factory=dict[str, str])
    attempts: int = 1
    """Attempts made, the last one included."""
    first_seen: float = 0.0
    """Unix time of the first failure."""
    last_seen: float = 0.0
    """Unix time of the last failure."""
    member: str = ""
    host: str = ""
    trace_id: str = ""
    batch_id: str = ""
    code_version: str = ""
    epoch: int = 0
    state: DeadLetterState = DeadLetterState.DEAD


@frozen
class DeadLetterFilter:
    """Which dead letters are meant; a field that is `None` matches all, several fields match together."""

    pipeline: str | None = None
    source: str | None = None
    stage: str | None = None
    category: Category | None = None
    fingerprint: str | None = None
    state: DeadLetterState | None = None
    since: float | None = None
    """Unix time, inclusive, against `last_seen`."""
    until: float | None = None
    """Unix time, exclusive, against `last_seen`."""
    text: str | None = None
    """Substring of the message."""

    def matches(self, letter: DeadLetter, /) -> bool:
        """Return whether *letter* is one of those meant."""
        pairs: tuple[tuple[object, object], ...] = (
            (self.pipeline, letter.id.pipeline),
            (self.source, letter.id.source),
            (self.stage, letter.stage),
            (self.category, letter.category),
            (self.fingerprint, letter.fingerprint),
            (self.state, letter.state),
        )
        return (
            all(wanted is None or wanted == got for wanted, got in pairs)
            and (self.since is None or letter.last_seen >= self.since)
            and (self.until is None or letter.last_seen < self.until)
            and (self.text is None or self.text in letter.message)
        )


@frozen
class DeadLetterGroup:
    """Dead letters of one fingerprint."""

    fingerprint: str
    category: Category
    count: int
    first_seen: float
    last_seen: float
    stage: str
    """Stage of the newest."""
    error_type: str
    """Class of the newest's exception."""
    masked_message: str
    """Masked message of the newest."""


@frozen
class Failure:
    """What `forebay_classify` is asked about."""

    error: BaseException
    stage: str
    source: str
    attempt: int
    """The attempt that failed, from 1."""


# --- Control -----------------------------------------------------------------------------------


def _check_count(_: object, attribute: Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} must be a whole number, not {value!r:.100}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value}")


def check_limit(_: object, attribute: Attribute[int | None], value: object) -> None:
    """Refuse what is neither a whole number above 0 nor `None`, which is no limit."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name} must be a whole number, not {value!r:.100}")
    if value < 1:
        raise ValueError(f"{attribute.name} must be at least 1, not {value}; None is no limit")


def _check_most(bounds: Bounds, attribute: Attribute[int], value: int) -> None:
    _check_count(bounds, attribute, value)
    name = attribute.name.replace("max_", "min_")
    least: int = getattr(bounds, name)
    if value < least:
        raise ValueError(f"{attribute.name} must be at least {name}, which is {least}, not {value}")


def _check_p99(_: Goal, __: Attribute[float | None], value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"p99 must be a number of seconds, not {value!r:.100}")
    if not 0 < value < float("inf"):
        raise ValueError(f"p99 must be finite and more than 0 seconds, not {value}; leave it out for best throughput")


@frozen
class Goal:
    """What a controller steers a stage for."""

    p99: float | None = field(default=None, validator=_check_p99)
    """Seconds from an item's arrival at the stage to the end of its call, within which 99 of 100 items should stay.

    `None`: as many items as the stage can do.
    """


@frozen(kw_only=True)
class Bounds:
    """Between what a controller may move a stage."""

    min_size: int = field(default=1, validator=_check_count)
    """Fewest items that a batch may be limited to."""
    max_size: int = field(default=8192, validator=_check_most)
    """Most items in a batch."""
    min_concurrency: int = field(default=1, validator=_check_count)
    """Fewest calls that the stage may be limited to."""
    max_concurrency: int = field(default=256, validator=_check_most)
    """Most calls in flight at once."""


@frozen
class Limits:
    """What a batch stage may do now."""

    batch_size: int
    concurrency: int
    max_wait: float
    """Longest time in seconds that an item waits for company."""
    max_bytes: int | None = None
    reason: str = ""
    """Why the controller moved here, for people to read."""
    probe: bool = False
    """Whether this is tried for a call or two only: it is obeyed, and is no move that anybody is told of."""


@frozen
class Observation:
    """What a controller learns from one finished call and the moment it ended in."""

    now: float
    """Monotonic seconds."""
    size: int
    """Items in the call."""
    size_bytes: int | None
    seconds: float
    """Time that the call took."""
    failed: bool
    """Whether the call failed in a way that load may have caused: not for what is wrong with an item."""
    too_large: bool
    """Whether the call was refused for its size; it has failed then too."""
    queued: int
    """Items that wait for the stage."""
    in_flight: int
    """Calls that were running when this one started, itself included."""
    oldest_wait: float
    """Age in seconds of the oldest item that waits."""
    oldest_call: float
    """Age in seconds of the oldest call still running."""
    pressure: float = 0.0
    """System load between 0 (idle) and 1 (at its limit)."""


# --- Events ------------------------------------------------------------------------------------


@frozen
class RunInfo:
    """A run is about to fetch its first item."""

    pipeline: str
    run_id: str
    member: Member
    sources: Sequence[str]
    stages: Sequence[str]
    started_at: float
    """Unix time."""


@frozen
class BatchInfo:
    """One call of a handler has ended and its items have their outcomes."""

    pipeline: str
    stage: str
    batch_id: int
    size: int
    done: int
    failed: int
    """Items with a failure, whatever comes of it."""
    dropped: int
    seconds: float
    """Time in the handler."""
    waited: float
    """Time from the first item's arrival at the stage to the start of the call."""
    attempt: int
    started_at: float
    """Monotonic seconds of the event loop's clock."""
    size_bytes: int | None = None
    error: BaseException | None = None
    """The exception that failed the batch as a whole."""


@frozen
class LimitsInfo:
    """A controller has moved."""

    pipeline: str
    stage: str
    before: Limits
    after: Limits
    reason: str
    at: float = 0.0
    """Unix time."""


@frozen
class BreakerInfo:
    """A breaker has changed its state."""

    pipeline: str
    stage: str
    key: str
    before: str
    after: str
    reason: str


@frozen
class Pressure:
    """A resource came near its limit, or left it."""

    resource: str
    """`memory`, `cpu`, `loop`, `disk`, or the name of a limit."""
    level: float
    """Share of the limit in use."""
    reason: str


@frozen
class DeadLettered:
    """Dead letters have been stored; their items are about to be settled."""

    pipeline: str
    letters: Sequence[DeadLetter]


@frozen
class PartitionsInfo:
    """This member owns other partitions than before."""

    pipeline: str
    source: str
    gained: Sequence[int]
    lost: Sequence[int]


@frozen
class Quantiles:
    """Spread of a measured quantity; all 0.0 when nothing was measured."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    maximum: float = 0.0


@frozen
class StageSummary:
    """What one stage did in a run."""

    name: str
    received: int
    """Items that arrived at the stage."""
    done: int
    filtered: int
    failed: int
    """Failed attempts of items, those that later succeeded included."""
    retried: int
    dead: int
    dropped: int
    calls: int
    """Calls of the handler; 0 for steps that run inline."""
    seconds: float
    """Time spent in the handler, summed over concurrent calls."""
    batch_sizes: Quantiles
    """Items in a call."""
    call_seconds: Quantiles
    """Duration of a call."""
    waited: Quantiles
    """Time from an item's arrival to the start of its call, by the oldest item of each batch."""


# --- Exporters ---------------------------------------------------------------------------------


@frozen
class Span:
    """One finished piece of work, in OpenTelemetry's terms."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    links: Sequence[tuple[str, str]] = ()
    """(trace id, span id) of the spans that the items came with."""
    error: str | None = None


@frozen
class MetricPoint:
    """One reading of one metric."""

    name: str
    kind: str
    """`counter`, `gauge` or `histogram`."""
    unit: str
    attributes: Mapping[str, str]
    value: float
    """Total, reading, or sum."""
    count: int = 0
    """Measurements, for a histogram."""
    buckets: Sequence[tuple[float, int]] = ()
    """(inclusive upper bound, measurements) for a histogram, ascending."""


@frozen
class CacheEntry:
    """A value in a cache tier."""

    value: bytes
    version: int = 0
    fresh_until: float = float("inf")
    """Unix time until which the value is served without a refresh."""
    expires_at: float = float("inf")
    """Unix time after which the value must not be served."""
    tags: Sequence[str] = ()


class CallOutcome(enum.StrEnum):
    """How a protected call ended, as a breaker sees it."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Counts neither way; the permit is returned."""
