"""Sinks and state stores with one fault each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import checkpoint

from conformance.tests.right_others import BAD, RightSink, RightStateStore
from conformance.tests.wrong import ClosesOnce, WrongList
from forebay import EngineError, Failed
from forebay.abc import Outcome

WRONG_SINKS = WrongList("sink")
WRONG_SINKS.add_ends(RightSink)
_sink = WRONG_SINKS.fault

WRONG_STATE_STORES = WrongList("state-store")
WRONG_STATE_STORES.add_ends(RightStateStore)
_state = WRONG_STATE_STORES.fault


# --- Sinks -------------------------------------------------------------------------------------


@_sink("outcome-shape")
class OneOutcomeTooMany(RightSink):
    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        outcomes = list(await super().write(items) or ())
        return [*outcomes, None] if len(items) == 7 else outcomes


@_sink("outcome-shape")
class AnswersTrue(RightSink):
    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        outcomes = list(await super().write(items) or ())
        return [True for _ in outcomes] if len(items) == 7 else outcomes  # type: ignore[misc]


@_sink("outcome-shape")
class RefusesGoodItems(RightSink):
    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        return [Failed(ValueError("no"))] * 3 if len(items) == 3 else await super().write(items)


@_sink("writes-all")
class DropsTheLast(RightSink):
    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        if len(items) != 5:
            return await super().write(items)
        await super().write(items[:-1])
        return None


@_sink("writes-all")
class WritesTwice(RightSink):
    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        outcomes = await super().write(items)
        if len(items) == 5:
            self.rows.append(items[0])
        return outcomes


@_sink("empty-batch")
class NeedsAnItem(RightSink):
    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        await checkpoint()
        columns = items[0]
        assert columns
        return await super().write(items)


@_sink("outcome-order")
class FailuresFirst(RightSink):
    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        return sorted(await super().write(items) or (), key=lambda each: each is None)


@_sink("partial-failure")
class AllOrNone(RightSink):
    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        before = list(self.rows)
        outcomes = await super().write(items)
        if BAD in items:
            self.rows = before
        return outcomes


@_sink("cancel-safe")
class SinkThatLosesItsConnection(RightSink):
    def __init__(self) -> None:
        super().__init__()
        self.connections = anyio.Semaphore(1)

    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        await self.connections.acquire()
        await checkpoint()
        outcomes = await super().write(items)
        self.connections.release()
        return outcomes


@_sink("concurrent-writes")
class CopiesTheTable(RightSink):
    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        rows = list(self.rows)
        await checkpoint()
        self.rows = rows
        return [self.insert(item) for item in items]


@_sink("large-batch")
class WritesAThousand(RightSink):
    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        await super().write(items[1000:2000] if len(items) > 1000 else [])
        return await super().write(items[:1000]) if len(items) <= 1000 else None


@_sink("deadline")
class HangsInTheEnd(RightSink):
    writes = 0

    async def write(self, items: Sequence[object], /) -> Sequence[Outcome] | None:
        self.writes += 1
        if self.writes > 90:
            await anyio.sleep_forever()
        return await super().write(items)


@_sink("leave-cleanly")
class SinkThatClosesOnce(ClosesOnce, RightSink):
    pass


# --- State stores ------------------------------------------------------------------------------


@_state("read-your-writes", also=["cancel-safe"])
class KeepsTheFirst(RightStateStore):
    def store(self, key: str, value: bytes, ttl: float | None = None) -> None:
        if key not in ("a",) or key not in self.values or value != b"3":
            super().store(key, value, ttl)


@_state("absent")
class EmptyForAbsent(RightStateStore):
    async def get_many(self, keys: Sequence[str], /) -> Sequence[bytes | None]:
        values = await super().get_many(keys)
        return values if self.epoch else [value or b"" for value in values]


@_state("get-order")
class EachKeyOnce(RightStateStore):
    async def get_many(self, keys: Sequence[str], /) -> Sequence[bytes | None]:
        return await super().get_many(list(dict.fromkeys(keys)))


@_state("put-all-or-none")
class PutsOneByOne(RightStateStore):
    async def put_many(self, values: Mapping[str, bytes], /, *, epoch: int, ttl: float | None = None) -> None:
        for key, value in values.items():
            await super().put_many({key: value}, epoch=epoch, ttl=ttl)


@_state("values-exact")
class StripsZeros(RightStateStore):
    def store(self, key: str, value: bytes, ttl: float | None = None) -> None:
        super().store(key, value.rstrip(b"\0"), ttl)


@_state("values-exact")
class CutsLongValues(RightStateStore):
    def store(self, key: str, value: bytes, ttl: float | None = None) -> None:
        super().store(key, value[:65536], ttl)


@_state("keys-exact", also=["scan-order", "scan-prefix"])
class FoldsCase(RightStateStore):
    def store(self, key: str, value: bytes, ttl: float | None = None) -> None:
        super().store(key.lower(), value, ttl)

    def current(self, key: str) -> bytes | None:
        return super().current(key.lower())


@_state("empty-calls")
class NeedsAKey(RightStateStore):
    async def get_many(self, keys: Sequence[str], /) -> Sequence[bytes | None]:
        if not keys:
            raise EngineError("syntax error near ')'")
        return await super().get_many(keys)


@_state("delete", also=["cancel-safe"])
class MissesAbsentKeys(RightStateStore):
    async def delete_many(self, keys: Sequence[str], /, *, epoch: int) -> None:
        await checkpoint()
        self.fence(epoch)
        for key in keys:
            del self.values[key]


@_state("delete")
class DeletesPrefixes(RightStateStore):
    async def delete_many(self, keys: Sequence[str], /, *, epoch: int) -> None:
        await super().delete_many(
            [known for known in self.values for key in keys if known.startswith(key)], epoch=epoch
        )


@_state("cas-sets")
class NeverSwapsTwice(RightStateStore):
    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        held = await super().cas(key, old, new, epoch=epoch)
        return held and new != b""


@_state("cas-refuses")
class ComparesPrefixes(RightStateStore):
    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        current = self.current(key)
        if old and current and current.startswith(old):
            old = current
        return await super().cas(key, old, new, epoch=epoch)


@_state("cas-absent")
class TakesEmptyForAbsent(RightStateStore):
    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        if not old and not self.current(key):
            old = self.current(key)
        return await super().cas(key, old, new, epoch=epoch)


@_state("cas-delete")
class SetsToNothing(RightStateStore):
    def swap(self, key: str, new: bytes | None) -> None:
        super().store(key, new or b"")


@_state("cas-race")
class ComparesThenSets(RightStateStore):
    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        await checkpoint()
        self.fence(epoch)
        if self.current(key) != old:
            return False
        await checkpoint()
        self.swap(key, new)
        return True


@_state("stale-put")
class WritesBeforeItLooks(RightStateStore):
    async def put_many(self, values: Mapping[str, bytes], /, *, epoch: int, ttl: float | None = None) -> None:
        await checkpoint()
        for key, value in values.items():
            self.store(key, value, ttl)
        self.fence(epoch)


@_state("stale-delete")
class DeletesUnfenced(RightStateStore):
    async def delete_many(self, keys: Sequence[str], /, *, epoch: int) -> None:
        await super().delete_many(keys, epoch=max(epoch, self.epoch))


@_state("stale-cas")
class SwapsUnfenced(RightStateStore):
    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        return await super().cas(key, old, new, epoch=max(epoch, self.epoch))


@_state("stale-cas")
class AnswersFalseInstead(RightStateStore):
    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        return epoch >= self.epoch and await super().cas(key, old, new, epoch=epoch)


@_state("epoch-again")
class KnowsOneEpoch(RightStateStore):
    def fence(self, epoch: int) -> None:
        super().fence(epoch if epoch in (0, self.epoch) or not self.epoch else -1)


@_state("ttl")
class KeepsForEver(RightStateStore):
    def store(self, key: str, value: bytes, ttl: float | None = None) -> None:
        super().store(key, value)


@_state("ttl")
class ScansWhatIsGone(RightStateStore):
    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.values if key.startswith(prefix))


@_state("ttl")
class SwapsWhatIsGone(RightStateStore):
    async def cas(self, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int) -> bool:
        value, _ = self.values.get(key, (None, 0.0))
        if value is not None:
            self.store(key, value)
        return await super().cas(key, old, new, epoch=epoch)


@_state("ttl")
class GoesAtOnce(RightStateStore):
    def store(self, key: str, value: bytes, ttl: float | None = None) -> None:
        super().store(key, value, None if ttl is None else 0.0)


@_state("ttl-replaced")
class KeepsTheOldTtl(RightStateStore):
    def store(self, key: str, value: bytes, ttl: float | None = None) -> None:
        _, until = self.values.get(key, (b"", float("inf")))
        super().store(key, value, ttl)
        if ttl is None and until != float("inf") and self.current(key) is not None and key == "a":
            self.values[key] = (value, until)


@_state("scan-order")
class ScansAsItCame(RightStateStore):
    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.values if key.startswith(prefix) and self.current(key) is not None]


@_state("scan-prefix")
class PrefixAnywhere(RightStateStore):
    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in super().keys("") if prefix in key)


@_state("scan-prefix")
class PrefixByRange(RightStateStore):
    def keys(self, prefix: str) -> list[str]:
        return [key for key in super().keys("") if prefix <= key < prefix + "\U0010ffff"]


@_state("scan-complete")
class ScansOnePage(RightStateStore):
    def keys(self, prefix: str) -> list[str]:
        keys = super().keys(prefix)
        return keys[:1000] if len(keys) < 4000 else keys


@_state("scan-bounded")
class ScansACopy(RightStateStore):
    def keys(self, prefix: str) -> list[str]:
        return [f"{key}."[:-1] for key in super().keys(prefix)]


@_state("scan-left-early")
class KeepsTheCursor(RightStateStore):
    cursors = 0

    async def scan(self, prefix: str, /) -> AsyncIterator[str]:
        self.cursors += 1
        if self.cursors > 15:
            raise EngineError("too many cursors")
        await checkpoint()
        for key in self.keys(prefix):
            yield key
        self.cursors -= 1


@_state("concurrent")
class CopiesAllValues(RightStateStore):
    async def put_many(self, values: Mapping[str, bytes], /, *, epoch: int, ttl: float | None = None) -> None:
        copy = dict(self.values)
        await checkpoint()
        self.values = copy
        self.fence(epoch)
        for key, value in values.items():
            self.store(key, value, ttl)


@_state("cancel-safe")
class StateThatLosesItsConnection(RightStateStore):
    def __init__(self) -> None:
        super().__init__()
        self.connections = anyio.Semaphore(1)

    async def get_many(self, keys: Sequence[str], /) -> Sequence[bytes | None]:
        await self.connections.acquire()
        await checkpoint()
        values = await super().get_many(keys)
        self.connections.release()
        return values


@_state("leave-cleanly")
class StateThatClosesOnce(ClosesOnce, RightStateStore):
    pass


@asynccontextmanager
async def open_wrong_state() -> AsyncGenerator[RightStateStore]:
    """For the command: it takes an opener by name."""
    yield ScansAsItCame()
