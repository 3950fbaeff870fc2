import inspect
import pickle
from typing import Any

import pytest

import forebay
from forebay import _errors
from forebay._errors import (
    BatchFailed,
    BatchSizeError,
    EngineError,
    ForebayError,
    HandlerContractError,
    TimeLimitError,
    WorkerDiedError,
)

EXCEPTIONS = [
    thing
    for _, thing in inspect.getmembers(_errors, inspect.isclass)
    if issubclass(thing, Exception) and thing.__module__ == _errors.__name__
]


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_every_exception_is_ours_or_a_warning(kind: type[Exception]) -> None:
    assert issubclass(kind, ForebayError) != issubclass(kind, UserWarning)


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_every_exception_has_a_door(kind: type[Exception]) -> None:
    assert getattr(forebay, kind.__name__) is kind


@pytest.mark.parametrize(
    "kind", [kind for kind in EXCEPTIONS if kind is not BatchFailed], ids=lambda kind: kind.__name__
)
def test_an_exception_survives_the_way_to_another_process(kind: type[Exception]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what happened")))

    assert type(copy) is kind
    assert str(copy) == "what happened"


def test_a_failed_batch_names_its_items() -> None:
    error = BatchFailed({3: ValueError("x"), 1: KeyError("y")})

    assert str(error) == "2 items failed: [1, 3]"
    assert set(error.failures) == {1, 3}


def test_a_batch_that_failed_in_many_items_names_the_first_ten() -> None:
    assert str(BatchFailed(dict.fromkeys(range(20), ValueError()))) == f"20 items failed: {list(range(10))}"


def test_a_failed_batch_keeps_a_copy_of_the_mapping() -> None:
    failures: dict[int, BaseException] = {0: ValueError("x")}
    error = BatchFailed(failures)

    failures[1] = ValueError("y")

    assert set(error.failures) == {0}


def test_a_failed_batch_without_items_is_refused() -> None:
    with pytest.raises(ValueError, match=r"failures must name at least one item, not \{\}; return None"):
        BatchFailed({})


def test_a_failed_batch_names_exceptions_and_not_their_texts() -> None:
    texts: Any = {1: "negative"}

    with pytest.raises(TypeError) as raised:
        BatchFailed(texts)

    assert str(raised.value) == "failures[1] must be an exception, not 'negative'"


def test_a_failed_batch_survives_the_way_to_another_process() -> None:
    copy = pickle.loads(pickle.dumps(BatchFailed({2: ValueError("negative")})))

    assert str(copy) == "1 items failed: [2]"
    assert repr(copy.failures) == "{2: ValueError('negative')}"


@pytest.mark.parametrize(("kind", "usual"), [(EngineError, "transient"), (WorkerDiedError, "poison")])
def test_an_exception_with_a_category_keeps_it_on_the_way_to_another_process(
    kind: type[EngineError] | type[WorkerDiedError], usual: str
) -> None:
    error = kind("the server is gone", category="dependency")

    copy = pickle.loads(pickle.dumps(error))

    assert (str(copy), copy.category) == ("the server is gone", "dependency")
    assert kind("x").category == usual


def test_what_a_handler_returned_wrongly_is_a_type_error_too() -> None:
    assert issubclass(HandlerContractError, TypeError)
    assert issubclass(BatchSizeError, HandlerContractError)


def test_a_time_limit_is_a_timeout() -> None:
    assert issubclass(TimeLimitError, TimeoutError)
