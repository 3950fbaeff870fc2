"""Runs checks without pytest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import anyio
from attrs import frozen

from forebay.testing import BackendName, virtual_backend
from forebay_conformance._checks import Check
from forebay_conformance._failure import ConformanceFailure
from forebay_conformance._kinds import kind_named
from forebay_conformance._probe import Opener
from forebay_conformance._rules import Rule
from forebay_conformance._traits import Traits


@frozen
class Result:
    """What one check found on one backend."""

    rule: Rule
    backend: str
    status: Literal["passed", "failed", "off"]
    seconds: float
    failure: ConformanceFailure | None = None
    off: str | None = None
    """Why the rule does not apply."""


def run_checks(
    kind: str, opener: Opener, traits: Traits, /, *, backends: Sequence[BackendName] = ("asyncio", "trio")
) -> Iterator[Result]:
    """Run every check of *kind* in an event loop of its own and yield what it found.

    Call it where no event loop runs.
    """
    for backend in backends:
        for check in kind_named(kind).checks:
            yield run_check(check, opener, traits, backend)


def run_check(check: Check[Any], opener: Opener, traits: Traits, backend: BackendName, /) -> Result:
    """Run one check in an event loop of its own."""
    off = check.off(traits)
    if off is not None:
        return Result(check.rule, backend, "off", 0.0, off=off)
    name, options = virtual_backend(backend) if traits.virtual_time else (backend, {})
    started = time.perf_counter()
    try:
        anyio.run(check, opener, traits, backend=name, backend_options=options)
    except ConformanceFailure as failure:
        return Result(check.rule, backend, "failed", time.perf_counter() - started, failure=failure)
    return Result(check.rule, backend, "passed", time.perf_counter() - started)
