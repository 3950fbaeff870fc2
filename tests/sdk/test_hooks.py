"""Hooks, registries and events, against real plugins: modules, objects, and packages installed on disk."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import textwrap
import types
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

import pytest
from attrs import frozen

import forebay.hooks
from forebay._errors import PluginError, PluginWarning
from forebay._types import BatchInfo, Category, DeadLetterFilter, Failure, Pressure
from forebay.abc import Observer
from forebay.hooks import AddKind, Events, Plugins, Registry, hookimpl

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForCheckers

DONE = BatchInfo(
    pipeline="p", stage="s", batch_id=1, size=2, done=2, failed=0, dropped=0,
    seconds=0.1, waited=0.0, attempt=1, started_at=0.0,
)  # fmt: skip
FAILURE = Failure(error=OSError("gone"), stage="s", source="x", attempt=1)

Install = Callable[..., None]


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


def register_mine(register: Registry[Tank]) -> None:
    register("mine", open_tank)


def register_steel(register: Registry[Tank]) -> None:
    register("steel", open_tank)


def plugin(hook: str, function: Callable[..., object], *, name: str = "mine", **options: Any) -> types.ModuleType:
    """Return a module with one hook implementation in it."""
    assert isinstance(function, types.FunctionType)
    # A copy: the mark is kept on the function, and these tests mark one function in several ways.
    copy = types.FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    module = types.ModuleType(name)
    setattr(module, hook, hookimpl(**options)(copy))
    return module


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with an entry point into a folder on the path, without the plugins of this environment."""
    from importlib.metadata import entry_points

    monkeypatch.setenv("FOREBAY_DISABLE_PLUGINS", ",".join(point.name for point in entry_points(group="forebay")))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def install(name: str, source: str, *, package: str | None = None, target: str | None = None) -> None:
        package = package or f"pkg-{name}"
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[forebay]\n{name} = {target or module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()

    return install


TANK_PLUGIN = """
    from contextlib import asynccontextmanager
    from forebay.hooks import hookimpl

    @asynccontextmanager
    async def open_it(*, url=""):
        yield url

    @hookimpl
    def forebay_register_sinks(register):
        register("{name}", open_it)
"""


# --- Registries --------------------------------------------------------------------------------


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


# --- Plugins given in code ---------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_built_in_stores_are_registered_under_memory() -> None:
    plugins = Plugins(discover=False)

    async with plugins.dead_letter_stores.build("memory") as letters, plugins.state_stores.build("memory://") as state:
        assert list(await letters.find(DeadLetterFilter(), limit=1)) == []
        assert list(await state.get_many(["a"])) == [None]


@pytest.mark.anyio
async def test_a_module_registers_its_factory() -> None:
    module = plugin("forebay_register_sinks", register_mine)
    plugins = Plugins(module, discover=False)

    async with plugins.sinks.build("mine://x") as sink:
        assert isinstance(sink, Tank)


def test_an_object_is_named_by_its_name_attribute_else_by_its_class() -> None:
    class Listener:
        @hookimpl
        def forebay_batch_done(self, info: BatchInfo) -> None: ...

    named = Listener()
    named.name = "audit"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]

    names = [info.name for info in Plugins(Listener(), named, discover=False).registered()]

    assert names == ["forebay", f"{__name__}.{Listener.__qualname__}", "audit"]


def test_a_plugin_says_what_it_implements_and_supplies() -> None:
    module = plugin("forebay_register_sinks", register_mine)

    info = Plugins(module, discover=False).registered()[1]

    assert (info.name, info.distribution, info.version) == ("mine", None, None)
    assert (list(info.hooks), info.supplies) == (["forebay_register_sinks"], {"sinks": ["mine"]})


def test_an_implementation_may_leave_out_the_argument() -> None:
    calls: list[str] = []
    module = plugin("forebay_batch_done", lambda: calls.append("done"))
    events = Plugins(module, discover=False).events()

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert calls == ["done"]


def test_tryfirst_and_trylast_decide_the_order() -> None:
    calls: list[str] = []
    modules = [
        plugin("forebay_batch_done", _append(calls, name), name=name, **options)
        for name, options in [("last", {"trylast": True}), ("first", {"tryfirst": True}), ("middle", {})]
    ]
    events = Plugins(*modules, discover=False).events()

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert calls == ["first", "middle", "last"]


def _append(calls: list[str], name: str) -> Callable[[Any], None]:
    def hook(info: object) -> None:
        calls.append(name)

    return hook


async def hook_that_is_async(info: object) -> None: ...


def hook_that_yields(info: object) -> Any:
    yield


def hook_with_a_wrong_name(inf: object) -> None: ...


def hook_with_a_keyword(*, info: object) -> None: ...


def good_hook(info: object) -> None: ...


TRAPS = [
    (
        plugin("forebay_batch_don", good_hook),
        "plugin 'mine' implements forebay_batch_don, and there is no such hook; did you mean 'forebay_batch_done'?",
    ),
    (
        plugin("forebay_batch_done", hook_that_is_async),
        "forebay_batch_done of plugin 'mine' is async def and would never be awaited; make it a plain def",
    ),
    (
        plugin("forebay_batch_done", hook_that_yields),
        "forebay_batch_done of plugin 'mine' has a yield, so calling it would do nothing; return instead",
    ),
    (
        plugin("forebay_batch_done", hook_that_yields, wrapper=True),
        "forebay_batch_done of plugin 'mine' is a wrapper, and forebay calls each implementation by itself; "
        "use tryfirst=True or trylast=True for the order",
    ),
    (
        plugin("forebay_batch_done", hook_with_a_wrong_name),
        "forebay_batch_done of plugin 'mine' must have the parameters (info), not (inf)",
    ),
    (
        plugin("forebay_batch_done", hook_with_a_keyword),
        "forebay_batch_done of plugin 'mine' must have the parameters (info), not (*, info)",
    ),
    (
        plugin("forebay_add_kinds", good_hook),
        "forebay_add_kinds of plugin 'mine' must have the parameters (add), not (info)",
    ),
    (
        types.ModuleType("mine"),
        "plugin 'mine' implements no hook; put @forebay.hookimpl above the functions that do",
    ),
    (
        Tank,
        f"plugin {__name__}.Tank is a class; pass an instance, Tank()",
    ),
]


@pytest.mark.parametrize(("trap", "message"), TRAPS)
def test_a_plugin_that_would_be_silent_is_refused_with_what_to_do(trap: object, message: str) -> None:
    with pytest.raises(PluginError) as caught:
        Plugins(trap, discover=False)

    assert str(caught.value) == message


def test_a_hook_without_its_mark_is_refused() -> None:
    module = plugin("forebay_batch_done", good_hook)
    module.forebay_run_started = lambda info: None  # type: ignore[attr-defined]  # pyright: ignore

    with pytest.raises(PluginError, match="forebay_run_started of plugin 'mine' is not marked; put @"):
        Plugins(module, discover=False)


def test_an_imported_declaration_is_not_taken_for_a_hook_without_its_mark() -> None:
    module = plugin("forebay_batch_done", good_hook)
    module.forebay_run_started = forebay.hooks.forebay_run_started  # type: ignore[attr-defined]  # pyright: ignore

    assert [info.name for info in Plugins(module, discover=False).registered()] == ["forebay", "mine"]


def test_two_functions_for_one_hook_are_refused() -> None:
    module = plugin("forebay_batch_done", good_hook)
    module.other = hookimpl(specname="forebay_batch_done")(lambda info: None)  # type: ignore[attr-defined]

    with pytest.raises(PluginError, match="plugin 'mine' implements forebay_batch_done twice; do both things in one"):
        Plugins(module, discover=False)


def test_a_hook_may_have_another_name_with_specname() -> None:
    module = plugin("on_done", good_hook, specname="forebay_batch_done")

    assert Plugins(module, discover=False).events().batch_done is not None


def test_an_optional_hook_that_does_not_exist_is_passed_over() -> None:
    module = plugin("forebay_from_the_future", good_hook, optionalhook=True)

    assert [info.name for info in Plugins(module, discover=False).registered()] == ["forebay", "mine"]


def test_the_same_plugin_twice_is_refused() -> None:
    module = plugin("forebay_batch_done", good_hook)

    with pytest.raises(PluginError, match="plugin 'mine' is given twice; pass it once"):
        Plugins(module, module, discover=False)


def test_two_plugins_of_one_name_are_refused() -> None:
    first, second = plugin("forebay_batch_done", good_hook), plugin("forebay_batch_done", good_hook)

    with pytest.raises(PluginError, match=r"two plugins are named 'mine': .*; give one of them another name"):
        Plugins(first, second, discover=False)


def test_a_name_that_two_plugins_register_is_refused_with_both_factories() -> None:
    modules = [plugin("forebay_register_sinks", register_steel, name=name) for name in "ab"]

    with pytest.raises(PluginError) as caught:
        Plugins(*modules, discover=False)

    assert str(caught.value) == (
        f"two plugins register sink 'steel': {__name__}.open_tank (plugin 'a') and {__name__}.open_tank (plugin 'b'); "
        "rename one of them"
    )


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        (2, "plugin 'mine' needs version 2 of the hooks and this forebay has 1; upgrade forebay or install an older"),
        ("1", "forebay_spec_version of plugin 'mine' must be an int, not '1'"),
    ],
)
def test_a_plugin_for_newer_hooks_is_refused(needed: object, message: str) -> None:
    module = plugin("forebay_batch_done", good_hook)
    module.forebay_spec_version = needed  # type: ignore[attr-defined]  # pyright: ignore

    with pytest.raises(PluginError, match=message):
        Plugins(module, discover=False)


def test_a_plugin_that_fails_while_it_is_set_up_is_named_with_its_exception_behind_it() -> None:
    def hook(register: object) -> None:
        raise RuntimeError("no licence")

    with pytest.raises(
        PluginError, match="plugin 'mine' failed while it was set up: RuntimeError: no licence"
    ) as caught:
        Plugins(plugin("forebay_register_sinks", hook), discover=False)

    assert isinstance(caught.value.__cause__, RuntimeError)


# --- Kinds -------------------------------------------------------------------------------------


def add_alarms(add: AddKind) -> None:
    add("alarms", takes_urls=True)


def register_bell(register: Registry[Tank]) -> None:
    register("bell", open_tank)


ADDS = plugin("forebay_add_kinds", add_alarms, name="adds")
USES = plugin("forebay_register_alarms", register_bell, name="uses")
OPTIONAL = plugin("forebay_register_alarms", register_bell, name="optional", optionalhook=True)


@pytest.mark.parametrize("modules", [(ADDS, USES), (USES, ADDS)])
def test_a_plugin_adds_a_kind_whatever_the_order(modules: tuple[types.ModuleType, ...]) -> None:
    alarms = Plugins(*modules, discover=False).kind("alarms")

    assert (alarms.names(), alarms.schemes(), alarms.singular) == (["bell"], ["bell"], "alarm")


def test_a_program_adds_a_kind_and_finds_what_plugins_had_for_it() -> None:
    plugins = Plugins(OPTIONAL, discover=False)

    alarms = plugins.add_kind("alarms", singular="loud alarm")

    assert (alarms.names(), alarms.schemes(), alarms.singular) == (["bell"], [], "loud alarm")
    assert plugins.kinds()[-1] == "alarms"


def test_a_kind_is_found_by_name_and_a_wrong_name_is_refused() -> None:
    plugins = Plugins(discover=False)

    assert plugins.kind("sinks") is plugins.sinks
    with pytest.raises(PluginError, match=r"no kind is named 'sink' \(known: sources, .*\); did you mean 'sinks'\?"):
        plugins.kind("sink")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sinks", "there is a kind 'sinks' already; choose another name"),
        ("My-Kind", "the name of a kind must be made of a-z, 0-9 and _, not 'My-Kind'"),
    ],
)
def test_a_kind_that_cannot_be_added_is_refused(name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        Plugins(discover=False).add_kind(name)


def test_a_wrong_implementation_for_a_late_kind_is_refused_when_the_kind_comes() -> None:
    plugins = Plugins(plugin("forebay_register_alarms", good_hook, optionalhook=True), discover=False)

    with pytest.raises(PluginError, match=r"must have the parameters \(register\), not \(info\)"):
        plugins.add_kind("alarms")


# --- Installed plugins -------------------------------------------------------------------------


def test_an_installed_plugin_is_found_with_its_package_and_version(install: Install) -> None:
    install("steel", TANK_PLUGIN.format(name="steel"))

    plugins = Plugins()

    entry = plugins.sinks.find("steel")
    assert (entry.plugin, entry.distribution, entry.version) == ("steel", "pkg-steel", "1.2")


def test_without_discovery_only_what_is_asked_for_by_name_is_loaded(install: Install) -> None:
    install("steel", TANK_PLUGIN.format(name="steel"))
    install("lead", TANK_PLUGIN.format(name="lead"))

    assert Plugins(discover=False).sinks.names() == []
    assert Plugins("lead", discover=False).sinks.names() == ["lead"]
    assert sorted(Plugins("lead").sinks.names()) == ["lead", "steel"]


def test_a_plugin_given_in_code_and_installed_is_registered_once(install: Install) -> None:
    install("steel", TANK_PLUGIN.format(name="steel"))
    module = importlib.import_module("pkg_steel")

    plugins = Plugins(module)

    assert [info.name for info in plugins.registered()] == ["forebay", "pkg_steel"]


def test_a_broken_installed_plugin_is_left_out_with_a_warning(install: Install) -> None:
    install("steel", "import no_such_client")

    with pytest.warns(PluginWarning, match="plugin 'steel' was left out: ModuleNotFoundError: No module named"):
        plugins = Plugins()

    assert plugins.broken == {"steel": "ModuleNotFoundError: No module named 'no_such_client'"}
    with pytest.raises(PluginError, match=r"no sink is named 'steel' .*; plugin 'steel' was left out: ModuleNotFound"):
        plugins.sinks.find("steel")


def test_an_installed_plugin_with_a_misspelt_hook_is_left_out_whole(install: Install) -> None:
    install("steel", TANK_PLUGIN.format(name="steel") + "\n    @hookimpl\n    def forebay_batch_don(info): ...\n")

    with pytest.warns(PluginWarning, match="did you mean 'forebay_batch_done'"):
        plugins = Plugins()

    assert plugins.sinks.names() == []


def test_an_installed_plugin_that_fails_halfway_leaves_nothing_behind(install: Install) -> None:
    broken = "\n    @hookimpl\n    def forebay_register_state_stores(register): raise RuntimeError('no')\n"
    install("steel", TANK_PLUGIN.format(name="steel") + broken)

    with pytest.warns(PluginWarning, match="plugin 'steel' was left out: RuntimeError: no"):
        plugins = Plugins()

    assert plugins.sinks.names() == plugins.sinks.schemes() == []
    assert [info.name for info in plugins.registered()] == ["forebay"]


def test_a_broken_plugin_that_is_asked_for_raises(install: Install) -> None:
    install("steel", "import no_such_client")

    with pytest.raises(PluginError, match="plugin 'steel' cannot be loaded: ModuleNotFoundError: No module named"):
        Plugins("steel", discover=False)


def test_a_plugin_that_is_asked_for_and_not_installed_raises(install: Install) -> None:
    install("steel", TANK_PLUGIN.format(name="steel"))

    with pytest.raises(PluginError, match=r"no installed plugin is named 'steal' \(.*\); did you mean 'steel'\?"):
        Plugins("steal", discover=False)


def test_a_disabled_plugin_is_not_even_imported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("steel", "import no_such_client")
    install("lead", "import no_such_client")
    monkeypatch.setenv("FOREBAY_DISABLE_PLUGINS", "steel, sqlite")

    plugins = Plugins(disable=["lead"])

    assert plugins.disabled == {
        "steel": "FOREBAY_DISABLE_PLUGINS",
        "sqlite": "FOREBAY_DISABLE_PLUGINS",
        "lead": "disable=",
    }
    with pytest.raises(PluginError, match="plugin 'lead' is asked for and disabled by disable=; do one of them"):
        Plugins("lead", disable=["lead"])


def test_a_single_text_for_disable_is_refused() -> None:
    with pytest.raises(PluginError, match=r"disable must be several names, not the str 'lead'; write \('lead',\)"):
        Plugins(discover=False, disable="lead")


def test_two_installed_plugins_that_supply_one_name_stop_the_program(install: Install) -> None:
    install("steel", TANK_PLUGIN.format(name="tank"))
    install("lead", TANK_PLUGIN.format(name="tank"))

    with pytest.raises(PluginError) as caught:
        Plugins()

    assert "two plugins register sink 'tank': " in str(caught.value)
    assert "pkg_steel.open_it (plugin 'steel')" in str(caught.value)
    assert "; uninstall one of them or set FOREBAY_DISABLE_PLUGINS=" in str(caught.value)


def test_two_packages_that_name_their_plugin_alike_stop_the_program(install: Install) -> None:
    install("steel", TANK_PLUGIN.format(name="a"), package="pkg-one")
    install("steel", TANK_PLUGIN.format(name="b"), package="pkg-two")

    with pytest.raises(PluginError, match=r"two installed plugins are named 'steel': .*; uninstall one of them"):
        Plugins()


def test_importing_the_module_reads_no_entry_points_and_no_plugin() -> None:
    code = "import sys, forebay.hooks; print([m for m in sys.modules if m in {names}])"
    names = ["importlib.metadata", "forebay_sqlite", "trio", "argparse", "logging", "difflib", "forebay._state"]

    shown = subprocess.run(
        [sys.executable, "-c", code.format(names=names)], capture_output=True, text=True, check=True
    ).stdout

    assert shown.strip() == "[]"


# --- Events ------------------------------------------------------------------------------------


class Recorder:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def batch_done(self, info: BatchInfo) -> None:
        self.seen.append(info)


class Failing:
    def batch_done(self, info: BatchInfo) -> None:
        raise RuntimeError("the disk of the log is full")


def test_an_event_that_nobody_listens_to_is_none() -> None:
    events = Plugins(discover=False).events()

    assert events.batch_done is None
    assert events.run_finished is None
    assert events.statistics() == []


def test_hooks_and_observers_are_told_hooks_first() -> None:
    calls: list[str] = []

    class Second:
        def batch_done(self, info: BatchInfo) -> None:
            calls.append("observer")

    events = Plugins(plugin("forebay_batch_done", _append(calls, "hook")), discover=False).events([Second()])

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert calls == ["hook", "observer"]


def test_events_work_without_plugins() -> None:
    recorder = Recorder()
    events = Events(None, [recorder])

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert recorder.seen == [DONE]
    assert [(one.listener, one.event, one.calls, one.errors) for one in events.statistics()] == [
        (f"{__name__}.Recorder", "batch_done", 1, 0)
    ]


def test_a_method_that_an_observer_did_not_override_costs_nothing() -> None:
    class Partly(Observer):
        def pressure_changed(self, info: Pressure, /) -> None: ...

    events = Events(None, [Partly()])

    assert events.batch_done is None
    assert events.pressure_changed is not None


def test_an_exception_reaches_neither_the_batch_nor_the_next_listener(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    events = Events(None, [Failing(), recorder])

    assert events.batch_done is not None
    events.batch_done(DONE)
    events.batch_done(DONE)

    assert recorder.seen == [DONE, DONE]
    assert events.listener_errors == 2
    assert [(record.name, record.message) for record in caplog.records] == [
        ("forebay", f"{__name__}.Failing failed in batch_done; further failures are only counted")
    ]
    assert "the disk of the log is full" in caplog.text


def test_a_listener_that_failed_ten_times_is_called_no_more(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    events = Events(None, [Failing(), recorder])

    assert events.batch_done is not None
    for _ in range(12):
        events.batch_done(DONE)

    failing, recording = events.statistics()
    assert (failing.calls, failing.errors, failing.disabled) == (10, 10, True)
    assert (recording.calls, recording.errors, recording.disabled) == (12, 0, False)
    assert "Failing failed 10 times in batch_done and is called no more in this run" in caplog.text


def test_strict_events_raise_what_a_listener_raises() -> None:
    events = Events(None, [Failing()], strict=True)

    assert events.batch_done is not None
    with pytest.raises(RuntimeError, match="the disk of the log is full"):
        events.batch_done(DONE)


def test_a_listener_that_returns_a_coroutine_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    def hook(info: object) -> object:
        return hook_that_is_async(info)

    events = Plugins(plugin("forebay_batch_done", hook), discover=False).events()

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert events.listener_errors == 1
    assert "it returned a coroutine, which nobody awaits; make it a plain function" in caplog.text


def test_what_a_listener_returns_is_ignored() -> None:
    events = Plugins(plugin("forebay_batch_done", _answer(7)), discover=False).events()

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert events.listener_errors == 0


def test_time_spent_in_a_listener_is_counted() -> None:
    events = Events(None, [Recorder()])

    assert events.batch_done is not None
    events.batch_done(DONE)

    assert events.statistics()[0].seconds > 0


class Misspelt:
    def batch_don(self, info: BatchInfo) -> None: ...


class MisspeltBesideAnother(Observer):
    def run_finish(self, info: object) -> None: ...

    def batch_done(self, info: BatchInfo, /) -> None: ...


class Async:
    async def batch_done(self, info: BatchInfo) -> None: ...


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        (Misspelt(), "observer {me}.Misspelt has a method batch_don, which forebay never calls; "
                     "did you mean 'batch_done'?"),
        (MisspeltBesideAnother(), "observer {me}.MisspeltBesideAnother has a method run_finish, "
                                  "which forebay never calls; did you mean 'run_finished'?"),
        (7, "observer 7 has none of the methods that forebay calls (run_started, batch_done, limits_changed, "
            "breaker_changed, pressure_changed, dead_lettered, partitions_changed, run_finished)"),
        (Recorder, "observer {me}.Recorder is a class; pass an instance, Recorder()"),
        (Async(), "batch_done of observer {me}.Async is async def and would never be awaited; make it a plain def"),
    ],
)  # fmt: skip
def test_an_observer_that_would_hear_nothing_is_refused(observer: object, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        Events(None, [observer])

    assert str(caught.value) == message.replace("{me}", __name__)


def test_an_observer_may_have_other_methods_that_sound_alike() -> None:
    class Counting(Recorder):
        batch_duration = 3
        run_start = 0.0

        def batches_done(self) -> int:
            return len(self.seen)

    assert Events(None, [Counting()]).batch_done is not None


# --- Deciding ----------------------------------------------------------------------------------


def test_nobody_has_an_opinion_on_a_failure() -> None:
    assert Events(None).classify(FAILURE) is None


def test_the_first_answer_counts() -> None:
    modules = [
        plugin("forebay_classify", _answer(answer), name=name)
        for name, answer in [("c", Category.POISON), ("b", Category.TRANSIENT), ("a", None)]
    ]

    assert Plugins(*modules, discover=False).events().classify(FAILURE) is Category.TRANSIENT


def _answer(answer: object) -> Callable[[], object]:
    def hook() -> object:
        return answer

    return hook


def test_no_answer_at_all_leaves_the_failure_to_forebay() -> None:
    assert Plugins(plugin("forebay_classify", _answer(None)), discover=False).events().classify(FAILURE) is None


def test_a_decision_that_fails_or_is_no_category_counts_as_unknown(caplog: pytest.LogCaptureFixture) -> None:
    def raising(failure: Failure) -> Category:
        raise RuntimeError("no idea")

    raised = Plugins(plugin("forebay_classify", raising), discover=False).events()
    wrong = Plugins(plugin("forebay_classify", _answer("transient")), discover=False).events()

    with caplog.at_level(logging.WARNING, "forebay"):
        answers = [raised.classify(FAILURE), wrong.classify(FAILURE)]

    assert answers == [Category.UNKNOWN, Category.UNKNOWN]
    assert (raised.listener_errors, wrong.listener_errors) == (1, 1)
    assert "no idea" in caplog.text
    assert "it returned 'transient'; return a Category or None" in caplog.text


def test_a_strict_decision_raises() -> None:
    events = Plugins(plugin("forebay_classify", _answer(3)), discover=False).events(strict=True)

    with pytest.raises(TypeError, match="it returned 3; return a Category or None"):
        events.classify(FAILURE)
