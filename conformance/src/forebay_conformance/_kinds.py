"""All checks by kind of plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from attrs import frozen

import forebay_conformance._controller_checks as _controller_checks
import forebay_conformance._controller_trials as _controller_trials
import forebay_conformance._dead_letter_checks as _dead_letter_checks
import forebay_conformance._dead_letter_views as _dead_letter_views
import forebay_conformance._source_fetch as _source_fetch
import forebay_conformance._source_settle as _source_settle
from forebay_conformance._checks import Check, CheckList
from forebay_conformance._controller_probe import CONTROLLER_CHECKS
from forebay_conformance._dead_letter_probe import DEAD_LETTER_CHECKS
from forebay_conformance._rules import KINDS, rules_of
from forebay_conformance._sink_checks import SINK_CHECKS
from forebay_conformance._source_probe import SOURCE_CHECKS
from forebay_conformance._state_checks import STATE_CHECKS
from forebay_conformance._traits import (
    ControllerTraits,
    DeadLetterStoreTraits,
    SinkTraits,
    SourceTraits,
    StateStoreTraits,
    Traits,
)

__all__ = ["KIND_LIST", "Kind", "kind_named"]

# Importing a module of checks fills its list.
_FILLED = (
    _source_fetch,
    _source_settle,
    _dead_letter_checks,
    _dead_letter_views,
    _controller_checks,
    _controller_trials,
)


@frozen
class Kind:
    """One kind of plugin: its rules, their checks, and what a user defines for them."""

    name: str
    checks: Sequence[Check[Any]]  # Any: each kind has a probe of its own
    """In the order of the rules."""
    traits: type[Traits]
    opener: str
    """Name of the method that a suite of this kind needs."""
    promise: str
    """What that method returns, in words."""
    is_factory: bool = False
    """Whether it returns the plugin itself: a class that makes one will do for it."""

    @property
    def words(self) -> str:
        """The name in words."""
        return KINDS[self.name]


def _kind(listed: CheckList[Any], traits: type[Traits], opener: str, yields: str = "", *, returns: str = "") -> Kind:
    checks = [listed.checks[rule.id] for rule in rules_of(listed.kind) if rule.id in listed.checks]
    promise = returns or f"an async context manager that yields {yields}"
    return Kind(listed.kind, checks, traits, opener, promise, is_factory=bool(returns))


KIND_LIST: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            _kind(
                SOURCE_CHECKS,
                SourceTraits,
                "open_source(items)",
                "a source of exactly these items, in order, and no more",
            ),
            _kind(SINK_CHECKS, SinkTraits, "open_sink()", "a sink into which nothing has been written"),
            _kind(DEAD_LETTER_CHECKS, DeadLetterStoreTraits, "open_store()", "an empty dead-letter store"),
            _kind(STATE_CHECKS, StateStoreTraits, "open_store()", "an empty state store"),
            _kind(
                CONTROLLER_CHECKS,
                ControllerTraits,
                "make_controller(*, bounds, goal, start)",
                returns="a new controller that begins with start",
            ),
        )
    }
)
"""Each kind by its name."""


def kind_named(name: str, /) -> Kind:
    """Return the kind called *name*."""
    if name not in KIND_LIST:
        raise ValueError(f"kind must be one of {', '.join(KIND_LIST)}, not {name!r}")
    return KIND_LIST[name]
