"""Checks of a source: what a fetch hands out, how it waits and how it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio

from forebay_conformance._ends import leaves_cleanly, leaves_nothing, shows_no_secrets
from forebay_conformance._probe import CUTS, Cut, at_once, cut
from forebay_conformance._source_probe import SOURCE_CHECKS, SessionProbe, SourceProbe, Taken, told

_proves = SOURCE_CHECKS.proves


@asynccontextmanager
async def filled(probe: SourceProbe, items: Sequence[object]) -> AsyncGenerator[SessionProbe]:
    """Open a source with *items* and one session of it."""
    async with probe.source(items) as source, probe.session(source) as session:
        yield session


@_proves("chunk-shape")
async def chunks_are_parallel(probe: SourceProbe) -> None:
    """Every list of a full chunk and of an empty one."""
    names = ["offsets", "deliveries", "failures", "maybe_done", "keys", "headers", "sizes"]

    async with filled(probe, probe.items(7)) as session:
        for size in (4, 100, 100):
            chunk = await probe.call(
                f"exchange([], max_items={size})", partial(session.session.exchange, [], max_items=size, max_bytes=None)
            )
            if chunk is not None:
                probe.parallel(chunk, names)


@_proves("order")
async def order_is_kept(probe: SourceProbe) -> None:
    """Small fetches and large ones give the items of each partition in order."""
    items = probe.items(20)

    async with filled(probe, items) as session:
        taken = [each for size in (1, 3, 2, 9, 5) for each in await session.take(size)]

    probe.same(taken, items, what="each once")
    for partition in {each.partition for each in taken}:
        places = [items.index(each.item) for each in taken if each.partition == partition]
        probe.expect(places == sorted(places), expected=f"partition {partition} in order", got=f"order {places}")


@_proves("offset-unique")
async def offsets_are_unique(probe: SourceProbe) -> None:
    """Twenty items have twenty places."""
    async with filled(probe, probe.items(20)) as session:
        taken = await session.take(20)

    places = [each.place for each in taken]
    twice = sorted({str(place) for place in places if places.count(place) > 1})
    probe.expect(not twice, expected="20 different places", got=f"more than once: {', '.join(twice)}")


@_proves("offset-stable")
async def offsets_are_stable(probe: SourceProbe) -> None:
    """Items that are given back come under the same place."""
    async with filled(probe, probe.items(6)) as session:
        first = await session.take(3)
        await session.give_back(first)
        again = await session.take(6)

    before = [(each.item, each.place) for each in first]
    after = {repr(each.item): each.place for each in again}
    changed = [(item, place, after.get(repr(item))) for item, place in before if after.get(repr(item)) != place]
    probe.expect(not changed, expected="the same places as before", got=f"(item, before, now): {changed!r}")


@_proves("max-items")
async def max_items_holds(probe: SourceProbe) -> None:
    """No fetch of one or three items brings more."""
    async with filled(probe, probe.items(10)) as session:
        for size in (1, 3, 3, 1):
            taken = await session.exchange(max_items=size)
            probe.expect(len(taken) <= size, expected=f"at most {size} items", got=told(taken))


@_proves("max-bytes", needs=["counts_bytes"])
async def max_bytes_holds(probe: SourceProbe) -> None:
    """Items of 1,000 bytes under a bound of 2,500."""
    async with filled(probe, probe.items(6, size=1000)) as session:
        count = 0
        while count < 6 and not session.ended:
            taken = await session.exchange(max_items=100, max_bytes=2500)
            probe.expect(len(taken) <= 2, expected="at most 2 items of 1000 bytes", got=f"{len(taken)} items")
            probe.expect(bool(taken), expected="1 or 2 items of 1000 bytes", got="an empty chunk")
            count += len(taken)


@_proves("oversize-alone", needs=["counts_bytes"])
async def oversize_items_come_alone(probe: SourceProbe) -> None:
    """Items of 1,000 bytes under a bound of 10 come one by one."""
    async with filled(probe, probe.items(3, size=1000)) as session:
        for _ in range(3):
            taken = await session.exchange(max_items=100, max_bytes=10)
            probe.expect(len(taken) == 1, expected="one item, alone", got=f"{len(taken)} items")


@_proves("answers-promptly")
async def nothing_ready_is_an_empty_chunk(probe: SourceProbe) -> None:
    """With everything in hand a fetch answers, and brings nothing."""
    limit = probe.traits.prompt_seconds

    async with filled(probe, probe.items(3)) as session:
        await session.take(3)
        with anyio.move_on_after(limit) as scope:
            taken = await session.exchange(max_items=5)
            probe.expect(not taken, expected="an empty chunk", got=told(taken))

    probe.expect(not scope.cancelled_caught, expected=f"an empty chunk within {limit:g} s", got="no answer yet")


@_proves("end", needs=["ends"])
async def the_end_comes_when_all_is_settled(probe: SourceProbe) -> None:
    """Neither before the last item is handed out nor never."""
    async with filled(probe, probe.items(5)) as session:
        taken = await session.take(2)
        await session.settle(taken)
        probe.expect(not session.ended, expected="no end while 3 items wait", got="None")
        await session.settle(await session.take(3))
        await session.rest()
    async with filled(probe, []) as session:
        await session.rest()


@_proves("lag", needs=["knows_lag"])
async def lag_counts_what_waits(probe: SourceProbe) -> None:
    """Five items, two of them settled, then all."""
    async with filled(probe, probe.items(5)) as session:
        await _lag_is(session, 5)
        await session.settle(await session.take(2))
        await _lag_is(session, 3)
        await session.rest()
        await _lag_is(session, 0)


async def _lag_is(session: SessionProbe, wanted: int) -> None:
    got = await session.probe.call("lag()", session.session.lag)
    session.probe.expect(got == wanted, expected=str(wanted), got=got)


@_proves("wait-ready")
async def wait_ready_wakes(probe: SourceProbe) -> None:
    """It returns for items that are there, and for items that are given back while it waits."""
    async with filled(probe, probe.items(2)) as session:
        await probe.call("wait_ready()", session.session.wait_ready)
        taken = await session.take(2)

        async def give_back_later() -> None:
            await anyio.sleep(0.05)
            await session.give_back(taken)

        await at_once([lambda: probe.call("wait_ready()", session.session.wait_ready), give_back_later])
        await session.take(2)


@_proves("wait-ready-cancel")
async def wait_ready_takes_nothing(probe: SourceProbe) -> None:
    """All items come after it was cut off at every step."""
    items = probe.items(4)

    async with filled(probe, items) as session:
        probe.trail.append("cut wait_ready() off at every step")
        for where in CUTS:
            await cut(where, session.session.wait_ready)
        rest = await session.rest()

    probe.same(rest, items, what="all of them")


@_proves("cancel-safe")
async def a_cut_exchange_loses_nothing(probe: SourceProbe) -> None:
    """Exchanges that settle and take are cut off at every step; then everything unsettled must still come."""
    items = probe.items(2 * len(CUTS) + 10)

    async with probe.source(items) as source:
        async with probe.session(source) as session:
            settled, taken = await _exchange_with_cuts(session)
            rest = [] if probe.traits.redelivers else [*taken, *await session.rest()]
        if probe.traits.redelivers:
            async with probe.session(source, "b") as later:
                rest = [*settled, *await later.rest()]

    probe.same(rest, items, what="every item once, settled or handed out later")


async def _exchange_with_cuts(session: SessionProbe) -> tuple[list[Taken], list[Taken]]:
    session.probe.trail.append("cut exchange() off at every step, settling and taking")
    settled: list[Taken] = []
    taken = await session.take(2)
    pending = taken[:1]
    for where in CUTS:
        settlements = session.settlements(pending)
        answer = await cut(where, partial(session.session.exchange, settlements, max_items=2, max_bytes=None))
        if answer:  # else the same settlements are sent again, as the pipeline does
            new = session.received(answer[0])
            settled += pending
            taken += new
            pending = new[:1]
        await session.renew()  # on a slow machine the claims would run out meanwhile
    await session.settle(pending)
    return settled + pending, taken


@_proves("leave-cleanly")
async def sessions_are_left_cleanly(probe: SourceProbe) -> None:
    """By an exception, by cancellation, and closed twice."""
    items = probe.items(2)

    @asynccontextmanager
    async def open_session() -> AsyncGenerator[object]:
        async with filled(probe, items) as session:
            yield session.session

    await leaves_cleanly(probe, open_session, "session")


@_proves("leaves-nothing")
async def sessions_leave_nothing_behind(probe: SourceProbe) -> None:
    """Open, take, wait, close; eight times."""

    async def use() -> None:
        async with filled(probe, probe.items(3)) as session:
            await session.take(2)
            await cut(Cut(waits=2), session.session.wait_ready)

    await leaves_nothing(probe, use)


@_proves("no-secrets", needs=["has_secret"])
async def source_errors_show_no_secrets(probe: SourceProbe) -> None:
    """The engine is not there, and the exception says so without the password."""

    async def first_call(source: object) -> None:
        async with probe.session(source) as session:  # type: ignore[arg-type]  # open_broken yields the plugin's own
            await session.session.exchange([], max_items=1, max_bytes=None)

    await shows_no_secrets(probe, first_call)
