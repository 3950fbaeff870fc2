"""What the how-to shows, done as it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HOW_TO = Path(__file__).parents[2] / "docs/how-to/prove-a-plugin.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of the page; each block says its name."""
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", HOW_TO.read_text("utf-8"), re.DOTALL):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_suite_of_the_how_to_passes(folder: Path) -> None:
    code, out = run(folder, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ".", "-q")

    assert code == 0, out
    assert "  TestDictStore: 26 of 29 rules for a state store; supports_ttl: off (2), has_secret: off (1)" in out
    assert "52 passed, 6 skipped" in out


def test_the_command_of_the_how_to_passes(folder: Path) -> None:
    (line,) = re.findall(r"\$ forebay-conformance (run .*)", HOW_TO.read_text("utf-8"))

    code, out = run(folder, "-c", "from forebay_conformance._cli import main; exit(main())", *line.split())

    assert code == 0, out
    assert "52 passed, 0 failed, 6 do not apply" in out


def test_the_program_of_the_how_to_passes(folder: Path) -> None:
    code, out = run(folder, "check_one.py")

    assert code == 0, out


def test_the_how_to_names_every_trait() -> None:
    from forebay_conformance import ControllerTraits, SinkTraits, SourceTraits, StateStoreTraits

    text = HOW_TO.read_text("utf-8")
    flags = [
        name
        for traits in (SourceTraits, SinkTraits, StateStoreTraits, ControllerTraits)
        for name, value in vars(traits).items()
        if isinstance(value, bool)
    ]
    assert [name for name in flags if f"`{name}`" not in text] == []
