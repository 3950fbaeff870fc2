"""Quotas: what each tenant may take, and a front that lets callers in when it is their turn."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from types import EllipsisType
from typing import Literal, TypeAlias, cast, get_args

import anyio
import anyio.lowlevel
from attrs import Attribute, define, field, frozen

from forebay._errors import ForebayError
from forebay._fair import FairQueue as FairQueue
from forebay._fair import TokenBucket as TokenBucket
from forebay._types import check_limit

_MAX_IDLE = 1_000
_BYTES_A_TURN = 65_536.0

Over: TypeAlias = Literal["wait", "raise"]
"""What happens to who asks for more than a quota allows."""


class QuotaError(ForebayError):
    """A tenant asked for more than its quota allows, and the quota says `over="raise"`.

    `tenant` and `limit` (`rate`, `items` or `bytes`, after `total.` where it is the quota of all together) say whose
    and which. `retry_after` is in how many seconds there will be enough, or `None` where time alone does not help.
    """

    category = "transient"
    """Asked again later: the quota fills up again."""

    def __init__(self, message: str, /, *, tenant: str = "", limit: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.tenant = tenant
        self.limit = limit
        self.retry_after = retry_after


def _check_rate(_: Quota, attribute: Attribute[float], value: object) -> None:
    if value is None and attribute.name == "rate":
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{attribute.name} must be a number, not {value!r:.100}")
    if not (0 < value < math.inf):
        raise ValueError(f"{attribute.name} must be finite and more than 0, not {value}")


def _check_burst(quota: Quota, _: Attribute[int | None], value: object) -> None:
    if value is not None and quota.rate is None:
        raise ValueError(f"burst={value} needs a rate; give rate= in items a second, or limit items= in flight")


def _check_over(_: Quota, __: Attribute[Over], value: object) -> None:
    if value not in get_args(Over):
        raise ValueError(f"over must be 'wait' or 'raise', not {value!r:.100}")


@frozen(kw_only=True)
class Quota:
    """What one tenant may take, or all of them together; `None` is no limit."""

    rate: float | None = field(default=None, validator=_check_rate)
    """Items a second."""
    burst: int | None = field(default=None, validator=[check_limit, _check_burst])
    """Items that may come at once after a pause; `None`: those of one second, at least one."""
    items: int | None = field(default=None, validator=check_limit)
    """Items in flight. More at once than that go when nothing else of the tenant is in flight."""
    bytes: int | None = field(default=None, validator=check_limit)
    """Bytes in flight. More at once than that go when nothing else of the tenant is in flight."""
    weight: float = field(default=1.0, validator=_check_rate)
    """Share of what all tenants get together, against the weights of those that want something."""
    over: Over = field(default="wait", validator=_check_over)
    """What happens to who asks for more: `wait` for its turn, or `raise` a `QuotaError`."""


_NO_QUOTA = Quota()


@frozen
class QuotaStatistics:
    """What one tenant has had; all are items unless they say otherwise."""

    admitted: int = 0
    waited: int = 0
    """Those of `admitted` that had to wait."""
    refused: int = 0
    waiting: int = 0
    """Waiting now."""
    in_flight: int = 0
    """Those that the quota counts: let in and not done and, where it says `over="raise"`, waiting for their turn."""
    in_flight_bytes: int = 0
    seconds_waited: float = 0.0
    """Time spent waiting, summed over calls of `admit`."""


@define(eq=False)
class _Account:
    """What one tenant, or all together, has taken."""

    quota: Quota
    bucket: TokenBucket | None = None
    held: int = 0
    held_bytes: int = 0
    admitted: int = 0
    waited: int = 0
    refused: int = 0
    waiting: int = 0
    seconds: float = 0.0

    def follow(self, quota: Quota, now: float) -> None:
        """Take *quota* instead of the one before."""
        self.quota = quota
        burst = _burst(quota)
        if quota.rate is None:
            self.bucket = None
        elif self.bucket is None:
            self.bucket = TokenBucket(quota.rate, burst)
        else:
            self.bucket.change(quota.rate, burst, now)

    def lacks(self, items: int, nbytes: int, now: float) -> tuple[str, float]:
        """Return the limit that is in the way and for how many seconds, or `("", 0.0)`."""
        quota = self.quota
        if self.held and quota.items is not None and self.held + items > quota.items:
            return "items", math.inf
        if self.held and quota.bytes is not None and self.held_bytes + nbytes > quota.bytes:
            return "bytes", math.inf
        pause = self.bucket.wait(items, now) if self.bucket is not None else 0.0
        return ("rate", pause) if pause else ("", 0.0)

    def take(self, items: int, nbytes: int, now: float) -> None:
        """Take what `lacks` has just found to be there."""
        self.held += items
        self.held_bytes += nbytes
        if self.bucket is not None:
            self.bucket.take(items, now)

    def give(self, items: int, nbytes: int, *, unused: bool = False) -> None:
        self.held -= items
        self.held_bytes -= nbytes
        if unused and self.bucket is not None:
            self.bucket.give_back(items)

    def add(self, other: _Account) -> None:
        """Add up what another one has counted."""
        self.admitted += other.admitted
        self.waited += other.waited
        self.refused += other.refused
        self.seconds += other.seconds

    def reading(self) -> QuotaStatistics:
        return QuotaStatistics(
            self.admitted, self.waited, self.refused, self.waiting, self.held, self.held_bytes, self.seconds
        )

    def refusal(self, tenant: str | None, limit: str, pause: float, nbytes: int) -> QuotaError:
        """Return what to raise for it; *tenant* is `None` for the quota of all."""
        quota = self.quota
        who, prefix = ("all tenants together", "total.") if tenant is None else (f"tenant {tenant!r}", "")
        done = f"wait until some are done, raise {limit}= or set over='wait'"
        says = {
            "rate": f"used up {quota.rate} items a second (burst {_burst(quota)}); try again in {pause:.3g} s, "
            f"raise rate= or set over='wait'",
            "items": f"{self.held} items in flight of items={quota.items}; {done}",
            "bytes": f"{self.held_bytes} bytes in flight of bytes={quota.bytes}, and wants {nbytes} more; {done}",
        }
        has = "have" if tenant is None else "has"
        after = pause if pause < math.inf else None
        return QuotaError(f"{who} {has} {says[limit]}", tenant=tenant or "", limit=prefix + limit, retry_after=after)


@define(eq=False)
class _Caller:
    """Somebody in `admit`."""

    tenant: str
    account: _Account
    items: int
    nbytes: int
    paid: bool
    """Whether the tenant's own quota has been taken for it before its turn."""
    ticket: int = 0
    let_in: bool = False
    woken: anyio.Event = field(factory=anyio.Event)
    wakes_at: float = math.inf


class Quotas:
    """Lets callers in, each tenant within its quota and all of them in fair shares of what there is for all.

        quotas = Quotas(Quota(rate=100), {"acme": Quota(rate=500, weight=5)}, total=Quota(items=64))

        async with quotas.admit("acme"):
            await call_the_service()

    A tenant's callers go in the order they came. Where *total* is not enough for all that want something, they take
    turns by deficit round robin, and each gets a share by its weight, however many callers another one has.
    Its methods are for the event loop's own thread, and it holds no task of its own.

    Args:
        default: For every tenant that has none of its own; `None` is no limit.
        tenants: By name of the tenant.
        total: For all tenants together; its `weight` means nothing.
        share_by: What is shared fairly, `items` or `bytes`.
    """

    def __init__(
        self,
        default: Quota | None = None,
        tenants: Mapping[str, Quota] | None = None,
        *,
        total: Quota | None = None,
        share_by: Literal["items", "bytes"] = "items",
    ) -> None:
        if share_by not in ("items", "bytes"):
            raise ValueError(f"share_by must be 'items' or 'bytes', not {share_by!r:.100}")
        self._default = _checked("default", default)
        self._tenants = _checked_all({} if tenants is None else tenants)
        self._total = _Account(_checked("total", total))
        self._total.follow(self._total.quota, 0.0)
        self._by_bytes = share_by == "bytes"
        self._accounts: dict[str, _Account] = {}
        self._resting: OrderedDict[str, None] = OrderedDict()
        self._forgotten = _Account(_NO_QUOTA)
        self._callers: OrderedDict[int, _Caller] = OrderedDict()  # those who wait, by ticket
        self._timer: _Caller | None = None  # the one who wakes up when time lets somebody in
        self._queue: FairQueue[_Caller] = FairQueue(
            weight=lambda tenant: self._quota_of(tenant).weight,
            gate=self._gate,
            room=self._room,
            quantum=_BYTES_A_TURN if self._by_bytes else 1.0,
        )

    @property
    def default(self) -> Quota:
        """The quota of tenants that have none of their own."""
        return self._default

    @property
    def tenants(self) -> Mapping[str, Quota]:
        """The quotas of those that have one of their own; a copy."""
        return dict(self._tenants)

    @property
    def total(self) -> Quota:
        """The quota of all together."""
        return self._total.quota

    @property
    def forgotten(self) -> QuotaStatistics:
        """Sums over the tenants that `statistics` does not name any more."""
        return self._forgotten.reading()

    def statistics(self) -> dict[str, QuotaStatistics]:
        """Return a reading of every tenant that has a quota of its own or was here lately.

        Of the others the last 1,000 at rest are named, and longer those that still have a rate to make up for.
        """
        return {tenant: account.reading() for tenant, account in self._accounts.items()}

    def change(
        self,
        *,
        default: Quota | EllipsisType | None = ...,
        tenants: Mapping[str, Quota] | EllipsisType = ...,
        total: Quota | EllipsisType | None = ...,
    ) -> None:
        """Put other quotas in place of those that are named; all of them at once or, if one is refused, none.

        *tenants* stands for all that have a quota of their own: `change(tenants={**quotas.tenants, "acme": Quota(…)})`.
        What is in flight stays so, and whoever waits is let in under the new quotas, in the same order.
        Tokens of a rate that are there stay, as far as the new burst allows.
        """
        new_default = self._default if default is ... else _checked("default", default)
        new_tenants = self._tenants if tenants is ... else _checked_all(tenants)
        new_total = self._total.quota if total is ... else _checked("total", total)
        now = anyio.current_time() if self._accounts else 0.0
        self._default, self._tenants = new_default, new_tenants
        self._total.follow(new_total, now)
        for tenant, account in self._accounts.items():
            account.follow(self._quota_of(tenant), now)
        for tenant in [name for name in self._accounts if name not in self._resting]:
            self._rest(tenant, now)  # it may have had a quota of its own
        if self._accounts:
            self._queue.reconsider()
            self._serve(now)

    @asynccontextmanager
    async def admit(self, tenant: str, *, items: int = 1, bytes: int = 0) -> AsyncGenerator[None]:
        """Wait until it is the turn of *tenant* and its quota allows so much, and hold it in flight for the block.

        More than the rate's burst, or than may be in flight, goes alone: it waits once and not for ever.
        Cancelled while it waits: nothing is taken, and the turn is the next one's.

        Raises:
            QuotaError: it does not fit now and the quota, the tenant's or the total one, says `over="raise"`.
        """
        _check_ask(items, bytes)
        await anyio.lowlevel.checkpoint()
        caller = self._ask(tenant, items, bytes)
        if not caller.let_in:
            await self._wait(caller)
        try:
            yield
        finally:
            self._give_back(caller)

    def _ask(self, tenant: str, items: int, nbytes: int) -> _Caller:
        now = anyio.current_time()
        account = self._account(tenant)
        for who, taken in ((tenant, account), (None, self._total)):
            limit, pause = taken.lacks(items, nbytes, now) if taken.quota.over == "raise" else ("", 0.0)
            if limit:
                account.refused += items
                self._rest(tenant, now)
                raise taken.refusal(who, limit, pause, nbytes)
        caller = _Caller(tenant, account, items, nbytes, paid=account.quota.over == "raise")
        if caller.paid:
            account.take(items, nbytes, now)
        if not self._queue and not self._gate(tenant, caller, now) and not self._room(caller, now):
            self._let_in(caller, now)
            return caller
        caller.ticket = self._queue.push(tenant, caller, max(1, nbytes) if self._by_bytes else items)
        self._callers[caller.ticket] = caller
        account.waiting += items
        self._serve(now)
        return caller

    async def _wait(self, caller: _Caller) -> None:
        since = anyio.current_time()
        done = False
        try:
            while not caller.let_in:
                caller.woken = anyio.Event()
                at = self._queue.next_at(anyio.current_time()) if self._timer is caller else None
                caller.wakes_at = math.inf if at is None else at
                with anyio.CancelScope(deadline=caller.wakes_at):
                    await caller.woken.wait()
                if self._timer is caller:
                    self._serve(anyio.current_time())
            done = True
        finally:
            now = anyio.current_time()
            caller.account.seconds += now - since
            if self._timer is caller:
                self._timer = None
            if done:
                caller.account.waited += caller.items
                self._set_timer(now)
            else:
                self._withdraw(caller)

    def _withdraw(self, caller: _Caller) -> None:
        """Undo what was done for somebody who has gone while it waited, perhaps after it had been let in."""
        account = caller.account
        if caller.let_in:
            account.admitted -= caller.items
            self._total.give(caller.items, caller.nbytes, unused=True)
        else:
            self._queue.discard(caller.tenant, caller.ticket)
            del self._callers[caller.ticket]
            account.waiting -= caller.items
        if caller.let_in or caller.paid:
            account.give(caller.items, caller.nbytes, unused=True)
        self._go_on(caller.tenant)

    def _give_back(self, caller: _Caller) -> None:
        caller.account.give(caller.items, caller.nbytes)
        self._total.give(caller.items, caller.nbytes)
        self._go_on(caller.tenant)

    def _go_on(self, tenant: str) -> None:
        now = anyio.current_time()
        self._rest(tenant, now)
        if self._queue:
            self._queue.unblock(tenant)
            self._serve(now)

    def _serve(self, now: float) -> None:
        """Let in whoever may go now, in turn."""
        while (turn := self._queue.pop(now)) is not None:
            caller = turn[1]
            del self._callers[caller.ticket]
            caller.account.waiting -= caller.items
            self._let_in(caller, now)
            caller.woken.set()
        self._set_timer(now)

    def _let_in(self, caller: _Caller, now: float) -> None:
        if not caller.paid:
            caller.account.take(caller.items, caller.nbytes, now)
        self._total.take(caller.items, caller.nbytes, now)
        caller.account.admitted += caller.items
        caller.let_in = True

    def _set_timer(self, now: float) -> None:
        """See to it that one of those who wait wakes up when time lets somebody in."""
        at = self._queue.next_at(now)
        if at is None:
            return
        if self._timer is None:
            self._timer = next(iter(self._callers.values()))
            self._timer.woken.set()
        elif at < self._timer.wakes_at:
            self._timer.woken.set()

    def _gate(self, tenant: str, caller: _Caller, now: float) -> float:
        if caller.paid:
            return 0.0
        return caller.account.lacks(caller.items, caller.nbytes, now)[1]

    def _room(self, caller: _Caller, now: float) -> float:
        return self._total.lacks(caller.items, caller.nbytes, now)[1]

    def _quota_of(self, tenant: str) -> Quota:
        return self._tenants.get(tenant, self._default)

    def _account(self, tenant: str) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account(_NO_QUOTA)
            account.follow(self._quota_of(tenant), 0.0)
        return account

    def _rest(self, tenant: str, now: float) -> None:
        """Note that *tenant* may be at rest, and forget the one that has been so longest if there are too many.

        A bucket that is not full yet is kept: who leaves and comes back must not find it full.
        """
        self._resting[tenant] = None
        self._resting.move_to_end(tenant)
        for _ in range(2):
            if len(self._resting) <= _MAX_IDLE:
                return
            name, _ = self._resting.popitem(last=False)
            account = self._accounts[name]
            if account.held or account.waiting or name in self._tenants:
                continue
            if account.bucket is not None and not account.bucket.is_full(now):
                self._resting[name] = None
                continue
            self._forgotten.add(self._accounts.pop(name))


def _burst(quota: Quota) -> int:
    return quota.burst or max(1, math.ceil(quota.rate or 1))


def _checked(name: str, quota: object) -> Quota:
    if quota is None:
        return _NO_QUOTA
    if not isinstance(quota, Quota):
        raise TypeError(f"{name} must be a Quota, not {quota!r:.100}; write Quota(rate=…) or Quota(items=…)")
    return quota


def _checked_all(tenants: object) -> dict[str, Quota]:
    if not isinstance(tenants, Mapping):
        raise TypeError(f"tenants must be a mapping of names to Quota, not {tenants!r:.100}")
    checked: dict[str, Quota] = {}
    for tenant, quota in cast("Mapping[object, object]", tenants).items():  # of what, is what is checked here
        if not isinstance(tenant, str):
            raise TypeError(f"tenants must have names as keys, not {tenant!r:.100}")
        if quota is None:
            raise TypeError(f"tenants[{tenant!r}] must be a Quota, not None; write Quota() for no limit")
        checked[tenant] = _checked(f"tenants[{tenant!r}]", quota)
    return checked


def _check_ask(items: object, nbytes: object) -> None:
    for name, value, least in (("items", items, 1), ("bytes", nbytes, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, not {value!r:.100}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
