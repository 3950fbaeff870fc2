"""Takes orders from one drawer, puts the good ones into another and the bad ones into a third."""

import json
from pathlib import Path

import anyio

import forebay
from forebay.abc import DeadLetterFilter, Summary
from forebay.hooks import Plugins


def parse(order: bytes) -> dict[str, object]:
    parsed: dict[str, object] = json.loads(order)
    return parsed


async def run() -> Summary:
    orders = (
        forebay.pipeline("drawer:///inbox?suffix=.json", name="orders", dead_letters="drawer:///failed")
        .map(parse)
        .map_batches("drawer:///outbox", max_size=10)
    )
    return await orders.run()


async def count_failed() -> int:
    async with Plugins().dead_letter_stores.build("drawer:///failed") as letters:
        return len(await letters.find(DeadLetterFilter(stage="map parse"), limit=10))


async def main() -> None:
    inbox = Path("inbox")
    inbox.mkdir()
    for number in range(25):
        (inbox / f"{number}.json").write_text(json.dumps({"id": number}) if number != 13 else "{")
    (inbox / "notes.txt").write_text("not an order")

    summary = await run()

    print(summary.done, "done,", summary.dead, "set aside,", await count_failed(), "in the file")
    print(sorted(file.name for file in inbox.iterdir()), len(list(Path("outbox").iterdir())))


anyio.run(main, backend="trio")
