"""How a failure reads, and where it comes from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from conformance.tests.right_others import RightStateStore
from forebay_conformance import KIND_LIST, ConformanceFailure, Opener, StateStoreTraits, run_check


class EmptyIsAbsent(RightStateStore):
    async def get_many(self, keys: Sequence[str], /) -> Sequence[bytes | None]:
        return [value or None for value in await super().get_many(keys)]


class Breaks(RightStateStore):
    async def get_many(self, keys: Sequence[str], /) -> Sequence[bytes | None]:
        raise KeyError(f"no column {keys[0]}")


class Hangs(RightStateStore):
    async def get_many(self, keys: Sequence[str], /) -> Sequence[bytes | None]:
        await anyio.sleep_forever()
        return []


def opener_of(store: type[RightStateStore]) -> Opener:
    @asynccontextmanager
    async def open_store() -> AsyncGenerator[RightStateStore]:
        async with anyio.create_task_group():
            yield store()

    return open_store


def failure_of(rule: str, opener: Opener) -> ConformanceFailure:
    traits = StateStoreTraits()
    traits.virtual_time = True
    check = next(check for check in KIND_LIST["state-store"].checks if check.rule.name == rule)
    failure = run_check(check, opener, traits, "trio").failure
    assert failure is not None
    return failure


def test_a_failure_is_five_lines_with_what_was_called_and_the_page() -> None:
    failure = failure_of("cas-sets", opener_of(EmptyIsAbsent))

    assert str(failure).splitlines() == [
        "state-store:cas-sets: cas() sets the key and returns True when it holds `old`.",
        "  did:      open a store; put_many({'a': b'1'}, epoch=1, ttl=None); cas('a', b'1', b'2', epoch=1); "
        "cas('a', b'2', b'', epoch=1); get_many(['a'])",
        "  expected: {'a': b''}",
        "  got:      {'a': None}",
        "  why:      docs/reference/conformance/state-store.md#cas-sets",
    ]


def test_a_failure_comes_bare_out_of_a_task_group_of_the_plugin() -> None:
    failure = failure_of("cas-sets", opener_of(EmptyIsAbsent))

    assert failure.__cause__ is None
    assert failure.report() == str(failure)


def test_an_exception_of_the_plugin_is_shown_from_its_own_frame_on() -> None:
    failure = failure_of("absent", opener_of(Breaks))

    assert failure.expected == "get_many(['a']) to return"
    assert failure.got.startswith("it raised KeyError: 'no column a' (test_failure.py:")
    assert failure.got.endswith(" in get_many)")
    below = failure.report().splitlines()[5:]
    assert "test_failure.py" in below[0]
    assert below[-1] == "KeyError: 'no column a'"


def test_a_call_that_hangs_is_cut_off_and_named() -> None:
    failure = failure_of("absent", opener_of(Hangs))

    assert failure.expected == "an answer within 5 s"
    assert failure.got == "none yet"


def test_an_opener_that_raises_is_a_failure_of_the_plugin() -> None:
    @asynccontextmanager
    async def open_store() -> AsyncGenerator[RightStateStore]:
        raise ValueError("no such table")
        yield RightStateStore()

    failure = failure_of("absent", open_store)

    assert failure.expected == "the plugin to open and close without an exception"
    assert failure.got.startswith("ValueError: no such table (test_failure.py:")


def test_a_failure_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError, match="state-store:absent"):
        raise failure_of("absent", opener_of(Hangs))
