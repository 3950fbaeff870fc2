"""Looks at the machine twice a second while a run wants to know: how late the loop is, processors, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio
from attrs import define, field

from forebay._gauge import Machine
from forebay._pressure import PressureGauge
from forebay._types import Pressure

PERIOD_SECONDS: Final = 0.5
"""Time between two looks at the machine."""
_LAG_SECONDS: Final = 0.05
"""Time between two looks at how late the loop is."""


@define(eq=False, kw_only=True)
class Sampler:
    """Keeps the system load at hand for the controllers of a run."""

    changed: Callable[[Pressure], None] | None = None
    """Told when a resource comes under pressure, and when it leaves it."""
    machine: Machine = field(factory=Machine)
    gauge: PressureGauge = field(factory=PressureGauge)

    def level(self) -> float:
        """Return the system load between 0 (nothing in the way) and 1 (at its limit)."""
        return self.gauge.level

    async def run(self) -> None:
        """Look until cancelled. A look takes less than a millisecond and reads only what the kernel keeps in memory."""
        self._look(0.0)
        while True:
            self._look(await self._worst_lag())

    async def _worst_lag(self) -> float:
        """Return how late the loop woke this task at worst, in seconds, over one period."""
        worst = 0.0
        end = anyio.current_time() + PERIOD_SECONDS
        now = anyio.current_time()
        while now < end:
            due = now + _LAG_SECONDS
            await anyio.sleep(_LAG_SECONDS)
            now = anyio.current_time()
            worst = max(worst, now - due)
        return worst

    def _look(self, lag: float) -> None:
        for record in self.gauge.update(self.machine.read(anyio.current_time(), loop_lag=lag)):
            if self.changed is not None:
                self.changed(record)
