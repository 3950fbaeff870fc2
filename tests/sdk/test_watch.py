"""A watch on synchronous code: whom it names, and how it says so."""

import logging
import warnings

import pytest

from forebay._errors import BlockedLoopWarning
from forebay._watch import LoopWatch


def test_where_warnings_are_errors_the_log_names_who_held_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    watch = LoopWatch("parse()", "pass run_in='thread'")

    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.held(2.0, 1)

    assert caplog.messages == ["parse() held the event loop for 2000 ms over 1 item; pass run_in='thread'"]


def test_code_is_named_once_however_often_it_holds_the_loop() -> None:
    watch = LoopWatch("parse()", "pass run_in='thread'")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(10):
            watch.held(0.06, 20)

    (warning,) = caught
    assert warning.category is BlockedLoopWarning
    assert str(warning.message) == "parse() held the event loop for 60 ms over 20 items; pass run_in='thread'"


def test_slices_that_are_not_in_a_row_may_be_the_computers_doing() -> None:
    watch = LoopWatch("parse()", "pass run_in='thread'")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(10):
            watch.held(0.06, 1)
            watch.held(0.06, 1)
            watch.passed()

    assert caught == []
