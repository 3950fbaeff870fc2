"""What a user typed is checked where it was typed, each mistake with a sentence of its own."""

import functools
import io
import pathlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

import forebay
from forebay import ClosedPipeline, MemoryQueue, Pipeline, Retry
from forebay._checks import a, default_concurrency, is_iterable, is_sink, is_source, returns_none, without_password
from forebay.testing import FakeDeadLetterStore, FakeSink, RecordingObserver, ScriptedSource

if TYPE_CHECKING:
    from decimal import Decimal


async def handle(items: list[int]) -> list[int]:
    return items


async def double(item: int) -> int:
    return 2 * item


def one(item: int) -> int:
    return item


start = forebay.pipeline([1, 2, 3])
untyped: Any = start

WRONG_BATCH_OPTIONS: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"max_size": 0}, ValueError, "max_size must be at least 1, not 0"),
    ({"max_size": "5"}, TypeError, "max_size must be a whole number, not '5'"),
    ({"max_size": True}, TypeError, "max_size must be a whole number, not True"),
    ({"max_size": 2.5}, TypeError, "max_size must be a whole number, not 2.5"),
    ({"max_concurrency": 0}, ValueError, "max_concurrency must be at least 1, not 0"),
    ({"max_concurrency": 1.5}, TypeError, "max_concurrency must be a whole number, not 1.5"),
    ({"capacity": 0}, ValueError, "capacity must be at least 1, not 0"),
    ({"max_age": -1}, ValueError, "max_age must be at least 0 seconds, not -1"),
    ({"max_age": "1"}, TypeError, "max_age must be a number of seconds, not '1'"),
    ({"max_age": float("nan")}, ValueError, "max_age must be at least 0 seconds, not nan"),
    ({"time_limit": 0}, ValueError, "time_limit must be more than 0 seconds, not 0"),
    ({"time_limit": True}, TypeError, "time_limit must be a number of seconds, not True"),
    ({"max_bytes": 10}, ValueError, "max_bytes needs weigh, a function that returns the size of one item in bytes"),
    ({"max_bytes": 0, "weigh": len}, ValueError, "max_bytes must be at least 1, not 0"),
    ({"weigh": 3}, TypeError, "weigh needs a function, not 3, an int"),
    ({"run_in": "fiber"}, ValueError, "run_in must be 'loop', 'thread' or 'process', not 'fiber'"),
    (
        {"run_in": "thread"},
        ValueError,
        "run_in='thread' is for plain functions; handle() given to map_batches is async",
    ),
    ({"retry": 3}, TypeError, "retry must be a Retry, not 3; write retry=Retry(max_attempts=…)"),
    (
        {"dead_letters": True},
        TypeError,
        "dead_letters must be a store, or the name or URL of one, not True; "
        "write dead_letters='memory' to keep them in memory",
    ),
]


@pytest.mark.parametrize(("options", "kind", "sentence"), WRONG_BATCH_OPTIONS)
def test_each_wrong_option_of_a_batch_stage_has_its_sentence(
    options: dict[str, object], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as raised:
        untyped.map_batches(handle, **{"max_size": 5, **options})

    assert str(raised.value) == sentence


WRONG_ITEM_OPTIONS: list[tuple[Callable[..., object], dict[str, object], type[Exception], str]] = [
    (double, {"max_concurrency": 0}, ValueError, "max_concurrency must be at least 1, not 0"),
    (double, {"time_limit": -1}, ValueError, "time_limit must be more than 0 seconds, not -1"),
    (
        double,
        {"run_in": "process"},
        ValueError,
        "run_in='process' is for plain functions; double() given to {} is async",
    ),
    (one, {"run_in": "here"}, ValueError, "run_in must be 'loop', 'thread' or 'process', not 'here'"),
    (one, {"retry": "often"}, TypeError, "retry must be a Retry, not 'often'; write retry=Retry(max_attempts=…)"),
    (
        one,
        {"dead_letters": FakeDeadLetterStore},
        TypeError,
        f"dead_letters must be a store, or the name or URL of one, not {FakeDeadLetterStore!r}; "
        "write dead_letters='memory' to keep them in memory",
    ),
    (
        one,
        {"max_concurrency": 4},
        ValueError,
        "max_concurrency has no meaning for '{} one', a plain function that runs inline; "
        "pass run_in='thread' or run_in='process', or an async function",
    ),
    (
        one,
        {"time_limit": 4},
        ValueError,
        "time_limit has no meaning for '{} one', a plain function that runs inline; "
        "pass run_in='thread' or run_in='process', or an async function",
    ),
]


@pytest.mark.parametrize("method", ["map", "filter", "flat_map", "tap"])
@pytest.mark.parametrize(("func", "options", "kind", "sentence"), WRONG_ITEM_OPTIONS)
def test_each_wrong_option_of_an_item_step_has_its_sentence(
    method: str, func: Callable[..., object], options: dict[str, object], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as raised:
        getattr(untyped, method)(func, **options)

    assert str(raised.value) == sentence.replace("{}", method)


@pytest.mark.parametrize("method", ["map", "filter", "flat_map", "tap", "key_by"])
def test_a_step_needs_a_function(method: str) -> None:
    with pytest.raises(TypeError) as raised:
        getattr(untyped, method)(7)

    assert str(raised.value) == f"{method} needs a function, not 7, an int"


def test_a_stage_needs_a_function_or_a_sink() -> None:
    with pytest.raises(TypeError) as raised:
        untyped.map_batches(b"store", max_size=1)

    assert str(raised.value) == (
        "map_batches needs a function of a list, a Sink, or the name or URL of one, not b'store', a bytes"
    )


def test_the_class_of_a_sink_is_not_a_sink() -> None:
    with pytest.raises(TypeError) as raised:
        untyped.map_batches(FakeSink, max_size=1)

    assert str(raised.value) == "map_batches needs a Sink, not its class; pass an instance: FakeSink(…)"


def test_key_by_needs_a_plain_function() -> None:
    with pytest.raises(TypeError, match=r"^key_by needs a plain function, not 'double', which is async$"):
        untyped.key_by(double)


def test_a_lambda_cannot_go_to_a_process() -> None:
    with pytest.raises(TypeError, match="cannot be sent to a process"):
        start.map(lambda item: item, run_in="process")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (b"abc", "b'abc', a bytes"),
        (bytearray(b"abc"), "bytearray(b'abc'), a bytearray"),
        (7, "7, an int"),
        (None, "None, a NoneType"),
        (
            pathlib.PurePath("orders.jsonl"),
            f"{pathlib.PurePath('orders.jsonl')!r}, a {type(pathlib.PurePath()).__name__}",
        ),
        (ScriptedSource, f"{ScriptedSource!r}, a type"),
    ],
)
def test_a_source_of_the_wrong_kind_is_refused(source: object, shown: str) -> None:
    wrong: Any = source

    with pytest.raises(TypeError) as raised:
        forebay.pipeline(wrong)

    assert str(raised.value) == (
        f"source must be an iterable, an async iterable, a Source, or the name or URL of one, not {shown}"
    )


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"max_gap": 0}, ValueError, "max_gap must be at least 1, not 0"),
        ({"max_gap": "many"}, TypeError, "max_gap must be a whole number, not 'many'"),
        ({"retry": 1}, TypeError, "retry must be a Retry, not 1; write retry=Retry(max_attempts=…)"),
        (
            {"dead_letters": 1},
            TypeError,
            "dead_letters must be a store, or the name or URL of one, not 1; "
            "write dead_letters='memory' to keep them in memory",
        ),
    ],
)
def test_each_wrong_option_of_a_pipeline_has_its_sentence(
    options: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as raised:
        forebay.pipeline([1], **options)

    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("what", "use"),
    [
        ("source", forebay.pipeline),
        ("the function given to map_batches", functools.partial(untyped.map_batches, max_size=5)),
    ],
)
def test_a_context_manager_that_was_not_entered_is_refused(what: str, use: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as raised:
        use(forebay.open_memory_dead_letters())

    assert str(raised.value) == (
        f"{what} is a context manager that was not entered; write `async with open_...(...) as it:` "
        "around the run and pass `it`"
    )


def test_an_option_that_is_nearly_right_is_shown_the_right_one() -> None:
    with pytest.raises(TypeError) as raised:
        untyped.map(double, max_concurency=4)

    assert str(raised.value) == "map() has no argument 'max_concurency'; did you mean 'max_concurrency'?"


def test_an_option_like_no_other_is_shown_all_there_are() -> None:
    with pytest.raises(TypeError) as raised:
        untyped.filter(one, colour="red")

    assert str(raised.value).startswith("filter() has no argument 'colour' (it has control, dead_letters, goal, max")


@pytest.mark.anyio
async def test_listeners_of_a_run_are_wrapped_as_plugins_or_listed() -> None:
    with pytest.raises(TypeError) as of_plugins:
        await untyped.run(plugins=functools)
    with pytest.raises(TypeError) as of_observers:
        await untyped.run(observers=RecordingObserver)

    assert str(of_plugins.value) == (
        f"plugins must be a forebay.hooks.Plugins, not {functools!r:.100}; wrap it: Plugins(my_module)"
    )
    assert str(of_observers.value) == f"observers must be a list of objects, not {RecordingObserver!r:.100}"


def test_one_branch_is_no_branching() -> None:
    with pytest.raises(ValueError, match=r"^branch\(\) needs at least 2 branches, not 1$"):
        start.branch(lambda items: items)


def test_a_builder_has_to_return_the_branch() -> None:
    def forgets(items: Pipeline[int]) -> None:
        items.map(one)

    def starts_anew(items: Pipeline[int]) -> Pipeline[int]:
        return forebay.pipeline([4])

    for builder in (forgets, starts_anew):
        with pytest.raises(TypeError) as raised:
            untyped.branch(lambda items: items, builder)  # pyright: ignore[reportUnknownLambdaType]  # wrong on purpose

        assert f"{builder.__name__}(); return the pipeline that it is given" in str(raised.value)


def test_a_builder_is_a_function() -> None:
    with pytest.raises(TypeError, match=r"^branch needs a function, not 3, an int$"):
        untyped.branch(3, 4)


@pytest.mark.parametrize("method", ["map", "filter", "flat_map", "tap", "key_by", "map_batches", "branch"])
def test_nothing_follows_a_sink(method: str) -> None:
    closed: Any = start.map_batches(FakeSink[int](), max_size=2)

    with pytest.raises(TypeError) as raised:
        getattr(closed, method)

    assert str(raised.value) == (
        f"nothing can follow here: stage 'FakeSink' is a sink, which has no results; call {method}() before it"
    )


def test_nothing_follows_branches() -> None:
    closed: Any = start.branch(lambda items: items, lambda items: items)

    with pytest.raises(
        TypeError, match=r"^nothing can follow here: the pipeline has branched; call map\(\) before it$"
    ):
        closed.map(one)


def test_a_closed_pipeline_has_no_other_attributes() -> None:
    closed: Any = start.map_batches("memory", max_size=2)

    with pytest.raises(AttributeError, match="ClosedPipeline has no attribute 'mapp'"):
        _ = closed.mapp


def test_a_function_that_returns_none_makes_the_pipeline_end() -> None:
    async def sink(items: list[int]) -> None: ...

    class Writer:
        async def __call__(self, items: list[int]) -> None: ...

    def unknown(items: "list[Decimal]") -> None: ...

    def stage(items: "list[Decimal]") -> "list[Decimal]":
        return items

    assert returns_none(sink)
    assert returns_none(functools.partial(sink))
    assert returns_none(Writer())
    assert returns_none(unknown)
    assert not returns_none(stage)
    assert not returns_none(handle)
    assert not returns_none(len)
    assert not returns_none(start.map)
    assert isinstance(start.map_batches(sink, max_size=1), ClosedPipeline)
    assert isinstance(start.map_batches(handle, max_size=1), Pipeline)


def test_a_function_whose_annotations_cannot_be_read_is_taken_for_one_with_results() -> None:
    class Wrapper:
        """Calls another object, as a proxy does, and has no annotations."""

        def __call__(self, items: list[int]) -> None: ...

    class Proxy:
        __call__ = Wrapper()

    assert not returns_none(Proxy())


def test_sinks_are_told_from_files_and_functions() -> None:
    assert is_sink(FakeSink[int]())
    assert is_sink(MemoryQueue[int]())
    assert not is_sink(FakeSink)
    assert not is_sink(io.StringIO())
    assert not is_sink(handle)


def test_sources_are_told_from_paths_and_files() -> None:
    class Rows:
        def __aiter__(self) -> AsyncIterator[int]: ...  # type: ignore[empty-body]  # never iterated

    assert is_source(ScriptedSource[int]([]))
    assert not is_source(pathlib.Path("orders.jsonl"))
    assert not is_source(ScriptedSource)
    assert is_iterable([1])
    assert is_iterable(Rows())
    assert is_iterable(io.StringIO("a\nb\n"))
    assert not is_iterable("abc")
    assert not is_iterable(7)


def test_a_file_is_read_line_by_line() -> None:
    lines = forebay.pipeline(io.StringIO("a\nb\n"))

    assert lines.recipe.sources[0].name == "StringIO"


def test_passwords_do_not_get_into_names() -> None:
    assert without_password("redis://me:secret@10.0.0.1/0") == "redis://me@10.0.0.1/0"
    assert without_password("redis://10.0.0.1/0") == "redis://10.0.0.1/0"
    assert without_password("memory") == "memory"
    assert forebay.pipeline("redis://me:secret@h/0").recipe.sources[0].name == "redis://me@h/0"
    closed = start.map_batches("postgresql://me:secret@h/0", max_size=1)
    assert "secret" not in str([getattr(node, "name", "") for node in closed.recipe.nodes])


def test_concurrency_has_a_default_for_each_place() -> None:
    assert default_concurrency("loop") == 16
    assert default_concurrency("thread") == 8
    assert default_concurrency("process") >= 1


def test_articles_fit_their_words() -> None:
    assert [a(word) for word in ("int", "str", "Order")] == ["an int", "a str", "an Order"]


def test_what_is_right_is_taken_as_it_is() -> None:
    stage = start.map_batches(
        handle, max_size=3, max_age=0, max_bytes=10, weigh=int.bit_length, capacity=7, time_limit=2, retry=Retry()
    ).recipe.nodes[0]

    figures: Sequence[str] = ("max_size", "max_age", "max_bytes", "capacity", "time_limit")
    assert [getattr(stage, name) for name in figures] == [3, 0.0, 10, 7, 2.0]
