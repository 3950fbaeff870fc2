import math

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from forebay import abc
from forebay._errors import LostOwnershipError
from forebay._state import MemoryStateStore, open_memory_state
from forebay.testing import run_virtual

pytestmark = pytest.mark.anyio


async def keys_of(store: MemoryStateStore, prefix: str = "") -> list[str]:
    return [key async for key in store.scan(prefix)]


async def test_what_was_put_is_read_in_the_order_asked_for() -> None:
    async with open_memory_state() as store:
        protocol: abc.StateStore = store

        await protocol.put_many({"a": b"1", "b": b"2"}, epoch=1)

        assert await protocol.get_many(["b", "missing", "a", "a"]) == [b"2", None, b"1", b"1"]


async def test_stores_share_nothing() -> None:
    async with open_memory_state(namespace="x") as one, open_memory_state(namespace="x") as other:
        await one.put_many({"a": b"1"}, epoch=1)

        assert await other.get_many(["a"]) == [None]


async def test_a_value_is_copied() -> None:
    store, value = MemoryStateStore(), bytearray(b"before")

    await store.put_many({"a": value}, epoch=0)  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]  # users do
    value[:] = b"after!"

    assert await store.get_many(["a"]) == [b"before"]


async def test_deleting_ignores_what_is_not_there() -> None:
    store = MemoryStateStore()
    await store.put_many({"a": b"1", "b": b"2"}, epoch=1)

    await store.delete_many(["a", "missing"], epoch=1)

    assert await keys_of(store) == ["b"]


async def test_a_lower_epoch_writes_nothing_in_any_way() -> None:
    store = MemoryStateStore(namespace="orders")
    await store.put_many({"a": b"1"}, epoch=5)

    with pytest.raises(LostOwnershipError, match="epoch 4 may not write to state 'orders': epoch 5 has written there"):
        await store.put_many({"a": b"2", "b": b"2"}, epoch=4)
    with pytest.raises(LostOwnershipError):
        await store.delete_many(["a"], epoch=4)
    with pytest.raises(LostOwnershipError):
        await store.cas("a", b"1", b"2", epoch=4)

    assert await store.get_many(["a", "b"]) == [b"1", None]


@pytest.mark.parametrize("way", ["put", "delete", "cas", "refused cas"])
async def test_every_accepted_write_raises_the_fence(way: str) -> None:
    store = MemoryStateStore()

    if way == "put":
        await store.put_many({}, epoch=3)
    elif way == "delete":
        await store.delete_many([], epoch=3)
    else:
        await store.cas("a", b"wrong" if way == "refused cas" else None, b"1", epoch=3)

    with pytest.raises(LostOwnershipError):
        await store.put_many({}, epoch=2)
    await store.put_many({}, epoch=3)


async def test_compare_and_set_creates_replaces_and_deletes() -> None:
    store = MemoryStateStore()

    assert await store.cas("a", None, b"1", epoch=0)
    assert not await store.cas("a", None, b"2", epoch=0)
    assert not await store.cas("a", b"0", b"2", epoch=0)
    assert await store.cas("a", b"1", b"2", epoch=0)
    assert await store.get_many(["a"]) == [b"2"]
    assert await store.cas("a", b"2", None, epoch=0)
    assert await store.cas("a", None, None, epoch=0)
    assert await keys_of(store) == []


async def test_of_fifty_racing_tasks_each_sees_its_own_increment() -> None:
    store = MemoryStateStore()

    async def add_one() -> None:
        while True:
            [old] = await store.get_many(["n"])
            if await store.cas("n", old, b"%d" % (int(old or b"0") + 1), epoch=0):
                return

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(add_one)

    assert await store.get_many(["n"]) == [b"50"]


async def test_values_with_a_ttl_are_gone_after_it() -> None:
    store = MemoryStateStore()
    await store.put_many({"a": b"1", "c": b"1"}, epoch=0, ttl=10)
    await store.put_many({"b": b"1"}, epoch=0, ttl=math.inf)

    await anyio.sleep(9.9)
    assert await keys_of(store) == ["a", "b", "c"]
    await anyio.sleep(0.2)

    assert await keys_of(store) == ["b"]
    assert await store.get_many(["a", "b"]) == [None, b"1"]
    assert await store.cas("a", None, b"2", epoch=0)


async def test_a_later_write_decides_how_long_a_value_lives() -> None:
    store = MemoryStateStore()
    await store.put_many({"longer": b"1", "for ever": b"1", "by cas": b"1"}, epoch=0, ttl=1)

    await store.put_many({"longer": b"2"}, epoch=0, ttl=5)
    await store.put_many({"for ever": b"2"}, epoch=0)
    await store.cas("by cas", b"1", b"2", epoch=0)
    await anyio.sleep(2)

    assert await keys_of(store) == ["by cas", "for ever", "longer"]
    await anyio.sleep(4)
    assert await keys_of(store) == ["by cas", "for ever"]


async def test_refreshing_a_ttl_over_and_over_keeps_no_trace() -> None:
    store = MemoryStateStore()

    for _ in range(1000):
        await store.put_many({"session": b"x"}, epoch=0, ttl=3600)

    assert len(store._by_end) < 100


async def test_a_ttl_must_be_a_time() -> None:
    with pytest.raises(ValueError, match="ttl must be greater than 0 seconds, not 0; leave it out to keep the values"):
        await MemoryStateStore().put_many({"a": b"1"}, epoch=0, ttl=0)


async def test_a_scan_is_ascending_and_by_prefix() -> None:
    store = MemoryStateStore()
    names = [f"k/{number:04}" for number in range(1000)]
    await store.put_many(dict.fromkeys([*reversed(names), "j", "k", "l"], b""), epoch=0)

    assert await keys_of(store, "k/") == names
    assert await keys_of(store, "none") == []
    assert await keys_of(store) == ["j", "k", *names, "l"]


async def test_a_scan_bears_every_change_while_it_runs() -> None:
    store, seen = MemoryStateStore(), list[str]()
    await store.put_many(dict.fromkeys([f"{number:04}" for number in range(0, 2000, 2)], b""), epoch=0)

    async for key in store.scan(""):
        seen.append(key)
        number = int(key)
        if number % 2 == 0:
            await store.put_many({f"{number + 1:04}": b"", f"{number - 1000:05}": b""}, epoch=0)
        if number % 8 == 0:
            await store.delete_many([f"{number:04}", f"{number + 2:04}"], epoch=0)

    assert seen == sorted(set(seen))
    steady = {f"{number:04}" for number in range(0, 2000, 2) if number % 8 not in (0, 2)}
    assert steady <= set(seen)
    assert not any(int(key) % 8 == 2 for key in seen)


async def test_a_call_that_was_cancelled_has_changed_nothing() -> None:
    store = MemoryStateStore()
    await store.put_many({"a": b"1"}, epoch=1)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.put_many({"a": b"2"}, epoch=9)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.delete_many(["a"], epoch=9)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.cas("a", b"1", b"2", epoch=9)

    assert await store.get_many(["a"]) == [b"1"]
    await store.put_many({}, epoch=1)


async def test_every_call_lets_others_run() -> None:
    store, turns = MemoryStateStore(), 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        await checkpoint()
        for call in (
            lambda: store.get_many([]),
            lambda: store.put_many({}, epoch=0),
            lambda: store.delete_many([], epoch=0),
            lambda: store.cas("a", None, None, epoch=0),
            lambda: keys_of(store),
        ):
            before = turns
            await call()
            await checkpoint()  # asyncio may have run the counter last
            assert turns > before
        group.cancel_scope.cancel()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "delete", "cas"]),
            st.sampled_from("abc"),
            st.sampled_from([None, b"1", b"2"]),
            st.sampled_from([None, b"1", b"2"]),
            st.integers(0, 3),
        ),
        max_size=30,
    )
)
def test_it_does_what_a_dictionary_with_a_fence_does(
    steps: list[tuple[str, str, bytes | None, bytes | None, int]],
) -> None:
    async def run() -> None:
        store, model, fence = MemoryStateStore(), dict[str, bytes](), 0
        for what, key, old, new, epoch in steps:
            try:
                if what == "put":
                    await store.put_many({key: new or b""}, epoch=epoch)
                elif what == "delete":
                    await store.delete_many([key], epoch=epoch)
                else:
                    assert await store.cas(key, old, new, epoch=epoch) == (model.get(key) == old)
            except LostOwnershipError:
                assert epoch < fence
                continue
            assert epoch >= fence
            fence = epoch
            if what == "put":
                model[key] = new or b""
            elif what == "delete" or (model.get(key) == old and new is None):
                model.pop(key, None)
            elif model.get(key) == old and new is not None:
                model[key] = new
        assert await keys_of(store) == sorted(model)
        assert await store.get_many(list(model)) == list(model.values())

    run_virtual(run, backend="asyncio")
