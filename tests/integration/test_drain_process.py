"""Real processes, real signals: how long it takes until the process is gone, and what its report says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time
import anyio, forebay

def stuck(items):
    print("begun", os.getpid(), flush=True)
    time.sleep(60)

async def slow(items):
    print("begun", os.getpid(), flush=True)
    await anyio.sleep(60)

def endless():
    number = 0
    while True:
        yield number
        number += 1

async def main(backend, handler, run_in, drain_timeout):
    options = {} if run_in == "loop" else {"run_in": run_in}
    recipe = forebay.pipeline(endless()).map_batches(globals()[handler], max_size=10, capacity=20, **options)
    async with forebay.open_scope(drain_timeout=float(drain_timeout), signals=True) as scope:
        summary = await recipe.run(drain_timeout=float(drain_timeout))
        print("abandoned", *summary.abandoned, flush=True)
        print("clean", summary.clean, flush=True)
    print("reason", scope.reason, "cancelled", scope.cancelled, flush=True)

if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:], backend=sys.argv[1])
"""

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


class Process:
    """A run of the program, begun when its handler is."""

    def __init__(self, program: Path, *arguments: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, str(program), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_begun(self) -> int:
        """Wait until the handler runs; return the id of the process that it runs in."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline().split()
        assert line[:1] == ["begun"], self.child.communicate()
        return int(line[1])

    def wait_gone(self, seconds: float) -> tuple[float, str]:
        """Wait until the process is gone; return how long it took and what it said."""
        began = time.monotonic()
        out, err = self.child.communicate(timeout=seconds + 20)
        assert "Traceback" not in err, err
        return time.monotonic() - began, out


@pytest.fixture
def start(program: Path) -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.child.kill()
        process.child.wait()


@backends
def test_a_drain_does_not_wait_for_a_handler_that_is_stuck_in_a_thread(
    program: Path, start: list[Process], backend: str
) -> None:
    process = Process(program, backend, "stuck", "thread", "1.5")
    start.append(process)
    process.wait_begun()

    process.child.send_signal(signal.SIGTERM)
    seconds, said = process.wait_gone(1.5)

    assert seconds < 1.5 + 1
    assert "abandoned stuck" in said
    assert "reason SIGTERM" in said
    assert process.child.returncode == 0


@backends
def test_a_second_signal_cancels_at_once(program: Path, start: list[Process], backend: str) -> None:
    process = Process(program, backend, "slow", "loop", "30")
    start.append(process)
    process.wait_begun()

    process.child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.child.poll() is None, "the first signal cut it off"
    process.child.send_signal(signal.SIGTERM)
    seconds, said = process.wait_gone(1)

    assert seconds < 2
    assert "reason SIGTERM cancelled True" in said


@backends
def test_a_handler_that_is_stuck_in_a_process_is_killed(program: Path, start: list[Process], backend: str) -> None:
    module = program.with_name("stuck_work.py")
    marker = program.with_name("worker_pid")
    module.write_text(
        f"import os, time\n"
        f"def stuck(items):\n"
        f"    with open({str(marker)!r}, 'w') as file:\n"
        f"        file.write(str(os.getpid()))\n"
        f"    time.sleep(60)\n"
    )
    program.write_text(PROGRAM.replace("def stuck(items):", "from stuck_work import stuck\n\ndef unused(items):"))
    process = Process(program, backend, "stuck", "process", "1.5")
    start.append(process)
    worker = wait_for_pid(marker)

    process.child.send_signal(signal.SIGTERM)
    seconds, _ = process.wait_gone(1.5)

    assert seconds < 1.5 + 1
    assert not is_alive(worker)


def wait_for_pid(marker: Path) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if marker.exists() and (text := marker.read_text()):
            return int(text)
        time.sleep(0.05)
    raise TimeoutError("the worker process did not begin")


def is_alive(pid: int) -> bool:
    """Return whether the process runs; one that has ended and waits to be reaped does not."""
    for _ in range(40):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat")
            if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True
