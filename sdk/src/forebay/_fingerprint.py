"""One short name for all failures of one kind, the same in every process."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from os.path import realpath
from pathlib import PurePath
from types import FrameType, TracebackType
from typing import cast

# A change to a mask, to the frames or to the digest regroups what is stored: it needs a new version here.
VERSION = "fp1"

_MASKED_CHARACTERS = 4096  # what is behind them tells nothing about the kind
_MESSAGE_CHARACTERS = 16 * 1024
_LEAVES = 16

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
_DATE = rf"(?:\d{{4}}[-/]\d\d[-/]\d\d|(?:[A-Z][a-z]{{2}},? )?(?:\d{{1,2}} {_MONTH}|{_MONTH} \d{{1,2}},?) \d{{4}})"
_CLOCK = r"\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?: ?(?:Z\b|UTC|GMT|[-+]\d\d:?\d\d))?"

# In this order: what is quoted may hold anything, an address holds numbers, a number is what is left.
# None of them can backtrack far: each repeated class excludes what may follow it, or is bounded.
_MASKS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), placeholder)
    for pattern, placeholder in (
        # A quote opens where no word precedes it and closes where no word follows ("can't" is neither),
        # or at the end of the text, because that may have been cut.
        (
            r"""(?<![\w\\])[bBrRuU]{0,2}(?:"""
            r""""(?:[^"\\]|\\.)*+(?:"|\\?\Z)|'(?>(?:[^'\\]|\\.|(?<=\w)'(?=\w))*)(?:'|\\?\Z)|`[^`]*+(?:`|\Z)|“[^”]*+(?:”|\Z))""",
            "<str>",
        ),
        (r"\b[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s\"'<>]+", "<url>"),
        (r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)*", "<email>"),
        (r"(?i)\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", "<uuid>"),
        (
            rf"(?<!\w){_DATE}(?:(?:T|,? ){_CLOCK})?|(?<![\w:.]){_CLOCK}(?![\w:])",
            "<time>",
        ),
        (
            r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?![\w.]*\w)"
            r"|(?<![\w:])(?=[0-9A-Fa-f:]*[0-9A-Fa-f])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])",
            "<ip>",
        ),
        (
            r"(?<![\w/.~\\])(?:~|\.{1,2}|[A-Za-z]:)?[\\/][\w.@%+=~-]+(?:[\\/][\w.@%+=~-]*)*"
            r"|(?<![\w/.-])(?:[\w.-]+/)++[\w-]+\.\w{1,5}\b",
            "<path>",
        ),
        # A word with a digit in it is a number, a number with its unit, or an id; so are eight hex digits.
        (
            r"(?:(?<![^\W_])[-+])?(?<![^\W_])(?:[^\W\d_]*+\d[^\W_]*(?:[.,]\d[^\W_]*)*(?:(?<=[eE])[-+]\d+)?"
            r"|(?:[0-9a-f]{8,}|[0-9A-F]{8,})(?![^\W_]))",
            "<n>",
        ),
        # What is counted, where it changes with the number.
        (r"<n> (?:[nµm]?s|min|h|[kKMGT]?i?B|bytes?|seconds?|minutes?|hours?|days?)(?!\w)", "<n>"),
        (r"\(<n> sub-exceptions?\)", "(<n> sub-exceptions)"),
        # As many as there are: lists of one kind differ in length.
        (r"(<[a-z]+>)(?:, ?<[a-z]+>)+", r"\1"),
        (r"\s+", " "),
    )
)


def mask(message: str, /) -> str:
    """Return *message* with its varying parts replaced by what they are.

    Only the first 4,096 characters count. Lists of masked values shrink to one, white space to one blank.
    """
    text = message[:_MASKED_CHARACTERS]
    for pattern, placeholder in _MASKS:
        text = pattern.sub(placeholder, text)
    return text.strip()


def own_frames(tb: TracebackType | None, /) -> tuple[str, ...]:
    """Return the program's own functions in *tb* as `module:function`, outermost first.

    Left out are the standard library, installed packages, code without a file, and forebay.
    Each function comes once, so that the depth of a recursion makes no difference; line numbers are
    left out, so that an edit elsewhere in the file makes none.
    """
    names: dict[str, None] = {}
    while tb is not None:
        name = _own_name(tb.tb_frame)
        if name is not None:
            names[name] = None
        tb = tb.tb_next
    return tuple(names)


def fingerprint(error: BaseException, /) -> str:
    """Return the name of *error*'s kind: `fp1:` and 16 hex digits.

    Made of the exception's class, the program's own frames and the masked message, for a group of the kinds of
    its leaves as well. The same in every process: nothing depends on hashing, line numbers or the order of arrival.
    """
    return identify(error, own_frames(error.__traceback__), mask(message_of(error)))


def identify(error: BaseException, frames: tuple[str, ...], masked: str, /) -> str:
    """Return `fingerprint(error)` from parts that the caller has already."""
    parts = [type_name(error), *frames, masked, *_kinds_within(error)]
    text = "\x1f".join(parts).encode("utf-8", "backslashreplace")
    return f"{VERSION}:{blake2b(text, digest_size=8).hexdigest()}"


def type_name(error: BaseException, /) -> str:
    """Return the qualified name of *error*'s class, without `builtins`."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def message_of(error: BaseException, /) -> str:
    """Return the text of *error*, at most 16 Ki characters of it, even if its `__str__` fails."""
    try:
        return str(error)[:_MESSAGE_CHARACTERS]
    except Exception as exc:  # the failure at hand must be kept, whatever state its exception is in
        return f"<{type_name(error)}: its text cannot be made ({type_name(exc)})>"


def _kinds_within(error: BaseException) -> list[str]:
    kinds = {identify(leaf, own_frames(leaf.__traceback__), mask(message_of(leaf))) for leaf in _leaves(error)}
    return sorted(kinds)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Open a group, breadth first, until there are enough leaves to tell its kind."""
    if not isinstance(error, BaseExceptionGroup):
        return
    queue: list[BaseException] = [error]
    found = 0
    for one in queue:
        if isinstance(one, BaseExceptionGroup):
            queue.extend(cast("BaseExceptionGroup[BaseException]", one).exceptions)  # isinstance forgets of what
        elif found < _LEAVES:
            found += 1
            yield one


def _own_name(frame: FrameType) -> str | None:
    module, file = str(frame.f_globals.get("__name__", "?")), frame.f_code.co_filename
    if not (_is_own(file) or (module == "__main__" and file.startswith("<"))):
        return None
    if module == "__main__":
        spec: object = frame.f_globals.get("__spec__")
        module = str(getattr(spec, "name", module))  # as it is called when imported, after `python -m`
    if module == "forebay" or module.startswith("forebay."):
        return None
    return f"{module}:{frame.f_code.co_qualname}"


@lru_cache(maxsize=4096)
def _is_own(filename: str) -> bool:
    path = PurePath(realpath(filename))
    if filename.startswith("<") or not {"site-packages", "dist-packages"}.isdisjoint(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in _library_folders())


@lru_cache(maxsize=1)
def _library_folders() -> frozenset[str]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return frozenset(realpath(sysconfig.get_path(name)) for name in names)
