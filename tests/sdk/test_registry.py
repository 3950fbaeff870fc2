"""Registries of factories by name and by URL."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, Optional

import pytest
from attrs import frozen

from forebay._errors import PluginError
from forebay._registry import Registry

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers


@frozen
class Tank:
    """What the factories of these tests make."""

    options: dict[str, object]


@asynccontextmanager
async def open_tank(
    *, url: str = "", size: int = 8, share: float = 0.5, cold: bool = False, label: str | None = None
) -> AsyncGenerator[Tank]:
    yield Tank({"url": url, "size": size, "share": share, "cold": cold, "label": label})


def registry(*, takes_urls: bool = True) -> Registry[Tank]:
    return Registry[Tank]("tanks", "tank", takes_urls=takes_urls)


@pytest.mark.anyio
async def test_a_name_builds_what_its_factory_yields() -> None:
    tanks = registry()
    tanks("steel", open_tank)

    async with tanks.build("steel", size=3) as tank:
        assert tank.options["size"] == 3


@pytest.mark.anyio
async def test_a_url_finds_its_scheme_and_its_query_becomes_options() -> None:
    tanks = registry()
    tanks("steel", open_tank, schemes=("steel", "steels"))

    async with tanks.build("STEELS://u:p@host:1/a%20b?size=3&share=0.25&cold=yes&label=x+y") as tank:
        assert tank.options == {
            "url": "STEELS://u:p@host:1/a%20b", "size": 3, "share": 0.25, "cold": True, "label": "x y",
        }  # fmt: skip


@pytest.mark.anyio
async def test_a_factory_may_return_the_object_itself() -> None:
    def make(*, size: int = 1) -> Tank:
        return Tank({"size": size})

    tanks = registry(takes_urls=False)
    tanks("plain", make)

    async with tanks.build("plain", size=2) as tank:
        assert tank == Tank({"size": 2})


@pytest.mark.anyio
async def test_a_class_is_a_factory() -> None:
    tanks = registry()
    tanks("class", Tank)

    async with tanks.build("class", options={}) as tank:
        assert tank == Tank({})


@pytest.mark.anyio
async def test_a_factory_whose_signature_cannot_be_read_gets_what_is_given() -> None:
    tanks: Registry[object] = Registry("tanks", "tank")
    tanks("dict", dict)

    async with tanks.build("dict", size=2) as tank:
        assert tank == {"size": 2}


@pytest.mark.anyio
async def test_a_factory_without_url_takes_a_bare_scheme_and_nothing_behind_it() -> None:
    def make(*, size: int = 1) -> Tank:
        return Tank({"size": size})

    tanks = registry()
    tanks("memory", make)

    async with tanks.build("memory://?size=4") as tank:
        assert tank == Tank({"size": 4})
    with pytest.raises(PluginError, match="tank 'memory' takes no address; write memory:// and nothing behind it"):
        tanks.build("memory://somewhere")


@pytest.mark.anyio
async def test_a_factory_with_any_keywords_gets_the_query_as_text() -> None:
    def make(**options: object) -> Tank:
        return Tank(options)

    tanks = registry()
    tanks("any", make)

    async with tanks.build("any://h?depth=3", cold=True) as tank:
        assert tank == Tank({"cold": True, "url": "any://h", "depth": "3"})


@pytest.mark.anyio
async def test_annotations_are_understood_in_all_their_spellings() -> None:
    def make(
        *,
        number: Optional[int] = None,  # noqa: UP045  # the old spelling is what is tested
        either: int | str = 0,
        mode: Literal["a", "b"] = "a",
    ) -> Tank:
        return Tank({"number": number, "either": either, "mode": mode})

    tanks = registry()
    tanks("many", make)

    async with tanks.build("many://?number=1&either=one&mode=b") as tank:
        assert tank == Tank({"number": 1, "either": "one", "mode": "b"})


@pytest.mark.anyio
async def test_a_parameter_without_annotation_gets_text() -> None:
    untyped: dict[str, Any] = {}
    exec("def make(*, size=1):\n    return {'size': size}", untyped)
    tanks: Registry[object] = Registry("tanks", "tank", takes_urls=True)
    tanks("bare", untyped["make"])

    async with tanks.build("bare://?size=2") as tank:
        assert tank == {"size": "2"}


@pytest.mark.anyio
async def test_an_annotation_that_only_checkers_can_see_does_not_hide_the_others() -> None:
    def make(*, price: OnlyForCheckers | None = None, size: int | None = None) -> Tank:
        return Tank({"price": price, "size": size})

    tanks = registry()
    tanks("late", make)

    async with tanks.build("late://?size=2") as tank:
        assert tank == Tank({"price": None, "size": 2})
    with pytest.raises(PluginError, match=r"price in the URL of tank 'late' is a OnlyForCheckers \| None, which a URL"):
        tanks.build("late://?price=2")


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("stel", {}, "no tank is named 'stel' (registered: steel, lead); did you mean 'steel'?"),
        ("zinc", {}, "no tank is named 'zinc' (registered: steel, lead)"),
        ("stel://x", {}, "no tank takes stel:// URLs (registered: steel, lead); did you mean 'steel'?"),
        ("steel://x?sise=3", {}, "tank 'steel' takes no 'sise' in its URL (known: size, share, cold, label); "
                                 "did you mean 'size'?"),
        ("steel://x?url=y", {}, "url of tank 'steel' is given twice; give it once, in the URL or as an option"),
        ("steel://x?size=1&size=2", {}, "size of tank 'steel' is given twice; "
                                        "give it once, in the URL or as an option"),
        ("steel://x?size=1", {"size": 2}, "size of tank 'steel' is given twice; "
                                          "give it once, in the URL or as an option"),
        ("steel://x?size=many", {}, "size in the URL of tank 'steel' must be int, not 'many'"),
        ("steel://x?cold=maybe", {}, "cold in the URL of tank 'steel' must be bool, not 'maybe'"),
        ("steel://x?share=half", {}, "share in the URL of tank 'steel' must be float, not 'half'"),
        ("steel", {"sise": 3}, "tank 'steel' takes no option 'sise' (known: url, size, share, cold, label); "
                               "did you mean 'size'?"),
        ("lead", {}, "tank 'lead' needs url and key; use a URL or pass url=…"),
        ("lead://x", {}, "tank 'lead' needs key; pass key=…"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_with_what_to_do(given: str, options: dict[str, object], message: str) -> None:
    def make_lead(*, url: str, key: str) -> Tank:
        return Tank({"url": url, "key": key})

    tanks = registry()
    tanks("steel", open_tank)
    tanks("lead", make_lead)

    with pytest.raises(PluginError) as caught:
        tanks.build(given, **options)

    assert str(caught.value) == message


async def forgot_the_decorator() -> Tank:
    return Tank({})


async def forgot_to_decorate_the_generator() -> AsyncGenerator[Tank]:
    yield Tank({})


@pytest.mark.parametrize(
    ("name", "factory", "schemes", "message"),
    [
        ("Steel", open_tank, (), "the name of a tank must be made of a-z, 0-9 and -, not 'Steel'"),
        ("steel", open_tank, "st", "schemes must be several names, not the str 'st'; write ('st',)"),
        ("steel", open_tank, ("s t",), "a scheme of tank 'steel' must be made of a-z, 0-9, +, . and -, not 's t'"),
        ("steel", Tank({}), (), "the factory of tank 'steel' must be callable, not Tank(options={}); "
                                "pass the function, not its result"),
        ("steel", forgot_the_decorator, (), "{me}.forgot_the_decorator is async def, and tank 'steel' needs an async "
            "context manager; yield the object and put @asynccontextmanager above it"),
        ("steel", forgot_to_decorate_the_generator, (), "{me}.forgot_to_decorate_the_generator yields and tank 'steel' "
            "needs an async context manager; put @asynccontextmanager above it"),
    ],
)  # fmt: skip
def test_what_cannot_be_registered_is_refused(name: str, factory: Any, schemes: Any, message: str) -> None:
    tanks = registry()

    with pytest.raises(PluginError) as caught:
        tanks(name, factory, schemes=schemes)

    assert str(caught.value) == message.replace("{me}", __name__)
    assert tanks.names() == tanks.schemes() == []


def test_a_factory_that_makes_nothing_or_a_coroutine_is_named() -> None:
    tanks: Registry[Any] = registry()
    tanks("nothing", lambda: None)
    tanks("later", lambda: forgot_the_decorator())  # hides that it is async def

    with pytest.raises(PluginError, match=r"<lambda>\(\) returned None for tank 'nothing'; return an async context"):
        tanks.build("nothing")
    with pytest.raises(PluginError, match=r"<lambda>\(\) returned a coroutine for tank 'later'"):
        tanks.build("later")


def test_a_kind_without_urls_takes_schemes_only_when_they_are_named() -> None:
    tanks = registry(takes_urls=False)

    tanks("steel", open_tank)
    tanks("lead", open_tank, schemes=["pb"])

    assert (tanks.names(), tanks.schemes(), len(tanks)) == (["steel", "lead"], ["pb"], 2)


def test_a_name_or_scheme_registered_twice_by_one_plugin_is_refused() -> None:
    tanks = registry()
    tanks("steel", open_tank)

    with pytest.raises(PluginError, match="plugin 'program' registers tank 'steel' twice; register it once"):
        tanks("steel", open_tank)
    with pytest.raises(PluginError, match="plugin 'program' registers the tank scheme 'steel' twice"):
        tanks("lead", open_tank, schemes=("steel",))
    assert [entry.name for entry in tanks] == ["steel"]


def test_a_failed_registration_of_two_schemes_registers_neither() -> None:
    tanks = registry()
    tanks("steel", open_tank)

    with pytest.raises(PluginError, match="scheme 'steel'"):
        tanks("lead", open_tank, schemes=("pb", "steel"))

    assert (tanks.names(), tanks.schemes()) == (["steel"], ["steel"])
