"""The controller: what batch size and concurrency to try next. Pure arithmetic, no I/O, no clock of its own."""

from __future__ import annotations

from attrs import frozen

from forebay._types import Limits, Observation


@frozen
class FixedController:
    """Keeps the limits that it was given: what the stage's bounds allow, sent greedily."""

    limits: Limits

    def observe(self, observation: Observation, /) -> Limits:
        """Return the limits, whatever was observed."""
        return self.limits
