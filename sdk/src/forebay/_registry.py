"""What plugins supply: factories by name and by URL, and how a URL becomes a factory's options."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, Generic, TypeAlias, TypeVar, Union, cast, get_args, get_origin

from attrs import frozen

from forebay._errors import PluginError

T = TypeVar("T")

DISABLE_VARIABLE: Final = "FOREBAY_DISABLE_PLUGINS"
"""Environment variable that names installed plugins to leave out, with commas between."""

Factory: TypeAlias = Callable[..., AbstractAsyncContextManager[T] | T]
"""Its keyword parameters are its options; it returns an async context manager of the object, or the object itself."""


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
        known_as = texts("schemes", schemes) or ((name,) if self.takes_urls else ())
        check_word(f"the name of a {self.singular}", name, "[a-z0-9][a-z0-9-]*", "a-z, 0-9 and -")
        for scheme in known_as:
            check_word(f"a scheme of {self.singular} {name!r}", scheme, "[a-z0-9][a-z0-9+.-]*", "a-z, 0-9, +, . and -")
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
            close_coroutine(made)
            raise PluginError(
                f"{where(entry.factory)}() returned {'None' if made is None else 'a coroutine'} for {what}; "
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
        raise PluginError(f"{missing} ({listed('registered', table)}){self._hint(key)}{nearest(key, table)}")

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


class TakenError(PluginError):
    """Two plugins want the same name: leaving out either would choose for the user."""


def _check_free(what: str, holder: Entry[Any] | None, new: Entry[Any]) -> None:
    if holder is None:
        return
    if holder.plugin == new.plugin:
        raise PluginError(f"plugin {new.plugin!r} registers {what} twice; register it once")
    installed = next((entry.plugin for entry in (new, holder) if entry.distribution not in (None, "forebay")), None)
    how = "rename one of them" if installed is None else f"uninstall one of them or set {DISABLE_VARIABLE}={installed}"
    both = " and ".join(f"{where(entry.factory)} (plugin {entry.plugin!r})" for entry in (holder, new))
    raise TakenError(f"two plugins register {what}: {both}; {how}")


def check_word(what: str, word: str, pattern: str, allowed: str) -> None:
    if not re.fullmatch(pattern, word):
        raise PluginError(f"{what} must be made of {allowed}, not {word!r}")


def _check_factory(what: str, factory: object) -> None:
    if not callable(factory):
        raise PluginError(f"the factory of {what} must be callable, not {factory!r}; pass the function, not its result")
    if inspect.iscoroutinefunction(factory):
        raise PluginError(
            f"{where(factory)} is async def, and {what} needs an async context manager; "
            "yield the object and put @asynccontextmanager above it"
        )
    if inspect.isasyncgenfunction(factory) or inspect.isgeneratorfunction(factory):
        raise PluginError(
            f"{where(factory)} yields and {what} needs an async context manager; put @asynccontextmanager above it"
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
            raise PluginError(f"{what} takes no option {name!r} ({listed('known', known)}){nearest(name, known)}")
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
            raise PluginError(f"{what} takes no {name!r} in its URL ({listed('known', by_url)}){nearest(name, by_url)}")
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


def texts(argument: str, given: Iterable[str]) -> tuple[str, ...]:
    """Return *given* as a tuple; a single text, which is an iterable of its letters, is refused."""
    if isinstance(given, str):
        raise PluginError(f"{argument} must be several names, not the str {given!r}; write ({given!r},)")
    return tuple(given)


def listed(word: str, known: Iterable[str]) -> str:
    """Return *known* after *word*, for messages."""
    return f"{word}: {', '.join(known) or 'none'}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the end of a message that names the nearest of *known*; empty if none is near."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def where(thing: object) -> str:
    """Return module and name of *thing*, or of its class, for messages."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(named, '__module__', '?')}.{getattr(named, '__qualname__', '?')}"


def close_coroutine(made: object) -> None:
    """Close *made* if it is a coroutine."""
    if inspect.iscoroutine(made):
        made.close()  # or Python warns that it was never awaited, behind the sentence that says why
