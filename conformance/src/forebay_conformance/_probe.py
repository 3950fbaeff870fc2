"""What a check holds in its hand: the opener, what was called so far, and a deadline for every call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Generic, NoReturn, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
from attrs import define, field, frozen

from forebay_conformance._failure import ConformanceFailure, described
from forebay_conformance._rules import Rule
from forebay_conformance._traits import Traits

T = TypeVar("T")
TraitsT = TypeVar("TraitsT", bound=Traits)

Opener: TypeAlias = Callable[..., Any]  # Any: each kind's probe says what it opens
"""What a user hands over: it returns a context manager that yields the plugin's object, or a controller itself."""


@frozen
class Cut:
    """Where a call is cut off."""

    waits: int = 0
    """At which of its own waits, from 1; 0: before it starts, unless `turns` is set."""
    turns: int = 0
    """After how many turns of the event loop, whatever the call's own tasks and threads are doing."""

    def __str__(self) -> str:
        if self.turns:
            return f"after {self.turns} turns of the event loop"
        return f"at wait {self.waits}" if self.waits else "before it starts"


CUTS: Sequence[Cut] = (
    *(Cut(waits=waits) for waits in range(24)),
    *(Cut(turns=turns) for turns in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377)),
)
"""Where calls are cut off, one after the other; a call that is over by then has its result."""


@define
class Probe(Generic[TraitsT]):
    """One check's view of a plugin."""

    opener: Opener
    traits: TraitsT
    rule: Rule
    trail: list[str] = field(factory=list[str])

    def did(self) -> str:
        """Return the last calls in order."""
        last = self.trail[-6:]
        return "; ".join(["..."] * (len(self.trail) > len(last)) + last)

    def fail(self, *, expected: str, got: object, cause: BaseException | None = None) -> NoReturn:
        """Raise the failure of this check."""
        text = got if isinstance(got, str) else repr(got)
        raise ConformanceFailure(self.rule, did=self.did(), expected=expected, got=text) from cause

    def expect(self, held: bool, /, *, expected: str, got: object) -> None:
        """Fail unless *held*."""
        if not held:
            self.fail(expected=expected, got=got)

    async def call(self, text: str, function: Callable[[], Awaitable[T]], /) -> T:
        """Await `function()` under the deadline; *text* is how the call reads."""
        self.trail.append(text)
        with anyio.move_on_after(self.traits.patience) as scope:
            try:
                return await function()
            except ConformanceFailure:
                raise
            except Exception as error:
                self.fail(expected=f"{text} to return", got=f"it raised {described(error)}", cause=error)
        assert scope.cancelled_caught  # a scope that was not cancelled has returned or raised
        self.fail(expected=f"an answer within {self.traits.patience:g} s", got="none yet")

    async def refused(self, text: str, error: type[Exception], function: Callable[[], Awaitable[object]], /) -> None:
        """Await `function()`, which must raise *error*."""
        self.trail.append(text)
        with anyio.move_on_after(self.traits.patience) as scope:
            try:
                got = repr(await function())
            except error:
                return
            except Exception as other:
                self.fail(expected=error.__name__, got=f"it raised {described(other)}", cause=other)
            self.fail(expected=error.__name__, got=f"it returned {got}")
        assert scope.cancelled_caught
        self.fail(expected=error.__name__, got=f"no answer within {self.traits.patience:g} s")

    @asynccontextmanager
    async def opened(self, *arguments: object) -> AsyncGenerator[Any]:
        """Open the plugin's object for the length of the block."""
        self.trail.append("open")
        async with self.opener(*arguments) as thing:
            yield thing


async def cut(where: Cut, function: Callable[[], Awaitable[T]], /) -> list[T]:
    """Await `function()` and cancel it there.

    Returns its result in a list, or an empty list when it was cut off.
    A call that waits and is not there after a second is cut off then.
    """
    finished: list[T] = []
    failed: list[Exception] = []
    async with anyio.create_task_group() as group:
        scope = group.cancel_scope
        scope.deadline = anyio.current_time() + 1.0
        if where.turns:
            group.start_soon(_cancel_after, where.turns, scope)
        elif not where.waits:
            scope.cancel()
        try:
            finished.append(await _Counted(function(), where.waits, scope))
        except Exception as error:
            failed.append(error)
        scope.cancel()
    if failed:
        raise failed[0]
    return finished


async def _cancel_after(turns: int, scope: anyio.CancelScope) -> None:
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


@define(eq=False)
class _Counted(Generic[T]):
    """Awaits *awaitable* and cancels *scope* in the moment in which it waits for the given time.

    The cancellation meets the call exactly there on both backends. One by another task would come a turn early or
    late, since Trio orders its tasks by chance.
    """

    awaitable: Awaitable[T]
    wait: int
    scope: anyio.CancelScope

    def __await__(self) -> Generator[Any, Any, T]:  # Any: what a backend's event loop and its tasks say to each other
        inner = self.awaitable.__await__()
        resume: Callable[[], Any] = partial(next, inner)
        while True:
            try:
                trap = resume()
            except StopIteration as stop:
                result: T = stop.value
                return result
            self.wait -= 1
            if self.wait == 0:
                self.scope.cancel()
            try:
                resume = partial(inner.send, (yield trap))
            except BaseException as error:  # handed on, cancellation included
                resume = partial(inner.throw, error)


async def at_once(functions: Sequence[Callable[[], Awaitable[T]]], /) -> list[T]:
    """Await all *functions* at the same time and return their results in order; the first failure is raised bare."""
    results: dict[int, T] = {}
    failed: list[Exception] = []

    async def run(index: int, function: Callable[[], Awaitable[T]]) -> None:
        try:
            results[index] = await function()
        except Exception as error:
            failed.append(error)

    async with anyio.create_task_group() as group:
        for index, function in enumerate(functions):
            group.start_soon(run, index, function)
    if failed:
        raise failed[0]
    return [results[index] for index in range(len(functions))]
