"""A source that follows a script and watches what is done to it."""

# The session and its source are two halves of one thing.
# pyright: reportPrivateUsage=false
from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
from attrs import define, frozen

from forebay._types import Chunk, Deliveries, Member, Offset, Redelivery, Settlement

T = TypeVar("T")
V = TypeVar("V")


@frozen
class Empty:
    """One fetch that finds nothing."""


@frozen
class Pause:
    """Nothing is ready for so many *seconds*, from the first fetch that gets here on."""

    seconds: float


@frozen
class Raise:
    """One fetch that fails with *error*."""

    error: Exception
    settled: bool = False
    """Whether what the call settled is settled all the same, as when only the answer is lost."""


@define(eq=False)
class _Entry(Generic[T]):
    offset: int
    item: T
    size: int | None
    holder: int | None = None
    due: float = -math.inf
    deliveries: int = 0
    failures: int = 0
    maybe_done: bool = False
    settled: bool = False
    may_repeat: bool = False
    stolen_from: int | None = None
    told: bool = False
    """Whether the session has heard that it was stolen."""

    @property
    def final(self) -> bool:
        return self.settled or self.stolen_from is not None

    def note(self, failure: Redelivery) -> None:
        self.failures = failure.failures
        self.maybe_done |= failure.maybe_done


class ScriptedSource(Generic[T]):
    """A source of one partition that plays a script; everything that is not a step of its own is an item.

        source = ScriptedSource([1, 2, Empty(), Pause(5), Raise(OSError("gone")), 3])
        await forebay.pipeline(source).map(handle).run()
        source.assert_settled_once()

    Offsets count from 0. Every session has an epoch of its own, from 1. There are no claims: items stay in hand until
    they are settled or given back or their session is left. Items that came back are handed out before new ones.
    It ends when the script has been played and every item is settled.

    Args:
        script: Items and steps, in order.
        endless: Never end; wait for more, which never comes.
        latency: Virtual seconds that every exchange takes before anything happens.
        settle_errors: What the first, second, … exchange that settles something fails with, having settled nothing;
            `None` for one that succeeds.
        weigh: Size of an item in bytes; without it the source knows no sizes.
    """

    def __init__(
        self,
        script: Iterable[T | Empty | Pause | Raise],
        *,
        endless: bool = False,
        latency: float = 0.0,
        settle_errors: Iterable[Exception | None] = (),
        weigh: Callable[[T], int] | None = None,
    ) -> None:
        self.settlements: list[Settlement] = []
        """Everything that was settled, call by call."""
        self.retries: list[Redelivery] = []
        """Failures that were sent back, in order."""
        self.given_back: list[tuple[Deliveries, bool]] = []
        """What was given back, and whether the delivery was refunded."""
        self.renewals: list[Sequence[Redelivery]] = []
        """The failures that came with each renewal."""
        self.violations: list[str] = []
        """What was done against the contract of `forebay.abc.Session`."""
        self.max_in_hand: int = 0
        """The most items that were in hand at a time."""
        self._script: deque[_Entry[T] | Empty | Pause | Raise] = deque()
        self._entries: list[_Entry[T]] = []
        self._held: dict[int, _Entry[T]] = {}
        self._back: dict[int, _Entry[T]] = {}
        self._paused_until = -math.inf
        self._endless = endless
        self._latency = latency
        self._settle_errors = iter(settle_errors)
        self._epoch = 0
        self._mark = 0
        self._final_below = 0
        self._changed: anyio.Event | None = None  # made by whoever waits: a source may be made outside an event loop
        for step in script:
            self._append(step, weigh)

    def _append(self, step: T | Empty | Pause | Raise, weigh: Callable[[T], int] | None) -> None:
        if isinstance(step, Empty | Pause | Raise):
            self._script.append(step)
            return
        entry = _Entry(len(self._entries), step, None if weigh is None else weigh(step))
        self._entries.append(entry)
        self._script.append(entry)

    # --- What tests ask ------------------------------------------------------------------------

    @property
    def in_hand(self) -> list[int]:
        """Offsets that were handed out and neither settled nor given back."""
        return sorted(self._held)

    @property
    def unsettled(self) -> list[T]:
        """Items that are not settled, those of the script's rest included."""
        return [entry.item for entry in self._entries if not entry.final]

    @property
    def deliveries(self) -> list[int]:
        """How often each item counts as handed out, by offset."""
        return [entry.deliveries for entry in self._entries]

    @property
    def failures(self) -> list[int]:
        """How often each item has failed, by offset."""
        return [entry.failures for entry in self._entries]

    def assert_settled_once(self) -> None:
        """Check that every item is settled and that nothing was done against the contract."""
        __tracebackhide__ = True
        assert not self.violations, "; ".join(self.violations)
        assert not self.unsettled, f"unsettled: {self.unsettled!r}"

    def steal(self, *offsets: int) -> None:
        """Give items in hand to another member that is never seen again; the session hears of it when it asks."""
        for offset in offsets:
            if offset not in self._held:
                raise ValueError(f"offset {offset} is not in hand; steal one of {self.in_hand}")
            entry = self._held.pop(offset)
            entry.stolen_from, entry.holder = entry.holder, None
        self._change()

    # --- What the engine asks ------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[ScriptedSession[T]]:
        """Open a session; what it has in hand when it is left comes back at once."""
        self._epoch += 1
        session = ScriptedSession(self, self._epoch)
        try:
            yield session
        finally:
            for entry in [entry for entry in self._held.values() if entry.holder == session.epoch]:
                self._put_back(entry)
            self._change()

    def _change(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _put_back(self, entry: _Entry[T], due: float = -math.inf) -> None:
        del self._held[entry.offset]
        entry.holder, entry.due = None, due
        self._back[entry.offset] = entry

    def _named(self, offsets: Sequence[Offset]) -> Iterator[_Entry[T]]:
        for offset in offsets:
            if isinstance(offset, int) and 0 <= offset < len(self._entries):
                yield self._entries[offset]
            else:
                self.violations.append(f"offset {offset!r} is none of this source's")

    def _settle(self, settled: Sequence[Settlement], *, may_repeat: bool = False) -> list[Deliveries]:
        stale: list[Deliveries] = []
        for settlement in settled:
            self.settlements.append(settlement)
            self.retries.extend(settlement.retries)
            stale += [
                Deliveries([entry.offset], epoch=settlement.epoch)
                for entry in self._named(settlement.offsets)
                if not self._settle_one(entry, settlement.epoch, may_repeat)
            ]
            stale += [
                Deliveries([entry.offset], epoch=retry.epoch)
                for retry in settlement.retries
                for entry in self._named([retry.offset])
                if not self._retry_one(entry, retry)
            ]
            self._check_mark(settlement.mark)
        if settled:
            self._change()
        return stale

    def _settle_one(self, entry: _Entry[T], epoch: int, may_repeat: bool) -> bool:
        if entry.settled:
            if not entry.may_repeat:
                self.violations.append(f"offset {entry.offset} was settled again although the first time went well")
            return True
        if entry.holder == epoch:
            del self._held[entry.offset]
            entry.settled, entry.holder, entry.may_repeat = True, None, may_repeat
            return True
        if not self._is_stale(entry, epoch):
            self.violations.append(f"offset {entry.offset} was settled under epoch {epoch} when it was not in hand")
        return False

    def _retry_one(self, entry: _Entry[T], retry: Redelivery) -> bool:
        if entry.holder == retry.epoch:
            entry.note(retry)
            self._put_back(entry, anyio.current_time() + retry.after)
            return True
        return not self._is_stale(entry, retry.epoch)

    def _is_stale(self, entry: _Entry[T], epoch: int) -> bool:
        return not entry.settled and (entry.stolen_from == epoch or epoch < (entry.holder or 0))

    def _check_mark(self, mark: int | None) -> None:
        if mark is None:
            return
        if mark < self._mark:
            self.violations.append(f"the commit mark went back from {self._mark} to {mark}")
        self._mark = max(self._mark, mark)
        while self._final_below < min(mark, len(self._entries)) and self._entries[self._final_below].final:
            self._final_below += 1
        if self._final_below < mark:
            self.violations.append(f"the commit mark {mark} passes offset {self._final_below}, which is not final")

    def _is_over(self) -> bool:
        return not (self._endless or self._script or self._held or self._back)

    def _ready_back(self) -> list[_Entry[T]]:
        now = anyio.current_time()
        return sorted((e for e in self._back.values() if e.due <= now), key=lambda e: e.offset)

    def _play_step(self) -> Empty | Pause | Raise | None:
        # Items that came back go before the script, so that a step never keeps them.
        while self._script and not self._ready_back():
            step = self._script[0]
            if isinstance(step, _Entry):
                break
            if isinstance(step, Pause):
                if not self._is_past(step):
                    return step
                continue
            self._script.popleft()
            return step
        return None

    def _is_past(self, pause: Pause) -> bool:
        now = anyio.current_time()
        if self._paused_until == -math.inf:
            self._paused_until = now + pause.seconds
        if now < self._paused_until:
            return False
        self._paused_until = -math.inf
        self._script.popleft()
        return True

    def _take(self, epoch: int, max_items: int, max_bytes: int | None) -> list[_Entry[T]]:
        taken: list[_Entry[T]] = []
        size = 0
        for entry in self._offered():
            size += entry.size or 0
            if len(taken) == max_items or (taken and max_bytes is not None and size > max_bytes):
                break
            taken.append(entry)
        for entry in taken:
            if self._back.pop(entry.offset, None) is None:
                self._script.popleft()
            entry.holder = epoch
            entry.deliveries += 1
            self._held[entry.offset] = entry
        self.max_in_hand = max(self.max_in_hand, len(self._held))
        return taken

    def _offered(self) -> Iterator[_Entry[T]]:
        yield from self._ready_back()
        for step in self._script:
            if not isinstance(step, _Entry):
                return
            yield step

    def _ready_at(self) -> float:
        now = anyio.current_time()
        times = [entry.due for entry in self._back.values()]
        if self._script:
            paused = isinstance(self._script[0], Pause) and self._paused_until > now
            times.append(self._paused_until if paused else now)
        return now if self._is_over() else min(times, default=math.inf)

    def _stolen_from(self, epoch: int) -> list[Deliveries]:
        fresh = [entry for entry in self._entries if entry.stolen_from == epoch and not entry.told]
        for entry in fresh:
            entry.told = True
        return [Deliveries([entry.offset], epoch=epoch) for entry in fresh]


@define(eq=False)
class ScriptedSession(Generic[T]):
    """A session of a `ScriptedSource`."""

    source: ScriptedSource[T]
    epoch: int

    @property
    def claim_seconds(self) -> float | None:
        """Items in hand never fall to others."""
        return None

    async def exchange(
        self, settled: Sequence[Settlement], /, *, max_items: int, max_bytes: int | None
    ) -> Chunk[T] | None:
        """Settle and take, as the script has it; one that is cut off has done nothing."""
        source = self.source
        await anyio.lowlevel.checkpoint()
        if source._latency:
            await anyio.sleep(source._latency)
        if settled and (error := next(source._settle_errors, None)):
            raise error
        step = source._play_step() if max_items else None
        if isinstance(step, Raise):
            if step.settled:
                source._settle(settled, may_repeat=True)
            raise step.error
        lost = [*source._settle(settled), *source._stolen_from(self.epoch)]
        taken = source._take(self.epoch, max_items, max_bytes) if max_items and step is None else []
        if source._is_over() and not lost:
            return None
        return _chunk(taken, self.epoch, lost)

    async def wait_ready(self) -> None:
        """Wait until there is an item, a step other than a pause, or the end."""
        source = self.source
        await anyio.lowlevel.checkpoint()
        while (ready_at := source._ready_at()) > anyio.current_time():
            if source._changed is None:
                source._changed = anyio.Event()
            with anyio.CancelScope(deadline=ready_at):
                await source._changed.wait()

    async def give_back(self, deliveries: Sequence[Deliveries], /, *, refund: bool) -> None:
        """Return items; those that are not in this session's hand are left as they are."""
        source = self.source
        await anyio.lowlevel.checkpoint()
        for group in deliveries:
            source.given_back.append((group, refund))
            for entry in source._named(group.offsets):
                if entry.holder == group.epoch:
                    entry.deliveries -= refund
                    entry.maybe_done |= group.maybe_done
                    source._put_back(entry)
        source._change()

    async def renew(self, failures: Sequence[Redelivery], /) -> Sequence[Deliveries]:
        """Write down *failures* and tell what was stolen."""
        source = self.source
        await anyio.lowlevel.checkpoint()
        source.renewals.append(failures)
        for failure in failures:
            for entry in source._named([failure.offset]):
                if entry.holder == failure.epoch:
                    entry.note(failure)
        return source._stolen_from(self.epoch)

    async def lag(self) -> int | None:
        """Return how many items of the script and of those that came back wait."""
        await anyio.lowlevel.checkpoint()
        source = self.source
        return len(source._back) + sum(isinstance(step, _Entry) for step in source._script)


def _chunk(taken: Sequence[_Entry[T]], epoch: int, lost: Sequence[Deliveries]) -> Chunk[T]:
    offsets = [entry.offset for entry in taken]
    first = offsets[0] if offsets else 0
    run = range(first, first + len(offsets))
    return Chunk(
        items=[entry.item for entry in taken],
        offsets=run if offsets == list(run) else offsets,
        epoch=epoch,
        deliveries=_one_if_alike([entry.deliveries for entry in taken], 1),
        failures=_one_if_alike([entry.failures for entry in taken], 0),
        maybe_done=_one_if_alike([entry.maybe_done for entry in taken], False),
        sizes=[entry.size or 0 for entry in taken] if taken and taken[0].size is not None else None,
        lost=lost or (),
    )


def _one_if_alike(values: Sequence[V], empty: V) -> Sequence[V] | V:
    if not values:
        return empty
    return values[0] if all(value == values[0] for value in values) else values
