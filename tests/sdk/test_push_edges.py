"""What a batcher tells: its handler about the batch, and those who listen about dead letters."""

import pytest

from forebay import BatchContext, Failed, current_batch, open_batcher
from forebay.abc import DeadLettered, DeadLetterFilter
from forebay.hooks import Plugins
from forebay.testing import FakeDeadLetterStore

pytestmark = pytest.mark.anyio


class Listener:
    """Hears of dead letters."""

    def __init__(self) -> None:
        self.heard: list[DeadLettered] = []

    def dead_lettered(self, info: DeadLettered, /) -> None:
        self.heard.append(info)


async def refuse(items: list[str]) -> list[str | Failed]:
    return [Failed(ValueError(f"{item} refused")) for item in items]


async def test_a_batch_of_submitted_items_comes_from_nowhere() -> None:
    seen: list[BatchContext] = []

    async def store(items: list[str]) -> list[str]:
        seen.append(current_batch())
        return items

    async with open_batcher(store, max_size=5, name="store") as batcher:
        await batcher.submit("penstock")

    assert seen == [BatchContext("store", attempt=1, maybe_done=False, parts=())]


async def test_listeners_hear_of_the_dead_letters_of_a_batcher() -> None:
    store = FakeDeadLetterStore()
    listener = Listener()

    async with open_batcher(refuse, max_size=5, name="store", dead_letters=store, observers=[listener]) as batcher:
        with pytest.raises(ValueError, match="penstock refused"):
            await batcher.submit("penstock")

    letters = await store.memory.find(DeadLetterFilter(), limit=10)
    assert [letter.message for letter in letters] == ["penstock refused"]
    assert listener.heard == [DeadLettered("store", letters)]


async def test_a_store_is_looked_up_in_the_plugins_that_are_given() -> None:
    listener = Listener()
    plugins = Plugins(discover=False)

    async with open_batcher(
        refuse, max_size=5, dead_letters="memory", plugins=plugins, observers=[listener]
    ) as batcher:
        with pytest.raises(ValueError, match="penstock refused"):
            await batcher.submit("penstock")

    assert [len(event.letters) for event in listener.heard] == [1]
