"""Hooks, and the registries of what plugins supply by name and by URL.

Set-up hooks hand over factories, once, when a `Plugins` object is made. Event hooks are told about batches and
rarer things, never about items. One deciding hook classifies failures. Only this module knows pluggy, and pluggy
is out of the way before the first item: `Events` calls the functions themselves.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar, Union, cast, get_args, get_origin

import pluggy
from attrs import define, field, frozen

from forebay._errors import PluginError, PluginWarning
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
    Summary,
)
from forebay.abc import (
    Breaker,
    CacheTier,
    Controller,
    DeadLetterStore,
    MetricsExporter,
    Observer,
    ShardRouter,
    Sink,
    Source,
    StateStore,
    TracingExporter,
)

if TYPE_CHECKING:
    import argparse
    from importlib.metadata import EntryPoint

T = TypeVar("T")

SPEC_VERSION: Final = 1
"""Version of the hooks below; a plugin that needs a newer one says so in `forebay_spec_version`."""

GROUP: Final = "forebay"
"""Entry-point group that installed plugins are found in."""

DISABLE_VARIABLE: Final = "FOREBAY_DISABLE_PLUGINS"
"""Environment variable that names installed plugins to leave out, with commas between."""

MAX_FAILURES: Final = 10
"""A listener that has raised so often in one run is not called again in it."""

Factory: TypeAlias = Callable[..., AbstractAsyncContextManager[T] | T]
"""Its keyword parameters are its options; it returns an async context manager of the object, or the object itself."""

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
    """Register what decides batch size and concurrency."""


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


_EVENTS: Final = (
    "run_started",
    "batch_done",
    "limits_changed",
    "breaker_changed",
    "pressure_changed",
    "dead_lettered",
    "partitions_changed",
    "run_finished",
)

# Kind: what one of them is called, and whether its names are URL schemes too.
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


# --- Registries --------------------------------------------------------------------------------


@frozen
class Entry(Generic[T]):
    """A factory under its name."""

    name: str
    factory: Factory[T]
    schemes: tuple[str, ...]
    """URL schemes that lead to it."""
    plugin: str
    """Name of the plugin that registered it."""
    distribution: str | None = None
    """Installed package that the plugin came from; `None` for one given in code."""
    version: str | None = None
    """Version of that package."""


class Registry(Generic[T]):
    """Factories of one kind, by name and by URL scheme. Iterating gives its entries, in order of registration."""

    def __init__(
        self, kind: str, singular: str, *, takes_urls: bool = False, left_out: Mapping[str, str] | None = None
    ) -> None:
        self.kind: Final = kind
        self.singular: Final = singular
        self.takes_urls: Final = takes_urls
        self._left_out: Mapping[str, str] = {} if left_out is None else left_out
        self._entries: dict[str, Entry[T]] = {}
        self._by_scheme: dict[str, Entry[T]] = {}
        self._owner: tuple[str, str | None, str | None] = ("program", None, None)

    def __call__(self, name: str, factory: Factory[T], /, *, schemes: Iterable[str] = ()) -> None:
        """Register *factory* under *name*, and under *schemes* for URLs.

        Without *schemes*, the name is the scheme if this kind takes URLs.

        Raises:
            PluginError: the name or a scheme is malformed or taken, or *factory* cannot be one.
        """
        known_as = _words("schemes", schemes) or ((name,) if self.takes_urls else ())
        _check_word(f"the name of a {self.singular}", name, "[a-z0-9][a-z0-9-]*", "a-z, 0-9 and -")
        for scheme in known_as:
            _check_word(f"a scheme of {self.singular} {name!r}", scheme, "[a-z0-9][a-z0-9+.-]*", "a-z, 0-9, +, . and -")
        _check_factory(f"{self.singular} {name!r}", factory)
        entry = Entry(name, factory, known_as, *self._owner)
        _check_free(f"{self.singular} {name!r}", self._entries.get(name), entry)
        for scheme in known_as:
            _check_free(f"the {self.singular} scheme {scheme!r}", self._by_scheme.get(scheme), entry)
        self._entries[name] = entry
        self._by_scheme.update(dict.fromkeys(known_as, entry))

    def build(self, name_or_url: str, /, **options: object) -> AbstractAsyncContextManager[T]:
        """Call the factory that *name_or_url* leads to; return an async context manager of what it makes.

        For a URL, the query's parameters become options, converted by the annotations of the factory (`int`,
        `float`, `bool`, `str`), and `url=` is the rest of it, as it was written.

        Raises:
            PluginError: no such name or scheme, or the factory does not take these options.
        """
        entry = self.find(name_or_url)
        what = f"{self.singular} {entry.name!r}"
        if "://" in name_or_url:
            options = _url_options(what, entry.factory, name_or_url, options)
        _check_options(what, entry.factory, options)
        made = entry.factory(**options)
        if made is None or inspect.iscoroutine(made):
            _close(made)
            raise PluginError(
                f"{_where(entry.factory)}() returned {'None' if made is None else 'a coroutine'} for {what}; "
                "return an async context manager or the object itself"
            )
        # An object that is its own context manager is entered too: that is how it says that it must be closed.
        if isinstance(made, AbstractAsyncContextManager):
            return cast("AbstractAsyncContextManager[T]", made)  # isinstance cannot see of what
        return nullcontext(made)

    def find(self, name_or_url: str, /) -> Entry[T]:
        """Return the entry that *name_or_url* leads to.

        Raises:
            PluginError: there is none; the message lists those there are and the nearest.
        """
        scheme, is_url, _ = name_or_url.partition("://")
        table, key = (self._by_scheme, scheme.lower()) if is_url else (self._entries, name_or_url)
        if key in table:
            return table[key]
        missing = f"no {self.singular} takes {scheme}:// URLs" if is_url else f"no {self.singular} is named {key!r}"
        raise PluginError(f"{missing} ({_listed('registered', table)}){self._hint(key)}{_nearest(key, table)}")

    def names(self) -> list[str]:
        """Return the registered names, in order of registration."""
        return list(self._entries)

    def schemes(self) -> list[str]:
        """Return the registered URL schemes, in order of registration."""
        return list(self._by_scheme)

    def owned_by(self, plugin: str, distribution: str | None = None, version: str | None = None) -> Registry[T]:
        """Return this registry as *plugin* sees it: what it registers there is recorded as its own."""
        view = Registry[T](self.kind, self.singular, takes_urls=self.takes_urls, left_out=self._left_out)
        view._entries, view._by_scheme = self._entries, self._by_scheme
        view._owner = (plugin, distribution, version)
        return view

    def forget(self, plugin: str, /) -> None:
        """Remove what *plugin* has registered."""
        for table in (self._entries, self._by_scheme):
            for key in [key for key, entry in table.items() if entry.plugin == plugin]:
                del table[key]

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(tuple(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def _hint(self, key: str) -> str:
        return f"; plugin {key!r} was left out: {self._left_out[key]}" if key in self._left_out else ""


class _TakenError(PluginError):
    """Two plugins want the same name: leaving out either would choose for the user."""


def _check_free(what: str, holder: Entry[Any] | None, new: Entry[Any]) -> None:
    if holder is None:
        return
    if holder.plugin == new.plugin:
        raise PluginError(f"plugin {new.plugin!r} registers {what} twice; register it once")
    installed = next((entry.plugin for entry in (new, holder) if entry.distribution not in (None, "forebay")), None)
    how = "rename one of them" if installed is None else f"uninstall one of them or set {DISABLE_VARIABLE}={installed}"
    both = " and ".join(f"{_where(entry.factory)} (plugin {entry.plugin!r})" for entry in (holder, new))
    raise _TakenError(f"two plugins register {what}: {both}; {how}")


def _check_word(what: str, word: str, pattern: str, allowed: str) -> None:
    if not re.fullmatch(pattern, word):
        raise PluginError(f"{what} must be made of {allowed}, not {word!r}")


def _check_factory(what: str, factory: object) -> None:
    if not callable(factory):
        raise PluginError(f"the factory of {what} must be callable, not {factory!r}; pass the function, not its result")
    if inspect.iscoroutinefunction(factory):
        raise PluginError(
            f"{_where(factory)} is async def, and {what} needs an async context manager; "
            "yield the object and put @asynccontextmanager above it"
        )
    if inspect.isasyncgenfunction(factory) or inspect.isgeneratorfunction(factory):
        raise PluginError(
            f"{_where(factory)} yields and {what} needs an async context manager; put @asynccontextmanager above it"
        )


def _options_of(factory: Callable[..., object]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the parameters of *factory* that can be given by keyword, and whether it takes any others."""
    try:
        found = inspect.signature(factory, eval_str=True)
    except (NameError, AttributeError, TypeError, SyntaxError):
        found = inspect.signature(factory)  # annotations that exist for type checkers only stay text
    except ValueError:
        return {}, True  # some built-in types have no signature to read
    given = found.parameters.values()
    by_keyword = {p.name: p for p in given if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return by_keyword, any(p.kind is p.VAR_KEYWORD for p in given)


def _check_options(what: str, factory: Callable[..., object], options: Mapping[str, object]) -> None:
    known, takes_any = _options_of(factory)
    for name in options:
        if name not in known and not takes_any:
            raise PluginError(f"{what} takes no option {name!r} ({_listed('known', known)}){_nearest(name, known)}")
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in options]
    if missing:
        advice = f"use a URL or pass {missing[0]}=…" if missing[0] == "url" else f"pass {missing[0]}=…"
        raise PluginError(f"{what} needs {' and '.join(missing)}; {advice}")


def _url_options(
    what: str, factory: Callable[..., object], url: str, options: Mapping[str, object]
) -> dict[str, object]:
    """Return *options* with those that *url* carries, and the rest of the URL as `url`."""
    from urllib.parse import parse_qsl

    base, _, query = url.partition("?")
    known, takes_any = _options_of(factory)
    merged = dict(options)
    takes_url = takes_any or "url" in known
    if takes_url:
        merged["url"] = base
    elif not base.endswith("://"):
        raise PluginError(f"{what} takes no address; write {base.partition('://')[0]}:// and nothing behind it")
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in merged:
            raise PluginError(f"{name} of {what} is given twice; give it once, in the URL or as an option")
        by_url = {key: parameter for key, parameter in known.items() if key != "url"}
        if name not in by_url and not takes_any:
            raise PluginError(
                f"{what} takes no {name!r} in its URL ({_listed('known', by_url)}){_nearest(name, by_url)}"
            )
        annotation = by_url[name].annotation if name in by_url else str
        merged[name] = _converted(f"{name} in the URL of {what}", text, annotation)
    return merged


def _boolean(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}[
        text.lower()
    ]


_CONVERTERS: Final[Mapping[str, Callable[[str], object]]] = {
    "int": int,
    "float": float,
    "bool": _boolean,
    "str": str,
    "Literal": str,
    "object": str,
}


def _converted(what: str, text: str, annotation: object) -> object:
    """Return *text* as one of the types that *annotation* names, numbers before text."""
    named = _type_names(annotation)
    possible = [name for name in _CONVERTERS if name in named]
    if not possible:
        raise PluginError(f"{what} is a {' | '.join(named)}, which a URL cannot carry; pass it as an option")
    for name in possible:
        try:
            return _CONVERTERS[name](text)
        except (ValueError, KeyError):
            pass
    raise PluginError(f"{what} must be {' or '.join(possible)}, not {text!r}")


def _type_names(annotation: object) -> list[str]:
    if annotation is inspect.Parameter.empty:
        return ["str"]
    if isinstance(annotation, str):
        return [part.strip().partition("[")[0] for part in annotation.split("|")]
    union = get_origin(annotation) in (Union, types.UnionType)
    parts: tuple[object, ...] = get_args(annotation) if union else (annotation,)
    return [str(getattr(part, "__name__", part)) for part in parts]


def _words(argument: str, words: Iterable[str]) -> tuple[str, ...]:
    if isinstance(words, str):
        raise PluginError(f"{argument} must be several names, not the str {words!r}; write ({words!r},)")
    return tuple(words)


def _listed(word: str, known: Iterable[str]) -> str:
    return f"{word}: {', '.join(known) or 'none'}"


def _nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def _where(thing: object) -> str:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(named, '__module__', '?')}.{getattr(named, '__qualname__', '?')}"


def _close(made: object) -> None:
    if inspect.iscoroutine(made):
        made.close()  # or Python warns that it was never awaited, behind the sentence that says why


# --- Plugins -----------------------------------------------------------------------------------


@frozen
class PluginInfo:
    """A plugin in use."""

    name: str
    distribution: str | None
    """Installed package that it came from; `None` for one given in code."""
    version: str | None
    hooks: Sequence[str]
    """Hooks that it implements."""
    supplies: Mapping[str, Sequence[str]]
    """Kind to the names that it registered."""


@frozen
class _Implementation:
    """A function of a plugin that is marked as a hook."""

    call: Callable[[Any], object]
    """The function, as one of the hook's single argument."""
    function: Callable[..., object]
    options: pluggy.HookimplOpts


@frozen(eq=False)
class _Found:
    """A plugin object and where it came from."""

    name: str
    plugin: object
    distribution: str | None = None
    version: str | None = None
    required: bool = True
    hooks: dict[str, _Implementation] = field(factory=dict[str, _Implementation])
    """Filled when the plugin is looked at for the first time."""


class _BuiltIn:
    """What forebay itself supplies, through the hooks that every plugin has."""

    @hookimpl
    def forebay_register_dead_letter_stores(self, register: Registry[DeadLetterStore]) -> None:
        from forebay._dead_letter import open_memory_dead_letters

        register("memory", open_memory_dead_letters)

    @hookimpl
    def forebay_register_state_stores(self, register: Registry[StateStore]) -> None:
        from forebay._state import open_memory_state

        register("memory", open_memory_state)


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
        self._found: dict[str, _Found] = {}
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
            raise PluginError(
                f"no kind is named {name!r} ({_listed('known', self._kinds)}){_nearest(name, self._kinds)}"
            )
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
        _check_word("the name of a kind", name, "[a-z][a-z0-9_]*", "a-z, 0-9 and _")
        if name in self._kinds:
            raise PluginError(f"there is a kind {name!r} already; choose another name")
        hook = f"forebay_register_{name}"
        waiting = [found for found in self._found.values() if hook in found.hooks]
        for found in waiting:
            _check_implementation(found, hook, ("register",))
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

    def _info(self, found: _Found) -> PluginInfo:
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
        self.disabled.update((name, "disable=") for name in _words("disable", disable))

    def _gather(self, plugins: Sequence[object], discover: bool) -> list[_Found]:
        """Return all candidates: forebay's own, those given, those asked for by name, then the installed rest."""
        given = [_Found("forebay", _BuiltIn(), "forebay")]
        given += [_named(plugin) for plugin in plugins if not isinstance(plugin, str)]
        asked = [plugin for plugin in plugins if isinstance(plugin, str)]
        points = _entry_points() if asked or discover else {}
        given += [self._asked_for(name, points) for name in asked]
        for index, found in enumerate(given):
            _check_once(found, given[:index])
        if discover:
            rest = [point for name, point in points.items() if name not in asked and name not in self.disabled]
            loaded = [one for point in rest if (one := self._load(point)) is not None]
            given += [one for one in loaded if not any(one.plugin is other.plugin for other in given)]
        return given

    def _asked_for(self, name: str, points: Mapping[str, EntryPoint]) -> _Found:
        if name in self.disabled:
            raise PluginError(f"plugin {name!r} is asked for and disabled by {self.disabled[name]}; do one of them")
        if name not in points:
            raise PluginError(
                f"no installed plugin is named {name!r} ({_listed('installed', points)}){_nearest(name, points)}"
            )
        try:
            return _loaded(points[name], required=True)
        except Exception as exc:
            raise PluginError(f"plugin {name!r} cannot be loaded: {type(exc).__name__}: {exc}") from exc

    def _load(self, point: EntryPoint) -> _Found | None:
        try:
            return _loaded(point, required=False)
        except Exception as exc:  # whatever its import does wrong is its own affair
            self._leave_out(point.name, exc)
            return None

    def _admit_all(self, candidates: Sequence[_Found]) -> None:
        """Take in the plugins that are fit: first the kinds they add, then the hooks, then what they register."""
        fit = [found for found in candidates if self._try(found, self._add_kinds)]
        fit = [found for found in fit if self._try(found, self._admit)]
        for found in fit:
            self._try(found, self._set_up)

    def _try(self, found: _Found, step: Callable[[_Found], None]) -> bool:
        try:
            step(found)
        except _TakenError:
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

    def _add_kinds(self, found: _Found) -> None:
        _check_plugin(found)
        found.hooks.update(_implemented(self._manager, found))
        if "forebay_add_kinds" in found.hooks:
            _check_implementation(found, "forebay_add_kinds", ("add",))
            found.hooks["forebay_add_kinds"].call(self.add_kind)

    def _admit(self, found: _Found) -> None:
        if found.name in self._found:
            raise _TakenError(
                f"two plugins are named {found.name!r}: {_where(self._found[found.name].plugin)} and "
                f"{_where(found.plugin)}; give one of them another name"
            )
        specs = self._specs()
        _check_marked(found, specs)
        for hook, implementation in found.hooks.items():
            if hook in specs:
                _check_implementation(found, hook, specs[hook])
            elif not implementation.options.get("optionalhook"):
                raise PluginError(
                    f"plugin {found.name!r} implements {hook}, and there is no such hook{_nearest(hook, specs)}"
                )
        self._manager.register(found.plugin, found.name)
        self._found[found.name] = found

    def _set_up(self, found: _Found) -> None:
        for registry in self._kinds.values():
            self._register(found, registry)

    def _register(self, found: _Found, registry: Registry[Any]) -> None:
        implementation = found.hooks.get(f"forebay_register_{registry.kind}")
        if implementation is not None:
            implementation.call(registry.owned_by(found.name, found.distribution, found.version))

    def _specs(self) -> dict[str, tuple[str, ...]]:
        callers: dict[str, pluggy.HookCaller] = vars(self._manager.hook)
        return {name: tuple(caller.spec.argnames) for name, caller in callers.items() if caller.spec is not None}

    def _drop(self, found: _Found) -> None:
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


def _named(plugin: object) -> _Found:
    name = plugin.__name__ if isinstance(plugin, types.ModuleType) else getattr(plugin, "name", None)
    return _Found(name if isinstance(name, str) and name else _where(plugin), plugin)


def _entry_points() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            both = " and ".join(f"{one.value} of {_package(one)[0]}" for one in (other, point))
            raise _TakenError(f"two installed plugins are named {point.name!r}: {both}; uninstall one of them")
    return found


def _package(point: EntryPoint) -> tuple[str | None, str | None]:
    return (None, None) if point.dist is None else (point.dist.name, point.dist.version)


def _loaded(point: EntryPoint, *, required: bool) -> _Found:
    return _Found(point.name, point.load(), *_package(point), required)


def _check_once(found: _Found, earlier: Iterable[_Found]) -> None:
    if any(other.plugin is found.plugin for other in earlier):
        raise PluginError(f"plugin {found.name!r} is given twice; pass it once")


def _check_plugin(found: _Found) -> None:
    if inspect.isclass(found.plugin):
        raise PluginError(f"plugin {_where(found.plugin)} is a class; pass an instance, {found.plugin.__name__}()")
    needed: object = getattr(found.plugin, "forebay_spec_version", 1)
    if not isinstance(needed, int):
        raise PluginError(f"forebay_spec_version of plugin {found.name!r} must be an int, not {needed!r}")
    if needed > SPEC_VERSION:
        raise PluginError(
            f"plugin {found.name!r} needs version {needed} of the hooks and this forebay has {SPEC_VERSION}; "
            "upgrade forebay or install an older release of the plugin"
        )


def _implemented(manager: pluggy.PluginManager, found: _Found) -> dict[str, _Implementation]:
    """Return what the plugin marks as hooks, by the hook's name."""
    hooks: dict[str, _Implementation] = {}
    for name in dir(found.plugin):
        options = manager.parse_hookimpl_opts(found.plugin, name)
        if options is None:
            continue
        hook = options.get("specname") or name
        if hook in hooks:
            raise PluginError(f"plugin {found.name!r} implements {hook} twice; do both things in one function")
        function: Callable[..., object] = getattr(found.plugin, name)
        hooks[hook] = _Implementation(_of_one_argument(function), function, options)
    if not hooks:
        raise PluginError(
            f"plugin {found.name!r} implements no hook; put @forebay.hookimpl above the functions that do"
        )
    return hooks


def _of_one_argument(function: Callable[..., object]) -> Callable[[Any], object]:
    if inspect.signature(function).parameters:
        return function
    return lambda _: function()


def _check_marked(found: _Found, specs: Iterable[str]) -> None:
    for hook in specs:
        unmarked = getattr(found.plugin, hook, None)
        if hook not in found.hooks and callable(unmarked) and not hasattr(unmarked, "forebay_spec"):
            raise PluginError(f"{hook} of plugin {found.name!r} is not marked; put @forebay.hookimpl above it")


def _check_implementation(found: _Found, hook: str, arguments: tuple[str, ...]) -> None:
    what = f"{hook} of plugin {found.name!r}"
    function, options = found.hooks[hook].function, found.hooks[hook].options
    if options.get("wrapper") or options.get("hookwrapper"):
        raise PluginError(
            f"{what} is a wrapper, and forebay calls each implementation by itself; "
            "use tryfirst=True or trylast=True for the order"
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise PluginError(f"{what} is async def and would never be awaited; make it a plain def")
    if inspect.isgeneratorfunction(function):
        raise PluginError(f"{what} has a yield, so calling it would do nothing; return instead")
    parameters = inspect.signature(function).parameters.values()
    if any(p.name not in arguments or p.kind is p.KEYWORD_ONLY for p in parameters):
        raise PluginError(
            f"{what} must have the parameters ({', '.join(arguments)}), not {_text_of_parameters(parameters)}"
        )


def _text_of_parameters(parameters: Iterable[inspect.Parameter]) -> str:
    return str(inspect.Signature([p.replace(annotation=p.empty) for p in parameters]))


# --- Events ------------------------------------------------------------------------------------


@frozen
class ListenerStatistics:
    """What one listener to one event cost."""

    listener: str
    """Plugin, or class of the observer."""
    event: str
    calls: int
    errors: int
    seconds: float
    """Time spent in it."""
    disabled: bool
    """Whether it failed so often that it is not called any more."""


@define(eq=False)
class _Listener:
    name: str
    event: str
    call: Callable[[Any], object]
    calls: int = 0
    errors: int = 0
    seconds: float = 0.0
    disabled: bool = False


class Emitter(Generic[T]):
    """Calls all who listen to one event."""

    __slots__ = ("_listeners", "_strict")

    def __init__(self, listeners: Sequence[_Listener], *, strict: bool) -> None:
        self._listeners = tuple(listeners)
        self._strict = strict

    def __call__(self, info: T, /) -> None:
        """Tell every listener; what one raises is counted and logged, and reaches nobody."""
        for listener in self._listeners:
            started = perf_counter()
            try:
                answer = listener.call(info)
                if answer is not None:
                    _refuse_coroutine(answer)
            except Exception as exc:
                self._failed(listener, exc)
            listener.calls += 1
            listener.seconds += perf_counter() - started

    def _failed(self, listener: _Listener, exc: Exception) -> None:
        _count_failure(listener, exc, strict=self._strict)
        if listener.errors >= MAX_FAILURES:
            listener.disabled = True
            self._listeners = tuple(other for other in self._listeners if other is not listener)
            # Logged, not warned: a program that turns warnings into exceptions would get one in its batch.
            _log(
                f"{listener.name} failed {listener.errors} times in {listener.event} and is called no more in this run"
            )


class Events:
    """Who listens to what in one run. `None` where nobody does, so that asking costs next to nothing.

        if events.batch_done is not None:
            events.batch_done(BatchInfo(...))

    Args:
        plugins: Their event hooks are called first, in pluggy's order; `None` for none.
        observers: Objects with some of the methods of `forebay.abc.Observer`, called in this order.
        strict: Whether a listener's exception is raised where it happens; for tests.

    Raises:
        TypeError: an observer has no method that forebay calls, or one that it cannot call.
    """

    run_started: Emitter[RunInfo] | None
    batch_done: Emitter[BatchInfo] | None
    limits_changed: Emitter[LimitsInfo] | None
    breaker_changed: Emitter[BreakerInfo] | None
    pressure_changed: Emitter[Pressure] | None
    dead_lettered: Emitter[DeadLettered] | None
    partitions_changed: Emitter[PartitionsInfo] | None
    run_finished: Emitter[Summary] | None

    def __init__(self, plugins: Plugins | None, observers: Sequence[object] = (), *, strict: bool = False) -> None:
        self._strict = strict
        self._listeners: list[_Listener] = []
        methods = [(_where(observer), _methods_of(observer)) for observer in observers]
        for event in _EVENTS:
            listeners = _of_plugins(plugins, event)
            listeners += [_Listener(name, event, found[event]) for name, found in methods if event in found]
            setattr(self, event, Emitter[Any](listeners, strict=strict) if listeners else None)
            self._listeners += listeners
        self._deciders = _of_plugins(plugins, "classify")

    @property
    def listener_errors(self) -> int:
        """Exceptions that listeners have raised so far, those of `forebay_classify` included."""
        return sum(listener.errors for listener in (*self._listeners, *self._deciders))

    def classify(self, failure: Failure, /) -> Category | None:
        """Return the first plugin's answer, `None` when none has one, and UNKNOWN when one failed."""
        for decider in self._deciders:
            decider.calls += 1
            try:
                answer = _category(decider.call(failure))
            except Exception as exc:
                _count_failure(decider, exc, strict=self._strict)
                return Category.UNKNOWN
            if answer is not None:
                return answer
        return None

    def statistics(self) -> list[ListenerStatistics]:
        """Return what each listener to each event has cost so far."""
        return [
            ListenerStatistics(one.name, one.event, one.calls, one.errors, one.seconds, one.disabled)
            for one in (*self._listeners, *self._deciders)
        ]


def _of_plugins(plugins: Plugins | None, event: str) -> list[_Listener]:
    found = [] if plugins is None else plugins.implementations(f"forebay_{event}")
    return [_Listener(f"plugin {name!r}", event, call) for name, call in found]


def _methods_of(observer: object) -> dict[str, Callable[[Any], object]]:
    """Return the event methods of *observer*, without those that `Observer` gave it to do nothing."""
    if inspect.isclass(observer):
        raise TypeError(f"observer {_where(observer)} is a class; pass an instance, {observer.__name__}()")
    methods = {event: method for event in _EVENTS if callable(method := getattr(observer, event, None))}
    _check_misspelt(observer, methods)
    if not methods:
        raise TypeError(f"observer {observer!r} has none of the methods that forebay calls ({', '.join(_EVENTS)})")
    for event, method in methods.items():
        if inspect.iscoroutinefunction(method):
            raise TypeError(
                f"{event} of observer {_where(observer)} is async def and would never be awaited; make it a plain def"
            )
    return {event: method for event, method in methods.items() if not _is_default(event, method)}


def _is_default(event: str, method: object) -> bool:
    return getattr(method, "__func__", None) is getattr(Observer, event)


def _check_misspelt(observer: object, methods: Mapping[str, object]) -> None:
    # An Observer has every method: those that it did not override are the ones that a misspelt name may have meant.
    absent = [event for event in _EVENTS if event not in methods or _is_default(event, methods[event])]
    words = {word for event in absent for word in event.split("_")}
    for name in dir(observer):
        # Comparing costs; only what shares a word with an event can be one misspelt.
        if name[0] == "_" or name in _EVENTS or words.isdisjoint(name.split("_")):
            continue
        near = _nearest(name, absent, 0.85)
        if near and callable(getattr(observer, name)):
            raise TypeError(f"observer {_where(observer)} has a method {name}, which forebay never calls{near}")


def _refuse_coroutine(answer: object) -> None:
    if inspect.iscoroutine(answer):
        _close(answer)
        raise TypeError("it returned a coroutine, which nobody awaits; make it a plain function")


def _category(answer: object) -> Category | None:
    if answer is None or isinstance(answer, Category):
        return answer
    _refuse_coroutine(answer)
    raise TypeError(f"it returned {answer!r}; return a Category or None")


def _count_failure(listener: _Listener, exc: Exception, *, strict: bool) -> None:
    if strict:
        raise exc
    listener.errors += 1
    if listener.errors == 1:
        _log(f"{listener.name} failed in {listener.event}; further failures are only counted", exc)


def _log(text: str, exc: Exception | None = None) -> None:
    import logging

    logging.getLogger("forebay").warning(text, exc_info=exc)
