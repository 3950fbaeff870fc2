"""Checks of what a controller does before a service: whether it rests, gives way, and finds what is best."""

from __future__ import annotations

from attrs import evolve

from forebay import Goal
from forebay.abc import Limits
from forebay_conformance._controller_checks import USUAL
from forebay_conformance._controller_probe import CONTROLLER_CHECKS, WIDE, ControllerProbe, Subject, shown
from forebay_conformance._plant import COSTLY_ITEMS, FEW_CALLS, FIXED_COST, QUICK, Plant
from forebay_conformance._trial import Stretch, Trial

_SETTLING = 200
"""Units of a plant after which a controller has settled, wherever it began."""
_SHARE = 0.7
"""Share of the best fixed limits that a controller has to come to."""
_CALM = evolve(FIXED_COST, name=f"{FIXED_COST.name}, half loaded", rate=0.5 * FIXED_COST.most(WIDE))
_PICKY = evolve(FIXED_COST, name="a service that refuses batches of more than 150", largest=150)
_proves = CONTROLLER_CHECKS.proves


def _settled(
    probe: ControllerProbe, plant: Plant, start: Limits = USUAL, *, units: float = _SETTLING, goal: Goal | None = None
) -> tuple[Subject, Trial]:
    """Return a controller that has been before *plant* for so many units."""
    subject = probe.make(start, goal=goal)
    trial = Trial(plant, subject)
    trial.run(units * plant.unit(WIDE))
    return subject, trial


# --- At rest ----------------------------------------------------------------------------------------


def _rested(probe: ControllerProbe, plant: Plant) -> Subject:
    """Return a controller that counts what it did when there was nothing to find any more."""
    subject, trial = _settled(probe, plant, units=_SETTLING / 2)
    subject.forget()
    trial.run(_SETTLING / 4 * plant.unit(WIDE))
    return subject


@_proves("quiet")
async def it_is_quiet_at_rest(probe: ControllerProbe) -> None:
    """With a queue that is never empty, and with one that nearly always is."""
    for plant in (FIXED_COST, _CALM):
        subject = _rested(probe, plant)
        most = subject.answers // 25
        got = f"{subject.moves}, the last to {shown(subject.settled)}: {subject.settled.reason}"
        probe.expect(subject.moves <= most, expected=f"at most {most} moves in {subject.answers} answers", got=got)


@_proves("probes-marked")
async def what_is_taken_back_was_a_probe(probe: ControllerProbe) -> None:
    """Moves that are undone as soon as they were made are counted."""
    subject = _rested(probe, FIXED_COST)
    most = max(1, subject.answers // 500)
    expected = f"at most {most} moves that are taken back within two answers, in {subject.answers}"
    probe.expect(subject.returns <= most, expected=expected, got=subject.returns)


@_proves("probes-rare")
async def probes_are_few(probe: ControllerProbe) -> None:
    """With a queue that is never empty, which is when there is something to find out."""
    subject = _rested(probe, FIXED_COST)
    most = 2 * subject.answers // 5
    expected = f"at most {most} probes in {subject.answers} answers"
    probe.expect(subject.probes <= most, expected=expected, got=subject.probes)


# --- When things go wrong ---------------------------------------------------------------------------


@_proves("refused-remembered", needs=["heeds_refusals"])
async def refusals_are_remembered(probe: ControllerProbe) -> None:
    """A long run before a service that refuses large batches, from a batch that is far too large."""
    subject, trial = _settled(probe, _PICKY, evolve(USUAL, batch_size=1000), units=_SETTLING / 2)
    stretch = trial.run(_SETTLING / 4 * _PICKY.unit(WIDE))
    most, least = stretch.calls // 20, int(_PICKY.largest) // 3
    got = f"{stretch.refused}, at {shown(subject.settled)}"
    probe.expect(stretch.refused <= most, expected=f"at most {most} refused of {stretch.calls} calls", got=got)
    size = subject.settled.batch_size
    probe.expect(size >= least, expected=f"batches of at least {least}", got=shown(subject.settled))


@_proves("failures", needs=["adapts"])
async def it_gives_way_to_failures(probe: ControllerProbe) -> None:
    """Every call fails, in the time that it usually takes."""
    subject, trial = _settled(probe, FIXED_COST, units=_SETTLING / 2)
    before, answers = subject.settled, subject.answers
    probe.trail.append("every call fails")
    trial.failing = True
    while subject.answers < answers + 60:
        trial.run(0.05)
    _has_halved(subject, before)


@_proves("collapse", needs=["watches"])
async def it_sees_a_collapse(probe: ControllerProbe) -> None:
    """All that is in flight hangs, and so does what is sent then."""
    subject, trial = _settled(probe, FIXED_COST, units=_SETTLING / 2)
    probe.expect(subject.watchful is not None, expected="tick()", got="there is none")
    before = subject.settled
    probe.trail.append("nothing answers any more")
    trial.silent = True
    trial.hang()
    trial.run(2.0)
    _has_halved(subject, before)


def _has_halved(subject: Subject, before: Limits) -> None:
    after = subject.settled
    held = 2 * after.batch_size * after.concurrency <= before.batch_size * before.concurrency
    subject.probe.expect(held, expected=f"half of {shown(before)} or less", got=f"{shown(after)}: {after.reason}")


@_proves("straggler", needs=["watches"])
async def one_call_is_no_collapse(probe: ControllerProbe) -> None:
    """The oldest call hangs; the others go on."""
    subject, trial = _settled(probe, FIXED_COST, units=_SETTLING / 2)
    before = subject.settled
    probe.trail.append("one call hangs")
    trial.hang(1)
    for _ in range(20):
        trial.run(0.1)
        after = subject.settled
        held = 2 * after.batch_size > before.batch_size and 2 * after.concurrency > before.concurrency
        probe.expect(held, expected=f"more than half of {shown(before)}", got=f"{shown(after)}: {after.reason}")


@_proves("load", needs=["heeds_load"])
async def it_yields_to_system_load(probe: ControllerProbe) -> None:
    """Load comes, and goes again."""
    subject, trial = _settled(probe, COSTLY_ITEMS)
    calm = subject.settled
    loaded, most = _under(subject, trial, 0.9), 2 * calm.batch_size // 3
    probe.expect(loaded.batch_size <= most, expected=f"batches of {most} or less under load", got=shown(loaded))
    again, least = _under(subject, trial, 0.0), 3 * calm.batch_size // 4
    probe.expect(again.batch_size >= least, expected=f"batches of {least} or more after it", got=shown(again))


def _under(subject: Subject, trial: Trial, pressure: float) -> Limits:
    subject.probe.trail.append(f"system load {pressure:g}")
    trial.pressure = pressure
    trial.run(10.0)
    return subject.settled


# --- What it finds ----------------------------------------------------------------------------------


@_proves("goal", needs=["keeps_goal"])
async def it_keeps_its_goal(probe: ControllerProbe) -> None:
    """A goal that the limits with the most items a second would miss."""
    goal, plant = 0.06, COSTLY_ITEMS
    _, trial = _settled(probe, plant, units=_SETTLING / 2, goal=Goal(p99=goal))
    stretch = trial.run(_SETTLING / 8 * plant.unit(WIDE))
    span, least = stretch.span(0.99), plant.most(WIDE, longest=goal / 2) / 3
    probe.expect(span <= goal, expected=f"99 of 100 calls within {goal:g} s", got=f"within {span:.3g} s")
    got = f"{stretch.rate:.0f} items a second"
    probe.expect(stretch.rate >= least, expected=f"at least {least:.0f} items a second", got=got)


@_proves("converges", needs=["adapts"])
async def it_finds_good_limits(probe: ControllerProbe) -> None:
    """Before each standard plant: two from far below, one from far above and one from the best."""
    small, large = Limits(16, 2, 0.0), Limits(1000, 40, 0.0)
    pairs = ((FIXED_COST, small), (COSTLY_ITEMS, small), (FEW_CALLS, large), (QUICK, QUICK.best(WIDE)))
    for plant, start in pairs:
        subject, trial = _settled(probe, plant, start)
        _does_well(subject, plant, trial.run(_SETTLING / 4 * plant.unit(WIDE)))


@_proves("reconverges", needs=["adapts"])
async def it_finds_good_limits_again(probe: ControllerProbe) -> None:
    """The best batch becomes a quarter of what it was, and then again four times as large."""
    subject, trial = _settled(probe, FIXED_COST, FIXED_COST.best(WIDE), units=_SETTLING / 2)
    for plant in (COSTLY_ITEMS, FIXED_COST):
        trial.plant = plant
        trial.run(_SETTLING * plant.unit(WIDE))
        _does_well(subject, plant, trial.run(_SETTLING / 4 * plant.unit(WIDE)))


def _does_well(subject: Subject, plant: Plant, stretch: Stretch) -> None:
    most = plant.most(WIDE)
    subject.probe.expect(
        stretch.rate >= _SHARE * most,
        expected=f"at least {_SHARE} of the {most:.0f} items a second that {shown(plant.best(WIDE))} do",
        got=f"{stretch.rate / most:.2f} of it, at {shown(subject.settled)}: {subject.settled.reason}",
    )
