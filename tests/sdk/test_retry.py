import datetime
import errno
import json
import random
import socket
import statistics
from collections.abc import Callable

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from forebay._errors import BatchError, EngineError, HandlerContractError
from forebay._retry import Jitter, Retry, classify
from forebay._types import Category, Failure

TRANSIENT, DEPENDENCY, PERMANENT, POISON, UNKNOWN = (
    Category.TRANSIENT,
    Category.DEPENDENCY,
    Category.PERMANENT,
    Category.POISON,
    Category.UNKNOWN,
)


class Told(Exception):
    def __init__(self, **told: object) -> None:
        super().__init__("told")
        self.__dict__.update(told)


class Grumpy(Exception):
    @property
    def category(self) -> str:
        raise RuntimeError("not now")


def judge(error: BaseException) -> Category:
    return classify(Failure(error=error, stage="store", source="orders", attempt=1))


def raised_by(action: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as info:  # noqa: PT011  # whatever it is: the caller knows
        action()
    return info.value


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (TimeoutError(), TRANSIENT),
        (ConnectionResetError(), TRANSIENT),
        (InterruptedError(), TRANSIENT),
        (BlockingIOError(), TRANSIENT),
        (anyio.BrokenResourceError(), TRANSIENT),
        (anyio.ClosedResourceError(), TRANSIENT),
        (anyio.EndOfStream(), TRANSIENT),
        (trio.TooSlowError(), TRANSIENT),
        (socket.gaierror(socket.EAI_NONAME, "no such host"), TRANSIENT),
        (OSError(errno.ETIMEDOUT, "slow"), TRANSIENT),
        (OSError(errno.EHOSTUNREACH, "away"), TRANSIENT),
        (OSError(errno.ENETUNREACH, "away"), TRANSIENT),
        (OSError(errno.ENOSPC, "full"), DEPENDENCY),
        (FileNotFoundError(errno.ENOENT, "gone"), UNKNOWN),
        (OSError("no number"), UNKNOWN),
        (raised_by(lambda: json.loads("{")), PERMANENT),
        (raised_by(lambda: b"\xff".decode()), PERMANENT),
        (raised_by(lambda: dict[str, int]()["x"]), PERMANENT),
        (raised_by(lambda: 1 / 0), PERMANENT),
        (raised_by(lambda: object().x), PERMANENT),  # type: ignore[attr-defined]  # pyright: ignore  # that is the point
        (TypeError(), PERMANENT),
        (AssertionError(), PERMANENT),
        (RecursionError(), PERMANENT),
        (HandlerContractError(), PERMANENT),
        (MemoryError(), UNKNOWN),
        (RuntimeError(), UNKNOWN),
        (KeyboardInterrupt(), UNKNOWN),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_the_nearest_known_class_decides(error: BaseException, category: Category) -> None:
    assert judge(error) is category


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (EngineError("down", category="dependency"), DEPENDENCY),
        (Told(category=POISON), POISON),
        (Told(category="PERMANENT"), PERMANENT),
        (Told(category="permanent", retry_after=3), PERMANENT),
        (Told(retry_after=0), TRANSIENT),
        (Told(retry_after="Wed, 21 Oct 2026 07:28:00 GMT"), TRANSIENT),
        (Told(retry_after=None), UNKNOWN),
        (Told(category="weather"), UNKNOWN),
        (Told(category=7), UNKNOWN),
        (Grumpy(), UNKNOWN),
    ],
)
def test_what_the_exception_says_about_itself_comes_first(error: BaseException, category: Category) -> None:
    assert judge(error) is category


@pytest.mark.parametrize(
    ("leaves", "category"),
    [
        ([TimeoutError(), TimeoutError()], TRANSIENT),
        ([TimeoutError(), RuntimeError()], UNKNOWN),
        ([RuntimeError(), EngineError("down", category="dependency")], DEPENDENCY),
        ([EngineError("down", category="dependency"), ValueError(), TimeoutError()], PERMANENT),
        ([ValueError(), Told(category="poison")], POISON),
        ([TimeoutError(), ExceptionGroup("inner", [ValueError()])], PERMANENT),
    ],
)
def test_a_group_is_its_worst_leaf(leaves: list[Exception], category: Category) -> None:
    assert judge(ExceptionGroup("several", leaves)) is category


def test_leaves_that_are_no_exceptions_do_not_count() -> None:
    assert judge(BaseExceptionGroup("several", [KeyboardInterrupt(), TimeoutError()])) is TRANSIENT
    assert judge(BaseExceptionGroup("several", [KeyboardInterrupt()])) is UNKNOWN


def test_a_group_within_a_group_of_base_exceptions_is_opened() -> None:
    inner = BaseExceptionGroup("inner", [SystemExit(), ValueError()])

    assert judge(BaseExceptionGroup("outer", [inner, TimeoutError()])) is PERMANENT


def test_a_group_that_says_what_it_is_is_not_opened() -> None:
    class Outage(ExceptionGroup[Exception]):
        category = "dependency"

    assert judge(Outage("down", [ValueError()])) is DEPENDENCY


def test_a_batch_error_is_what_caused_it() -> None:
    error = BatchError("batch failed")
    assert judge(error) is UNKNOWN

    error.__cause__ = TimeoutError()

    assert judge(error) is TRANSIENT


def test_a_batch_error_that_caused_itself_comes_to_an_end() -> None:
    error = BatchError("batch failed")
    error.__cause__ = error

    assert judge(error) is UNKNOWN


def test_attempts_are_limited_and_only_for_the_categories_named() -> None:
    retry = Retry(max_attempts=3)

    assert [retry.allows(failures, TRANSIENT) for failures in (1, 2, 3, 4)] == [True, True, False, False]
    assert not any(retry.allows(1, category) for category in (DEPENDENCY, PERMANENT, POISON, UNKNOWN))


@pytest.mark.parametrize("on", [["transient", "unknown"], {TRANSIENT, UNKNOWN}, ("TRANSIENT", UNKNOWN)])
def test_categories_may_be_named_in_any_collection(on: list[Category | str]) -> None:
    assert Retry(on=on).on == frozenset({TRANSIENT, UNKNOWN})


def test_without_jitter_delays_grow_to_the_cap_and_no_further() -> None:
    retry = Retry(base=0.5, factor=3, cap=5, jitter="none")

    delays = [retry.delay(failures, None, None, random.Random(1)) for failures in (1, 2, 3, 4, 5000)]

    assert delays == [0.5, 1.5, 4.5, 5, 5]


def test_full_jitter_spreads_evenly_from_nothing_to_the_exponential_delay() -> None:
    retry, rng = Retry(base=1, factor=2, cap=60), random.Random(1)

    delays = [retry.delay(3, None, None, rng) for _ in range(2000)]

    assert 0 <= min(delays) < 0.1
    assert 3.9 < max(delays) <= 4
    assert statistics.mean(delays) == pytest.approx(2, rel=0.05)


def test_decorrelated_jitter_goes_by_the_previous_delay() -> None:
    retry, rng = Retry(base=1, cap=10, jitter="decorrelated"), random.Random(1)

    first = [retry.delay(1, None, None, rng) for _ in range(500)]
    later = [retry.delay(9, None, 2.0, rng) for _ in range(500)]
    capped = [retry.delay(9, None, 100.0, rng) for _ in range(500)]

    assert 1 <= min(first) < 1.1 < 2.9 < max(first) <= 3
    assert 1 <= min(later) < 1.2 < 5.8 < max(later) <= 6
    assert max(capped) == 10


@pytest.mark.parametrize("wait", [30, 30.0, "30", " 30 ", datetime.timedelta(seconds=30)])
def test_a_delay_is_never_shorter_than_the_error_asks_for_and_still_spread(wait: object) -> None:
    retry, rng = Retry(base=1, cap=2), random.Random(1)

    delays = {retry.delay(1, Told(retry_after=wait), None, rng) for _ in range(50)}

    assert 30 <= min(delays) < max(delays) <= 31


@pytest.mark.parametrize("wait", [None, "soon", -5, float("inf"), float("nan"), [3]])
def test_a_wait_that_cannot_be_read_adds_nothing(wait: object) -> None:
    assert Retry(base=1, jitter="none").delay(1, Told(retry_after=wait), None, random.Random(1)) == 1


@given(
    failures=st.integers(1, 10**6),
    base=st.floats(0, 100),
    factor=st.floats(1, 100),
    extra=st.floats(0, 1000),
    previous=st.none() | st.floats(0, 10**9),
    jitter=st.sampled_from(["full", "decorrelated", "none"]),
    seed=st.integers(0, 100),
)
def test_every_delay_lies_between_nothing_and_the_cap(
    failures: int, base: float, factor: float, extra: float, previous: float | None, jitter: Jitter, seed: int
) -> None:
    retry = Retry(base=base, factor=factor, cap=base + extra, jitter=jitter)

    delay = retry.delay(failures, None, previous, random.Random(seed))

    assert 0 <= delay <= retry.cap
    assert delay == retry.delay(failures, None, previous, random.Random(seed))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"max_attempts": 0}, ValueError, "max_attempts must be at least 1, not 0; 1 is no further attempt"),
        ({"max_attempts": 2.5}, TypeError, "max_attempts must be a whole number, not 2.5"),
        ({"max_attempts": True}, TypeError, "max_attempts must be a whole number, not True"),
        ({"base": -1}, ValueError, "base must be finite and at least 0.0, not -1"),
        ({"base": "1"}, TypeError, "base must be a number, not '1'"),
        ({"factor": 0.5}, ValueError, "factor must be finite and at least 1.0, not 0.5"),
        ({"cap": 0.1}, ValueError, "cap must be finite and at least base, 0.2, not 0.1"),
        ({"cap": float("inf")}, ValueError, "cap must be finite and at least base, 0.2, not inf"),
        (
            {"jitter": "ful"},
            ValueError,
            "jitter must be one of full, decorrelated, none, not 'ful'; did you mean 'full'?",
        ),
        ({"on": "transient"}, TypeError, "on must be a collection of categories, not 'transient'; write {'transient'}"),
        ({"on": [3]}, TypeError, "on must hold categories or their names, not 3"),
        (
            {"on": {"transiet"}},
            ValueError,
            "on has no category 'transiet' (known: transient, dependency, permanent, poison, unknown); "
            "did you mean 'transient'?",
        ),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named_with_what_to_do(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as info:
        Retry(**arguments)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # wrong on purpose

    assert str(info.value) == message
