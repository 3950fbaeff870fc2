"""Controllers with one fault each."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Collection

import anyio
from attrs import evolve

from conformance.tests.right_controller import RightController
from conformance.tests.wrong import WrongList
from forebay import Bounds, Goal
from forebay.abc import Limits, Observation

WRONG_CONTROLLERS = WrongList("controller")


def _wrong(rule: str, *, also: Collection[str] = ()) -> Callable[[type[RightController]], type[RightController]]:
    def register(controller: type[RightController]) -> type[RightController]:
        WRONG_CONTROLLERS.add(rule, controller, controller.__name__, also)
        return controller

    return register


# --- What it answers ---------------------------------------------------------------------------


@_wrong("limits", also=["bounds", "never-raises", "repeats", "no-clock", "reasons", "adjust"])
class AnswersNothingUnderLoad(RightController):
    def observe(self, observation: Observation, /) -> Limits:
        limits = super().observe(observation)
        return limits if observation.pressure < 1 else None  # type: ignore[return-value]


@_wrong("limits")
class WaitsForLessThanNothing(RightController):
    def observe(self, observation: Observation, /) -> Limits:
        limits = super().observe(observation)
        return evolve(limits, max_wait=-1.0) if observation.queued == 3 else limits


@_wrong("limits")
class ProbesByNumber(RightController):
    def observe(self, observation: Observation, /) -> Limits:
        return evolve(super().observe(observation), probe=0)  # type: ignore[arg-type]


@_wrong("bounds", also=["adjust"])
class KnowsNoMost(RightController):
    def limits(self) -> Limits:
        self.bounds = evolve(self.bounds, max_size=100_000)
        return super().limits()


@_wrong("bounds", also=["adjust"])
class KnowsNoLeast(RightController):
    def limits(self) -> Limits:
        self.bounds = evolve(self.bounds, min_size=1)
        return super().limits()


@_wrong("bounds", also=["adjust"])
class ShrinksBelowTheLeastUnderLoad(RightController):
    def limits(self) -> Limits:
        limits = super().limits()
        return evolve(limits, batch_size=max(1, limits.batch_size // 2)) if self.load == 1 else limits


@_wrong("bounds", also=["adjust"])
class MayAlwaysSendTwoAtATime(RightController):
    def limits(self) -> Limits:
        limits = super().limits()
        return evolve(limits, concurrency=max(2, limits.concurrency))


@_wrong("never-raises")
class DividesByTime(RightController):
    def observe(self, observation: Observation, /) -> Limits:
        self.rate = observation.size / observation.seconds
        return super().observe(observation)


@_wrong("never-raises")
class CountsInPowers(RightController):
    def observe(self, observation: Observation, /) -> Limits:
        self.cost = math.exp(observation.size / 10_000)
        return super().observe(observation)


@_wrong("never-raises", also=["bounds"])
class GivesUpAfterManyFailures(RightController):
    in_a_row = 0

    def observe(self, observation: Observation, /) -> Limits:
        self.in_a_row = self.in_a_row + 1 if observation.failed else 0
        if self.in_a_row > 150:
            raise RuntimeError("nothing works")
        return super().observe(observation)


@_wrong("repeats")
class RollsDice(RightController):
    def observe(self, observation: Observation, /) -> Limits:
        limits = super().observe(observation)
        return evolve(limits, probe=True) if random.random() < 0.05 else limits


@_wrong("repeats")
class SharesWhatItLearns(RightController):
    refusals: list[int] = []  # noqa: RUF012  # the fault

    def refused(self, observation: Observation) -> None:
        super().refused(observation)
        self.refusals.append(observation.size)
        self.reason = f"{len(self.refusals)} batches were refused"


@_wrong("no-clock")
class ReadsTheClock(RightController):
    def observe(self, observation: Observation, /) -> Limits:
        self.seen_at = time.monotonic()
        return super().observe(observation)


@_wrong("no-clock")
class ReadsTheClockOfTheLoop(RightController):
    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        self.seen_at = anyio.current_time()
        return super().tick(now, in_flight, oldest_call, queued, pressure)


@_wrong("no-clock")
class WritesADiary(RightController):
    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> Limits:
        with open(os.devnull, "a", encoding="utf-8") as diary:
            diary.write(f"{bounds}\n")
        return super().adjust(bounds, goal)


@_wrong("reasons")
class GivesNoReason(RightController):
    def limits(self) -> Limits:
        return evolve(super().limits(), reason="")


@_wrong("reasons")
class GivesAPageOfReasons(RightController):
    def search(self, now: float) -> None:
        super().search(now)
        self.reason = "there are several reasons:\n- one\n- another"


# --- At rest -----------------------------------------------------------------------------------


@_wrong("quiet")
class NeverRests(RightController):
    seen = 0

    def observe(self, observation: Observation, /) -> Limits:
        self.seen += 1
        limits = super().observe(observation)
        return evolve(limits, max_wait=0.001 * (self.seen // 8 % 4), reason="a little longer, or less long")


@_wrong("probes-marked")
class HidesItsProbes(RightController):
    seen = 0

    def observe(self, observation: Observation, /) -> Limits:
        self.seen += 1
        limits = super().observe(observation)
        return evolve(limits, max_wait=0.001, reason="trying to wait") if self.seen % 150 == 0 else limits


@_wrong("probes-rare")
class ProbesAllTheTime(RightController):
    seen = 0

    def observe(self, observation: Observation, /) -> Limits:
        self.seen += 1
        limits = super().observe(observation)
        return evolve(limits, max_wait=0.001, probe=True) if self.seen % 2 else limits


# --- What it is told ---------------------------------------------------------------------------


@_wrong("adjust")
class CannotBeAdjusted(RightController):
    adjust = None  # type: ignore[assignment]


@_wrong("adjust")
class AdjustsWithTheNextCall(RightController):
    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> Limits:
        self.bounds, self.goal = bounds, goal
        return self.answer


@_wrong("adjust")
class AdjustsOnce(RightController):
    def limits(self) -> Limits:
        first = self.bounds
        limits = super().limits()
        self.bounds = first
        return limits

    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> Limits:
        before, self.bounds = self.bounds, bounds
        limits = self.limits()
        self.bounds = before
        return limits


# --- Sizes that are refused --------------------------------------------------------------------


@_wrong("refused-smaller", also=["refused-remembered"])
class SendsItAgain(RightController):
    def refused(self, observation: Observation) -> None:
        pass


@_wrong("refused-remembered")
class ForgetsWhatWasRefused(RightController):
    def ended(self, observation: Observation) -> None:
        self.ceiling *= 1.3
        super().ended(observation)


@_wrong("refused-remembered")
class NeverDaresAgain(RightController):
    def refused(self, observation: Observation) -> None:
        super().refused(observation)
        self.ceiling = min(self.ceiling, max(1.0, observation.size / 50)) if observation.size > 1 else self.ceiling


@_wrong("refused-item")
class TakesTheItemForTheBatch(RightController):
    def refused(self, observation: Observation) -> None:
        super().refused(observation)
        self.ceiling = min(self.ceiling, self.size / 2)


# --- When things go wrong ----------------------------------------------------------------------


@_wrong("failures", also=["converges"])
class GoesOnRegardless(RightController):
    def failed(self, now: float) -> None:
        if self.trying is not None:
            super().failed(now)


@_wrong("collapse")
class CannotWatch(RightController):
    tick = None  # type: ignore[assignment]


@_wrong("collapse")
class WaitsForAnswers(RightController):
    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        return super().tick(now, in_flight, 0.0, queued, pressure)


@_wrong("straggler")
class FearsAnyOldCall(RightController):
    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        if oldest_call > 1.2:
            self.retreat(now, "a call takes long")
        return super().tick(now, in_flight, oldest_call, queued, pressure)


@_wrong("load")
class IsNeverTired(RightController):
    def follow_load(self, now: float, pressure: float) -> None:
        pass


@_wrong("load")
class StaysTired(RightController):
    def follow_load(self, now: float, pressure: float) -> None:
        super().follow_load(now, max(pressure, self.load))


# --- What it finds -----------------------------------------------------------------------------


@_wrong("goal")
class HasNoGoal(RightController):
    def __init__(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> None:
        super().__init__(bounds=bounds, goal=None, start=start)


@_wrong("goal")
class CrawlsToItsGoal(RightController):
    def limits(self) -> Limits:
        if self.goal is not None:
            self.size = self.calls = 1.0
        return super().limits()


@_wrong("converges", also=["reconverges", "goal"])
class StaysWhereItStarts(RightController):
    def judge(self, now: float) -> None:
        pass


@_wrong("converges", also=["reconverges", "collapse", "straggler", "goal"])
class OnlyEverGrows(RightController):
    def score(self) -> float:
        return self.size * self.calls


@_wrong("converges", also=["reconverges"])
class BelievesInFewCalls(RightController):
    def take(self, now: float, step: tuple[float, float]) -> None:
        super().take(now, (step[0], min(1.0, step[1])))


@_wrong("reconverges", also=["failures", "collapse"])
class NeverLooksAgain(RightController):
    def ended(self, observation: Observation) -> None:
        if self.steps is not None:
            super().ended(observation)
