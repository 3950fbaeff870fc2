"""Hooks, and the registries of what plugins supply by name and by URL.

Set-up hooks hand over factories, once, when a `Plugins` object is made. Event hooks are told about batches and
rarer things, never about items. One deciding hook classifies failures. Only this module knows pluggy, and pluggy
is out of the way before the first item: `Events` calls the functions themselves.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import pluggy

from forebay._errors import PluginError, PluginWarning
from forebay._events import MAX_FAILURES as MAX_FAILURES
from forebay._events import Emitter as Emitter
from forebay._events import Events as Events
from forebay._events import ListenerStatistics as ListenerStatistics
from forebay._plugin import GROUP as GROUP
from forebay._plugin import SPEC_VERSION as SPEC_VERSION
from forebay._plugin import (
    Candidate,
    check_implementation,
    check_marked,
    check_once,
    check_plugin,
    implemented,
    installation,
    installed,
    load,
    named,
)
from forebay._plugin import PluginInfo as PluginInfo
from forebay._registry import DISABLE_VARIABLE as DISABLE_VARIABLE
from forebay._registry import Entry as Entry
from forebay._registry import Factory as Factory
from forebay._registry import Registry as Registry
from forebay._registry import TakenError, check_word, listed, nearest, texts, where
from forebay._summary import Summary
from forebay._types import (
    BatchInfo,
    BreakerInfo,
    Category,
    DeadLettered,
    Failure,
    LimitsInfo,
    PartitionsInfo,
    Pressure,
    RunInfo,
)
from forebay.abc import (
    Breaker,
    CacheTier,
    Controller,
    DeadLetterStore,
    MetricsExporter,
    ShardRouter,
    Sink,
    Source,
    StateStore,
    TracingExporter,
)

if TYPE_CHECKING:
    import argparse
    from importlib.metadata import EntryPoint

Command: TypeAlias = "Callable[[argparse.Namespace], int | None]"
"""Runs a subcommand and returns its exit code; `None` is 0."""

hookspec: Final = pluggy.HookspecMarker("forebay")
"""Marks the declaration of a hook."""
hookimpl: Final = pluggy.HookimplMarker("forebay")
"""Marks a function or method that implements a hook."""


class AddKind(Protocol):
    """What `forebay_add_kinds` is given: `Plugins.add_kind`."""

    def __call__(self, name: str, *, singular: str | None = None, takes_urls: bool = False) -> Registry[Any]:
        """Add a kind; see `Plugins.add_kind`."""
        ...


# --- Set-up hooks ------------------------------------------------------------------------------


@hookspec
def forebay_add_kinds(add: AddKind) -> None:
    """Add kinds of things that plugins can register; called for every plugin before the hooks below."""


@hookspec
def forebay_register_sources(register: Registry[Source[object]]) -> None:
    """Register where items come from."""


@hookspec
def forebay_register_sinks(register: Registry[Sink[Any]]) -> None:
    """Register where items end."""


@hookspec
def forebay_register_cache_tiers(register: Registry[CacheTier]) -> None:
    """Register levels of a cache."""


@hookspec
def forebay_register_breakers(register: Registry[Breaker]) -> None:
    """Register what decides whether a call may go out."""


@hookspec
def forebay_register_dead_letter_stores(register: Registry[DeadLetterStore]) -> None:
    """Register where items are set aside."""


@hookspec
def forebay_register_state_stores(register: Registry[StateStore]) -> None:
    """Register where handlers keep small values by key."""


@hookspec
def forebay_register_spill_stores(register: Registry[object]) -> None:
    """Register where items wait that memory cannot hold."""


@hookspec
def forebay_register_shard_routers(register: Registry[ShardRouter]) -> None:
    """Register what spreads keys over partitions and partitions over members."""


@hookspec
def forebay_register_controllers(register: Registry[Controller]) -> None:
    """Register what decides batch size and concurrency.

    A factory is a `forebay.abc.ControllerFactory`: it is given `bounds`, `goal` and `start`.
    """


@hookspec
def forebay_register_tracing_exporters(register: Registry[TracingExporter]) -> None:
    """Register where finished spans go."""


@hookspec
def forebay_register_metrics_exporters(register: Registry[MetricsExporter]) -> None:
    """Register where readings of metrics go."""


@hookspec
def forebay_register_observers(register: Registry[object]) -> None:
    """Register observers that a run can ask for by name; any object with methods of `forebay.abc.Observer`."""


@hookspec
def forebay_register_codecs(register: Registry[object]) -> None:
    """Register what turns values into bytes and back."""


@hookspec
def forebay_register_cli_commands(register: Registry[Command]) -> None:
    """Register subcommands of `forebay`.

    The factory is given the subcommand's `argparse.ArgumentParser`, adds arguments to it and returns the function
    to run. The first line of the factory's docstring is the help text.
    """


# --- Event hooks -------------------------------------------------------------------------------
# Plain functions, called in the event loop between batches: they must not block, and what they return is ignored.


@hookspec
def forebay_run_started(info: RunInfo) -> None:
    """Called before the first fetch."""


@hookspec
def forebay_batch_done(info: BatchInfo) -> None:
    """Called after each call of a batch handler, well or not; `info.error` says which."""


@hookspec
def forebay_limits_changed(info: LimitsInfo) -> None:
    """Called when a controller moves."""


@hookspec
def forebay_breaker_changed(info: BreakerInfo) -> None:
    """Called when a breaker changes its state."""


@hookspec
def forebay_pressure_changed(info: Pressure) -> None:
    """Called when a resource nears or leaves its limit."""


@hookspec
def forebay_dead_lettered(info: DeadLettered) -> None:
    """Called after dead letters were stored and before their items are settled."""


@hookspec
def forebay_partitions_changed(info: PartitionsInfo) -> None:
    """Called when this member gains or loses partitions."""


@hookspec
def forebay_run_finished(summary: Summary) -> None:
    """Called after the last settlement."""


# --- Deciding hook -----------------------------------------------------------------------------


@hookspec(firstresult=True)
def forebay_classify(failure: Failure) -> Category | None:
    """Return what kind of failure this is, or `None` to leave it to the next plugin and to forebay's own rules.

    The first answer that is not `None` counts. An exception, or an answer that is no `Category`, counts as
    `Category.UNKNOWN`.
    """


_KINDS: Final[Mapping[str, tuple[str, bool]]] = {
    "sources": ("source", True),
    "sinks": ("sink", True),
    "cache_tiers": ("cache tier", True),
    "breakers": ("breaker", False),
    "dead_letter_stores": ("dead-letter store", True),
    "state_stores": ("state store", True),
    "spill_stores": ("spill store", True),
    "shard_routers": ("shard router", False),
    "controllers": ("controller", False),
    "tracing_exporters": ("tracing exporter", False),
    "metrics_exporters": ("metrics exporter", False),
    "observers": ("observer", False),
    "codecs": ("codec", False),
    "cli_commands": ("command", False),
}


class _BuiltIn:
    """What forebay itself supplies, through the hooks that every plugin has."""

    @hookimpl
    def forebay_register_dead_letter_stores(self, register: Registry[DeadLetterStore]) -> None:
        from forebay._dead_letter import open_memory_dead_letters

        register("memory", open_memory_dead_letters)

    @hookimpl
    def forebay_register_controllers(self, register: Registry[Controller]) -> None:
        from forebay._steer import built_in_controllers

        for name, factory in built_in_controllers().items():
            register(name, factory)

    @hookimpl
    def forebay_register_state_stores(self, register: Registry[StateStore]) -> None:
        from forebay._state import open_memory_state

        register("memory", open_memory_state)


def default_plugins() -> Plugins:
    """Return the installed plugins, for runs that were given none; set up once until something is installed."""
    return _default_plugins(installation(), os.environ.get(DISABLE_VARIABLE, ""))


@lru_cache(maxsize=1)
def _default_plugins(installed_in: object, disabled: str) -> Plugins:
    return Plugins()


class Plugins:
    """The plugins of one program or one run, and what they supply.

    Args:
        *plugins: Modules or objects with functions marked `@hookimpl`, or names of installed plugins.
            An object is named by its `name` attribute, else by its class.
        discover: Whether all installed plugins are loaded too (entry-point group `forebay`).
        disable: Installed plugins to leave out, with those in `FOREBAY_DISABLE_PLUGINS`.

    An installed plugin that cannot be used is left out with a `PluginWarning` and is found in `broken`; one
    that was given, or asked for by name, raises.

    Raises:
        PluginError: a plugin cannot be used, or two of them want the same name.
    """

    sources: Registry[Source[object]]
    sinks: Registry[Sink[Any]]
    cache_tiers: Registry[CacheTier]
    breakers: Registry[Breaker]
    dead_letter_stores: Registry[DeadLetterStore]
    state_stores: Registry[StateStore]
    spill_stores: Registry[object]
    shard_routers: Registry[ShardRouter]
    controllers: Registry[Controller]
    tracing_exporters: Registry[TracingExporter]
    metrics_exporters: Registry[MetricsExporter]
    observers: Registry[object]
    codecs: Registry[object]
    cli_commands: Registry[Command]

    def __init__(self, *plugins: object, discover: bool = True, disable: Iterable[str] = ()) -> None:
        self.broken: dict[str, str] = {}
        """Installed plugins that were left out, and why."""
        self.disabled: dict[str, str] = {}
        """Plugins that are disabled, and by what."""
        self._manager = pluggy.PluginManager("forebay")
        self._manager.add_hookspecs(sys.modules[__name__])
        self._kinds: dict[str, Registry[Any]] = {}
        self._found: dict[str, Candidate] = {}
        self._disable(disable)
        for kind, (singular, takes_urls) in _KINDS.items():
            setattr(self, kind, self._new_kind(kind, singular, takes_urls))
        self._admit_all(self._gather(plugins, discover))

    def kind(self, name: str, /) -> Registry[Any]:
        """Return the registry of a kind by its name, those that plugins added included.

        Raises:
            PluginError: there is no such kind.
        """
        if name not in self._kinds:
            raise PluginError(f"no kind is named {name!r} ({listed('known', self._kinds)}){nearest(name, self._kinds)}")
        return self._kinds[name]

    def kinds(self) -> list[str]:
        """Return the names of all kinds, the built-in ones first."""
        return list(self._kinds)

    def add_kind(self, name: str, *, singular: str | None = None, takes_urls: bool = False) -> Registry[Any]:
        """Add a kind: from now on `forebay_register_<name>` is a set-up hook, and `kind(name)` its registry.

        A plugin calls this from `forebay_add_kinds`, so that the order of plugins does not matter. Called later,
        it finds what plugins registered for it under `@hookimpl(optionalhook=True)`.

        Args:
            name: The plural, as in `cache_tiers`.
            singular: What messages call one of them.
            takes_urls: Whether a name is a URL scheme too.
        """
        check_word("the name of a kind", name, "[a-z][a-z0-9_]*", "a-z, 0-9 and _")
        if name in self._kinds:
            raise PluginError(f"there is a kind {name!r} already; choose another name")
        hook = f"forebay_register_{name}"
        waiting = [found for found in self._found.values() if hook in found.hooks]
        for found in waiting:
            check_implementation(found, hook, ("register",))
        self._manager.add_hookspecs(type("Added", (), {hook: staticmethod(_new_spec())}))
        registry = self._new_kind(name, singular or name.removesuffix("s").replace("_", " "), takes_urls)
        for found in waiting:
            self._register(found, registry)
        return registry

    def events(self, observers: Sequence[object] = (), *, strict: bool = False) -> Events:
        """Bind the event hooks and *observers* for one run."""
        return Events(self, observers, strict=strict)

    def registered(self) -> list[PluginInfo]:
        """Return the plugins in use, in order of registration, forebay's own first."""
        return [self._info(found) for found in self._found.values()]

    def implementations(self, hook: str, /) -> list[tuple[str, Callable[[Any], object]]]:
        """Return plugin name and function of all that implement *hook*, in the order to call them.

        The newest plugin comes first, but for `tryfirst` and `trylast`.
        """
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        found = [self._found[impl.plugin_name] for impl in reversed(caller.get_hookimpls())]
        return [(one.name, one.hooks[hook].call) for one in found]

    def _info(self, found: Candidate) -> PluginInfo:
        supplies = {
            kind: [entry.name for entry in registry if entry.plugin == found.name]
            for kind, registry in self._kinds.items()
        }
        return PluginInfo(
            found.name,
            found.distribution,
            found.version,
            sorted(found.hooks),
            {kind: names for kind, names in supplies.items() if names},
        )

    def _new_kind(self, name: str, singular: str, takes_urls: bool) -> Registry[Any]:
        registry = self._kinds[name] = Registry[Any](name, singular, takes_urls=takes_urls, left_out=self.broken)
        return registry

    def _disable(self, disable: Iterable[str]) -> None:
        by_variable = (name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(","))
        self.disabled.update((name, DISABLE_VARIABLE) for name in by_variable if name)
        self.disabled.update((name, "disable=") for name in texts("disable", disable))

    def _gather(self, plugins: Sequence[object], discover: bool) -> list[Candidate]:
        """Return all candidates: forebay's own, those given, those asked for by name, then the installed rest."""
        given = [Candidate("forebay", _BuiltIn(), "forebay")]
        given += [named(plugin) for plugin in plugins if not isinstance(plugin, str)]
        asked = [plugin for plugin in plugins if isinstance(plugin, str)]
        points = installed() if asked or discover else {}
        given += [self._asked_for(name, points) for name in asked]
        for index, found in enumerate(given):
            check_once(found, given[:index])
        if discover:
            rest = [point for name, point in points.items() if name not in asked and name not in self.disabled]
            loaded = [one for point in rest if (one := self._load(point)) is not None]
            given += [one for one in loaded if not any(one.plugin is other.plugin for other in given)]
        return given

    def _asked_for(self, name: str, points: Mapping[str, EntryPoint]) -> Candidate:
        if name in self.disabled:
            raise PluginError(f"plugin {name!r} is asked for and disabled by {self.disabled[name]}; do one of them")
        if name not in points:
            raise PluginError(
                f"no installed plugin is named {name!r} ({listed('installed', points)}){nearest(name, points)}"
            )
        try:
            return load(points[name], required=True)
        except Exception as exc:
            raise PluginError(f"plugin {name!r} cannot be loaded: {type(exc).__name__}: {exc}") from exc

    def _load(self, point: EntryPoint) -> Candidate | None:
        try:
            return load(point, required=False)
        except Exception as exc:  # whatever its import does wrong is its own affair
            self._leave_out(point.name, exc)
            return None

    def _admit_all(self, candidates: Sequence[Candidate]) -> None:
        """Take in the plugins that are fit: first the kinds they add, then the hooks, then what they register."""
        fit = [found for found in candidates if self._try(found, self._add_kinds)]
        fit = [found for found in fit if self._try(found, self._admit)]
        for found in fit:
            self._try(found, self._set_up)

    def _try(self, found: Candidate, step: Callable[[Candidate], None]) -> bool:
        try:
            step(found)
        except TakenError:
            raise
        except Exception as exc:
            self._drop(found)
            if not found.required:
                self._leave_out(found.name, exc)
                return False
            if isinstance(exc, PluginError):
                raise
            raise PluginError(f"plugin {found.name!r} failed while it was set up: {type(exc).__name__}: {exc}") from exc
        return True

    def _add_kinds(self, found: Candidate) -> None:
        check_plugin(found)
        found.hooks.update(implemented(found, self._manager.parse_hookimpl_opts))
        if "forebay_add_kinds" in found.hooks:
            check_implementation(found, "forebay_add_kinds", ("add",))
            found.hooks["forebay_add_kinds"].call(self.add_kind)

    def _admit(self, found: Candidate) -> None:
        if found.name in self._found:
            raise TakenError(
                f"two plugins are named {found.name!r}: {where(self._found[found.name].plugin)} and "
                f"{where(found.plugin)}; give one of them another name"
            )
        specs = self._specs()
        check_marked(found, specs)
        for hook, implementation in found.hooks.items():
            if hook in specs:
                check_implementation(found, hook, specs[hook])
            elif not implementation.options.get("optionalhook"):
                raise PluginError(
                    f"plugin {found.name!r} implements {hook}, and there is no such hook{nearest(hook, specs)}"
                )
        self._manager.register(found.plugin, found.name)
        self._found[found.name] = found

    def _set_up(self, found: Candidate) -> None:
        for registry in self._kinds.values():
            self._register(found, registry)

    def _register(self, found: Candidate, registry: Registry[Any]) -> None:
        implementation = found.hooks.get(f"forebay_register_{registry.kind}")
        if implementation is not None:
            implementation.call(registry.owned_by(found.name, found.distribution, found.version))

    def _specs(self) -> dict[str, tuple[str, ...]]:
        callers: dict[str, pluggy.HookCaller] = vars(self._manager.hook)
        return {name: tuple(caller.spec.argnames) for name, caller in callers.items() if caller.spec is not None}

    def _drop(self, found: Candidate) -> None:
        if self._found.get(found.name) is found:
            del self._found[found.name]
            self._manager.unregister(name=found.name)
            for registry in self._kinds.values():
                registry.forget(found.name)

    def _leave_out(self, name: str, exc: Exception) -> None:
        why = str(exc) if isinstance(exc, PluginError) else f"{type(exc).__name__}: {exc}"
        self.broken[name] = why
        text = f"plugin {name!r} was left out: {why}; mend or uninstall it, or set {DISABLE_VARIABLE}={name}"
        warnings.warn(text, PluginWarning, stacklevel=2)


def _new_spec() -> Callable[[Registry[Any]], None]:
    """Return the declaration of a set-up hook; marked anew, because pluggy keeps what it learns on the function."""

    def spec(register: Registry[Any]) -> None:
        """Register things of a kind that a plugin added."""

    return hookspec(spec)
