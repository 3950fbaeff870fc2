"""What a pipeline is before it runs: a value of frozen records. Names and URLs in it are not resolved yet."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, TypeGuard, cast

from attrs import frozen

from forebay._handler import RunIn
from forebay._overflow import Backpressure
from forebay._retry import Retry
from forebay._types import Bounds, Goal, Limits
from forebay.abc import Controller, ControllerFactory, DeadLetterStore, Sink

Store: TypeAlias = DeadLetterStore | str
"""A store, or the name or URL by which a plugin knows one."""
Control: TypeAlias = str | Controller | ControllerFactory
"""The name of a controller, a controller, or what makes one."""

DEFAULT_CONTROL: Final = "fixed"
"""Who steers a stage that does not say."""
MOST_THREADS: Final = 64
"""Most calls in threads where somebody steers and the user names no bound."""
START_SIZE: Final = 128
"""Most items in a batch at first, where somebody steers and the user names no size."""


@frozen
class ControlSpec:
    """Who steers a stage, and within what."""

    control: Control
    goal: Goal | None
    bounds: Bounds
    start: Limits


def most_concurrency(run_in: RunIn) -> int:
    """Return how many calls may be in flight where somebody steers and the user names no bound."""
    if run_in == "process":
        return os.cpu_count() or 1
    return MOST_THREADS if run_in == "thread" else Bounds().max_concurrency


def is_controller(thing: object) -> TypeGuard[Controller]:
    """Return whether *thing* is a controller, and not the class of one."""
    return callable(getattr(thing, "observe", None)) and not isinstance(thing, type)


def control_spec(
    stage: str,
    control: object,
    goal: object,
    *,
    max_size: int | None,
    max_concurrency: int | None,
    usual_concurrency: int,
    most_concurrency: int,
    max_bytes: int | None = None,
) -> ControlSpec:
    """Return who steers *stage*; what the user named is both where it begins and the most it may come to.

    Args:
        stage: Name of the stage.
        control: What the user wrote.
        goal: What the user wrote.
        max_size: What the user wrote.
        max_concurrency: What the user wrote.
        usual_concurrency: Calls in flight at first where the user names none.
        most_concurrency: Most calls in flight where somebody steers and the user names none.
        max_bytes: Most bytes in a batch.

    Raises:
        TypeError: an argument is of the wrong kind, or `max_size` is missing.
        ValueError: the goal cannot be steered for.
    """
    if not (isinstance(control, str) or callable(control) or is_controller(control)):
        raise TypeError(
            f"control must be the name of a controller, a controller, or a function that makes one, "
            f"not {control!r:.100}"
        )
    if goal is not None and not isinstance(goal, Goal):
        raise TypeError(f"goal must be a Goal, not {goal!r:.100}; write goal=Goal(p99=0.2)")
    if control == "fixed":
        if goal is not None:
            raise ValueError(
                f"goal has no meaning for stage {stage!r}, whose control is 'fixed'; pass control='adaptive'"
            )
        if max_size is None:
            raise TypeError(
                f"max_size is missing for stage {stage!r}, whose control is 'fixed'; "
                f"pass max_size=…, or control='adaptive' to have it found"
            )
    elif goal is not None and is_controller(control) and not callable(getattr(control, "adjust", None)):
        raise ValueError(
            f"goal has no meaning for stage {stage!r}: {type(control).__name__} has no adjust() to be told of it; "
            f"pass a function that makes the controller"
        )
    calls = usual_concurrency if max_concurrency is None else max_concurrency
    most = calls if control == "fixed" or max_concurrency is not None else max(most_concurrency, calls)
    bounds = Bounds(max_concurrency=most) if max_size is None else Bounds(max_size=max_size, max_concurrency=most)
    start = Limits(min(bounds.max_size, START_SIZE) if max_size is None else max_size, calls, 0.0, max_bytes)
    return ControlSpec(cast("Control", control), goal, bounds, start)  # callable() cannot see what it returns


@frozen
class SourceSpec:
    """One source of a recipe."""

    source: object
    """An iterable, an async iterable, a `Source`, or a name or URL."""
    name: str
    in_thread: bool = False


@frozen
class InlineSpec:
    """A synchronous step that runs in the pump."""

    kind: str
    func: Callable[[Any], object]
    name: str
    retry: Retry | None = None
    dead_letters: Store | None = None


@frozen
class StageSpec:
    """A stage with a queue and workers of its own."""

    func: Callable[[Any], object] | Sink[Any] | str
    """A function, a `Sink`, or the name or URL of a sink."""
    name: str
    per_item: bool
    max_size: int
    """Most items in a batch; for functions of one item, most that a worker takes at once."""
    control: ControlSpec
    max_age: float = 0.05
    max_bytes: int | None = None
    weigh: Callable[[Any], int] | None = None
    capacity: int = 0
    backpressure: Backpressure = "wait"
    run_in: RunIn = "loop"
    time_limit: float | None = None
    retry: Retry | None = None
    dead_letters: Store | None = None
    idempotent: bool = False
    in_order: bool = False


@frozen
class ForkSpec:
    """Several branches that each get every item; always the last."""

    branches: Sequence[Sequence[Node]]
    name: str = "branch"


Node: TypeAlias = InlineSpec | StageSpec | ForkSpec


@frozen
class Recipe:
    """Sources and what happens to their items."""

    name: str
    sources: tuple[SourceSpec, ...]
    nodes: tuple[Node, ...] = ()
    retry: Retry | None = None
    dead_letters: Store | None = None
    max_gap: int = 65_536
    max_lane: int = 1_000
    max_blocked: int = 10_000


def count_leaves(nodes: Sequence[Node]) -> int:
    """Return how many ends there are."""
    last = nodes[-1] if nodes else None
    return sum(count_leaves(branch) for branch in last.branches) if isinstance(last, ForkSpec) else 1


def stores_of(recipe: Recipe) -> list[Store]:
    """Return all dead-letter stores that the recipe names, each once."""
    found: list[Store] = []

    def look(nodes: Sequence[Node]) -> None:
        for node in nodes:
            if isinstance(node, ForkSpec):
                for branch in node.branches:
                    look(branch)
            elif node.dead_letters is not None:
                found.append(node.dead_letters)

    if recipe.dead_letters is not None:
        found.append(recipe.dead_letters)
    look(recipe.nodes)
    return list({id(store) if not isinstance(store, str) else store: store for store in found}.values())
