"""The sampler asks the real machine; what it makes of the answers is tested with the gauge."""

from __future__ import annotations

import time

import anyio
import pytest

import forebay
from forebay._gauge import Machine
from forebay._pressure import PressureGauge, Reading
from forebay._sampler import Sampler
from forebay._types import Pressure
from forebay.abc import Observer
from forebay.testing import run_virtual


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_is_held_up_is_told_of(backend: str) -> None:
    told: list[Pressure] = []
    sampler = Sampler(changed=told.append, gauge=PressureGauge(seconds=0.1))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sampler.run)
            await anyio.sleep(0.06)
            time.sleep(0.3)  # the point of the test
            await anyio.sleep(0.6)
            tasks.cancel_scope.cancel()

    anyio.run(main, backend=backend)

    assert "loop" in {record.resource for record in told}
    assert sampler.level() > 0.0


class Listening(Observer):
    def __init__(self) -> None:
        self.told: list[Pressure] = []

    def pressure_changed(self, info: Pressure, /) -> None:
        self.told.append(info)


def test_a_run_whose_observer_wants_to_know_looks_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def look(self: Machine, now: float, *, loop_lag: float | None = None) -> Reading:
        looks.append(now)
        return read(self, now, loop_lag=loop_lag)

    read = Machine.read
    monkeypatch.setattr(Machine, "read", look)

    async def main() -> None:
        async def store(batch: list[int]) -> None:
            await anyio.sleep(0.01)

        await forebay.pipeline(range(10)).map_batches(store, max_size=10).run(observers=[Listening()])

    anyio.run(main, backend="asyncio")
    real = len(looks)
    run_virtual(main, backend="asyncio")

    assert (real, len(looks)) == (1, 1)
