"""Checks of a sink."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from attrs import define

from forebay import Again, BatchFailed, Dropped, Failed
from forebay.abc import Outcome, Sink
from forebay_conformance._checks import CheckList
from forebay_conformance._ends import leaves_cleanly, leaves_nothing, shows_no_secrets
from forebay_conformance._probe import CUTS, Probe, at_once, cut
from forebay_conformance._traits import SinkTraits


@define
class SinkProbe(Probe[SinkTraits]):
    """A sink check's view of the plugin."""

    @asynccontextmanager
    async def sink(self) -> AsyncGenerator[Sink[Any]]:  # Any: items are whatever the sink takes
        """Open an empty sink."""
        self.trail.append("open a sink")
        async with self.opener() as sink:
            yield sink

    def items(self, *numbers: int) -> list[Any]:
        """Return one item for each number."""
        return [self.traits.make_item(number) for number in numbers]

    async def write(self, sink: Sink[Any], items: Sequence[Any], /) -> list[Outcome]:
        """Write *items* and return an outcome for each, whichever way the sink says it."""
        failed: list[BatchFailed] = []

        async def write() -> Sequence[Outcome] | None:
            try:
                return await sink.write(items)
            except BatchFailed as error:
                failed.append(error)
                return None

        outcomes = await self.call(f"write({len(items)} items)", write)
        if failed:
            return self._attributed(failed[0], len(items))
        return self._counted(outcomes, len(items))

    def _attributed(self, failed: BatchFailed, count: int) -> list[Outcome]:
        beyond = [index for index in failed.failures if not 0 <= index < count]
        self.expect(not beyond, expected=f"failures of items 0 to {count - 1}", got=f"of items {beyond}")
        return [Failed(failed.failures[index]) if index in failed.failures else None for index in range(count)]

    def _counted(self, outcomes: Sequence[Outcome] | None, count: int) -> list[Outcome]:
        if outcomes is None:
            return [None] * count
        self.expect(len(outcomes) == count, expected=f"{count} outcomes, or None", got=f"{len(outcomes)} outcomes")
        given: list[object] = list(outcomes)
        odd = [each for each in given if not isinstance(each, Failed | Again | Dropped | None)]
        self.expect(not odd, expected="Failed, Again, Dropped or None for each item", got=odd[:3])
        return list(outcomes)

    async def holds(self, sink: Sink[Any], items: Sequence[Any], /) -> None:
        """Fail unless the engine holds exactly *items*, in any order."""
        missing, extra = compared(await self.written(sink), items)
        got = [f"missing {missing[:3]!r}"] * bool(missing) + [f"not expected, or twice: {extra[:3]!r}"] * bool(extra)
        self.expect(not got, expected=f"exactly the {len(items)} items written", got="; ".join(got))

    async def written(self, sink: Sink[Any], /) -> Sequence[Any]:
        """Return what the engine holds."""
        return await self.call("written()", lambda: self.traits.written(sink))


def compared(got: Sequence[Any], wanted: Sequence[Any], /) -> tuple[list[Any], list[Any]]:
    """Return what is missing from *got*, and what is too much in it."""
    counts: dict[str, int] = {}
    for item in got:
        counts[repr(item)] = counts.get(repr(item), 0) + 1
    missing: list[Any] = []
    for item in wanted:
        if counts.get(repr(item), 0):
            counts[repr(item)] -= 1
        else:
            missing.append(item)
    return missing, [text for text, count in counts.items() for _ in range(count)]


SINK_CHECKS = CheckList("sink", SinkProbe)
_proves = SINK_CHECKS.proves


@_proves("outcome-shape")
async def outcomes_match_the_items(probe: SinkProbe) -> None:
    """Batches of one, three and seven good items; the probe looks at the outcomes."""
    async with probe.sink() as sink:
        for size in (1, 3, 7):
            outcomes = await probe.write(sink, probe.items(*range(size * 10, size * 11)))
            failed = [each for each in outcomes if each is not None]
            probe.expect(not failed, expected="good items to be done", got=failed[:3])


@_proves("writes-all", needs=["reads_back"])
async def what_is_done_is_written(probe: SinkProbe) -> None:
    """Three batches, nothing missing and nothing twice."""
    async with probe.sink() as sink:
        for start in (0, 5, 10):
            await probe.write(sink, probe.items(*range(start, start + 5)))
        await probe.holds(sink, probe.items(*range(15)))


@_proves("empty-batch")
async def an_empty_batch_is_taken(probe: SinkProbe) -> None:
    """Before and after another batch."""
    async with probe.sink() as sink:
        await probe.write(sink, [])
        await probe.write(sink, probe.items(1))
        await probe.write(sink, [])
        if probe.traits.reads_back:
            await probe.holds(sink, probe.items(1))


@_proves("outcome-order", needs=["has_bad_item"])
async def failures_stand_where_the_bad_items_are(probe: SinkProbe) -> None:
    """Bad items at the front, in the middle and at the end."""
    for bad in ([0], [2], [5], [1, 4], [0, 1, 5]):
        async with probe.sink() as sink:
            outcomes = await probe.write(sink, _mixed(probe, bad))
        failed = [index for index, outcome in enumerate(outcomes) if outcome is not None]
        probe.expect(failed == bad, expected=f"failures at {bad}", got=f"failures at {failed}")


def _mixed(probe: SinkProbe, bad: Sequence[int]) -> list[Any]:
    return [probe.traits.make_bad_item(i) if i in bad else probe.traits.make_item(i) for i in range(6)]


@_proves("partial-failure", needs=["has_bad_item", "reads_back"])
async def good_items_beside_bad_ones_are_written(probe: SinkProbe) -> None:
    """What is reported as done is there, and nothing else is."""
    async with probe.sink() as sink:
        await probe.write(sink, _mixed(probe, [1, 4]))
        await probe.holds(sink, probe.items(0, 2, 3, 5))


@_proves("cancel-safe")
async def a_cut_write_leaves_the_sink_usable(probe: SinkProbe) -> None:
    """Writes are cut off at every step; each further batch is written whole."""
    async with probe.sink() as sink:
        sure: list[int] = []
        for turn, where in enumerate(CUTS):
            unsure = probe.items(1000 + 2 * turn, 1001 + 2 * turn)
            probe.trail.append(f"cut write() off {where}")
            await cut(where, partial(sink.write, unsure))
            sure.append(turn)
            await probe.write(sink, probe.items(turn))
        if probe.traits.reads_back:
            missing, _ = compared(await probe.written(sink), probe.items(*sure))
            probe.expect(not missing, expected="all items whose write ended", got=f"missing {missing[:3]!r}")


@_proves("concurrent-writes")
async def writes_at_the_same_time_are_whole(probe: SinkProbe) -> None:
    """Ten tasks, ten items each."""
    batches = [probe.items(*range(start, start + 10)) for start in range(0, 100, 10)]

    async with probe.sink() as sink:
        await at_once([partial(probe.write, sink, batch) for batch in batches])
        if probe.traits.reads_back:
            await probe.holds(sink, [item for batch in batches for item in batch])


@_proves("large-batch")
async def a_large_batch_is_written_whole(probe: SinkProbe) -> None:
    """More items than any engine takes in one statement."""
    items = probe.items(*range(probe.traits.large_batch))

    async with probe.sink() as sink:
        outcomes = await probe.write(sink, items)
        failed = [each for each in outcomes if each is not None]
        probe.expect(not failed, expected="every item done", got=f"{len(failed)} failures, first {failed[:1]!r}")
        if probe.traits.reads_back:
            await probe.holds(sink, items)


@_proves("deadline")
async def every_write_ends(probe: SinkProbe) -> None:
    """A hundred writes, one after the other, each under the deadline."""
    async with probe.sink() as sink:
        for number in range(100):
            await probe.write(sink, probe.items(number))


@_proves("leave-cleanly")
async def sinks_are_left_cleanly(probe: SinkProbe) -> None:
    """By an exception, by cancellation, and closed twice."""
    await leaves_cleanly(probe, probe.sink, "sink")


@_proves("leaves-nothing")
async def sinks_leave_nothing_behind(probe: SinkProbe) -> None:
    """Open, write, close; eight times."""

    async def use() -> None:
        async with probe.sink() as sink:
            await probe.write(sink, probe.items(1, 2))

    await leaves_nothing(probe, use)


@_proves("no-secrets", needs=["has_secret"])
async def sink_errors_show_no_secrets(probe: SinkProbe) -> None:
    """The engine is not there, and the exception says so without the password."""
    await shows_no_secrets(probe, lambda sink: sink.write(probe.items(1)))
