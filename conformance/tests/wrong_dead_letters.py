"""Dead-letter stores with one fault each."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import attrs
from anyio.lowlevel import checkpoint
from attrs import evolve

from conformance.tests.right_others import RightDeadLetterStore
from conformance.tests.wrong import ClosesOnce, WrongList
from forebay import EngineError
from forebay.abc import DeadLetter, DeadLetterFilter, DeadLetterGroup, DeadLetterId, DeadLetterState

WRONG_DEAD_LETTER_STORES = WrongList("dead-letter-store")
WRONG_DEAD_LETTER_STORES.add_ends(RightDeadLetterStore)
_fault = WRONG_DEAD_LETTER_STORES.fault


@_fault("put-idempotent")
class OverwritesTheFirst(RightDeadLetterStore):
    def store(self, record: DeadLetter) -> None:
        self.letters[record.id] = record


@_fault("put-all-or-none")
class PutsOneByOne(RightDeadLetterStore):
    async def put(self, records: Sequence[DeadLetter], /) -> None:
        for record in records:
            await super().put([record])


@_fault("put-mixed", also=["put-concurrent"])
class KnownIdsKeepTheRestOut(RightDeadLetterStore):
    async def put(self, records: Sequence[DeadLetter], /) -> None:
        await super().put([] if any(record.id in self.letters for record in records) else records)


@_fault("put-empty")
class NeedsARecord(RightDeadLetterStore):
    async def put(self, records: Sequence[DeadLetter], /) -> None:
        if not records:
            raise EngineError("syntax error near ')'")
        await super().put(records)


@_fault("put-concurrent")
class CopiesTheTable(RightDeadLetterStore):
    async def put(self, records: Sequence[DeadLetter], /) -> None:
        letters = dict(self.letters)
        await checkpoint()
        self.letters = letters
        for record in records:
            self.store(record)


@_fault("payload-exact")
class StripsZeros(RightDeadLetterStore):
    def store(self, record: DeadLetter) -> None:
        super().store(evolve(record, payload=record.payload.rstrip(b"\0")))


@_fault("payload-exact")
class TakesPayloadsForText(RightDeadLetterStore):
    def store(self, record: DeadLetter) -> None:
        super().store(evolve(record, payload=record.payload.decode(errors="replace").encode()))


@_fault("payload-exact")
class CutsLongPayloads(RightDeadLetterStore):
    def store(self, record: DeadLetter) -> None:
        super().store(evolve(record, payload=record.payload[:65535]))


@_fault("headers-exact")
class FoldsHeaderNames(RightDeadLetterStore):
    def store(self, record: DeadLetter) -> None:
        super().store(evolve(record, headers={name.lower(): value for name, value in record.headers.items()}))


@_fault("fields-exact", also=["unknown-fields"])
class ForgetsTheTrace(RightDeadLetterStore):
    def store(self, record: DeadLetter) -> None:
        super().store(evolve(record, trace_id=""))


@_fault("odd-text")
class RefusesSurrogates(RightDeadLetterStore):
    def store(self, record: DeadLetter) -> None:
        record.message.encode()
        super().store(record)


@_fault("odd-text")
class StopsAtNul(RightDeadLetterStore):
    def store(self, record: DeadLetter) -> None:
        if "\0" in record.traceback:
            raise EngineError("invalid byte sequence: 0x00")
        super().store(record)


@_fault("find-order", also=["find-pages"])
class SortsPartitionsAsText(RightDeadLetterStore):
    def sorted(self) -> list[DeadLetter]:
        return sorted(
            self.letters.values(), key=lambda each: (each.id.pipeline, each.id.source, str(each.id.partition), each.id)
        )


@_fault("find-order", also=["find-pages"])
class SortsWithoutCase(RightDeadLetterStore):
    def sorted(self) -> list[DeadLetter]:
        return sorted(self.letters.values(), key=lambda each: evolve(each.id, offset=each.id.offset.lower()))


@_fault("find-order", also=["find-pages"])
class SortsOffsetsAsNumbers(RightDeadLetterStore):
    def sorted(self) -> list[DeadLetter]:
        return sorted(self.letters.values(), key=lambda each: evolve(each.id, offset=each.id.offset.rjust(20)))


@_fault("find-pages", also=["many"])
class PagesOverlap(RightDeadLetterStore):
    async def find(
        self, wanted: DeadLetterFilter, /, *, limit: int, after: DeadLetterId | None = None
    ) -> Sequence[DeadLetter]:
        found = await super().find(wanted, limit=100_000)
        return [each for each in found if after is None or each.id >= after][:limit]


@_fault("find-pages")
class KnowsNoLimit(RightDeadLetterStore):
    async def find(
        self, wanted: DeadLetterFilter, /, *, limit: int, after: DeadLetterId | None = None
    ) -> Sequence[DeadLetter]:
        return await super().find(wanted, limit=limit * 1000, after=after)


@_fault("find-filter")
class UntilIsInclusive(RightDeadLetterStore):
    def matches(self, wanted: DeadLetterFilter, each: DeadLetter) -> bool:
        return super().matches(wanted, each) or (wanted.since is None and each.last_seen == wanted.until)


@_fault("find-filter")
class IgnoresStages(RightDeadLetterStore):
    def matches(self, wanted: DeadLetterFilter, each: DeadLetter) -> bool:
        return super().matches(evolve(wanted, stage=None), each)


@_fault("find-text")
class SearchesWithoutCase(RightDeadLetterStore):
    def matches(self, wanted: DeadLetterFilter, each: DeadLetter) -> bool:
        plain = super().matches(evolve(wanted, text=None), each)
        return plain and (wanted.text or "").lower() in each.message.lower()


@_fault("find-text")
class SearchesWithWildcards(RightDeadLetterStore):
    def matches(self, wanted: DeadLetterFilter, each: DeadLetter) -> bool:
        text = wanted.text
        return super().matches(evolve(wanted, text=None if text == "%" else text), each)


@_fault("groups-count")
class DescribesTheLastById(RightDeadLetterStore):
    def group(self, members: list[DeadLetter]) -> DeadLetterGroup:
        return evolve(super().group(members), masked_message=members[-1].masked_message)


@_fault("groups-count")
class FirstSeenOfTheNewest(RightDeadLetterStore):
    def group(self, members: list[DeadLetter]) -> DeadLetterGroup:
        return evolve(super().group(members), first_seen=members[0].first_seen)


@_fault("groups-order")
class SmallestFirst(RightDeadLetterStore):
    def rank(self, group: DeadLetterGroup) -> tuple[int, str]:
        return (group.count, group.fingerprint)


@_fault("groups-order")
class TiesAsTheyCome(RightDeadLetterStore):
    def rank(self, group: DeadLetterGroup) -> tuple[int, str]:
        return (-group.count, group.fingerprint[::-1].replace("a", "z"))


@_fault("groups-filter")
class CountsAll(RightDeadLetterStore):
    async def groups(self, wanted: DeadLetterFilter, /) -> Sequence[DeadLetterGroup]:
        return await super().groups(DeadLetterFilter())


@_fault("move-state", also=["move-race"])
class MovesWhateverTheState(RightDeadLetterStore):
    def move_one(self, each: DeadLetterId, old: DeadLetterState, new: DeadLetterState) -> bool:
        known = self.letters.get(each)
        return known is not None and super().move_one(each, known.state, new)


@_fault("move-state")
class NamesUnknownIds(RightDeadLetterStore):
    def move_one(self, each: DeadLetterId, old: DeadLetterState, new: DeadLetterState) -> bool:
        return each not in self.letters or super().move_one(each, old, new)


@_fault("move-race")
class ReadsThenWrites(RightDeadLetterStore):
    async def move(
        self, ids: Sequence[DeadLetterId], /, *, old: DeadLetterState, new: DeadLetterState
    ) -> Sequence[DeadLetterId]:
        known = {each: self.letters.get(each) for each in ids}
        moved = [each for each, letter in known.items() if letter is not None and letter.state == old]
        await checkpoint()
        for each in moved:
            self.move_one(each, old, new)
        return moved


@_fault("purge-bounded")
class PurgesAll(RightDeadLetterStore):
    async def purge(self, wanted: DeadLetterFilter, /, *, limit: int) -> int:
        return await super().purge(wanted, limit=100_000)


@_fault("purge-bounded")
class CountsTheLimit(RightDeadLetterStore):
    async def purge(self, wanted: DeadLetterFilter, /, *, limit: int) -> int:
        deleted = await super().purge(wanted, limit=limit)
        return limit if limit == 3 else deleted


@_fault("purge-filter")
class PurgesOtherStages(RightDeadLetterStore):
    async def purge(self, wanted: DeadLetterFilter, /, *, limit: int) -> int:
        return await super().purge(evolve(wanted, stage=None), limit=limit)


@_fault("many")
class RunsOutOfParameters(RightDeadLetterStore):
    async def put(self, records: Sequence[DeadLetter], /) -> None:
        if len(records) > 999:
            raise EngineError("too many SQL variables")
        await super().put(records)


@_fault("cancel-safe")
class LosesItsConnection(RightDeadLetterStore):
    def __init__(self) -> None:
        super().__init__()
        self.connections = anyio.Semaphore(1)

    async def groups(self, wanted: DeadLetterFilter, /) -> Sequence[DeadLetterGroup]:
        await self.connections.acquire()
        await checkpoint()
        groups = await super().groups(wanted)
        self.connections.release()
        return groups

    async def find(
        self, wanted: DeadLetterFilter, /, *, limit: int, after: DeadLetterId | None = None
    ) -> Sequence[DeadLetter]:
        async with self.connections:
            return await super().find(wanted, limit=limit, after=after)


@_fault("unknown-fields")
class CopiesByPosition(RightDeadLetterStore):
    def store(self, record: DeadLetter) -> None:
        super().store(DeadLetter(*attrs.astuple(record, recurse=False)))


@_fault("leave-cleanly")
class ClosesStoresOnce(ClosesOnce, RightDeadLetterStore):
    pass
