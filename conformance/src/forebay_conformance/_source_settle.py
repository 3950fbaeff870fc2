"""Checks of a source: what is settled, what comes again, and what it says when it does."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
from attrs import frozen

from forebay.abc import Deliveries, Member, Redelivery, Settlement, Source
from forebay_conformance._probe import at_once
from forebay_conformance._source_fetch import filled
from forebay_conformance._source_probe import (
    SOURCE_CHECKS,
    Place,
    SessionProbe,
    SourceProbe,
    Taken,
    deliveries_of,
    left,
    retry_of,
    told,
)

_proves = SOURCE_CHECKS.proves


async def take_now(session: SessionProbe, count: int) -> list[Taken]:
    """Take what can be had without letting time pass, at most *count* items."""
    taken: list[Taken] = []
    for _ in range(5):
        if len(taken) == count or session.ended:
            break
        taken += await session.exchange(max_items=count - len(taken))
    return taken


async def take_again(session: SessionProbe, count: int) -> list[Taken]:
    """Take *count* items of a member that is gone: at once, or when its claim has run out."""
    taken = await take_now(session, count)
    claim = session.session.claim_seconds
    if len(taken) < count and claim is not None:
        await session.probe.traits.pass_time(claim)
    return [*taken, *await session.take(count - len(taken))]


async def reopened(probe: SourceProbe, source: Source[object], count: int) -> list[Taken]:
    """Open a session, take *count* items that another one left, and leave without settling them."""
    async with probe.session(source, "later") as session:
        return await take_again(session, count)


@_proves("settle-only")
async def max_items_0_only_settles(probe: SourceProbe) -> None:
    """It brings nothing, and what waits still waits."""
    items = probe.items(4)

    async with filled(probe, items) as session:
        taken = await session.take(2)
        extra = await session.exchange(session.settlements(taken), max_items=0)
        rest = await session.rest()

    probe.expect(not extra, expected="no items", got=told(extra))
    probe.same(rest, left(items, taken), what="those that were not taken")


@_proves("settle-after-end", needs=["ends"])
async def the_end_still_takes_settlements(probe: SourceProbe) -> None:
    """The last item is settled again after None."""
    async with probe.source(probe.items(4)) as source:
        async with probe.session(source) as session:
            taken = await session.take(4)
            await session.settle(taken[:3])
            await session.exchange(max_items=5)
            await session.settle(taken[3:])
            await session.rest()
            await session.settle(taken)
        if probe.traits.redelivers:
            async with probe.session(source, "b") as later:
                rest = await later.rest()
            probe.expect(not rest, expected="nothing to come again", got=told(rest))


@_proves("settle-final")
async def settled_items_are_final(probe: SourceProbe) -> None:
    """They come neither in the same session nor in the next."""
    items = probe.items(6)

    async with probe.source(items) as source:
        async with probe.session(source) as session:
            taken = await session.take(3)
            await session.settle(taken)
            rest = await session.rest()
            probe.same(rest, left(items, taken), what="those that were not settled")
        if probe.traits.redelivers:
            async with probe.session(source, "b") as later:
                rest = await later.rest()
            probe.expect(not rest, expected="nothing to come again", got=told(rest))


@_proves("settle-out-of-order", needs=["redelivers", "settles_out_of_order"])
async def settling_out_of_order_is_exact(probe: SourceProbe) -> None:
    """Items between settled ones come again, those of another member too."""
    items = probe.items(6)

    async with probe.source(items) as source:
        async with probe.session(source) as session:
            taken = await session.take(6)
            await session.settle([taken[1], taken[3], taken[4]])
        unsettled = [taken[index].item for index in (0, 2, 5)]
        probe.same(await reopened(probe, source, 3), unsettled, what="those that were not settled")
    if probe.traits.supports_members:
        await _settles_only_its_own(probe, items)


async def _settles_only_its_own(probe: SourceProbe, items: Sequence[object]) -> None:
    async with probe.source(items) as source:
        async with probe.session(source, "a") as first, probe.session(source, "b") as second:
            mine = await take_now(first, 2)
            others = await take_now(second, 2)
            mine += await take_now(first, 2)
            await first.settle(mine)
        again = await reopened(probe, source, len(items) - len(mine))
    probe.same(
        again, left(items, mine), what=f"all but the {len(mine)} that a settled ({len(others)} were in b's hand)"
    )


@_proves("settle-idempotent")
async def settling_twice_is_once(probe: SourceProbe) -> None:
    """The same settlements are sent three times, once with a fetch."""
    items = probe.items(5)

    async with filled(probe, items) as session:
        taken = await session.take(2)
        settlements = session.settlements(taken)
        await session.exchange(settlements, max_items=0)
        await session.exchange(settlements, max_items=0)
        new = await session.exchange(settlements, max_items=1)
        rest = [*new, *await _settled_rest(session, new)]

    probe.same(rest, left(items, taken), what="those that were not settled")
    probe.expect(not session.lost, expected="nothing reported as lost", got=session.lost)


async def _settled_rest(session: SessionProbe, new: Sequence[Taken]) -> list[Taken]:
    await session.settle(new)
    return await session.rest()


@_proves("give-back")
async def given_back_items_come_at_once(probe: SourceProbe) -> None:
    """No time passes between give_back() and the next fetch."""
    items = probe.items(4)

    async with filled(probe, items) as session:
        await session.give_back(await session.take(3))
        again = await take_now(session, 4)

    probe.same(again, items, what="all of them, at once")


@_proves("give-back-idempotent")
async def giving_back_twice_is_once(probe: SourceProbe) -> None:
    """One of the items is settled already."""
    items = probe.items(4)

    async with filled(probe, items) as session:
        taken = await session.take(3)
        await session.settle(taken[:1])
        await session.give_back(taken)
        await session.give_back(taken)
        rest = await session.rest()

    probe.same(rest, left(items, taken[:1]), what="those that were not settled, each once")


@_proves("give-back-refund", needs=["keeps_counts"])
async def a_refund_takes_the_delivery_back(probe: SourceProbe) -> None:
    """The second hand-out counts as the first."""
    async with filled(probe, probe.items(3)) as session:
        await session.give_back(await session.take(2), refund=True)
        _delivered(probe, await session.take(3), [1, 1, 1])


@_proves("give-back-counted", needs=["keeps_counts"])
async def without_refund_the_delivery_counts(probe: SourceProbe) -> None:
    """The second hand-out counts as the second."""
    async with filled(probe, probe.items(2)) as session:
        await session.give_back(await session.take(2), refund=False)
        _delivered(probe, await session.take(2), [2, 2])


def _delivered(probe: SourceProbe, taken: Sequence[Taken], wanted: Sequence[int]) -> None:
    got = [each.deliveries for each in taken]
    probe.expect(sorted(got) == sorted(wanted), expected=f"deliveries {list(wanted)}", got=f"deliveries {got}")


@_proves("unsettled-again", needs=["redelivers"])
async def unsettled_items_come_again(probe: SourceProbe) -> None:
    """A session takes three items, settles one, and is left."""
    items = probe.items(5)

    async with probe.source(items) as source:
        async with probe.session(source) as session:
            taken = await session.take(3)
            await session.settle(taken[:1])
        again = await reopened(probe, source, 4)

    probe.same(again, left(items, taken[:1]), what="those that were not settled")


@_proves("claim-ends", needs=["supports_claims", "supports_members"])
async def claims_run_out(probe: SourceProbe) -> None:
    """A member that neither settles nor renews loses its items to another."""
    items = probe.items(2)

    async with probe.source(items) as source, probe.session(source, "a") as first, probe.session(source, "b") as second:
        await first.take(2)
        early = await second.exchange(max_items=2)
        probe.expect(not early, expected="nothing for b while a's claim holds", got=told(early))
        await _let_claim_end(first)
        again = await second.take(2)

    probe.same(again, items, what="a's items, in b's hand")


async def _let_claim_end(session: SessionProbe) -> None:
    claim = session.session.claim_seconds
    if claim is None:
        session.probe.fail(expected="claim_seconds to be a number, as supports_claims is on", got="None")
    session.probe.trail.append(f"let {claim:g} s pass")
    await session.probe.traits.pass_time(claim * 1.1 + 0.01)


@_proves("renew-extends", needs=["supports_claims", "supports_members"])
async def renewing_keeps_the_claim(probe: SourceProbe) -> None:
    """Twice as long as a claim lasts, with renewals between."""
    async with (
        probe.source(probe.items(2)) as source,
        probe.session(source, "a") as first,
        probe.session(source, "b") as second,
    ):
        since = anyio.current_time()
        await first.take(2)
        for _ in range(5):
            await probe.traits.pass_time((first.session.claim_seconds or 0.0) * 0.4)
            since = _in_time(first, since)
            lost = await first.renew()
            probe.expect(not lost, expected="nothing lost", got=list(lost))
            stolen = await second.exchange(max_items=2)
            _in_time(first, since)
            probe.expect(not stolen, expected="nothing for b while a renews", got=told(stolen))


def _in_time(session: SessionProbe, since: float) -> float:
    """Return the time, and fail when the machine was too slow for the claim to be judged."""
    now = anyio.current_time()
    claim = session.session.claim_seconds or 0.0
    session.probe.expect(
        now - since < claim * 0.9,
        expected="a claim that outlives a pause of this machine; open the source with a longer one",
        got=f"{now - since:.2f} s went by, and the claim lasts {claim:g} s",
    )
    return now


@_proves("deliveries-counted", needs=["keeps_counts", "redelivers"])
async def deliveries_count_up(probe: SourceProbe) -> None:
    """Three sessions take the same items and leave them."""
    async with probe.source(probe.items(2)) as source:
        for count in (1, 2, 3):
            _delivered(probe, await reopened(probe, source, 2), [count, count])


@_proves("failures-kept", needs=["keeps_counts"])
async def retries_keep_their_failures(probe: SourceProbe) -> None:
    """One item goes back with two failures, cut off."""
    async with filled(probe, probe.items(4)) as session:
        first, second = await session.take(2)
        await session.settle([second], retries=[retry_of(first, 2, maybe_done=True)])
        again = await session.take(3)

    _failed(probe, again, {first.place: (2, True)})


@_proves("renew-keeps-failures", needs=["keeps_counts", "redelivers"])
async def renewals_keep_failures(probe: SourceProbe) -> None:
    """The item stays in hand, and its failures are known to whoever gets it next."""
    async with probe.source(probe.items(2)) as source:
        async with probe.session(source) as session:
            first, _ = await session.take(2)
            await session.renew([retry_of(first, 3, maybe_done=True)])
            early = await session.exchange(max_items=2)
            probe.expect(not early, expected="the item to stay in hand", got=told(early))
        again = await reopened(probe, source, 2)

    _failed(probe, again, {first.place: (3, True)})


def _failed(probe: SourceProbe, taken: Sequence[Taken], wanted: dict[Place, tuple[int, bool]]) -> None:
    for each in taken:
        # Whether an item that did not fail is maybe_done depends on how its claim ended.
        failures, maybe_done = wanted.get(each.place, (0, each.maybe_done))
        probe.expect(
            (each.failures, each.maybe_done) == (failures, maybe_done),
            expected=f"{each.item!r} with failures={failures}, maybe_done={maybe_done}",
            got=f"failures={each.failures}, maybe_done={each.maybe_done}",
        )


@_proves("retry-due", needs=["supports_delay"])
async def retries_wait_for_their_time(probe: SourceProbe) -> None:
    """A retry goes back with a delay while another item waits."""
    delay = probe.traits.delay_seconds

    async with filled(probe, probe.items(3)) as session:
        first, second = await session.take(2)
        sent = anyio.current_time()
        await session.settle([second], retries=[retry_of(first, 1, after=delay)])
        early = await take_now(session, 2)
        waited = anyio.current_time() - sent
        before = [each.item for each in early if waited < delay]  # all, unless the machine is very slow
        probe.expect(first.item not in before, expected=f"the retry after {delay:g} s, not at once", got=told(early))
        if first.item in [each.item for each in early]:
            return
        await session.settle(early)
        await probe.traits.pass_time(delay)
        again = await session.take(1)

    probe.same(again, [first.item], what="the retry, when it is due")


@_proves("stale-epoch", needs=["supports_epochs", "redelivers"])
async def old_epochs_change_nothing(probe: SourceProbe) -> None:
    """A member's settlement arrives after another one took its items over."""
    items = probe.items(2)

    async with probe.source(items) as source:
        async with probe.session(source, "a") as first:
            old = await first.take(2)
        async with probe.session(source, "b") as second:
            await take_again(second, 2)
            await second.exchange(first.settlements(old), max_items=0)
            _reported(probe, old, second.lost)
        probe.same(await reopened(probe, source, 2), items, what="all, as none was settled by their owner")
    if probe.traits.supports_claims and probe.traits.supports_members:
        await _old_epoch_of_a_living_member(probe, items)


async def _old_epoch_of_a_living_member(probe: SourceProbe, items: Sequence[object]) -> None:
    async with probe.source(items) as source:
        async with probe.session(source, "a") as first, probe.session(source, "b") as second:
            old = await first.take(2)
            await _let_claim_end(first)
            await second.take(2)
            await first.exchange(first.settlements(old), max_items=0)
            _reported(probe, old, first.lost)
        probe.same(await reopened(probe, source, 2), items, what="all, as none was settled by their owner")


def _reported(probe: SourceProbe, old: Sequence[Taken], lost: Sequence[Deliveries]) -> None:
    wanted = {(each.place, each.epoch) for each in old}
    got = {((group.partition, offset), group.epoch) for group in lost for offset in group.offsets}
    probe.expect(wanted <= got, expected=f"lost={deliveries_of(old)!r}", got=f"lost={list(lost)!r}")


@_proves("members-apart", needs=["supports_members"])
async def members_hold_different_items(probe: SourceProbe) -> None:
    """Two members fetch at the same time until nothing is left."""
    items = probe.items(24)

    async with probe.source(items) as source, probe.session(source, "a") as first, probe.session(source, "b") as second:
        taken: list[Taken] = []
        for _ in range(8):
            pair = await at_once([lambda: first.exchange(max_items=3), lambda: second.exchange(max_items=3)])
            taken += [each for part in pair for each in part]

    places = [each.place for each in taken]
    twice = [place for place in set(places) if places.count(place) > 1]
    probe.expect(not twice, expected="each item in one hand", got=f"in two hands: {twice[:6]!r}")


@frozen
class _LaterSettlement(Settlement):
    reason: str = "unknown to the plugin"


@frozen
class _LaterRedelivery(Redelivery):
    reason: str = "unknown to the plugin"


@frozen
class _LaterDeliveries(Deliveries):
    reason: str = "unknown to the plugin"


@frozen
class _LaterMember(Member):
    zone: str = "unknown to the plugin"


@_proves("unknown-fields")
async def later_records_are_taken(probe: SourceProbe) -> None:
    """Every record that goes in has one field more than today."""
    items = probe.items(4)

    async with probe.source(items) as source:
        probe.trail.append("open, renew, settle, retry and give back with records that have one field more")
        async with source.open(_LaterMember("later-1")) as plain:
            session = SessionProbe(probe, plain, "a")
            first, second, third = await session.take(3)
            retry = _LaterRedelivery(first.offset, 1, partition=first.partition, epoch=first.epoch)
            await session.renew([retry])
            settled = [_later(each) for each in session.settlements([second], retries=[retry])]
            await session.exchange(settled, max_items=0)
            back = _LaterDeliveries([third.offset], partition=third.partition, epoch=third.epoch)
            await probe.call("give_back()", lambda: plain.give_back([back], refund=True))
            with anyio.move_on_after(probe.traits.patience):
                rest = await session.rest()
                probe.same(rest, left(items, [second]), what="all but the settled one")


def _later(plain: Settlement) -> Settlement:
    return _LaterSettlement(
        plain.offsets, partition=plain.partition, epoch=plain.epoch, mark=plain.mark, retries=plain.retries
    )
