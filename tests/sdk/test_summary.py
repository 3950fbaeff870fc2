"""What a run did, as a table, as a story, and as JSON to keep."""

import json
from typing import Any

import pytest

import forebay
from forebay import Summary
from forebay.abc import Limits, LimitsInfo, Quantiles, StageSummary
from forebay.testing import FakeSink
from tests.support.controllers import WanderingFactory

pytestmark = pytest.mark.anyio


def made(moves: int, *, in_all: int | None = None) -> Summary:
    spread = Quantiles(3, 1.0, 1.0, 2.0, 3.0, 4.0)
    known = [
        LimitsInfo("orders", "enrich", Limits(1 + one, 1, 0.0), Limits(2 + one, 1, 0.0), f"reason {one} " * 9, one)
        for one in range(moves)
    ]
    stage = StageSummary("enrich", 3, 3, 0, 0, 0, 0, 0, 2, 0.5, spread, spread, spread)
    return Summary(
        *("orders", "orders-1", 3, 3, 0, 0, 0, 0, 0, 0, 0, 1.5, spread, True, [stage]),
        moves=known,
        moves_made=moves if in_all is None else in_all,
    )


def test_a_report_without_moves_says_nothing_of_them() -> None:
    assert "moves" not in made(0).report()


def test_a_report_shows_the_last_moves_within_80_columns() -> None:
    lines = made(3).report().splitlines()
    many = made(20, in_all=300).report().splitlines()

    assert lines[-4] == "moves of the controllers"
    assert many[-6] == "the last 5 of 300 moves of the controllers"
    assert [line.partition("reason ")[2][:2] for line in many[-5:]] == ["15", "16", "17", "18", "19"]
    assert max(map(len, many)) == 80
    assert many[-1].endswith("…")


def test_explain_tells_every_move_that_is_known() -> None:
    lines = made(20, in_all=300).explain().splitlines()

    assert lines[0] == "orders, run orders-1: 300 moves, of which the last 20 are known"
    assert len(lines) == 21


def test_a_summary_survives_json() -> None:
    summary = made(2)

    saved = json.loads(json.dumps(summary.as_dict()))

    assert Summary.from_dict(saved) == summary


def test_a_summary_of_another_version_is_read_as_far_as_it_goes() -> None:
    saved = made(1).as_dict()
    del saved["moves"], saved["moves_made"]
    saved["news"] = 7
    saved["stages"][0]["news"] = 7

    summary = Summary.from_dict(saved)

    assert (summary.moves, summary.moves_made, summary.seen) == ([], 0, 3)


WRONG: list[Any] = [[], {}, 7, {**made(1).as_dict(), "moves": [{}]}, {**made(1).as_dict(), "stages": 3}]


@pytest.mark.parametrize("saved", WRONG)
def test_what_is_no_summary_is_refused_with_a_sentence(saved: Any) -> None:
    with pytest.raises(ValueError, match=r"^this is no saved summary \(.+\); save what Summary\.as_dict\(\) returns$"):
        Summary.from_dict(saved)


async def test_a_run_keeps_the_moves_of_its_controllers() -> None:
    sink = FakeSink[int](latency=0.01)

    summary = (
        await forebay.pipeline(range(2000))
        .map_batches(sink, max_size=20, max_concurrency=3, control=WanderingFactory(1), name="store")
        .run()
    )

    assert summary.moves_made == len(summary.moves) > 10
    assert {move.stage for move in summary.moves} == {"store"}
    assert [move.at for move in summary.moves] == sorted(move.at for move in summary.moves)
    assert summary.explain().count("\n") == len(summary.moves)
    assert Summary.from_dict(json.loads(json.dumps(summary.as_dict()))).explain() == summary.explain()
