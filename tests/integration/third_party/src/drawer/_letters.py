"""Dead letters in one JSON file."""

import json
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint
from attrs import asdict, evolve

from drawer._folder import folder_of
from forebay.abc import Category, DeadLetter, DeadLetterFilter, DeadLetterGroup, DeadLetterId, DeadLetterState


class DrawerDeadLetters:
    """Keeps the letters in memory and writes all of them with each change: for hundreds, not for millions."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._letters = {letter.id: letter for letter in _read(file)}
        self._lock = anyio.Lock()

    async def put(self, records: Sequence[DeadLetter], /) -> None:
        async with self._lock:
            await self._save({record.id: record for record in reversed(records)} | self._letters)

    async def find(
        self, wanted: DeadLetterFilter, /, *, limit: int, after: DeadLetterId | None = None
    ) -> Sequence[DeadLetter]:
        await checkpoint()
        return [letter for letter in self._matching(wanted) if after is None or letter.id > after][:limit]

    async def groups(self, wanted: DeadLetterFilter, /) -> Sequence[DeadLetterGroup]:
        await checkpoint()
        members: dict[str, list[DeadLetter]] = {}
        for letter in self._matching(wanted):
            members.setdefault(letter.fingerprint, []).append(letter)
        return sorted(map(_group, members.values()), key=lambda group: (-group.count, group.fingerprint))

    async def move(
        self, ids: Sequence[DeadLetterId], /, *, old: DeadLetterState, new: DeadLetterState
    ) -> Sequence[DeadLetterId]:
        async with self._lock:
            known = [id for id in dict.fromkeys(ids) if id in self._letters]
            moved = [id for id in known if self._letters[id].state is old]
            await self._save(self._letters | {id: evolve(self._letters[id], state=new) for id in moved})
            return moved

    async def purge(self, wanted: DeadLetterFilter, /, *, limit: int) -> int:
        async with self._lock:
            gone = {letter.id for letter in self._matching(wanted)[:limit]}
            await self._save({id: letter for id, letter in self._letters.items() if id not in gone})
            return len(gone)

    def _matching(self, wanted: DeadLetterFilter) -> list[DeadLetter]:
        return [letter for _, letter in sorted(self._letters.items()) if wanted.matches(letter)]

    async def _save(self, letters: dict[DeadLetterId, DeadLetter]) -> None:
        await to_thread.run_sync(_write, self._file, list(letters.values()))
        self._letters = letters


def _group(letters: Sequence[DeadLetter]) -> DeadLetterGroup:
    newest = max(letters, key=lambda letter: letter.last_seen)
    return DeadLetterGroup(
        fingerprint=newest.fingerprint,
        category=newest.category,
        count=len(letters),
        first_seen=min(letter.first_seen for letter in letters),
        last_seen=newest.last_seen,
        stage=newest.stage,
        error_type=newest.error_type,
        masked_message=newest.masked_message,
    )


def _write(file: Path, letters: Sequence[DeadLetter]) -> None:
    rows = [asdict(letter) | {"payload": b64encode(letter.payload).decode()} for letter in letters]
    written = file.with_suffix(".new")
    written.write_text(json.dumps(rows))
    written.replace(file)  # at once: a reader sees all of them or those of before


def _read(file: Path) -> list[DeadLetter]:
    return [_letter(row) for row in json.loads(file.read_text())] if file.exists() else []


def _letter(row: Mapping[str, Any]) -> DeadLetter:
    fields = {
        **row,
        "id": DeadLetterId(**row["id"]),
        "payload": b64decode(row["payload"]),
        "category": Category(row["category"]),
        "state": DeadLetterState(row["state"]),
    }
    return DeadLetter(**fields)


@asynccontextmanager
async def open_drawer_letters(*, url: str) -> AsyncGenerator[DrawerDeadLetters]:
    """Open the letters in the folder that *url* names."""
    await checkpoint()
    yield DrawerDeadLetters(folder_of(url) / "letters.json")
