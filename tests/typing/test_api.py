"""Both type checkers agree with `api.py`, line by line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
API = HERE / "api.py"
IGNORE = re.compile(r"  # type: ignore\[[a-z, -]+\]  # wrong$", re.MULTILINE)


def check(tool: str, file: Path) -> str:
    pytest.importorskip(tool, reason=f"{tool} is not installed; `make check` installs it")
    done = subprocess.run(
        [sys.executable, "-m", tool, str(file)], capture_output=True, text=True, timeout=110, cwd=ROOT, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(("tool", "verdict"), [("mypy", "Success: no issues found"), ("pyright", "0 errors")])
def test_what_is_right_is_accepted(tool: str, verdict: str) -> None:
    answer = check(tool, API)

    assert verdict in answer, answer


@pytest.mark.parametrize(
    ("tool", "error"), [("mypy", r"wrong\.py:(\d+): error"), ("pyright", r"wrong\.py:(\d+):\d+ - error")]
)
def test_what_is_wrong_is_refused(tool: str, error: str, tmp_path: Path) -> None:
    text = API.read_text()
    wrong = {text.count("\n", 0, found.start()) + 1 for found in IGNORE.finditer(text)}
    naked = tmp_path / "wrong.py"
    naked.write_text(IGNORE.sub("", text))

    answer = check(tool, naked)

    refused = {int(line) for line in re.findall(error, answer)}
    assert len(wrong) > 30
    assert wrong - refused == set(), answer
