"""The README's programs run."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def run(program: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_file_goes_into_a_table_each_row_once(tmp_path: Path) -> None:
    assert run(PROGRAMS[0], tmp_path) == "2 written, 1 set aside\n"
    assert run(PROGRAMS[0], tmp_path) == "0 written, 0 set aside\n"


def test_a_queue_hands_its_items_out(tmp_path: Path) -> None:
    assert run(PROGRAMS[1], tmp_path) == "sending [{'id': 1}, {'id': 2}]\n"
