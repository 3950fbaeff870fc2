"""The examples run as their first lines say, and print what they promise."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEPARATE = {"flights.py"}
"""Examples with a test of their own."""

COMMANDS = {
    path.name: re.findall(r"^ {4}(python examples/.+?)(?: +#.*)?$", path.read_text(encoding="utf-8"), re.MULTILINE)
    for path in sorted((ROOT / "examples").glob("*.py"))
}
RUNS = [command for name, commands in COMMANDS.items() if name not in SEPARATE for command in commands]


def run(command: str) -> str:
    program, *arguments = shlex.split(command)
    assert program == "python"
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_says_how_to_run_it(name: str) -> None:
    assert COMMANDS[name]
    assert all(f" examples/{name}" in command for command in COMMANDS[name])


@pytest.mark.parametrize("command", RUNS)
def test_an_example_runs_and_says_something(command: str) -> None:
    assert run(command)


def test_the_custom_hooks_hear_of_each_batch_and_keep_what_failed() -> None:
    lines = run("python examples/custom_hook.py").splitlines()

    batches = [line for line in lines if line.startswith("store: 99 of 100 done in ")]
    assert len(batches) == 10
    assert lines[10:] == [
        "set aside: 10 with ValueError: <n> ends in <n>",
        "  offset 0: 0 ends in 0000",
        "  offset 100: 10000 ends in 0000",
        "  offset 200: 40000 ends in 0000",
        "990 of 1000 stored, 10 set aside",
    ]
