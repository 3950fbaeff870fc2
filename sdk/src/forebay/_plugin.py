"""One plugin: where it came from, what it implements, and whether it can be used."""

from __future__ import annotations

import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from forebay._errors import PluginError
from forebay._registry import TakenError, where

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

SPEC_VERSION: Final = 1
"""Version of the hooks; a plugin that needs a newer one says so in `forebay_spec_version`."""

GROUP: Final = "forebay"
"""Entry-point group that installed plugins are found in."""


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
class Implementation:
    """A function of a plugin that is marked as a hook."""

    call: Callable[[Any], object]
    """The function, as one of the hook's single argument."""
    function: Callable[..., object]
    options: Mapping[str, object]
    """What the mark says."""


@frozen(eq=False)
class Candidate:
    """A plugin object and where it came from."""

    name: str
    plugin: object
    distribution: str | None = None
    version: str | None = None
    required: bool = True
    hooks: dict[str, Implementation] = field(factory=dict[str, Implementation])
    """Filled when the plugin is looked at for the first time."""


def named(plugin: object) -> Candidate:
    """Return *plugin*, which the program gave, under the name of its module, its own, or that of its class."""
    name = plugin.__name__ if isinstance(plugin, types.ModuleType) else getattr(plugin, "name", None)
    return Candidate(name if isinstance(name, str) and name else where(plugin), plugin)


def installed() -> dict[str, EntryPoint]:
    """Return the entry points of installed plugins, by name; two of one name are refused."""
    found: dict[str, EntryPoint] = {}
    for point in _scan(installation()):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            both = " and ".join(f"{one.value} of {_package(one)[0]}" for one in (other, point))
            raise TakenError(f"two installed plugins are named {point.name!r}: {both}; uninstall one of them")
    return found


def installation() -> tuple[tuple[str, float], ...]:
    """Return the folders that packages are installed in, with the times of their last change."""
    return tuple((folder, _changed_at(folder)) for folder in sys.path)


@lru_cache(maxsize=4)
def _scan(folders: tuple[tuple[str, float], ...]) -> tuple[EntryPoint, ...]:
    """Return what is installed in *folders*, which are named with the times of their last change.

    Remembered because every run asks: reading the metadata of all that is installed takes some milliseconds.
    """
    from importlib.metadata import entry_points

    return tuple(entry_points(group=GROUP))


def _changed_at(folder: str) -> float:
    try:
        return os.stat(folder or ".").st_mtime
    except OSError:
        return 0.0


def _package(point: EntryPoint) -> tuple[str | None, str | None]:
    return (None, None) if point.dist is None else (point.dist.name, point.dist.version)


def load(point: EntryPoint, *, required: bool) -> Candidate:
    """Import what *point* names."""
    return Candidate(point.name, point.load(), *_package(point), required)


def check_once(found: Candidate, earlier: Iterable[Candidate]) -> None:
    if any(other.plugin is found.plugin for other in earlier):
        raise PluginError(f"plugin {found.name!r} is given twice; pass it once")


def check_plugin(found: Candidate) -> None:
    """Refuse a class, and what needs newer hooks than these."""
    if inspect.isclass(found.plugin):
        raise PluginError(f"plugin {where(found.plugin)} is a class; pass an instance, {found.plugin.__name__}()")
    needed: object = getattr(found.plugin, "forebay_spec_version", 1)
    if not isinstance(needed, int):
        raise PluginError(f"forebay_spec_version of plugin {found.name!r} must be an int, not {needed!r}")
    if needed > SPEC_VERSION:
        raise PluginError(
            f"plugin {found.name!r} needs version {needed} of the hooks and this forebay has {SPEC_VERSION}; "
            "upgrade forebay or install an older release of the plugin"
        )


def implemented(
    found: Candidate, mark_of: Callable[[object, str], Mapping[str, object] | None]
) -> dict[str, Implementation]:
    """Return what the plugin marks as hooks, by the hook's name.

    Args:
        found: The plugin.
        mark_of: Returns the mark on an attribute of an object, `None` where there is none.
    """
    hooks: dict[str, Implementation] = {}
    for name in dir(found.plugin):
        options = mark_of(found.plugin, name)
        if options is None:
            continue
        hook = str(options.get("specname") or name)
        if hook in hooks:
            raise PluginError(f"plugin {found.name!r} implements {hook} twice; do both things in one function")
        function: Callable[..., object] = getattr(found.plugin, name)
        hooks[hook] = Implementation(_of_one_argument(function), function, options)
    if not hooks:
        raise PluginError(
            f"plugin {found.name!r} implements no hook; put @forebay.hooks.hookimpl above the functions that do"
        )
    return hooks


def _of_one_argument(function: Callable[..., object]) -> Callable[[Any], object]:
    if inspect.signature(function).parameters:
        return function
    return lambda _: function()


def check_marked(found: Candidate, specs: Iterable[str]) -> None:
    """Refuse a function that has a hook's name and no mark: it would never be called."""
    for hook in specs:
        unmarked = getattr(found.plugin, hook, None)
        if hook not in found.hooks and callable(unmarked) and not hasattr(unmarked, "forebay_spec"):
            raise PluginError(f"{hook} of plugin {found.name!r} is not marked; put @forebay.hooks.hookimpl above it")


def check_implementation(found: Candidate, hook: str, arguments: tuple[str, ...]) -> None:
    """Refuse an implementation that would do nothing when called, or cannot be called with *arguments*."""
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
