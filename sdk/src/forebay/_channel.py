"""Channels: lists go through, and the bound counts items and bytes.

An item-by-item channel pays two turns of the event loop for every item.
Here a whole list pays them once, so the cost of an item is a few nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

from forebay._buffer import Buffer, ChannelStatistics, Part
from forebay._errors import ChannelClosedError, EndOfChannel

T = TypeVar("T")


class SendChannel(Generic[T]):
    """The end that lists go into. Close it, or use it as a context manager, so that receivers see the end."""

    __slots__ = ("_buffer", "_closed")

    def __init__(self, buffer: Buffer[Part[T]]) -> None:
        self._buffer: Buffer[Part[T]] = buffer
        self._closed: bool = False

    async def send(self, items: Sequence[T], /) -> None:
        """Send *items* as one list, waiting until all of them fit.

        A list larger than the channel's bound is let in when the channel is empty, so nothing waits for ever.
        Senders are served in the order they came. An empty list is sent to nobody.
        Cancelled: none of the items was sent.

        Raises:
            ChannelClosedError: this end is closed, or no receiver is left.
        """
        self._check()
        await anyio.lowlevel.checkpoint()
        if items:
            self._check()
            await self._buffer.put(Part(list(items)), self._check)

    def send_nowait(self, items: Sequence[T], /) -> None:
        """Send *items* as one list if they fit now.

        Raises:
            anyio.WouldBlock: there is no room, or others wait for it.
            ChannelClosedError: this end is closed, or no receiver is left.
        """
        self._check()
        if not items:
            return
        buffer = self._buffer
        part = Part(list(items))
        nbytes = buffer.weight(part)
        if buffer.waiting_putters or not buffer.fits(len(items), nbytes):
            raise anyio.WouldBlock
        buffer.push(part, nbytes)

    def _check(self) -> None:
        if self._closed:
            raise ChannelClosedError("this send end is closed; clone() it before closing if others still send")
        if not self._buffer.receivers:
            raise ChannelClosedError("no receiver is left; the items would go nowhere")

    def clone(self) -> SendChannel[T]:
        """Return another send end of the same channel; receivers see the end when all of them are closed."""
        self._check()
        self._buffer.senders += 1
        return SendChannel(self._buffer)

    def close(self) -> None:
        """Close this end; tasks that wait in its `send` get `ChannelClosedError` and have sent nothing.

        What was sent can still be received. Closing twice does nothing.
        """
        if not self._closed:
            self._closed = True
            self._buffer.senders -= 1
            if self._buffer.senders:
                self._buffer.interrupt_putters()
            else:
                self._buffer.close()

    def statistics(self) -> ChannelStatistics:
        """Return a reading of the channel."""
        return self._buffer.statistics()

    def __enter__(self) -> SendChannel[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ReceiveChannel(Generic[T]):
    """The end that lists come out of; iterate over it to get them as they were sent."""

    __slots__ = ("_buffer", "_closed")

    def __init__(self, buffer: Buffer[Part[T]]) -> None:
        self._buffer: Buffer[Part[T]] = buffer
        self._closed: bool = False

    async def receive(self, *, max_items: int | None = None, max_bytes: int | None = None) -> list[T]:
        """Wait for items and return them in the order they were sent.

        Without limits the oldest list comes as it was sent.
        With *max_items* or *max_bytes* lists are joined and cut, so that as much comes as waits and the limits allow;
        one item that is larger than *max_bytes* comes alone.
        Cancelled: nothing was received, nothing is lost.

        Raises:
            EndOfChannel: all senders are closed and everything has been received.
            ChannelClosedError: this end is closed.
        """
        self._check()
        _check_limits(self._buffer, max_items, max_bytes)
        await anyio.lowlevel.checkpoint()
        self._check()
        while not self._buffer.parts:
            if self._buffer.closed:
                raise EndOfChannel("all senders are closed and everything has been received")
            await self._buffer.wait_parts()
            self._check()
        items = self._take(max_items, max_bytes)
        self._buffer.pass_on()
        return items

    def receive_nowait(self, *, max_items: int | None = None, max_bytes: int | None = None) -> list[T]:
        """Return what waits now; limits as in `receive`.

        Raises:
            anyio.WouldBlock: nothing waits.
            EndOfChannel: all senders are closed and everything has been received.
            ChannelClosedError: this end is closed.
        """
        self._check()
        _check_limits(self._buffer, max_items, max_bytes)
        if self._buffer.parts:
            return self._take(max_items, max_bytes)
        if self._buffer.closed:
            raise EndOfChannel("all senders are closed and everything has been received")
        raise anyio.WouldBlock

    def _take(self, max_items: int | None, max_bytes: int | None) -> list[T]:
        buffer = self._buffer
        if max_items is None and max_bytes is None:
            return buffer.take_nowait(len(buffer.parts[0].items), None)[0].items
        parts = buffer.take_nowait(max_items or buffer.held, max_bytes)
        if len(parts) == 1:
            return parts[0].items
        return [item for part in parts for item in part.items]

    def _check(self) -> None:
        if self._closed:
            raise ChannelClosedError("this receive end is closed; clone() it before closing if others still receive")

    def clone(self) -> ReceiveChannel[T]:
        """Return another receive end of the same channel; each list goes to one of them."""
        self._check()
        self._buffer.receivers += 1
        return ReceiveChannel(self._buffer)

    def close(self) -> None:
        """Close this end; tasks that wait in its `receive` get `ChannelClosedError`.

        When it was the last, what waits is thrown away and senders get `ChannelClosedError` too.
        """
        if not self._closed:
            self._closed = True
            self._buffer.receivers -= 1
            if self._buffer.receivers:
                self._buffer.wake_takers()
            else:
                self._buffer.drop_receivers()

    def statistics(self) -> ChannelStatistics:
        """Return a reading of the channel."""
        return self._buffer.statistics()

    def __aiter__(self) -> ReceiveChannel[T]:
        return self

    async def __anext__(self) -> list[T]:
        try:
            return await self.receive()
        except EndOfChannel:
            raise StopAsyncIteration from None

    def __enter__(self) -> ReceiveChannel[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_limits(buffer: Buffer[Part[T]], max_items: int | None, max_bytes: int | None) -> None:
    if max_items is not None and max_items < 1:
        raise ValueError(f"max_items must be at least 1, not {max_items}")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
    if max_bytes is not None and buffer.weigh is None:
        raise ValueError("max_bytes needs a channel that weighs its items; pass weigh= to open_channel()")


def open_channel(
    max_items: int, *, max_bytes: int | None = None, weigh: Callable[[T], int] | None = None
) -> tuple[SendChannel[T], ReceiveChannel[T]]:
    """Open a channel that lists cross, bounded by items and by bytes.

    Data flows from the first to the second; any number of tasks may use either end.

        send, receive = forebay.open_channel(10_000, max_bytes=64 * 2**20, weigh=len)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce, send)         # await send.send([b"a", b"b"]), then send.close()
            async for lines in receive:
                print(len(lines))

    Args:
        max_items: Items that may wait in the channel, at least 1.
        max_bytes: Bytes that may wait in it, as *weigh* counts them.
        weigh: Returns the size of one item in bytes; called for each item at `send`, and again where a list is cut.
    """
    if max_items < 1:
        raise ValueError(f"max_items must be at least 1, not {max_items}")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
    if max_bytes is not None and weigh is None:
        raise ValueError("max_bytes needs weigh, a function that returns the size of one item in bytes (len for bytes)")
    buffer: Buffer[Part[T]] = Buffer(max_items, max_bytes=max_bytes, weigh=weigh)
    return SendChannel(buffer), ReceiveChannel(buffer)
