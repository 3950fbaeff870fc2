"""Where the database file is: a path, or a URL that names one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit


def file_of(opener: str, path: str | os.PathLike[str] | None, url: str | None) -> Path:
    """Return the absolute path that *path* or *url* names; exactly one of the two is given.

    Raises:
        ValueError: both, neither, or something that is not a file.
    """
    if (path is None) == (url is None):
        given = "neither" if path is None else "both"
        raise ValueError(f"{opener}() takes either path= or url=, not {given}; give one of the two")
    name = _path_of(url) if url is not None else os.fspath(path or "")
    if not name or ":memory:" in name:
        raise ValueError(
            f"{opener}() keeps its data in a file, and {name!r} is none; name one, or use the plugin named 'memory'"
        )
    return Path(name).absolute()


def _path_of(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.netloc or not parts.path.startswith("/"):
        raise ValueError(f"url must look like sqlite:///relative.db or sqlite:////absolute.db, not {url!r}")
    if parts.query:
        raise ValueError(f"url carries options here only through a recipe; pass {parts.query!r} as keyword arguments")
    return unquote(parts.path[1:])


def positive(argument: str, seconds: float) -> float:
    """Return *seconds*.

    Raises:
        ValueError: it is not more than 0.
    """
    if not seconds > 0:
        raise ValueError(f"{argument} must be more than 0 seconds, not {seconds!r}")
    return seconds


def names_of(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return *value* as names; in text, as a URL carries it, they are separated by commas."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value)


def quoted(identifier: str) -> str:
    """Return *identifier* as SQL takes it, whatever is in it.

    Raises:
        ValueError: it is empty or holds a NUL, which SQL cannot name.
    """
    if not identifier or "\0" in identifier:
        raise ValueError(f"a table or column must have a name without NUL characters, not {identifier!r}")
    return '"' + identifier.replace('"', '""') + '"'
