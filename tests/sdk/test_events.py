"""Who is told about a run, who decides about failures, and what their mistakes do."""

from __future__ import annotations

import logging
import subprocess
import sys
import types
from collections.abc import Callable

import pytest

from forebay._events import Events
from forebay._types import BatchInfo, Category, Failure, Pressure
from forebay.abc import Observer
from forebay.hooks import Plugins, hookimpl

DONE = BatchInfo(
    pipeline="p", stage="s", batch_id=1, size=2, done=2, failed=0, dropped=0,
    seconds=0.1, waited=0.0, attempt=1, started_at=0.0,
)  # fmt: skip
FAILURE = Failure(error=OSError("gone"), stage="s", source="x", attempt=1)


def plugin(hook: str, function: Callable[..., object], *, name: str = "mine") -> types.ModuleType:
    """Return a module with one hook implementation in it."""
    module = types.ModuleType(name)
    setattr(module, hook, hookimpl(function))
    return module


class Recorder:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def batch_done(self, info: BatchInfo) -> None:
        self.seen.append(info)


class Failing:
    def batch_done(self, info: BatchInfo) -> None:
        raise RuntimeError("the disk of the log is full")


def test_an_event_that_nobody_listens_to_is_none() -> None:
    events = Plugins(discover=False).events()

    assert events.batch_done is None
    assert events.run_finished is None
    assert events.statistics() == []


def test_hooks_and_observers_are_told_hooks_first() -> None:
    calls: list[str] = []

    class Second:
        def batch_done(self, info: BatchInfo) -> None:
            calls.append("observer")

    def hook(info: object) -> None:
        calls.append("hook")

    events = Plugins(plugin("forebay_batch_done", hook), discover=False).events([Second()])

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert calls == ["hook", "observer"]


def test_events_work_without_plugins() -> None:
    recorder = Recorder()
    events = Events(None, [recorder])

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert recorder.seen == [DONE]
    assert [(one.listener, one.event, one.calls, one.errors) for one in events.statistics()] == [
        (f"{__name__}.Recorder", "batch_done", 1, 0)
    ]


def test_a_method_that_an_observer_did_not_override_costs_nothing() -> None:
    class Partly(Observer):
        def pressure_changed(self, info: Pressure, /) -> None: ...

    events = Events(None, [Partly()])

    assert events.batch_done is None
    assert events.pressure_changed is not None


def test_an_exception_reaches_neither_the_batch_nor_the_next_listener(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    events = Events(None, [Failing(), recorder])

    assert events.batch_done is not None
    events.batch_done(DONE)
    events.batch_done(DONE)

    assert recorder.seen == [DONE, DONE]
    assert events.listener_errors == 2
    assert [(record.name, record.message) for record in caplog.records] == [
        ("forebay", f"{__name__}.Failing failed in batch_done; further failures are only counted")
    ]
    assert "the disk of the log is full" in caplog.text


def test_a_listener_that_failed_ten_times_is_called_no_more(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    events = Events(None, [Failing(), recorder])

    assert events.batch_done is not None
    for _ in range(12):
        events.batch_done(DONE)

    failing, recording = events.statistics()
    assert (failing.calls, failing.errors, failing.disabled) == (10, 10, True)
    assert (recording.calls, recording.errors, recording.disabled) == (12, 0, False)
    assert "Failing failed 10 times in batch_done and is called no more in this run" in caplog.text


def test_strict_events_raise_what_a_listener_raises() -> None:
    events = Events(None, [Failing()], strict=True)

    assert events.batch_done is not None
    with pytest.raises(RuntimeError, match="the disk of the log is full"):
        events.batch_done(DONE)


def test_a_listener_that_returns_a_coroutine_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def later() -> None: ...

    def hook(info: object) -> object:
        return later()  # hides that it is async def

    events = Plugins(plugin("forebay_batch_done", hook), discover=False).events()

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert events.listener_errors == 1
    assert "it returned a coroutine, which nobody awaits; make it a plain function" in caplog.text


def test_what_a_listener_returns_is_ignored() -> None:
    events = Plugins(plugin("forebay_batch_done", _answer(7)), discover=False).events()

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert events.listener_errors == 0


def test_time_spent_in_a_listener_is_counted() -> None:
    events = Events(None, [Recorder()])

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert events.statistics()[0].seconds > 0


class Misspelt:
    def batch_don(self, info: BatchInfo) -> None: ...


class MisspeltBesideAnother(Observer):
    def run_finish(self, info: object) -> None: ...

    def batch_done(self, info: BatchInfo, /) -> None: ...


class Async:
    async def batch_done(self, info: BatchInfo) -> None: ...


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        (Misspelt(), "observer {me}.Misspelt has a method batch_don, which forebay never calls; "
                     "did you mean 'batch_done'?"),
        (MisspeltBesideAnother(), "observer {me}.MisspeltBesideAnother has a method run_finish, "
                                  "which forebay never calls; did you mean 'run_finished'?"),
        (7, "observer 7 has none of the methods that forebay calls (run_started, batch_done, limits_changed, "
            "breaker_changed, pressure_changed, dead_lettered, partitions_changed, run_finished)"),
        (Recorder, "observer {me}.Recorder is a class; pass an instance, Recorder()"),
        (Async(), "batch_done of observer {me}.Async is async def and would never be awaited; make it a plain def"),
    ],
)  # fmt: skip
def test_an_observer_that_would_hear_nothing_is_refused(observer: object, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        Events(None, [observer])

    assert str(caught.value) == message.replace("{me}", __name__)


def test_an_observer_may_have_other_methods_that_sound_alike() -> None:
    class Counting(Recorder):
        batch_duration = 3
        run_start = 0.0

        def batches_done(self) -> int:
            return len(self.seen)

    assert Events(None, [Counting()]).batch_done is not None


# --- Deciding ----------------------------------------------------------------------------------


def test_nobody_has_an_opinion_on_a_failure() -> None:
    assert Events(None).classify(FAILURE) is None


def test_the_first_answer_counts() -> None:
    modules = [
        plugin("forebay_classify", _answer(answer), name=name)
        for name, answer in [("c", Category.POISON), ("b", Category.TRANSIENT), ("a", None)]
    ]

    assert Plugins(*modules, discover=False).events().classify(FAILURE) is Category.TRANSIENT


def _answer(answer: object) -> Callable[[], object]:
    def hook() -> object:
        return answer

    return hook


def test_no_answer_at_all_leaves_the_failure_to_forebay() -> None:
    assert Plugins(plugin("forebay_classify", _answer(None)), discover=False).events().classify(FAILURE) is None


def test_a_decision_that_fails_or_is_no_category_counts_as_unknown(caplog: pytest.LogCaptureFixture) -> None:
    def raising(failure: Failure) -> Category:
        raise RuntimeError("no idea")

    raised = Plugins(plugin("forebay_classify", raising), discover=False).events()
    wrong = Plugins(plugin("forebay_classify", _answer("transient")), discover=False).events()

    with caplog.at_level(logging.WARNING, "forebay"):
        answers = [raised.classify(FAILURE), wrong.classify(FAILURE)]

    assert answers == [Category.UNKNOWN, Category.UNKNOWN]
    assert (raised.listener_errors, wrong.listener_errors) == (1, 1)
    assert "no idea" in caplog.text
    assert "it returned 'transient'; return a Category or None" in caplog.text


def test_a_strict_decision_raises() -> None:
    events = Plugins(plugin("forebay_classify", _answer(3)), discover=False).events(strict=True)

    with pytest.raises(TypeError, match="it returned 3; return a Category or None"):
        events.classify(FAILURE)


BATCHER = """
import sys, anyio, forebay


class Counting:
    size = 0

    def batch_done(self, info):
        self.size += info.size


async def main():
    observer = Counting()
    async with forebay.open_batcher(list, max_size=2, max_age=0.0, observers=[observer]) as batcher:
        await batcher.submit(1)
    print(observer.size, *(name for name in ("pluggy", "forebay.hooks") if name in sys.modules))


anyio.run(main)
"""


def test_a_batcher_with_observers_and_without_plugins_does_not_load_pluggy() -> None:
    shown = subprocess.run([sys.executable, "-c", BATCHER], capture_output=True, text=True, check=True).stdout

    assert shown.strip() == "1"
