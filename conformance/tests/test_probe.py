"""Calls are cut off exactly where they should be."""

from __future__ import annotations

from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint

from forebay_conformance._probe import CUTS, Cut, at_once, cut

pytestmark = pytest.mark.anyio


async def three_steps(seen: list[int]) -> str:
    for step in range(3):
        seen.append(step)
        await checkpoint()
    return "done"


@pytest.mark.parametrize("waits", [0, 1, 2, 3])
async def test_a_call_is_cut_at_the_very_wait(waits: int) -> None:
    seen: list[int] = []

    got = await cut(Cut(waits=waits), lambda: three_steps(seen))

    assert got == []
    assert seen == list(range(max(waits, 1)))


async def test_a_call_that_is_over_before_has_its_result() -> None:
    assert await cut(Cut(waits=4), lambda: three_steps([])) == ["done"]
    assert await cut(Cut(turns=100), lambda: three_steps([])) == ["done"]


async def test_a_call_that_waits_for_something_else_is_cut_after_some_turns() -> None:
    assert await cut(Cut(turns=5), anyio.sleep_forever) == []


async def test_a_call_that_never_waits_again_is_cut_after_a_second() -> None:
    started = anyio.current_time()

    assert await cut(Cut(waits=20), anyio.sleep_forever) == []

    assert anyio.current_time() - started >= 1.0


async def test_an_exception_of_the_call_comes_bare() -> None:
    async def fails() -> None:
        await checkpoint()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await cut(Cut(waits=9), fails)


async def test_a_call_may_clean_up_when_it_is_cut() -> None:
    cleaned: list[bool] = []

    async def call() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            cleaned.append(True)

    assert await cut(Cut(waits=1), call) == []
    assert cleaned == [True]


async def test_calls_at_once_keep_their_order_and_raise_bare() -> None:
    async def later(value: int) -> int:
        await anyio.sleep(0.03 - value / 100)
        return value

    async def fails() -> int:
        await checkpoint()
        raise ValueError("no")

    assert await at_once([partial(later, n) for n in range(3)]) == [0, 1, 2]
    with pytest.raises(ValueError, match="no"):
        await at_once([lambda: later(1), fails])


def test_each_place_reads_as_what_it_is() -> None:
    assert str(CUTS[0]) == "before it starts"
    assert str(CUTS[2]) == "at wait 2"
    assert str(CUTS[-1]) == "after 377 turns of the event loop"
