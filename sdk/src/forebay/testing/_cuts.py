"""Cancels a scenario at every step, one run for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol, TypeAlias

import anyio
import anyio.lowlevel
from attrs import define, frozen

from forebay.testing._run import BackendName, run_virtual

How: TypeAlias = Literal["scope", "task", "timeout"]

_HORIZON = 1e6


class Scenario(Protocol):
    """What is cancelled, and what must hold afterwards. Every run gets a new one."""

    async def run(self) -> None:
        """Do the work; a scenario that is not cancelled must succeed."""
        ...

    async def check(self, *, cancelled: bool) -> None:
        """Raise if something does not hold that should, whether or not the run was cancelled."""
        ...


@frozen
class CutFailure:
    """One run that went wrong."""

    step: int
    """Step at which it was cancelled: `cancel_at_every_step(…, only_step=step)` does it again."""
    error: Exception


@frozen
class CutReport:
    """What became of all the runs."""

    backend: BackendName
    how: How
    steps: int
    """Steps at which a run was cancelled."""
    failures: Sequence[CutFailure]

    def raise_failures(self) -> None:
        """Raise an `AssertionError` that tells of the first failure, if there is one."""
        __tracebackhide__ = True
        if self.failures:
            first = self.failures[0]
            raise AssertionError(
                f"{len(self.failures)} of {self.steps} runs cancelled by {self.how} on {self.backend} went wrong; "
                f"the first at step {first.step}: {first.error!r}; do it again with only_step={first.step}"
            ) from first.error


def count_steps(make_scenario: Callable[[], Scenario], /, *, backend: BackendName = "trio", seed: int = 0) -> int:
    """Run the scenario once, without cancelling it, and return in how many steps it can be cancelled.

    Steps are the moments right before and right after a task runs: before, what it waited for has come already;
    after, it has just begun to wait, or has ended.

    Raises:
        Exception: what the run or its check raised.
    """
    counter = _Counter(None)
    run_virtual(_run_cut, make_scenario, _tools(backend, "scope"), counter, backend=backend, seed=seed)
    if counter.error is not None:
        raise counter.error
    return counter.steps


def cancel_at_every_step(
    make_scenario: Callable[[], Scenario],
    /,
    *,
    backend: BackendName,
    how: How = "scope",
    max_steps: int = 10_000,
    only_step: int | None = None,
    seed: int = 0,
) -> CutReport:
    """Run the scenario again and again, cancelled at its first, second, … step, until there is none left.

        report = cancel_at_every_step(Transfer, backend="asyncio", how="task")
        report.raise_failures()

    The steps are those of `count_steps`. Every run is on virtual time and its order of tasks comes from *seed*, so that
    a step number means the same in every run up to the cut. A run goes wrong if it raises, if its check raises, if it
    still runs a million virtual seconds later, or, on asyncio, if it leaves tasks behind.
    A run that waits for ever behind a shield is not noticed.

    Args:
        make_scenario: Makes a new scenario.
        backend: `asyncio` or `trio`.
        how: `scope` cancels an anyio scope around the run. `task` calls `Task.cancel` of asyncio and `timeout` lets an
            `asyncio.timeout` run out, which shields do not stop; on Trio they cancel a scope and let its deadline pass.
        max_steps: Give up if the scenario takes more.
        only_step: Cancel at this step alone.
        seed: Order of the tasks.

    Raises:
        Exception: what the scenario or its check raised without being cancelled.
        ValueError: the scenario takes more than *max_steps* steps.
    """
    steps = count_steps(make_scenario, backend=backend, seed=seed)
    if steps > max_steps:
        raise ValueError(f"the scenario takes {steps} steps, more than max_steps={max_steps}; shorten it or raise that")
    failures: list[CutFailure] = []
    done = 0
    for step in range(1, max_steps + 1) if only_step is None else [only_step]:
        counter = _Counter(step)
        run_virtual(_run_cut, make_scenario, _tools(backend, how), counter, backend=backend, seed=seed)
        if not counter.fired:
            break
        done += 1
        if counter.error is not None:
            failures.append(CutFailure(step, counter.error))
    return CutReport(backend, how, done, failures)


@define
class _Counter:
    """Counts the steps while it is armed, and cuts at the one it was made for."""

    cut_at: int | None
    steps: int = 0
    fired: bool = False
    error: Exception | None = None
    cut: Callable[[], object] | None = None

    def count(self) -> None:
        if self.cut is None:
            return
        self.steps += 1
        if self.steps == self.cut_at:
            self.fired = True
            self.cut()

    @contextmanager
    def armed(self, cut: Callable[[], object]) -> Generator[None]:
        self.cut = cut
        try:
            yield
        finally:
            self.cut = None


Run: TypeAlias = Callable[[], Coroutine[object, object, None]]


@frozen
class _Tools:
    """How steps are counted and runs are cut on one backend."""

    counting: Callable[[_Counter], AbstractContextManager[None]]
    run: Callable[[Run, _Counter], Awaitable[None]]
    left_behind: Callable[[], list[str]]


def _tools(backend: BackendName, how: How) -> _Tools:
    runners = {
        "asyncio": {"scope": _run_in_scope, "task": _run_in_task, "timeout": _run_in_timeout},
        "trio": {"scope": _run_in_scope, "task": _run_in_scope, "timeout": _run_in_deadline},
    }
    if how not in runners["asyncio"]:
        raise ValueError(f"how must be 'scope', 'task' or 'timeout', not {how!r}")
    if backend == "trio":
        return _Tools(_counting_on_trio, runners[backend][how], list)
    return _Tools(_counting_on_asyncio, runners[backend][how], _tasks_left_behind)


async def _run_cut(make_scenario: Callable[[], Scenario], tools: _Tools, counter: _Counter) -> None:
    try:
        scenario = make_scenario()
        with anyio.move_on_after(_HORIZON) as horizon, tools.counting(counter):
            await anyio.lowlevel.checkpoint()  # the step that is under way is not counted
            await tools.run(scenario.run, counter)
        if anyio.current_time() >= horizon.deadline:
            raise TimeoutError(f"the scenario still ran {_HORIZON:g} virtual seconds after its start")
        if left := tools.left_behind():
            raise AssertionError(f"the scenario left tasks behind: {', '.join(left)}")
        await scenario.check(cancelled=counter.fired)
    except Exception as exc:  # reported to the caller, with the step
        counter.error = exc


async def _run_in_scope(run: Run, counter: _Counter) -> None:
    with anyio.CancelScope() as scope, counter.armed(scope.cancel):
        await run()


async def _run_in_deadline(run: Run, counter: _Counter) -> None:
    with anyio.CancelScope() as scope:

        def let_run_out() -> None:
            scope.deadline = anyio.current_time()

        with counter.armed(let_run_out):
            await run()


async def _run_in_task(run: Run, counter: _Counter) -> None:
    import asyncio

    task = asyncio.create_task(run())
    with counter.armed(task.cancel):
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def _run_in_timeout(run: Run, counter: _Counter) -> None:
    import asyncio

    timeout = asyncio.timeout(None)
    own: TimeoutError | None = None
    try:
        async with timeout:
            try:
                with counter.armed(lambda: timeout.reschedule(anyio.current_time())):
                    await run()
            except TimeoutError as exc:
                own = exc  # the scenario may raise one of its own when it is cut
                raise
    except TimeoutError as exc:
        if exc is own:
            raise


def _tasks_left_behind() -> list[str]:
    import asyncio

    return sorted(task.get_name() for task in asyncio.all_tasks() - {asyncio.current_task()})


@contextmanager
def _counting_on_asyncio(counter: _Counter) -> Generator[None]:
    import asyncio

    from forebay.testing._loop import VirtualLoop

    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.around_task_step = counter.count
    try:
        yield
    finally:
        loop.around_task_step = None


@contextmanager
def _counting_on_trio(counter: _Counter) -> Generator[None]:
    from trio.abc import Instrument
    from trio.lowlevel import add_instrument, remove_instrument

    class StepCounter(Instrument):
        """Counts the moments before and after every step of a task."""

        def before_task_step(self, task: object) -> None:
            """Count it."""
            counter.count()

        def after_task_step(self, task: object) -> None:
            """Count it."""
            counter.count()

    instrument = StepCounter()
    add_instrument(instrument)
    try:
        yield
    finally:
        remove_instrument(instrument)
