"""The scenarios of the control benchmark, and scenarios drawn at random.

The first nine are the kinds that have bars (`control_judge.BARS`); the others look where those do not.
"""

from __future__ import annotations

import math
import random

import attrs

from forebay._types import Limits
from tests.benchmarks.control_plant import Phase, Plant, Scenario

USUAL = Plant(fixed=0.03, per_item=0.00022, knee=14, memory=400)
"""Carries most with about 400 items in 14 calls: more than the common default, and nothing absurd."""
BULKY = Plant(fixed=0.1, per_item=0.00008, knee=5, memory=2000)
"""Wants large batches and few calls."""
NIMBLE = Plant(fixed=0.004, per_item=0.0015, knee=36, memory=40)
"""Wants small batches and many calls."""
SINK = Plant(fixed=0.001, per_item=0.000002, knee=math.inf, noise=0.05)
"""Answers at once whatever else it does: batches alone help."""


def _changed(plant: Plant, **factors: float) -> Plant:
    """Return *plant* with the named figures multiplied."""
    return attrs.evolve(plant, **{name: getattr(plant, name) * factor for name, factor in factors.items()})


def _with_bars() -> list[Scenario]:
    dim = Plant(fixed=0.08, per_item=0.0005, knee=3, memory=260)
    leaking = attrs.evolve(USUAL, fixed=0.06, per_item=0.0007, memory=110)
    brittle = Plant(fixed=0.012, per_item=0.0012, knee=5, memory=160, collapse=1.0)
    regimes = [
        (USUAL, 0.75),
        (Plant(fixed=0.25, per_item=0.00006, knee=5, memory=2500), 0.75),
        (Plant(fixed=0.005, per_item=0.001, knee=20, memory=80), 0.75),
        (Plant(fixed=0.04, per_item=0.0005, knee=3, memory=200), 0.75),
        (Plant(fixed=0.012, per_item=0.00012, knee=40, memory=350), 0.5),
    ]
    return [
        Scenario("steady", [Phase(90, USUAL, load=0.7)]),
        Scenario("shift10", [Phase(40, plant, load=0.8) for plant in (BULKY, NIMBLE, BULKY, NIMBLE)]),
        Scenario("overload", [Phase(40, USUAL, load=load) for load in (0.6, 1.5, 0.6)]),
        Scenario("bursty", [Phase(120, USUAL, load=0.5, burst=(12, 2.5, 3))]),
        Scenario("brownout", [Phase(40, USUAL, load=0.6), Phase(40, dim, load=0.9), Phase(40, USUAL, load=0.6)]),
        Scenario("leak", [Phase(150, USUAL, load=0.35, until=leaking), Phase(30, USUAL, load=0.35)]),
        Scenario("noisy", [Phase(90, attrs.evolve(USUAL, noise=0.5, slow_share=0.02), load=0.7)]),
        Scenario("coldcollapse", [Phase(60, brittle, load=1.1)]),
        Scenario("regimes", [Phase(20, plant, load=load) for plant, load in regimes], goal=1.0, time_limit=2.0),
    ]


def _changes() -> list[Scenario]:
    """Return scenarios in which the downstream or the load changes."""
    rate = 0.45 * USUAL.capacity(0.5)
    pinched = _changed(USUAL, knee=0.25)
    hogged = _changed(NIMBLE, per_item=2.5)
    calm = 0.3 * NIMBLE.capacity(0.5)
    ceilings = [attrs.evolve(USUAL, largest=largest) for largest in (300, 60, 180)]
    return [
        Scenario("fixed-cost", [Phase(30, _changed(USUAL, fixed=factor), rate=rate) for factor in (1, 4, 1, 0.25)]),
        Scenario("ceiling", [Phase(30, plant, load=0.6) for plant in ceilings]),
        Scenario("quarter", [Phase(s, p, rate=1.1 * rate) for s, p in ((40, USUAL), (20, pinched), (40, USUAL))]),
        Scenario("diurnal", [Phase(160, USUAL, load=0.6, wave=(0.8, 80))]),
        Scenario(
            "narrowing",
            [
                Phase(80, USUAL, rate=0.4 * rate, until=pinched),
                Phase(80, pinched, rate=0.4 * rate, until=USUAL),
            ],
        ),
        Scenario(
            "silence",
            [Phase(60, USUAL, load=0.6, hiccup=(15, 0.6)), Phase(60, USUAL, load=0.6, hiccup=(20, 3.0))],
        ),
        Scenario(
            "hog",
            [
                Phase(30, NIMBLE, rate=calm),
                Phase(30, hogged, rate=calm, pressure=0.9),
                Phase(30, NIMBLE, rate=calm),
            ],
        ),
    ]


def _corners() -> list[Scenario]:
    """Return scenarios at the edges of what a stage is used for."""
    slow = Plant(fixed=1.2, per_item=0.004, knee=8, memory=200)
    mixed = attrs.evolve(USUAL, heavy_share=0.02, heavy_weight=50, largest=900)
    return [
        Scenario("few-calls", [Phase(80, Plant(fixed=0.03, per_item=0.0004, knee=2, memory=200), load=0.7)]),
        Scenario("slow-calls", [Phase(240, slow, load=0.7)], goal=8.0, time_limit=20.0, tick=0.05, settle=40.0),
        _closed("fast-sink", SINK),
        _closed("slower-sink", _changed(SINK, fixed=10, per_item=10)),
        Scenario("brisk", [Phase(6, SINK, rate=50_000)], goal=0.006, max_concurrency=16, tick=0.0005, settle=0.5),
        Scenario("trickle", [Phase(90, USUAL, load=0.01)]),
        Scenario("mixed-sizes", [Phase(90, mixed, load=0.6)]),
        Scenario("two-paces", [Phase(90, attrs.evolve(USUAL, slow_share=0.25, slow_factor=4), load=0.5)], goal=1.0),
        Scenario("failing", [Phase(90, attrs.evolve(USUAL, failing=0.2), load=0.6)]),
        Scenario("from-above", [Phase(80, NIMBLE, load=0.7)], start=Limits(3000, 128, 0.0)),
        Scenario("from-below", [Phase(80, BULKY, load=0.7)], start=Limits(1, 1, 0.0)),
    ]


def _closed(name: str, plant: Plant) -> Scenario:
    return Scenario(
        name, [Phase(5, plant)], goal=None, time_limit=30.0, max_concurrency=16, closed=True, tick=0.01, settle=0.5
    )


SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (*_with_bars(), *_changes(), *_corners())}


# --- Drawn at random ---------------------------------------------------------------------------

BUSIEST = 600.0
"""Most calls a second of a drawn plant at its knee: a drawn run takes well below a second."""


def drawn(seed: int) -> Scenario:
    """Return a scenario that follows from *seed* alone."""
    chance = random.Random(f"scenario {seed}")
    goal = _between(chance, 0.3, 2.0)
    plant = _draw_plant(chance, goal)
    phases: list[Phase] = []
    for _ in range(chance.randint(1, 3)):
        if phases and chance.random() < 0.7:
            plant = _draw_plant(chance, goal)
        phases.append(_draw_phase(chance, plant, goal))
    start = _draw_start(chance, chance.choice(phases).plant, goal)
    return Scenario(f"drawn-{seed}", phases, goal=goal, time_limit=goal * chance.uniform(1.5, 4.0), start=start)


def _rarely(chance: random.Random) -> bool:
    """Return whether one more thing is wrong: one or two at a time in most scenarios."""
    return chance.random() < 1 / 8


def _draw_start(chance: random.Random, plant: Plant, goal: float) -> Limits:
    """Return a start that suits *plant* in half of the draws, hard to better, and anything else in the others."""
    size, calls = _between(chance, 1, 1000), _between(chance, 1, 64)
    if chance.random() < 0.5:
        size, calls = plant.best_size(goal) * _between(chance, 0.5, 1.1), plant.knee * _between(chance, 0.7, 1.4)
    return Limits(max(1, round(size)), max(1, round(calls)), chance.choice((0.0, 0.01, 0.05)))


def _between(chance: random.Random, low: float, high: float) -> float:
    """Return a draw whose logarithm is uniform."""
    return math.exp(chance.uniform(math.log(low), math.log(high)))


def _draw_plant(chance: random.Random, goal: float) -> Plant:
    """Return a plant that does a single item well within *goal*."""
    while True:
        plant = _any_plant(chance, goal)
        if plant.mean_seconds(plant.weight(1), plant.knee) < goal / 4:
            return plant


def _any_plant(chance: random.Random, goal: float) -> Plant:
    knee = _between(chance, 1, 48)
    fixed = max(_between(chance, 0.003, 0.15 * goal), knee / BUSIEST)
    memory = _between(chance, 10, 2000)
    per_item = fixed * _between(chance, 0.1, 8) / memory
    heavy_weight = chance.uniform(5, 50)
    largest = max(memory * chance.uniform(0.3, 2.0), 2 * heavy_weight)  # no item is refused alone
    return Plant(
        fixed=fixed,
        per_item=per_item,
        knee=knee,
        memory=memory,
        collapse=chance.uniform(0.0, 1.0),
        noise=_between(chance, 0.02, 0.5),
        slow_share=_between(chance, 0.005, 0.2) if _rarely(chance) else 0.0,
        slow_factor=chance.uniform(2, 10),
        failing=_between(chance, 0.005, 0.2) if _rarely(chance) else 0.0,
        largest=largest if _rarely(chance) else math.inf,
        heavy_share=_between(chance, 0.005, 0.1) if _rarely(chance) else 0.0,
        heavy_weight=heavy_weight,
    )


def _draw_phase(chance: random.Random, plant: Plant, goal: float) -> Phase:
    worse = _changed(plant, fixed=chance.uniform(0.5, 3), per_item=chance.uniform(0.5, 3), knee=chance.uniform(0.3, 2))
    return Phase(
        seconds=chance.randint(20, 50),
        plant=plant,
        load=chance.uniform(0.2, 1.2),
        until=worse if _rarely(chance) else None,
        burst=(10, 2, chance.uniform(2, 4)) if _rarely(chance) else None,
        wave=(chance.uniform(0.2, 0.9), chance.uniform(20, 60)) if _rarely(chance) else None,
        hiccup=(chance.uniform(8, 20), goal * chance.uniform(0.2, 3)) if _rarely(chance) else None,
        pressure=chance.uniform(0.2, 0.9) if _rarely(chance) else 0.0,
    )
