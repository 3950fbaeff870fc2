"""Checks of a dead-letter store: find, groups, move and purge."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from forebay import Category
from forebay.abc import DeadLetter, DeadLetterFilter, DeadLetterGroup, DeadLetterId, DeadLetterState
from forebay_conformance._dead_letter_probe import ALL, DEAD_LETTER_CHECKS, DeadLetterProbe, asked, letter, short
from forebay_conformance._probe import at_once

_proves = DEAD_LETTER_CHECKS.proves

_PLACES = [
    DeadLetterId("orders", "a", 0, "10"),
    DeadLetterId("orders", "a", 0, "9"),
    DeadLetterId("orders", "a", 0, "9", 1),
    DeadLetterId("orders", "a", 0, "B"),
    DeadLetterId("orders", "a", 0, "a"),
    DeadLetterId("orders", "a", 0, "é"),
    DeadLetterId("orders", "a", 2, "0"),
    DeadLetterId("orders", "a", 10, "0"),
    DeadLetterId("orders", "b", 0, "0"),
    DeadLetterId("orders-eu", "a", 0, "0"),
    DeadLetterId("returns", "a", 0, "0"),
]


@_proves("find-order")
async def found_in_the_order_of_ids(probe: DeadLetterProbe) -> None:
    """Partitions are numbers, offsets are text, capitals come before small letters."""
    letters = [letter(n, id=place) for n, place in enumerate(_PLACES)]
    shuffled = random.Random(7).sample(letters, len(letters))

    async with probe.store(*shuffled) as store:
        await probe.found(store, letters)


@_proves("find-pages")
async def pages_give_each_record_once(probe: DeadLetterProbe) -> None:
    """Pages of one, four and more than all, from behind the last record of each."""
    letters = [letter(n, id=place) for n, place in enumerate(_PLACES)]

    async with probe.store(*letters) as store:
        for size in (1, 4, 50):
            got: list[str] = []
            after: DeadLetterId | None = None
            while page := await probe.find(store, limit=size, after=after):
                probe.expect(len(page) <= size, expected=f"at most {size} records", got=f"{len(page)} records")
                got += [short(each.id) for each in page]
                probe.expect(len(got) <= len(letters), expected="each record once", got=f"pages {got}")
                after = page[-1].id
            probe.expect(sorted(got) == sorted(map(short, _PLACES)), expected="each record once", got=got)
        await probe.find(store, limit=1, after=DeadLetterId("none", "such", 0, ""))


def _varied() -> list[DeadLetter]:
    """Return records that differ in every field that a filter knows."""
    letters: list[DeadLetter] = []
    for n in range(24):
        letters.append(
            letter(
                n,
                id=DeadLetterId(("orders", "Orders")[n % 2], ("queue", "file")[n // 2 % 2], 0, f"{n:03}"),
                stage=("parse", "store", "send")[n % 3],
                category=(Category.PERMANENT, Category.POISON, Category.UNKNOWN)[n // 3 % 3],
                fingerprint=("fp1:aa", "fp1:bb", "fp1:cc", "fp1:dd")[n // 6],
                state=(DeadLetterState.DEAD, DeadLetterState.RESOLVED)[n // 4 % 2],
                last_seen=1_700_000_000.0 + n * 0.5,
            )
        )
    return sorted(letters, key=lambda each: each.id)


_FILTERS = [
    ALL,
    DeadLetterFilter(pipeline="orders"),
    DeadLetterFilter(source="file"),
    DeadLetterFilter(stage="store"),
    DeadLetterFilter(category=Category.POISON),
    DeadLetterFilter(fingerprint="fp1:bb"),
    DeadLetterFilter(state=DeadLetterState.RESOLVED),
    DeadLetterFilter(since=1_700_000_005.0),
    DeadLetterFilter(until=1_700_000_005.0),
    DeadLetterFilter(since=1_700_000_002.5, until=1_700_000_002.5),
    DeadLetterFilter(pipeline="orders", source="queue", stage="parse", since=1_700_000_001.0, until=1_700_000_010.0),
    DeadLetterFilter(category=Category.UNKNOWN, state=DeadLetterState.DEAD),
    DeadLetterFilter(pipeline="order"),
    DeadLetterFilter(stage="%"),
]


@_proves("find-filter")
async def filters_are_exact(probe: DeadLetterProbe) -> None:
    """Each field alone, several together, `since` inclusive and `until` exclusive."""
    letters = _varied()

    async with probe.store(*letters) as store:
        for wanted in _FILTERS:
            await probe.found(store, [each for each in letters if wanted.matches(each)], wanted)


@_proves("find-text")
async def text_is_a_plain_substring(probe: DeadLetterProbe) -> None:
    """Wildcards of LIKE, of GLOB and of patterns stand for themselves."""
    messages = [
        "50 % off",
        "50 percent off",
        "a_b",
        "axb",
        "Key",
        "key",
        "[a]",
        "a",
        "*",
        "back\\slash",
        "it's",
        "É",
        "é",
    ]
    letters = [letter(n, message=message) for n, message in enumerate(messages)]

    async with probe.store(*letters) as store:
        for text in ("%", "a_b", "Key", "key", "[a]", "*", "\\", "'", "é", "50 %", "none of them"):
            wanted = DeadLetterFilter(text=text)
            await probe.found(store, [each for each in letters if wanted.matches(each)], wanted)


def _grouped() -> list[DeadLetter]:
    letters: list[DeadLetter] = []
    for fingerprint, count in (("fp1:bb", 3), ("fp1:aa", 3), ("fp1:zz", 5), ("fp1:cc", 1)):
        for n in range(count):
            number = len(letters)
            newest = n == count // 2  # neither the first nor the last by id, where there are several
            letters.append(
                letter(
                    number,
                    fingerprint=fingerprint,
                    category=Category.POISON if fingerprint == "fp1:cc" else Category.PERMANENT,
                    first_seen=1_000.0 - n * 0.25,
                    last_seen=9_000.0 + number if newest else 2_000.0 + number,
                    stage="send" if newest else "store",
                    error_type="builtins.KeyError" if newest else "builtins.ValueError",
                    masked_message=f"newest of {fingerprint}" if newest else "older",
                )
            )
    return letters


def groups_of(letters: Sequence[DeadLetter], /) -> list[DeadLetterGroup]:
    """Return the groups that *letters* form, in the order that groups() owes."""
    by_fingerprint: dict[str, list[DeadLetter]] = {}
    for each in letters:
        by_fingerprint.setdefault(each.fingerprint, []).append(each)
    groups: list[DeadLetterGroup] = []
    for fingerprint, members in by_fingerprint.items():
        newest = max(members, key=lambda each: each.last_seen)
        first = min(each.first_seen for each in members)
        what = (newest.stage, newest.error_type, newest.masked_message)
        groups.append(DeadLetterGroup(fingerprint, newest.category, len(members), first, newest.last_seen, *what))
    return sorted(groups, key=lambda group: (-group.count, group.fingerprint))


@_proves("groups-count")
async def groups_are_counted(probe: DeadLetterProbe) -> None:
    """Counts, times, and what the newest record says."""
    letters = _grouped()
    wanted = {group.fingerprint: group for group in groups_of(letters)}

    async with probe.store(*letters) as store:
        got = await probe.call("groups(all)", lambda: store.groups(ALL))

    probe.expect(len(got) == len(wanted), expected=f"{len(wanted)} groups", got=f"{len(got)} groups")
    for group in got:
        owed = wanted.get(group.fingerprint)
        probe.expect(group == owed, expected=repr(owed), got=repr(group))


@_proves("groups-order")
async def the_largest_group_comes_first(probe: DeadLetterProbe) -> None:
    """Five, then two of three by their fingerprints, then one."""
    async with probe.store(*_grouped()) as store:
        got = await probe.call("groups(all)", lambda: store.groups(ALL))

    order = [group.fingerprint for group in got]
    wanted = ["fp1:zz", "fp1:aa", "fp1:bb", "fp1:cc"]
    probe.expect(order == wanted, expected=wanted.__repr__(), got=order)


@_proves("groups-filter")
async def groups_keep_to_the_filter(probe: DeadLetterProbe) -> None:
    """Only what the filter matches is counted."""
    letters = _varied()

    async with probe.store(*letters) as store:
        for wanted in _FILTERS:
            owed = {g.fingerprint: g.count for g in groups_of([each for each in letters if wanted.matches(each)])}
            got = await probe.call(f"groups({asked(wanted)})", partial(store.groups, wanted))
            counts = {group.fingerprint: group.count for group in got}
            probe.expect(counts == owed, expected=f"counts {owed}", got=f"counts {counts}")


@_proves("move-state")
async def moving_is_exact(probe: DeadLetterProbe) -> None:
    """Ids in another state, unknown ids and repeated ids are not moved."""
    letters = [letter(n) for n in range(3)] + [letter(3, state=DeadLetterState.RESOLVED)]
    ids = [each.id for each in letters]
    unknown = DeadLetterId("orders", "queue", 0, "unknown")

    async with probe.store(*letters) as store:
        asked_for = [ids[0], ids[1], ids[1], ids[3], unknown]
        moved = await probe.move(store, asked_for, DeadLetterState.DEAD, DeadLetterState.REPLAYING)
        probe.expect(sorted(moved) == ids[:2], expected=f"{len(ids[:2])} ids, each once", got=list(map(short, moved)))
        again = await probe.move(store, ids, DeadLetterState.DEAD, DeadLetterState.DISCARDED)
        probe.expect(again == [ids[2]], expected=f"[{short(ids[2])}]", got=list(map(short, again)))
        got = {each.id.offset[-1]: each.state.value for each in await probe.find(store)}
    wanted = {"0": "replaying", "1": "replaying", "2": "discarded", "3": "resolved"}
    probe.expect(got == wanted, expected=f"states {wanted}", got=f"states {got}")


@_proves("move-race")
async def each_id_is_moved_once(probe: DeadLetterProbe) -> None:
    """Eight tasks move the same twelve ids."""
    letters = [letter(n) for n in range(12)]
    ids = [each.id for each in letters]
    old, new = DeadLetterState.DEAD, DeadLetterState.REPLAYING

    async with probe.store(*letters) as store:
        turns = [ids[n:] + ids[:n] for n in range(8)]
        results = await at_once([partial(probe.move, store, turn, old, new) for turn in turns])

    moved = sorted(short(each) for result in results for each in result)
    probe.expect(moved == sorted(map(short, ids)), expected="each of 12 ids to one task", got=f"{len(moved)}: {moved}")


@_proves("purge-bounded")
async def purging_is_bounded(probe: DeadLetterProbe) -> None:
    """Seven records by three and three."""
    async with probe.store(*[letter(n) for n in range(7)]) as store:
        for wanted, left in ((3, 4), (3, 1), (1, 0), (0, 0)):
            deleted = await probe.purge(store, ALL, 3)
            rest = len(await probe.find(store))
            got = f"{deleted} deleted, {rest} left"
            probe.expect((deleted, rest) == (wanted, left), expected=f"{wanted} deleted, {left} left", got=got)


@_proves("purge-filter")
async def purging_keeps_to_the_filter(probe: DeadLetterProbe) -> None:
    """Each filter on a store of its own; what does not match stays."""
    letters = _varied()

    for wanted in _FILTERS[1:]:
        async with probe.store(*letters) as store:
            await probe.purge(store, wanted, 1000)
            await probe.found(store, [each for each in letters if not wanted.matches(each)])


@_proves("many")
async def a_thousand_are_no_trouble(probe: DeadLetterProbe) -> None:
    """One put, pages of a hundred and fifty, and a purge."""
    letters = [letter(n) for n in range(1000)]

    async with probe.store(*letters) as store:
        got: list[DeadLetter] = []
        while page := await probe.find(store, limit=150, after=got[-1].id if got else None):
            got += page
            probe.expect(len(got) <= 1000, expected="1000 records in pages", got=f"{len(got)} and more")
        deleted = await probe.purge(store, ALL, 1000)

    same = [each.id for each in got] == [each.id for each in letters]
    probe.expect(same, expected="1000 records, in order", got=f"{len(got)} records")
    probe.expect(deleted == 1000, expected="1000 deleted", got=f"{deleted} deleted")
