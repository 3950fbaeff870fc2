"""Suites: the checks as pytest classes, to be subclassed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

import pytest

from forebay import Bounds, Goal
from forebay.abc import Controller, DeadLetterStore, Limits, Sink, Source, StateStore
from forebay.testing import BackendName, virtual_backend
from forebay_conformance._checks import Check
from forebay_conformance._failure import ConformanceFailure
from forebay_conformance._header import Header
from forebay_conformance._kinds import KIND_LIST, Kind
from forebay_conformance._traits import (
    ControllerTraits,
    DeadLetterStoreTraits,
    SinkTraits,
    SourceTraits,
    StateStoreTraits,
    Traits,
)


class Suite(Traits):
    """Base of the suites: runs each check as a test, on asyncio and on Trio."""

    pytestmark = pytest.mark.anyio
    kind: ClassVar[Kind]

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
        """The backend that anyio's plugin runs a test on."""
        name: BackendName = request.param
        return virtual_backend(name) if self.virtual_time else name

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Refuse a suite without an opener, and have the header count this one."""
        name = self.kind.opener.partition("(")[0]
        if _is_ours(type(self), name):
            raise pytest.Collector.CollectError(
                f"{type(self).__name__} has no {self.kind.opener}; define it to return {self.kind.promise}"
            )
        Header.of(metafunc.config).count(type(self).__qualname__, self.kind, self)


def _is_ours(suite: type, method: str) -> bool:
    owner = next(each for each in suite.__mro__ if method in vars(each))
    return owner.__module__ == __name__


def _test(check: Check[Any], opener: str) -> Callable[[Any], Awaitable[None]]:
    async def test(self: Suite) -> None:
        off = check.off(self)
        if off is not None:
            pytest.skip(f"{check.rule.id} does not apply ({off})")
        try:
            await check(getattr(self, opener), self)
        except ConformanceFailure as failure:
            pytest.fail(failure.report(), pytrace=False)

    test.__doc__ = f"{check.rule.sentence}."
    return test


def _wired(suite: type[Suite]) -> None:
    for check in suite.kind.checks:
        name = f"test_{check.rule.name.replace('-', '_')}"
        test = _test(check, suite.kind.opener.partition("(")[0])
        test.__name__ = name
        test.__qualname__ = f"{suite.__qualname__}.{name}"
        setattr(suite, name, test)


class SourceSuite(SourceTraits, Suite):
    """Every rule for a source. Subclass it and define `open_source`."""

    kind = KIND_LIST["source"]

    def open_source(self, items: Sequence[Any], /) -> AbstractAsyncContextManager[Source[object]]:
        """Return a context manager that yields a source of exactly *items*, in order, and no more."""
        raise NotImplementedError


class SinkSuite(SinkTraits, Suite):
    """Every rule for a sink. Subclass it and define `open_sink`, `written` and `make_bad_item`."""

    kind = KIND_LIST["sink"]

    def open_sink(self) -> AbstractAsyncContextManager[Sink[Any]]:
        """Return a context manager that yields a sink into which nothing has been written."""
        raise NotImplementedError


class DeadLetterStoreSuite(DeadLetterStoreTraits, Suite):
    """Every rule for a dead-letter store. Subclass it and define `open_store`."""

    kind = KIND_LIST["dead-letter-store"]

    def open_store(self) -> AbstractAsyncContextManager[DeadLetterStore]:
        """Return a context manager that yields an empty dead-letter store."""
        raise NotImplementedError


class StateStoreSuite(StateStoreTraits, Suite):
    """Every rule for a state store. Subclass it and define `open_store`."""

    kind = KIND_LIST["state-store"]

    def open_store(self) -> AbstractAsyncContextManager[StateStore]:
        """Return a context manager that yields an empty state store."""
        raise NotImplementedError


class ControllerSuite(ControllerTraits, Suite):
    """Every rule for a controller. Subclass it and define `make_controller`."""

    kind = KIND_LIST["controller"]

    def make_controller(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> Controller:
        """Return a new controller that begins with *start*."""
        raise NotImplementedError


for _suite in (SourceSuite, SinkSuite, DeadLetterStoreSuite, StateStoreSuite, ControllerSuite):
    _wired(_suite)
