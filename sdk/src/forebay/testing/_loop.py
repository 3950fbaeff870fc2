"""An asyncio event loop on virtual time."""

from __future__ import annotations

import asyncio
import random
import selectors
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import TYPE_CHECKING, TypeVarTuple

from forebay import _worker

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

Ts = TypeVarTuple("Ts")


class VirtualLoop(asyncio.SelectorEventLoop):
    """A selector event loop whose clock starts at 0.0 and jumps to the next timer when there is nothing to do.

    Give it to anyio as `backend_options={"loop_factory": VirtualLoop}`.

    The clock jumps when no callback is ready and the selector has no event.
    While something real could still answer, it jumps only after *grace* seconds of real silence: while a thread that
    was started after the loop is alive (idle ones of a pool included), while `forebay` runs a handler in a thread, or
    while a socket, pipe or child process is watched.
    With no timer to jump to, the loop waits in real time.

    Args:
        seed: Run the tasks that are ready at the same time in an order drawn from this seed, instead of first come,
            first served. Callbacks that are not tasks keep their order.
        grace: Real seconds of silence before a jump while threads or files are at work.
    """

    def __init__(self, *, seed: int | None = None, grace: float = 0.01) -> None:
        self.around_task_step: Callable[[], None] | None = None
        """Called before and after every step of every task that is scheduled from now on."""
        self._virtual_now = 0.0
        self._random = None if seed is None else random.Random(seed)
        self._grace = grace
        self._old_threads = set(threading.enumerate())
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._virtual_now

    def jump(self, seconds: float) -> None:
        """Move the clock forward."""
        self._virtual_now += seconds

    def grace_before_jump(self, files: int) -> float:
        """Return the real seconds to wait before a jump, with *files* watched by the selector."""
        # The loop always watches its own wake-up pipe.
        if files > 1 or _worker.running() or any(t not in self._old_threads for t in threading.enumerate()):
            return self._grace
        return 0.0

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Schedule *callback*; a task's step passes through `around_task_step`."""
        if self.around_task_step is not None and _is_task_step(callback):
            return super().call_soon(self._step, callback, *args, context=context)
        return super().call_soon(callback, *args, context=context)

    def _step(self, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        around = self.around_task_step or _do_nothing
        around()
        callback(*args)
        around()

    def _run_once(self) -> None:
        if self._random is not None:
            _shuffle_task_steps(self, self._random)
        super()._run_once()  # type: ignore[misc]  # asyncio's own, the only place where a batch of callbacks is known


def _do_nothing() -> None: ...


def _is_task_step(callback: object) -> bool:
    return isinstance(getattr(callback, "__self__", None), asyncio.Task)


def _shuffle_task_steps(loop: asyncio.AbstractEventLoop, rng: random.Random) -> None:
    ready: deque[asyncio.Handle] | None = getattr(loop, "_ready", None)
    if ready is None:  # pragma: no cover -- an asyncio that has renamed it: first come, first served
        return
    places = [i for i, handle in enumerate(ready) if _is_task_handle(handle)]
    handles = [ready[i] for i in places]
    rng.shuffle(handles)
    for i, handle in zip(places, handles, strict=True):
        ready[i] = handle


def _is_task_handle(handle: asyncio.Handle) -> bool:
    callback, args = getattr(handle, "_callback", None), getattr(handle, "_args", None) or ()
    return _is_task_step(callback) or (isinstance(getattr(callback, "__self__", None), VirtualLoop) and bool(args))


class _JumpingSelector(selectors.BaseSelector):
    """The real selector, except that it moves the clock where it would have slept."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return self._real.select(timeout)
        events = self._real.select(self._loop.grace_before_jump(len(self._real.get_map())))
        if not events:
            self._loop.jump(timeout)
        return events

    def register(self, fileobj: FileDescriptorLike, events: int, data: object = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: FileDescriptorLike, events: int, data: object = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()
