"""Checks of a state store."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial

from attrs import define

from forebay import LostOwnershipError
from forebay.abc import StateStore
from forebay_conformance._checks import CheckList
from forebay_conformance._ends import leaves_cleanly, leaves_nothing, shows_no_secrets
from forebay_conformance._probe import CUTS, Probe, at_once, cut
from forebay_conformance._traits import StateStoreTraits

ODD_KEYS: Sequence[str] = (
    "a",
    "A",
    "a ",
    " a",
    "a%",
    "a_",
    "a*",
    "a?",
    "a[b]",
    "a\\",
    "a'b",
    'a"b',
    "a:b",
    "a/b",
    "a{b}",
    "é",
    "e",
    "中",
    "",
)


@define
class StateProbe(Probe[StateStoreTraits]):
    """A check's view of a state store."""

    @asynccontextmanager
    async def store(self, **values: bytes) -> AsyncGenerator[StateStore]:
        """Open an empty store and put *values* into it under epoch 1."""
        self.trail.append("open a store")
        async with self.opener() as store:
            if values:
                await self.put(store, values)
            yield store

    async def put(
        self, store: StateStore, values: Mapping[str, bytes], /, *, epoch: int = 1, ttl: float | None = None
    ) -> None:
        """Put *values*."""
        text = f"put_many({_told(values)}, epoch={epoch}, ttl={ttl})"
        await self.call(text, lambda: store.put_many(values, epoch=epoch, ttl=ttl))

    async def get(self, store: StateStore, keys: Sequence[str], /) -> list[bytes | None]:
        """Get the values of *keys*."""
        text = f"get_many({list(keys[:6])!r}{', ...' * (len(keys) > 6)})"
        return list(await self.call(text, lambda: store.get_many(keys)))

    async def holds(self, store: StateStore, **wanted: bytes | None) -> None:
        """Fail unless the keys have these values."""
        got = dict(zip(wanted, await self.get(store, list(wanted)), strict=False))
        self.expect(got == wanted, expected=_told(wanted), got=_told(got))

    async def delete(self, store: StateStore, *keys: str, epoch: int = 1) -> None:
        """Delete *keys*."""
        await self.call(f"delete_many({list(keys)!r}, epoch={epoch})", lambda: store.delete_many(keys, epoch=epoch))

    async def cas(
        self, store: StateStore, key: str, old: bytes | None, new: bytes | None, /, *, epoch: int = 1
    ) -> bool:
        """Compare and set."""
        text = f"cas({key!r}, {old!r}, {new!r}, epoch={epoch})"
        return await self.call(text, lambda: store.cas(key, old, new, epoch=epoch))

    async def swapped(self, store: StateStore, key: str, old: bytes | None, new: bytes | None, owed: bool, /) -> None:
        """Fail unless cas() returns *owed*."""
        got = await self.cas(store, key, old, new)
        self.expect(got is owed, expected=str(owed), got=got)

    async def scan(self, store: StateStore, prefix: str, /) -> list[str]:
        """Return the keys that start with *prefix*."""

        async def collect() -> list[str]:
            return [key async for key in store.scan(prefix)]

        return await self.call(f"scan({prefix!r})", collect)

    async def stale(self, text: str, function: Callable[[], Awaitable[object]], /) -> None:
        """Fail unless `function()` raises LostOwnershipError."""
        await self.refused(text, LostOwnershipError, function)


def _told(values: Mapping[str, bytes | None]) -> str:
    pairs = [f"{key!r}: {_short(value)}" for key, value in list(values.items())[:6]]
    return "{" + ", ".join(pairs + ["..."] * (len(values) > 6)) + "}"


def _short(value: bytes | None) -> str:
    return repr(value) if value is None or len(value) <= 24 else f"{value[:12]!r}... ({len(value)} bytes)"


STATE_CHECKS = CheckList("state-store", StateProbe)
_proves = STATE_CHECKS.proves


@_proves("read-your-writes")
async def writes_are_read(probe: StateProbe) -> None:
    """A first value, and one that replaces it."""
    async with probe.store(a=b"1", b=b"2") as store:
        await probe.holds(store, a=b"1", b=b"2")
        await probe.put(store, {"a": b"3"})
        await probe.holds(store, a=b"3", b=b"2")


@_proves("absent")
async def no_value_is_none(probe: StateProbe) -> None:
    """In an empty store, and beside a key that has one."""
    async with probe.store() as store:
        await probe.holds(store, a=None)
        await probe.put(store, {"b": b""})
        await probe.holds(store, a=None)


@_proves("get-order")
async def values_come_in_the_order_of_the_keys(probe: StateProbe) -> None:
    """Backwards, with a repeated and an absent key."""
    async with probe.store(a=b"1", b=b"2", c=b"3") as store:
        got = await probe.get(store, ["c", "none", "a", "c", "b"])

    wanted = [b"3", None, b"1", b"3", b"2"]
    probe.expect(got == wanted, expected=repr(wanted), got=got)


@_proves("put-all-or-none")
async def a_cut_put_is_whole_or_nothing(probe: StateProbe) -> None:
    """Puts of four values are cut off at every step."""
    async with probe.store() as store:
        for turn, where in enumerate(CUTS):
            values = {f"{turn}-{n}": b"x" for n in range(4)}
            probe.trail.append(f"put_many(4 values), cut off {where}")
            await cut(where, partial(store.put_many, values, epoch=1))
            there = [value is not None for value in await probe.get(store, list(values))]
            probe.expect(len(set(there)) == 1, expected="4 values or none", got=f"{sum(there)} values")


@_proves("values-exact")
async def values_are_exact(probe: StateProbe) -> None:
    """Nothing, every byte, what looks like text or a number, and a mebibyte."""
    chance = random.Random(4711)  # the same bytes each time
    samples = [b"", b"\0", bytes(range(256)), b"42", b"null", "é".encode(), b"\xff\xfe", chance.randbytes(2**20)]
    values = {f"k{n}": value for n, value in enumerate(samples)}

    async with probe.store(**values) as store:
        for key, value in values.items():
            await probe.holds(store, **{key: value})


@_proves("keys-exact")
async def keys_are_told_apart(probe: StateProbe) -> None:
    """Keys that differ in case, in a space, or in what a pattern would take for anything."""
    values = {key: f"value of {key}".encode() for key in ODD_KEYS}

    async with probe.store() as store:
        await probe.put(store, values)
        got = dict(zip(ODD_KEYS, await probe.get(store, ODD_KEYS), strict=True))
        probe.expect(got == values, expected=_told(values), got=_told(got))
        await probe.holds(store, **{"a%b": None, "a1": None, "É": None})


@_proves("empty-calls")
async def calls_without_keys_do_nothing(probe: StateProbe) -> None:
    """get_many, put_many and delete_many of nothing."""
    async with probe.store(a=b"1") as store:
        got = await probe.get(store, [])
        probe.expect(got == [], expected="[]", got=got)
        await probe.put(store, {})
        await probe.delete(store)
        await probe.holds(store, a=b"1")


@_proves("delete")
async def deleting_is_exact(probe: StateProbe) -> None:
    """One key that is there, one that is not, one that looks like a pattern."""
    async with probe.store(a=b"1", ab=b"2", c=b"3") as store:
        await probe.delete(store, "a", "none", "c*", "%")
        await probe.delete(store, "a")
        await probe.holds(store, a=None, ab=b"2", c=b"3")


@_proves("cas-sets")
async def cas_sets_what_it_compared(probe: StateProbe) -> None:
    """From one value to the next, twice."""
    async with probe.store(a=b"1") as store:
        await probe.swapped(store, "a", b"1", b"2", True)
        await probe.swapped(store, "a", b"2", b"", True)
        await probe.holds(store, a=b"")


@_proves("cas-refuses")
async def cas_refuses_another_value(probe: StateProbe) -> None:
    """Another value, a part of the value, and a key that has none."""
    async with probe.store(a=b"12") as store:
        await probe.swapped(store, "a", b"1", b"new", False)
        await probe.swapped(store, "a", b"12 ", b"new", False)
        await probe.swapped(store, "none", b"12", b"new", False)
        await probe.holds(store, a=b"12", none=None)


@_proves("cas-absent")
async def cas_creates_only_what_is_absent(probe: StateProbe) -> None:
    """None is not the empty value."""
    async with probe.store(empty=b"", full=b"1") as store:
        await probe.swapped(store, "new", None, b"1", True)
        await probe.swapped(store, "new", None, b"2", False)
        await probe.swapped(store, "empty", None, b"2", False)
        await probe.swapped(store, "absent", b"", b"2", False)
        await probe.holds(store, new=b"1", empty=b"", full=b"1", absent=None)


@_proves("cas-delete")
async def cas_to_none_deletes(probe: StateProbe) -> None:
    """Only what holds the old value; afterwards the key is absent."""
    async with probe.store(a=b"1", b=b"2") as store:
        await probe.swapped(store, "a", b"other", None, False)
        await probe.swapped(store, "a", b"1", None, True)
        await probe.holds(store, a=None, b=b"2")
        keys = await probe.scan(store, "")
    probe.expect(keys == ["b"], expected="['b']", got=keys)


@_proves("cas-race")
async def one_of_fifty_wins(probe: StateProbe) -> None:
    """Four rounds: from absent, and on from each winner's value."""
    async with probe.store() as store:
        old: bytes | None = None
        for turn in range(4):
            news = [f"{turn}-{n}".encode() for n in range(50)]
            won = await at_once([partial(probe.cas, store, "k", old, new) for new in news])
            winners = [new for new, held in zip(news, won, strict=True) if held]
            probe.expect(len(winners) == 1, expected="1 winner of 50", got=f"{len(winners)} winners")
            old = winners[0]
            await probe.holds(store, k=old)


@_proves("stale-put")
async def a_stale_put_is_refused(probe: StateProbe) -> None:
    """Epoch 5 has written; 4 comes late."""
    async with probe.store() as store:
        await probe.put(store, {"a": b"5"}, epoch=5)
        await probe.stale(
            "put_many({'a': b'4', 'b': b'4'}, epoch=4)", lambda: store.put_many({"a": b"4", "b": b"4"}, epoch=4)
        )
        await probe.holds(store, a=b"5", b=None)


@_proves("stale-delete")
async def a_stale_delete_is_refused(probe: StateProbe) -> None:
    """Epoch 5 has written; 4 comes late."""
    async with probe.store() as store:
        await probe.put(store, {"a": b"5"}, epoch=5)
        await probe.stale("delete_many(['a'], epoch=4)", lambda: store.delete_many(["a"], epoch=4))
        await probe.holds(store, a=b"5")


@_proves("stale-cas")
async def a_stale_cas_is_refused(probe: StateProbe) -> None:
    """Epoch 5 has written; 4 comes late, for a key that holds what it expects and for a new one."""
    async with probe.store() as store:
        await probe.put(store, {"a": b"5"}, epoch=5)
        await probe.stale("cas('a', b'5', b'4', epoch=4)", lambda: store.cas("a", b"5", b"4", epoch=4))
        await probe.stale("cas('b', None, b'4', epoch=4)", lambda: store.cas("b", None, b"4", epoch=4))
        await probe.holds(store, a=b"5", b=None)


@_proves("epoch-again")
async def the_current_epoch_writes_on(probe: StateProbe) -> None:
    """Twice under one epoch, then under a higher one, by each way to write."""
    async with probe.store() as store:
        for epoch in (3, 3, 9):
            await probe.put(store, {"a": b"put"}, epoch=epoch)
            await probe.cas(store, "a", b"put", b"cas", epoch=epoch)
            await probe.holds(store, a=b"cas")
            await probe.delete(store, "a", epoch=epoch)
            await probe.holds(store, a=None)


@_proves("ttl", needs=["supports_ttl"])
async def values_go_when_their_time_is_over(probe: StateProbe) -> None:
    """They are there before; afterwards neither get_many(), cas() nor scan() knows them."""
    ttl = probe.traits.ttl_seconds

    async with probe.store(stays=b"1") as store:
        await probe.put(store, {"goes": b"2"}, ttl=100 * ttl)
        await probe.holds(store, goes=b"2")
        await probe.put(store, {"goes": b"2"}, ttl=ttl)
        probe.trail.append(f"let {ttl:g} s pass")
        await probe.traits.pass_time(ttl * 1.1 + 0.02)
        await probe.holds(store, goes=None, stays=b"1")
        keys = await probe.scan(store, "")
        probe.expect(keys == ["stays"], expected="['stays']", got=keys)
        await probe.swapped(store, "goes", b"2", b"3", False)
        await probe.swapped(store, "goes", None, b"3", True)


@_proves("ttl-replaced", needs=["supports_ttl"])
async def a_put_without_ttl_stays(probe: StateProbe) -> None:
    """The key had a ttl before."""
    ttl = probe.traits.ttl_seconds

    async with probe.store() as store:
        await probe.put(store, {"a": b"1"}, ttl=ttl)
        await probe.put(store, {"a": b"2"})
        probe.trail.append(f"let {ttl:g} s pass")
        await probe.traits.pass_time(ttl * 1.1 + 0.02)
        await probe.holds(store, a=b"2")


@_proves("scan-order")
async def scans_ascend(probe: StateProbe) -> None:
    """Order is that of the characters' numbers, whatever order they were put in."""
    keys = [key for key in ODD_KEYS if key]

    async with probe.store() as store:
        await probe.put(store, dict.fromkeys(keys, b"x"))
        got = await probe.scan(store, "")

    probe.expect(got == sorted(keys), expected=repr(sorted(keys)), got=got)


@_proves("scan-prefix")
async def prefixes_are_plain(probe: StateProbe) -> None:
    """Each odd key is asked for as a prefix."""
    keys = [*ODD_KEYS[:-1], "a%1", "a_1", "axb", "ab", "Ab", "b%", "a*1", "éa", "zz\U0010ffff", "zz\U0010ffff1"]

    async with probe.store() as store:
        await probe.put(store, dict.fromkeys(keys, b"x"))
        for prefix in [*ODD_KEYS, "zz", "zz\U0010ffff", "none", "%", "_", "*"]:
            wanted = sorted(key for key in keys if key.startswith(prefix))
            got = sorted(await probe.scan(store, prefix))
            probe.expect(got == wanted, expected=repr(wanted), got=got)


def _page_keys(count: int, size: int) -> list[str]:
    return [f"page/{n:06}".ljust(size, "x") for n in range(count)]


@_proves("scan-complete")
async def scans_are_complete(probe: StateProbe) -> None:
    """More keys than a page, while other keys come and go."""
    keys = _page_keys(2500, 12)
    seen: list[str] = []

    async with probe.store() as store:
        await probe.put(store, dict.fromkeys(keys, b"x"))

        async def read() -> None:
            async for key in store.scan("page/"):
                seen.append(key)
                if len(seen) % 500 == 0:
                    await store.put_many({"other": b"x", f"zz{len(seen)}": b"x"}, epoch=1)

        await probe.call("scan('page/') of 2500 keys, with writes between", read)

    missing = sorted(set(keys) - set(seen))
    got = f"{len(seen)} keys, missing {missing[:3]}"
    probe.expect(sorted(seen) == keys, expected="2500 keys, each once", got=got)


@_proves("scan-bounded")
async def scans_hold_a_page(probe: StateProbe) -> None:
    """Four thousand keys of 400 characters are 1.6 MB; half of that is the limit."""
    keys = _page_keys(4000, 400)

    async with probe.store() as store:
        for start in range(0, len(keys), 500):
            await probe.put(store, dict.fromkeys(keys[start : start + 500], b"x"))
        peak = await _peak_of_scan(probe, store)

    probe.expect(peak < 800_000, expected="at most 800 kB more memory", got=f"{peak / 1000:.0f} kB more")


async def _peak_of_scan(probe: StateProbe, store: StateStore) -> int:
    async def read() -> int:
        count = 0
        async for _ in store.scan("page/"):
            count += 1
        return count

    tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        await probe.call("scan('page/') of 4000 keys", read)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not tracing:
            tracemalloc.stop()


@_proves("scan-left-early")
async def scans_may_be_left(probe: StateProbe) -> None:
    """Twenty scans are left after their first key; then everything still works."""
    async with probe.store() as store:
        await probe.put(store, dict.fromkeys(_page_keys(300, 12), b"x"))

        async def first_key() -> None:
            scan = store.scan("page/")
            if hasattr(scan, "aclose"):
                async with aclosing(scan):  # type: ignore[type-var]
                    await anext(scan)
            else:
                await anext(scan)

        for _ in range(20):
            await probe.call("scan('page/'), left after one key", first_key)
            await probe.put(store, {"a": b"1"})
        await probe.holds(store, a=b"1")
        keys = await probe.scan(store, "page/")
    probe.expect(len(keys) == 300, expected="300 keys", got=f"{len(keys)} keys")


@_proves("concurrent")
async def tasks_see_their_own_writes(probe: StateProbe) -> None:
    """Thirty tasks, each with a key of its own."""

    async def work(number: int) -> None:
        key = f"task-{number}"
        for turn in range(5):
            value = f"{number}-{turn}".encode()
            await probe.put(store, {key: value, f"{key}-twin": value})
            await probe.holds(store, **{key: value, f"{key}-twin": value})

    async with probe.store() as store:
        await at_once([partial(work, number) for number in range(30)])


@_proves("cancel-safe")
async def cut_calls_leave_the_store_usable(probe: StateProbe) -> None:
    """Every method is cut off at every step, and the next calls are right."""
    async with probe.store(a=b"1", p1=b"1", p2=b"1") as store:

        async def scan() -> None:
            async for _ in store.scan("p"):
                pass

        calls: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("get_many", lambda: store.get_many(["a", "b"])),
            ("put_many", lambda: store.put_many({"b": b"2"}, epoch=1)),
            ("delete_many", lambda: store.delete_many(["b"], epoch=1)),
            ("cas", lambda: store.cas("b", None, b"3", epoch=1)),
            ("scan", scan),
        ]
        for name, function in calls:
            for where in CUTS:
                probe.trail.append(f"cut {name}() off {where}")
                await cut(where, function)
                await probe.put(store, {"a": f"{where}".encode()})
                await probe.holds(store, a=f"{where}".encode())


@_proves("leave-cleanly")
async def state_stores_are_left_cleanly(probe: StateProbe) -> None:
    """By an exception, by cancellation, and closed twice."""
    await leaves_cleanly(probe, probe.store, "store")


@_proves("leaves-nothing")
async def state_stores_leave_nothing_behind(probe: StateProbe) -> None:
    """Open, put, get, scan, close; eight times."""

    async def use() -> None:
        async with probe.store(a=b"1") as store:
            await probe.holds(store, a=b"1")
            await probe.scan(store, "")

    await leaves_nothing(probe, use)


@_proves("no-secrets", needs=["has_secret"])
async def state_store_errors_show_no_secrets(probe: StateProbe) -> None:
    """The engine is not there, and the exception says so without the password."""
    await shows_no_secrets(probe, lambda store: store.get_many(["a"]))
