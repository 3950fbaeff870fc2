"""Steers one stage: asks its controller, holds it to its bounds, and writes down every move with its reason."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from operator import index
from typing import Final, cast

import anyio
from attrs import define, evolve, field

from forebay._control import FixedController, InverseLoadController
from forebay._handler import is_async
from forebay._recipe import ControlSpec, is_controller
from forebay._types import Bounds, Goal, Limits, LimitsInfo, Observation
from forebay.abc import Adjustable, Controller, ControllerFactory, Watchful

KEPT_MOVES: Final = 256
"""Moves of a stage that are remembered."""
TICK_SECONDS: Final = 0.05
"""Time between two looks at a call that takes longer than expected, and the least that is expected of a call."""

_logger = logging.getLogger("forebay")


def no_pressure() -> float:
    """Return 0.0: nothing is known of the system's load."""
    return 0.0


@define(eq=False, kw_only=True)
class Steer:
    """What one stage may do now, and who says so."""

    pipeline: str
    stage: str
    bounds: Bounds
    limits: Limits
    goal: Goal | None = None
    controller: Controller | None = None
    """`None` where nobody steers: the limits stay until somebody changes the bounds."""
    factory: ControllerFactory | None = None
    """Makes the controller anew when its bounds change and it cannot follow."""
    max_wait: float = math.inf
    """Longest time in seconds that the controller may let an item wait for company."""
    max_bytes: int | None = None
    """Most bytes that the controller may allow in a batch."""
    limits_changed: Callable[[LimitsInfo], None] | None = None
    pressure: Callable[[], float] = no_pressure
    """Reads the system load, between 0 (idle) and 1 (at its limit)."""
    clock: Callable[[], float] = anyio.current_time
    """For measuring only."""
    unix: float = 0.0
    """Unix time at which the clock stood at 0."""
    obey: Callable[[Limits], None] = field(init=False)
    """Lets the stage work within new limits; the stage gives it."""
    queued: Callable[[], int] = field(init=False)
    """Counts the items that wait for the stage; the stage gives it."""
    moves: deque[LimitsInfo] = field(factory=lambda: deque[LimitsInfo](maxlen=KEPT_MOVES), init=False)
    made: int = field(default=0, init=False)
    """Moves in all."""
    calls: dict[object, float] = field(factory=dict[object, float], init=False)
    """When each call in flight started, the oldest first."""
    _usual: float = field(default=0.0, init=False)
    """Smoothed seconds of a call."""
    _settled: Limits = field(init=False)
    """The last limits that were no probe."""
    _answer: Limits | None = field(default=None, init=False)
    """What the controller said last; nearly always it says the same again."""
    _named: bool = field(default=False, init=False)
    """Whether it has been named for breaking its bounds."""
    _called: anyio.Event | None = field(default=None, init=False)

    _fixed: bool = field(init=False)
    """Whether nobody was ever meant to steer."""

    def __attrs_post_init__(self) -> None:
        self._fixed = self.controller is None
        self.limits = self._settled = self._within(self.limits)

    # --- What the stage tells -------------------------------------------------------------------

    def call_started(self, call: object, now: float) -> None:
        """Take note that *call* has started."""
        self.calls[call] = now
        if self._called is not None:
            self._called.set()

    def call_ended(
        self,
        *,
        now: float,
        size: int,
        size_bytes: int | None,
        seconds: float,
        failed: bool,
        too_large: bool,
        in_flight: int,
        oldest_wait: float,
    ) -> None:
        """Show the controller a call that has ended, and do what it says. The call is in `calls` no more."""
        controller = self.controller
        if controller is None:
            return
        self._usual += (0.2 if self._usual else 1.0) * (seconds - self._usual)
        calls = self.calls
        observation = Observation(
            now,
            size,
            size_bytes,
            seconds,
            failed,
            too_large,
            self.queued(),
            in_flight,
            oldest_wait,
            now - next(iter(calls.values())) if calls else 0.0,
            self.pressure(),
        )
        try:
            answer = controller.observe(observation)
            if answer is self._answer:
                return
            limits = self._within(answer)
        except Exception as error:
            self._dismiss(controller, error)
        else:
            self._answer = answer
            self._move(limits)

    async def watch(self) -> None:
        """Show the controller, if it wants that, calls that take longer than expected; runs as long as the stage."""
        last = -math.inf
        while self.controller is not None:
            if not self.calls:
                self._called = anyio.Event()
                await self._called.wait()
                self._called = None
            expected = max(TICK_SECONDS, 2 * self._usual)
            now = anyio.current_time()
            oldest = next(iter(self.calls.values()), now)
            age = now - oldest
            # Later less often: a call that has taken a minute says little new after another 50 ms.
            due = max(oldest + expected, last + TICK_SECONDS * max(1.0, age))
            if due > now:
                await anyio.sleep(due - now)
            else:
                last = now
                self._tick(age)

    def _tick(self, age: float) -> None:
        controller = self.controller
        if not isinstance(controller, Watchful):
            return
        try:
            answer = controller.tick(self.clock(), len(self.calls), age, self.queued(), self.pressure())
            limits = self._within(answer)
        except Exception as error:
            self._dismiss(controller, error)
        else:
            self._answer = answer
            self._move(limits)

    # --- What others want -----------------------------------------------------------------------

    def change(self, changes: Mapping[str, int], goal: Goal | None = None) -> Limits:
        """Work within other bounds, or towards another goal, from now on; return the limits that come of it.

        All of it or nothing: if it raises, everything is as before.

        Args:
            changes: Fields of `Bounds` that change.
            goal: `None`: as before.

        Raises:
            TypeError: a bound is no whole number.
            ValueError: a bound is out of range, or nobody steers towards a goal here.
        """
        bounds = evolve(self.bounds, **changes)
        goal_then = self.goal if goal is None else goal
        controller, answer = self._adjusted(bounds, goal_then, changes, given=goal is not None)
        limits = self._within(answer, bounds, quiet=True)
        self.bounds, self.goal, self.controller, self._answer = bounds, goal_then, controller, None
        self._move(evolve(limits, reason=_told(changes, goal), probe=False), told=True)
        return self.limits

    def _adjusted(
        self, bounds: Bounds, goal: Goal | None, changes: Mapping[str, int], *, given: bool
    ) -> tuple[Controller | None, Limits]:
        """Return who steers with *bounds* and *goal*, and the limits that follow."""
        controller = self.controller
        kept = evolve(self._settled, reason="")
        if isinstance(controller, Adjustable):
            return controller, controller.adjust(bounds, goal)
        if controller is not None and self.factory is not None:
            start = self._within(kept, bounds, quiet=True)
            return make_controller(self.factory, self.stage, bounds, goal, start), start
        if given:
            raise ValueError(
                f"stage {self.stage!r} cannot follow a goal: {_who(controller)}; pass control='adaptive' to the stage"
            )
        if self._fixed:  # what is fixed stands at its bound
            size, calls = changes.get("max_size"), changes.get("max_concurrency")
            kept = evolve(kept, batch_size=size or kept.batch_size, concurrency=calls or kept.concurrency)
        return controller, kept

    # --- Moving ---------------------------------------------------------------------------------

    def _within(self, wanted: Limits, bounds: Bounds | None = None, *, quiet: bool = False) -> Limits:
        """Return *wanted* cut to the bounds; raise if it makes no sense."""
        if not isinstance(wanted, Limits):  # pyright: ignore[reportUnnecessaryIsInstance]  # who has no checker
            raise TypeError(f"it returned {wanted!r:.100}; return Limits")
        within = self.bounds if bounds is None else bounds
        size = min(max(index(wanted.batch_size), within.min_size), within.max_size)
        calls = min(max(index(wanted.concurrency), within.min_concurrency), within.max_concurrency)
        wait = min(max(0.0, wanted.max_wait), self.max_wait)
        nbytes = self.max_bytes
        if wanted.max_bytes is not None:
            nbytes = max(1, wanted.max_bytes if nbytes is None else min(wanted.max_bytes, nbytes))
        if (size, calls) != (wanted.batch_size, wanted.concurrency) and not (quiet or self._named):
            self._named = True
            _logger.warning(
                "the controller of stage %r wants batches of %s and %s calls, which is out of its bounds (%s to %s, "
                "%s to %s); it gets the nearest, here and from now on",
                *(self.stage, wanted.batch_size, wanted.concurrency, within.min_size, within.max_size),
                *(within.min_concurrency, within.max_concurrency),
            )
        if (size, calls, wait, nbytes) == _numbers(wanted):
            return wanted
        return Limits(size, calls, wait, nbytes, wanted.reason, wanted.probe)

    def _move(self, limits: Limits, *, told: bool = False) -> None:
        """Let the stage work within *limits*, and say so unless it is a probe."""
        if _numbers(limits) != _numbers(self.limits):
            self.limits = limits
            self.obey(limits)
        if limits.probe:
            return
        before, self._settled = self._settled, limits
        if told or _numbers(before) != _numbers(limits):
            self._note(before, limits, limits.reason)

    def _note(self, before: Limits, after: Limits, reason: str) -> None:
        info = LimitsInfo(self.pipeline, self.stage, before, after, reason, self.unix + self.clock())
        self.moves.append(info)
        self.made += 1
        if self.limits_changed is not None and _numbers(before) != _numbers(after):
            self.limits_changed(info)

    def _dismiss(self, controller: Controller, error: Exception) -> None:
        """Go on without the controller, which has raised, at the limits that it left."""
        self.controller = None
        name = type(controller).__name__
        _logger.warning(
            "%s, the controller of stage %r, failed; the stage stays at batches of %s and %s calls until its end",
            *(name, self.stage, self._settled.batch_size, self._settled.concurrency),
            exc_info=error,
        )
        reason = f"{name} failed with {type(error).__name__}, and the limits stay as they are"
        self._move(evolve(self._settled, reason=reason), told=True)


def _numbers(limits: Limits) -> tuple[int, int, float, int | None]:
    return limits.batch_size, limits.concurrency, limits.max_wait, limits.max_bytes


def _told(changes: Mapping[str, int], goal: Goal | None) -> str:
    told = [f"{name}={value}" for name, value in changes.items()]
    if goal is not None:
        told.append("goal=" + ("throughput" if goal.p99 is None else f"p99 {goal.p99 * 1000:g} ms"))
    return f"told to: {', '.join(told)}"


def _who(controller: Controller | None) -> str:
    return "nobody steers it" if controller is None else f"{type(controller).__name__} has no adjust()"


# --- Who steers ----------------------------------------------------------------------------------


def built_in_controllers() -> dict[str, ControllerFactory]:
    """Return the controllers that forebay has, by name."""
    return {"fixed": _fixed, "adaptive": _adaptive, "inverse-load": InverseLoadController}


def _fixed(*, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
    return FixedController(start)


def _adaptive(*, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
    from forebay._adaptive import AdaptiveController  # the largest of them, loaded where it is wanted

    return AdaptiveController(bounds, goal, start)


def make_controller(
    factory: ControllerFactory, stage: str, bounds: Bounds, goal: Goal | None, start: Limits
) -> Controller:
    """Call *factory* for *stage* and return what it makes."""
    return checked_controller(factory(bounds=bounds, goal=goal, start=start), stage)


def checked_controller(made: object, stage: str) -> Controller:
    """Return *made*, which has been made to steer *stage*, if it is a controller."""
    if not is_controller(made):
        raise TypeError(
            f"the control of stage {stage!r} made {made!r:.100}, which has no observe(); return a controller"
        )
    if is_async(made.observe):
        raise TypeError(f"{type(made).__name__}.observe, which steers stage {stage!r}, is async; make it a plain def")
    return made


def begin_steering(
    spec: ControlSpec,
    made: object,
    *,
    pipeline: str,
    stage: str,
    max_wait: float,
    limits_changed: Callable[[LimitsInfo], None] | None,
    pressure: Callable[[], float] = no_pressure,
    clock: Callable[[], float],
) -> Steer:
    """Return who steers a stage, at the limits that it begins with.

    Args:
        spec: What the user wrote.
        made: What a plugin made of the name in *spec*; `None` where it is built in, or no name.
        pipeline: Name of the pipeline or batcher.
        stage: Name of the stage.
        max_wait: Longest time in seconds that an item may wait for company.
        limits_changed: Called with each move.
        pressure: Reads the system load.
        clock: Reads the event loop's clock.

    Raises:
        TypeError: what is to steer is no controller.
    """
    controller, limits = _first(spec, made, stage)
    return Steer(
        pipeline=pipeline,
        stage=stage,
        bounds=spec.bounds,
        limits=limits,
        goal=spec.goal,
        controller=controller,
        factory=factory_of(spec),
        max_wait=max_wait,
        max_bytes=spec.start.max_bytes,
        limits_changed=limits_changed,
        pressure=pressure,
        clock=clock,
        unix=time.time() - clock(),
    )


def _first(spec: ControlSpec, made: object, stage: str) -> tuple[Controller | None, Limits]:
    """Return the controller and its first limits; no controller where it would always say the same."""
    factory = factory_of(spec)
    if made is not None:
        controller = checked_controller(made, stage)
    elif factory is not None:
        controller = make_controller(factory, stage, spec.bounds, spec.goal, spec.start)
    else:
        controller = checked_controller(spec.control, stage)
        if isinstance(controller, Adjustable):
            return controller, controller.adjust(spec.bounds, spec.goal)
    if isinstance(controller, FixedController):
        return None, controller.limits
    return controller, spec.start


def factory_of(spec: ControlSpec) -> ControllerFactory | None:
    """Return what makes a controller by *spec*; `None` for an object, and for a name that a plugin knows."""
    if isinstance(spec.control, str):
        return built_in_controllers().get(spec.control)
    # To a type checker a controller may be a factory too, and the other way round; here it is one of them.
    return None if is_controller(spec.control) else cast("ControllerFactory", spec.control)
