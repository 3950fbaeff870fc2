"""What type checkers make of the public names; never run.

A line that ends in `# wrong` is refused by mypy and by pyright: if one of them took it, its ignore would be unneeded,
and that is reported here. All other lines are accepted by both.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Any, assert_type

import forebay
from forebay import (
    Again,
    BatchContext,
    Batcher,
    BatchFailed,
    Bounds,
    ClosedPipeline,
    Dropped,
    Failed,
    Goal,
    MemoryQueue,
    Pipeline,
    ReceiveChannel,
    Retry,
    Scope,
    SendChannel,
    Summary,
    Tuning,
)
from forebay.abc import Category, DeadLetterStore, Limits, Observation, Outcome, Sink, Source
from forebay.hooks import Plugins


class Order:
    customer: str = ""


class Row:
    cells: list[str]


def parse(line: str) -> Order:
    raise NotImplementedError


async def enrich(order: Order) -> Row:
    raise NotImplementedError


async def store(rows: list[Row]) -> None: ...
async def store_each(rows: list[Row]) -> list[Failed | Again | None]:
    raise NotImplementedError


async def embed(texts: list[str]) -> list[bytes]:
    raise NotImplementedError


def embed_sync(texts: list[str]) -> list[bytes]:
    raise NotImplementedError


async def embed_some(texts: list[str]) -> Sequence[bytes | Failed | Dropped]:
    raise NotImplementedError


class Fixed:
    def __init__(self, *, bounds: Bounds, goal: Goal | None, start: Limits) -> None:
        self.start = start

    def observe(self, observation: Observation, /) -> Limits:
        return self.start


START = Limits(10, 1, 0.0)


def store_sync(rows: list[Row]) -> None: ...
async def lines() -> AsyncIterator[str]:
    yield ""


def words(text: str) -> Iterator[bytes]:
    raise NotImplementedError


async def words_async(text: str) -> list[bytes]:
    raise NotImplementedError


async def no_annotation_of_results(texts: list[str]) -> Any: ...


# --- Sources ------------------------------------------------------------------------------------

assert_type(forebay.pipeline(["a"]), Pipeline[str])
assert_type(forebay.pipeline(lines()), Pipeline[str])
assert_type(forebay.pipeline({1: "a"}), Pipeline[int])
assert_type(forebay.pipeline("redis://host/0"), Pipeline[Any])
assert_type(forebay.pipeline(MemoryQueue[Order]()), Pipeline[Order])
assert_type(forebay.pipeline([1], range(3), name="n", in_thread=True, max_gap=5), Pipeline[int])


def of_source(source: Source[Order]) -> Pipeline[Order]:
    return forebay.pipeline(source, retry=Retry(), dead_letters="memory")


forebay.pipeline(7)  # type: ignore[call-overload]  # wrong
forebay.pipeline(["a"], naem="orders")  # type: ignore[call-overload]  # wrong
forebay.pipeline(["a"], retry=3)  # type: ignore[call-overload]  # wrong
forebay.pipeline(["a"], dead_letters=True)  # type: ignore[call-overload]  # wrong

# --- Steps of one item --------------------------------------------------------------------------

texts = forebay.pipeline(["a"])
orders = texts.map(parse)
rows = orders.map(enrich)

assert_type(orders, Pipeline[Order])
assert_type(rows, Pipeline[Row])
assert_type(texts.map(len), Pipeline[int])
assert_type(texts.map(str.upper, run_in="process", max_concurrency=4, time_limit=3), Pipeline[str])
assert_type(orders.map(enrich, max_concurrency=4, time_limit=3, retry=Retry(), dead_letters="memory"), Pipeline[Row])
assert_type(orders.map(partial(enrich)), Pipeline[Row])
assert_type(texts.map(lambda text: len(text)), Pipeline[int])
assert_type(texts.filter(str.isdigit), Pipeline[str])
assert_type(orders.filter(lambda order: order.customer, name="known", run_in="thread"), Pipeline[Order])
assert_type(orders.tap(print), Pipeline[Order])
assert_type(orders.tap(enrich, max_concurrency=2), Pipeline[Order])
assert_type(texts.flat_map(words), Pipeline[bytes])
assert_type(texts.flat_map(words_async, time_limit=2.5), Pipeline[bytes])
assert_type(orders.key_by(lambda order: order.customer), Pipeline[Order])

texts.map(enrich)  # type: ignore[arg-type]  # wrong
orders.map(parse)  # type: ignore[arg-type]  # wrong
texts.map(len, run_in="fiber")  # type: ignore[call-overload]  # wrong
texts.map(len, max_concurency=3)  # type: ignore[call-overload]  # wrong
texts.filter(enrich)  # type: ignore[arg-type]  # wrong
texts.filter(str.isdigit, nmae="digits")  # type: ignore[call-arg]  # wrong
texts.flat_map(len)  # type: ignore[arg-type]  # wrong
texts.flat_map(words, max_concurrency="many")  # type: ignore[call-overload]  # wrong
orders.tap(parse)  # type: ignore[arg-type]  # wrong
orders.key_by(id)  # type: ignore[arg-type]  # wrong
orders.key_by(lambda order: order.client)  # type: ignore[attr-defined]  # wrong
texts.key_by(str.upper, run_in="thread")  # type: ignore[call-arg]  # wrong

# --- Stages of batches --------------------------------------------------------------------------

assert_type(texts.map_batches(embed, max_size=5), Pipeline[bytes])
assert_type(texts.map_batches(embed_sync, max_size=5, run_in="thread"), Pipeline[bytes])
assert_type(texts.map_batches(embed_some, max_size=5, idempotent=True), Pipeline[bytes])
untold = texts.map_batches(no_annotation_of_results, max_size=5)  # not closed: it may have results
assert_type(rows.map_batches(store, max_size=5, max_age=0.1, dead_letters="memory"), ClosedPipeline)
assert_type(rows.map_batches(store_sync, max_size=5, run_in="process"), ClosedPipeline)
assert_type(rows.map_batches("postgresql://host/db?table=rows", max_size=5), ClosedPipeline)
assert_type(rows.map_batches(MemoryQueue[Row](), max_size=5), ClosedPipeline)
assert_type(texts.map_batches(embed, max_size=5, max_bytes=10, weigh=len, in_order=True), Pipeline[bytes])
assert_type(rows.map_batches(store_each, max_size=5), Pipeline[None])


def into_sink(sink: Sink[Row], letters: DeadLetterStore) -> ClosedPipeline:
    return rows.map_batches(sink, max_size=5, dead_letters=letters)


assert_type(texts.map_batches(embed, control="adaptive", goal=Goal(p99=0.2)), Pipeline[bytes])
assert_type(texts.map_batches(embed, max_size=5, control=Fixed), Pipeline[bytes])
assert_type(rows.map_batches(store, max_size=5, control=Fixed(bounds=Bounds(), goal=None, start=START)), ClosedPipeline)
assert_type(orders.map(enrich, control="adaptive"), Pipeline[Row])
texts.map_batches(embed, control=3)  # type: ignore[call-overload]  # wrong
texts.map_batches(embed, control=len)  # type: ignore[call-overload]  # wrong
texts.map_batches(embed, control="adaptive", goal=0.2)  # type: ignore[call-overload]  # wrong
Bounds(max_size="9")  # type: ignore[arg-type]  # wrong
Tuning().change("store", max_size="9")  # type: ignore[arg-type]  # wrong
Tuning().change("store", goal=0.2)  # type: ignore[arg-type]  # wrong
texts.map_batches(store, max_size=5)  # type: ignore[arg-type]  # wrong
rows.map_batches(embed, max_size=5)  # type: ignore[arg-type]  # wrong
rows.map_batches(MemoryQueue[int](), max_size=5)  # type: ignore[arg-type]  # wrong
rows.map_batches(store, max_size="5")  # type: ignore[call-overload]  # wrong
rows.map_batches(store, max_sise=5)  # type: ignore[call-overload]  # wrong
texts.map_batches(embed, max_size=5, max_bytes=10, weigh=enrich)  # type: ignore[arg-type]  # wrong
texts.map_batches(parse, max_size=5)  # type: ignore[arg-type]  # wrong

# --- Branches and the run -----------------------------------------------------------------------

branched = orders.branch(lambda one: one.map(enrich).map_batches(store, max_size=5), lambda one: one.tap(print))

assert_type(branched, ClosedPipeline)
orders.branch(lambda one: one.map(parse), lambda one: one)  # type: ignore[arg-type]  # wrong
orders.branch(lambda one: 3, lambda one: one)  # type: ignore[arg-type, return-value]  # wrong


async def run(plugins: Plugins) -> None:
    assert_type(await branched.run(), Summary)
    assert_type(await orders.run(plugins=plugins, observers=[object()], drain_timeout=3, seed=1), Summary)
    await untold.map(len).run()
    await orders.run(plugin=plugins)  # type: ignore[call-arg]  # wrong
    await branched.run(seed="1")  # type: ignore[arg-type]  # wrong


# --- Push ---------------------------------------------------------------------------------------


async def push() -> None:
    async with forebay.open_batcher(embed, max_size=64, max_age=0.005) as batcher:
        assert_type(batcher, Batcher[str, bytes])
        assert_type(await batcher.submit("a"), bytes)
        await batcher.submit(3)  # type: ignore[arg-type]  # wrong
    async with forebay.open_batcher(embed_sync, max_size=64, run_in="thread") as threads:
        assert_type(threads, Batcher[str, bytes])
    async with forebay.open_batcher(embed_some, max_size=64, retry=Retry()) as some:
        assert_type(some, Batcher[str, bytes])
    async with forebay.open_batcher(embed, control="adaptive", goal=Goal(0.1), tuning=Tuning()) as steered:
        assert_type(steered, Batcher[str, bytes])
    forebay.open_batcher(embed, control=3)  # type: ignore[call-overload]  # wrong
    forebay.open_batcher(parse, max_size=3)  # type: ignore[arg-type]  # wrong


# --- Channels and scopes ------------------------------------------------------------------------


async def channel() -> None:
    send: SendChannel[str]
    receive: ReceiveChannel[str]
    send, receive = forebay.open_channel(10, max_bytes=100, weigh=len)
    with send, receive:
        await send.send(["a"])
        assert_type(await receive.receive(), list[str])
        await send.send([3])  # type: ignore[list-item]  # wrong
    forebay.open_channel("10")  # type: ignore[arg-type]  # wrong


async def scope() -> None:
    async with forebay.open_scope(drain_timeout=10, deadline=3, signals=True, name="s") as opened:
        assert_type(opened, Scope)
        opened.start_soon(enrich, Order())
        opened.start_soon(enrich, "a")  # type: ignore[arg-type]  # wrong


# --- What handlers say --------------------------------------------------------------------------

outcomes: list[Outcome] = [None, Failed(ValueError()), Again(3), Dropped("old")]
wrong_outcomes: list[Outcome] = ["done"]  # type: ignore[list-item]  # wrong
failed = BatchFailed({0: ValueError()})
BatchFailed([ValueError()])  # type: ignore[arg-type]  # wrong
Failed("text")  # type: ignore[arg-type]  # wrong
Retry(max_attempts=3, jitter="none", on=frozenset({Category.TRANSIENT}))
Retry(max_attempts=3, jitter="some")  # type: ignore[arg-type]  # wrong
Retry(3)  # type: ignore[call-arg]  # wrong


def told() -> None:
    assert_type(forebay.current_batch(), BatchContext)
    assert_type([part.offsets for part in forebay.current_batch().parts], list[list[int | str]])
