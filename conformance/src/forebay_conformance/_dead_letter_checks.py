"""Checks of a dead-letter store: what is put is kept exactly, and the store stays usable."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial

import attrs
from attrs import frozen

from forebay.abc import DeadLetter, DeadLetterFilter, DeadLetterId, DeadLetterState
from forebay_conformance._dead_letter_probe import ALL, DEAD_LETTER_CHECKS, DeadLetterProbe, letter, whole
from forebay_conformance._ends import leaves_cleanly, leaves_nothing, shows_no_secrets
from forebay_conformance._probe import CUTS, at_once, cut

_proves = DEAD_LETTER_CHECKS.proves


@_proves("put-idempotent")
async def a_second_put_leaves_the_first(probe: DeadLetterProbe) -> None:
    """The second record of the same id says something else."""
    first, second = letter(1), letter(1, payload=b"other", message="other", attempts=9)

    async with probe.store(first) as store:
        await probe.put(store, [second])
        await probe.found(store, [first])
        (got,) = await probe.find(store)
        probe.fields_equal(got, first, ["payload", "message", "attempts"])


@_proves("put-mixed")
async def known_ids_do_not_keep_new_ones_out(probe: DeadLetterProbe) -> None:
    """The known one stands in the middle, and one id comes twice in the same put."""
    async with probe.store(letter(2)) as store:
        await probe.put(store, [letter(1), letter(2), letter(3), letter(3)])
        await probe.found(store, [letter(1), letter(2), letter(3)])


@_proves("put-empty")
async def an_empty_put_is_taken(probe: DeadLetterProbe) -> None:
    """Nothing is put, nothing is there."""
    async with probe.store() as store:
        await probe.put(store, [])
        await probe.found(store, [])


@_proves("put-all-or-none")
async def a_cut_put_is_whole_or_nothing(probe: DeadLetterProbe) -> None:
    """Puts of four records are cut off at every step."""
    async with probe.store() as store:
        for turn, where in enumerate(CUTS):
            pipeline = f"cut-{turn}"
            batch = [letter(n, id=DeadLetterId(pipeline, "queue", 0, str(n))) for n in range(4)]
            probe.trail.append(f"put(4 records), cut off {where}")
            done = await cut(where, partial(store.put, batch))
            got = len(await probe.find(store, DeadLetterFilter(pipeline=pipeline)))
            wanted = (4,) if done else (0, 4)
            probe.expect(got in wanted, expected=f"{' or '.join(map(str, wanted))} records", got=f"{got} records")


@_proves("put-concurrent")
async def puts_at_the_same_time_are_all_stored(probe: DeadLetterProbe) -> None:
    """Twenty tasks whose records overlap."""
    batches = [[letter(n) for n in range(start, start + 6)] for start in range(0, 60, 3)]

    async with probe.store() as store:
        await at_once([partial(probe.put, store, batch) for batch in batches])
        await probe.found(store, [letter(n) for n in range(63)])


@_proves("payload-exact")
async def payloads_are_exact(probe: DeadLetterProbe) -> None:
    """Every byte, nothing, a mebibyte, and forty that a seed made up."""
    chance = random.Random(4711)  # the same bytes each time
    payloads = [b"", bytes(range(256)), b"\0" * 9, "é – 中".encode(), b"\xff\xfe'\"\\%s", chance.randbytes(2**20)]
    payloads += [chance.randbytes(chance.randrange(1, 300)) for _ in range(40)]
    letters = [letter(n, payload=payload) for n, payload in enumerate(payloads)]

    async with probe.store(*letters) as store:
        got = await probe.find(store)

    probe.expect(len(got) == len(letters), expected=f"{len(letters)} records", got=f"{len(got)} records")
    for came, went in zip(got, letters, strict=True):
        equal = came.payload == went.payload
        probe.expect(equal, expected=f"payload={_cut(went.payload)}", got=f"payload={_cut(came.payload)}")


def _cut(data: object) -> str:
    return f"{data[:40]!r} ({len(data)} bytes)" if isinstance(data, bytes) else repr(data)[:60]


@_proves("headers-exact")
async def headers_are_exact(probe: DeadLetterProbe) -> None:
    """Empty, odd and many."""
    odd = {"": "", "a b": "c=d; e", "Case": "1", "case": "2", "é": "中\n\t'\"\\", "%": "_", "null": "null"}
    many = {f"h{n}": str(n) * 20 for n in range(200)}
    letters = [letter(1, headers={}), letter(2, headers=odd), letter(3, headers=many)]

    async with probe.store(*letters) as store:
        got = await probe.find(store)

    for came, went in zip(got, letters, strict=True):
        headers = dict(came.headers)
        probe.expect(headers == went.headers, expected=f"headers={went.headers!r}", got=f"headers={headers!r}")


@_proves("fields-exact")
async def fields_are_exact(probe: DeadLetterProbe) -> None:
    """One record with every field set, one with the defaults."""
    names = [field.name for field in attrs.fields(DeadLetter) if field.name not in ("payload", "headers")]
    letters = [whole(1), letter(2)]

    async with probe.store(*letters) as store:
        got = await probe.find(store)

    probe.expect(len(got) == 2, expected="2 records", got=f"{len(got)} records")
    for came, went in zip(got, letters, strict=True):
        probe.fields_equal(came, went, names)


@_proves("odd-text")
async def odd_text_is_stored(probe: DeadLetterProbe) -> None:
    """NUL and half a surrogate pair in every text that comes from outside."""
    odd = "bad\0 \udc80 \ud83d text"
    record = letter(1, message=odd, masked_message=odd, traceback=odd, key=odd, headers={"h": odd}, error_type=odd)

    async with probe.store(record) as store:
        (got,) = await probe.find(store) or [letter(0, payload=b"nothing")]

    probe.fields_equal(got, record, ["id", "payload"])
    probe.expect("bad" in got.message, expected="a message with `bad` in it", got=got.message)


@_proves("cancel-safe")
async def cut_calls_leave_the_store_usable(probe: DeadLetterProbe) -> None:
    """Every method is cut off at every step, and the next calls are right."""
    old, new = DeadLetterState.DEAD, DeadLetterState.REPLAYING
    fixed = letter(0, id=DeadLetterId("fixed", "queue", 0, "0"))

    async with probe.store(fixed) as store:
        calls: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("put", lambda: store.put([letter(1), letter(2)])),
            ("find", lambda: store.find(ALL, limit=10)),
            ("groups", lambda: store.groups(ALL)),
            ("move", lambda: store.move([letter(1).id], old=old, new=new)),
            ("purge", lambda: store.purge(DeadLetterFilter(pipeline="orders"), limit=10)),
        ]
        for name, function in calls:
            for where in CUTS:
                probe.trail.append(f"cut {name}() off {where}")
                await cut(where, function)
                await probe.found(store, [fixed], DeadLetterFilter(pipeline="fixed"))
        await probe.put(store, [letter(3)])
        await probe.purge(store, ALL, 10)
        await probe.found(store, [])


@frozen
class _LaterLetter(DeadLetter):
    severity: str = "unknown to the plugin"


@frozen
class _LaterFilter(DeadLetterFilter):
    severity: str | None = None


@_proves("unknown-fields")
async def later_letters_are_taken(probe: DeadLetterProbe) -> None:
    """The record and the filter have one field more than today."""
    plain = whole(1)
    later = _LaterLetter(**{field.name: getattr(plain, field.name) for field in attrs.fields(DeadLetter)})

    async with probe.store(later) as store:
        got = await probe.find(store, _LaterFilter(pipeline="orders"))

    probe.expect(len(got) == 1, expected="1 record", got=f"{len(got)} records")
    probe.fields_equal(got[0], plain, [field.name for field in attrs.fields(DeadLetter) if field.name != "headers"])


@_proves("leave-cleanly")
async def dead_letter_stores_are_left_cleanly(probe: DeadLetterProbe) -> None:
    """By an exception, by cancellation, and closed twice."""
    await leaves_cleanly(probe, probe.store, "store")


@_proves("leaves-nothing")
async def dead_letter_stores_leave_nothing_behind(probe: DeadLetterProbe) -> None:
    """Open, put, find, close; eight times."""

    async def use() -> None:
        async with probe.store(letter(1)) as store:
            await probe.find(store)

    await leaves_nothing(probe, use)


@_proves("no-secrets", needs=["has_secret"])
async def dead_letter_store_errors_show_no_secrets(probe: DeadLetterProbe) -> None:
    """The engine is not there, and the exception says so without the password."""
    await shows_no_secrets(probe, lambda store: store.put([letter(1)]))
