"""Synchronous functions off the event loop: on daemon threads, or in processes that can be killed."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar, TypeVarTuple

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_process
import attrs

from forebay._errors import WorkerDiedError

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_IDLE_SECONDS = 10.0
_idle: dict[SimpleQueue[_Job[Any]], None] = {}
_running: dict[_Job[Any], None] = {}


async def run_in_thread(func: Callable[[*Ts], R], /, *args: *Ts, name: str) -> R:
    """Run `func(*args)` in a daemon thread and return what it returns.

    Context variables are copied. There is no limit on the number of threads: the caller's concurrency is the limit.
    If the caller is cancelled the call is abandoned at once: the thread runs on, what it returns is thrown away, and
    `abandoned` names it until it ends. The process does not wait for it either, unlike for anyio's own threads.

    A `StopIteration` becomes the cause of a `RuntimeError`, as in every coroutine.

    Args:
        func: What to run.
        args: Its arguments.
        name: What `abandoned` calls it.
    """
    await anyio.lowlevel.checkpoint_if_cancelled()
    job = _Job(partial(func, *args), name, anyio.lowlevel.current_token())
    _start(job)
    try:
        await job.ended.wait()
    finally:
        job.abandoned = not job.done
    return job.result()


def abandoned() -> list[str]:
    """Return the names of the calls that still run though their caller has gone, the oldest first."""
    return [job.name for job in list(_running) if job.abandoned]


def running() -> int:
    """Return how many calls run that somebody waits for."""
    return sum(not job.abandoned for job in list(_running))


async def run_in_process(func: Callable[[*Ts], R], /, *args: *Ts, limiter: anyio.CapacityLimiter | None = None) -> R:
    """Run `func(*args)` in a worker process and return what it returns.

    The processes are kept and used again. If the caller is cancelled, the process is killed.
    A worker process has no standard input and output: what *func* prints is lost.

    Args:
        func: A function that `check_picklable` accepts.
        args: Its arguments, which must be picklable too.
        limiter: How many processes may run; anyio's default, one for each CPU, if it is `None`.

    Raises:
        WorkerDiedError: the process ended before the function did.
    """
    try:
        return await anyio.to_process.run_sync(func, *args, cancellable=True, limiter=limiter)
    except anyio.BrokenWorkerProcess as exc:
        if exc.args:
            raise WorkerDiedError(
                f"no process could be started for {_name_of(func)}(): {exc}", category="transient"
            ) from exc
        raise WorkerDiedError(
            f"the process that ran {_name_of(func)}() died; look for os._exit, a crash in a C library or the OOM killer"
        ) from exc


def check_picklable(func: object, /) -> None:
    """Refuse a function that cannot be sent to a worker process.

    Raises:
        TypeError: *func* is a lambda, a closure, or otherwise not importable by its name.
    """
    try:
        pickle.dumps(func, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as exc:  # pickle lets through whatever an object's __reduce__ raises
        raise TypeError(
            f"{_name_of(func)} cannot be sent to a process ({exc}); define it with def at the top of a module"
        ) from exc


@attrs.define(eq=False)
class _Job(Generic[R]):
    """One call in a thread; the thread writes `done`, `results` and `error`, the caller reads them after `ended`."""

    func: Callable[[], R]
    name: str
    token: anyio.lowlevel.EventLoopToken
    ended: anyio.Event = attrs.field(factory=anyio.Event)
    context: Context = attrs.field(factory=copy_context)
    results: list[R] = attrs.field(factory=list[R])
    error: BaseException | None = None
    done: bool = False
    abandoned: bool = False

    def run(self) -> None:
        try:
            self.results.append(self.context.run(self.func))
        except BaseException as exc:  # not handled here but carried over to the caller
            self.error = exc
        self.done = True
        if not self.abandoned:
            # The event loop may be gone by now, and then nobody waits.
            with suppress(RuntimeError):
                anyio.from_thread.run_sync(self.ended.set, token=self.token)

    def result(self) -> R:
        if self.error is not None:
            raise self.error
        return self.results[0]


def _start(job: _Job[R]) -> None:
    for variable in job.context:
        # sniffio's mark: the thread runs no event loop, so the function may run one of its own.
        if variable.name == "current_async_library_cvar":
            job.context.run(variable.set, None)
    try:
        inbox, _ = _idle.popitem()
    except KeyError:
        inbox = SimpleQueue[_Job[Any]]()
        threading.Thread(target=_work, args=(inbox,), name="forebay worker", daemon=True).start()
    _running[job] = None
    inbox.put(job)


def _work(inbox: SimpleQueue[_Job[Any]]) -> None:
    while True:
        try:
            job = inbox.get(timeout=_IDLE_SECONDS)
        except Empty:
            try:
                del _idle[inbox]
            except KeyError:
                continue  # somebody has just taken this thread and is about to send a job
            return
        job.run()
        del _running[job], job
        # Only now: before, it may have waited for an event loop that has stopped without a word.
        _idle[inbox] = None


def _forget_threads() -> None:
    _idle.clear()
    _running.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch -- Windows does not fork
    # A forked child inherits the lists but not the threads.
    os.register_at_fork(after_in_child=_forget_threads)


def _name_of(func: object) -> str:
    return str(getattr(func, "__qualname__", None) or repr(func))
