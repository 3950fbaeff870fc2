import enum
import json
import math
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from forebay import abc
from forebay._dead_letter import (
    MemoryDeadLetterStore,
    decode_payload,
    encode_payload,
    make_dead_letter,
    open_memory_dead_letters,
)
from forebay._errors import EngineError
from forebay._fingerprint import fingerprint
from forebay._types import Category, DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterState, Member

pytestmark = pytest.mark.anyio

ALL = DeadLetterFilter()
DEAD, REPLAYING = DeadLetterState.DEAD, DeadLetterState.REPLAYING


def place(offset: object, *, pipeline: str = "orders", generation: int = 0) -> DeadLetterId:
    return DeadLetterId(pipeline=pipeline, source="file", partition=0, offset=str(offset), generation=generation)


def letter(offset: object, error: BaseException | None = None, now: float = 0.0, stage: str = "store") -> DeadLetter:
    return make_dead_letter(
        id=place(offset),
        item={"n": offset},
        error=error or ValueError("no good"),
        category=Category.PERMANENT,
        stage=stage,
        attempts=1,
        first_seen=now,
        now=now,
    )


def offsets(letters: Iterator[DeadLetter] | list[DeadLetter]) -> list[str]:
    return [each.id.offset for each in letters]


# --- Payloads -----------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class RudeDict(dict[str, int]):
    def items(self) -> object:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # rude
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("item", "payload", "content_type"),
    [
        (b"\x00\xff", b"\x00\xff", "application/octet-stream"),
        ("größer", "größer".encode(), "text/plain"),
        ("", b"", "text/plain"),
        ("\udcff", b"\xed\xb3\xbf", "text/plain"),
        ({"a": [1, 2.5, None, True, "ö"]}, '{"a":[1,2.5,null,true,"ö"]}'.encode(), "application/json"),
        ({"a": "\ud800"}, b'{"a":"\\ud800"}', "application/json"),
        (17, b"17", "application/json"),
        (None, b"null", "application/json"),
        (-0.0, b"-0.0", "application/json"),
    ],
)
def test_what_can_be_made_again_is_kept_as_it_is(item: object, payload: bytes, content_type: str) -> None:
    assert encode_payload(item) == (payload, content_type)
    assert decode_payload(payload, content_type) == item


def cyclic() -> list[object]:
    ring: list[object] = []
    ring.append(ring)
    return ring


def deep() -> list[object]:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


UNREPEATABLE: list[object] = [
    (1, 2),
    {"a": (1,)},
    {1: "a"},
    {None: "a"},
    {"a": Colour.RED},
    Colour.RED,
    {Category.UNKNOWN: 1},
    Category.UNKNOWN,
    Point(1),
    OrderedDict[str, int](a=1),
    [math.nan],
    [math.inf],
    {1, 2},
    bytearray(b"x"),
    ["\ud83d\ude00", 1],
    10**5000,
    cyclic(),
    RudeDict(a=1),
    [RudeDict(a=1)],
]


@pytest.mark.parametrize("item", UNREPEATABLE, ids=lambda item: type(item).__name__)
def test_all_else_becomes_its_repr_and_says_that_it_cannot_be_made_again(item: object) -> None:
    payload, content_type = encode_payload(item)

    assert content_type == "text/x-python-repr"
    with pytest.raises(ValueError, match="payload is a repr, which cannot be turned back into the item"):
        decode_payload(payload, content_type)


@pytest.mark.parametrize("item", [Rude(), [Rude()], deep()], ids=["its own repr", "one inside", "too deep"])
def test_an_item_that_has_no_repr_is_named_all_the_same(item: object) -> None:
    payload, content_type = encode_payload(item)

    assert content_type == "text/x-python-repr"
    assert payload.startswith((b"<", b"[["))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=())), inner) | st.tuples(inner)
    ),
    max_leaves=10,
)


@given(json_like | st.binary() | st.text(st.characters(exclude_categories=())))
def test_a_payload_that_can_be_decoded_gives_the_very_item_back(item: object) -> None:
    payload, content_type = encode_payload(item)

    if content_type == "text/x-python-repr":
        assert payload == repr(item).encode("utf-8", "backslashreplace")
    else:
        assert repr(decode_payload(payload, content_type)) == repr(item)


def test_an_unknown_content_type_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"must be one of application/octet-stream, text/plain, .*, not 'image/png'"):
        decode_payload(b"", "image/png")


# --- Letters ------------------------------------------------------------------------------------


def failing(text: str) -> int:
    return int(text)


def caught(text: str = "x 17") -> ValueError:
    with pytest.raises(ValueError, match="invalid literal") as info:
        failing(text)
    return info.value


def test_a_letter_has_all_that_a_person_needs() -> None:
    error = caught()

    made = make_dead_letter(
        id=place(7),
        item=b"raw",
        error=error,
        category=Category.PERMANENT,
        stage="parse",
        attempts=3,
        first_seen=10.0,
        now=12.0,
        key="ann",
        headers={"h": "1"},
        member=Member(id="m-1", host="box"),
        epoch=4,
        batch_id="b-9",
    )

    assert made == DeadLetter(
        id=place(7),
        payload=b"raw",
        content_type="application/octet-stream",
        category=Category.PERMANENT,
        fingerprint=fingerprint(error),
        stage="parse",
        error_type="ValueError",
        message="invalid literal for int() with base 10: 'x 17'",
        masked_message="invalid literal for int() with base <n>: <str>",
        frames=(f"{__name__}:caught", f"{__name__}:failing"),
        traceback=made.traceback,
        key="ann",
        headers={"h": "1"},
        attempts=3,
        first_seen=10.0,
        last_seen=12.0,
        member="m-1",
        host="box",
        batch_id="b-9",
        epoch=4,
    )
    assert made.traceback.startswith("Traceback (most recent call last):\n  File ")
    assert "    return int(text)\n" in made.traceback
    assert made.traceback.endswith("ValueError: invalid literal for int() with base 10: 'x 17'\n")


def plain(error: BaseException) -> str:
    """Format as the standard library does, less the marks below its lines."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(line for line in lines if not line.strip() or line.strip(" ~^"))


def test_a_traceback_tells_causes_and_contexts_like_the_standard_library() -> None:
    def chained() -> None:
        try:
            try:
                failing("x")
            except ValueError as error:
                raise KeyError("k") from error
        except KeyError:
            raise RuntimeError  # noqa: B904  # a context is wanted

    with pytest.raises(RuntimeError) as info:
        chained()
    info.value.add_note("look at the moon")

    text = letter(1, info.value).traceback

    assert text.strip() == plain(info.value).strip()
    assert text.index("direct cause") < text.index("During handling") < text.index("look at the moon")


def test_a_context_that_is_suppressed_is_not_told() -> None:
    def suppressed() -> None:
        try:
            failing("x")
        except ValueError:
            raise RuntimeError("out") from None

    with pytest.raises(RuntimeError) as info:
        suppressed()

    assert "ValueError" not in letter(1, info.value).traceback


def test_causes_that_go_round_in_a_circle_come_to_an_end() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one

    assert letter(1, one).traceback.count("direct cause") == 1


def test_a_group_is_formatted_with_its_leaves() -> None:
    text = letter(1, ExceptionGroup("both", [caught("x"), KeyError("k")])).traceback

    assert "| ExceptionGroup: both (2 sub-exceptions)" in text
    assert "KeyError: 'k'" in text


def test_an_exception_without_traceback_is_its_own_line() -> None:
    assert letter(1, KeyError("k")).traceback == "KeyError: 'k'\n"


@pytest.mark.parametrize("text", ["x" * 10**5, "\U0001f600" * 10**5, "\ud800" * 10**5])
def test_a_traceback_is_cut_in_its_middle(text: str) -> None:
    def fail() -> None:
        raise ValueError(text)

    with pytest.raises(ValueError) as info:  # noqa: PT011  # its message is as long as it gets
        fail()

    made = letter(1, info.value)

    assert 15_000 < len(made.traceback.encode()) <= 16 * 1024
    assert made.traceback.startswith("Traceback (most recent")
    assert " bytes left out]\n" in made.traceback
    assert len(made.message) == 16 * 1024


# --- The store ----------------------------------------------------------------------------------


async def test_letters_are_found_in_the_order_of_their_ids() -> None:
    async with open_memory_dead_letters() as store:
        protocol: abc.DeadLetterStore = store
        await protocol.put([letter(offset) for offset in (3, 10, 2)])
        await protocol.put(
            [letter(1), evolve(letter(2), id=place(2, generation=1)), evolve(letter(0), id=place(9, pipeline="a"))]
        )

        everything = list(await protocol.find(ALL, limit=10))

        assert [each.id for each in everything] == sorted(each.id for each in everything)
        assert offsets(everything) == ["9", "1", "10", "2", "2", "3"]


async def test_pages_join_up_even_if_the_last_letter_is_gone() -> None:
    store = MemoryDeadLetterStore()
    await store.put([letter(offset) for offset in range(5)])
    first = await store.find(ALL, limit=2)
    await store.purge(DeadLetterFilter(), limit=2)

    second = await store.find(ALL, limit=2, after=first[-1].id)
    third = await store.find(ALL, limit=2, after=second[-1].id)

    assert [offsets(page) for page in (first, second, third)] == [["0", "1"], ["2", "3"], ["4"]]
    assert await store.find(ALL, limit=0) == []


async def test_a_letter_that_is_stored_already_is_left_as_it_is() -> None:
    store = MemoryDeadLetterStore()
    await store.put([letter(1, now=1.0), letter(1, now=2.0)])
    await store.move([place(1)], old=DEAD, new=DeadLetterState.RESOLVED)

    await store.put([letter(1, now=3.0)])

    [stored] = await store.find(ALL, limit=10)
    assert (stored.last_seen, stored.state) == (1.0, DeadLetterState.RESOLVED)


async def test_a_full_store_refuses_all_of_a_put_and_drops_nothing() -> None:
    async with open_memory_dead_letters(max_items=3) as store:
        await store.put([letter(1), letter(2)])

        with pytest.raises(EngineError) as info:
            await store.put([letter(1), letter(3), letter(4)])

        assert str(info.value) == (
            "2 dead letters do not fit: 2 are stored and max_items is 3; "
            "purge some, or open a store with a higher max_items"
        )
        assert info.value.category == "transient"
        assert offsets(await store.find(ALL, limit=10)) == ["1", "2"]
        await store.put([letter(1), letter(3), letter(3)])
        assert await store.purge(ALL, limit=1) == 1
        await store.put([letter(4)])
        assert offsets(await store.find(ALL, limit=10)) == ["2", "3", "4"]


async def test_filters_narrow_down_what_is_found_and_purged() -> None:
    store = MemoryDeadLetterStore()
    await store.put([letter(n, now=float(n), stage="odd" if n % 2 else "even") for n in range(10)])

    assert offsets(await store.find(DeadLetterFilter(stage="odd", since=3, until=7), limit=10)) == ["3", "5"]
    assert await store.purge(DeadLetterFilter(stage="odd"), limit=2) == 2
    assert offsets(await store.find(DeadLetterFilter(stage="odd"), limit=10)) == ["5", "7", "9"]
    assert await store.purge(DeadLetterFilter(stage="none"), limit=2) == 0


async def test_groups_come_largest_first_and_show_their_newest() -> None:
    store = MemoryDeadLetterStore()
    await store.put([letter(f"a{n}", ValueError(f"row {n}"), now=n, stage=f"s{n % 3}") for n in (1, 5, 3)])
    await store.put([letter("b", KeyError("k"), now=9), letter("c", TypeError("t"), now=9)])

    first, *others = await store.groups(ALL)

    assert (first.count, first.first_seen, first.last_seen, first.stage) == (3, 1, 5, "s2")
    assert (first.error_type, first.masked_message, first.category) == ("ValueError", "row <n>", Category.PERMANENT)
    assert [group.count for group in others] == [1, 1]
    assert others[0].fingerprint < others[1].fingerprint
    assert await store.groups(DeadLetterFilter(stage="none")) == []


async def test_of_two_letters_as_new_the_higher_id_stands_for_the_group() -> None:
    store = MemoryDeadLetterStore()
    await store.put([letter(2, stage="high"), letter(1, stage="low")])

    [group] = await store.groups(ALL)

    assert group.stage == "high"


async def test_of_many_who_move_a_letter_one_gets_it() -> None:
    store, got = MemoryDeadLetterStore(), list[DeadLetterId]()
    await store.put([letter(n) for n in range(10)])

    async def replay() -> None:
        got.extend(await store.move([place(n) for n in range(12)], old=DEAD, new=REPLAYING))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(replay)

    assert sorted(got) == [place(n) for n in range(10)]
    assert {each.state for each in await store.find(ALL, limit=20)} == {REPLAYING}
    assert await store.move([place(3), place(3)], old=REPLAYING, new=DEAD) == [place(3)]


async def test_moving_to_the_same_state_is_refused() -> None:
    with pytest.raises(ValueError, match="new must differ from old, not be 'dead' too"):
        await MemoryDeadLetterStore().move([], old=DEAD, new=DEAD)


async def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="max_items must be at least 1, not 0"):
        MemoryDeadLetterStore(max_items=0)
    with pytest.raises(ValueError, match="limit must be at least 0, not -1"):
        await MemoryDeadLetterStore().find(ALL, limit=-1)
    with pytest.raises(ValueError, match="limit must be at least 0, not -1"):
        await MemoryDeadLetterStore().purge(ALL, limit=-1)


async def test_a_put_or_move_that_was_cancelled_has_changed_nothing() -> None:
    store = MemoryDeadLetterStore()
    await store.put([letter(1)])

    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.put([letter(2)])
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.move([place(1)], old=DEAD, new=REPLAYING)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.purge(ALL, limit=1)

    [stored] = await store.find(ALL, limit=10)
    assert (stored.id, stored.state) == (place(1), DEAD)


def test_a_letter_is_json_able_where_its_item_was() -> None:
    assert json.loads(letter(5).payload) == {"n": 5}
