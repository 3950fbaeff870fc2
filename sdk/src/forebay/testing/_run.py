"""Runs on virtual time, the same every time for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, TypeVarTuple

import anyio

from forebay import _worker

if TYPE_CHECKING:
    from trio.abc import Instrument

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

BackendName: TypeAlias = Literal["asyncio", "trio"]
BACKENDS: tuple[BackendName, ...] = ("asyncio", "trio")


def virtual_backend(name: BackendName, /, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
    """Return the (name, options) pair that makes anyio run *name* on virtual time.

    Good for one run: for `anyio.run(…, backend=name, backend_options=options)`, or as the value of the `anyio_backend`
    fixture. On asyncio the clock is that of `VirtualLoop`, on Trio a `MockClock` that starts at 0.0 and jumps.
    Trio's clock too waits 10 ms of real silence before it jumps while a thread is at work.

    Args:
        name: `asyncio` or `trio`.
        seed: Order of the tasks on asyncio; Trio's order is seeded by `run_virtual` alone.
    """
    if name == "asyncio":
        from forebay.testing._loop import VirtualLoop

        return name, {"loop_factory": partial(VirtualLoop, seed=seed)}
    if name != "trio":
        raise ValueError(f"name must be 'asyncio' or 'trio', not {name!r}")
    from trio.testing import MockClock

    clock = MockClock(autojump_threshold=0)
    return name, {"clock": clock, "instruments": [_thread_grace(clock)]}


def virtual_backends() -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return the pairs of `virtual_backend` for both backends, asyncio first."""
    return tuple(virtual_backend(name) for name in BACKENDS)


def run_virtual(
    async_fn: Callable[[*Ts], Coroutine[Any, Any, R]],
    *args: *Ts,
    backend: BackendName = "trio",
    seed: int | None = None,
) -> R:
    """Run `async_fn(*args)` on virtual time and return its result; hours of sleep take milliseconds.

    With a *seed* the order of tasks that are ready at the same time is drawn from it: the same seed gives the same
    order, another seed another one. On Trio this uses a switch that Trio keeps for Hypothesis; where it is missing,
    the order is Trio's own. On asyncio only tasks are shuffled, other callbacks keep their order.
    """
    name, options = virtual_backend(backend, seed=seed)
    with _seeded_trio(seed if backend == "trio" else None):
        return anyio.run(async_fn, *args, backend=name, backend_options=options)


@contextmanager
def _seeded_trio(seed: int | None) -> Generator[None]:
    if seed is None:
        yield
        return
    scheduler, switch = import_module("trio._core._run"), "_ALLOW_DETERMINISTIC_SCHEDULING"
    rng = getattr(scheduler, "_r", None)
    if not isinstance(rng, random.Random) or not hasattr(scheduler, switch):  # pragma: no cover -- renamed in Trio
        yield
        return
    state, allowed = rng.getstate(), getattr(scheduler, switch)
    rng.seed(seed)
    setattr(scheduler, switch, True)
    try:
        yield
    finally:
        setattr(scheduler, switch, allowed)
        rng.setstate(state)


def _thread_grace(clock: Any, grace: float = 0.01) -> Instrument:
    from trio.abc import Instrument
    from trio.testing import active_thread_count

    class ThreadGrace(Instrument):
        """Slows a jumping clock down while a thread may still answer."""

        def after_task_step(self, task: object) -> None:
            """Set the clock's threshold to what the step has left running."""
            threshold = grace if _worker.running() or active_thread_count() else 0
            if clock.autojump_threshold != threshold:
                clock.autojump_threshold = threshold

    return ThreadGrace()
