import asyncio
import importlib
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import forebay.testing
from forebay._worker import run_in_thread
from forebay.testing import (
    BackendName,
    VirtualLoop,
    run_virtual,
    virtual_backend,
    virtual_backends,
)

pytestmark = pytest.mark.anyio

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


async def test_sleeping_takes_no_real_time() -> None:
    begin, real = anyio.current_time(), time.monotonic()

    await anyio.sleep(24 * 3600)

    assert anyio.current_time() == begin + 24 * 3600
    assert time.monotonic() - real < 5


@backends
def test_virtual_time_starts_at_zero_and_hits_deadlines_exactly(backend: BackendName) -> None:
    async def main() -> list[float]:
        times = [anyio.current_time()]
        for seconds in (0.1, 0.7, 1e5):
            with anyio.move_on_after(seconds):
                await anyio.sleep_forever()
            times.append(anyio.current_time())
        return times

    assert run_virtual(main, backend=backend) == pytest.approx([0, 0.1, 0.8, 100000.8])


@backends
def test_timers_fire_in_order(backend: BackendName) -> None:
    fired: list[float] = []

    async def sleep(seconds: float) -> None:
        await anyio.sleep(seconds)
        fired.append(seconds)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for seconds in (3, 1, 2):
                tasks.start_soon(sleep, seconds)

    run_virtual(main, backend=backend)

    assert fired == [1, 2, 3]


async def in_own_thread(func: Callable[[], None]) -> None:
    await run_in_thread(func, name="quick")


@backends
@pytest.mark.parametrize("in_thread", [in_own_thread, anyio.to_thread.run_sync])
def test_the_clock_waits_for_a_thread_that_is_quick(
    backend: BackendName, in_thread: Callable[[Callable[[], None]], Awaitable[None]]
) -> None:
    async def main() -> bool:
        for _ in range(5):
            with anyio.move_on_after(60) as scope:
                await in_thread(lambda: time.sleep(0.001))
            if scope.cancelled_caught:
                return False
        return True

    assert run_virtual(main, backend=backend)


@backends
def test_the_clock_does_not_wait_for_a_thread_that_is_stuck(backend: BackendName) -> None:
    release = threading.Event()

    async def main() -> float:
        with anyio.move_on_after(3600):
            await run_in_thread(lambda: release.wait(60), name="stuck")
        return anyio.current_time()

    try:
        assert run_virtual(main, backend=backend) == 3600
    finally:
        release.set()


def test_the_clock_waits_for_sockets() -> None:
    async def main() -> bytes:
        left, right = socket.socketpair()
        left.setblocking(False)
        timer = threading.Timer(0.002, right.send, [b"x"])
        timer.start()
        try:
            with anyio.fail_after(60):
                return await asyncio.get_running_loop().sock_recv(left, 1)
        finally:
            timer.join()
            left.close()
            right.close()

    assert run_virtual(main, backend="asyncio") == b"x"


def test_sockets_can_be_watched_both_ways() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        left, right = socket.socketpair()
        with left, right:
            written = asyncio.Event()
            loop.add_reader(left, lambda: None)
            loop.add_writer(left, written.set)
            await written.wait()
            loop.remove_writer(left)
            loop.remove_reader(left)

    run_virtual(main, backend="asyncio")


def test_callbacks_from_other_threads_are_served() -> None:
    async def main() -> None:
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(event.set))
        thread.start()
        await event.wait()
        thread.join()

    run_virtual(main, backend="asyncio")


def test_child_processes_are_waited_for() -> None:
    async def main() -> bytes:
        with anyio.fail_after(60):
            return (await anyio.run_process([sys.executable, "-c", "print(1)"])).stdout

    loop = VirtualLoop(grace=5)  # a process takes long to start, and this is how a test makes room for it
    try:
        assert loop.run_until_complete(main()) == b"1\n"
    finally:
        loop.close()


def race(seed: int | None, backend: BackendName) -> list[tuple[int, int]]:
    order: list[tuple[int, int]] = []

    async def runner(number: int) -> None:
        for lap in range(5):
            order.append((lap, number))
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(runner, number)

    run_virtual(main, backend=backend, seed=seed)
    return order


@backends
def test_a_seed_decides_the_order_of_tasks(backend: BackendName) -> None:
    orders = [race(seed, backend) for seed in range(10)]

    assert [race(seed, backend) for seed in range(10)] == orders
    assert len({tuple(order) for order in orders}) == 10
    assert {tuple(sorted(order)) for order in orders} == {tuple((lap, n) for lap in range(5) for n in range(6))}


def test_a_seed_leaves_the_scheduler_of_trio_as_it_was() -> None:
    scheduler = importlib.import_module("trio._core._run")
    before = scheduler._r.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING

    race(1, "trio")

    assert (scheduler._r.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING) == before


def test_without_a_seed_asyncio_runs_first_come_first_served() -> None:
    assert race(None, "asyncio") == [(lap, n) for lap in range(5) for n in range(6)]


def test_a_seed_leaves_callbacks_that_are_no_tasks_in_order() -> None:
    called: list[int] = []

    async def main() -> None:
        for number in range(20):
            asyncio.get_running_loop().call_soon(called.append, number)
        await asyncio.sleep(1)

    run_virtual(main, backend="asyncio", seed=3)

    assert called == list(range(20))


def test_run_virtual_passes_arguments_results_and_exceptions_on() -> None:
    async def divide(a: int, b: int) -> float:
        return a / b

    assert run_virtual(divide, 6, 3) == 2
    with pytest.raises(ZeroDivisionError):
        run_virtual(divide, 1, 0, backend="asyncio")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="name must be 'asyncio' or 'trio', not 'curio'"):
        virtual_backend("curio")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the point


def test_virtual_backends_are_both() -> None:
    async def now() -> float:
        await anyio.sleep(5)
        return anyio.current_time()

    times = [anyio.run(now, backend=name, backend_options=options) for name, options in virtual_backends()]

    assert times == [5, 5]


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'forebay\.testing' has no attribute 'nothing'"):
        _ = forebay.testing.nothing  # pyright: ignore  # the point


def test_the_module_loads_neither_asyncio_nor_trio_nor_pytest_by_itself() -> None:
    # What anyio and forebay load counts as given.
    code = """
        import sys
        import anyio, forebay._scope, forebay._worker, forebay._dead_letter, forebay._state, forebay.abc
        before = set(sys.modules)
        import forebay.testing
        print({"asyncio", "trio", "pytest"} & (set(sys.modules) - before))
    """

    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=True)

    assert done.stdout == b"set()\n"


PLUGIN = """
    import time, anyio, pytest

    @pytest.fixture
    def anyio_backend(anyio_virtual_backend):
        return anyio_virtual_backend

    @pytest.mark.anyio
    async def test_virtual():
        await anyio.sleep(3600)

    @pytest.mark.anyio
    async def test_real(real_time):
        begin = time.monotonic()
        await anyio.sleep(0.05)
        assert time.monotonic() - begin > 0.04
"""


def test_the_fixtures_work_as_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["forebay.testing"]')
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_it.py").write_text(textwrap.dedent(PLUGIN))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]

    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)

    assert "4 passed" in done.stdout, done.stdout + done.stderr
