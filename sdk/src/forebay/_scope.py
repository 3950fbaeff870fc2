"""Deadlines, drain and shut-down for a block of code and the tasks it started."""

# The functions of this module are the other half of `Scope`.
# pyright: reportPrivateUsage=false
from __future__ import annotations

import math
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVarTuple

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus

Ts = TypeVarTuple("Ts")

_innermost: ContextVar[Scope | None] = ContextVar("forebay_scope", default=None)


@attrs.define(eq=False, repr=False)
class Scope:
    """A block of code with its child tasks, which can be drained or cut off.

    Its methods are for the event loop's own thread.
    A scope that has ended keeps `draining`, `cancelled` and `reason`; `drain` and `cancel` do nothing to it.
    """

    name: str
    """Name for people to read."""
    _drain_timeout: float
    _deadline: float
    _drain_at: float
    _parent: Scope | None
    _tasks: TaskGroup
    _cancel_scope: anyio.CancelScope
    _watches_signals: bool
    _children: dict[Scope, None] = attrs.field(init=False, factory=dict["Scope", None])
    _drain_event: anyio.Event = attrs.field(init=False, factory=anyio.Event)
    _reason: str | None = attrs.field(init=False, default=None)
    _cancelled: bool = attrs.field(init=False, default=False)
    _ended: bool = attrs.field(init=False, default=False)

    def start_soon(
        self, func: Callable[[*Ts], Coroutine[Any, Any, object]], /, *args: *Ts, name: str | None = None
    ) -> None:
        """Start `func(*args)` as a child task; the block does not end before it has.

        If the child raises, the body and the other children are cancelled.

        Raises:
            RuntimeError: the scope has ended.
        """
        if self._ended:
            raise RuntimeError(f"scope {self.name!r} has ended; call start_soon() inside its block")
        self._tasks.start_soon(func, *args, name=name)

    def drain(self, reason: str = "drain") -> None:
        """Ask the body and the children to finish; what is left `drain_timeout` seconds from now is cancelled.

        Nested scopes drain too, and are cut off with this one at the latest; the scopes around it are left alone.
        Calling it again changes nothing: the first reason and the first deadline are kept.
        """
        if not self._ended and not self._drain_event.is_set():
            self._begin_drain(reason)

    def cancel(self, reason: str = "cancel") -> None:
        """Cut off the body and the children at their next checkpoint.

        It counts as draining too. The reason is kept only if none was given before.
        """
        if not self._ended:
            self.drain(reason)
            self._cancel_scope.cancel(reason)

    @property
    def draining(self) -> bool:
        """Whether the scope has been told to finish, by `drain`, `cancel`, its deadline or a scope around it."""
        return self._drain_event.is_set() or (not self._ended and self._drain_time_has_come())

    @property
    def cancelled(self) -> bool:
        """Whether this scope or one around it has been cut off, by `cancel`, by a drain's end or by a deadline."""
        if self._ended:
            return self._cancelled
        return any(scope._cancel_scope.cancel_called for scope in self._open_chain())

    @property
    def reason(self) -> str | None:
        """Why the scope drains: what the first caller said, or `deadline`."""
        return self._reason or ("deadline" if self.draining else None)

    @property
    def deadline(self) -> float:
        """Time on the loop's clock by which everything is gone; `math.inf` if there is none."""
        return self._deadline

    @property
    def drain_deadline(self) -> float:
        """Time on the loop's clock at which the drain is cut off; `math.inf` while not draining."""
        return self._cut() if self.draining else math.inf

    def remaining(self) -> float:
        """Return the seconds until this scope or one around it is cut off as things stand, 0.0 at least."""
        return 0.0 if self.cancelled else max(0.0, self._cut() - anyio.current_time())

    async def wait_draining(self) -> None:
        """Wait until draining starts."""
        with anyio.CancelScope(deadline=self._drain_at):
            await self._drain_event.wait()
        self.drain("deadline")

    def _drain_time_has_come(self) -> bool:
        # The common scope has no deadline and does not pay for the clock.
        return self._drain_at < math.inf and anyio.current_time() >= self._drain_at

    def _open_chain(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            if not scope._ended:
                yield scope
            scope = scope._parent

    def _cut(self) -> float:
        return min((scope._cancel_scope.deadline for scope in self._open_chain()), default=math.inf)

    def _begin_drain(self, reason: str) -> None:
        self._reason = self.reason or reason
        self._drain_event.set()
        # Only the own time: that of an outer scope comes from its own cancel scope, and stops at shields as it should.
        cut = anyio.current_time() + self._drain_timeout
        if cut < self._cancel_scope.deadline:
            self._cancel_scope.deadline = cut
        for child in tuple(self._children):
            child.drain(self._reason)

    def _end(self) -> None:
        if self.draining:
            self._reason = self.reason
            self._drain_event.set()
        self._cancelled = self.cancelled
        self._ended = True
        if self._parent is not None:
            self._parent._children.pop(self, None)

    def __repr__(self) -> str:
        """Show the name and where the scope stands."""
        state = "cancelled" if self.cancelled else "draining" if self.draining else "open"
        return f"<Scope {self.name!r} {'ended' if self._ended and state == 'open' else state}>"


@asynccontextmanager
async def open_scope(
    *, drain_timeout: float = 10.0, deadline: float | None = None, signals: bool = False, name: str = "scope"
) -> AsyncGenerator[Scope]:
    """Open a block that ends in bounded time: after its deadline, after a drain, or at once.

        async with open_scope(drain_timeout=10, signals=True) as scope:
            scope.start_soon(serve_metrics)
            while not scope.draining:
                await handle_one()

    The block ends when the body and all children have ended.
    *Draining* asks them to end: they look at `Scope.draining` or wait with `Scope.wait_draining`,
    and what is not done `drain_timeout` seconds later is cancelled.

    Scopes nest, also across function calls: one that is opened inside another takes over its deadline if that is
    earlier, and drains when the outer one drains. An inner scope that drains or is cancelled leaves the outer alone.

    A cancellation of the scope's own ends with its block, and `Scope.cancelled` tells of it afterwards.
    A cancellation from outside (a cancel scope around it, `Task.cancel`, `asyncio.timeout`) passes through.
    An exception of the body, or of a single child, leaves the block as it was raised, not in a group;
    several exceptions leave as an `ExceptionGroup`.

    Args:
        drain_timeout: Seconds that a drain may take, `math.inf` for as long as it needs.
        deadline: Seconds from now after which everything is cancelled. Draining starts *drain_timeout* before,
            at once if there is not so much time.
        signals: Drain at the first SIGTERM or SIGINT and cancel at the second; a third does what it did before the
            block. An outer scope that does so already goes on doing it for both.
        name: Name for people to read.

    Raises:
        RuntimeError: *signals* outside the main thread, where Python delivers none.
    """
    _check_seconds("drain_timeout", drain_timeout)
    if deadline is not None:
        _check_seconds("deadline", deadline)
    parent = _open_ancestor()
    watched = parent is not None and parent._watches_signals
    async with _open_watchers(name, needed=signals and not watched) as watchers:
        async with _open_block(parent, drain_timeout, deadline, signals or watched, name) as scope:
            if watchers is not None:
                await watchers.start(_watch_signals, scope)
            yield scope


@asynccontextmanager
async def _open_block(
    parent: Scope | None, drain_timeout: float, deadline: float | None, watches: bool, name: str
) -> AsyncGenerator[Scope]:
    cancel_scope, tasks = anyio.CancelScope(), anyio.create_task_group()
    scope = _new_scope(parent, drain_timeout, deadline, watches, name, tasks, cancel_scope)
    try:
        with cancel_scope:
            async with tasks:
                token = _innermost.set(scope)
                try:
                    yield scope
                finally:
                    _innermost.reset(token)
    except BaseExceptionGroup as group:
        raise_bare(group)
    finally:
        scope._end()


def _new_scope(
    parent: Scope | None,
    drain_timeout: float,
    deadline: float | None,
    watches: bool,
    name: str,
    tasks: TaskGroup,
    cancel_scope: anyio.CancelScope,
) -> Scope:
    gone_at = drain_at = cut = math.inf
    if deadline is not None or parent is not None:
        now = anyio.current_time()
        if deadline is not None and deadline < math.inf:
            gone_at = now + deadline
            drain_at = gone_at - drain_timeout
        if parent is not None:
            drain_at = min(drain_at, parent._drain_at)
        cut = min(gone_at, max(drain_at, now) + drain_timeout)
    if cut < math.inf:
        cancel_scope.deadline = cut
    if parent is not None:
        gone_at = min(gone_at, parent._deadline)
    scope = Scope(name, drain_timeout, gone_at, drain_at, parent, tasks, cancel_scope, watches)
    if parent is not None:
        parent._children[scope] = None
        if parent.draining:
            scope.drain(parent.reason or "drain")
    return scope


def _check_seconds(argument: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{argument} must be 0 or more seconds, not {value}")


def _open_ancestor() -> Scope | None:
    # A task that was started from inside a scope but in a task group around it may outlive that scope.
    scope = _innermost.get()
    while scope is not None and scope._ended:
        scope = scope._parent
    return scope


@asynccontextmanager
async def _open_watchers(name: str, *, needed: bool) -> AsyncGenerator[TaskGroup | None]:
    if not needed:
        yield None
        return
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            f"signals=True of scope {name!r} works in the main thread only, not in "
            f"{threading.current_thread().name!r}; leave it out and call drain() yourself"
        )
    try:
        async with anyio.create_task_group() as watchers:
            yield watchers
            watchers.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise_bare(group)


async def _watch_signals(scope: Scope, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        scope.drain((await anext(received)).name)
        scope.cancel((await anext(received)).name)


def raise_bare(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Raise the only exception in *group* as itself; several leave as the group."""
    failure = group.exceptions[0] if len(group.exceptions) == 1 else group
    context = failure.__context__
    try:
        raise failure
    finally:
        # `raise` has made the group its own member's context.
        failure.__context__ = context
        del failure, context, group
