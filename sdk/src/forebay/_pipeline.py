"""The recipe that a user writes, and how it is run."""

from __future__ import annotations

import random
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypedDict, TypeVar, Unpack, cast, overload

from attrs import evolve, frozen

from forebay._checks import (
    a,
    at_least,
    check_backpressure,
    check_callable,
    check_entered,
    check_handler,
    check_listeners,
    check_retry,
    check_run_in,
    check_store,
    check_unknown,
    default_concurrency,
    is_iterable,
    is_sink,
    is_source,
    returns_none,
    seconds,
    without_password,
)
from forebay._handler import RunIn, is_async, name_of
from forebay._overflow import Backpressure
from forebay._recipe import (
    DEFAULT_CONTROL,
    Control,
    ForkSpec,
    InlineSpec,
    Node,
    Recipe,
    SourceSpec,
    StageSpec,
    Store,
    control_spec,
    most_concurrency,
)
from forebay._retry import Retry
from forebay._scope import open_scope
from forebay._summary import Summary
from forebay._types import Again, Dropped, Failed, Goal, Outcome
from forebay.abc import Sink, Source

if TYPE_CHECKING:
    from forebay._tuning import Tuning
    from forebay.hooks import Plugins

T = TypeVar("T")
U = TypeVar("U")


class ItemOptions(TypedDict, total=False):
    """Keyword arguments of `map`, which `filter`, `flat_map` and `tap` take too."""

    name: str | None
    run_in: RunIn
    max_concurrency: int | None
    time_limit: float | None
    retry: Retry | None
    dead_letters: Store | None
    control: Control
    goal: Goal | None


@frozen
class ClosedPipeline:
    """A recipe that ends in a sink or in branches; it can only be run."""

    recipe: Recipe
    _why: str

    async def run(
        self,
        *,
        plugins: Plugins | None = None,
        observers: Sequence[object] = (),
        tuning: Tuning | None = None,
        drain_timeout: float = 10.0,
        seed: int | None = None,
    ) -> Summary:
        """Run the recipe until its sources are at their end and every item has its outcome.

        Runs in one task group; nothing outlives the call. Inside `open_scope` the run drains when the scope does.
        If it is cancelled, items in hand are given back to their source and what has an outcome is settled first.

        Args:
            plugins: Where names and URLs in the recipe are looked up; `None`: what is installed, for this run only.
            observers: Objects with some of the methods of `forebay.abc.Observer`.
            tuning: Changes the bounds and goals of the stages while the run goes on.
            drain_timeout: Seconds that the run may take to finish what is in hand once it has been told to drain.
            seed: Seed of all chance in the run, which is the jitter of retries.

        Raises:
            PluginError: a name or URL is not known; nothing has been fetched.
            Exception: what a handler raised for an item that failed for good where the stage has no `dead_letters`,
                or what a source raised, after the items before it had their outcome. It comes bare, with notes;
                only when several parts failed at once they come in an `ExceptionGroup`.
        """
        return await _run(self.recipe, plugins, observers, tuning, drain_timeout, seed)

    def __getattr__(self, name: str) -> NoReturn:
        """Explain why no stage can follow."""
        if name in _METHODS:
            raise TypeError(f"nothing can follow here: {self._why}; call {name}() before it")
        raise AttributeError(f"ClosedPipeline has no attribute {name!r}")


@frozen
class Pipeline(Generic[T]):
    """A recipe: sources and what happens to their items. It is a value; each method returns a longer one.

    Nothing starts before `run`. Items stay in order from source to sink except where several calls of a
    stage are in flight at once; behind `key_by` the items of each key stay in order all the same.
    """

    recipe: Recipe

    # --- Steps and stages of one item -----------------------------------------------------------

    @overload
    def map(
        self,
        func: Callable[[T], Awaitable[U]],
        /,
        *,
        name: str | None = None,
        max_concurrency: int | None = None,
        time_limit: float | None = None,
        retry: Retry | None = None,
        dead_letters: Store | None = None,
        control: Control | None = None,
        goal: Goal | None = None,
    ) -> Pipeline[U]: ...
    @overload
    def map(
        self,
        func: Callable[[T], U],
        /,
        *,
        name: str | None = None,
        run_in: RunIn = "loop",
        max_concurrency: int | None = None,
        time_limit: float | None = None,
        retry: Retry | None = None,
        dead_letters: Store | None = None,
        control: Control | None = None,
        goal: Goal | None = None,
    ) -> Pipeline[U]: ...
    def map(self, func: Callable[[T], Any], /, **options: Any) -> Pipeline[Any]:  # noqa: D417  # the overloads name them
        """Replace each item with what *func* returns for it.

        A plain function runs inline in the pump, where a call costs little more than in a bare loop; it fails by
        raising. `run_in="thread"` or `"process"` moves it off the event loop. An async function runs in a stage of
        its own, with 16 calls in flight unless *max_concurrency* says otherwise.

        Args:
            func: Function of one item.
            name: What to call the step in reports; the function's name by default.
            run_in: Where a plain function runs.
            max_concurrency: Calls in flight at once, for async functions, threads and processes.
            time_limit: Seconds after which a call is cut off; the item then counts as failed and perhaps done.
            retry: When an item that failed is run again. By default 3 attempts, for transient failures only.
            dead_letters: Where items go that failed for good. Without, such a failure ends the run.
            control: Who steers how many calls are in flight, where the function has a stage; as in `map_batches`.
            goal: What it is steered for.
        """
        return self._per_item("map", func, func, (), **options)

    def filter(self, func: Callable[[T], object], /, **options: Unpack[ItemOptions]) -> Pipeline[T]:
        """Keep the items for which *func* returns something true; the others are final and counted as filtered.

        *func* and the options are as in `map`.
        """
        call: Callable[[Any], Any] = func
        pair = partial(_pair_async, call) if is_async(func) else partial(_pair, call)
        after = (("filter", _first), ("map", _second))
        return cast("Pipeline[T]", self._per_item("filter", func, pair, after, **options))

    @overload
    def flat_map(
        self, func: Callable[[T], Awaitable[Iterable[U]]], /, **options: Unpack[ItemOptions]
    ) -> Pipeline[U]: ...
    @overload
    def flat_map(self, func: Callable[[T], Iterable[U]], /, **options: Unpack[ItemOptions]) -> Pipeline[U]: ...
    def flat_map(self, func: Callable[[T], Any], /, **options: Unpack[ItemOptions]) -> Pipeline[Any]:
        """Replace each item with all the items of the iterable that *func* returns for it.

        An item is settled when all that came of it is. *func* and the options are as in `map`.
        """
        return self._per_item("flat_map", func, func, (("flat_map", _itself),), **options)

    def tap(self, func: Callable[[T], object], /, **options: Unpack[ItemOptions]) -> Pipeline[T]:
        """Call *func* with each item and pass the item on as it is.

        *func* and the options are as in `map`; if it raises, the item has failed.
        """
        call: Callable[[Any], Any] = func
        passing = partial(_passing_async, call) if is_async(func) else partial(_passing, call)
        return cast("Pipeline[T]", self._per_item("tap", func, passing, (), **options))

    def key_by(self, func: Callable[[T], str], /, *, name: str | None = None) -> Pipeline[T]:
        """Keep the items of each key in order from here on: a later stage never has two of them in hand at once.

        An item that waits for another attempt holds back the later ones of its key; other keys go on.

        Args:
            func: Returns the key of an item. It runs inline and must be a plain function.
            name: What to call the step in reports.
        """
        check_callable("key_by", func)
        if is_async(func):
            raise TypeError(f"key_by needs a plain function, not {name_of(func)!r}, which is async")
        return self._longer(InlineSpec("key_by", func, name or f"key_by {name_of(func)}"))

    def _per_item(
        self,
        kind: str,
        func: Callable[[Any], Any],
        call: Callable[[Any], Any],
        after: tuple[tuple[str, Callable[[Any], object]], ...],
        *,
        name: str | None = None,
        run_in: RunIn = "loop",
        max_concurrency: int | None = None,
        time_limit: float | None = None,
        retry: Retry | None = None,
        dead_letters: Store | None = None,
        control: Control | None = None,
        goal: Goal | None = None,
        **unknown: object,
    ) -> Pipeline[Any]:
        check_unknown(kind, unknown, ItemOptions.__annotations__)
        check_callable(kind, func)
        check_run_in(kind, func, run_in)
        check_retry(retry)
        check_store(dead_letters)
        shown = name or f"{kind} {name_of(func)}"
        if not is_async(func) and run_in == "loop":
            steered: dict[str, object] = {
                "max_concurrency": max_concurrency,
                "time_limit": time_limit,
                "control": control,
                "goal": goal,
            }
            for argument, value in steered.items():
                if value is not None:
                    raise ValueError(
                        f"{argument} has no meaning for {shown!r}, a plain function that runs inline; "
                        f"pass run_in='thread' or run_in='process', or an async function"
                    )
            return self._longer(InlineSpec(kind, func, shown, retry, dead_letters))
        stage = StageSpec(
            call,
            shown,
            per_item=True,
            max_size=256,
            control=control_spec(
                *(shown, DEFAULT_CONTROL if control is None else control, goal),
                max_size=1,
                max_concurrency=None if max_concurrency is None else at_least("max_concurrency", max_concurrency, 1),
                usual_concurrency=default_concurrency(run_in),
                most_concurrency=most_concurrency(run_in),
            ),
            run_in=run_in,
            time_limit=seconds("time_limit", time_limit),
            retry=retry,
            dead_letters=dead_letters,
        )
        # What follows unpacks the results; it fails where they are of the wrong type, and then as the stage does.
        unpack = [InlineSpec(step, call, f"{shown}, {step}", retry, dead_letters) for step, call in after]
        return self._longer(stage, *unpack)

    # --- Stages of batches ----------------------------------------------------------------------

    @overload  # before that of sinks: a function of which little is known is taken for one with results
    def map_batches(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
        self,
        func: Callable[[list[T]], Awaitable[Sequence[U | Failed | Again | Dropped]]],
        /,
        *,
        max_size: int | None = None,
        max_age: float = 0.05,
        max_bytes: int | None = None,
        weigh: Callable[[T], int] | None = None,
        max_concurrency: int | None = None,
        capacity: int | None = None,
        backpressure: Backpressure = "wait",
        time_limit: float | None = None,
        idempotent: bool = False,
        in_order: bool = False,
        retry: Retry | None = None,
        dead_letters: Store | None = None,
        control: Control = DEFAULT_CONTROL,
        goal: Goal | None = None,
        name: str | None = None,
    ) -> Pipeline[U]: ...
    @overload
    def map_batches(
        self,
        func: Callable[[list[T]], Sequence[U | Failed | Again | Dropped]],
        /,
        *,
        max_size: int | None = None,
        max_age: float = 0.05,
        max_bytes: int | None = None,
        weigh: Callable[[T], int] | None = None,
        max_concurrency: int | None = None,
        capacity: int | None = None,
        backpressure: Backpressure = "wait",
        run_in: RunIn = "loop",
        time_limit: float | None = None,
        idempotent: bool = False,
        in_order: bool = False,
        retry: Retry | None = None,
        dead_letters: Store | None = None,
        control: Control = DEFAULT_CONTROL,
        goal: Goal | None = None,
        name: str | None = None,
    ) -> Pipeline[U]: ...
    @overload
    def map_batches(
        self,
        func: Sink[T] | str | Callable[[list[T]], Awaitable[Sequence[Outcome] | None]] | Callable[[list[T]], None],
        /,
        *,
        max_size: int | None = None,
        max_age: float = 0.05,
        max_bytes: int | None = None,
        weigh: Callable[[T], int] | None = None,
        max_concurrency: int | None = None,
        capacity: int | None = None,
        backpressure: Backpressure = "wait",
        run_in: RunIn = "loop",
        time_limit: float | None = None,
        idempotent: bool = False,
        in_order: bool = False,
        retry: Retry | None = None,
        dead_letters: Store | None = None,
        control: Control = DEFAULT_CONTROL,
        goal: Goal | None = None,
        name: str | None = None,
    ) -> ClosedPipeline: ...
    def map_batches(
        self,
        func: Any,
        /,
        *,
        max_size: int | None = None,
        max_age: float = 0.05,
        max_bytes: int | None = None,
        weigh: Callable[[Any], int] | None = None,
        max_concurrency: int | None = None,
        capacity: int | None = None,
        backpressure: Backpressure = "wait",
        run_in: RunIn = "loop",
        time_limit: float | None = None,
        idempotent: bool = False,
        in_order: bool = False,
        retry: Retry | None = None,
        dead_letters: Store | None = None,
        control: Control = DEFAULT_CONTROL,
        goal: Goal | None = None,
        name: str | None = None,
    ) -> Any:
        """Call *func* with lists of items, and go on with the results it returns for them.

        A batch goes out as soon as one of the calls is free, with what has gathered by then; so sizes grow with the
        load and nothing waits for company. A plain iterable always fills its batches.

        How large a batch may be and how many calls may be in flight is up to *control*. "fixed" keeps *max_size* and
        *max_concurrency*. Another controller begins with them and moves below, for best throughput or for *goal*;
        "adaptive" looks at how long calls take, "inverse-load" makes batches smaller as the system's load rises.

        *func* returns one result for each item, in order, or `None`: then it is a sink and nothing can follow.
        `Failed(error)`, `Again(after)` or `Dropped(reason)` may stand in an item's place. To report failures from a
        sink, raise `BatchFailed({index: error})`. Any other exception is classified: what may pass is retried as a
        whole batch; otherwise the batch is taken apart to find the item, by halves if *idempotent*, else one by one.
        The list belongs to forebay: do not change it.

        Args:
            func: Async or plain function of a list; or a `Sink`, or the name or URL of one.
            max_size: Most items in a batch. It may be left out where somebody steers, and is 8,192 then.
            max_age: Longest time in seconds that items from a slow iterable wait for their batch to fill.
            max_bytes: Most bytes in a batch, as *weigh* counts them. A larger item goes alone.
            weigh: Returns the size of an item in bytes.
            max_concurrency: Calls in flight at once, 1 by default. Where somebody steers and it is left out, they begin
                with 1 and may come to 256, to 64 in threads; then items do not stay in order but behind `key_by`.
            capacity: Items that may wait in front of the stage; 8 batches, at least 1,024, by default.
            backpressure: What happens when so many wait. `"wait"`: what comes before slows down. Otherwise some items
                are left out and counted as dropped: `"drop_oldest"`, `"drop_newest"`, or with `"sample"` a random
                choice of what comes, ever fewer as the second half of the queue fills.
            run_in: Where a plain function runs.
            time_limit: Seconds after which a call is cut off; its items then count as failed and perhaps done.
            idempotent: Whether handling an item twice does no harm.
            in_order: Behind `key_by`: whether *func* applies the items of a batch in order and, after one that failed,
                reports the rest of its key as not done. Then a batch may hold several items of a key.
            retry: When items that failed are run again. By default 3 attempts, for transient failures only.
            dead_letters: Where items go that failed for good: a store, or the name or URL of one.
                Without, such a failure ends the run.
            control: Who steers: the name of a controller, a `forebay.abc.Controller` for all runs, or a function
                (or class) that makes one for each run, see `forebay.abc.ControllerFactory`.
            goal: What to steer for; best throughput by default.
            name: What to call the stage in reports; the function's name by default.
        """
        check_entered("the function given to map_batches", func)
        check_handler(func)
        function = None if isinstance(func, str) or is_sink(func) else cast("Callable[..., object]", func)
        if function is not None:
            check_run_in("map_batches", function, run_in)
        check_retry(retry)
        check_store(dead_letters)
        if weigh is not None:
            check_callable("weigh", weigh)
        elif max_bytes is not None:
            raise ValueError("max_bytes needs weigh, a function that returns the size of one item in bytes")
        shown = name or (without_password(func) if isinstance(func, str) else name_of(cast("object", func)))
        inline = function is not None and run_in == "loop" and not is_async(function)
        nbytes = None if max_bytes is None else at_least("max_bytes", max_bytes, 1)
        plan = control_spec(
            *(shown, control, goal),
            max_size=None if max_size is None else at_least("max_size", max_size, 1),
            max_concurrency=None if max_concurrency is None else at_least("max_concurrency", max_concurrency, 1),
            usual_concurrency=1,
            most_concurrency=1 if inline else most_concurrency(run_in),  # inline calls cannot overlap
            max_bytes=nbytes,
        )
        spec = StageSpec(
            cast("Any", func),
            shown,
            per_item=False,
            max_size=plan.bounds.max_size,
            control=plan,
            max_age=seconds("max_age", max_age, zero=True) or 0.0,
            max_bytes=nbytes,
            weigh=weigh,
            capacity=0 if capacity is None else at_least("capacity", capacity, 1),
            backpressure=check_backpressure(backpressure),
            run_in=run_in,
            time_limit=seconds("time_limit", time_limit),
            retry=retry,
            dead_letters=dead_letters,
            idempotent=idempotent,
            in_order=in_order,
        )
        longer: Pipeline[Any] = self._longer(spec)
        if function is None or returns_none(function):
            return ClosedPipeline(longer.recipe, f"stage {shown!r} is a sink, which has no results")
        return longer

    def branch(self, *builders: Callable[[Pipeline[T]], Pipeline[Any] | ClosedPipeline]) -> ClosedPipeline:
        """Send every item down several branches; it is settled when all of them have settled it.

        Args:
            builders: Each gets an empty pipeline and returns it with the steps and stages of one branch.
        """
        if len(builders) < 2:
            raise ValueError(f"branch() needs at least 2 branches, not {len(builders)}")
        empty: Pipeline[T] = Pipeline(evolve(self.recipe, nodes=()))
        branches = [self._built(builder, empty) for builder in builders]
        longer: Pipeline[Any] = self._longer(ForkSpec(branches))
        return ClosedPipeline(longer.recipe, "the pipeline has branched")

    def _built(
        self, builder: Callable[[Pipeline[T]], Pipeline[Any] | ClosedPipeline], empty: Pipeline[T]
    ) -> Sequence[Node]:
        check_callable("branch", builder)
        built = cast("object", builder(empty))  # whatever somebody without a type checker returns
        if not isinstance(built, (Pipeline, ClosedPipeline)) or built.recipe.sources is not self.recipe.sources:
            raise TypeError(
                f"branch() got {built!r:.100} from {name_of(builder)}(); "
                f"return the pipeline that it is given, with the steps and stages of the branch"
            )
        return built.recipe.nodes

    async def run(
        self,
        *,
        plugins: Plugins | None = None,
        observers: Sequence[object] = (),
        tuning: Tuning | None = None,
        drain_timeout: float = 10.0,
        seed: int | None = None,
    ) -> Summary:
        """Run the recipe until its sources are at their end; see `ClosedPipeline.run`. Last results are thrown away."""
        return await _run(self.recipe, plugins, observers, tuning, drain_timeout, seed)

    def _longer(self, *nodes: Node) -> Pipeline[Any]:
        return Pipeline(evolve(self.recipe, nodes=(*self.recipe.nodes, *nodes)))


_METHODS = frozenset({"map", "filter", "flat_map", "tap", "key_by", "map_batches", "branch"})


@overload
def pipeline(
    source: str,
    /,
    *more: str,
    name: str = "pipeline",
    in_thread: bool = False,
    retry: Retry | None = None,
    dead_letters: Store | None = None,
    max_gap: int = 65_536,
    max_lane: int = 1_000,
    max_blocked: int = 10_000,
) -> Pipeline[Any]: ...
@overload
def pipeline(
    source: Iterable[T] | AsyncIterable[T] | Source[T],
    /,
    *more: Iterable[T] | AsyncIterable[T] | Source[T],
    name: str = "pipeline",
    in_thread: bool = False,
    retry: Retry | None = None,
    dead_letters: Store | None = None,
    max_gap: int = 65_536,
    max_lane: int = 1_000,
    max_blocked: int = 10_000,
) -> Pipeline[T]: ...
def pipeline(
    source: Any,
    /,
    *more: Any,
    name: str = "pipeline",
    in_thread: bool = False,
    retry: Retry | None = None,
    dead_letters: Store | None = None,
    max_gap: int = 65_536,
    max_lane: int = 1_000,
    max_blocked: int = 10_000,
) -> Pipeline[Any]:
    """Begin a recipe with the items of *source*, and of *more* sources merged into it.

    A plain iterable has nothing to acknowledge to: after a crash it starts again from its beginning.

        summary = await forebay.pipeline(range(1000)).map(str).map_batches(store, max_size=100).run()

    Args:
        source: An iterable or async iterable, a `forebay.abc.Source`, or the name or URL of one that a plugin knows.
        more: Further sources of the same items, each read at its own pace.
        name: Name of the pipeline, in reports, dead letters and consumer groups.
        in_thread: Read iterables in a thread each, because they block.
        retry: Policy of all steps and stages that have none of their own.
        dead_letters: Store of all steps and stages that have none of their own.
        max_gap: Items between the oldest that is not final and the newest that was fetched; fetching stops there.
        max_lane: Items that may wait behind one key; further ones go back to their source for a while, if it can
            take them back.
        max_blocked: The same for all keys together.
    """
    check_retry(retry)
    check_store(dead_letters)
    sources = tuple(_source_spec(one, index, in_thread) for index, one in enumerate((source, *more)))
    names = [spec.name for spec in sources]
    unique = tuple(
        spec if names.count(spec.name) == 1 else evolve(spec, name=f"{spec.name}-{index}")
        for index, spec in enumerate(sources)
    )
    return Pipeline(
        Recipe(
            name,
            unique,
            retry=retry,
            dead_letters=dead_letters,
            max_gap=at_least("max_gap", max_gap, 1),
            max_lane=at_least("max_lane", max_lane, 1),
            max_blocked=at_least("max_blocked", max_blocked, 1),
        )
    )


def _source_spec(source: object, index: int, in_thread: bool) -> SourceSpec:
    if isinstance(source, str):
        return SourceSpec(source, without_password(source))
    check_entered("source", source)
    if not (is_iterable(source) or is_source(source)):
        raise TypeError(
            f"source must be an iterable, an async iterable, a Source, or the name or URL of one, "
            f"not {source!r:.100}, {a(type(source).__name__)}"
        )
    name = getattr(source, "name", None) or getattr(source, "__name__", None) or type(source).__name__
    return SourceSpec(source, name if isinstance(name, str) else type(source).__name__, in_thread)


async def _run(
    recipe: Recipe,
    plugins: Plugins | None,
    observers: Sequence[object],
    tuning: Tuning | None,
    drain_timeout: float,
    seed: int | None,
) -> Summary:
    # Loaded with the first run: a program that imports recipes and runs none does not pay for it.
    from forebay._run import Run
    from forebay.hooks import Plugins as _Plugins
    from forebay.hooks import default_plugins

    check_listeners(plugins, _Plugins, observers)
    known = default_plugins() if plugins is None else plugins
    listeners = known.events(observers)

    def build(kind: str, name: str, /, **options: object) -> AbstractAsyncContextManager[Any]:
        return known.kind(kind).build(name, **options)

    run = Run(recipe, build, listeners, random.Random(seed), tuning)
    async with open_scope(drain_timeout=drain_timeout, name=recipe.name) as scope:
        scope.start_soon(run.main, scope, name=f"forebay {recipe.name}")
    assert run.summary is not None, "the run was cut off before it began"
    return run.summary


# --- Functions that stand in for the user's, so that a stage has one shape only ------------------


def _pair(func: Callable[[Any], object], item: object) -> tuple[object, object]:
    return func(item), item


async def _pair_async(func: Callable[[Any], Awaitable[object]], item: object) -> tuple[object, object]:
    return await func(item), item


def _passing(func: Callable[[Any], object], item: object) -> object:
    func(item)
    return item


async def _passing_async(func: Callable[[Any], Awaitable[object]], item: object) -> object:
    await func(item)
    return item


def _first(pair: tuple[object, object]) -> object:
    return pair[0]


def _second(pair: tuple[object, object]) -> object:
    return pair[1]


def _itself(items: Iterable[object]) -> Iterable[object]:
    return items
