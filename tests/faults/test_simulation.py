"""Simulated runs: members come, crash, drain and go while sinks, stores and the source fail; then the faults stop.

The seed decides everything, the order of the tasks included. `FOREBAY_SEEDS=5000 make soak` runs more of them, and
`FOREBAY_FIRST_SEED=123 FOREBAY_SEEDS=1` plays one again.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import anyio
import pytest

import forebay
from forebay import Again, BatchFailed, Dropped, EngineError, Failed, Retry, _feed, _route, _stage
from forebay._account import FeedLedger
from forebay._batch import Batch, Dead
from forebay._dead_letter import MemoryDeadLetterStore
from forebay._exit import PipelineExit
from forebay._feed import SessionFeed
from forebay._stage import Stage
from forebay._waiting import Waiting
from forebay.abc import DeadLetter, Deliveries, Outcome
from forebay.hooks import Plugins
from forebay.testing import run_virtual
from tests.faults.watched import WatchedQueue

CLAIM = 12.0
RETRY = Retry(max_attempts=4, base=0.5, cap=5)
NONE_INSTALLED = Plugins(discover=False)
SEEDS = int(os.environ.get("FOREBAY_SEEDS", "150"))
FIRST_SEED = int(os.environ.get("FOREBAY_FIRST_SEED", "0"))
FAULTY_SECONDS = 120.0


@pytest.fixture(autouse=True)
def same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no task yield because the machine is slow, and keep the log of failures that are meant quiet."""
    monkeypatch.setattr(_stage, "SLICE_SECONDS", math.inf)
    monkeypatch.setattr(_feed, "SLICE_SECONDS", math.inf)
    monkeypatch.setattr(_route, "SLICE_SECONDS", math.inf)
    monkeypatch.setattr(logging.getLogger("forebay"), "level", logging.CRITICAL)


class FlakyStore(MemoryDeadLetterStore):
    """A store of dead letters that is down while the faults last, now and then."""

    world: World
    __slots__ = ("world",)

    async def put(self, records: Sequence[DeadLetter], /) -> None:
        if self.world.happens(0.3):
            raise ConnectionError("store down")
        await super().put(records)


def key_of(item: int) -> str:
    return str(item % 5)


class World:
    """One simulated run with all that works on it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.faulty = True
        self.trace: list[tuple[float, str, object]] = []
        self.effects: Counter[int] = Counter()
        self.dropped: set[int] = set()
        self.running = 0
        self.unclean = 0
        self.store = FlakyStore()
        self.rng = random.Random(self.seed)
        self.source = WatchedQueue(CLAIM, self.hiccup)
        self.source.has_reason = self.has_reason
        self.source.is_stalled = self.is_stalled
        self.store.world = self
        self.poison = frozenset(self.rng.sample(range(40), 3))
        self.keyed = self.rng.random() < 0.5
        self.slow = self.rng.choice([0.0, 0.1, 2.0, 8.0])
        self.flaky = self.rng.choice([0.0, 0.1, 0.4])
        self.hiccups = self.rng.choice([0.0, 0.05])
        self.stalls = self.rng.choice([0.0, 0.0, 0.2])

    def note(self, event: str, what: object) -> None:
        self.trace.append((anyio.current_time(), event, what))

    def happens(self, chance: float) -> bool:
        return self.faulty and self.rng.random() < chance

    def has_reason(self, item: int) -> bool:
        dead = any(letter.id.offset == str(item) for letter in self.store._letters.values())
        return item in self.effects or item in self.dropped or dead

    async def hiccup(self, method: str) -> None:
        if method == "exchange" and self.happens(self.hiccups):
            self.note("hiccup", method)
            raise ConnectionError("connection reset")

    def is_stalled(self) -> bool:
        stalled = self.happens(self.stalls)
        self.unclean += stalled
        return stalled

    # --- The sink ------------------------------------------------------------------------------

    async def handle(self, items: list[int]) -> Sequence[Outcome]:
        self.running += 1
        try:
            await anyio.sleep(self.slow * self.rng.random() if self.faulty else 0)
        finally:
            self.running -= 1
        self.note("handled", tuple(items))
        self._fail_as_a_whole(items)
        return [self._outcome(item) for item in items]

    def _fail_as_a_whole(self, items: list[int]) -> None:
        if self.happens(0.05):
            raise EngineError("down", category="dependency")
        if self.happens(self.flaky):
            raise TimeoutError("busy")
        if self.happens(0.05) and not self.poison & set(items):
            self.effects.update(items[1:])
            raise BatchFailed({0: TimeoutError("busy")})

    def _outcome(self, item: int) -> Outcome:
        if item in self.poison:
            return Failed(ValueError(f"item {item} is poison"))
        if self.happens(self.flaky / 2):
            return Failed(TimeoutError("busy"))
        if self.happens(0.02):
            return Again(1.0)
        if self.happens(0.02):
            self.dropped.add(item)
            return Dropped("stale")
        self.effects[item] += 1
        return None

    # --- Members -------------------------------------------------------------------------------

    def recipe(self) -> Any:
        items: Any = forebay.pipeline(self.source, retry=RETRY, dead_letters=self.store)
        if self.keyed:
            items = items.key_by(key_of)
        return items.map_batches(self.handle, max_size=4, max_concurrency=2, capacity=8)

    async def member(self) -> None:
        """Run until the queue is at its end, or until chance drains or cancels it."""
        fate, after = self.rng.choice(["stays", "drains", "cancelled"]), self.rng.uniform(0, 30)
        async with forebay.open_scope(drain_timeout=10) as scope:
            scope.start_soon(self._run)
            if self.faulty and fate != "stays":
                with anyio.move_on_after(after):
                    await self._healed.wait()
                self.note(fate, after)
                if fate == "drains":
                    scope.drain()
                else:
                    scope.cancel()
        self.unclean += scope.cancelled
        self.note("left", self.source.queue.statistics().in_hand)

    async def _run(self) -> None:
        summary = await self.recipe().run(plugins=NONE_INSTALLED, drain_timeout=10, seed=self.seed)
        self.note("ended", (summary.seen, summary.done, summary.dead, summary.given_back))
        ends = summary.done + summary.dropped + summary.dead + summary.given_back + summary.lost_ownership
        assert summary.seen == ends, f"items are not conserved: {summary}"
        assert summary.unsettled == 0
        self.unclean += not summary.clean

    async def live(self) -> None:
        self._healed, self._ended = anyio.Event(), anyio.Event()
        self.source.put(40)
        async with anyio.create_task_group() as members:
            for _ in range(self.rng.randint(1, 3)):
                members.start_soon(self._generations)
            await anyio.sleep(FAULTY_SECONDS)
            self.faulty = False
            self._healed.set()
            self.source.queue.close()
            with anyio.fail_after(CLAIM + 2 * RETRY.cap + 30):
                await self._ended.wait()
        self.check()

    async def _generations(self) -> None:
        """Start a member again and again, as a supervisor would."""
        while not self._healed.is_set():
            await self.member()
            figures = self.source.queue.statistics()
            assert figures.ready + figures.in_hand + figures.waiting + figures.settled == self.source.count
            with anyio.move_on_after(self.rng.uniform(0, 10)):
                await self._healed.wait()
        await self.member()
        self._ended.set()

    def check(self) -> None:
        figures = self.source.queue.statistics()
        assert (figures.settled, figures.in_hand) == (self.source.count, 0)
        assert self.running == 0
        assert not self.source.violations, self.source.violations
        stranded = [watch.stranded for watch in self.source.watches if watch.stranded]
        assert not stranded, f"in hand when a session was left: {stranded}"
        assert all(map(self.has_reason, range(self.source.count)))
        assert not self.poison & set(self.effects)
        if not self.unclean:
            again = [item for item, count in self.effects.items() if count > 1]
            assert not again, f"all ends were clean, and these had their effect twice: {again}"
        assert figures.deliveries <= self.source.count * 10


def simulate(seed: int) -> list[tuple[float, str, object]]:
    """Live through the world of *seed*; return its trace."""
    world = World(seed)
    try:
        run_virtual(world.live, backend="trio", seed=seed)
    except Exception as error:
        error.add_note(f"play it again with FOREBAY_FIRST_SEED={seed} FOREBAY_SEEDS=1")
        raise
    return world.trace


def simulate_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        simulate(seed)


def test_whatever_fails_everything_is_final_once_the_faults_have_stopped() -> None:
    simulate_all(range(FIRST_SEED, FIRST_SEED + SEEDS))


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_thousand_worlds_end_well() -> None:
    simulate_all(range(FIRST_SEED, FIRST_SEED + max(SEEDS, 1000)))


def test_the_same_seed_gives_the_same_trace_and_another_seed_another_one() -> None:
    traces = [simulate(seed) for seed in (3, 3, 4)]

    assert traces[0] == traces[1]
    assert len(traces[0]) > 20
    assert traces[0] != traces[2]


# --- Faults in forebay itself, which the worlds above have to show ---------------------------------


async def settle_first(self: Stage, batch: Batch, started: float | None = None) -> float:
    """Acknowledge early: before the handler has run."""
    if isinstance(self.exit, PipelineExit):
        self.exit.route.finish(batch.pieces)
    return await PROCESS(self, batch, started)


async def keep_no_permit(self: Stage, batch: Batch, started: float | None = None) -> float:
    """Lose the worker whose call failed."""
    ended = await PROCESS(self, batch, started)
    if batch.error is not None:
        await anyio.sleep_forever()
    return ended


async def give_back_without_refund(self: SessionFeed, back: Sequence[Deliveries]) -> None:
    """Count what was given back as handed out."""
    await self.session.give_back(back, refund=False)
    await WIND_UP(self, ())


async def give_nothing_back(self: SessionFeed, back: Sequence[Deliveries]) -> None:
    """Leave with items in hand, which are another's only when their claims lapse."""
    await WIND_UP(self, ())


def tell_again(self: FeedLedger) -> None:
    """Settle twice: what the source has taken stays in the next statement."""
    self.unsent = 0


def mark_the_highest(self: FeedLedger, partition: int) -> int | None:
    """Put the mark behind all that was seen."""
    return self._high.get(partition)


async def bury_without_a_letter(self: PipelineExit, dead: Sequence[Dead], batch: Batch | None) -> None:
    """Settle what failed for good, and keep nothing of it."""
    for one in dead:
        self.route.settle_positions(one.piece.listed(), "dead")


def forget_the_retry(self: Waiting, batch: Batch, delay: float) -> None:
    """Let what waits for another attempt wait for ever."""


PROCESS, WIND_UP = Stage.process, SessionFeed.wind_up

PLANTED: list[tuple[type, str, Callable[..., Any], str]] = [
    (Stage, "process", settle_first, "settled without effect"),
    (Stage, "process", keep_no_permit, "TimeoutError"),
    (SessionFeed, "wind_up", give_back_without_refund, "without a refund"),
    (SessionFeed, "wind_up", give_nothing_back, "in hand when a session was left"),
    (FeedLedger, "told", tell_again, "settled again"),
    (FeedLedger, "_mark", mark_the_highest, "mark [0-9]+ passes"),
    (PipelineExit, "set_aside", bury_without_a_letter, "settled without effect"),
    (Waiting, "schedule", forget_the_retry, "TimeoutError"),
]


@pytest.mark.parametrize(
    ("owner", "name", "fault", "shown"), PLANTED, ids=[fault.__name__ for _, _, fault, _ in PLANTED]
)
def test_a_planted_fault_shows_within_twenty_worlds(
    owner: type, name: str, fault: Callable[..., Any], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, fault)

    with pytest.raises(Exception) as caught:  # noqa: PT011  # whichever rule it breaks
        simulate_all(range(20))

    assert any(re.search(shown, repr(leaf)) for leaf in leaves_of(caught.value))
    assert any("play it again with FOREBAY_FIRST_SEED=" in note for note in caught.value.__notes__)


def leaves_of(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    group = cast("BaseExceptionGroup[BaseException]", error)  # isinstance tells pyright nothing about what is inside
    return [leaf for one in group.exceptions for leaf in leaves_of(one)]
