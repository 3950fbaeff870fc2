"""One run of a recipe: opens what it names, runs its pumps and workers, and leaves nothing behind."""

from __future__ import annotations

import logging
import math
import random
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio
from attrs import define, field

from forebay import _worker
from forebay._account import FeedLedger, Hold
from forebay._batcher import Piece
from forebay._buffer import Buffer
from forebay._checks import is_sink, is_source
from forebay._clock import clock_is_real, measuring_clock
from forebay._errors import ForebayError, OrderWarning, PluginError
from forebay._exit import InlineMishaps, PipelineExit
from forebay._explain import in_order
from forebay._feed import ReaderFeed, SessionFeed
from forebay._handler import build_call
from forebay._lanes import Lanes
from forebay._ledger import Ledger, given_back
from forebay._metrics import Histogram, StageMetrics
from forebay._overflow import Overflow
from forebay._ranges import Ranges
from forebay._recipe import ForkSpec, InlineSpec, Node, Recipe, SourceSpec, StageSpec, Store, count_leaves, stores_of
from forebay._retry import Retry, classify
from forebay._route import Route
from forebay._scope import Scope, raise_bare
from forebay._source import open_reader
from forebay._stage import Stage, StartSoon
from forebay._steer import Steer, begin_steering, factory_of, no_pressure
from forebay._steps import Step
from forebay._summary import Summary
from forebay._tuning import Tuning
from forebay._types import (
    BatchInfo,
    Category,
    DeadLettered,
    Deliveries,
    Failure,
    LimitsInfo,
    Member,
    Pressure,
    RunInfo,
)
from forebay.abc import DeadLetterStore, Session, Source

_logger = logging.getLogger("forebay")

if TYPE_CHECKING:  # loaded by runs that look at the machine
    from forebay._sampler import Sampler

WIND_UP_SECONDS = 5.0
"""Longest time that giving back and the last settlement may take, for all sources together."""


class Listeners(Protocol):
    """Who hears of a run's events; `None` where nobody does."""

    @property
    def run_started(self) -> Callable[[RunInfo], None] | None: ...
    @property
    def batch_done(self) -> Callable[[BatchInfo], None] | None: ...
    @property
    def limits_changed(self) -> Callable[[LimitsInfo], None] | None: ...
    @property
    def pressure_changed(self) -> Callable[[Pressure], None] | None: ...
    @property
    def dead_lettered(self) -> Callable[[DeadLettered], None] | None: ...
    @property
    def run_finished(self) -> Callable[[Summary], None] | None: ...
    @property
    def listener_errors(self) -> int: ...

    def classify(self, failure: Failure, /) -> Category | None:
        """Return what a plugin says about *failure*."""
        ...


class Build(Protocol):
    """Makes what a name or URL stands for."""

    def __call__(self, kind: str, name: str, /, **options: object) -> AbstractAsyncContextManager[Any]: ...


@define(eq=False)
class Run:
    """One run of a recipe."""

    recipe: Recipe
    build: Build
    listeners: Listeners
    rng: random.Random = field(factory=random.Random)
    tuning: Tuning | None = None
    pressure: Callable[[], float] = no_pressure
    """Reads the system load, between 0 (idle) and 1 (at its limit), where it is not to be looked at here."""
    summary: Summary | None = None
    pipeline: str = field(init=False)
    member: Member = field(init=False)
    ledger: Ledger = field(init=False)
    feeds: dict[FeedLedger, SessionFeed] = field(factory=dict[FeedLedger, SessionFeed], init=False)
    dead_reasons: dict[str, int] = field(factory=dict[str, int], init=False)
    drop_reasons: dict[str, int] = field(factory=dict[str, int], init=False)
    dead_lettered: Callable[[DeadLettered], None] | None = field(init=False)
    ending: bool = field(default=False, init=False)
    _reader_feeds: list[ReaderFeed] = field(factory=list[ReaderFeed], init=False)
    _accounts: list[FeedLedger] = field(factory=list[FeedLedger], init=False)
    _stages: list[Stage] = field(factory=list[Stage], init=False)
    _reports: list[tuple[str, StageMetrics]] = field(factory=list[tuple[str, StageMetrics]], init=False)
    _stores: dict[object, DeadLetterStore] = field(factory=dict[object, DeadLetterStore], init=False)
    _latency: Histogram = field(factory=Histogram, init=False)
    _pumping: int = 0
    _finished: anyio.Event = field(factory=anyio.Event, init=False)
    _cut_off: bool = False
    _given_back: int = 0
    _started: float = 0.0
    _clock: Callable[[], float] = field(init=False)
    _sampler: Sampler | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.pipeline = self.recipe.name
        start = uuid.uuid4().hex[:12]
        self.member = Member(f"{self.recipe.name}-{start}", self.recipe.name, socket.gethostname())
        self.ledger = Ledger(count_leaves(self.recipe.nodes), on_final=self._final, on_empty=self._look_finished)
        self.dead_lettered = self.listeners.dead_lettered
        self._clock = measuring_clock()

    # --- The run itself -------------------------------------------------------------------------

    async def main(self, scope: Scope) -> None:
        """Run from the first fetch to the last settlement; a child task of the run's scope.

        Everything that changes who owns an item happens in here and in tasks below,
        because on asyncio a shield does not hold against a native cancellation of the task that called `run()`.
        """
        self._started = anyio.current_time()
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                await self._run(scope)
        finally:
            if self.summary is None:  # cut off before it began
                self.summary = self._summarise()
        errors = [feed.error for feed in self._reader_feeds] + [feed.error for feed in self.feeds.values()]
        for error in errors:
            if error is not None:
                raise error

    async def _run(self, scope: Scope) -> None:
        self._started = anyio.current_time()
        if self.listeners.run_started is not None:
            self.listeners.run_started(self._info())
        steers = [stage.steer for stage in self._stages]
        try:
            with nullcontext() if self.tuning is None else self.tuning.in_use(self._title(), steers):
                await self._work(scope)
        except BaseExceptionGroup as group:
            raise_bare(group)
        finally:
            await self._wind_up(scope)
            self.summary = self._summarise()
            if self.listeners.run_finished is not None:
                self.listeners.run_finished(self.summary)

    def _system_load(self) -> float:
        return self.pressure() if self._sampler is None else self._sampler.level()

    def _look_at_machine(self, start_soon: StartSoon) -> None:
        """Watch the system load where somebody wants to know; a virtual clock says nothing about the machine."""
        steered = any(stage.steer.controller is not None for stage in self._stages)
        wanted = steered or self.listeners.pressure_changed is not None
        if wanted and self.pressure is no_pressure and clock_is_real():
            from forebay._sampler import Sampler

            self._sampler = Sampler(changed=self.listeners.pressure_changed)
            start_soon(self._sampler.run)

    async def _work(self, scope: Scope) -> None:
        async with anyio.create_task_group() as tasks:
            self._look_at_machine(tasks.start_soon)
            for stage in self._stages:
                stage.start(tasks.start_soon)
            if scope.draining:
                self._stop_feeds()
            self._pumping = len(self._reader_feeds) + len(self.feeds)
            for reader_feed in self._reader_feeds:
                tasks.start_soon(reader_feed.reader.read)
                tasks.start_soon(self._pump, reader_feed)
            for feed in self.feeds.values():
                tasks.start_soon(self._pump, feed)
            tasks.start_soon(self._watch_drain, scope, tasks.cancel_scope)
            await self._finished.wait()
            tasks.cancel_scope.cancel()
        self._cut_off = self.ledger.in_hand > 0 or not self._finished.is_set()
        if not self._finished.is_set() and not scope.draining:
            raise ForebayError(
                "a handler or source was cancelled from inside, which ended its task; "
                "what it awaits must not be cancelled by others, or it must catch that"
            )

    def _title(self) -> str:
        return f"{self.pipeline}, run {self.member.id}"

    async def _pump(self, feed: ReaderFeed | SessionFeed) -> None:
        await feed.pump()
        self._pumping -= 1
        self._look_finished()

    def _look_finished(self) -> None:
        if self.ledger.lost_holds and not self._has_items():
            self.ledger.lost_holds.clear()  # nobody is left who could ask where an item came from
        # The handler of an item that was lost to another member still runs to its end.
        if not self._pumping and not self.ledger.in_hand and not any(stage.running for stage in self._stages):
            self._finished.set()

    def _has_items(self) -> bool:
        """Return whether any item is on its way, also one that was lost to another member."""
        return any(stage.is_busy() for stage in self._stages) or any(feed.has_rest() for feed in self.feeds.values())

    def _final(self, hold: Hold, count: int) -> None:
        self._latency.add(self.ledger.now - hold.fetched_at, count)
        feed = self.feeds.get(hold.feed)
        if feed is not None and feed.waiting is not None:
            feed.settled()

    def _stop_feeds(self) -> None:
        for reader_feed in self._reader_feeds:
            reader_feed.stop()
        for feed in self.feeds.values():
            feed.stop()

    async def _watch_drain(self, scope: Scope, work: anyio.CancelScope) -> None:
        """When the scope drains, stop fetching and leave time for the last settlement."""
        await scope.wait_draining()
        self._stop_feeds()
        left = scope.remaining()
        if left < math.inf:
            work.deadline = anyio.current_time() + left - min(1.0, left / 4)
            for stage in self._stages:
                stage.waiting.drain(work.deadline)

    async def _wind_up(self, scope: Scope) -> None:
        """Give back what has no outcome and settle what has one, in bounded time even if a source is gone."""
        self._cut_off = self._cut_off or self.ledger.in_hand > 0
        running = Ranges()
        for stage in self._stages:
            for piece in stage.perhaps_done():
                for position in piece.listed():
                    running.add(position, position + 1)
        back = given_back(self.ledger.holds(), running)
        self._given_back += sum(
            stop - start for hold in self.ledger.holds() for start, stop in hold.done.missing(hold.base, hold.stop)
        )
        seconds = min(WIND_UP_SECONDS, max(1.0, scope.remaining())) if scope.draining else WIND_UP_SECONDS
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + seconds):
            async with anyio.create_task_group() as tasks:
                for account, feed in self.feeds.items():
                    tasks.start_soon(self._wind_up_feed, account, feed, back.get(account, []))

    async def _wind_up_feed(self, account: FeedLedger, feed: SessionFeed, back: Sequence[Deliveries]) -> None:
        failure: str | None = "no answer in time"
        try:
            await feed.wind_up(back)
            failure = None
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        finally:
            if failure is not None:
                _logger.warning(
                    "source %r did not take back what was in hand (%s); it hands it out again when its claim ends",
                    account.name,
                    failure,
                )

    # --- Building -------------------------------------------------------------------------------

    async def _open(self, stack: AsyncExitStack) -> None:
        """Open everything the recipe names, before the first fetch."""
        recipe = self.recipe
        for store in stores_of(recipe):
            self._stores[_key(store)] = await self._opened(stack, "dead_letter_stores", store, "dead_letters")
        leaves = tuple(range(self.ledger.leaves))
        route = await self._route(stack, recipe.nodes, leaves, keyed=False)
        for spec in recipe.sources:
            await self._add_feed(stack, spec, route)

    async def _opened(self, stack: AsyncExitStack, kind: str, thing: Any, argument: str, **options: object) -> Any:
        if not isinstance(thing, str):
            return thing
        try:
            manager = self.build(kind, thing, **options)
        except PluginError as error:
            is_file = kind == "sources" and "://" not in thing and ("." in thing or "/" in thing)
            hint = f"; to read a file, pass open({thing!r})" if is_file else ""
            raise PluginError(f"pipeline {self.pipeline!r}, {argument}: {error}{hint}") from None
        return await stack.enter_async_context(manager)

    async def _add_feed(self, stack: AsyncExitStack, spec: SourceSpec, route: Route) -> None:
        account = FeedLedger(spec.name)
        self._accounts.append(account)
        source = await self._opened(stack, "sources", spec.source, f"source {spec.name!r}")
        keep_items = bool(self._stores)
        if is_source(source):
            if getattr(source, "shared", False) and _has_keys(self.recipe.nodes):
                warnings.warn(
                    f"source {spec.name!r} hands the items of a key to several members, so key_by keeps their order "
                    f"within this process only; run one member, or use a source that keeps each key with one",
                    OrderWarning,
                    stacklevel=2,
                )
            opened = cast("Source[object]", source).open(self.member)
            session: Session[object] = await stack.enter_async_context(opened)
            self.feeds[account] = SessionFeed(
                account,
                session,
                route,
                self.ledger,
                self._clock,
                keep_items,
                self.recipe.max_gap,
                self.ask,
                self._lose,
                self.rng,
                self._direct(route),
            )
            return
        bound = 1024
        if route.inbox is not None:
            bound = max(route.inbox.max_items, self._behind(route).steer.bounds.max_size)
        reader = open_reader(source, in_thread=spec.in_thread, max_items=bound, name=spec.name)
        max_age = next((node.max_age for node in self.recipe.nodes if isinstance(node, StageSpec)), math.inf)
        self._reader_feeds.append(
            ReaderFeed(account, reader, route, self.ledger, self._clock, max_age, keep_items, self._direct(route))
        )

    def _direct(self, route: Route) -> Stage | None:
        """Return the stage behind *route* if the pump of the only source may run its batches itself."""
        if route.inbox is None or len(self.recipe.sources) > 1:
            return None
        stage = self._behind(route)
        simple = stage.lanes is None and stage.inbox.weigh is None and not stage.max_items
        # Where somebody steers, what holds for one call holds for any number: they do not wait, so they do not overlap.
        return stage if simple and (stage.concurrency == 1 or stage.steer.controller is not None) else None

    def _behind(self, route: Route) -> Stage:
        """Return the stage that *route* leads to."""
        return next(stage for stage in self._stages if stage.inbox is route.inbox)

    async def _route(self, stack: AsyncExitStack, nodes: Sequence[Node], leaves: tuple[int, ...], keyed: bool) -> Route:
        """Build the way from here to the end, through *nodes*."""
        inline: list[InlineSpec] = []
        for node in nodes:
            if not isinstance(node, InlineSpec):
                break
            inline.append(node)
            keyed = keyed or node.kind == "key_by"
        route = Route(self.ledger, leaves, _unreachable, clock=self._clock)
        exits = [PipelineExit(self, spec.name, route, self._store_of(spec)) for spec in inline]
        route.mishap = InlineMishaps(
            exits, [spec.retry or self.recipe.retry or Retry() for spec in inline], self.ask, self.rng
        )
        route.steps = tuple(self._step(spec, route) for spec in inline)
        rest = nodes[len(inline) :]
        if rest:
            await self._end_route(stack, route, rest, keyed)
        return route

    async def _end_route(self, stack: AsyncExitStack, route: Route, rest: Sequence[Node], keyed: bool) -> None:
        node = rest[0]
        if isinstance(node, StageSpec):
            following = await self._add_stage(route, node, rest, keyed, stack)
            route.inbox, route.max_size = following.inbox, following.intake.max_size
            return
        assert isinstance(node, ForkSpec)
        first = route.leaves[0]
        branches: list[Route] = []
        for branch in node.branches:
            count = count_leaves(branch)
            branches.append(await self._route(stack, branch, tuple(range(first, first + count)), keyed))
            first += count
        route.branches = tuple(branches)

    async def _add_stage(
        self, route: Route, spec: StageSpec, nodes: Sequence[Node], keyed: bool, stack: AsyncExitStack
    ) -> Stage:
        if spec.in_order and not keyed:
            raise ValueError(
                f"stage {spec.name!r}: in_order=True has no meaning without key_by() before it; leave it out"
            )
        index = len(self._stages)
        metrics = StageMetrics()
        self._reports.append((spec.name, metrics))
        following = await self._route(stack, nodes[1:], route.leaves, keyed)
        func = spec.func
        if isinstance(func, str):
            func = await self._opened(stack, "sinks", func, f"stage {spec.name!r}, sink")
        handler: Callable[[Any], Any] = func.write if is_sink(func) else cast("Any", func)
        steer = await self._steer(stack, spec)
        size = spec.max_size if spec.per_item else steer.limits.batch_size
        inbox: Buffer[Piece] = Buffer(
            spec.capacity or _capacity(size),
            max_bytes=None if spec.max_bytes is None else 8 * spec.max_bytes,
            weigh=spec.weigh,
        )

        def resize(size: int) -> None:
            route.max_size = size
            if not spec.capacity:
                inbox.max_items = _capacity(size)
                inbox.wake_putters()

        way_out = PipelineExit(self, spec.name, following, self._store_of(spec))
        if spec.backpressure != "wait":

            def leave_out(piece: Piece, reason: str) -> None:
                metrics.dropped += len(piece.items)
                way_out.leave_out(piece, reason)

            route.overflow = Overflow(policy=spec.backpressure, inbox=inbox, drop=leave_out, rng=self.rng)
        stage = Stage(
            pipeline=self.pipeline,
            name=spec.name,
            call=build_call(
                handler, name=spec.name, per_item=spec.per_item, run_in=spec.run_in, time_limit=spec.time_limit
            ),
            exit=way_out,
            inbox=inbox,
            steer=steer,
            max_items=spec.max_size if spec.per_item else 0,
            resize=resize,
            retry=spec.retry or self.recipe.retry or Retry(),
            idempotent=spec.idempotent,
            last=len(nodes) == 1,
            lanes=self._lanes(spec, way_out) if keyed else None,
            batch_done=self.listeners.batch_done,
            idle=self._look_finished,
            ask=self.ask,
            clock=self._clock,
            rng=self.rng,
            metrics=metrics,
        )
        self._stages.insert(index, stage)
        return stage

    async def _steer(self, stack: AsyncExitStack, spec: StageSpec) -> Steer:
        """Return who says how large the batches of a stage may be."""
        plan = spec.control
        made: object = None
        if isinstance(plan.control, str) and factory_of(plan) is None:
            made = await self._opened(
                *(stack, "controllers", plan.control, f"stage {spec.name!r}, control"),
                bounds=plan.bounds,
                goal=plan.goal,
                start=plan.start,
            )
        return begin_steering(
            *(plan, made),
            pipeline=self.pipeline,
            stage=spec.name,
            max_wait=spec.max_age,
            limits_changed=self.listeners.limits_changed,
            pressure=self._system_load,
            clock=self._clock,
        )

    def _lanes(self, spec: StageSpec, way_out: PipelineExit) -> Lanes:
        return Lanes(
            in_order=spec.in_order,
            max_lane=self.recipe.max_lane,
            max_waiting=self.recipe.max_blocked,
            shed=way_out.shed,
            offset=way_out.offset,
            clock=anyio.current_time,
        )

    def _step(self, spec: InlineSpec, route: Route) -> Step:
        metrics = StageMetrics()
        self._reports.append((spec.name, metrics))
        return Step(spec.kind, spec.func, spec.name, metrics, route.filter_out, route.become_parents)

    def _store_of(self, spec: InlineSpec | StageSpec) -> DeadLetterStore | None:
        store: Store | None = spec.dead_letters if spec.dead_letters is not None else self.recipe.dead_letters
        return None if store is None else self._stores[_key(store)]

    # --- What stages and feeds ask --------------------------------------------------------------

    def ask(self, failure: Failure, /) -> Category:
        """Classify *failure*: the plugins first, then what is known about the exception."""
        return self.listeners.classify(failure) or classify(failure)

    def retry_delay(self, attempt: int, error: BaseException) -> float:
        """Return how long to wait before a store is asked again."""
        return Retry().delay(min(attempt, 10), error, None, self.rng)

    def _lose(self, account: FeedLedger, gone: Sequence[Deliveries]) -> None:
        """Other members have taken over: these items are not ours to settle any more."""
        for deliveries in gone:
            wanted = set(deliveries.offsets)
            for hold in list(self.ledger.holds()):
                chunk = hold.chunk
                if hold.feed is account and chunk is not None and chunk.partition == deliveries.partition:
                    for index, offset in enumerate(chunk.offsets):
                        position = hold.base + index
                        if offset in wanted and chunk.epoch == deliveries.epoch and self.ledger.is_open(position):
                            self.ledger.lost_holds[position] = hold
                            account.keep_mark(chunk.partition, offset)
                            self.ledger.settle(position, position + 1, 0, "lost")

    def _info(self) -> RunInfo:
        return RunInfo(
            pipeline=self.pipeline,
            run_id=self.member.id,
            member=self.member,
            sources=[account.name for account in self._accounts],
            stages=[name for name, _ in self._reports],
            started_at=time.time(),
        )

    def _summarise(self) -> Summary:
        ledger = self.ledger.statistics()
        for stage in self._stages:
            stage.metrics.received = stage.inbox.total
        stages = [metrics.summary(name) for name, metrics in self._reports]
        unsettled = sum(account.unsent for account in self._accounts)
        return Summary(
            pipeline=self.pipeline,
            run_id=self.member.id,
            seen=ledger.seen,
            done=ledger.done,
            filtered=ledger.filtered,
            dropped=ledger.dropped,
            dead=ledger.dead,
            given_back=self._given_back + ledger.redelivered,
            lost_ownership=ledger.lost,
            unsettled=unsettled,
            retried=sum(stage.retried for stage in stages),
            seconds=anyio.current_time() - self._started,
            latency=self._latency.quantiles(),
            clean=not self._cut_off and not unsettled,
            stages=stages,
            dead_reasons=dict(self.dead_reasons),
            drop_reasons=dict(self.drop_reasons),
            abandoned=_worker.abandoned(),
            listener_errors=self.listeners.listener_errors,
            moves=in_order([move for stage in self._stages for move in stage.steer.moves]),
            moves_made=sum(stage.steer.made for stage in self._stages),
        )


def _capacity(size: int) -> int:
    """Return how many items may wait in front of a stage with batches of *size*, where the user does not say."""
    return max(1024, 8 * size)


def _has_keys(nodes: Sequence[Node]) -> bool:
    return any(
        node.kind == "key_by"
        if isinstance(node, InlineSpec)
        else isinstance(node, ForkSpec) and any(map(_has_keys, node.branches))
        for node in nodes
    )


async def _unreachable(route: Route, stop: object, /) -> None:
    raise AssertionError("a route without steps has no mishaps")  # pragma: no cover -- replaced before use


def _key(store: Store) -> object:
    return store if isinstance(store, str) else id(store)
