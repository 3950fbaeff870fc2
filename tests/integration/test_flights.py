"""The main job, run as a program on January."""

import fcntl
import gzip
import os
import pty
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from contextlib import closing
from pathlib import Path

import pytest
from attrs import frozen

from tests.support.flights import (
    DAMAGED,
    GOOD,
    JANUARY,
    ROWS,
    command,
    expected,
    rows_written,
    run,
    set_aside,
    start,
    wait_for_lines,
    written,
)


@frozen
class Finished:
    database: Path
    result: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module", params=["trio", "asyncio"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A whole run on each backend; the tests that share it change nothing."""
    database = tmp_path_factory.mktemp("flights") / "flights.db"
    return Finished(database, run(database, "--backend", str(request.param)))


def test_the_table_holds_each_flight_once_with_what_belongs_to_it(finished: Finished) -> None:
    assert finished.result.returncode == 0, finished.result.stderr
    assert written(finished.database) == expected()


def test_each_damaged_row_is_set_aside_with_its_reason(finished: Finished) -> None:
    assert set_aside(finished.database) == {
        1_500: ("parse", "dest is missing: the row ends after 'EWR'"),
        4_500: ("parse", "distance must be a whole number, not '1O89'"),
        7_500: ("parse", "month must be 1 to 12, not 13"),
        10_500: ("parse", "day must be a day of month 1, not 32"),
        13_500: ("parse", "origin must not be empty, but is ''"),
        16_500: ("enrich", "origin must be a known airport, not 'QQQ'"),
        19_500: ("parse", "a row has 19 fields, not 20"),
        22_500: ("parse", r"dest must be UTF-8, not b'S\xe3\xff'"),
        25_500: ("parse", "distance must be more than 0 miles, not -733"),
    }


def test_a_dead_letter_keeps_the_row_byte_for_byte(finished: Finished) -> None:
    with closing(sqlite3.connect(finished.database)) as connection:
        found = connection.execute('SELECT "offset", payload FROM forebay_dead_letters').fetchall()

    lines = gzip.decompress(JANUARY.read_bytes()).split(b"\n")
    assert {int(offset): payload for offset, payload in found} == {
        int(offset): lines[int(offset) + 1] for offset, _ in found
    }


def test_off_a_terminal_it_prints_plain_lines_and_the_report(finished: Finished) -> None:
    output, errors = finished.result.stdout, finished.result.stderr

    assert "\r" not in errors
    assert "\x1b" not in errors
    assert 5 <= len(errors.splitlines()) <= 10
    assert f"read       {ROWS:>9,} rows" in output
    assert f"written    {GOOD:>9,} rows" in output
    assert f"set aside  {DAMAGED:>9,} rows" in output
    assert re.search(r"rate .* rows/s\nfrom read to settled: p50 \d+ ms, p95 \d+ ms, p99 \d+ ms\n", output)
    assert re.search(r"^write .* 106  p50 256, up to 256$", output, re.MULTILINE)
    assert all(len(line) < 80 for line in (output + errors).splitlines() if str(finished.database) not in line)


def test_a_rerun_says_that_there_is_nothing_to_do_and_changes_nothing(finished: Finished) -> None:
    before = written(finished.database), set_aside(finished.database)

    result = run(finished.database)

    assert result.returncode == 0
    assert (
        result.stdout == f"nothing to do: all 27,013 rows are dealt with in {finished.database}; --fresh starts over\n"
    )
    assert (written(finished.database), set_aside(finished.database)) == before


def test_fresh_starts_over(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "flights.db")) as connection:
        connection.execute("CREATE TABLE flights (wrong)")

    result = run(tmp_path / "flights.db", "--fresh")

    assert f"written    {GOOD:>9,} rows" in result.stdout
    assert rows_written(tmp_path / "flights.db") == GOOD


def test_on_a_terminal_a_bar_fits_the_width_and_is_gone_at_the_end(tmp_path: Path) -> None:
    columns = 76
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    started = time.monotonic()
    process = subprocess.Popen(
        command(tmp_path / "flights.db", "--max-size", "32"), stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)

    shown = _all_of(ours)

    seconds = time.monotonic() - started
    assert process.wait() == 0
    assert shown.endswith("\r\x1b[K")
    bars = [bar for bar in re.split(r"\r|\x1b\[K", shown) if bar]
    assert 3 <= len(bars) <= 10 * seconds + 1
    assert all(re.fullmatch(r"\[#*-*\]  *\d+%  .* rows  .*/s  \d+:\d\d left  \d set aside", bar) for bar in bars), bars
    assert max(map(len, bars)) < columns


def _all_of(terminal: int) -> str:
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65_536)
        except OSError:  # the program has closed its side
            os.close(terminal)
            return shown.decode()


@pytest.mark.parametrize(
    ("backend", "sent"), [("trio", signal.SIGTERM), ("trio", signal.SIGINT), ("asyncio", signal.SIGTERM)]
)
def test_a_signal_drains_and_the_same_command_goes_on(tmp_path: Path, backend: str, sent: signal.Signals) -> None:
    process = start(tmp_path / "flights.db", "--backend", backend, "--max-size", "64")
    wait_for_lines(process, 2)
    process.send_signal(sent)

    output, errors = process.communicate(timeout=20)

    assert process.returncode == 128 + sent
    stopped = re.fullmatch(
        rf"flights: stopped by {sent.name} after ([\d,]+) of 27,013 rows; the same command goes on there",
        errors.splitlines()[-1],
    )
    assert stopped is not None
    done = int(stopped[1].replace(",", ""))
    assert 0 < done < ROWS
    assert rows_written(tmp_path / "flights.db") + len(set_aside(tmp_path / "flights.db")) == done
    assert "written" in output
    assert f"{ROWS - done:>9,} rows in" in run(tmp_path / "flights.db").stdout  # clean: no row was read twice
    assert written(tmp_path / "flights.db") == expected()
    assert len(set_aside(tmp_path / "flights.db")) == DAMAGED


def test_a_file_that_is_cut_short_ends_in_one_sentence_and_the_whole_one_completes_it(tmp_path: Path) -> None:
    data = tmp_path / "flights-2013-01.csv.gz"
    whole = JANUARY.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])

    result = run(tmp_path / "flights.db", "--data", str(data))

    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(
        rf"flights: {data} is damaged behind row [\d,]+ \(.*\); fetch it again and go on", _last(result.stderr)
    )
    before = rows_written(tmp_path / "flights.db")
    assert before > 0
    data.write_bytes(whole)
    again = run(tmp_path / "flights.db", "--data", str(data))
    assert again.returncode == 0
    assert "were done before" in again.stdout
    assert written(tmp_path / "flights.db") == expected()
    assert len(set_aside(tmp_path / "flights.db")) == DAMAGED


def _last(errors: str) -> str:
    """Return the last line; before it there may be lines about how far it is, and nothing else."""
    *before, last = errors.splitlines()
    assert all(line.endswith("set aside") for line in before), errors
    return last


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    result = run(tmp_path / "flights.db", "--data", str(tmp_path / "nowhere.csv.gz"))

    assert result.returncode == 1
    assert result.stderr == f"flights: {tmp_path}/nowhere.csv.gz cannot be read: No such file or directory\n"


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    shutil.copy(JANUARY.with_name("planes.csv.gz"), tmp_path)

    result = run(tmp_path / "flights.db", "--data", str(tmp_path / "planes.csv.gz"))

    assert result.returncode == 1
    assert result.stderr.startswith(
        f"flights: {tmp_path}/planes.csv.gz is no file of flights: it begins with 'tailnum,"
    )
    assert result.stderr.count("\n") == 1


def test_a_wrong_batch_size_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path / "flights.db", "--max-size", "0")

    assert result.returncode == 2
    assert result.stderr.endswith("error: --max-size must be at least 1, not 0\n")


def test_a_file_that_may_not_grow_ends_in_one_sentence_and_a_rerun_completes_it(tmp_path: Path) -> None:
    limit = 1_500_000
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
            "os.execv(sys.argv[2], sys.argv[2:])",
            str(limit),
            *command(tmp_path / "flights.db"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.returncode == 1
    assert re.fullmatch(
        rf"flights: {tmp_path}/flights.db: the disk did not read or write, while .* \(disk I/O error\)",
        _last(result.stderr),
    )
    assert 0 < rows_written(tmp_path / "flights.db") < GOOD
    assert run(tmp_path / "flights.db").returncode == 0
    assert written(tmp_path / "flights.db") == expected()
    assert len(set_aside(tmp_path / "flights.db")) == DAMAGED


SMALL_DISK = """
mount -t tmpfs -o size=2m tmpfs "$1" || exit 77
shift
"$@"
echo "code $?"
mount -o remount,size=64m "$(dirname "$4")" || exit 77
"$@" >&2
echo "code $?"
cp "$4" "$4-wal" "$(dirname "$4")/../" 2>/dev/null || cp "$4" "$(dirname "$4")/../"
"""


def test_a_full_disk_ends_in_one_sentence_and_a_rerun_with_room_completes_it(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here to mount a small disk with")

    result = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", SMALL_DISK, "sh", str(disk), *command(disk / "flights.db")],
        capture_output=True,
        text=True,
        timeout=60,
    )

    if result.returncode in (1, 77) and "code" not in result.stdout:
        pytest.skip(f"a small disk cannot be mounted here: {result.stderr.strip()}")
    assert result.stdout.splitlines() == ["code 1", "code 0"]
    sentences = [line for line in result.stderr.splitlines() if "flights.db: " in line]
    assert len(sentences) == 1, result.stderr
    assert "flights.db: the disk, or the space allowed to the database, is full, while" in sentences[0]
    assert written(tmp_path / "flights.db") == expected()


def test_a_process_that_is_killed_three_times_leaves_a_complete_table(tmp_path: Path) -> None:
    left: list[int] = []
    for lines in (2, 2, 3):
        process = start(tmp_path / "flights.db", "--max-size", "64")
        wait_for_lines(process, lines)
        process.kill()
        process.communicate()
        left.append(rows_written(tmp_path / "flights.db"))

    result = run(tmp_path / "flights.db")

    assert 0 < left[0] < left[1] < left[2] < GOOD
    assert result.returncode == 0
    assert written(tmp_path / "flights.db") == expected()
    assert len(set_aside(tmp_path / "flights.db")) == DAMAGED
