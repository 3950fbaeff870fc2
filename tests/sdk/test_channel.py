import random
from collections import deque

import anyio
import attrs
import pytest
from anyio import wait_all_tasks_blocked
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay import ChannelClosedError, EndOfChannel, ReceiveChannel, SendChannel, open_channel
from forebay._buffer import Buffer, Part
from forebay.testing import BackendName, How, cancel_at_every_step, run_virtual

pytestmark = pytest.mark.anyio


def open_numbers(max_items: int) -> tuple[SendChannel[int], ReceiveChannel[int]]:
    return open_channel(max_items)


def open_texts(max_items: int, max_bytes: int | None = None) -> tuple[SendChannel[str], ReceiveChannel[str]]:
    return open_channel(max_items, max_bytes=max_bytes, weigh=len)


def open_plain_texts(max_items: int) -> tuple[SendChannel[str], ReceiveChannel[str]]:
    return open_channel(max_items)


def _open_pairs(max_items: int) -> tuple[SendChannel[tuple[int, int]], ReceiveChannel[tuple[int, int]]]:
    return open_channel(max_items)


def _weigh(item: object) -> int:
    if not isinstance(item, str):
        raise TypeError(f"{item!r} has no weight")
    return len(item)


backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


# --- Sending and receiving ---------------------------------------------------------------------


async def test_lists_come_out_whole_and_in_the_order_they_went_in() -> None:
    send, receive = open_numbers(10)

    await send.send([1, 2, 3])
    await send.send((4,))
    await send.send(range(5, 7))

    assert await receive.receive() == [1, 2, 3]
    assert await receive.receive() == [4]
    assert await receive.receive() == [5, 6]


async def test_what_the_sender_does_to_its_list_afterwards_does_not_reach_the_receiver() -> None:
    send, receive = open_numbers(10)
    items = [1, 2]

    await send.send(items)
    items.append(3)

    assert await receive.receive() == [1, 2]


async def test_an_empty_list_is_sent_to_nobody() -> None:
    send, receive = open_numbers(1)

    await send.send([])
    send.send_nowait([])

    assert receive.statistics().sent == 0
    with pytest.raises(anyio.WouldBlock):
        receive.receive_nowait()


async def test_iterating_ends_when_the_senders_are_closed() -> None:
    send, receive = open_numbers(10)
    with send:
        await send.send([1, 2])
        await send.send([3])

    with receive:
        assert [items async for items in receive] == [[1, 2], [3]]

    with pytest.raises(ChannelClosedError, match="this receive end is closed"):
        await receive.receive()


@pytest.mark.parametrize(
    ("max_items", "expected"),
    [
        (1, [[1], [2], [3], [4], [5], [6]]),
        (2, [[1, 2], [3, 4], [5, 6]]),
        (4, [[1, 2, 3, 4], [5, 6]]),
        (9, [[1, 2, 3, 4, 5, 6]]),
    ],
)
async def test_max_items_cuts_and_joins_lists(max_items: int, expected: list[list[int]]) -> None:
    send, receive = open_numbers(10)
    for items in ([1, 2, 3], [4], [5, 6]):
        send.send_nowait(items)
    send.close()

    got = [await receive.receive(max_items=max_items) for _ in expected]

    assert got == expected
    with pytest.raises(EndOfChannel, match="all senders are closed and everything has been received"):
        await receive.receive(max_items=max_items)


@pytest.mark.parametrize(
    ("max_bytes", "expected"),
    [
        (4, [["aa", "b"], ["cccccc"], ["dd", "e"]]),
        (6, [["aa", "b"], ["cccccc"], ["dd", "e"]]),
        (9, [["aa", "b", "cccccc"], ["dd", "e"]]),
        (2, [["aa"], ["b"], ["cccccc"], ["dd"], ["e"]]),
        (1, [["aa"], ["b"], ["cccccc"], ["dd"], ["e"]]),
        (99, [["aa", "b", "cccccc", "dd", "e"]]),
    ],
)
async def test_max_bytes_cuts_and_joins_and_lets_a_larger_item_go_alone(
    max_bytes: int, expected: list[list[str]]
) -> None:
    send, receive = open_texts(10)
    send.send_nowait(["aa", "b", "cccccc", "dd"])
    send.send_nowait(["e"])

    got = [receive.receive_nowait(max_bytes=max_bytes) for _ in expected]

    assert got == expected
    assert receive.statistics().items == 0
    assert receive.statistics().items_bytes == 0


async def test_max_items_and_max_bytes_hold_together() -> None:
    send, receive = open_texts(10)
    send.send_nowait(["a", "b", "c", "dddd", "e"])

    assert await receive.receive(max_items=2, max_bytes=10) == ["a", "b"]
    assert await receive.receive(max_items=3, max_bytes=4) == ["c"]
    assert await receive.receive(max_items=3, max_bytes=5) == ["dddd", "e"]


async def test_a_receiver_that_waits_gets_what_comes() -> None:
    send, receive = open_numbers(10)
    got: list[list[int]] = []

    async def take() -> None:
        got.append(await receive.receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await wait_all_tasks_blocked()
        assert send.statistics().waiting_receivers == 1
        await send.send([1])

    assert got == [[1]]
    assert send.statistics().waiting_receivers == 0


async def test_a_list_that_one_receiver_cuts_leaves_the_rest_for_the_next() -> None:
    send, receive = open_numbers(10)
    got: list[list[int]] = []

    async def take() -> None:
        got.append(await receive.receive(max_items=2))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(take)
        await wait_all_tasks_blocked()
        await send.send([1, 2, 3, 4, 5])

    assert sorted(got) == [[1, 2], [3, 4], [5]]


async def test_a_receiver_whose_items_were_taken_by_another_waits_on() -> None:
    send, receive = open_numbers(10)
    got: list[list[int]] = []

    async def take() -> None:
        got.append(await receive.receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await wait_all_tasks_blocked()
        send.send_nowait([1])
        assert receive.receive_nowait() == [1]
        await wait_all_tasks_blocked()
        assert got == []
        send.send_nowait([2])

    assert got == [[2]]


# --- Bounds ------------------------------------------------------------------------------------


async def test_the_bound_counts_items_not_lists() -> None:
    send, receive = open_numbers(3)
    send.send_nowait([1, 2])

    with pytest.raises(anyio.WouldBlock):
        send.send_nowait([3, 4])
    send.send_nowait([3])

    assert receive.statistics().items == 3


async def test_the_bound_counts_bytes_too() -> None:
    send, receive = open_texts(100, max_bytes=5)
    send.send_nowait(["aaa"])

    with pytest.raises(anyio.WouldBlock):
        send.send_nowait(["b", "cc"])
    send.send_nowait(["b", "c"])

    assert receive.statistics().items_bytes == 5


async def test_a_sender_waits_until_all_of_its_items_fit() -> None:
    send, receive = open_numbers(3)
    await send.send([1, 2])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send.send, [3, 4, 5])
        await wait_all_tasks_blocked()
        assert receive.receive_nowait(max_items=1) == [1]
        await wait_all_tasks_blocked()
        assert send.statistics().waiting_senders == 1
        assert receive.receive_nowait() == [2]

    assert receive.receive_nowait() == [3, 4, 5]


async def test_a_sender_waits_until_its_bytes_fit() -> None:
    send, receive = open_texts(100, max_bytes=4)
    await send.send(["aaa", "b"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send.send, ["cc"])
        await wait_all_tasks_blocked()
        assert receive.receive_nowait(max_items=1) == ["aaa"]

    assert receive.receive_nowait(max_items=9) == ["b", "cc"]


async def test_a_list_larger_than_the_bound_comes_in_when_the_channel_is_empty() -> None:
    send, receive = open_texts(2, max_bytes=2)
    await send.send(["a"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send.send, ["bbbb", "c", "d"])
        await wait_all_tasks_blocked()
        assert send.statistics().waiting_senders == 1
        assert receive.receive_nowait() == ["a"]

    assert receive.receive_nowait() == ["bbbb", "c", "d"]
    assert receive.statistics().peak_items == 3
    assert receive.statistics().peak_bytes == 6


async def test_an_item_that_cannot_be_weighed_is_not_sent() -> None:
    send, receive = open_channel(10, weigh=_weigh)

    with pytest.raises(TypeError, match="3 has no weight"):
        await send.send(["a", 3])

    assert receive.statistics().sent == receive.statistics().items == 0


# --- Fairness ----------------------------------------------------------------------------------


async def test_senders_are_served_in_the_order_they_came() -> None:
    send, receive = open_numbers(2)
    await send.send([0, 0])

    got: list[int] = []
    async with anyio.create_task_group() as tasks:
        for number in range(1, 6):
            tasks.start_soon(send.send, [number])
            await wait_all_tasks_blocked()
        while len(got) < 7:
            got += await receive.receive(max_items=1)

    assert got == [0, 0, 1, 2, 3, 4, 5]


async def test_a_small_list_does_not_overtake_a_large_one_that_waits() -> None:
    send, receive = open_numbers(4)
    await send.send([0, 0])

    got: list[list[int]] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send.send, [1, 1, 1, 1])
        await wait_all_tasks_blocked()
        tasks.start_soon(send.send, [2])
        await wait_all_tasks_blocked()
        with pytest.raises(anyio.WouldBlock):
            send.send_nowait([3])
        assert receive.statistics().items == 2
        got += [await receive.receive() for _ in range(3)]

    assert got == [[0, 0], [1, 1, 1, 1], [2]]


async def test_nobody_overtakes_a_sender_that_was_told_of_room_and_has_not_run_yet() -> None:
    send, receive = open_numbers(1)
    await send.send([0])

    got: list[list[int]] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send.send, [1])
        await wait_all_tasks_blocked()
        assert receive.receive_nowait() == [0]
        with pytest.raises(anyio.WouldBlock):
            send.send_nowait([2])
        tasks.start_soon(send.send, [2])
        got += [await receive.receive() for _ in range(2)]

    assert got == [[1], [2]]


async def test_closing_one_of_two_receive_ends_leaves_the_order_of_the_senders() -> None:
    send, receive = open_numbers(1)
    other = receive.clone()
    await send.send([0])

    got: list[list[int]] = []
    async with anyio.create_task_group() as tasks:
        for number in range(1, 6):
            tasks.start_soon(send.send, [number])
            await wait_all_tasks_blocked()
        other.close()
        await wait_all_tasks_blocked()
        got += [await receive.receive() for _ in range(6)]

    assert got == [[number] for number in range(6)]


async def test_room_that_is_made_at_once_goes_to_all_whom_it_is_enough_for() -> None:
    send, receive = open_numbers(3)
    await send.send([0, 0, 0])

    async with anyio.create_task_group() as tasks:
        for number in range(1, 5):
            tasks.start_soon(send.send, [number])
            await wait_all_tasks_blocked()
        assert receive.receive_nowait() == [0, 0, 0]
        await wait_all_tasks_blocked()

        assert receive.statistics().items == 3
        assert receive.statistics().waiting_senders == 1
        assert receive.receive_nowait(max_items=9) == [1, 2, 3]

    assert receive.receive_nowait() == [4]


async def test_receivers_are_woken_in_the_order_they_came() -> None:
    send, receive = open_numbers(10)
    got: list[tuple[str, list[int]]] = []

    async def take(name: str) -> None:
        got.append((name, await receive.receive()))

    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(take, name)
            await wait_all_tasks_blocked()
        for number in range(3):
            send.send_nowait([number])
            await wait_all_tasks_blocked()

    assert got == [("a", [0]), ("b", [1]), ("c", [2])]


# --- Closing -----------------------------------------------------------------------------------


async def test_what_was_sent_before_the_close_can_still_be_received() -> None:
    send, receive = open_numbers(10)
    await send.send([1, 2])

    send.close()
    send.close()

    assert await receive.receive(max_items=1) == [1]
    assert receive.receive_nowait() == [2]
    with pytest.raises(EndOfChannel):
        receive.receive_nowait()
    with pytest.raises(EndOfChannel):
        await receive.receive()


async def test_the_end_comes_when_the_last_of_several_send_ends_is_closed() -> None:
    send, receive = open_numbers(10)
    other = send.clone()
    assert receive.statistics().open_senders == 2

    send.close()
    with pytest.raises(anyio.WouldBlock):
        receive.receive_nowait()
    await other.send([1])
    other.close()

    assert [items async for items in receive] == [[1]]
    assert receive.statistics().open_senders == 0


async def test_receivers_that_wait_see_the_end() -> None:
    send, receive = open_numbers(10)
    ends: list[str] = []

    async def take() -> None:
        with pytest.raises(EndOfChannel):
            await receive.receive()
        ends.append("end")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        tasks.start_soon(take)
        await wait_all_tasks_blocked()
        send.close()

    assert ends == ["end", "end"]


async def test_a_closed_send_end_sends_and_clones_no_more() -> None:
    send, receive = open_numbers(10)
    send.close()

    with pytest.raises(ChannelClosedError, match=r"this send end is closed; clone\(\) it before"):
        await send.send([1])
    with pytest.raises(ChannelClosedError):
        send.send_nowait([1])
    with pytest.raises(ChannelClosedError):
        send.clone()

    assert receive.statistics().sent == 0


async def test_a_closed_receive_end_receives_and_clones_no_more() -> None:
    send, receive = open_numbers(10)
    other = receive.clone()
    await send.send([1])
    receive.close()
    receive.close()

    with pytest.raises(ChannelClosedError, match=r"this receive end is closed; clone\(\) it before"):
        await receive.receive()
    with pytest.raises(ChannelClosedError):
        receive.receive_nowait()
    with pytest.raises(ChannelClosedError):
        receive.clone()

    assert await other.receive() == [1]


async def test_the_last_receive_end_throws_away_what_waits_and_stops_the_senders() -> None:
    send, receive = open_texts(2, max_bytes=10)
    await send.send(["a", "b"])
    refused: list[str] = []

    async def put(item: str) -> None:
        with pytest.raises(ChannelClosedError, match="nothing was sent"):
            await send.send([item])
        refused.append(item)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(put, "c")
        tasks.start_soon(put, "d")
        await wait_all_tasks_blocked()
        receive.close()

    assert sorted(refused) == ["c", "d"]
    assert (send.statistics().items, send.statistics().items_bytes, send.statistics().waiting_senders) == (0, 0, 0)
    with pytest.raises(ChannelClosedError, match="no receiver is left"):
        await send.send(["e"])
    with pytest.raises(ChannelClosedError, match="no receiver is left"):
        send.send_nowait(["e"])


async def test_a_receiver_that_waits_is_told_when_its_own_end_is_closed() -> None:
    send, receive = open_numbers(10)
    other = receive.clone()
    got: list[object] = []

    async def take(end: ReceiveChannel[int]) -> None:
        try:
            got.append(await end.receive())
        except ChannelClosedError:
            got.append("closed")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take, receive)
        tasks.start_soon(take, other)
        await wait_all_tasks_blocked()
        receive.close()
        await wait_all_tasks_blocked()
        await send.send([1])

    assert got == ["closed", [1]]


async def test_a_wake_up_is_not_lost_on_a_receiver_whose_end_closes_with_it() -> None:
    send, receive = open_numbers(10)
    other = receive.clone()
    got: list[object] = []

    async def take(end: ReceiveChannel[int]) -> None:
        try:
            got.append(await end.receive())
        except ChannelClosedError:
            got.append("closed")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take, receive)
        await wait_all_tasks_blocked()
        tasks.start_soon(take, other)
        await wait_all_tasks_blocked()
        send.send_nowait([1])
        receive.close()

    assert [1] in got
    assert "closed" in got


async def test_a_sender_that_waits_is_told_when_its_own_end_is_closed() -> None:
    send, receive = open_numbers(1)
    other = send.clone()
    await send.send([0])
    refused: list[int] = []

    async def put() -> None:
        with pytest.raises(ChannelClosedError, match="this send end is closed"):
            await send.send([1])
        refused.append(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(put)
        await wait_all_tasks_blocked()
        tasks.start_soon(other.send, [2])
        await wait_all_tasks_blocked()
        send.close()
        await wait_all_tasks_blocked()
        assert refused == [1]
        assert send.statistics().waiting_senders == 1
        assert receive.receive_nowait() == [0]
        await wait_all_tasks_blocked()

    assert receive.receive_nowait() == [2]


async def test_an_end_that_closes_while_its_call_yields_is_closed_for_the_call() -> None:
    send, receive = open_numbers(1)
    refused: list[str] = []

    async def put() -> None:
        with pytest.raises(ChannelClosedError):
            await send.send([1])
        refused.append("send")

    async def take() -> None:
        with pytest.raises(ChannelClosedError):
            await receive.receive()
        refused.append("receive")

    async def close() -> None:
        send.close()
        receive.close()

    # The order of tasks is Trio's to choose: with 30 pairs some begin before the close and some come after it.
    async with anyio.create_task_group() as tasks:
        for _ in range(30):
            tasks.start_soon(put)
            tasks.start_soon(take)
        tasks.start_soon(close)

    assert sorted(refused) == ["receive"] * 30 + ["send"] * 30


# --- Statistics and arguments ------------------------------------------------------------------


async def test_statistics_tell_of_both_sides() -> None:
    send, receive = open_texts(10, max_bytes=100)
    await send.send(["aa", "b", "ccc"])
    await send.send(["d"])
    await receive.receive(max_items=2)
    await send.send(["e"])

    statistics = send.statistics()

    assert statistics == receive.statistics()
    assert attrs.asdict(statistics) == {
        "items": 3,
        "items_bytes": 5,
        "max_items": 10,
        "max_bytes": 100,
        "peak_items": 4,
        "peak_bytes": 7,
        "sent": 5,
        "received": 2,
        "open_senders": 1,
        "open_receivers": 1,
        "waiting_senders": 0,
        "waiting_receivers": 0,
    }


async def test_a_channel_that_does_not_weigh_counts_no_bytes() -> None:
    send, _ = open_plain_texts(10)

    await send.send(["aa"])

    assert send.statistics().items_bytes == send.statistics().peak_bytes == 0
    assert send.statistics().max_bytes is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_items": 0}, "max_items must be at least 1, not 0"),
        ({"max_items": 1, "max_bytes": 0, "weigh": len}, "max_bytes must be at least 1, not 0"),
        ({"max_items": 1, "max_bytes": 5}, "max_bytes needs weigh, a function"),
    ],
)
def test_a_channel_with_a_bad_bound_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_channel(**arguments)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_items": 0}, "max_items must be at least 1, not 0"),
        ({"max_bytes": -1}, "max_bytes must be at least 1, not -1"),
        ({"max_bytes": 5}, r"pass weigh= to open_channel\(\)"),
    ],
)
async def test_receiving_with_a_bad_limit_is_refused(arguments: dict[str, int], message: str) -> None:
    _, receive = open_plain_texts(1)

    with pytest.raises(ValueError, match=message):
        await receive.receive(**arguments)
    with pytest.raises(ValueError, match=message):
        receive.receive_nowait(**arguments)


# --- The buffer inside -------------------------------------------------------------------------


async def test_taking_from_a_closed_buffer_returns_nothing_once_it_is_empty() -> None:
    buffer: Buffer[Part[int]] = Buffer(10)
    buffer.push(Part([1]), 0)
    buffer.close()

    assert [part.items for part in await buffer.take(5, None)] == [[1]]
    assert await buffer.take(5, None) == []


async def test_a_task_that_takes_waits_for_a_part() -> None:
    buffer: Buffer[Part[int]] = Buffer(10)
    got: list[list[int]] = []

    async def take() -> None:
        got.extend(part.items for part in await buffer.take(1, None))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        tasks.start_soon(take)
        await wait_all_tasks_blocked()
        assert buffer.waiting_takers == 2
        await buffer.put(Part([1, 2]))

    assert sorted(got) == [[1], [2]]


async def test_who_asked_to_be_called_when_there_is_room_is_called_once() -> None:
    buffer: Buffer[Part[int]] = Buffer(4)
    buffer.push(Part([1, 2, 3, 4]), 0)
    calls: list[str] = []

    buffer.call_when_room(lambda: calls.append("three"), 3)
    buffer.call_when_room(lambda: calls.append("one"), 1)
    assert buffer.watchers == 2
    buffer.take_nowait(2, None)
    assert calls == []
    buffer.take_nowait(1, None)
    buffer.take_nowait(1, None)

    assert calls == ["three", "one"]
    assert buffer.watchers == 0


async def test_so_many_are_called_as_there_is_room_for() -> None:
    buffer: Buffer[Part[int]] = Buffer(4)
    buffer.push(Part([1, 2]), 0)
    buffer.push(Part([3, 4]), 0)
    calls: list[int] = []
    for number in range(3):
        buffer.call_when_room(lambda number=number: calls.append(number), 1)  # type: ignore[misc]  # number is an int

    assert [part.items for part in buffer.take_nowait(2, None)] == [[1, 2]]

    assert calls == [0, 1]


async def test_who_watches_for_room_holds_up_nobody_who_puts() -> None:
    buffer: Buffer[Part[int]] = Buffer(4)
    buffer.push(Part([1, 2, 3]), 0)
    calls: list[str] = []
    buffer.call_when_room(lambda: calls.append("called"), 4)

    with anyio.fail_after(1):
        await buffer.put(Part([4]))

    assert (buffer.held, calls) == (4, [])


async def test_who_asked_for_room_is_called_when_the_buffer_closes() -> None:
    buffer: Buffer[Part[int]] = Buffer(1)
    buffer.push(Part([1]), 0)
    calls: list[str] = []
    buffer.call_when_room(lambda: calls.append("called"), 1)

    buffer.close()

    assert calls == ["called"]


async def test_waking_one_makes_it_look_again_though_nothing_was_pushed() -> None:
    buffer: Buffer[Part[int]] = Buffer(1)
    looked: list[int] = []

    async def look(number: int) -> None:
        await buffer.wait_parts()
        looked.append(number)

    buffer.wake_one()
    async with anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(look, number)
            await wait_all_tasks_blocked()
        buffer.wake_one()
        await wait_all_tasks_blocked()
        assert looked == [0]
        buffer.wake_one()

    assert looked == [0, 1]


async def test_a_sender_whose_room_was_taken_by_force_keeps_its_place() -> None:
    buffer: Buffer[Part[int]] = Buffer(1)
    buffer.push(Part([0]), 0)

    got: list[int] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(buffer.put, Part([1]))
        await wait_all_tasks_blocked()
        tasks.start_soon(buffer.put, Part([2]))
        await wait_all_tasks_blocked()
        buffer.take_nowait(1, None)
        buffer.push(Part([9]), 0)
        await wait_all_tasks_blocked()
        assert buffer.waiting_putters == 2
        for _ in range(3):
            await wait_all_tasks_blocked()
            got += [item for part in buffer.take_nowait(1, None) for item in part.items]

    assert got == [9, 1, 2]


# --- Cancellation ------------------------------------------------------------------------------


@attrs.define
class Transfer:
    """Two tasks send and two receive; the one that the cut hits first does what *root* says."""

    root: str
    send: SendChannel[str] = attrs.field(init=False)
    receive: ReceiveChannel[str] = attrs.field(init=False)
    sent: list[str] = attrs.field(factory=list[str])
    received: list[str] = attrs.field(factory=list[str])

    def __attrs_post_init__(self) -> None:
        self.send, self.receive = open_texts(3, max_bytes=8)

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._produce, self.send.clone(), "b")
            tasks.start_soon(self._consume, self.receive.clone())
            if self.root == "send":
                tasks.start_soon(self._consume, self.receive.clone())
                await self._produce(self.send.clone(), "a")
            else:
                tasks.start_soon(self._produce, self.send.clone(), "a")
                await self._consume(self.receive.clone())

    async def _produce(self, end: SendChannel[str], name: str) -> None:
        with end:
            for number, count in enumerate([1, 3, 2, 5]):
                items = [f"{name}{number}{index}" for index in range(count)]
                await end.send(items)
                self.sent += items

    async def _consume(self, end: ReceiveChannel[str]) -> None:
        with end:
            while len(self.received) < 22:
                with anyio.move_on_after(1):
                    self.received += await end.receive(max_items=2)

    async def check(self, *, cancelled: bool) -> None:
        left = self._left()
        assert sorted(self.received + left) == sorted(self.sent)
        assert cancelled or not left
        for name in "ab":
            ours = [item for item in self.received + left if item.startswith(name)]
            assert ours == [item for item in self.sent if item.startswith(name)]

    def _left(self) -> list[str]:
        left: list[str] = []
        while self.receive.statistics().items:
            left += self.receive.receive_nowait()
        return left


@backends
@pytest.mark.parametrize("how", ["scope", "task", "timeout"])
@pytest.mark.parametrize("root", ["send", "receive"])
def test_a_cancel_at_any_step_loses_and_doubles_nothing(backend: BackendName, how: How, root: str) -> None:
    report = cancel_at_every_step(lambda: Transfer(root), backend=backend, how=how)

    report.raise_failures()
    assert report.steps > 30


async def _native_cancel(side: str) -> list[str]:
    """Wake the first of two that wait and cancel it, as asyncio does it, before it has run."""
    import asyncio

    send, receive = open_numbers(1)
    served: list[str] = []

    async def wait(name: str) -> None:
        if side == "receive":
            await receive.receive()
        else:
            await send.send([1])
        served.append(name)

    if side == "send":
        await send.send([0])
    first = asyncio.create_task(wait("first"))
    await wait_all_tasks_blocked()
    second = asyncio.create_task(wait("second"))
    await wait_all_tasks_blocked()
    if side == "receive":
        send.send_nowait([1])
    else:
        receive.receive_nowait()
    first.cancel()
    async with asyncio.timeout(5):
        await second
    assert first.cancelled()
    return served


@pytest.mark.parametrize("side", ["send", "receive"])
def test_a_wake_up_that_comes_together_with_a_cancel_is_passed_on(side: str) -> None:
    assert run_virtual(_native_cancel, side, backend="asyncio") == ["second"]


@pytest.mark.parametrize("side", ["send", "receive"])
async def test_a_wake_up_that_comes_together_with_a_cancelled_scope_reaches_somebody(side: str) -> None:
    send, receive = open_numbers(1)
    served: list[str] = []
    scope = anyio.CancelScope()

    async def wait(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            if side == "receive":
                await receive.receive()
            else:
                await send.send([1])
            served.append(name)

    if side == "send":
        await send.send([0])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, "first", scope)
        await wait_all_tasks_blocked()
        tasks.start_soon(wait, "second", anyio.CancelScope())
        await wait_all_tasks_blocked()
        if side == "receive":
            send.send_nowait([1])
        else:
            receive.receive_nowait()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert len(served) == 1
        tasks.cancel_scope.cancel()


async def test_a_receiver_that_is_cancelled_alone_leaves_the_queue() -> None:
    send, receive = open_numbers(1)

    with anyio.move_on_after(1):
        await receive.receive()

    assert send.statistics().waiting_receivers == 0
    send.send_nowait([1])
    assert receive.receive_nowait() == [1]


async def test_a_large_sender_that_is_cancelled_lets_the_small_ones_behind_it_in() -> None:
    send, receive = open_numbers(3)
    await send.send([0, 0])
    scope = anyio.CancelScope()

    async def put_large() -> None:
        with scope:
            await send.send([1, 1, 1])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(put_large)
        await wait_all_tasks_blocked()
        tasks.start_soon(send.send, [2])
        await wait_all_tasks_blocked()
        scope.cancel()

    assert receive.receive_nowait(max_items=9) == [0, 0, 2]


# --- Against a model ---------------------------------------------------------------------------


@attrs.frozen
class Send:
    items: list[int]


@attrs.frozen
class Receive:
    max_items: int | None
    max_bytes: int | None


operations = st.lists(
    st.one_of(
        st.builds(Send, st.lists(st.integers(0, 4), min_size=1, max_size=6)),
        st.builds(Receive, st.none() | st.integers(1, 5), st.none() | st.integers(1, 8)),
    ),
    max_size=40,
)


@given(operations, st.integers(1, 8), st.none() | st.integers(1, 12))
def test_any_sequence_of_nowait_calls_does_what_a_plain_queue_does(
    steps: list[Send | Receive], max_items: int, max_bytes: int | None
) -> None:
    send, receive = open_channel(max_items, max_bytes=max_bytes, weigh=int)
    model: deque[list[int]] = deque()
    peak = peak_bytes = 0

    for step in steps:
        held = [item for items in model for item in items]
        if isinstance(step, Send):
            items = step.items
            fits = not held or (
                len(held) + len(items) <= max_items and (max_bytes is None or sum(held) + sum(items) <= max_bytes)
            )
            if fits:
                send.send_nowait(items)
                model.append(list(items))
            else:
                with pytest.raises(anyio.WouldBlock):
                    send.send_nowait(items)
        elif model:
            expected = _expected(model, step.max_items, step.max_bytes)
            assert receive.receive_nowait(max_items=step.max_items, max_bytes=step.max_bytes) == expected
        else:
            with pytest.raises(anyio.WouldBlock):
                receive.receive_nowait()
        held = [item for items in model for item in items]
        peak, peak_bytes = max(peak, len(held)), max(peak_bytes, sum(held))
        reading = send.statistics()
        assert (reading.items, reading.items_bytes) == (len(held), sum(held))
        assert reading.sent - reading.received == len(held)

    assert (send.statistics().peak_items, send.statistics().peak_bytes) == (peak, peak_bytes)


def _expected(model: deque[list[int]], max_items: int | None, max_bytes: int | None) -> list[int]:
    """Take from the model, one item at a time."""
    if max_items is None and max_bytes is None:
        return model.popleft()
    taken: list[int] = []
    while model and (max_items is None or len(taken) < max_items):
        item = model[0][0]
        if taken and max_bytes is not None and sum(taken) + item > max_bytes:
            break
        taken.append(model[0].pop(0))
        if not model[0]:
            model.popleft()
        if max_bytes is not None and sum(taken) > max_bytes:
            break
    return taken


@attrs.define
class Traffic:
    """Senders and receivers that sleep at random between their calls."""

    rng: random.Random
    max_items: int
    sent: list[tuple[int, int]] = attrs.field(factory=list[tuple[int, int]])
    received: list[tuple[int, int]] = attrs.field(factory=list[tuple[int, int]])
    too_much: int = 0

    async def run(self, senders: int, receivers: int) -> None:
        send, receive = _open_pairs(self.max_items)
        async with anyio.create_task_group() as tasks:
            for name in range(senders):
                tasks.start_soon(self._send, send.clone(), name)
            for _ in range(receivers):
                tasks.start_soon(self._receive, receive.clone())
            send.close()
        receive.close()
        assert send.statistics().items == 0
        assert send.statistics().waiting_senders == send.statistics().waiting_receivers == 0

    async def _send(self, end: SendChannel[tuple[int, int]], name: int) -> None:
        count = 0
        with end:
            for _ in range(self.rng.randrange(8)):
                items = [(name, count + index) for index in range(self.rng.randint(1, self.max_items))]
                with anyio.move_on_after(self.rng.choice([1, 3, 1000])):
                    await end.send(items)
                    self.sent += items
                    count += len(items)
                self.too_much = max(self.too_much, end.statistics().items - self.max_items)
                await anyio.sleep(self.rng.randrange(3))

    async def _receive(self, end: ReceiveChannel[tuple[int, int]]) -> None:
        while True:
            limit = self.rng.choice([None, 1, 2, 5])
            with anyio.move_on_after(self.rng.choice([1, 3, 1000])):
                try:
                    self.received += await end.receive(max_items=limit)
                except EndOfChannel:
                    return
            await anyio.sleep(self.rng.randrange(3))


@backends
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    senders=st.integers(1, 4),
    receivers=st.integers(1, 4),
    max_items=st.integers(1, 5),
)
def test_any_traffic_conserves_the_items_and_the_order_of_each_sender(
    backend: BackendName, seed: int, senders: int, receivers: int, max_items: int
) -> None:
    traffic = Traffic(random.Random(seed), max_items)

    run_virtual(traffic.run, senders, receivers, backend=backend, seed=seed)

    assert sorted(traffic.received) == sorted(traffic.sent)
    assert traffic.too_much <= 0
    for name in range(senders):
        ours = [number for sender, number in traffic.received if sender == name]
        assert ours == sorted(ours)
