"""What a pipeline is before it runs: a value of frozen records. Names and URLs in it are not resolved yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from attrs import frozen

from forebay._handler import RunIn
from forebay._retry import Retry
from forebay.abc import DeadLetterStore, Sink

Store: TypeAlias = DeadLetterStore | str
"""A store, or the name or URL by which a plugin knows one."""


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
    max_concurrency: int
    max_age: float = 0.05
    max_bytes: int | None = None
    weigh: Callable[[Any], int] | None = None
    capacity: int = 0
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
