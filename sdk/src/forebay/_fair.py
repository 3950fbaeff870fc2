"""Whose turn it is: tokens that come in at a rate, and a queue that gives every tenant its share."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from attrs import define, field

T = TypeVar("T")

_TICKS = 2.0**80  # in a second: a float of a few nanoseconds or more is a whole number of them
_SLIP = 1e-9  # credits are sums of floats


class TokenBucket:
    """Tokens that come in at *rate* a second, up to *burst* of them; full when it is first asked.

    Nothing is rounded. Rate and times are taken as the fractions of powers of two that floats are, and all sums are
    whole numbers, so that however long it runs exactly `burst + rate * t` tokens have been there until time t, less
    what came in while it was full. A clock that goes back (another run) is followed; it brings in nothing.
    """

    __slots__ = ("_at", "_burst", "_gain", "_level", "_token")

    def __init__(self, rate: float, burst: int) -> None:
        self._at: int | None = None
        self._burst = burst
        self._gain, denominator = float(rate).as_integer_ratio()  # units that come in with a tick
        self._token = denominator << 80  # units in a token
        self._level = burst * self._token

    def take(self, count: int, now: float) -> float:
        """Take *count* tokens and return 0.0, or take nothing and return in how many seconds they will be there.

        Exactly that much later `take` succeeds, if nobody takes some before: nobody has to poll.
        More than *burst* are taken from a full bucket, which is in debt until they have come in: so a large item
        waits once and no item waits for ever.
        """
        pause = self.wait(count, now)
        if not pause:
            self._level -= count * self._token
        return pause

    def wait(self, count: int, now: float) -> float:
        """Return in how many seconds *count* tokens will be there, `math.inf` if no float is large enough."""
        at = self._fill(now)
        lacking = min(count, self._burst) * self._token - self._level
        if lacking <= 0:
            return 0.0
        due = at - (-lacking // self._gain)
        try:
            return _seconds_until(due, now)
        except OverflowError:
            return math.inf

    def give_back(self, count: int) -> None:
        """Return tokens that were taken and not used."""
        self._level = min(self._burst * self._token, self._level + count * self._token)

    def is_full(self, now: float) -> bool:
        """Return whether no more tokens fit in, so that the bucket is as good as a new one."""
        self._fill(now)
        return self._level >= self._burst * self._token

    def change(self, rate: float, burst: int, now: float) -> None:
        """Go on with another rate and burst; the tokens that are there stay, as far as they fit."""
        self._fill(now)
        before = self._token
        self._burst = burst
        self._gain, denominator = float(rate).as_integer_ratio()
        self._token = denominator << 80
        self._level = min(burst * self._token, self._level * self._token // before)

    def _fill(self, now: float) -> int:
        ticks = int(now * _TICKS)
        if self._at is not None and ticks > self._at:
            full = self._burst * self._token
            self._level += (ticks - self._at) * self._gain
            # Who was told when it is full comes a little later, by the clock's rounding. What ran over meanwhile is
            # kept: with a burst of 1 it would be lost each time, and add up.
            if self._level - full > self._gain * int(4 * math.ulp(now) * _TICKS):
                self._level = full
        self._at = ticks
        return ticks


def _seconds_until(due: int, now: float) -> float:
    """Return the pause after which a clock that showed *now* shows the tick *due*, or the next float after it."""
    at = due / 2**80
    while at * _TICKS < due:
        at = math.nextafter(at, math.inf)
    pause = at - now
    while now + pause < at:  # the sum is rounded as well
        pause = math.nextafter(pause, math.inf)
    return pause


@define(eq=False)
class _Flow(Generic[T]):
    """What one tenant has waiting."""

    tenant: str
    round: int
    """Round up to which it has had its credit."""
    items: OrderedDict[int, tuple[T, float]] = field(factory=OrderedDict[int, tuple[T, float]])
    credit: float = 0.0
    stands_in: int | None = None
    """Round in which it will be looked at; `None` while it is blocked."""
    blocked_until: float | None = None


def _no_gate(tenant: str, item: object, now: float) -> float:
    return 0.0


def _no_room(item: object, now: float) -> float:
    return 0.0


class FairQueue(Generic[T]):
    """Items of many tenants, which come out in fair shares: deficit round robin.

    In every round a tenant gets credit for `quantum * weight(tenant)`, and its items go while there is credit for their
    size. Rounds in which nothing could go are skipped by arithmetic: sizes and weights may differ by any factor.
    A call costs the same for ten tenants and for 100,000; only who is blocked for a time is kept in a heap.
    A tenant with nothing waiting has no credit and no trace here; while blocked it gets none.

    Args:
        weight: Returns the weight of a tenant, above 0; when it has changed, call `reconsider`.
        gate: Returns 0.0 when the tenant may have the item, else in how many seconds, `math.inf` for when `unblock`
            says so; others go on meanwhile. Takes nothing: whoever calls `pop` does that before the next one.
        room: Returns the same for the item, whoever it is of; asked when the gate is open. While there is no room
            nothing goes, so that a large item gets its turn too.
        quantum: Size that a tenant of weight 1 may send in a round. Near the usual size of an item, shares are even
            over the shortest time.

    Source: M. Shreedhar, G. Varghese, "Efficient Fair Queuing using Deficit Round Robin", SIGCOMM 1995.
    """

    def __init__(
        self,
        *,
        weight: Callable[[str], float] = lambda _: 1.0,
        gate: Callable[[str, T, float], float] = _no_gate,
        room: Callable[[T, float], float] = _no_room,
        quantum: float = 1.0,
    ) -> None:
        self._weight = weight
        self._gate = gate
        self._room = room
        self._quantum = quantum
        self._flows: dict[str, _Flow[T]] = {}
        self._round = 0
        self._rounds: dict[int, OrderedDict[str, _Flow[T]]] = {}  # who is looked at in which round, in order
        self._order: list[int] = []  # heap of the keys of `_rounds`
        self._standing = 0  # flows in `_rounds`
        self._timed: list[tuple[float, int, _Flow[T]]] = []  # heap; a flow that was unblocked leaves its entry behind
        self._tickets = 0
        self._held_until = 0.0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def tenants(self) -> int:
        """Tenants that have something waiting."""
        return len(self._flows)

    def push(self, tenant: str, item: T, size: float = 1.0) -> int:
        """Put *item* behind all that waits of *tenant* and return its ticket, for `discard`.

        *size* is what is shared fairly, items or bytes, above 0.
        """
        self._tickets += 1
        self._count += 1
        self._held_until = 0.0
        flow = self._flows.get(tenant)
        if flow is None:
            flow = self._flows[tenant] = _Flow(tenant, self._round)
            flow.items[self._tickets] = (item, size)
            self._stand(flow)
        else:
            flow.items[self._tickets] = (item, size)
        return self._tickets

    def pop(self, now: float) -> tuple[str, T] | None:
        """Return the tenant whose turn it is and its oldest item; `None` when nothing may go now."""
        self._let_in(now)
        while (flow := self._first()) is not None:
            ticket, (item, size) = next(iter(flow.items.items()))
            self._pay(flow)
            if size > flow.credit * (1 + _SLIP):
                self._leave(flow)
                self._stand(flow)
                continue
            if pause := self._gate(flow.tenant, item, now):
                self._block(flow, now + pause)
                continue
            if pause := self._room(item, now):
                self._held_until = now + pause
                return None
            flow.credit -= size
            self._remove(flow, ticket)
            return flow.tenant, item
        return None

    def next_at(self, now: float) -> float | None:
        """Return when `pop` may give something, if nothing but time passes; `None` if time alone will not help."""
        self._drop_stale()
        times = [self._timed[0][0]] if self._timed else []
        if self._standing:
            times.append(self._held_until)
        return max(now, min(times)) if times and min(times) < math.inf else None

    def unblock(self, tenant: str) -> None:
        """Let *tenant* be asked again, if it is blocked: something has changed for it."""
        flow = self._flows.get(tenant)
        if flow is not None and flow.stands_in is None:
            flow.blocked_until = None
            flow.round = self._round
            self._stand(flow)

    def reconsider(self) -> None:
        """Let every tenant be asked again, and give them their turns by what their weights are now."""
        self._held_until = 0.0
        for flow in self._flows.values():
            if flow.stands_in is None:
                self.unblock(flow.tenant)
            else:
                self._leave(flow)
                self._pay(flow)
                _, size = next(iter(flow.items.values()))
                flow.credit = min(flow.credit, size)  # rounds paid for by a weight that it did not have then
                self._stand(flow)

    def discard(self, tenant: str, ticket: int) -> bool:
        """Take the item with this *ticket* out; return whether it was still there."""
        flow = self._flows.get(tenant)
        if flow is None or ticket not in flow.items:
            return False
        was_first = ticket == next(iter(flow.items))
        self._remove(flow, ticket)
        if was_first:  # the next one may need less
            self.unblock(tenant)
        return True

    def _remove(self, flow: _Flow[T], ticket: int) -> None:
        del flow.items[ticket]
        self._count -= 1
        self._held_until = 0.0
        if flow.items:
            return
        self._leave(flow)
        flow.blocked_until = None
        del self._flows[flow.tenant]
        if not self._flows:
            self._rounds.clear()
            self._order.clear()
            self._timed.clear()

    def _pay(self, flow: _Flow[T]) -> None:
        """Give *flow* its credit of the rounds since it was last looked at."""
        flow.credit += (self._round - flow.round) * self._step(flow)
        flow.round = self._round

    def _step(self, flow: _Flow[T]) -> float:
        return self._quantum * self._weight(flow.tenant)

    def _stand(self, flow: _Flow[T]) -> None:
        """Put *flow* at the end of the round in which it will have the credit for its first item."""
        _, size = next(iter(flow.items.values()))
        due = self._round + max(0, math.ceil((size - flow.credit) / self._step(flow) - _SLIP))
        if due not in self._rounds:
            self._rounds[due] = OrderedDict()
            heappush(self._order, due)
        self._rounds[due][flow.tenant] = flow
        flow.stands_in = due
        self._standing += 1

    def _leave(self, flow: _Flow[T]) -> None:
        if flow.stands_in is not None:
            del self._rounds[flow.stands_in][flow.tenant]
            flow.stands_in = None
            self._standing -= 1

    def _first(self) -> _Flow[T] | None:
        while self._order:
            flows = self._rounds[self._order[0]]
            if flows:
                self._round = self._order[0]
                return next(iter(flows.values()))
            del self._rounds[heappop(self._order)]
        return None

    def _block(self, flow: _Flow[T], until: float) -> None:
        self._leave(flow)
        if until < math.inf:
            flow.blocked_until = until
            self._tickets += 1
            heappush(self._timed, (until, self._tickets, flow))
            if len(self._timed) > 2 * len(self._flows) + 16:
                self._timed = [entry for entry in self._timed if entry[2].blocked_until == entry[0]]
                heapify(self._timed)

    def _drop_stale(self) -> None:
        while self._timed and self._timed[0][2].blocked_until != self._timed[0][0]:
            heappop(self._timed)

    def _let_in(self, now: float) -> None:
        while self._timed and self._timed[0][0] <= now:
            until, _, flow = heappop(self._timed)
            if flow.blocked_until == until:
                self.unblock(flow.tenant)
