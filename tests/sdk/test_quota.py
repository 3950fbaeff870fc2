"""Quotas: what they allow, whose turn it is, and that nothing is lost when somebody gives up."""

import math
import pickle
import random
from collections import Counter
from fractions import Fraction
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay._errors import ForebayError
from forebay._quota import Quota, QuotaError, Quotas, QuotaStatistics
from forebay._retry import classify
from forebay._types import Category, Failure
from forebay.testing import BackendName, How, cancel_at_every_step, run_virtual

pytestmark = pytest.mark.anyio

cuts = pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "task"), ("asyncio", "timeout"), ("trio", "scope")]
)
both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


async def hold(quotas: Quotas, tenant: str, seconds: float = 0.0, *, items: int = 1, bytes: int = 0) -> None:
    async with quotas.admit(tenant, items=items, bytes=bytes):
        await anyio.sleep(seconds)


async def note(quotas: Quotas, tenant: str, log: list[tuple[float, str]], seconds: float = 0.0, items: int = 1) -> None:
    async with quotas.admit(tenant, items=items):
        log.append((anyio.current_time(), tenant))
        await anyio.sleep(seconds)


# --- What a quota may say ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rate": 0}, "rate must be finite and more than 0, not 0"),
        ({"rate": math.inf}, "rate must be finite and more than 0, not inf"),
        ({"rate": math.nan}, "rate must be finite and more than 0, not nan"),
        ({"weight": -1.0}, "weight must be finite and more than 0, not -1.0"),
        ({"items": 0}, "items must be at least 1, not 0; None is no limit"),
        ({"bytes": -5}, "bytes must be at least 1, not -5; None is no limit"),
        ({"rate": 1, "burst": 0}, "burst must be at least 1, not 0; None is no limit"),
        ({"burst": 3}, "burst=3 needs a rate; give rate= in items a second, or limit items= in flight"),
        ({"over": "drop"}, "over must be 'wait' or 'raise', not 'drop'"),
    ],
)
def test_a_quota_that_cannot_be_meant_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Quota(**arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rate": "10"}, "rate must be a number, not '10'"),
        ({"rate": True}, "rate must be a number, not True"),
        ({"weight": None}, "weight must be a number, not None"),
        ({"items": 1.5}, "items must be a whole number, not 1.5"),
        ({"bytes": True}, "bytes must be a whole number, not True"),
    ],
)
def test_a_quota_of_the_wrong_type_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=f"^{sentence}$"):
        Quota(**arguments)


@pytest.mark.parametrize(
    ("default", "tenants", "total", "sentence"),
    [
        (10, {}, None, r"default must be a Quota, not 10; write Quota\(rate=…\) or Quota\(items=…\)"),
        (None, {"a": 10}, None, r"tenants\['a'\] must be a Quota, not 10; .*"),
        (None, {"a": None}, None, r"tenants\['a'\] must be a Quota, not None; write Quota\(\) for no limit"),
        (None, {1: Quota()}, None, "tenants must have names as keys, not 1"),
        (None, ["a"], None, r"tenants must be a mapping of names to Quota, not \['a'\]"),
        (None, {}, 3, "total must be a Quota, not 3; .*"),
    ],
)
def test_quotas_that_are_none_are_refused(default: Any, tenants: Any, total: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=f"^{sentence}$"):
        Quotas(default, tenants, total=total)


def test_what_can_be_shared_is_items_or_bytes() -> None:
    share_by: Any = "calls"

    with pytest.raises(ValueError, match="share_by must be 'items' or 'bytes', not 'calls'"):
        Quotas(share_by=share_by)


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"items": 0}, ValueError, "items must be at least 1, not 0"),
        ({"bytes": -1}, ValueError, "bytes must be at least 0, not -1"),
        ({"items": 1.0}, TypeError, "items must be a whole number, not 1.0"),
    ],
)
async def test_an_amount_that_cannot_be_meant_is_refused(
    arguments: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=f"^{sentence}$"):
        async with Quotas().admit("a", **arguments):
            raise AssertionError("let in")


# --- Letting in --------------------------------------------------------------------------------


async def test_without_quotas_everybody_goes_at_once() -> None:
    quotas = Quotas()
    start = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(hold, quotas, "a", 1.0)

    assert anyio.current_time() == pytest.approx(start + 1)
    assert quotas.statistics() == {"a": QuotaStatistics(admitted=100)}


async def test_admitting_is_a_checkpoint_even_where_nothing_has_to_wait() -> None:
    quotas = Quotas()
    let_in = False

    with anyio.CancelScope() as scope:
        scope.cancel()
        async with quotas.admit("a"):
            let_in = True

    assert not let_in
    assert quotas.statistics() == {}


async def test_items_in_flight_are_bounded_for_each_tenant_alone() -> None:
    quotas = Quotas(Quota(items=2), {"b": Quota(items=1)})
    log: list[tuple[float, str]] = []
    start = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for tenant in "aaabb":
            tasks.start_soon(note, quotas, tenant, log, 10.0)

    assert sorted((round(at - start), tenant) for at, tenant in log) == [
        (0, "a"),
        (0, "a"),
        (0, "b"),
        (10, "a"),
        (10, "b"),
    ]


async def test_bytes_in_flight_are_bounded_and_one_larger_item_goes_alone() -> None:
    quotas = Quotas(Quota(bytes=100))
    log: list[str] = []

    async def send(name: str, size: int) -> None:
        async with quotas.admit("a", bytes=size):
            log.append(f"+{name}")
            await anyio.sleep(1)
            log.append(f"-{name}")

    async with anyio.create_task_group() as tasks:
        for name, size in [("s1", 60), ("s2", 40), ("large", 1000), ("s3", 1)]:
            tasks.start_soon(send, name, size)
            await wait_all_tasks_blocked()

    assert sorted(log[:2]) == ["+s1", "+s2"]
    assert log[4:] == ["+large", "-large", "+s3", "-s3"]


async def test_the_callers_of_a_tenant_go_in_the_order_they_came() -> None:
    quotas = Quotas(Quota(items=3))
    order: list[int] = []

    async def send(number: int, items: int) -> None:
        async with quotas.admit("a", items=items):
            order.append(number)
            await anyio.sleep(1)

    async with anyio.create_task_group() as tasks:
        for number, items in enumerate([2, 3, 2, 2, 5, 3]):
            tasks.start_soon(send, number, items)
            await wait_all_tasks_blocked()

    assert order == [0, 1, 2, 3, 4, 5]


@both
@pytest.mark.parametrize(("rate", "burst", "callers"), [(7.0, 3, 60), (0.3, 1, 20), (1000.0, 1, 500)])
def test_a_rate_lets_in_exactly_what_it_should_at_any_time(
    backend: BackendName, rate: float, burst: int, callers: int
) -> None:
    async def main() -> None:
        quotas = Quotas(Quota(rate=rate, burst=burst))
        log: list[tuple[float, str]] = []
        start = Fraction(anyio.current_time())

        async with anyio.create_task_group() as tasks:
            for _ in range(callers):
                tasks.start_soon(note, quotas, "a", log)

        for count, (at, _) in enumerate(log, start=1):
            due = Fraction(max(0, count - burst)) / Fraction(rate)
            assert due <= Fraction(at) - start <= due + Fraction(1, 10**9)

    run_virtual(main, backend=backend)


async def test_a_rate_without_a_burst_saves_up_for_one_second() -> None:
    quotas = Quotas(Quota(rate=2.5), {"slow": Quota(rate=0.1)})
    log: list[tuple[float, str]] = []
    start = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for tenant in ["a", "a", "a", "a", "slow", "slow"]:
            tasks.start_soon(note, quotas, tenant, log)

    assert [(round(at - start, 6), tenant) for at, tenant in sorted(log)] == [
        (0, "a"),
        (0, "a"),
        (0, "a"),
        (0, "slow"),
        (0.4, "a"),
        (10, "slow"),
    ]


async def test_more_items_than_the_burst_wait_once_for_all() -> None:
    quotas = Quotas(Quota(rate=10, burst=5))
    log: list[tuple[float, str]] = []
    start = anyio.current_time()

    for items in [100, 1]:
        await note(quotas, "a", log, items=items)

    assert [round(at - start, 6) for at, _ in log] == [0, 9.6]


async def test_what_was_given_back_late_lets_in_what_time_alone_would_not() -> None:
    quotas = Quotas(Quota(items=1, rate=1, burst=1))
    log: list[tuple[float, str]] = []
    start = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(note, quotas, "a", log, 5.0)
        await wait_all_tasks_blocked()
        tasks.start_soon(note, quotas, "a", log, 0.25)
        tasks.start_soon(note, quotas, "a", log, 0.25)

    assert [round(at - start, 6) for at, _ in log] == [0, 5, 6]


async def test_one_who_waits_for_time_wakes_for_the_earliest_of_all() -> None:
    quotas = Quotas(None, {"slow": Quota(rate=0.01, burst=1), "quick": Quota(rate=1, burst=1)})
    log: list[tuple[float, str]] = []
    start = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for tenant in ["slow", "slow", "quick", "quick", "quick"]:
            tasks.start_soon(note, quotas, tenant, log)
            await wait_all_tasks_blocked()

    assert [(round(at - start), tenant) for at, tenant in log] == [
        (0, "slow"),
        (0, "quick"),
        (1, "quick"),
        (2, "quick"),
        (100, "slow"),
    ]


async def test_somebody_else_wakes_for_all_when_the_one_who_did_has_been_let_in() -> None:
    quotas = Quotas(Quota(rate=1, burst=1))
    log: list[tuple[float, str]] = []
    start = anyio.current_time()
    await hold(quotas, "a")
    await anyio.sleep(0.5)
    await hold(quotas, "b")

    async with anyio.create_task_group() as tasks:
        for tenant in "ab":
            tasks.start_soon(note, quotas, tenant, log, 10.0)
            await wait_all_tasks_blocked()

    assert [(round(at - start, 6), tenant) for at, tenant in log] == [(1, "a"), (1.5, "b")]


@both
@pytest.mark.parametrize("seed", range(5))
def test_who_comes_later_does_not_overtake_one_whose_time_has_just_come(backend: BackendName, seed: int) -> None:
    order: list[str] = []

    async def main() -> None:
        quotas = Quotas(total=Quota(rate=1, burst=1))

        async def send(name: str, after: float) -> None:
            await anyio.sleep(after)
            async with quotas.admit(name):
                order.append(name)

        async with anyio.create_task_group() as tasks:
            await send("first", 0.0)
            tasks.start_soon(send, "late", 1.0)
            tasks.start_soon(send, "second", 0.0)

    run_virtual(main, backend=backend, seed=seed)

    assert order == ["first", "second", "late"]


# --- Refusing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "limit", "retry_after", "sentence"),
    [
        (
            Quota(rate=2, burst=3, over="raise"),
            "rate",
            0.5,
            "tenant 'acme' has used up 2 items a second (burst 3); try again in 0.5 s, raise rate= or set over='wait'",
        ),
        (
            Quota(items=3, over="raise"),
            "items",
            None,
            "tenant 'acme' has 3 items in flight of items=3; wait until some are done, raise items= or set over='wait'",
        ),
        (
            Quota(bytes=10, over="raise"),
            "bytes",
            None,
            "tenant 'acme' has 9 bytes in flight of bytes=10, and wants 3 more; "
            "wait until some are done, raise bytes= or set over='wait'",
        ),
    ],
)
async def test_over_quota_raises_where_the_quota_says_so(
    quota: Quota, limit: str, retry_after: float | None, sentence: str
) -> None:
    quotas = Quotas(quota)

    async with quotas.admit("acme", items=3, bytes=9):
        with pytest.raises(QuotaError) as caught:
            await hold(quotas, "acme", bytes=3)

    error = caught.value
    assert str(error) == sentence
    assert (error.tenant, error.limit) == ("acme", limit)
    assert error.retry_after == (None if retry_after is None else pytest.approx(retry_after))
    assert quotas.statistics()["acme"] == QuotaStatistics(admitted=3, refused=1)


async def test_the_quota_of_all_can_refuse_too_and_takes_nothing_of_the_tenants() -> None:
    quotas = Quotas(Quota(items=1, over="raise"), total=Quota(items=1, over="raise"))

    async with quotas.admit("a"):
        with pytest.raises(QuotaError, match=r"^all tenants together have 1 items in flight") as caught:
            await hold(quotas, "b")
    await hold(quotas, "b")

    assert (caught.value.tenant, caught.value.limit) == ("", "total.items")
    assert quotas.statistics()["b"] == QuotaStatistics(admitted=1, refused=1)


async def test_a_tenant_that_would_rather_be_refused_still_waits_for_its_turn_among_all() -> None:
    quotas = Quotas(None, {"a": Quota(items=2, over="raise")}, total=Quota(items=1))
    order: list[str] = []

    async def send(name: str) -> None:
        async with quotas.admit("a"):
            order.append(name)
            await anyio.sleep(1)

    async with anyio.create_task_group() as tasks, quotas.admit("b"):
        for name in ["first", "second"]:
            tasks.start_soon(send, name)
        await wait_all_tasks_blocked()
        with pytest.raises(QuotaError, match="tenant 'a' has 2 items in flight"):
            await send("third")
        assert quotas.statistics()["a"].waiting == 2

    assert sorted(order) == ["first", "second"]
    taken = quotas.statistics()["a"]
    assert (taken.admitted, taken.waited, taken.refused, taken.waiting) == (2, 2, 1, 0)


def test_a_refusal_may_be_tried_again_and_can_be_pickled() -> None:
    error = QuotaError("full", tenant="a", limit="items", retry_after=None)

    copied = pickle.loads(pickle.dumps(error))

    assert isinstance(error, ForebayError)
    assert classify(Failure(error, "stage", "source", 1)) is Category.TRANSIENT
    assert (str(copied), copied.tenant, copied.limit, copied.retry_after) == ("full", "a", "items", None)


# --- Sharing -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("total", [Quota(rate=1000, burst=1), Quota(items=10)])
def test_a_greedy_tenant_takes_nothing_from_ninety_nine_others(backend: BackendName, seed: int, total: Quota) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        quotas = Quotas(total=total)
        done = Counter[str]()

        async def keep_asking(tenant: str) -> None:
            while True:
                async with quotas.admit(tenant):
                    done[tenant] += 1
                    await anyio.sleep(rng.uniform(0.008, 0.012))

        with anyio.move_on_after(5):
            async with anyio.create_task_group() as tasks:
                for tenant in range(100):
                    for _ in range(300 if tenant == 0 else 3):
                        tasks.start_soon(keep_asking, str(tenant))

        share = sum(done.values()) / 100
        assert share > 45
        assert all(abs(done[str(tenant)] - share) <= 0.05 * share for tenant in range(1, 100))
        assert all(taken.in_flight == taken.waiting == 0 for taken in quotas.statistics().values())

    run_virtual(main, backend=backend, seed=seed)


async def test_shares_follow_the_weights() -> None:
    quotas = Quotas(None, {"gold": Quota(weight=3), "free": Quota(weight=0.5)}, total=Quota(items=1))
    done = Counter[str]()

    async def keep_asking(tenant: str) -> None:
        while True:
            async with quotas.admit(tenant):
                done[tenant] += 1
                await anyio.sleep(1)

    with anyio.move_on_after(900):
        async with anyio.create_task_group() as tasks:
            for tenant in ["gold", "free", "other"]:
                for _ in range(5):
                    tasks.start_soon(keep_asking, tenant)

    assert done == {
        "gold": pytest.approx(600, abs=3),
        "other": pytest.approx(200, abs=3),
        "free": pytest.approx(100, abs=3),
    }


async def test_bytes_can_be_what_is_shared() -> None:
    quotas = Quotas(total=Quota(items=1), share_by="bytes")
    sent = Counter[str]()

    async def keep_asking(tenant: str, size: int) -> None:
        while True:
            async with quotas.admit(tenant, bytes=size):
                sent[tenant] += size
                await anyio.sleep(1)

    with anyio.move_on_after(5000):
        async with anyio.create_task_group() as tasks:
            for tenant, size in [("small", 10_000), ("large", 300_000)]:
                for _ in range(40):
                    tasks.start_soon(keep_asking, tenant, size)

    assert sent["small"] == pytest.approx(sent["large"], rel=0.05)


async def test_an_item_of_no_bytes_counts_as_one_where_bytes_are_shared() -> None:
    quotas = Quotas(total=Quota(items=1), share_by="bytes")

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(hold, quotas, "a", 1.0)

    assert quotas.statistics()["a"].admitted == 3


async def test_one_who_finds_no_room_for_much_is_not_overtaken_by_others_for_ever() -> None:
    quotas = Quotas(total=Quota(items=4))
    log: list[tuple[float, str]] = []
    start = anyio.current_time()

    async def keep_asking(tenant: str, offset: float) -> None:
        await anyio.sleep(offset)
        while True:
            await hold(quotas, tenant, 1.0)

    with anyio.move_on_after(20):
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(keep_asking, f"small{number}", number / 10)
            await anyio.sleep(3)
            await note(quotas, "large", log, items=4)
            tasks.cancel_scope.cancel()

    assert log[0][0] - start < 8


# --- Changing ----------------------------------------------------------------------------------


async def test_other_quotas_hold_at_once_for_those_who_wait() -> None:
    quotas = Quotas(Quota(items=1), total=Quota(items=10))
    log: list[tuple[float, str]] = []
    start = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(note, quotas, "a", log, 10.0)
        await anyio.sleep(1)
        quotas.change(tenants={"a": Quota(items=3)})
        await anyio.sleep(1)
        quotas.change(default=None, tenants={})

    assert [round(at - start) for at, _ in log] == [0, 1, 1, 2]
    assert (quotas.default, quotas.tenants, quotas.total) == (Quota(), {}, Quota(items=10))


async def test_another_rate_is_followed_from_the_moment_of_the_change() -> None:
    quotas = Quotas(Quota(rate=1, burst=1), {"b": Quota(rate=1, burst=1)})
    log: list[tuple[float, str]] = []
    start = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for tenant in "aaab":
            tasks.start_soon(note, quotas, tenant, log)
        await anyio.sleep(0.5)
        quotas.change(default=Quota(rate=0.1, burst=1), tenants={"b": Quota()})

    times = [round(at - start, 6) for at, tenant in log if tenant == "a"]
    assert times == [0, 5.5, 15.5]


async def test_a_lower_limit_lets_in_nobody_until_enough_have_gone() -> None:
    quotas = Quotas(total=Quota(items=3))
    log: list[tuple[float, str]] = []
    start = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for seconds in [1.0, 2.0, 3.0, 1.0]:
            tasks.start_soon(note, quotas, "a", log, seconds)
            await wait_all_tasks_blocked()
        quotas.change(total=Quota(items=1))

    assert [round(at - start) for at, _ in log] == [0, 0, 0, 3]


@pytest.mark.parametrize(
    "change",
    [
        {"default": Quota(items=9), "tenants": {"a": Quota(items=9), "b": 3}},
        {"default": Quota(items=9), "total": "none"},
        {"default": 0, "tenants": {}},
    ],
)
async def test_a_change_with_one_bad_value_changes_nothing(change: dict[str, Any]) -> None:
    quotas = Quotas(Quota(items=1), {"a": Quota(items=2)}, total=Quota(items=3))

    async with quotas.admit("a"):
        with pytest.raises(TypeError, match="must be a Quota"):
            quotas.change(**change)

    assert (quotas.default, quotas.tenants, quotas.total) == (Quota(items=1), {"a": Quota(items=2)}, Quota(items=3))


def test_quotas_can_be_changed_before_anything_runs() -> None:
    quotas = Quotas()

    quotas.change(total=Quota(rate=5))

    assert quotas.total == Quota(rate=5)


async def test_the_mapping_that_was_given_can_change_without_changing_the_quotas() -> None:
    tenants = {"a": Quota(items=1)}
    quotas = Quotas(None, tenants)

    tenants.clear()
    dict(quotas.tenants).clear()

    assert quotas.tenants == {"a": Quota(items=1)}


# --- Giving up ---------------------------------------------------------------------------------


async def test_whoever_gives_up_leaves_the_turn_and_the_tokens_to_the_next() -> None:
    quotas = Quotas(Quota(rate=1, burst=1, items=2))
    log: list[tuple[float, str]] = []
    start = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        await hold(quotas, "a")
        with anyio.CancelScope() as scope:
            tasks.start_soon(note, quotas, "a", log)
            tasks.start_soon(note, quotas, "a", log)
            with anyio.move_on_after(0.5):
                await hold(quotas, "a")
            scope.cancel()

    assert [round(at - start, 6) for at, _ in log] == [1, 2]
    assert quotas.statistics()["a"].admitted == 3


async def test_the_one_who_wakes_for_all_can_give_up() -> None:
    quotas = Quotas(Quota(rate=1, burst=1))
    log: list[tuple[float, str]] = []
    start = anyio.current_time()
    await hold(quotas, "a")
    await hold(quotas, "b")

    async def give_up() -> None:
        with anyio.move_on_after(0.5):
            await hold(quotas, "a")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(give_up)
        await wait_all_tasks_blocked()
        tasks.start_soon(note, quotas, "b", log)
        tasks.start_soon(note, quotas, "a", log)

    assert [round(at - start, 6) for at, _ in log] == [1, 1]


async def test_an_exception_in_the_block_gives_back_too() -> None:
    quotas = Quotas(Quota(items=1))

    with pytest.raises(RuntimeError, match=r"^the handler's$"):
        async with quotas.admit("a", items=1):
            raise RuntimeError("the handler's")

    await hold(quotas, "a")
    assert quotas.statistics()["a"] == QuotaStatistics(admitted=2)


@define
class Crowd:
    """Callers of three tenants, who come, wait, hold and go; the one that the cut hits first is in line with them."""

    quotas: Quotas
    seen: Counter[str] = field(factory=Counter[str])

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            for tenant, seconds, items in [("a", 1.0, 2), ("a", 0.5, 1), ("b", 1.0, 3), ("c", 2.0, 1)]:
                tasks.start_soon(self._ask, tenant, seconds, items)
            await self._ask("a", 0.5, 2)
            await self._ask("b", 0.0, 1)

    async def _ask(self, tenant: str, seconds: float, items: int) -> None:
        async with self.quotas.admit(tenant, items=items, bytes=items):
            self.seen[tenant] += items
            await anyio.sleep(seconds)

    async def check(self, *, cancelled: bool) -> None:
        taken = self.quotas.statistics()
        assert all((one.in_flight, one.in_flight_bytes, one.waiting) == (0, 0, 0) for one in taken.values())
        assert {tenant: one.admitted for tenant, one in taken.items() if one.admitted} == self.seen
        assert (self.quotas._total.held, self.quotas._total.held_bytes) == (0, 0)
        assert (len(self.quotas._queue), self.quotas._callers, self.quotas._timer) == (0, {}, None)


CROWDS: dict[str, partial[Quotas]] = {
    "in flight": partial(Quotas, Quota(items=2, bytes=3), total=Quota(items=3)),
    "rate": partial(Quotas, Quota(rate=2, burst=2), total=Quota(rate=3, burst=3)),
    "refusing": partial(Quotas, Quota(items=9, rate=100, over="raise"), total=Quota(items=3, rate=2, burst=1)),
}


@cuts
@pytest.mark.parametrize("kind", CROWDS)
def test_a_cancel_at_any_step_leaves_nothing_taken(backend: BackendName, how: How, kind: str) -> None:
    report = cancel_at_every_step(lambda: Crowd(CROWDS[kind]()), backend=backend, how=how)

    report.raise_failures()
    assert report.steps > 30


async def _cut_when_let_in() -> tuple[QuotaStatistics, float]:
    """Let one in that waits, cancel it as asyncio does before it has run, and see how long the next has to wait."""
    import asyncio

    quotas = Quotas(Quota(items=1, rate=0.001, burst=2), total=Quota(rate=0.001, burst=2))
    async with quotas.admit("a"):
        waiting = asyncio.create_task(hold(quotas, "a"))
        await wait_all_tasks_blocked()
    assert quotas.statistics()["a"].in_flight == 1
    waiting.cancel()
    await asyncio.wait([waiting])
    start = anyio.current_time()
    await hold(quotas, "a")
    return quotas.statistics()["a"], anyio.current_time() - start


def test_one_that_was_let_in_and_cancelled_at_once_gives_back_what_it_never_had() -> None:
    taken, waited = run_virtual(_cut_when_let_in, backend="asyncio")

    assert waited == 0.0
    assert (taken.admitted, taken.in_flight, taken.waiting) == (2, 0, 0)


# --- Many tenants ------------------------------------------------------------------------------


async def test_tenants_at_rest_are_forgotten_and_their_sums_kept() -> None:
    quotas = Quotas(Quota(items=5), {"named": Quota(items=5)})
    await hold(quotas, "named")

    for number in range(3000):
        await hold(quotas, f"t{number}", items=2)

    assert len(quotas.statistics()) <= 1001
    assert quotas.statistics()["named"].admitted == 1
    assert quotas.forgotten.admitted + sum(one.admitted for one in quotas.statistics().values()) == 6001


async def test_a_tenant_that_leaves_and_comes_back_does_not_find_its_bucket_full() -> None:
    quotas = Quotas(Quota(rate=0.01, burst=1, over="raise"))
    await hold(quotas, "a")

    for number in range(2000):
        await hold(quotas, f"t{number}")

    with pytest.raises(QuotaError):
        await hold(quotas, "a")
    await anyio.sleep(200)
    for number in range(2000):
        await hold(quotas, f"t{number}")
    await anyio.sleep(200)
    for number in range(2000):
        await hold(quotas, f"u{number % 2}")
        await anyio.sleep(200)
    assert len(quotas.statistics()) <= 1001


async def test_a_tenant_in_flight_is_not_forgotten() -> None:
    quotas = Quotas()

    async with quotas.admit("a"):
        async with quotas.admit("a"):
            pass
        for number in range(1500):
            await hold(quotas, f"t{number}")
        assert quotas.statistics()["a"].in_flight == 1

    assert quotas.statistics()["a"] == QuotaStatistics(admitted=2)


async def test_a_tenant_that_loses_its_name_is_forgotten_in_its_turn() -> None:
    quotas = Quotas(None, {f"t{number}": Quota() for number in range(1500)})
    for number in range(1500):
        await hold(quotas, f"t{number}")
    assert len(quotas.statistics()) == 1500

    quotas.change(tenants={})

    assert len(quotas.statistics()) <= 1000
    assert quotas.forgotten.admitted == 1500 - len(quotas.statistics())


# --- Anything, in any order --------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    asks=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(0, 40),
            st.integers(1, 6),
            st.integers(0, 12),
            st.integers(0, 20),
            st.none() | st.integers(0, 30),
        ),
        max_size=25,
    ),
    quota=st.builds(
        Quota,
        items=st.none() | st.integers(1, 4),
        bytes=st.none() | st.integers(1, 10),
        rate=st.none() | st.sampled_from([0.5, 3.0]),
        over=st.sampled_from(["wait", "wait", "raise"]),
    ),
    total=st.builds(Quota, items=st.none() | st.integers(1, 6), rate=st.none() | st.just(2.0)),
    backend=st.sampled_from(["asyncio", "trio"]),
    seed=st.integers(0, 1000),
)
def test_no_limit_is_ever_passed_and_nothing_is_left_over(
    asks: list[tuple[str, int, int, int, int, int | None]],
    quota: Quota,
    total: Quota,
    backend: BackendName,
    seed: int,
) -> None:
    """Times are tenths of seconds: when it comes, how long it holds, when it gives up."""

    async def main() -> None:
        quotas = Quotas(quota, total=total)
        inside = Counter[str]()

        def check() -> None:
            taken = quotas.statistics()
            for tenant, one in taken.items():
                alone = inside[tenant] <= 1
                assert alone or quota.items is None or one.in_flight <= quota.items
                assert alone or quota.bytes is None or one.in_flight_bytes <= quota.bytes
            assert total.items is None or quotas._total.held <= total.items or inside.total() <= 1

        async def ask(tenant: str, at: int, items: int, nbytes: int, holds: int, patience: int | None) -> None:
            await anyio.sleep(at / 10)
            with anyio.move_on_after(math.inf if patience is None else patience / 10):
                try:
                    async with quotas.admit(tenant, items=items, bytes=nbytes):
                        inside[tenant] += 1
                        try:
                            check()
                            await anyio.sleep(holds / 10)
                        finally:
                            inside[tenant] -= 1
                except QuotaError:
                    assert quota.over == "raise"

        async with anyio.create_task_group() as tasks:
            for one in asks:
                tasks.start_soon(ask, *one)

        assert all((one.in_flight, one.waiting) == (0, 0) for one in quotas.statistics().values())
        assert not quotas._queue
        assert (quotas._total.held, quotas._total.held_bytes, quotas._timer) == (0, 0, None)

    run_virtual(main, backend=backend, seed=seed)
