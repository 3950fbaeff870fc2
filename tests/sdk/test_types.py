import inspect
from typing import Any

import attrs
import pytest

from forebay import Summary, _types
from forebay._types import (
    Again,
    Bounds,
    CallOutcome,
    Category,
    Chunk,
    DeadLetter,
    DeadLetterFilter,
    DeadLetterId,
    DeadLetterState,
    Dropped,
    Failed,
    Goal,
    Limits,
    Quantiles,
    Settlement,
    StageSummary,
)

LETTER = DeadLetter(
    DeadLetterId("billing", "orders", 3, "17"),
    payload=b"{}",
    content_type="application/json",
    category=Category.PERMANENT,
    fingerprint="fp1:abc",
    stage="store",
    error_type="builtins.ValueError",
    message="amount is negative",
    last_seen=100.0,
)

RECORDS = [thing for _, thing in inspect.getmembers(_types, attrs.has) if thing.__module__ == _types.__name__]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_record_is_frozen(record: type[Any]) -> None:
    # An instance without its fields will do: setting is refused before anything is looked at.
    instance: object = object.__new__(record)

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(instance, attrs.fields(record)[0].name, 1)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"pipeline": "billing"},
        {"source": "orders"},
        {"stage": "store"},
        {"category": Category.PERMANENT},
        {"fingerprint": "fp1:abc"},
        {"state": DeadLetterState.DEAD},
        {"since": 100.0},
        {"until": 100.1},
        {"text": "negative"},
        {"pipeline": "billing", "stage": "store", "text": "amount", "since": 1.0, "until": 101.0},
    ],
)
def test_a_filter_matches_a_letter_that_has_all_it_asks_for(wanted: dict[str, Any]) -> None:
    assert DeadLetterFilter(**wanted).matches(LETTER)


@pytest.mark.parametrize(
    "wanted",
    [
        {"pipeline": "orders"},
        {"source": "billing"},
        {"stage": "parse"},
        {"category": Category.POISON},
        {"fingerprint": "fp1:abd"},
        {"state": DeadLetterState.RESOLVED},
        {"since": 100.1},
        {"until": 100.0},
        {"text": "Negative"},
        {"pipeline": "billing", "stage": "parse"},
    ],
)
def test_a_filter_leaves_out_a_letter_that_lacks_one_thing(wanted: dict[str, Any]) -> None:
    assert not DeadLetterFilter(**wanted).matches(LETTER)


def test_identities_of_dead_letters_sort_by_where_the_item_came_from() -> None:
    ids = [
        DeadLetterId("b", "s", 0, "1"),
        DeadLetterId("a", "s", 2, "1"),
        DeadLetterId("a", "s", 1, "2", generation=1),
        DeadLetterId("a", "s", 1, "2"),
    ]

    assert sorted(ids) == ids[::-1]
    assert len({*ids, DeadLetterId("b", "s", 0, "1")}) == 4


def test_a_category_and_a_state_are_their_names() -> None:
    assert Category("transient") is Category.TRANSIENT
    assert f"{Category.POISON} {DeadLetterState.REPLAYING} {CallOutcome.CANCELLED}" == "poison replaying cancelled"


def test_records_of_two_letters_share_no_headers() -> None:
    other = attrs.evolve(LETTER, headers={"trace": "1"})

    assert (LETTER.headers, other.headers) == ({}, {"trace": "1"})


def test_a_plain_chunk_is_new_and_certain() -> None:
    chunk = Chunk(["a"], range(1))

    assert (chunk.partition, chunk.epoch, chunk.deliveries, chunk.failures, chunk.maybe_done) == (0, 0, 1, 0, False)
    assert (chunk.keys, chunk.headers, chunk.sizes, chunk.lost) == (None, None, None, ())


def test_records_are_equal_by_value() -> None:
    error = ValueError("x")

    assert Failed(error) == Failed(error)
    assert Dropped("late") == Dropped("late") != Dropped("early")
    assert Settlement(range(3)) == Settlement(range(3))
    assert hash(Limits(1, 2, 0.5)) == hash(Limits(1, 2, 0.5))


def test_a_summary_can_be_read_by_people() -> None:
    stage = StageSummary(
        "store",
        1_234_567,
        1_234_560,
        0,
        7,
        0,
        7,
        0,
        5_000,
        1.5,
        Quantiles(1, 250, 250, 250, 250, 250),
        Quantiles(),
        Quantiles(),
    )
    summary = Summary(
        "orders",
        "id",
        1_234_567,
        1_234_560,
        0,
        0,
        7,
        0,
        0,
        0,
        0,
        2.5,
        Quantiles(1, 0.5, 0.5, 1.5, 2.0, 2.0),
        True,
        [stage],
        {"store: ValueError": 7},
        {},
        ["stuck"],
    )

    report = summary.report()

    assert "1,234,560 done, 7 set aside" in report
    assert "p50 500.0 ms, p95 1.50 s, p99 2.00 s" in report
    assert "set aside: 7 in store: ValueError" in report
    assert "still running in a thread: stuck" in report
    assert all(len(line) <= 80 for line in report.splitlines())


def test_a_summary_of_nothing_says_so() -> None:
    summary = Summary("orders", "id", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, Quantiles(), False, [])

    report = summary.report()

    assert "nothing done" in report
    assert "cut off" in report


def test_an_item_fails_with_an_exception_and_not_with_a_text() -> None:
    text: Any = "negative"

    with pytest.raises(TypeError) as raised:
        Failed(text)

    assert str(raised.value) == "Failed() needs an exception, not 'negative'; write Failed(ValueError(...))"


@pytest.mark.parametrize("after", [-1, float("nan"), True, "5", None])
def test_another_attempt_is_asked_for_after_a_number_of_seconds(after: Any) -> None:
    with pytest.raises(ValueError, match="after must be a number of seconds, 0 or more, not ") as raised:
        Again(after)

    assert str(raised.value).endswith(repr(after))


# --- Goals and bounds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p99", "kind", "sentence"),
    [
        ("0.2", TypeError, "p99 must be a number of seconds, not '0.2'"),
        (True, TypeError, "p99 must be a number of seconds, not True"),
        (0, ValueError, "p99 must be finite and more than 0 seconds, not 0; leave it out for best throughput"),
        (float("nan"), ValueError, "p99 must be finite and more than 0 seconds, not nan; leave it out for best thr"),
        (float("inf"), ValueError, "p99 must be finite and more than 0 seconds, not inf; leave it out for best thr"),
    ],
)
def test_a_goal_is_a_positive_number_of_seconds_or_none(p99: Any, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind) as raised:
        Goal(p99)

    assert str(raised.value).startswith(sentence)
    assert Goal().p99 is None
    assert Goal(p99=1).p99 == 1


@pytest.mark.parametrize("name", ["min_size", "max_size", "min_concurrency", "max_concurrency"])
def test_bounds_are_whole_numbers_from_1_on(name: str) -> None:
    for wrong, kind, sentence in (
        (1.5, TypeError, "must be a whole number, not 1.5"),
        (True, TypeError, "must be a whole number, not True"),
        (0, ValueError, "must be at least 1, not 0"),
    ):
        options: dict[str, Any] = {name: wrong}
        with pytest.raises(kind) as raised:
            Bounds(**options)
        assert str(raised.value) == f"{name} {sentence}"


def test_bounds_are_not_upside_down() -> None:
    with pytest.raises(ValueError, match=r"^max_size must be at least min_size, which is 9, not 8$"):
        Bounds(min_size=9, max_size=8)
    with pytest.raises(ValueError, match=r"^max_concurrency must be at least min_concurrency, which is 257, not 256$"):
        Bounds(min_concurrency=257)
    assert Bounds(min_size=9, max_size=9).max_size == 9
