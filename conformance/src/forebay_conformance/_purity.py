"""Watches whether a function stays with what it is given: no clock, no input, no output."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_MODULES: Final = frozenset({"time", "posix", "nt", "io", "socket", "ssl", "select", "sqlite3", "thread"})
"""Modules in C whose functions read a clock, or do input or output; without the underscore that some begin with."""
_PACKAGES: Final = frozenset({"anyio", "asyncio", "trio", "psutil", "socket", "subprocess", "threading"})
"""The same in Python."""
_BUILTINS: Final = frozenset({"open", "print", "input"})
_NOWS: Final = frozenset({"now", "utcnow", "today"})


@contextmanager
def watched() -> Generator[set[str]]:
    """Yield a set that fills with the names of the calls, in this thread, that read a clock or do input or output.

    A function is seen when it is called, under whatever name it was imported. A profiler that runs is left out
    meanwhile.
    """
    found: set[str] = set()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "c_call":
            name = _named(argument)
        elif event == "call":
            module = str(frame.f_globals.get("__name__", ""))
            name = f"{module}.{frame.f_code.co_name}" if module.partition(".")[0] in _PACKAGES else ""
        else:
            return
        if name:
            found.add(name)

    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()  # what others have left to be finalised would be taken for the function's own doing
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()


def _named(function: object) -> str:
    """Return the name of a function in C if it is one of those; else an empty one."""
    name = str(getattr(function, "__name__", ""))
    owner: object = getattr(function, "__self__", None)
    module: object = getattr(function, "__module__", None)
    if module is None and owner is not None:  # a method
        kind = owner if isinstance(owner, type) else type(owner)
        module = kind.__module__
        if module == "datetime" and name in _NOWS:
            return f"datetime.{name}"
    if module == "builtins":
        return name if name in _BUILTINS else ""
    plain = str(module).lstrip("_")
    return f"{plain}.{name}" if plain in _MODULES else ""
