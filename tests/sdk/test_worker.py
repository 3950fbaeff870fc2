import contextvars
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from forebay import _worker
from forebay._errors import WorkerDiedError
from forebay._worker import abandoned, check_picklable, run_in_process, run_in_thread, running

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("real_time")]

variable = contextvars.ContextVar("variable", default="unset")


async def test_the_result_and_the_arguments_cross_the_thread() -> None:
    def where(a: int, b: int) -> tuple[int, bool, bool]:
        return a + b, threading.current_thread() is not threading.main_thread(), threading.current_thread().daemon

    result = await run_in_thread(where, 2, 3, name="where")

    assert result == (5, True, True)


async def test_an_exception_comes_back_as_it_is() -> None:
    error = KeyError("x")

    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        await run_in_thread(fail, name="fail")

    assert caught.value is error


async def test_stop_iteration_becomes_the_cause_of_a_runtime_error() -> None:
    with pytest.raises(RuntimeError) as caught:
        await run_in_thread(next, iter(()), name="next")

    assert isinstance(caught.value.__cause__, StopIteration)


async def test_context_variables_are_copied() -> None:
    def change() -> str:
        seen = variable.get()
        variable.set("thread")
        return seen

    variable.set("task")
    seen = await run_in_thread(change, name="change")

    assert (seen, variable.get()) == ("task", "task")


async def test_a_function_may_run_an_event_loop_of_its_own(anyio_backend_name: str) -> None:
    async def inner() -> str:
        await anyio.lowlevel.checkpoint()
        return "ran"

    assert await run_in_thread(lambda: anyio.run(inner, backend=anyio_backend_name), name="loop") == "ran"


async def test_threads_are_used_again() -> None:
    threads: set[int] = set()

    for _ in range(20):
        threads.add(await run_in_thread(threading.get_ident, name="ident"))
        await anyio.sleep(0.001)

    assert len(threads) < 20


async def test_calls_run_at_the_same_time() -> None:
    barrier = threading.Barrier(5)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(lambda: run_in_thread(barrier.wait, name="wait"))


async def test_a_cancelled_call_is_abandoned_at_once_and_named_until_it_ends() -> None:
    started, release, ended = threading.Event(), threading.Event(), threading.Event()

    def handler() -> None:
        started.set()
        release.wait(10)
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: run_in_thread(handler, name="slow handler"))
        await until(started.is_set)
        assert (abandoned(), running()) == ([], 1)
        tasks.cancel_scope.cancel()

    assert (abandoned(), running()) == (["slow handler"], 0)
    assert not ended.is_set()
    release.set()
    await until(lambda: not abandoned())
    assert ended.is_set()


async def test_a_cancelled_caller_starts_nothing() -> None:
    ran: list[int] = []

    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_in_thread(ran.append, 1, name="append")

    assert scope.cancelled_caught
    assert ran == []


def test_an_idle_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "_IDLE_SECONDS", 0.01)
    inbox = SimpleQueue[_worker._Job[Any]]()
    _worker._idle[inbox] = None
    thread = threading.Thread(target=_worker._work, args=(inbox,), daemon=True)

    thread.start()
    thread.join(10)

    assert not thread.is_alive()
    assert inbox not in _worker._idle


async def test_a_thread_that_was_taken_while_it_was_about_to_end_does_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "_IDLE_SECONDS", 0.01)
    inbox = SimpleQueue[_worker._Job[Any]]()
    thread = threading.Thread(target=_worker._work, args=(inbox,), daemon=True)
    thread.start()  # not in the list of idle ones: taken
    time.sleep(0.1)  # longer than it waits for a job

    job = _worker._Job(threading.current_thread, "late", anyio.lowlevel.current_token())
    _worker._running[job] = None
    inbox.put(job)
    await job.ended.wait()

    assert job.result() is thread


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_starts_threads_of_its_own(anyio_backend_name: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORK), anyio_backend_name]

    done = subprocess.run(command, capture_output=True, timeout=30, check=True)

    assert (done.stdout, done.stderr) == (b"child 0\nparent 0\n", b"")


FORK = """
    import os, sys, time
    import anyio
    from forebay import _worker

    def call():
        return anyio.run(lambda: _worker.run_in_thread(int, name="int"), backend=sys.argv[1])

    call()
    while not _worker._idle:
        time.sleep(0.01)
    if os.fork():
        os.wait()
        print("parent", call(), flush=True)
    else:
        print("child", call(), flush=True)
"""


STUCK = """
    import sys, time
    import anyio
    from forebay._worker import abandoned, run_in_thread

    async def main():
        with anyio.move_on_after(0.1):
            await run_in_thread(time.sleep, 60, name="stuck")
        assert abandoned() == ["stuck"]
        {last}

    anyio.run(main, backend=sys.argv[1])
    print("left", flush=True)
"""


@pytest.mark.parametrize("last", ["pass", "await run_in_thread(int, name='int')"])
def test_the_process_ends_while_a_handler_is_stuck(last: str, anyio_backend_name: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(STUCK.format(last=last)), anyio_backend_name]

    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"left\n"
        begin = time.monotonic()
        code = process.wait(10)

    assert code == 0
    assert time.monotonic() - begin < 1  # a thread that is joined holds it for a minute


LATE = """
    import sys, threading, time
    import anyio
    from forebay import _worker

    ended = threading.Event()

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: _worker.run_in_thread(time.sleep, 0.2, name="late"))
            await anyio.sleep(0.05)
            (job,) = _worker._running
            tasks.cancel_scope.cancel()
        job.abandoned = False  # as if the cancellation had crossed with the end of the call

    anyio.run(main, backend=sys.argv[1])
    while _worker._running:
        time.sleep(0.01)
    print(anyio.run(lambda: _worker.run_in_thread(int, name="int"), backend=sys.argv[1]))
"""


def test_a_call_that_ends_after_its_event_loop_harms_nothing(anyio_backend_name: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LATE), anyio_backend_name]

    done = subprocess.run(command, capture_output=True, timeout=30, check=True)

    assert (done.stdout, done.stderr) == (b"0\n", b"")


def add(a: int, b: int) -> tuple[int, int]:
    return a + b, os.getpid()


def die() -> None:
    os._exit(3)


def hang(path: str) -> None:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def fail() -> None:
    raise KeyError("x")


async def test_a_process_returns_results_and_exceptions() -> None:
    result, pid = await run_in_process(add, 2, 3)
    with pytest.raises(KeyError, match="x"):
        await run_in_process(fail)

    assert result == 5
    assert pid != os.getpid()


async def test_a_process_that_exits_is_reported_as_poison() -> None:
    with pytest.raises(WorkerDiedError, match=r"the process that ran die\(\) died") as caught:
        await run_in_process(die)

    assert caught.value.category == "poison"


async def test_a_process_that_is_killed_is_reported_as_poison(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "pid")

    async def kill() -> None:
        await until(lambda: os.path.exists(path) and os.path.getsize(path) > 0)
        with open(path) as file:
            os.kill(int(file.read()), signal.SIGKILL)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        with pytest.raises(WorkerDiedError, match=r"hang\(\)"):
            await run_in_process(hang, path)


async def test_a_cancelled_process_is_killed(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "pid")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_process, hang, path)
        await until(lambda: os.path.exists(path) and os.path.getsize(path) > 0)
        tasks.cancel_scope.cancel()

    with open(path) as file:
        pid = int(file.read())
    await until(lambda: not is_alive(pid))


async def test_the_limiter_limits_processes() -> None:
    limiter = anyio.CapacityLimiter(1)
    await limiter.acquire_on_behalf_of("somebody else")

    with anyio.move_on_after(0.05) as scope:
        await run_in_process(add, 1, 2, limiter=limiter)

    assert scope.cancelled_caught


UNSTARTABLE = """
    import os, sys
    import anyio
    from forebay._worker import WorkerDiedError, run_in_process

    async def main():
        sys.executable = "/bin/echo"
        try:
            await run_in_process(os.getpid)
        except WorkerDiedError as exc:
            print(exc.category, exc)

    anyio.run(main, backend=sys.argv[1])
"""


def test_a_process_that_cannot_be_started_is_reported_as_transient(anyio_backend_name: str) -> None:
    # In a process of its own, because anyio leaves the pipes of such a worker to the garbage collector.
    command = [sys.executable, "-c", textwrap.dedent(UNSTARTABLE), anyio_backend_name]

    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=True)

    assert done.stdout.startswith(b"transient no process could be started for getpid(): ")


def test_the_report_of_a_dead_worker_crosses_processes_itself() -> None:
    copy = pickle.loads(pickle.dumps(WorkerDiedError("gone", category="transient")))

    assert (str(copy), copy.category) == ("gone", "transient")


def test_functions_at_the_top_of_a_module_are_picklable() -> None:
    check_picklable(os.path.join)


@pytest.mark.parametrize("func", [lambda: None, threading.Lock().acquire])
def test_other_functions_are_refused_with_a_way_out(func: object) -> None:
    with pytest.raises(TypeError, match=r"cannot be sent to a process .*; define it with def at the top of a module"):
        check_picklable(func)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110  # threads and processes set no event of anyio's
            await anyio.sleep(0.001)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
