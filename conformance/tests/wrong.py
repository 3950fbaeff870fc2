"""A list of wrong plugins: each is a right one with one fault, named with the rule that must catch it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import trio
from anyio.lowlevel import checkpoint
from attrs import define, field, frozen

from forebay_conformance import Opener

F = TypeVar("F", bound=Callable[..., Any])


@frozen
class Wrong:
    """One wrong plugin."""

    rule: str
    name: str
    opener: Opener
    also: frozenset[str] = frozenset()
    """Further rules that the same fault breaks; ids without the kind."""
    traits: Mapping[str, object] = field(factory=dict[str, object])


@define
class WrongList:
    """The wrong plugins of one kind."""

    kind: str
    plugins: list[Wrong] = field(factory=list[Wrong])

    def add(self, rule: str, opener: Opener, name: str, also: Collection[str] = (), **traits: object) -> None:
        self.plugins.append(Wrong(f"{self.kind}:{rule}", name, opener, frozenset(also), traits))

    def fault(self, rule: str, *, also: Collection[str] = ()) -> Callable[[type[Any]], type[Any]]:
        """Add a class of plugin; it is made with the opener's arguments."""

        def register(plugin: type[Any]) -> type[Any]:
            @asynccontextmanager
            async def opener(*arguments: object) -> AsyncGenerator[object]:
                yield plugin(*arguments)

            self.add(rule, opener, plugin.__name__, also)
            return plugin

        return register

    def add_ends(self, right: Callable[..., Any]) -> None:
        """Add what can be wrong about the way in which any kind of plugin is opened and left."""
        for leak in (leak_thread, leak_file, leak_task):
            self.add("leaves-nothing", _leaking(right, leak), leak.__name__)
        self.add("leave-cleanly", _grouping(right), "shows_its_task_group")
        for broken in (says_the_url, says_it_in_the_cause):
            self.add("no-secrets", _plain(right), broken.__name__, has_secret=True, open_broken=broken)


def _plain(right: Callable[..., Any]) -> Opener:
    @asynccontextmanager
    async def opener(*arguments: object) -> AsyncGenerator[object]:
        yield right(*arguments)

    return opener


def _leaking(right: Callable[..., Any], leak: Callable[[], Awaitable[None]]) -> Opener:
    @asynccontextmanager
    async def opener(*arguments: object) -> AsyncGenerator[object]:
        await leak()
        yield right(*arguments)

    return opener


def _grouping(right: Callable[..., Any]) -> Opener:
    @asynccontextmanager
    async def opener(*arguments: object) -> AsyncGenerator[object]:
        async with anyio.create_task_group():
            yield right(*arguments)

    return opener


async def leak_thread() -> None:
    stop = threading.Event()
    LEAKED_THREADS.append(stop)
    threading.Thread(target=stop.wait, daemon=True).start()


async def leak_file() -> None:
    LEAKED_FILES.append(os.open(os.devnull, os.O_RDONLY))


async def leak_task() -> None:
    try:
        trio.lowlevel.spawn_system_task(trio.sleep_forever)
    except RuntimeError:  # not on Trio
        LEAKED_TASKS.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))


LEAKED_FILES: list[int] = []
LEAKED_THREADS: list[threading.Event] = []
LEAKED_TASKS: list[object] = []  # an event loop cancels its own when it ends


def end_leaks() -> None:
    """Close what wrong plugins have left open."""
    while LEAKED_FILES:
        os.close(LEAKED_FILES.pop())
    while LEAKED_THREADS:
        LEAKED_THREADS.pop().set()
    LEAKED_TASKS.clear()


class ClosesOnce:
    """Mixed into a plugin: a second aclose() fails."""

    closed = False

    async def aclose(self) -> None:
        await checkpoint()
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


@asynccontextmanager
async def says_the_url() -> AsyncGenerator[object]:
    await checkpoint()
    raise ConnectionError("cannot reach postgresql://app:kept-0ut-0f-logs@127.0.0.1:1/app")
    yield


@asynccontextmanager
async def says_it_in_the_cause() -> AsyncGenerator[object]:
    await checkpoint()
    try:
        raise ConnectionError("cannot reach redis://:kept-0ut-0f-logs@127.0.0.1:1/0")
    except ConnectionError as error:
        raise ConnectionError("cannot reach redis://127.0.0.1:1/0") from error
    yield
