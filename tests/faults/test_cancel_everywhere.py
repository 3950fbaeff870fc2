"""Runs that are cut off at every step: what was handed out is settled once or given back, nothing is left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import anyio
import pytest
from attrs import define, field

import forebay
from forebay import Failed, Retry
from forebay._dead_letter import MemoryDeadLetterStore
from forebay._feed import SessionFeed
from forebay.abc import DeadLetterFilter, Deliveries, Member, Outcome
from forebay.hooks import Plugins
from forebay.testing import (
    BackendName,
    How,
    Pause,
    ScriptedSession,
    ScriptedSource,
    cancel_at_every_step,
)
from tests.support.controllers import WanderingFactory

cuts = pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "task"), ("asyncio", "timeout"), ("trio", "scope")]
)

RETRY = Retry(base=0.5, jitter="none")
NONE_INSTALLED = Plugins(discover=False)


class WatchedSource(ScriptedSource[int]):
    """A scripted source that also writes down what a session had in hand when it was left."""

    def __init__(self, script: Sequence[int | Pause]) -> None:
        super().__init__(script)
        self.stranded: list[int] = []

    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[ScriptedSession[int]]:
        async with super().open(member) as session:
            try:
                yield session
            finally:
                self.stranded += self.in_hand

    @property
    def settled(self) -> list[int]:
        """Offsets that were settled, once for each time."""
        return [offset for one in self.settlements for offset in one.offsets if isinstance(offset, int)]


@define
class Bench:
    """What a recipe works on, and what became of it."""

    source: WatchedSource
    letters: MemoryDeadLetterStore = field(factory=MemoryDeadLetterStore)
    effects: Counter[object] = field(factory=Counter[object])
    attempts: Counter[object] = field(factory=Counter[object])

    async def double(self, item: Any) -> Any:
        await anyio.sleep(0.1)
        return item

    async def store(self, items: list[Any]) -> Sequence[Outcome]:
        """Write *items*; 3 never succeeds, 1 does at its second attempt."""
        await anyio.sleep(0.2)
        outcomes: list[Outcome] = []
        for item in items:
            number = origin(item)
            self.attempts[item] += 1
            if number == 3:
                outcomes.append(Failed(ValueError("broken")))
            elif number == 1 and self.attempts[item] == 1:
                outcomes.append(Failed(TimeoutError("busy")))
            else:
                self.effects[item] += 1
                outcomes.append(None)
        return outcomes

    async def copy(self, items: list[Any]) -> None:
        """Write *items* in the other branch."""
        await anyio.sleep(0.3)
        self.effects.update(("copy", item) for item in items)

    async def dead_offsets(self) -> set[int]:
        return {int(letter.id.offset) for letter in await self.letters.find(DeadLetterFilter(), limit=1000)}


Recipe: TypeAlias = Callable[[Bench], Any]


def through_all_steps(bench: Bench) -> Any:
    return (
        forebay.pipeline(bench.source, dead_letters=bench.letters, retry=RETRY)
        .filter(lambda item: item != 4)
        .flat_map(lambda item: [(item, child) for child in range(2)] if item < 3 else [(item, 0)])
        .map(bench.double)
        .map_batches(bench.store, max_size=3)
    )


def by_key(bench: Bench) -> Any:
    return (
        forebay.pipeline(bench.source, dead_letters=bench.letters, retry=RETRY)
        .key_by(lambda item: "odd" if item % 2 else "even")
        .map_batches(bench.store, max_size=3, max_concurrency=2)
    )


def down_two_branches(bench: Bench) -> Any:
    return forebay.pipeline(bench.source, dead_letters=bench.letters, retry=RETRY).branch(
        lambda items: items.map_batches(bench.store, max_size=2),
        lambda items: items.filter(lambda item: item != 2).map_batches(bench.copy, max_size=4),
    )


def steered_anywhere(bench: Bench) -> Any:
    return forebay.pipeline(bench.source, dead_letters=bench.letters, retry=RETRY).map_batches(
        bench.store, max_size=4, max_concurrency=3, control=WanderingFactory(1)
    )


ALL_STEPS = {(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (5, 0)}
KEYED = {0, 1, 2, 4, 5}
BRANCHES = KEYED | {("copy", item) for item in (0, 1, 3, 4, 5)}


@define
class Pull:
    """A run of a recipe over six items, then, when it is checked, a second run over what is left."""

    recipe: Recipe
    effects: set[Any]
    bench: Bench = field(factory=lambda: Bench(WatchedSource([0, 1, 2, Pause(0.3), 3, 4, 5])))

    async def run(self) -> None:
        await self.recipe(self.bench).run(plugins=NONE_INSTALLED)

    async def check(self, *, cancelled: bool) -> None:
        await self._check_first_run(cancelled)
        first = set(self.bench.source.settled)
        effects = Counter(self.bench.effects)

        await self.recipe(self.bench).run(plugins=NONE_INSTALLED)

        self._check_second_run(first, effects)
        assert await self.bench.dead_offsets() == {3}

    async def _check_first_run(self, cancelled: bool) -> None:
        source = self.bench.source
        assert not source.violations, source.violations
        assert not source.stranded, f"in hand when the session was left: {source.stranded}"
        assert len(source.settled) == len(set(source.settled)), f"settled twice: {sorted(source.settled)}"
        assert set(source.unsettled) == set(range(6)) - set(source.settled)
        assert cancelled or not source.unsettled
        dead = await self.bench.dead_offsets()
        assert dead <= set(source.settled), "a dead letter was stored and its item is not settled"
        for item in source.settled:
            wanted = {effect for effect in self.effects if origin(effect) == item}
            assert item in dead or wanted <= set(self.bench.effects), f"{item} was settled without its effect"
        for item in source.unsettled:
            wanted = {effect for effect in self.effects if origin(effect) == item}
            assert item == 3 or not wanted or wanted - set(self.bench.effects), f"{item} is done and not settled"

    def _check_second_run(self, first: set[int], before: Counter[object]) -> None:
        source = self.bench.source
        source.assert_settled_once()
        assert not source.stranded
        assert sorted(source.settled) == list(range(6))
        assert set(self.bench.effects) == self.effects
        for effect, count in self.bench.effects.items():
            assert count == (1 if origin(effect) in first else before[effect] + (count > before[effect]))


def origin(effect: Any) -> int:
    """Return the item that *effect* came from."""
    while not isinstance(effect, int):
        effect = effect[1] if effect[0] == "copy" else effect[0]
    return effect


@cuts
@pytest.mark.parametrize(
    ("recipe", "effects"),
    [(through_all_steps, ALL_STEPS), (by_key, KEYED), (down_two_branches, BRANCHES), (steered_anywhere, KEYED)],
    ids=["all steps", "by key", "branches", "steered"],
)
def test_a_pull_run_that_is_cut_off_anywhere_leaves_nothing_stranded_or_settled_twice(
    recipe: Recipe, effects: set[Any], backend: BackendName, how: How
) -> None:
    report = cancel_at_every_step(lambda: Pull(recipe, effects), backend=backend, how=how)

    report.raise_failures()
    assert report.steps > 50


@define
class Push:
    """Five callers of a batcher; the block is cut off and, unless they are *patient*, the callers with it."""

    patient: bool
    steering: dict[str, Any] = field(factory=lambda: {"max_size": 2})
    answers: dict[int, object] = field(factory=dict[int, object])
    begun: set[int] = field(factory=set[int])
    seen: Counter[int] = field(factory=Counter[int])

    async def run(self) -> None:
        async with anyio.create_task_group() as callers:
            async with self._open() as batcher:
                for item in range(5):
                    callers.start_soon(self._call, batcher, item)
                await anyio.sleep(0.35)

    def _open(self) -> Any:
        return forebay.open_batcher(self._process, capacity=3, retry=RETRY, **self.steering)

    async def _process(self, items: list[int]) -> list[int | Failed]:
        await anyio.sleep(0.1)
        self.seen.update(items)
        return [Failed(ValueError("broken")) if item == 3 else 10 * item for item in items]

    async def _call(self, batcher: forebay.Batcher[int, int], item: int) -> None:
        self.begun.add(item)
        cancelled = anyio.get_cancelled_exc_class()
        with anyio.CancelScope(shield=self.patient):
            try:
                self.answers[item] = await batcher.submit(item)
            except Exception as error:
                self.answers[item] = error
            except cancelled:
                self.answers[item] = cancelled
                raise

    async def check(self, *, cancelled: bool) -> None:
        assert set(self.answers) == self.begun, f"no answer: {self.begun - set(self.answers)}"
        assert cancelled or self.begun == set(range(5))
        for item, answer in self.answers.items():
            self._check_answer(item, answer, cancelled)
        assert max(self.seen.values(), default=1) == 1

    def _check_answer(self, item: int, answer: object, cancelled: bool) -> None:
        if isinstance(answer, int):
            assert answer == 10 * item
            assert item != 3
        elif isinstance(answer, ValueError):
            assert item == 3
        elif isinstance(answer, forebay.BatcherClosedError):
            assert cancelled
        else:
            assert answer is anyio.get_cancelled_exc_class()
            assert not self.patient


@cuts
@pytest.mark.parametrize("patient", [True, False], ids=["callers outlive it", "callers are cut too"])
def test_a_push_run_that_is_cut_off_anywhere_answers_every_caller(
    patient: bool, backend: BackendName, how: How
) -> None:
    report = cancel_at_every_step(lambda: Push(patient), backend=backend, how=how)

    report.raise_failures()
    assert report.steps > 20


@cuts
def test_a_push_run_whose_limits_go_anywhere_answers_every_caller_too(backend: BackendName, how: How) -> None:
    def push() -> Push:
        return Push(True, {"max_size": 3, "max_concurrency": 2, "control": WanderingFactory(2)})

    report = cancel_at_every_step(push, backend=backend, how=how)

    report.raise_failures()
    assert report.steps > 20


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_that_forgets_to_give_back_is_caught(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    wind_up = SessionFeed.wind_up

    async def keep(self: SessionFeed, back: Sequence[Deliveries]) -> None:
        await wind_up(self, ())

    monkeypatch.setattr(SessionFeed, "wind_up", keep)

    report = cancel_at_every_step(lambda: Pull(by_key, KEYED), backend=backend)

    assert any("in hand when the session was left" in str(failure.error) for failure in report.failures)
