"""The failure that a check raises, and how it reads."""

from __future__ import annotations

import traceback
from pathlib import Path

from forebay_conformance._rules import Rule

_HERE = str(Path(__file__).parent)


class ConformanceFailure(AssertionError):  # the pytest word for it: a failure, not an error
    """A plugin broke a rule.

    Args:
        rule: The rule.
        did: The last calls, in order.
        expected: What they should have led to.
        got: What they led to.
    """

    def __init__(self, rule: Rule, /, *, did: str, expected: str, got: str) -> None:
        self.rule = rule
        self.did = did
        self.expected = expected
        self.got = got
        super().__init__(
            f"{rule.id}: {rule.sentence}.\n"
            f"  did:      {_one_line(did)}\n"
            f"  expected: {_one_line(expected)}\n"
            f"  got:      {_one_line(got)}\n"
            f"  why:      {rule.page}"
        )

    def report(self) -> str:
        """Return the five lines, and below them the plugin's own traceback where it raised something."""
        lines = plugin_frames(self.__cause__) if self.__cause__ is not None else []
        return "\n".join([str(self), *lines])


def plugin_frames(error: BaseException, /) -> list[str]:
    """Return *error* formatted from the first frame that is the plugin's; none when there is no such frame."""
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [index for index, frame in enumerate(frames) if not frame.filename.startswith(_HERE)]
    ours = [index for index, frame in enumerate(frames) if frame.filename.startswith(_HERE)]
    first = next((index for index in foreign if not ours or index > ours[-1]), None)
    if first is None:
        return []
    text = [*traceback.format_list(frames[first:]), *traceback.format_exception_only(error)]
    return "".join(text).rstrip().splitlines()


def described(error: BaseException, /) -> str:
    """Return *error* in one line, with the place that raised it."""
    name = type(error).__qualname__
    text = f"{name}: {error}" if str(error) else name
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return text
    last = frames[-1]
    return f"{text} ({Path(last.filename).name}:{last.lineno} in {last.name})"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 400 else line[:397] + "..."
