"""A controller under check, what it is shown, and what it has answered so far."""

from __future__ import annotations

from operator import index
from typing import NoReturn

from attrs import define, evolve, field, frozen

from forebay import Bounds, Goal
from forebay.abc import Adjustable, Controller, Limits, Observation, Watchful
from forebay_conformance._checks import CheckList
from forebay_conformance._failure import described
from forebay_conformance._probe import Probe
from forebay_conformance._traits import ControllerTraits

WIDE = Bounds(max_size=4096, max_concurrency=64)
"""Bounds that leave room on every standard plant."""


@frozen
class Tick:
    """What `tick()` is given."""

    now: float
    in_flight: int
    oldest_call: float
    queued: int
    pressure: float


@define
class ControllerProbe(Probe[ControllerTraits]):
    """A check's view of a controller."""

    def make(self, start: Limits, bounds: Bounds = WIDE, goal: Goal | None = None) -> Subject:
        """Have a controller made that begins with *start*."""
        p99 = "" if goal is None else f", p99 {goal.p99} s"
        self.trail.append(f"make a controller (start {shown(start)}, {bounded(bounds)}{p99})")
        try:
            made = self.opener(bounds=bounds, goal=goal, start=start)
        except Exception as error:
            self.fail(expected="a controller", got=f"it raised {described(error)}", cause=error)
        is_one = callable(getattr(made, "observe", None))
        self.expect(is_one, expected="a controller, which has observe()", got=f"{made!r:.100}")
        return Subject(self, made, bounds, start, start, start, start)


@define(eq=False)
class Subject:
    """The controller, obeyed as forebay does: it is cut to its bounds, and a probe is no move."""

    probe: ControllerProbe
    controller: Controller
    bounds: Bounds
    answer: Limits
    """The last answer, as it came."""
    limits: Limits
    """The last answer, cut to the bounds."""
    settled: Limits
    """The last one that was no probe."""
    _before: Limits
    """What held before the last move."""
    answers: int = 0
    moves: int = 0
    """Answers that were no probe, and other than the last such."""
    probes: int = 0
    """Answers that were one."""
    returns: int = 0
    """Moves that took back the one before, which was there for two answers or fewer."""
    outside: str = ""
    """The first answer that was not within the bounds."""
    unexplained: str = ""
    """The first move whose reason is missing, or is not one line."""
    watchful: Watchful | None = field(init=False)
    """The controller, if it wants to see calls that have not answered."""
    _moved: int = field(default=-3, init=False)
    """Number of the answer that moved last."""

    def __attrs_post_init__(self) -> None:
        made = self.controller
        self.watchful = made if isinstance(made, Watchful) and callable(made.tick) else None

    def show(self, event: Observation | Tick, /) -> None:
        """Show it a call that has ended, or, if it wants that, calls that have not."""
        try:
            if isinstance(event, Observation):
                answer = self.controller.observe(event)
            elif self.watchful is None:
                return
            else:
                answer = self.watchful.tick(event.now, event.in_flight, event.oldest_call, event.queued, event.pressure)
        except Exception as error:
            self._raised(told(event), error)
        self._hear(answer, event)

    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> bool:
        """Change its bounds and its goal; return whether it lets that happen."""
        made = self.controller
        if not (isinstance(made, Adjustable) and callable(made.adjust)):
            return False
        text = f"adjust({bounded(bounds)}, {goal})"
        self.probe.trail.append(text)
        try:
            answer = made.adjust(bounds, goal)
        except Exception as error:
            self._raised(text, error)
        self.bounds = bounds
        self._hear(answer, text)
        return True

    def forget(self) -> None:
        """Count from here on."""
        self.answers = self.moves = self.probes = self.returns = 0
        self._moved = -3

    def _raised(self, text: str, error: Exception) -> NoReturn:
        self.probe.fail(expected=f"{text} to return Limits", got=f"it raised {described(error)}", cause=error)

    def _hear(self, answer: object, event: Observation | Tick | str) -> None:
        self.answers += 1
        if answer is self.answer and not isinstance(event, str):
            self.probes += self.answer.probe
            return
        if not isinstance(answer, Limits):
            self.probe.fail(expected=f"{told(event)} to return Limits", got=f"{answer!r:.100}")
        self.answer = answer
        self.probes += answer.probe
        bounds = self.bounds
        try:
            size = min(max(index(answer.batch_size), bounds.min_size), bounds.max_size)
            calls = min(max(index(answer.concurrency), bounds.min_concurrency), bounds.max_concurrency)
        except TypeError:
            self.probe.fail(expected=f"{told(event)} to return whole numbers", got=repr(answer))
        self.limits = answer
        if (size, calls) != (answer.batch_size, answer.concurrency):
            self.outside = self.outside or f"{told(event)} returned {shown(answer)}"
            self.limits = evolve(answer, batch_size=size, concurrency=calls)
        if not answer.probe:
            self._settle(self.limits)

    def _settle(self, limits: Limits) -> None:
        before, self.settled = self.settled, limits
        if _numbers(limits) == _numbers(before):
            return
        self.moves += 1
        self.returns += _numbers(limits) == _numbers(self._before) and self.answers - self._moved <= 2
        self._moved, self._before = self.answers, before
        if not self.unexplained and (not limits.reason.strip() or len(limits.reason.splitlines()) > 1):
            self.unexplained = f"{shown(before)} -> {shown(limits)}: {limits.reason!r}"


def _numbers(limits: Limits) -> tuple[int, int, float, int | None]:
    """Return what a stage obeys."""
    return limits.batch_size, limits.concurrency, limits.max_wait, limits.max_bytes


def told(event: Observation | Tick | str, /) -> str:
    """Return what matters most of *event*, as a call."""
    if isinstance(event, str):
        return event
    if isinstance(event, Tick):
        return (
            f"tick({event.in_flight} in flight, the oldest for {event.oldest_call:g} s, {event.queued} queued, "
            f"load {event.pressure:g})"
        )
    how = "too large" if event.too_large else "failed" if event.failed else "done"
    return (
        f"observe({event.size} items {how} in {event.seconds:g} s, {event.queued} queued, "
        f"{event.in_flight} in flight, load {event.pressure:g})"
    )


def shown(limits: Limits, /) -> str:
    """Return *limits* in a few words."""
    return f"{limits.batch_size} items x {limits.concurrency} calls"


def bounded(bounds: Bounds, /) -> str:
    """Return *bounds* in a few words."""
    return f"{bounds.min_size} to {bounds.max_size} items x {bounds.min_concurrency} to {bounds.max_concurrency} calls"


CONTROLLER_CHECKS = CheckList("controller", ControllerProbe)
