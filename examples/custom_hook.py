"""A program that listens to its own batches and brings its own dead-letter store: two hooks, no package.

Copy it, put your own functions under the two `@hookimpl`, and keep the line that makes `Plugins`.
To share them, move them into a package and name its module in the entry-point group `forebay`.

    python examples/custom_hook.py
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio

import forebay
from forebay.abc import BatchInfo, DeadLetterFilter, DeadLetterStore
from forebay.hooks import Plugins, Registry, hookimpl


@asynccontextmanager
async def open_my_store(*, limit: int = 3) -> AsyncGenerator[DeadLetterStore]:
    """Keep dead letters in memory, and print the kinds and the first few of them at the end.

    Keyword parameters are options: `my-store` is opened with the defaults, `my-store://?limit=5` with another limit.
    """
    async with Plugins(discover=False).dead_letter_stores.build("memory") as store:
        yield store
        for group in await store.groups(DeadLetterFilter()):
            print(f"set aside: {group.count} with {group.error_type}: {group.masked_message}")
        for letter in await store.find(DeadLetterFilter(), limit=limit):
            print(f"  offset {letter.id.offset}: {letter.message}")


# The glue: two hooks, and `plugins` below. A hook's name says when it is called and with what.
@hookimpl
def forebay_register_dead_letter_stores(register: Registry[DeadLetterStore]) -> None:
    register("my-store", open_my_store)


@hookimpl
def forebay_batch_done(info: BatchInfo) -> None:
    print(f"{info.stage}: {info.done} of {info.size} done in {info.seconds * 1000:.1f} ms")


def square(number: int) -> int:
    return number * number


async def store(numbers: Sequence[int]) -> None:
    bad = {index: ValueError(f"{number} ends in 0000") for index, number in enumerate(numbers) if number % 10_000 == 0}
    if bad:
        raise forebay.BatchFailed(bad)


async def main() -> forebay.Summary:
    plugins = Plugins(sys.modules[__name__])  # this module, and what is installed
    squares = forebay.pipeline(range(1000)).map(square)
    summary = await squares.map_batches(store, max_size=100, dead_letters="my-store").run(plugins=plugins)
    print(f"{summary.done} of {summary.seen} stored, {summary.dead} set aside")
    return summary


if __name__ == "__main__":
    anyio.run(main, backend="trio")
