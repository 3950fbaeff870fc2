"""kill -9 of the main job at random moments."""

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.flights import DAMAGED, GOOD, expected, rows_written, run, set_aside, start, written

KILLS = 20


@pytest.mark.soak
@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_killed_at_twenty_random_moments_and_run_again_the_table_is_complete_and_exact(
    tmp_path: Path, backend: str
) -> None:
    seed = int(os.environ.get("FOREBAY_SEED", "2013"))
    rng = random.Random(f"{seed} {backend}")
    wanted = expected()
    started = time.monotonic()
    run(tmp_path / "whole.db", "--backend", backend)
    seconds = time.monotonic() - started
    caught_between = kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        database = tmp_path / f"{rounds}.db"
        for _ in range(rng.randint(1, 2)):
            size = str(rng.choice([7, 64, 256]))
            if _killed(database, rng.uniform(0.3, 1.0) * seconds, "--backend", backend, "--max-size", size):
                kills += 1
                caught_between += 0 < rows_written(database) < GOOD

        result = run(database, "--backend", backend)

        assert result.returncode == 0, f"seed {seed}, round {rounds}: {result.stderr}"
        assert written(database) == wanted, f"seed {seed}, round {rounds}"
        assert len(set_aside(database)) == DAMAGED, f"seed {seed}, round {rounds}"
    assert caught_between >= KILLS // 4, f"only {caught_between} of {kills} kills came while rows were written"


def _killed(database: Path, seconds: float, *options: str) -> bool:
    """Run the job for *seconds*; return whether it had to be killed."""
    process = start(database, *options)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    return False
