"""A sink and two stores that keep every rule, small enough to be wrong in one place at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import checkpoint
from attrs import evolve

from forebay import Failed, LostOwnershipError
from forebay.abc import DeadLetter, DeadLetterFilter, DeadLetterGroup, DeadLetterId, DeadLetterState, Outcome

BAD = "bad"


class RightSink:
    """Keeps items in a list; refuses those that are `BAD`."""

    def __init__(self) -> None:
        self.rows: list[object] = []

    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        await checkpoint()
        outcomes: list[Outcome] = [self.insert(item) for item in items]
        return outcomes

    def insert(self, item: object) -> Outcome:
        if item == BAD:
            return Failed(ValueError("bad item"))
        self.rows.append(item)
        return None


class RightDeadLetterStore:
    """Keeps records in a dict."""

    def __init__(self) -> None:
        self.letters: dict[DeadLetterId, DeadLetter] = {}

    async def put(self, records: Sequence[DeadLetter], /) -> None:
        await checkpoint()
        for record in records:
            self.store(record)

    def store(self, record: DeadLetter) -> None:
        self.letters.setdefault(record.id, record)

    async def find(
        self, wanted: DeadLetterFilter, /, *, limit: int, after: DeadLetterId | None = None
    ) -> Sequence[DeadLetter]:
        await checkpoint()
        found = [each for each in self.sorted() if self.matches(wanted, each)]
        return [each for each in found if after is None or each.id > after][:limit]

    def sorted(self) -> list[DeadLetter]:
        return sorted(self.letters.values(), key=lambda each: each.id)

    def matches(self, wanted: DeadLetterFilter, each: DeadLetter) -> bool:
        return wanted.matches(each)

    async def groups(self, wanted: DeadLetterFilter, /) -> Sequence[DeadLetterGroup]:
        await checkpoint()
        groups: dict[str, list[DeadLetter]] = {}
        for each in self.sorted():
            if wanted.matches(each):
                groups.setdefault(each.fingerprint, []).append(each)
        return sorted(map(self.group, groups.values()), key=self.rank)

    def rank(self, group: DeadLetterGroup) -> tuple[int, str]:
        return (-group.count, group.fingerprint)

    def group(self, members: list[DeadLetter]) -> DeadLetterGroup:
        newest = max(members, key=lambda each: each.last_seen)
        return DeadLetterGroup(
            newest.fingerprint,
            newest.category,
            len(members),
            min(each.first_seen for each in members),
            newest.last_seen,
            newest.stage,
            newest.error_type,
            newest.masked_message,
        )

    async def move(
        self, ids: Sequence[DeadLetterId], /, *, old: DeadLetterState, new: DeadLetterState
    ) -> Sequence[DeadLetterId]:
        await checkpoint()
        return [each for each in ids if self.move_one(each, old, new)]

    def move_one(self, each: DeadLetterId, old: DeadLetterState, new: DeadLetterState) -> bool:
        known = self.letters.get(each)
        if known is None or known.state != old:
            return False
        self.letters[each] = evolve(known, state=new)
        return True

    async def purge(self, wanted: DeadLetterFilter, /, *, limit: int) -> int:
        await checkpoint()
        doomed = [each.id for each in self.sorted() if wanted.matches(each)][:limit]
        for each in doomed:
            del self.letters[each]
        return len(doomed)


class RightStateStore:
    """Keeps values in a dict, with the time at which each goes."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[bytes, float]] = {}
        self.epoch = 0

    def fence(self, epoch: int) -> None:
        if epoch < self.epoch:
            raise LostOwnershipError(f"epoch {epoch} is older than {self.epoch}")
        self.epoch = epoch

    def current(self, key: str) -> bytes | None:
        value, until = self.values.get(key, (None, 0.0))
        return value if until > anyio.current_time() else None

    def store(self, key: str, value: bytes, ttl: float | None = None) -> None:
        self.values[key] = (value, float("inf") if ttl is None else anyio.current_time() + ttl)

    async def get_many(self, keys: Sequence[str], /) -> Sequence[bytes | None]:
        await checkpoint()
        return [self.current(key) for key in keys]

    async def put_many(self, values: Mapping[str, bytes], /, *, epoch: int, ttl: float | None = None) -> None:
        await checkpoint()
        self.fence(epoch)
        for key, value in values.items():
            self.store(key, value, ttl)

    async def delete_many(self, keys: Sequence[str], /, *, epoch: int) -> None:
        await checkpoint()
        self.fence(epoch)
        for key in keys:
            self.values.pop(key, None)

    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        await checkpoint()
        self.fence(epoch)
        if self.current(key) != old:
            return False
        self.swap(key, new)
        return True

    def swap(self, key: str, new: bytes | None) -> None:
        if new is None:
            self.values.pop(key, None)
        else:
            self.store(key, new)

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        await checkpoint()
        for key in self.keys(prefix):
            yield key

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.values if key.startswith(prefix) and self.current(key) is not None)


@asynccontextmanager
async def open_right_sink() -> AsyncGenerator[RightSink]:
    yield RightSink()


@asynccontextmanager
async def open_right_dead_letters() -> AsyncGenerator[RightDeadLetterStore]:
    yield RightDeadLetterStore()


@asynccontextmanager
async def open_right_state() -> AsyncGenerator[RightStateStore]:
    yield RightStateStore()
