"""Push: callers submit single items and wait each for its own result; forebay makes batches of them."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

import anyio
from attrs import define, frozen

from forebay._batch import Batch, Dead
from forebay._batcher import Piece, Record
from forebay._checks import at_least, check_callable, check_run_in, seconds
from forebay._clock import measuring_clock
from forebay._dead_letter import make_dead_letter, put_letters
from forebay._desk import SPECIAL, Answer, Desk, Moved, Refusal, Slip, Waiter
from forebay._errors import (
    BatcherClosedError,
    BatchError,
    ItemDroppedError,
    PluginError,
)
from forebay._handler import BatchPart, RunIn, build_call, is_async, name_of
from forebay._recipe import DEFAULT_CONTROL, Control, ControlSpec, control_spec, most_concurrency
from forebay._retry import Retry, classify
from forebay._scope import Scope, open_scope
from forebay._stage import Stage
from forebay._steer import Steer, begin_steering, factory_of
from forebay._types import (
    Again,
    Category,
    DeadLetter,
    DeadLettered,
    DeadLetterId,
    Dropped,
    Failed,
    Failure,
    Goal,
    Limits,
    LimitsInfo,
    Member,
    Offset,
    StageSummary,
)
from forebay.abc import DeadLetterStore

if TYPE_CHECKING:
    from forebay._events import Events
    from forebay._tuning import Tuning
    from forebay.hooks import Plugins

T = TypeVar("T")
R = TypeVar("R")


@frozen
class BatcherStatistics:
    """A reading of a batcher."""

    waiting: int
    """Items whose batch has not started."""
    in_flight: int
    """Calls of the handler that are running."""
    submitted: int
    stage: StageSummary
    """What the handler has done so far."""
    limits: Limits | None = None
    """What holds now."""
    moves: Sequence[LimitsInfo] = ()
    """The last 256 moves of the controller."""


@define(eq=False)
class Batcher(Generic[T, R]):
    """Takes items one by one, from any number of tasks, and hands out their results."""

    _stage: Stage
    _desk: Desk
    _name: str
    _weigh: Callable[[T], int] | None
    _closed: bool = False

    async def submit(self, item: T, /) -> R:
        """Add *item* to the next batch and wait for its own result.

        Any number of tasks may call this at once. Waits while the batcher is full.
        If the caller is cancelled before the batch starts, the item is dropped;
        after that the batch runs on and the result is thrown away.

        Raises:
            BatcherClosedError: the batcher is shutting down.
            BatchError: the batch failed as a whole; the cause is what the handler raised.
            ItemDroppedError: the handler dropped the item.
            Exception: what the handler reported for this item.
        """
        desk = self._desk
        size = 0 if self._weigh is None else self._weigh(item)
        if self._closed or desk.held >= desk.max_items or desk.waiters:
            slip, index = await self._wait_place(item, size)
        else:
            slip, index = desk.place(item, size)
        while True:
            answered = False
            try:
                await slip.answered.wait()
                answered = True
            finally:
                if not answered:
                    desk.leave(slip, index)
            outcome = slip.outcomes[index]
            if type(outcome) not in SPECIAL:
                return cast("R", outcome)
            if isinstance(outcome, Refusal):
                raise outcome.error
            assert isinstance(outcome, Moved)
            slip, index = outcome.slip, outcome.index

    async def _wait_place(self, item: T, size: int) -> tuple[Slip, int]:
        """Wait, behind those who wait already, until *item* has a place."""
        self._check_open()
        desk = self._desk
        waiter = Waiter(item, size)
        desk.waiters[waiter] = None
        woken = False
        try:
            await waiter.woken.wait()
            woken = True
        finally:
            if not woken:
                desk.forget(waiter)
        if waiter.slip is None:
            self._check_open()
            raise AssertionError("unreachable")  # pragma: no cover -- without a place it is only woken by the end
        return waiter.slip, waiter.index

    def _check_open(self) -> None:
        if self._closed:
            raise BatcherClosedError(f"batcher {self._name!r} is shutting down and takes no more items")

    def statistics(self) -> BatcherStatistics:
        """Return a reading of the batcher."""
        self._stage.metrics.received = self._desk.submitted
        return BatcherStatistics(
            waiting=self._desk.held,
            in_flight=self._stage.in_flight,
            submitted=self._desk.submitted,
            stage=self._stage.metrics.summary(self._name),
            limits=self._stage.steer.limits,
            moves=tuple(self._stage.steer.moves),
        )

    def _close(self) -> None:
        self._closed = True
        self._desk.wake_all()

    def _abandon(self) -> None:
        """Tell everybody who still waits that nothing will come."""
        message = f"batcher {self._name!r} was shut down before the item had a result"
        for slip in list(self._desk.unanswered):
            self._desk.answer(slip, [Refusal(BatcherClosedError(message)) for _ in slip.items])


@define(eq=False)
class _PushExit:
    """Where a batcher's items go once the stage has decided: to their callers."""

    desk: Desk
    name: str
    store: DeadLetterStore | None
    delay: Callable[[int, BaseException], float]
    member: Member
    dead_lettered: Callable[[DeadLettered], None] | None

    def finish(self, pieces: Sequence[Piece], now: float) -> None:
        """Hand out results."""
        for piece in pieces:
            assert isinstance(piece, Answer)
            self.desk.answer(piece.slip, piece.items)

    async def forward(self, pieces: Sequence[Piece]) -> None:
        """Never called: nothing follows."""
        raise AssertionError("a batcher has one stage")  # pragma: no cover -- last=True

    def scatter(self, batch: Batch) -> list[Piece]:
        """Give each item a slip of its own."""
        singles: list[Piece] = []
        for slip in batch.pieces:
            assert isinstance(slip, Slip)
            if len(slip.items) == 1:
                singles.append(slip)
                continue
            ones = [self.desk.single(slip, index) for index in range(len(slip.items))]
            self.desk.answer(slip, [Moved(one, 0) for one in ones])
            singles += ones
        return singles

    def listed(self, piece: Piece) -> None:
        """Never called: a batcher has no keys."""
        raise AssertionError("a batcher has no lanes")  # pragma: no cover -- lanes=None

    def drop(self, piece: Piece, reason: str) -> None:
        """Tell the caller that its item was dropped."""
        self._fail(piece, ItemDroppedError(f"{self.name}() dropped the item: {reason}"))

    async def set_aside(self, dead: Sequence[Dead], batch: Batch) -> None:
        """Raise in each caller, after the item is in the dead-letter store if there is one."""
        if self.store is not None:
            letters = [self._letter(one, batch) for one in dead]
            await put_letters(self.store, letters, self.delay)
            if self.dead_lettered is not None:
                self.dead_lettered(DeadLettered(self.name, letters))
        for one in dead:
            self._fail(one.piece, self._error(one, batch))

    def _error(self, dead: Dead, batch: Batch) -> BaseException:
        if dead.error is not batch.error:
            return dead.error
        error = BatchError(f"{self.name}() failed: {type(dead.error).__name__}: {dead.error}")
        error.__cause__ = dead.error
        return error

    def _fail(self, piece: Piece, error: BaseException) -> None:
        assert isinstance(piece, Slip)
        self.desk.answer(piece, [Refusal(error)])

    def _letter(self, dead: Dead, batch: Batch) -> DeadLetter:
        assert isinstance(dead.piece, Slip)
        now = time.time()
        return make_dead_letter(
            id=DeadLetterId(self.member.id, "submit", 0, str(dead.piece.ticket)),
            item=dead.piece.items[0],
            error=dead.error,
            category=dead.category,
            stage=self.name,
            attempts=dead.attempts,
            first_seen=now,
            now=now,
            member=self.member,
            batch_id=str(batch.id),
        )

    def is_ours(self, piece: Piece) -> bool:
        """Return `True`: what was submitted stays here."""
        return True

    def ended(self, batch: Batch) -> None:
        """Nothing is remembered of items."""

    def failures_before(self, piece: Piece, index: int) -> int:
        """Return 0: what is submitted is new."""
        return 0

    def send_back(self, piece: Piece, record: Record, delay: float, error: BaseException) -> Offset | None:
        """Return `None`: there is no source to send an item back to."""
        return None

    def give_up(self, piece: Piece, record: Record, delay: float) -> Offset | None:
        """Never called: a batcher that drains tries again until it is cut off, and then tells the caller."""
        raise AssertionError("a batcher has no end to give up for")  # pragma: no cover -- Waiting.drain is not called

    def parts(self, batch: Batch) -> tuple[BatchPart, ...]:
        """Return nothing: submitted items have no offsets."""
        return ()

    def maybe_done(self, batch: Batch) -> bool:
        """Return `False`: nobody else had the items."""
        return False


@overload
def open_batcher(
    process: Callable[[list[T]], Awaitable[Sequence[R | Failed | Again | Dropped]]],
    *,
    max_size: int | None = None,
    max_age: float = 0.005,
    max_bytes: int | None = None,
    weigh: Callable[[T], int] | None = None,
    max_concurrency: int | None = None,
    capacity: int = 10_000,
    time_limit: float | None = None,
    idempotent: bool = False,
    retry: Retry | None = None,
    dead_letters: DeadLetterStore | str | None = None,
    control: Control = DEFAULT_CONTROL,
    goal: Goal | None = None,
    name: str | None = None,
    plugins: Plugins | None = None,
    observers: Sequence[object] = (),
    tuning: Tuning | None = None,
    drain_timeout: float = 10.0,
) -> AbstractAsyncContextManager[Batcher[T, R]]: ...
@overload
def open_batcher(
    process: Callable[[list[T]], Sequence[R | Failed | Again | Dropped]],
    *,
    max_size: int | None = None,
    max_age: float = 0.005,
    max_bytes: int | None = None,
    weigh: Callable[[T], int] | None = None,
    max_concurrency: int | None = None,
    capacity: int = 10_000,
    run_in: RunIn = "loop",
    time_limit: float | None = None,
    idempotent: bool = False,
    retry: Retry | None = None,
    dead_letters: DeadLetterStore | str | None = None,
    control: Control = DEFAULT_CONTROL,
    goal: Goal | None = None,
    name: str | None = None,
    plugins: Plugins | None = None,
    observers: Sequence[object] = (),
    tuning: Tuning | None = None,
    drain_timeout: float = 10.0,
) -> AbstractAsyncContextManager[Batcher[T, R]]: ...
@asynccontextmanager
async def open_batcher(
    process: Callable[[Any], Any],
    *,
    max_size: int | None = None,
    max_age: float = 0.005,
    max_bytes: int | None = None,
    weigh: Callable[[Any], int] | None = None,
    max_concurrency: int | None = None,
    capacity: int = 10_000,
    run_in: RunIn = "loop",
    time_limit: float | None = None,
    idempotent: bool = False,
    retry: Retry | None = None,
    dead_letters: DeadLetterStore | str | None = None,
    control: Control = DEFAULT_CONTROL,
    goal: Goal | None = None,
    name: str | None = None,
    plugins: Plugins | None = None,
    observers: Sequence[object] = (),
    tuning: Tuning | None = None,
    drain_timeout: float = 10.0,
) -> AsyncGenerator[Batcher[Any, Any]]:
    """Open a batcher: callers submit single items, *process* gets lists of them.

        async with forebay.open_batcher(embed, max_size=64) as batcher:
            vector = await batcher.submit("penstock")

    A batch starts as soon as one of the calls is free, with what has been submitted by then.
    Nothing is retried or dead-lettered unless asked. Leaving the block takes no more items and finishes those that
    wait, for at most *drain_timeout* seconds; inside `open_scope` the batcher drains with the scope.
    An exception that leaves the block, and cancellation, end it at once. Callers that got no result by then
    get `BatcherClosedError`; nobody waits for ever.

    Args:
        process: Async or plain function of a list; returns one result for each item, in order.
            `Failed(error)`, `Again(after)` or `Dropped(reason)` may stand in an item's place.
        max_size: Most items in a batch. It may be left out where somebody steers, and is 8,192 then.
        max_age: Longest time in seconds that an item waits for company while a call is free. Batches start
            at once, so it is a bound for controllers that want them to wait.
        max_bytes: Most bytes in a batch, as *weigh* counts them. A larger item goes alone.
        weigh: Returns the size of an item in bytes.
        max_concurrency: Calls in flight at once, 1 by default. Where somebody steers and it is left out, they begin
            with 1 and may come to 256, to 64 in threads.
        capacity: Items that may wait; `submit` waits when there are more.
        run_in: Where a plain function runs.
        time_limit: Seconds after which a call is cut off.
        idempotent: Whether handling an item twice does no harm; then a batch that failed as a whole is bisected.
        retry: When items that failed are run again; not at all by default.
        dead_letters: Store, or name or URL of one, for items that failed for good; their callers get the failure too.
        control: Who steers; as in `Pipeline.map_batches`.
        goal: What to steer for; best throughput by default.
        name: What to call the batcher in reports; the function's name by default.
        plugins: Where names and URLs are looked up, and whose hooks hear of events.
        observers: Objects with some of the methods of `forebay.abc.Observer`.
        tuning: Changes bounds and goal while the batcher is open; the stage is called as the batcher.
        drain_timeout: Seconds that the end may take.
    """
    check_callable("open_batcher", process)
    check_run_in("open_batcher", process, run_in)
    seconds("max_age", max_age, zero=True)
    if max_bytes is not None and weigh is None:
        raise ValueError("max_bytes needs weigh, a function that returns the size of one item in bytes")
    if max_bytes is not None:
        at_least("max_bytes", max_bytes, 1)
    shown = name or name_of(process)
    plan = control_spec(
        *(shown, control, goal),
        max_size=None if max_size is None else at_least("max_size", max_size, 1),
        max_concurrency=None if max_concurrency is None else at_least("max_concurrency", max_concurrency, 1),
        usual_concurrency=1,
        most_concurrency=1 if run_in == "loop" and not is_async(process) else most_concurrency(run_in),
        max_bytes=max_bytes,
    )
    clock = measuring_clock()
    rng = random.Random()
    async with AsyncExitStack() as stack:
        events = _events(plugins, observers, dead_letters)
        store = await _open_store(stack, plugins, dead_letters, shown)
        steer = await _open_steer(stack, plugins, plan, shown, max_age, events, clock)
        desk = Desk(at_least("capacity", capacity, 1), steer.limits.batch_size, max_bytes, clock)
        way_out = _PushExit(
            desk,
            shown,
            store,
            lambda attempt, error: Retry().delay(min(attempt, 10), error, None, rng),
            Member(f"{shown}-{uuid.uuid4().hex[:12]}", shown),
            None if events is None else events.dead_lettered,
        )
        stage = Stage(
            pipeline=shown,
            name=shown,
            call=build_call(
                process, name=shown, per_item=False, run_in=run_in, time_limit=seconds("time_limit", time_limit)
            ),
            exit=way_out,
            inbox=desk,
            steer=steer,
            resize=desk.resize,
            retry=retry,
            idempotent=idempotent,
            splits=retry is not None,
            hands_out=True,
            batch_done=None if events is None else events.batch_done,
            ask=partial(_ask, events, retry),
            clock=clock,
            rng=rng,
        )
        batcher: Batcher[Any, Any] = Batcher(stage, desk, shown, weigh if max_bytes is not None else None)
        async with _running(batcher, stage, desk, drain_timeout):
            with nullcontext() if tuning is None else tuning.in_use(f"batcher {shown}", [steer]):
                yield batcher


@asynccontextmanager
async def _running(batcher: Batcher[Any, Any], stage: Stage, desk: Desk, drain_timeout: float) -> AsyncGenerator[None]:
    try:
        async with open_scope(drain_timeout=drain_timeout, name=batcher._name) as scope:  # pyright: ignore[reportPrivateUsage]  # same module
            stage.start(scope.start_soon)
            scope.start_soon(_close_when_draining, scope, batcher)
            yield
            batcher._close()  # pyright: ignore[reportPrivateUsage]
            scope.drain("the block ended")
            if desk.unanswered:
                desk.all_answered = anyio.Event()
                await desk.all_answered.wait()
            scope.cancel("everything is answered")
    finally:
        batcher._close()  # pyright: ignore[reportPrivateUsage]
        batcher._abandon()  # pyright: ignore[reportPrivateUsage]


async def _close_when_draining(scope: Scope, batcher: Batcher[Any, Any]) -> None:
    await scope.wait_draining()
    batcher._close()  # pyright: ignore[reportPrivateUsage]


def _events(plugins: Plugins | None, observers: Sequence[object], dead_letters: object) -> Events | None:
    """Return who listens; without plugins and observers nobody does, and pluggy is not loaded."""
    if plugins is None and not observers:
        return None
    from forebay._events import Events

    return Events(plugins, observers)


def _ask(events: Events | None, retry: Retry | None, failure: Failure) -> Category:
    """Classify *failure*; without a policy an outage is no reason to keep the callers waiting."""
    category = (None if events is None else events.classify(failure)) or classify(failure)
    return Category.TRANSIENT if retry is None and category is Category.DEPENDENCY else category


async def _open_steer(
    stack: AsyncExitStack,
    plugins: Plugins | None,
    plan: ControlSpec,
    name: str,
    max_age: float,
    events: Events | None,
    clock: Callable[[], float],
) -> Steer:
    """Return who says how large batches may be; without a name that only plugins know, pluggy is not loaded."""
    made: object = None
    if isinstance(plan.control, str) and factory_of(plan) is None:
        options = {"bounds": plan.bounds, "goal": plan.goal, "start": plan.start}
        made = await _opened(stack, plugins, "controllers", plan.control, name, "control", options)
    limits_changed = None if events is None else events.limits_changed
    return begin_steering(
        *(plan, made), pipeline=name, stage=name, max_wait=max_age, limits_changed=limits_changed, clock=clock
    )


async def _open_store(
    stack: AsyncExitStack, plugins: Plugins | None, dead_letters: DeadLetterStore | str | None, name: str
) -> DeadLetterStore | None:
    if not isinstance(dead_letters, str):
        return dead_letters
    opened = await _opened(stack, plugins, "dead_letter_stores", dead_letters, name, "dead_letters", {})
    return cast("DeadLetterStore", opened)  # the kind says so


async def _opened(
    stack: AsyncExitStack,
    plugins: Plugins | None,
    kind: str,
    thing: str,
    name: str,
    argument: str,
    options: Mapping[str, object],
) -> Any:
    """Return what a plugin knows by the name or URL *thing*."""
    if plugins is None:
        from forebay.hooks import default_plugins

        plugins = default_plugins()
    try:
        manager = plugins.kind(kind).build(thing, **options)
    except PluginError as error:
        raise PluginError(f"batcher {name!r}, {argument}: {error}") from None
    return await stack.enter_async_context(manager)
