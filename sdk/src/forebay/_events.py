"""Who is told about a run: event hooks of plugins, and observers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, Final, Generic, Protocol, TypeVar

from attrs import define, frozen

from forebay._registry import close_coroutine, nearest, where
from forebay._summary import Summary
from forebay._types import (
    BatchInfo,
    BreakerInfo,
    Category,
    DeadLettered,
    Failure,
    LimitsInfo,
    PartitionsInfo,
    Pressure,
    RunInfo,
)
from forebay.abc import Observer

T = TypeVar("T")

MAX_FAILURES: Final = 10
"""A listener that has raised so often in one run is not called again in it."""

_EVENTS: Final = (
    "run_started",
    "batch_done",
    "limits_changed",
    "breaker_changed",
    "pressure_changed",
    "dead_lettered",
    "partitions_changed",
    "run_finished",
)


class Hooked(Protocol):
    """What implements hooks: `Plugins`."""

    def implementations(self, hook: str, /) -> list[tuple[str, Callable[[Any], object]]]:
        """Return plugin name and function of all that implement *hook*, in the order to call them."""
        ...


@frozen
class ListenerStatistics:
    """What one listener to one event cost."""

    listener: str
    """Plugin, or class of the observer."""
    event: str
    calls: int
    errors: int
    seconds: float
    """Time spent in it."""
    disabled: bool
    """Whether it failed so often that it is not called any more."""


@define(eq=False)
class _Listener:
    name: str
    event: str
    call: Callable[[Any], object]
    calls: int = 0
    errors: int = 0
    seconds: float = 0.0
    disabled: bool = False


class Emitter(Generic[T]):
    """Calls all who listen to one event."""

    __slots__ = ("_listeners", "_strict")

    def __init__(self, listeners: Sequence[_Listener], *, strict: bool) -> None:
        self._listeners = tuple(listeners)
        self._strict = strict

    def __call__(self, info: T, /) -> None:
        """Tell every listener; what one raises is counted and logged, and reaches nobody."""
        for listener in self._listeners:
            started = perf_counter()
            try:
                answer = listener.call(info)
                if answer is not None:
                    _refuse_coroutine(answer)
            except Exception as exc:
                self._failed(listener, exc)
            listener.calls += 1
            listener.seconds += perf_counter() - started

    def _failed(self, listener: _Listener, exc: Exception) -> None:
        _count_failure(listener, exc, strict=self._strict)
        if listener.errors >= MAX_FAILURES:
            listener.disabled = True
            self._listeners = tuple(other for other in self._listeners if other is not listener)
            # Logged, not warned: a program that turns warnings into exceptions would get one in its batch.
            _log(
                f"{listener.name} failed {listener.errors} times in {listener.event} and is called no more in this run"
            )


class Events:
    """Who listens to what in one run. `None` where nobody does, so that asking costs next to nothing.

        if events.batch_done is not None:
            events.batch_done(BatchInfo(...))

    Args:
        plugins: Their event hooks are called first, in pluggy's order; `None` for none.
        observers: Objects with some of the methods of `forebay.abc.Observer`, called in this order.
        strict: Whether a listener's exception is raised where it happens; for tests.

    Raises:
        TypeError: an observer has no method that forebay calls, or one that it cannot call.
    """

    run_started: Emitter[RunInfo] | None
    batch_done: Emitter[BatchInfo] | None
    limits_changed: Emitter[LimitsInfo] | None
    breaker_changed: Emitter[BreakerInfo] | None
    pressure_changed: Emitter[Pressure] | None
    dead_lettered: Emitter[DeadLettered] | None
    partitions_changed: Emitter[PartitionsInfo] | None
    run_finished: Emitter[Summary] | None

    def __init__(self, plugins: Hooked | None, observers: Sequence[object] = (), *, strict: bool = False) -> None:
        self._strict = strict
        self._listeners: list[_Listener] = []
        methods = [(where(observer), _methods_of(observer)) for observer in observers]
        for event in _EVENTS:
            listeners = _of_plugins(plugins, event)
            listeners += [_Listener(name, event, found[event]) for name, found in methods if event in found]
            setattr(self, event, Emitter[Any](listeners, strict=strict) if listeners else None)
            self._listeners += listeners
        self._deciders = _of_plugins(plugins, "classify")

    @property
    def listener_errors(self) -> int:
        """Exceptions that listeners have raised so far, those of `forebay_classify` included."""
        return sum(listener.errors for listener in (*self._listeners, *self._deciders))

    def classify(self, failure: Failure, /) -> Category | None:
        """Return the first plugin's answer, `None` when none has one, and UNKNOWN when one failed."""
        for decider in self._deciders:
            decider.calls += 1
            try:
                answer = _category(decider.call(failure))
            except Exception as exc:
                _count_failure(decider, exc, strict=self._strict)
                return Category.UNKNOWN
            if answer is not None:
                return answer
        return None

    def statistics(self) -> list[ListenerStatistics]:
        """Return what each listener to each event has cost so far."""
        return [
            ListenerStatistics(one.name, one.event, one.calls, one.errors, one.seconds, one.disabled)
            for one in (*self._listeners, *self._deciders)
        ]


def _of_plugins(plugins: Hooked | None, event: str) -> list[_Listener]:
    found = [] if plugins is None else plugins.implementations(f"forebay_{event}")
    return [_Listener(f"plugin {name!r}", event, call) for name, call in found]


def _methods_of(observer: object) -> dict[str, Callable[[Any], object]]:
    """Return the event methods of *observer*, without those that `Observer` gave it to do nothing."""
    if inspect.isclass(observer):
        raise TypeError(f"observer {where(observer)} is a class; pass an instance, {observer.__name__}()")
    methods = {event: method for event in _EVENTS if callable(method := getattr(observer, event, None))}
    _check_misspelt(observer, methods)
    if not methods:
        raise TypeError(f"observer {observer!r} has none of the methods that forebay calls ({', '.join(_EVENTS)})")
    for event, method in methods.items():
        if inspect.iscoroutinefunction(method):
            raise TypeError(
                f"{event} of observer {where(observer)} is async def and would never be awaited; make it a plain def"
            )
    return {event: method for event, method in methods.items() if not _is_default(event, method)}


def _is_default(event: str, method: object) -> bool:
    return getattr(method, "__func__", None) is getattr(Observer, event)


def _check_misspelt(observer: object, methods: Mapping[str, object]) -> None:
    # An Observer has every method: those that it did not override are the ones that a misspelt name may have meant.
    absent = [event for event in _EVENTS if event not in methods or _is_default(event, methods[event])]
    words = {word for event in absent for word in event.split("_")}
    for name in dir(observer):
        # Comparing costs; only what shares a word with an event can be one misspelt.
        if name[0] == "_" or name in _EVENTS or words.isdisjoint(name.split("_")):
            continue
        near = nearest(name, absent, 0.85)
        if near and callable(getattr(observer, name)):
            raise TypeError(f"observer {where(observer)} has a method {name}, which forebay never calls{near}")


def _refuse_coroutine(answer: object) -> None:
    if inspect.iscoroutine(answer):
        close_coroutine(answer)
        raise TypeError("it returned a coroutine, which nobody awaits; make it a plain function")


def _category(answer: object) -> Category | None:
    if answer is None or isinstance(answer, Category):
        return answer
    _refuse_coroutine(answer)
    raise TypeError(f"it returned {answer!r}; return a Category or None")


def _count_failure(listener: _Listener, exc: Exception, *, strict: bool) -> None:
    if strict:
        raise exc
    listener.errors += 1
    if listener.errors == 1:
        _log(f"{listener.name} failed in {listener.event}; further failures are only counted", exc)


def _log(text: str, exc: Exception | None = None) -> None:
    import logging

    logging.getLogger("forebay").warning(text, exc_info=exc)
