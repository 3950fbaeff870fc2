"""A dead-letter store and the records that its checks put there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import attrs
from attrs import define, evolve

from forebay import Category
from forebay.abc import (
    DeadLetter,
    DeadLetterFilter,
    DeadLetterId,
    DeadLetterState,
    DeadLetterStore,
)
from forebay_conformance._checks import CheckList
from forebay_conformance._probe import Probe
from forebay_conformance._traits import DeadLetterStoreTraits

ALL = DeadLetterFilter()


@define
class DeadLetterProbe(Probe[DeadLetterStoreTraits]):
    """A check's view of a dead-letter store."""

    @asynccontextmanager
    async def store(self, *letters: DeadLetter) -> AsyncGenerator[DeadLetterStore]:
        """Open an empty store and put *letters* into it."""
        self.trail.append("open a store")
        async with self.opener() as store:
            if letters:
                await self.put(store, letters)
            yield store

    async def put(self, store: DeadLetterStore, letters: Sequence[DeadLetter], /) -> None:
        """Put *letters*."""
        text = f"put({len(letters)} records, ids from {short(letters[0].id)})" if letters else "put([])"
        await self.call(text, lambda: store.put(letters))

    async def find(
        self,
        store: DeadLetterStore,
        wanted: DeadLetterFilter = ALL,
        /,
        *,
        limit: int = 10_000,
        after: DeadLetterId | None = None,
    ) -> list[DeadLetter]:
        """Find those *wanted*."""
        text = f"find({asked(wanted)}, limit={limit}, after={after and short(after)})"
        return list(await self.call(text, lambda: store.find(wanted, limit=limit, after=after)))

    async def found(
        self, store: DeadLetterStore, letters: Sequence[DeadLetter], wanted: DeadLetterFilter = ALL, /
    ) -> None:
        """Fail unless find() returns *letters*, in this order."""
        got = [short(each.id) for each in await self.find(store, wanted)]
        ids = [short(each.id) for each in letters]
        self.expect(got == ids, expected=f"{len(ids)} records {ids[:12]}", got=f"{len(got)} records {got[:12]}")

    async def move(
        self, store: DeadLetterStore, ids: Sequence[DeadLetterId], old: DeadLetterState, new: DeadLetterState, /
    ) -> list[DeadLetterId]:
        """Move *ids* from *old* to *new*."""
        text = f"move({len(ids)} ids, old={old}, new={new})"
        return list(await self.call(text, lambda: store.move(ids, old=old, new=new)))

    async def purge(self, store: DeadLetterStore, wanted: DeadLetterFilter, limit: int, /) -> int:
        """Purge those *wanted*."""
        return await self.call(f"purge({asked(wanted)}, limit={limit})", lambda: store.purge(wanted, limit=limit))

    def fields_equal(self, got: DeadLetter, put: DeadLetter, names: Sequence[str], /) -> None:
        """Fail unless the named fields of both are equal."""
        for name in names:
            came, went = _plain(getattr(got, name)), _plain(getattr(put, name))
            self.expect(came == went, expected=f"{name}={went!r}", got=f"{name}={came!r}")


def _plain(value: object) -> object:
    """Return sequences as lists, so that a tuple equals a list."""
    # The cast: isinstance tells pyright nothing about what is inside.
    return list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value


def short(identity: DeadLetterId, /) -> str:
    """Return *identity* in one word."""
    return f"{identity.pipeline}/{identity.source}/{identity.partition}/{identity.offset}/{identity.generation}"


def asked(wanted: DeadLetterFilter, /) -> str:
    """Return the fields of *wanted* that are set."""
    pairs = [f"{name}={value!r}" for name, value in attrs.asdict(wanted).items() if value is not None]
    return ", ".join(pairs) or "all"


def letter(number: int, /, **changes: object) -> DeadLetter:
    """Return a dead letter that is different for each *number*, with *changes* to its fields."""
    plain = DeadLetter(
        id=DeadLetterId("orders", "queue", 0, f"{number:06}"),
        payload=f"item {number}".encode(),
        content_type="application/octet-stream",
        category=Category.PERMANENT,
        fingerprint="fp1:aa",
        stage="store",
        error_type="builtins.ValueError",
        message=f"item {number} is no good",
        first_seen=1_700_000_000.0 + number,
        last_seen=1_700_000_100.0 + number,
    )
    return evolve(plain, **changes)  # type: ignore[arg-type]  # each test names fields of DeadLetter


def whole(number: int, /) -> DeadLetter:
    """Return a dead letter in which no field has its default."""
    return letter(
        number,
        content_type="application/json",
        category=Category.POISON,
        masked_message="item <n> is no good",
        frames=("shop.orders:parse", "shop.money:to_cents"),
        traceback="Traceback (most recent call last):\n  …\nValueError: 'é' \"quoted\" \\ %s\n",
        key="customer 'é' \\ \" %",
        attempts=4,
        member="worker-7f3a",
        host="box",
        trace_id="0af7651916cd43dd8448eb211c80319c",
        batch_id="41",
        code_version="1.2.3+abc",
        epoch=7,
        state=DeadLetterState.REPLAYING,
    )


DEAD_LETTER_CHECKS = CheckList("dead-letter-store", DeadLetterProbe)
