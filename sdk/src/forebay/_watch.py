"""How long code may hold the event loop, and a watch on synchronous code that does so for longer."""

from __future__ import annotations

import logging
import warnings

from attrs import define

from forebay._errors import BlockedLoopWarning

SLICE_SECONDS = 0.001
"""How long a pump or worker goes on without a checkpoint while it has work."""
BLOCKED_SECONDS = 0.05
"""Code that holds the event loop for longer is named in a warning."""
_TIMES = 3
_AT_ONCE_SECONDS = 1.0

_logger = logging.getLogger("forebay")


@define(eq=False)
class LoopWatch:
    """Warns once about one piece of code that holds the event loop.

    A single long slice may be the computer's doing, which gave the time to another process: so it takes three
    in a row, or a second in one go.
    """

    what: str
    """Names the code, as the subject of a sentence."""
    advice: str
    """What to do about it."""
    streak: int = 0
    """Long slices in a row."""
    _told: bool = False

    def held(self, seconds: float, items: int) -> None:
        """Take note that the code ran for so long without giving way; call it for what is over the limit."""
        self.streak += 1
        if not self._told and (self.streak >= _TIMES or seconds > _AT_ONCE_SECONDS):
            self._told = True
            over = "1 item" if items == 1 else f"{items} items"
            text = f"{self.what} held the event loop for {seconds * 1000:.0f} ms over {over}; {self.advice}"
            try:
                warnings.warn(text, BlockedLoopWarning, stacklevel=2)
            except BlockedLoopWarning:
                # Warnings are errors here, but a pump is no place to raise one: items would pay for it.
                _logger.warning(text)

    def passed(self) -> None:
        """Take note that it gave way in time."""
        self.streak = 0
