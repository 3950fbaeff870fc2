import math

import anyio
import pytest

from forebay._clock import measuring_clock
from forebay.testing import BackendName, run_virtual

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@backends
def test_a_virtual_clock_is_left_in_charge(backend: BackendName) -> None:
    async def main() -> tuple[float, float]:
        clock = measuring_clock()
        before = clock()
        await anyio.sleep(3600)
        return clock() - before, clock() - anyio.current_time()

    seconds, apart = run_virtual(main, backend=backend)

    assert seconds == pytest.approx(3600)
    assert apart == pytest.approx(0.0, abs=1e-3)


@backends
def test_a_real_clock_is_read_directly_and_agrees_with_the_loops(backend: BackendName) -> None:
    async def main() -> list[float]:
        # It looks for 20 µs, and gives up where it was interrupted: on a busy machine it may take some looks.
        for _ in range(1000):
            clock = measuring_clock()
            if clock is not anyio.current_time:
                break
        else:
            pytest.fail("the loop's clock was never seen to keep step with the computer's")
        readings = [math.inf] * 2
        for _ in range(100):  # the best of many: the task may lose the processor between two readings
            before = anyio.current_time()
            read = clock()
            after = anyio.current_time()
            readings = min(readings, [max(before - read, read - after, 0.0), after - before])
        return readings

    apart, _ = anyio.run(main, backend=backend)

    assert apart < 1e-3
