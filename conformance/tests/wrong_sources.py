"""Sources with one fault each."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import anyio
import attrs
from anyio.lowlevel import checkpoint
from attrs import evolve

from conformance.tests.right_source import Entry, RightSession, RightSource, size_of
from conformance.tests.wrong import ClosesOnce, WrongList
from forebay import EngineError
from forebay.abc import Chunk, Deliveries, Member, Redelivery, Session, Settlement
from forebay_conformance._source_probe import Offset

WRONG_SOURCES = WrongList("source")
_fault = WRONG_SOURCES.fault
WRONG_SOURCES.add_ends(RightSource)


def _session_fault(rule: str, *, also: Collection[str] = ()) -> Callable[[type[RightSession]], type[RightSession]]:
    """Add a source whose sessions are of the wrong class."""

    def register(session: type[RightSession]) -> type[RightSession]:
        class Source(RightSource):
            def session(self, epoch: int) -> RightSession:
                return session(self, epoch)

        Source.__name__ = session.__name__
        _fault(rule, also=also)(Source)
        return session

    return register


# --- Fetch -------------------------------------------------------------------------------------


@_session_fault("chunk-shape")
class OneKeyForAll(RightSession):
    def chunk(self, entries: Sequence[Entry]) -> Chunk[object]:
        return evolve(super().chunk(entries), keys=["key"])


@_session_fault("order")
class NewestFirst(RightSession):
    def pick(self, max_items: int, max_bytes: int | None) -> list[Entry]:
        everything = super().pick(100_000, None)[::-1][:max_items]
        return everything if max_bytes is None else self.fitting(everything, max_bytes)


@_session_fault("offset-unique", also=["cancel-safe", "members-apart"])
class SharedOffset(RightSession):
    def offset(self, entry: Entry) -> Offset:
        return 16 if entry.offset == 17 else entry.offset


@_session_fault("offset-stable", also=["failures-kept", "give-back-refund", "renew-keeps-failures"])
class OffsetOfTheDelivery(RightSession):
    def offset(self, entry: Entry) -> Offset:
        return f"{entry.offset}/{entry.deliveries}"

    def entry_at(self, offset: Offset) -> Entry:
        return self.source.entries[int(str(offset).partition("/")[0])]

    def return_one(self, entry: Entry, refund: bool) -> None:
        entry.held = False  # a refund would give the offset back


@_session_fault(
    "max-items",
    also=[
        "give-back",
        "give-back-idempotent",
        "offset-stable",
        "order",
        "settle-final",
        "unknown-fields",
        "unsettled-again",
    ],
)
class OneMore(RightSession):
    def pick(self, max_items: int, max_bytes: int | None) -> list[Entry]:
        return super().pick(max_items + (max_items == 3), max_bytes)


@_session_fault("max-bytes")
class OneTooMany(RightSession):
    def fitting(self, entries: list[Entry], max_bytes: int) -> list[Entry]:
        fits: list[Entry] = []
        for entry in entries:
            fits.append(entry)
            if sum(size_of(each) for each in fits) > max_bytes:
                break
        return fits


@_session_fault("oversize-alone")
class NeverOversize(RightSession):
    def fitting(self, entries: list[Entry], max_bytes: int) -> list[Entry]:
        return [entry for entry in super().fitting(entries, max_bytes) if size_of(entry) <= max_bytes]


@_session_fault("settle-only", also=["lag"])
class AlwaysFetches(RightSession):
    def pick(self, max_items: int, max_bytes: int | None) -> list[Entry]:
        return super().pick(max(max_items, 1), max_bytes)


@_session_fault(
    "settle-only",
    also=[
        "cancel-safe",
        "failures-kept",
        "give-back-idempotent",
        "settle-final",
        "settle-idempotent",
        "settle-out-of-order",
        "stale-epoch",
        "unknown-fields",
        "unsettled-again",
    ],
)
class SettlesWithAFetch(RightSession):
    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[object] | None:
        return await super().exchange(settled if max_items else [], max_items=max_items, max_bytes=max_bytes)


@_session_fault(
    "answers-promptly", also=["claim-ends", "members-apart", "renew-extends", "renew-keeps-failures", "retry-due"]
)
class WaitsForItems(RightSession):
    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[object] | None:
        for settlement in settled:
            self.settle(settlement)
        if max_items:
            await self.wait_ready()
        return await super().exchange([], max_items=max_items, max_bytes=max_bytes)


@_session_fault("end")
class AnEmptyOneNeverEnds(RightSession):
    def ended(self) -> bool:
        return bool(self.source.entries) and super().ended()


@_session_fault(
    "end",
    also=[
        "cancel-safe",
        "give-back-idempotent",
        "lag",
        "settle-after-end",
        "settle-final",
        "settle-idempotent",
        "settle-only",
        "wait-ready-cancel",
    ],
)
class NeverEnds(RightSession):
    def ended(self) -> bool:
        return False


@_session_fault("end", also=["failures-kept", "stale-epoch"])
class EndsAfterOneSettlement(RightSession):
    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[object] | None:
        chunk = await super().exchange(settled, max_items=max_items, max_bytes=max_bytes)
        return None if settled and not max_items else chunk


@_session_fault("lag")
class CountsAll(RightSession):
    async def lag(self) -> int | None:
        await checkpoint()
        return len(self.source.entries)


@_session_fault("lag")
class KnowsNoLag(RightSession):
    async def lag(self) -> int | None:
        await checkpoint()
        return None


@_session_fault("wait-ready")
class WaitsForNews(RightSession):
    async def wait_ready(self) -> None:
        await self.source.changed.wait()


@_session_fault("wait-ready")
class IsNotWoken(RightSession):
    async def wait_ready(self) -> None:
        await checkpoint()
        if not self.news():
            await anyio.sleep_forever()


@_session_fault("wait-ready-cancel")
class PrefetchesWhileItWaits(RightSession):
    async def wait_ready(self) -> None:
        await super().wait_ready()
        for entry in self.source.entries:
            if self.ready(entry):
                entry.due = float("inf")
                await checkpoint()
                entry.due = 0.0
                break


@_session_fault("cancel-safe")
class LosesWhatItHasInHand(RightSession):
    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[object] | None:
        chunk = await super().exchange(settled, max_items=max_items, max_bytes=max_bytes)
        on_the_way = [] if chunk is None else [self.entry_at(offset) for offset in chunk.offsets]
        for entry in on_the_way:
            entry.settled = True
        await checkpoint()
        for entry in on_the_way:
            entry.settled = False
        return chunk


@_session_fault("cancel-safe")
class BelievesItHasSettled(RightSession):
    noted: frozenset[str] = frozenset()

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[object] | None:
        fresh = [each for each in settled if repr(each) not in self.noted]
        self.noted |= {repr(each) for each in fresh}
        await checkpoint()
        return await super().exchange(fresh, max_items=max_items, max_bytes=max_bytes)


# --- Settlement --------------------------------------------------------------------------------


@_session_fault("settle-after-end", also=["end"])
class TakesNothingAfterTheEnd(RightSession):
    at_end = False

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[object] | None:
        if self.at_end:
            raise EngineError("the end was reached")
        chunk = await super().exchange(settled, max_items=max_items, max_bytes=max_bytes)
        self.at_end = chunk is None
        return chunk


@_fault("settle-final", also=["cancel-safe", "settle-after-end", "settle-out-of-order", "unsettled-again"])
class ForgetsWhatIsSettled(RightSource):
    def left(self, session: RightSession) -> None:
        for entry in self.entries:
            entry.settled = False
        super().left(session)


@_session_fault("settle-out-of-order", also=["cancel-safe", "retry-due", "unknown-fields"])
class SettlesAllBelow(RightSession):
    def settle(self, settlement: Settlement) -> None:
        upto = max((int(offset) for offset in settlement.offsets), default=-1)
        super().settle(evolve(settlement, offsets=range(upto + 1)))


@_session_fault("settle-out-of-order", also=["stale-epoch"])
class SettlesWhatOthersHave(RightSession):
    def settle(self, settlement: Settlement) -> None:
        super().settle(settlement)
        if settlement.mark is not None:
            for entry in self.source.entries[: settlement.mark]:
                if self.epoch != entry.epoch and entry.held:
                    entry.settled = True


@_session_fault("settle-idempotent", also=["cancel-safe", "settle-after-end"])
class SettlesOnlyOnce(RightSession):
    def settle(self, settlement: Settlement) -> None:
        for offset in settlement.offsets:
            if self.entry_at(offset).settled:
                raise EngineError(f"{offset} is settled already")
        super().settle(settlement)


@_session_fault("settle-idempotent", also=["stale-epoch"])
class CountsTwice(RightSession):
    count = 0

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[object] | None:
        self.count += sum(len(settlement.offsets) for settlement in settled)
        chunk = await super().exchange(settled, max_items=max_items, max_bytes=max_bytes)
        return None if self.count >= len(self.source.entries) else chunk


@_session_fault("give-back")
class GivesBackLater(RightSession):
    def return_one(self, entry: Entry, refund: bool) -> None:
        super().return_one(entry, refund)
        entry.due = anyio.current_time() + 0.2


@_session_fault("give-back-idempotent")
class RevivesSettledItems(RightSession):
    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        await super().give_back(deliveries, refund=refund)
        for group in deliveries:
            for offset in group.offsets:
                self.entry_at(offset).settled = False


@_session_fault("give-back-refund")
class NeverRefunds(RightSession):
    def return_one(self, entry: Entry, refund: bool) -> None:
        entry.held = False


@_session_fault("give-back-counted")
class AlwaysRefunds(RightSession):
    def return_one(self, entry: Entry, refund: bool) -> None:
        super().return_one(entry, True)


@_fault(
    "unsettled-again",
    also=["cancel-safe", "deliveries-counted", "renew-keeps-failures", "settle-out-of-order", "stale-epoch"],
)
class SettlesOnLeaving(RightSource):
    def left(self, session: RightSession) -> None:
        for entry in self.entries:
            entry.settled = entry.settled or (entry.held and entry.epoch == session.epoch)
        super().left(session)


@_session_fault("claim-ends", also=["stale-epoch"])
class ClaimsForEver(RightSession):
    def ready(self, entry: Entry) -> bool:
        return super().ready(entry) and not entry.held


@_session_fault("renew-extends")
class RenewsNothing(RightSession):
    def extend(self) -> None:
        pass


@_fault("deliveries-counted")
class ForgetsDeliveries(RightSource):
    def left(self, session: RightSession) -> None:
        for entry in self.entries:
            entry.deliveries = 0
        super().left(session)


@_session_fault("failures-kept")
class SettlesWithoutFailures(RightSession):
    def settle(self, settlement: Settlement) -> None:
        plain = [evolve(retry, failures=0, maybe_done=False) for retry in settlement.retries]
        super().settle(evolve(settlement, retries=plain))


@_session_fault("failures-kept")
class ForgetsMaybeDone(RightSession):
    def settle(self, settlement: Settlement) -> None:
        plain = [evolve(retry, maybe_done=False) for retry in settlement.retries]
        super().settle(evolve(settlement, retries=plain))


@_session_fault("renew-keeps-failures")
class RenewsWithoutFailures(RightSession):
    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        return await super().renew([])


@_session_fault("renew-keeps-failures")
class RenewalsGiveBack(RightSession):
    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        lost = await super().renew(failures)
        for failure in failures:
            self.entry_at(failure.offset).held = False
        return lost


@_session_fault("retry-due")
class RetriesAtOnce(RightSession):
    def settle(self, settlement: Settlement) -> None:
        super().settle(evolve(settlement, retries=[evolve(retry, after=0.0) for retry in settlement.retries]))


@_session_fault("retry-due")
class LosesDelayedRetries(RightSession):
    def settle(self, settlement: Settlement) -> None:
        later = [evolve(retry, after=1e9 if retry.after else 0.0) for retry in settlement.retries]
        super().settle(evolve(settlement, retries=later))


@_session_fault("stale-epoch")
class TakesAnyEpoch(RightSession):
    def mine(self, offsets: Sequence[Offset], epoch: int) -> list[Entry]:
        entries = [self.entry_at(offset) for offset in offsets]
        return [entry for entry in entries if entry.held and not entry.settled]


@_session_fault("stale-epoch")
class HidesWhatIsLost(RightSession):
    def take_lost(self) -> list[Deliveries]:
        self.lost.clear()
        return []


@_session_fault("members-apart")
class LooksBeforeItTakes(RightSession):
    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[object] | None:
        await checkpoint()
        for settlement in settled:
            self.settle(settlement)
        entries = self.pick(max_items, max_bytes)
        await checkpoint()
        if not entries and self.ended() and not self.lost:
            return None
        for entry in entries:
            self.hand_out(entry)
        return self.chunk(entries)


@_session_fault("unknown-fields")
class UnpacksSettlements(RightSession):
    def settle(self, settlement: Settlement) -> None:
        offsets, partition, epoch, mark, retries = attrs.astuple(settlement, recurse=False)
        super().settle(Settlement(offsets, partition, epoch, mark, retries))


@_fault("unknown-fields")
class UnpacksMembers(RightSource):
    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[Session[object]]:
        Member(**attrs.asdict(member))
        async with super().open(member) as session:
            yield session


@_session_fault("leave-cleanly")
class ClosesSessionsOnce(ClosesOnce, RightSession):
    pass
