"""The suites under pytest, in runs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pytest_of(folder: Path, text: str, *arguments: str) -> tuple[int, str]:
    """Run pytest on a test module that says *text*; return its code and what it printed."""
    (folder / "test_mine.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ".", "-q", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "COLUMNS": "120"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


WRONG = """
from contextlib import asynccontextmanager
from conformance.tests.right_others import RightStateStore
from forebay_conformance import StateStoreSuite

class Wrong(RightStateStore):
    def keys(self, prefix):
        return list(self.values)

class TestWrong(StateStoreSuite):
    virtual_time = True
    supports_ttl = False

    @asynccontextmanager
    async def open_store(self):
        yield Wrong()
"""


def test_a_failure_shows_five_lines_and_no_traceback(tmp_path: Path) -> None:
    code, out = pytest_of(tmp_path, WRONG, "-k", "scan_order")

    assert code == 1
    lines = out.splitlines()
    start = next(index for index, line in enumerate(lines) if "TestWrong.test_scan_order[trio]" in line)
    shown = lines[start + 1 : start + 6]
    assert shown[0] == "state-store:scan-order: scan() yields keys in ascending order, each once."
    assert [line.split(":")[0].strip() for line in shown[1:]] == ["did", "expected", "got", "why"]
    assert "Error" not in out
    assert "forebay_conformance/_" not in out


def test_each_check_runs_on_both_backends_and_the_header_counts(tmp_path: Path) -> None:
    code, out = pytest_of(tmp_path, WRONG, "-k", "cas or ttl", "-rs")

    assert code == 0
    assert "forebay-conformance: rules 0.2" in out
    assert "  TestWrong: 26 of 29 rules for a state store; supports_ttl: off (2), has_secret: off (1)" in out
    assert "state-store:ttl does not apply (supports_ttl: off)" in out
    assert "12 passed, 4 skipped" in out


def test_a_suite_without_an_opener_says_what_to_define(tmp_path: Path) -> None:
    text = "from forebay_conformance import SourceSuite\nclass TestForgot(SourceSuite): pass\n"

    code, out = pytest_of(tmp_path, text)

    assert code == 2
    sentence = (
        "TestForgot has no open_source(items); define it to return an async context manager that yields "
        "a source of exactly these items, in order, and no more"
    )
    assert out.count(sentence) == 1
    assert "Traceback" not in out


def test_importing_a_suite_does_not_collect_it(tmp_path: Path) -> None:
    code, _ = pytest_of(tmp_path, "from forebay_conformance import SinkSuite, SourceSuite\n")

    assert code == pytest.ExitCode.NO_TESTS_COLLECTED


def test_a_sink_without_written_says_what_to_define(tmp_path: Path) -> None:
    text = """
from conformance.tests.right_others import open_right_sink
from forebay_conformance import SinkSuite

class TestForgot(SinkSuite):
    open_sink = staticmethod(open_right_sink)
"""

    code, out = pytest_of(tmp_path, text, "-k", "writes_all and trio")

    assert code == 1
    assert "TestForgot has no written(); define it to return what the sink's engine holds" in out
