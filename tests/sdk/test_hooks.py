"""Hooks and `Plugins`, against real plugins: modules, objects, and packages installed on disk."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import types
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

import forebay.hooks
from forebay._errors import PluginError, PluginWarning
from forebay._types import BatchInfo, DeadLetterFilter
from forebay.hooks import AddKind, Plugins, Registry, hookimpl

DONE = BatchInfo(
    pipeline="p", stage="s", batch_id=1, size=2, done=2, failed=0, dropped=0,
    seconds=0.1, waited=0.0, attempt=1, started_at=0.0,
)  # fmt: skip

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
        "plugin 'mine' implements no hook; put @forebay.hooks.hookimpl above the functions that do",
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
    code = "import sys, forebay; before = set(sys.modules); import forebay.hooks; print(*(set(sys.modules) - before))"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    names = {"importlib.metadata", "forebay_sqlite", "trio", "argparse", "logging", "difflib", "forebay._state"}
    assert "pluggy" in shown.split()
    assert not names & set(shown.split())
