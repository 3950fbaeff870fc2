"""The rules that every kind shares: how a plugin is left, what stays behind, and what its exceptions show."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from attrs import frozen

from forebay_conformance._checks import leaves
from forebay_conformance._failure import described
from forebay_conformance._probe import Probe

_ROUNDS = 8
_OPEN_FILES = Path("/proc/self/fd")


class _LeavingError(Exception):
    """The body's own exception."""


async def leaves_cleanly(probe: Probe[Any], open_it: Callable[[], AbstractAsyncContextManager[Any]], name: str) -> None:
    """Check that a block left by an exception lets it through, and that closing twice is fine."""
    probe.trail.append(f"raise inside the block of the {name}")
    caught = await _leave_by_exception(open_it)
    probe.expect(
        isinstance(caught, _LeavingError),
        expected="the body's exception, as it is",
        got="nothing was raised" if caught is None else described(caught),
    )
    probe.trail.append(f"cancel inside the block of the {name}")
    with anyio.move_on_after(probe.traits.patience) as limit:
        with anyio.CancelScope() as scope:
            async with open_it():
                scope.cancel()
                await anyio.sleep_forever()
    probe.expect(
        not limit.cancelled_caught, expected=f"the block to end within {probe.traits.patience:g} s", got="it hangs"
    )
    async with open_it() as thing:
        close: Callable[[], Awaitable[object]] | None = getattr(thing, "aclose", None)
        if close is not None:
            await probe.call("aclose()", close)
            await probe.call("aclose() again", close)


async def _leave_by_exception(open_it: Callable[[], AbstractAsyncContextManager[Any]]) -> Exception | None:
    try:
        async with open_it():
            raise _LeavingError
    except Exception as error:
        return error
    return None


async def leaves_nothing(probe: Probe[Any], use: Callable[[], Awaitable[None]]) -> None:
    """Check that *use*, which opens, uses and closes the plugin, leaves nothing behind in eight rounds."""
    for _ in range(2):  # what is made once and kept, such as a worker thread, is no leak
        await use()
    before = _Standing.now()
    probe.trail.append(f"open, use and close {_ROUNDS} times")
    for _ in range(_ROUNDS):
        await use()
    left = _Standing.now().beyond(before)
    for _ in range(50):
        if not left:
            return
        await anyio.to_thread.run_sync(time.sleep, 0.02)
        left = _Standing.now().beyond(before)
    probe.fail(expected="no task, thread or file more than before", got=f"{left} more")


@frozen
class _Standing:
    """What the process holds at one moment."""

    tasks: frozenset[int]
    threads: frozenset[int]
    files: int

    @classmethod
    def now(cls) -> _Standing:
        files = len(os.listdir(_OPEN_FILES)) if _OPEN_FILES.exists() else 0
        tasks = frozenset(task.id for task in anyio.get_running_tasks())
        # By identity: threads of others that end meanwhile must not make up for those that stay.
        threads = frozenset(id(thread) for thread in threading.enumerate())
        return cls(tasks, threads, files)

    def beyond(self, before: _Standing) -> str:
        """Return what has come to stay since *before*; caches may grow, but not with every round."""
        tasks = len(self.tasks - before.tasks)
        grown = {"threads": len(self.threads - before.threads), "files": self.files - before.files}
        found = [f"{tasks} tasks"] if tasks else []
        found += [f"{count} {what}" for what, count in grown.items() if count >= _ROUNDS]
        return ", ".join(found)


async def shows_no_secrets(probe: Probe[Any], first_call: Callable[[Any], Awaitable[object]]) -> None:
    """Check that the exception for an engine out of reach does not hold the password."""
    secret = probe.traits.secret
    probe.trail.append("open_broken() and a first call")
    shown: str | None = None
    with anyio.move_on_after(probe.traits.patience):
        try:
            async with probe.traits.open_broken() as thing:
                await first_call(thing)
        except Exception as error:
            shown = "".join(traceback.format_exception(error)) + "".join(repr(leaf) for leaf in leaves(error))
        else:
            probe.fail(expected="an exception that says what cannot be reached", got="everything went well")
    probe.expect(shown is not None, expected=f"an exception within {probe.traits.patience:g} s", got="none yet")
    lines = [line.strip() for line in (shown or "").splitlines() if secret in line]
    masked = [line.replace(secret, "<the password>") for line in lines]
    probe.expect(not lines, expected="no password in the exception, its causes or its notes", got="; ".join(masked[:2]))
