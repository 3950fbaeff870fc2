"""A model of settlement: a real run over a real queue, with outcomes, time-outs, drains and cancellations at random."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import anyio
import pytest
from attrs import define, field
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import forebay
from forebay import Again, BatchFailed, Dropped, EngineError, Failed, Retry, _feed, _stage
from forebay._dead_letter import MemoryDeadLetterStore
from forebay.abc import Outcome
from forebay.hooks import Plugins
from forebay.testing import VirtualLoop
from tests.faults.watched import WatchedQueue

R = TypeVar("R")

CLAIM = 600.0
RETRY = Retry(max_attempts=3, base=1, cap=8)
MAX_SIZE = 4
MAX_CONCURRENCY = 2
TIME_LIMIT = 50.0
DRAIN_TIMEOUT = 20.0
NONE_INSTALLED = Plugins(discover=False)

EXAMPLES = int(os.environ.get("FOREBAY_EXAMPLES", "80"))


@define(eq=False)
class Call:
    """One call of the handler, which waits to be told how it ends."""

    items: list[int]
    told: anyio.Event = field(factory=anyio.Event)
    answer: Callable[[list[int]], Sequence[Outcome] | None] = field(default=lambda items: None)

    def end(self, answer: Callable[[list[int]], Sequence[Outcome] | None]) -> None:
        self.answer = answer
        self.told.set()


def raising(error: Callable[[], Exception]) -> Callable[[list[int]], Sequence[Outcome] | None]:
    def answer(items: list[int]) -> Sequence[Outcome] | None:
        raise error()

    return answer


OUTCOMES: list[Callable[[], Outcome]] = [
    lambda: None,
    lambda: None,
    lambda: None,
    lambda: Failed(TimeoutError("busy")),
    lambda: Failed(ValueError("bad")),
    lambda: Failed(EngineError("down", category="dependency")),
    lambda: Again(2.0),
    lambda: Dropped("stale"),
]
ERRORS: list[Callable[[], Exception]] = [
    lambda: TimeoutError("busy"),
    lambda: ValueError("bad"),
    lambda: EngineError("down", category="dependency"),
    lambda: BatchFailed({0: ValueError("bad")}),
    lambda: BatchFailed({0: TimeoutError("busy")}),
]


class Settling(RuleBasedStateMachine):
    """Runs come and go, one at a time; their handler ends as the rules say."""

    keyed = False
    idempotent = False

    def __init__(self) -> None:
        super().__init__()
        self.source = WatchedQueue(CLAIM)
        self.letters = MemoryDeadLetterStore()
        self.calls: list[Call] = []
        self.running = 0
        self.effects: list[tuple[int, int]] = []  # (run, item)
        self.dropped: set[int] = set()
        self.well = False  # faults have stopped
        self.task: asyncio.Task[None] | None = None
        self.scope: forebay.Scope | None = None
        self.summaries: list[forebay.Summary] = []
        self.draining = False

    # --- The run -------------------------------------------------------------------------------

    @initialize(seed=st.integers(0, 100))
    def begin(self, seed: int) -> None:
        self.seed = seed
        self.loop = VirtualLoop(seed=seed)

    def do(self, action: Callable[[], object] = lambda: None, *, seconds: float = 0.0) -> None:
        """Do something on the loop and let everybody who can run do so."""

        async def step() -> None:
            action()
            await anyio.sleep(seconds)
            await anyio.wait_all_tasks_blocked()

        self.loop.run_until_complete(step())

    async def handle(self, items: list[int]) -> Sequence[Outcome] | None:
        assert 1 <= len(items) <= MAX_SIZE
        self.running += 1
        assert self.running <= MAX_CONCURRENCY
        call, run = Call(items), len(self.source.watches)
        self.calls.append(call)
        if self.well:
            call.told.set()
        try:
            await call.told.wait()
        finally:
            self.running -= 1
            self.calls.remove(call)
        try:
            outcomes = call.answer(items)
        except BatchFailed as failed:
            self.effects += [(run, item) for index, item in enumerate(items) if index not in failed.failures]
            raise
        for item, outcome in zip(items, outcomes or [None] * len(items), strict=True):
            if outcome is None:
                self.effects.append((run, item))
            elif isinstance(outcome, Dropped):
                self.dropped.add(item)
        return outcomes

    async def run(self) -> None:
        recipe = forebay.pipeline(self.source, retry=RETRY, dead_letters=self.letters)
        if self.keyed:
            recipe = recipe.key_by(lambda item: str(item % 3))
        stage = recipe.map_batches(
            self.handle,
            max_size=MAX_SIZE,
            max_concurrency=MAX_CONCURRENCY,
            capacity=8,
            time_limit=TIME_LIMIT,
            idempotent=self.idempotent,
        )
        async with forebay.open_scope(drain_timeout=DRAIN_TIMEOUT) as self.scope:
            self.summaries.append(await stage.run(plugins=NONE_INSTALLED, drain_timeout=DRAIN_TIMEOUT, seed=self.seed))

    def is_running(self) -> bool:
        return self.task is not None and not self.task.done()

    # --- Rules ---------------------------------------------------------------------------------

    @rule(count=st.integers(1, 10))
    def put(self, count: int) -> None:
        self.do(partial(self.source.put, count))

    @precondition(lambda self: not self.is_running())
    @rule()
    def start(self) -> None:
        self.draining = False

        def start() -> None:
            self.task = asyncio.get_running_loop().create_task(self.run())

        self.do(start)

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 1), outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=MAX_SIZE, max_size=MAX_SIZE))
    def end_with_outcomes(self, which: int, outcomes: list[Callable[[], Outcome]]) -> None:
        call = self.calls[which % len(self.calls)]
        self.do(lambda: call.end(lambda items: [make() for make in outcomes[: len(items)]]))

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 1), error=st.sampled_from(ERRORS))
    def end_with_error(self, which: int, error: Callable[[], Exception]) -> None:
        call = self.calls[which % len(self.calls)]
        self.do(lambda: call.end(raising(error)))

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 1))
    def end_well(self, which: int) -> None:
        call = self.calls[which % len(self.calls)]
        self.do(lambda: call.end(lambda items: None))

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, TIME_LIMIT + 1, 300.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.do(seconds=seconds)

    @precondition(lambda self: self.is_running() and not self.draining)
    @rule()
    def drain(self) -> None:
        assert self.scope is not None
        self.draining = True
        self.do(self.scope.drain)

    @precondition(lambda self: self.is_running())
    @rule(native=st.booleans())
    def cancel(self, native: bool) -> None:
        assert self.scope is not None
        assert self.task is not None
        self.do(self.task.cancel if native else self.scope.cancel, seconds=1)
        assert self.task.done()

    # --- Invariants ----------------------------------------------------------------------------

    @invariant()
    def nothing_broke(self) -> None:
        if self.task is not None and self.task.done() and not self.task.cancelled():
            self.task.result()

    @invariant()
    def items_are_conserved(self) -> None:
        figures = self.source.queue.statistics()
        assert figures.ready + figures.in_hand + figures.waiting + figures.settled == self.source.count
        for summary in self.summaries:
            ends = summary.done + summary.dropped + summary.dead + summary.given_back
            assert summary.seen == ends, summary
            assert summary.unsettled == 0
        assert not self.source.violations, self.source.violations

    @invariant()
    def at_rest_nothing_is_in_hand(self) -> None:
        if not self.is_running():
            assert self.source.queue.statistics().in_hand == 0, "the run has ended and left items in hand"
            assert self.running == 0

    @invariant()
    def what_is_settled_has_a_reason(self) -> None:
        dead = {int(letter.id.offset) for letter in self.letters._letters.values()}
        reasons = {item for _, item in self.effects} | dead | self.dropped
        assert self.source.settled() <= reasons, self.source.settled() - reasons

    @invariant()
    def clean_ends_make_no_duplicates(self) -> None:
        if all(summary.clean for summary in self.summaries) and len(self.summaries) == len(self.source.watches):
            items = [item for _, item in self.effects]
            assert len(items) == len(set(items)), "an item had its effect twice though all ends were clean"

    @invariant()
    def keys_stay_in_order(self) -> None:
        if not self.keyed:
            return
        for run, watch in enumerate(self.source.watches, 1):
            place = {item: index for index, item in reversed(list(enumerate(watch.fetched)))}
            for key in range(3):
                mine = list(dict.fromkeys(item for at, item in self.effects if at == run and item % 3 == key))
                assert mine == sorted(mine, key=place.__getitem__), f"key {key} of run {run}: {mine}"

    # --- The end -------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.do(self._heal)
            self.do(seconds=DRAIN_TIMEOUT + 1 if self.draining else 0)
            self.do(self.source.queue.close)
            if not self.is_running():
                self.start()
            self.do(seconds=CLAIM + 2 * RETRY.cap)
            assert not self.is_running(), "faults have stopped, and the run goes on"
            self.nothing_broke()
            self.items_are_conserved()
            self.what_is_settled_has_a_reason()
            assert self.source.queue.statistics().settled == self.source.count
        finally:
            self._close()

    def _heal(self) -> None:
        self.well = True
        for call in self.calls:
            call.end(lambda items: None)

    def _close(self) -> None:
        async def end() -> None:
            if self.task is not None:
                self.task.cancel()
                await asyncio.wait([self.task])

        self.loop.run_until_complete(end())
        self.loop.close()


class SettlingByKey(Settling):
    """The same with keys, of which one item runs at a time."""

    keyed = True


class SettlingIdempotently(Settling):
    """The same with batches that are bisected when they fail without a word about which item it was."""

    idempotent = True


MACHINES = [Settling, SettlingByKey, SettlingIdempotently]


@pytest.fixture(autouse=True)
def no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no task yield because the machine is slow: a failure has to be the same when it is played again."""
    monkeypatch.setattr(logging.getLogger("forebay"), "disabled", True)
    monkeypatch.setattr(_stage, "SLICE_SECONDS", math.inf)
    monkeypatch.setattr(_feed, "SLICE_SECONDS", math.inf)


def check(machine: type[Settling], examples: int, steps: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
            print_blob=True,
        ),
    )


@pytest.mark.parametrize("machine", MACHINES)
def test_settlement_holds_its_invariants_whatever_happens(machine: type[Settling]) -> None:
    check(machine, EXAMPLES, 60)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", MACHINES)
def test_settlement_holds_its_invariants_over_many_examples(machine: type[Settling]) -> None:
    check(machine, 20 * EXAMPLES, 100)
