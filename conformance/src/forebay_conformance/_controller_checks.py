"""Checks of what every controller keeps to, whatever it is for.

They are coroutine functions, as all checks are, and wait for nothing: a controller is arithmetic.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from attrs import asdict, evolve

from forebay import Bounds, Goal
from forebay.abc import Limits, Observation
from forebay_conformance._controller_probe import CONTROLLER_CHECKS, WIDE, ControllerProbe, Subject, Tick, bounded, told
from forebay_conformance._plant import FIXED_COST
from forebay_conformance._purity import watched
from forebay_conformance._trial import Trial

USUAL = Limits(100, 8, 0.0)
"""Where a controller begins unless a check says otherwise."""
_NARROW = (
    Bounds(min_size=1, max_size=1, min_concurrency=1, max_concurrency=1),
    Bounds(min_size=7, max_size=7, min_concurrency=3, max_concurrency=3),
    Bounds(min_size=50, max_size=60, min_concurrency=4, max_concurrency=5),
    Bounds(min_size=1, max_size=300, min_concurrency=1, max_concurrency=20),
)
_proves = CONTROLLER_CHECKS.proves


# --- What it is shown -------------------------------------------------------------------------------


def call(size: int, seconds: float, now: float, *, how: str = "done", queued: int = 1000) -> Observation:
    """Return what is observed of a call of *size* items that ends *now*."""
    return Observation(now, size, None, seconds, how != "done", how == "too large", queued, 1, 0.1, 0.0)


def _at_random(seed: int, count: int, bounds: Bounds = WIDE) -> Iterator[Observation | Tick]:
    """Yield calls and ticks; most are such as a stage would show, some are not."""
    chance, now = random.Random(f"steps {seed}"), 0.0
    for _ in range(count):
        now += chance.expovariate(5)
        size = chance.randint(1, 8192 if chance.random() < 0.3 else bounds.max_size)
        seconds = chance.lognormvariate(-2.5, 2.0 if chance.random() < 0.5 else 0.2)
        queued = chance.choice((0, 3, 100, 10_000))
        flying = chance.randint(1, 64 if chance.random() < 0.3 else bounds.max_concurrency)
        pressure = chance.choice((0.0, 0.0, chance.random(), 1.0))
        what = chance.random()
        if what < 0.1:
            yield Tick(now, flying, seconds, queued, pressure)
            continue
        too_large, failed = what < 0.14, what < 0.22
        nbytes = 100 * size if what < 0.6 else None
        yield Observation(now, size, nbytes, seconds, failed, too_large, queued, flying, seconds, seconds, pressure)


def _extremes() -> Iterator[Observation | Tick]:
    """Yield what is rare and can happen."""
    now = 0.0
    for seconds in (0.0, 0.05, 3600.0):
        for size, queued in ((1, 0), (1, 1), (100, 0), (10**9, 10**9)):
            for how in ("done", "failed", "too large"):
                now += seconds  # 0.0: two calls that end in one moment
                plain = call(size, seconds, now, how=how, queued=queued)
                yield plain
                yield evolve(plain, size_bytes=0, in_flight=10_000, oldest_call=86_400.0, pressure=1.0)
                yield Tick(now, 1, seconds, queued, 0.0)
                yield Tick(now, 10_000, 86_400.0, 0, 1.0)
    yield from (call(1, 1.0, now + second, how="failed", queued=0) for second in range(150))
    yield from (call(1, 0.001, now + second, how="too large") for second in range(150, 200))


def _show(subject: Subject, events: Iterable[Observation | Tick]) -> None:
    subject.probe.trail.append("show it calls")
    for event in events:
        subject.show(event)


def _through_good_and_bad(subject: Subject) -> None:
    """Let everything happen that makes a controller move: there is something to find, and then all goes wrong."""
    unit = FIXED_COST.unit(WIDE)
    trial = Trial(FIXED_COST, subject)
    trial.run(30 * unit)
    trial.pressure, trial.failing = 0.9, True
    trial.run(10 * unit)
    trial.pressure, trial.failing = 0.0, False
    trial.run(10 * unit)
    trial.silent = True
    trial.run(20 * unit)


# --- What it answers --------------------------------------------------------------------------------


@_proves("limits")
async def answers_are_limits(probe: ControllerProbe) -> None:
    """Random calls and ticks; each answer is looked at whole."""
    for seed in range(3):
        subject = probe.make(USUAL)
        for event in _at_random(seed, 150):
            subject.show(event)
            if _is_odd(subject.answer):
                probe.fail(expected=f"{told(event)} to return Limits as they should be", got=repr(subject.answer))


def _is_odd(answer: Limits) -> bool:
    # As objects, because who writes a controller need not have a type checker.
    fields: dict[str, object] = asdict(answer)
    counts = [fields[name] for name in ("batch_size", "concurrency", "max_bytes")]
    wait = fields["max_wait"]
    return (
        any(not isinstance(count, int) or isinstance(count, bool) or count < 1 for count in counts if count is not None)
        or not isinstance(wait, int | float)
        or not wait >= 0  # true of a NaN
        or not isinstance(fields["reason"], str)
        or not isinstance(fields["probe"], bool)
    )


@_proves("bounds")
async def answers_are_within_bounds(probe: ControllerProbe) -> None:
    """Wide and narrow bounds, from both of their ends, with a goal and without."""
    for seed, bounds in enumerate((WIDE, *_NARROW)):
        for start, goal in zip(_ends(bounds), (None, Goal(p99=0.2)), strict=True):
            subject = probe.make(start, bounds, goal)
            _show(subject, _at_random(seed, 80, bounds))
            _is_within(subject)
    for bounds in _NARROW[2:]:
        subject = probe.make(_ends(bounds)[0], bounds)
        _through_good_and_bad(subject)
        _is_within(subject)


def _ends(bounds: Bounds) -> Sequence[Limits]:
    least = Limits(bounds.min_size, bounds.min_concurrency, 0.0)
    return least, Limits(bounds.max_size, bounds.max_concurrency, 0.05)


def _is_within(subject: Subject) -> None:
    subject.probe.expect(not subject.outside, expected=bounded(subject.bounds), got=subject.outside)


@_proves("never-raises")
async def nothing_makes_it_raise(probe: ControllerProbe) -> None:
    """What is rare and can happen, one after the other, and each as the first that is ever seen."""
    for bounds, goal in ((WIDE, None), (WIDE, Goal(p99=1e-6)), (_NARROW[0], None), (_NARROW[1], Goal(p99=1e6))):
        _show(probe.make(_ends(bounds)[1], bounds, goal), _extremes())
    for event in list(_extremes())[:144]:
        probe.make(USUAL).show(event)


@_proves("repeats")
async def the_same_leads_to_the_same(probe: ControllerProbe) -> None:
    """Two controllers, one after the other, are shown the same; each answer is compared."""
    for seed in range(2):
        first, second = probe.make(USUAL), probe.make(USUAL)
        answers: list[Limits] = []
        for event in _at_random(seed, 200):
            first.show(event)
            answers.append(first.answer)
        for number, event in enumerate(_at_random(seed, 200)):
            second.show(event)
            if second.answer != answers[number]:
                got = f"after {number} others {told(event)} returned {second.answer}"
                probe.fail(expected=f"what the first one said: {answers[number]}", got=got)


@_proves("no-clock")
async def it_knows_only_what_it_is_shown(probe: ControllerProbe) -> None:
    """What its methods call is watched, once what is loaded on first use has been loaded."""
    events = list(_at_random(1, 100))
    for number in range(2):
        subject = probe.make(USUAL)
        with watched() as calls:
            _show(subject, events)
            subject.adjust(WIDE, None)
        got = f"it called {', '.join(sorted(calls))}"
        probe.expect(number == 0 or not calls, expected="no clock, no input and no output", got=got)


@_proves("reasons")
async def moves_have_reasons(probe: ControllerProbe) -> None:
    """Random calls, other bounds, and a run with all that makes a controller move."""
    shown_at_random, steered = probe.make(USUAL), probe.make(Limits(16, 2, 0.0))
    _show(shown_at_random, _at_random(1, 200))
    shown_at_random.adjust(_NARROW[3], Goal(p99=1.0))
    _through_good_and_bad(steered)
    for subject in (shown_at_random, steered):
        probe.expect(not subject.unexplained, expected="a reason for every move, in one line", got=subject.unexplained)


# --- What it is told --------------------------------------------------------------------------------


@_proves("adjust", needs=["adjusts"])
async def other_bounds_hold_at_once(probe: ControllerProbe) -> None:
    """Narrower, elsewhere, and wider again; random calls between."""
    subject = probe.make(USUAL)
    for seed, bounds in enumerate((*_NARROW, WIDE, _NARROW[1])):
        for goal in (Goal(p99=0.2), None):
            probe.expect(subject.adjust(bounds, goal), expected="adjust()", got="there is none")
            _show(subject, _at_random(seed, 40, bounds))
            _is_within(subject)


@_proves("refused-smaller", needs=["heeds_refusals"])
async def refused_batches_get_smaller(probe: ControllerProbe) -> None:
    """One batch is refused, and another one after some that were not."""
    subject = probe.make(USUAL)
    for now in (1.0, 20.0):
        size = subject.limits.batch_size
        refused = call(size, 0.005, now, how="too large")
        probe.trail.append(told(refused))
        _show(subject, [refused, call(max(1, size // 2), 0.1, now + 0.2)])
        got = subject.limits.batch_size
        probe.expect(got < size, expected=f"batches of less than {size}", got=got)
        for step in range(10):
            subject.show(call(subject.limits.batch_size, 0.1, now + 1 + step))


@_proves("refused-item", needs=["heeds_refusals"])
async def a_refused_item_changes_nothing(probe: ControllerProbe) -> None:
    """Three batches of one item are refused."""
    subject = probe.make(USUAL)
    refused = [call(1, 0.005, 1.0 + step, how="too large") for step in range(3)]
    probe.trail.append(f"3 times {told(refused[0])}")
    _show(subject, refused)
    got, least = subject.settled.batch_size, USUAL.batch_size
    probe.expect(got >= least, expected=f"batches of at least {least}", got=got)
