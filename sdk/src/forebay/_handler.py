"""Calls the user's function, wherever it runs: on the loop, in a thread, or in a process."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from time import perf_counter
from types import AsyncGeneratorType, CoroutineType
from typing import Any, Literal, NoReturn, TypeAlias

import anyio
from attrs import frozen

from forebay import _worker
from forebay._errors import HandlerContractError, TimeLimitError
from forebay._types import Again, Dropped, Failed, Offset
from forebay._watch import BLOCKED_SECONDS, LoopWatch

RunIn: TypeAlias = Literal["loop", "thread", "process"]
"""Where a synchronous function runs."""

Call: TypeAlias = Callable[[list[object]], Awaitable[object]]
"""Takes the items of a batch; returns a sequence of results, or `None`."""


@frozen
class BatchPart:
    """Items of a batch that came from one partition, in the order of the batch."""

    source: str
    partition: int
    epoch: int
    offsets: list[Offset]
    """One for each item; children of one parent repeat the parent's."""
    children: bool = False
    """Whether several items of the pipeline may stand for one offset, in this batch or in others (`flat_map`)."""
    acknowledges: bool = True
    """Whether the source keeps account of what it handed out.

    The offsets of a plain iterable, which does not, begin at 0 in every run.
    """
    branches: bool = False
    """Whether the items go down other branches too, where they may not be done yet."""


@frozen
class BatchContext:
    """What a handler may know about the call that it is in."""

    stage: str
    attempt: int
    """From 1; the highest of the batch's items."""
    maybe_done: bool
    """Whether an earlier attempt with any of these items was cut off, so that its effect may have happened."""
    parts: tuple[BatchPart, ...]
    """Where the items came from, in the order of the items. Empty for items that were submitted."""


_context: ContextVar[Callable[[], BatchContext | None] | None] = ContextVar("forebay_batch", default=None)


def current_batch() -> BatchContext:
    """Return what is known about the batch in hand; call it inside a handler.

    A sink uses the offsets to write each item once: they are the same when an item comes again.

    Raises:
        RuntimeError: no handler is running here.
    """
    describe = _context.get()
    context = None if describe is None else describe()
    if context is None:
        raise RuntimeError("current_batch() was called outside a handler; call it in a function given to a stage")
    return context


def set_context(describe: Callable[[], BatchContext | None]) -> None:
    """Let `current_batch` answer with *describe* in this task."""
    _context.set(describe)


def name_of(func: object) -> str:
    """Return what to call *func* in messages."""
    while isinstance(func, partial):
        func = func.func
    name = getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or type(func).__qualname__
    return str(name).replace("<locals>.", "")


def is_async(func: object) -> bool:
    """Return whether calling *func* gives something to await."""
    while isinstance(func, partial):
        func = func.func
    # Of the type: what a class's own `__call__` is says how its instances are called.
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(type(func), "__call__", None))  # noqa: B004  # not asked whether it can be called


def build_call(
    func: Callable[[Any], Any], *, name: str, per_item: bool, run_in: RunIn, time_limit: float | None
) -> Call:
    """Return how a stage calls *func*: with a whole batch, or item by item where it is a function of one item."""
    if is_async(func):
        return _items_async(func, name, time_limit) if per_item else _limited(func, name, time_limit)
    if per_item:
        func = partial(_each, func, name)
    if run_in == "loop":
        return _inline(func, name)
    if run_in == "thread":
        return _limited(_in_thread(func, name), name, time_limit)
    return _limited(_in_process(func), name, time_limit)


def _in_thread(func: Callable[[object], object], name: str) -> Call:
    async def call(items: list[object]) -> object:
        return await _worker.run_in_thread(func, items, name=name)

    return call


def _in_process(func: Callable[[object], object]) -> Call:
    async def call(items: list[object]) -> object:
        return await _worker.run_in_process(func, items)

    return call


def _inline(func: Callable[[object], object], name: str) -> Call:
    watch = LoopWatch(f"{name}()", "pass run_in='thread' or run_in='process' to move it off the loop")

    async def call(items: list[object]) -> object:
        started = perf_counter()
        try:
            return func(items)
        finally:
            seconds = perf_counter() - started
            if seconds > BLOCKED_SECONDS:
                watch.held(seconds, len(items))
            else:
                watch.passed()

    return call


def _limited(
    call: Callable[[Any], Awaitable[object]], name: str, time_limit: float | None
) -> Callable[[Any], Awaitable[object]]:
    """Bound *call* by the stage's time limit."""
    if time_limit is None:
        return call

    async def limited(argument: object) -> object:
        with anyio.move_on_after(time_limit) as scope:
            return await call(argument)
        if scope.cancelled_caught:
            raise TimeLimitError(f"{name}() was cut off at its time limit of {time_limit:g} s")
        raise AssertionError("unreachable")  # pragma: no cover -- the block returns, raises or is cancelled

    return limited


def _items_async(func: Callable[[Any], Awaitable[object]], name: str, time_limit: float | None) -> Call:
    """Await *func* for one item after the other; concurrency comes from the stage's workers."""
    one = _limited(func, name, time_limit)

    async def call(items: list[object]) -> object:
        results: list[object] = []
        for item in items:
            try:
                result = await one(item)
                if type(result) in _NOT_RESULTS:
                    refuse_unawaited(name, result)
                results.append(result)
            except Exception as error:
                if isinstance(error, HandlerContractError):
                    raise
                results.append(Failed(error))
        return results

    return call


_NOT_RESULTS = frozenset({CoroutineType, AsyncGeneratorType})


def refuse_unawaited(name: str, result: object) -> NoReturn:
    """Raise because an async function handed on something that it should have awaited."""
    if isinstance(result, CoroutineType):
        result.close()
        raise HandlerContractError(f"{name}() returned a coroutine that nobody awaited; write `return await ...` in it")
    raise HandlerContractError(
        f"{name}() is an async generator, which yields and returns nothing; return the result, or a list for flat_map"
    )


def _each(func: Callable[[object], object], name: str, items: list[object]) -> object:
    """Call *func* for each item, in whatever thread or process this is."""
    results: list[object] = []
    for item in items:
        try:
            results.append(func(item))
        except Exception as error:
            results.append(Failed(error))
    if results and inspect.iscoroutine(results[-1]):
        for result in results:
            if inspect.iscoroutine(result):
                result.close()
        raise HandlerContractError(returned_coroutine(name))
    return results


def returned_coroutine(name: str) -> str:
    """Return the sentence about a plain function that gave a coroutine."""
    return f"{name}() is a plain function that returned a coroutine, so nothing would await it; pass the async function"


OUTCOMES = frozenset({Failed, Again, Dropped})
"""Types that stand for something else than a result."""
