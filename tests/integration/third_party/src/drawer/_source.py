"""The files of a folder, handed out by name; a settled one is deleted."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint

from drawer._folder import folder_of
from forebay.abc import Chunk, Deliveries, Member, Offset, Redelivery, Session, Settlement


class DrawerSession:
    """The only reader of a folder."""

    claim_seconds = None  # nobody else takes the files

    def __init__(self, folder: Path, suffix: str) -> None:
        self._folder = folder
        self._suffix = suffix
        self._in_hand: set[Offset] = set()

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[bytes] | None:
        return await to_thread.run_sync(self._exchange, settled, max_items, max_bytes)

    def _exchange(self, settled: Sequence[Settlement], max_items: int, max_bytes: int | None) -> Chunk[bytes] | None:
        for one in settled:
            self._settle(one)
        waiting = self._waiting()
        if not waiting and not self._in_hand:
            return None
        items = self._read(waiting[:max_items], max_bytes)
        self._in_hand.update(items)
        return Chunk(list(items.values()), list(items), sizes=[len(item) for item in items.values()])

    def _settle(self, settled: Settlement) -> None:
        for name in settled.offsets:
            (self._folder / str(name)).unlink(missing_ok=True)
            self._in_hand.discard(name)
        self._in_hand.difference_update(retry.offset for retry in settled.retries)

    def _read(self, names: Sequence[str], max_bytes: int | None) -> dict[str, bytes]:
        items: dict[str, bytes] = {}
        room = float("inf") if max_bytes is None else max_bytes
        for name in names:
            item = (self._folder / name).read_bytes()
            room -= len(item)
            if room < 0 and items:
                break
            items[name] = item
        return items

    def _waiting(self) -> list[str]:
        names = (file.name for file in self._folder.iterdir() if file.name.endswith(self._suffix))
        return sorted(name for name in names if name not in self._in_hand)

    async def wait_ready(self) -> None:
        await anyio.sleep(0.02)

    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        await checkpoint()
        for given in deliveries:
            self._in_hand.difference_update(given.offsets)

    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        await checkpoint()
        return ()

    async def lag(self) -> int | None:
        return len(await to_thread.run_sync(self._waiting))


class DrawerSource:
    """A folder whose files are items, as bytes."""

    def __init__(self, folder: Path, suffix: str = "") -> None:
        self.name = folder.name
        self._folder = folder
        self._suffix = suffix

    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[Session[bytes]]:
        await checkpoint()
        yield DrawerSession(self._folder, self._suffix)


@asynccontextmanager
async def open_drawer_source(*, url: str, suffix: str = "") -> AsyncGenerator[DrawerSource]:
    """Open the folder that *url* names; only files that end in *suffix* are items."""
    await checkpoint()
    yield DrawerSource(folder_of(url), suffix)
