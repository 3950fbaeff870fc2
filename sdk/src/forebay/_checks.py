"""Checks of what a user typed, made where it was typed."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from types import NoneType
from typing import Any, TypeGuard, get_args, get_type_hints

from forebay._handler import RunIn, is_async, name_of
from forebay._overflow import POLICIES, Backpressure
from forebay._retry import Retry
from forebay._worker import check_picklable
from forebay.abc import Sink, Source

ASYNC_CONCURRENCY = 16
"""Calls of an async function of one item that may be in flight, unless the stage says otherwise."""
THREADS = 8
"""The same for functions that run in threads."""


def is_sink(thing: object) -> TypeGuard[Sink[Any]]:
    """Return whether *thing* is a sink; an open file, which has a plain `write`, is not."""
    return is_async(getattr(thing, "write", None)) and not isinstance(thing, type)


def is_source(thing: object) -> TypeGuard[Source[Any]]:
    """Return whether *thing* is a source; a path, which can be opened too, is not."""
    return (
        callable(getattr(thing, "open", None)) and not isinstance(thing, (os.PathLike, type)) and not is_iterable(thing)
    )


def is_iterable(thing: object) -> TypeGuard[Iterable[object] | AsyncIterable[object]]:
    """Return whether items can be read from *thing* one by one."""
    return isinstance(thing, (Iterable, AsyncIterable)) and not isinstance(thing, (str, bytes, bytearray))


def check_entered(what: str, thing: object) -> None:
    """Refuse a context manager that has not been entered."""
    if hasattr(type(thing), "__aenter__") and not (is_sink(thing) or is_source(thing) or is_iterable(thing)):
        raise TypeError(
            f"{what} is a context manager that was not entered; write `async with open_...(...) as it:` "
            f"around the run and pass `it`"
        )


def check_callable(kind: str, func: object) -> None:
    if not callable(func):
        raise TypeError(f"{kind} needs a function, not {func!r:.100}, {a(type(func).__name__)}")
    if inspect.isasyncgenfunction(func):
        raise TypeError(
            f"{kind} needs a function that returns, and {name_of(func)}() is an async generator, which yields; "
            f"return the result, or a list for flat_map"
        )


def check_handler(func: object) -> None:
    if isinstance(func, type) and is_async(getattr(func, "write", None)):
        raise TypeError(f"map_batches needs a Sink, not its class; pass an instance: {func.__name__}(…)")
    if not (callable(func) or isinstance(func, str) or is_sink(func)):
        raise TypeError(
            f"map_batches needs a function of a list, a Sink, or the name or URL of one, not {func!r:.100}, "
            f"{a(type(func).__name__)}"
        )


def check_backpressure(policy: Backpressure) -> Backpressure:
    if policy not in POLICIES:
        raise ValueError(f"backpressure must be one of {', '.join(map(repr, POLICIES))}, not {policy!r:.100}")
    return policy


def check_run_in(kind: str, func: object, run_in: str) -> None:
    if run_in not in get_args(RunIn):
        raise ValueError(f"run_in must be 'loop', 'thread' or 'process', not {run_in!r}")
    if run_in != "loop" and is_async(func):
        raise ValueError(f"run_in={run_in!r} is for plain functions; {name_of(func)}() given to {kind} is async")
    if run_in == "process":
        check_picklable(func)


def check_retry(retry: object) -> None:
    if retry is not None and not isinstance(retry, Retry):
        raise TypeError(f"retry must be a Retry, not {retry!r:.100}; write retry=Retry(max_attempts=…)")


def check_store(store: object) -> None:
    can_put = callable(getattr(store, "put", None)) and not isinstance(store, type)
    if not (store is None or isinstance(store, str) or can_put):
        raise TypeError(
            f"dead_letters must be a store, or the name or URL of one, not {store!r:.100}; "
            f"write dead_letters='memory' to keep them in memory"
        )


def default_concurrency(run_in: RunIn) -> int:
    if run_in == "process":
        return os.cpu_count() or 1
    return THREADS if run_in == "thread" else ASYNC_CONCURRENCY


def check_listeners(plugins: object, plugins_type: type, observers: object) -> None:
    """Check what `run` was given to look names up in and to tell of events."""
    if plugins is not None and not isinstance(plugins, plugins_type):
        raise TypeError(f"plugins must be a forebay.hooks.Plugins, not {plugins!r:.100}; wrap it: Plugins(my_module)")
    if not isinstance(observers, Sequence):
        raise TypeError(f"observers must be a list of objects, not {observers!r:.100}")


def check_unknown(function: str, unknown: Iterable[str], known: Iterable[str]) -> None:
    """Refuse arguments that *function* does not have."""
    for name in unknown:
        near = get_close_matches(name, list(known), 1)
        hint = f"; did you mean {near[0]!r}?" if near else f" (it has {', '.join(sorted(known))})"
        raise TypeError(f"{function}() has no argument {name!r}{hint}")


def at_least(argument: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, not {value}")
    return value


def seconds(argument: str, value: float | None, *, zero: bool = False) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]  # who has no checker
        raise TypeError(f"{argument} must be a number of seconds, not {value!r}")
    if not (value > 0 or (zero and value == 0)):
        raise ValueError(f"{argument} must be {'at least' if zero else 'more than'} 0 seconds, not {value}")
    return float(value)


def returns_none(func: Callable[..., object]) -> bool:
    """Return whether the annotations of *func* say that it is a sink."""
    while isinstance(func, partial):
        func = func.func
    if not inspect.isroutine(func):
        func = type(func).__call__
    try:
        return get_type_hints(func).get("return") is NoneType
    except Exception:  # names that are only known to a type checker
        with suppress(Exception):  # from Python 3.14 on these are evaluated when they are asked for
            return func.__annotations__.get("return", NoneType) in (None, "None")
        return False


def without_password(url: str) -> str:
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1@", url)


def a(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
