"""A JSON file for each item."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from anyio import to_thread
from anyio.lowlevel import checkpoint

from drawer._folder import folder_of
from forebay import Failed
from forebay.abc import Outcome


class DrawerSink:
    """Adds a file for each item; one that JSON cannot hold is answered with its `TypeError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def write(self, items: Sequence[object], /) -> Sequence[Outcome]:
        return await to_thread.run_sync(lambda: [self._add(item) for item in items])

    def _add(self, item: object) -> Outcome:
        try:
            text = json.dumps(item)
        except TypeError as exc:
            return Failed(exc)
        (self.folder / f"{uuid4()}.json").write_text(text)
        return None


@asynccontextmanager
async def open_drawer_sink(*, url: str) -> AsyncGenerator[DrawerSink]:
    """Open the folder that *url* names."""
    await checkpoint()
    yield DrawerSink(folder_of(url))
