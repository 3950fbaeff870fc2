"""What kind of failure an exception is, and when the item that failed runs again."""

from __future__ import annotations

import datetime
import errno
import math
import random as _random
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Literal, TypeAlias, TypeGuard, get_args

import anyio
from attrs import Attribute, field, frozen

from forebay._errors import BatchError
from forebay._types import Category, Failure

Jitter: TypeAlias = Literal["full", "decorrelated", "none"]
"""How a delay is spread, so that items that failed together do not come back together."""

_BY_TYPE: dict[type[BaseException], Category] = {
    TimeoutError: Category.TRANSIENT,
    ConnectionError: Category.TRANSIENT,
    InterruptedError: Category.TRANSIENT,
    BlockingIOError: Category.TRANSIENT,
    anyio.BrokenResourceError: Category.TRANSIENT,
    anyio.BusyResourceError: Category.TRANSIENT,
    anyio.ClosedResourceError: Category.TRANSIENT,
    anyio.EndOfStream: Category.TRANSIENT,
    anyio.IncompleteRead: Category.TRANSIENT,
    anyio.WouldBlock: Category.TRANSIENT,
    ArithmeticError: Category.PERMANENT,
    AssertionError: Category.PERMANENT,
    AttributeError: Category.PERMANENT,
    LookupError: Category.PERMANENT,
    NotImplementedError: Category.PERMANENT,
    RecursionError: Category.PERMANENT,
    TypeError: Category.PERMANENT,
    ValueError: Category.PERMANENT,
    MemoryError: Category.UNKNOWN,
}

# By name, because an exception of a module that nobody imported cannot have been raised.
_BY_NAME: dict[str, Category] = {
    "asyncio.exceptions.IncompleteReadError": Category.TRANSIENT,
    "socket.gaierror": Category.TRANSIENT,
    "trio.BrokenResourceError": Category.TRANSIENT,
    "trio.BusyResourceError": Category.TRANSIENT,
    "trio.ClosedResourceError": Category.TRANSIENT,
    "trio.TooSlowError": Category.TRANSIENT,
    "trio.WouldBlock": Category.TRANSIENT,
}

_TRANSIENT_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.EPIPE,
        errno.ETIMEDOUT,
    }
)
# Space comes back when somebody makes room: the items are good, so they wait.
_OUTAGE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})

_NAMES = [str(category) for category in Category]
_MILDEST_FIRST = (
    Category.TRANSIENT,
    Category.UNKNOWN,
    Category.DEPENDENCY,
    Category.PERMANENT,
    Category.POISON,
)


def classify(failure: Failure, /) -> Category:
    """Return what kind of failure this is, by the exception alone.

    The first rule that knows the exception decides:

    1. its attribute `category` (a `Category`, its value or its name); then `retry_after`, if it is
       there and not `None`: the other side asks to be called again, so `TRANSIENT`;
    2. a `BatchError` is what caused it;
    3. an exception group is its worst leaf: poison, permanent, dependency, unknown, transient.
       Dependency stands above unknown because an outage explains what is unclear beside it, and
       waiting costs nothing. Cancellation and other leaves that are not `Exception` do not count;
    4. the nearest class in its MRO that is in the table, and the `errno` of an `OSError`;
    5. `UNKNOWN`.
    """
    found = {_judge(leaf) for leaf in _leaves(failure.error)} or {Category.UNKNOWN}
    return max(found, key=_MILDEST_FIRST.index)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Open groups and batch errors that do not speak for themselves; each exception once."""
    stack, seen = [error], set[int]()
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if _stated(one) is None and _is_group(one):
            stack.extend(e for e in one.exceptions if isinstance(e, Exception) or _is_group(e))
        elif _stated(one) is None and isinstance(one, BatchError) and one.__cause__ is not None:
            stack.append(one.__cause__)
        else:
            yield one


def _is_group(error: BaseException) -> TypeGuard[BaseExceptionGroup[BaseException]]:
    return isinstance(error, BaseExceptionGroup)  # which tells pyright nothing about what is inside


def _judge(error: BaseException) -> Category:
    stated = _stated(error)
    if stated is not None:
        return stated
    for cls in type(error).__mro__:
        if cls is OSError and isinstance(error, OSError):
            return _by_errno(error.errno)
        known = _BY_TYPE.get(cls) or _BY_NAME.get(f"{cls.__module__}.{cls.__qualname__}")
        if known is not None:
            return known
    return Category.UNKNOWN


def _stated(error: BaseException) -> Category | None:
    """Return what the exception says about itself, if it says anything that we can read."""
    category = _attribute(error, "category")
    if isinstance(category, str) and category.lower() in _NAMES:
        return Category(category.lower())
    return None if _attribute(error, "retry_after") is None else Category.TRANSIENT


def _attribute(error: BaseException, name: str) -> object:
    try:
        return getattr(error, name, None)
    except Exception:  # a property of a foreign class; the failure at hand matters more than this one
        return None


def _by_errno(number: int | None) -> Category:
    if number in _TRANSIENT_ERRNOS:
        return Category.TRANSIENT
    return Category.DEPENDENCY if number in _OUTAGE_ERRNOS else Category.UNKNOWN


def _retry_after(error: BaseException | None) -> float:
    """Return the seconds that *error* asks for; 0.0 if it asks for none that we can read."""
    value = None if error is None else _attribute(error, "retry_after")
    if isinstance(value, datetime.timedelta):
        value = value.total_seconds()
    if isinstance(value, str) and value.strip().isdecimal():
        value = float(value)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return max(0.0, float(value))
    return 0.0


def _categories(on: Iterable[Category | str]) -> frozenset[Category]:
    if isinstance(on, str):
        raise TypeError(f"on must be a collection of categories, not {str(on)!r}; write {{{str(on)!r}}}")
    return frozenset(_category(name) for name in on)


def _category(name: object) -> Category:
    if not isinstance(name, str):
        raise TypeError(f"on must hold categories or their names, not {name!r}")
    if name.lower() not in _NAMES:
        raise ValueError(f"on has no category {name!r} (known: {', '.join(_NAMES)}){_hint(name, _NAMES)}")
    return Category(name.lower())


def _hint(name: str, known: list[str]) -> str:
    near = get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_attempts(_: Retry, __: Attribute[int], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"max_attempts must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"max_attempts must be at least 1, not {value}; 1 is no further attempt")


def _check_seconds(retry: Retry, attribute: Attribute[float], value: object) -> None:
    least = {"base": 0.0, "factor": 1.0, "cap": retry.base}[attribute.name]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{attribute.name} must be a number, not {value!r}")
    if not math.isfinite(value) or value < least:
        name = "base, " if attribute.name == "cap" else ""
        raise ValueError(f"{attribute.name} must be finite and at least {name}{least}, not {value}")


def _check_jitter(_: Retry, __: Attribute[Jitter], value: object) -> None:
    known = list(get_args(Jitter))
    if value not in known:
        raise ValueError(f"jitter must be one of {', '.join(known)}, not {value!r}{_hint(str(value), known)}")


@frozen(kw_only=True)
class Retry:
    """When an item that failed is run again: a policy only, it runs nothing."""

    max_attempts: int = field(default=3, validator=_check_attempts)
    """Attempts in all, the first one included."""
    base: float = field(default=0.2, validator=_check_seconds)
    """Seconds before the second attempt, before jitter."""
    factor: float = field(default=2.0, validator=_check_seconds)
    """What the delay is multiplied with after each further failure; not used by `decorrelated`."""
    cap: float = field(default=60.0, validator=_check_seconds)
    """Longest delay in seconds, unless the error itself asks for a longer one."""
    jitter: Jitter = field(default="full", validator=_check_jitter)
    """How the delay is spread."""
    on: frozenset[Category] = field(default=frozenset({Category.TRANSIENT}), converter=_categories)
    """Categories that get another attempt; any collection of them or of their names will do."""

    def allows(self, failures: int, category: Category) -> bool:
        """Return whether there is another attempt after *failures* failed ones, the last of *category*."""
        return category in self.on and failures < self.max_attempts

    def delay(
        self, failures: int, error: BaseException | None, previous: float | None, random: _random.Random
    ) -> float:
        """Return the seconds to wait before the next attempt.

        Args:
            failures: Failed attempts so far, at least 1.
            error: What the last one raised. If it has a `retry_after` (seconds, as a number, digits or a
                `timedelta`), the delay is that much longer: never shorter than asked, and still spread.
            previous: Delay before the last attempt, `None` before the first; only `decorrelated` looks at it.
            random: Where all chance comes from.

        Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015:
        full is `uniform(0, min(cap, base * factor ** n))`, decorrelated is `min(cap, uniform(base, 3 * previous))`.
        """
        return _retry_after(error) + self._spread(failures, previous, random)

    def _spread(self, failures: int, previous: float | None, random: _random.Random) -> float:
        if self.jitter == "decorrelated":
            last = self.base if previous is None else previous
            return min(self.cap, random.uniform(self.base, max(self.base, 3 * last)))
        longest = self._exponential(failures)
        return longest if self.jitter == "none" else random.uniform(0.0, longest)

    def _exponential(self, failures: int) -> float:
        try:
            return min(self.cap, self.base * self.factor ** (failures - 1))
        except OverflowError:
            return self.cap
