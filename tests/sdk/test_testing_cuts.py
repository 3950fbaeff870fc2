import asyncio

import anyio
import anyio.lowlevel
import attrs
import pytest

from forebay.testing import (
    BackendName,
    How,
    cancel_at_every_step,
    count_steps,
)

pytestmark = pytest.mark.anyio

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@attrs.define
class Transfer:
    """Takes from one account and puts into another; safe means shielded from cancel scopes."""

    safe: bool
    accounts: list[int] = attrs.field(factory=lambda: [1, 0])

    async def run(self) -> None:
        await anyio.sleep(1)
        with anyio.CancelScope(shield=self.safe):
            self.accounts[0] -= 1
            await anyio.sleep(1)
            self.accounts[1] += 1
        await anyio.sleep(1)

    async def check(self, *, cancelled: bool) -> None:
        assert sum(self.accounts) == 1, self.accounts
        assert cancelled or self.accounts == [0, 1]


@backends
def test_a_scenario_that_survives_every_cut_has_no_failures(backend: BackendName) -> None:
    report = cancel_at_every_step(lambda: Transfer(safe=True), backend=backend)

    report.raise_failures()
    assert report.steps == count_steps(lambda: Transfer(safe=True), backend=backend) > 3


@backends
@pytest.mark.parametrize("how", ["scope", "task", "timeout"])
def test_an_unsafe_scenario_is_caught_and_can_be_replayed(backend: BackendName, how: How) -> None:
    report = cancel_at_every_step(lambda: Transfer(safe=False), backend=backend, how=how)

    assert 0 < len(report.failures) < report.steps
    step = report.failures[0].step
    again = cancel_at_every_step(lambda: Transfer(safe=False), backend=backend, how=how, only_step=step)
    assert [failure.step for failure in again.failures] == [step]
    with pytest.raises(AssertionError, match=rf"by {how} on {backend} went wrong; .*only_step={step}"):
        report.raise_failures()


@pytest.mark.parametrize("how", ["task", "timeout"])
def test_native_cancellation_of_asyncio_goes_through_shields(how: How) -> None:
    report = cancel_at_every_step(lambda: Transfer(safe=True), backend="asyncio", how=how)

    assert report.failures


@pytest.mark.parametrize("how", ["task", "timeout"])
def test_on_trio_every_way_stops_at_shields(how: How) -> None:
    cancel_at_every_step(lambda: Transfer(safe=True), backend="trio", how=how).raise_failures()


@attrs.define
class Crowd:
    """Many tasks, in an order that the seed decides."""

    log: list[int]

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(self.member, number)

    async def member(self, number: int) -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
            self.log.append(number)

    async def check(self, *, cancelled: bool) -> None:
        pass


@backends
def test_the_same_step_is_the_same_moment_in_every_run(backend: BackendName) -> None:
    logs: list[list[int]] = []

    def make() -> Crowd:
        logs.append([])
        return Crowd(logs[-1])

    whole = count_steps(make, backend=backend, seed=5)
    report = cancel_at_every_step(make, backend=backend, seed=5)

    assert report.steps == whole
    first, *_, last = logs
    assert len(first) == 15
    assert last == first  # the one in which no step was left
    assert all(len(log) <= 15 for log in logs)
    assert sorted(len(log) for log in logs)[0] == 0


strays: list[asyncio.Task[None]] = []


@attrs.define
class Clumsy:
    """Goes wrong in the way it is told."""

    way: str

    async def run(self) -> None:
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class():
            if self.way == "raises":
                raise KeyError("cleanup") from None
            if self.way == "leaves a task":
                strays.append(asyncio.create_task(asyncio.sleep(10), name="stray"))
            if self.way == "hangs":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep_until(1e7)
            raise

    async def check(self, *, cancelled: bool) -> None:
        pass


@backends
def test_a_run_that_raises_is_a_failure(backend: BackendName) -> None:
    report = cancel_at_every_step(lambda: Clumsy("raises"), backend=backend)

    assert "KeyError('cleanup')" in {repr(failure.error) for failure in report.failures}


@backends
def test_a_run_that_does_not_end_in_a_million_seconds_is_a_failure(backend: BackendName) -> None:
    report = cancel_at_every_step(lambda: Clumsy("hangs"), backend=backend)

    assert "still ran 1e+06 virtual seconds after its start" in str(report.failures[0].error)


def test_a_task_left_behind_is_a_failure() -> None:
    report = cancel_at_every_step(lambda: Clumsy("leaves a task"), backend="asyncio")

    assert str(report.failures[0].error) == "the scenario left tasks behind: stray"


@attrs.define
class Broken:
    """Fails without being cancelled."""

    async def run(self) -> None:
        await anyio.sleep(1)
        raise TimeoutError("of its own")

    async def check(self, *, cancelled: bool) -> None:
        pytest.fail("not reached")  # pragma: no cover -- the run fails first


@backends
def test_a_scenario_that_fails_by_itself_is_not_tried(backend: BackendName) -> None:
    with pytest.raises(TimeoutError, match="of its own"):
        cancel_at_every_step(Broken, backend=backend, how="timeout")


def test_a_timeout_of_the_scenario_is_not_taken_for_the_cut() -> None:
    @attrs.define
    class Overdue(Transfer):
        async def run(self) -> None:
            try:
                await super().run()
            finally:
                if self.accounts != [0, 1]:
                    raise TimeoutError("of its own")

    report = cancel_at_every_step(lambda: Overdue(safe=True), backend="asyncio", how="timeout")

    assert {str(failure.error) for failure in report.failures} >= {"of its own"}


def test_long_scenarios_are_refused() -> None:
    with pytest.raises(ValueError, match="more than max_steps=3; shorten it or raise that"):
        cancel_at_every_step(lambda: Transfer(safe=True), backend="asyncio", max_steps=3)


def test_an_unknown_way_to_cancel_is_refused() -> None:
    with pytest.raises(ValueError, match="how must be 'scope', 'task' or 'timeout', not 'kill'"):
        cancel_at_every_step(
            lambda: Transfer(safe=True),
            backend="asyncio",
            how="kill",  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the point
        )
