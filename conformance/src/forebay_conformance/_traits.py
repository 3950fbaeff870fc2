"""What a suite has to know about a plugin before it can check it.

A suite class inherits these: each is a class attribute that a user may set, or a method to override.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio


class Traits:
    """What all kinds have in common."""

    patience: float = 5.0
    """Seconds after which a call counts as hanging."""
    virtual_time: bool = False
    """Whether the plugin reads time only from the event loop; the suite then runs without waiting.

    Not for plugins that use threads or sockets: virtual time runs ahead of them.
    """
    has_secret: bool = False
    """Whether `open_broken` is defined, for a plugin that is given a password."""
    secret: str = "kept-0ut-0f-logs"  # made up, and meant to be looked for
    """The password that `open_broken` uses."""

    def open_broken(self) -> AbstractAsyncContextManager[object]:
        """Return the plugin's context manager for an engine that is not there, with `secret` as its password."""
        raise NotImplementedError(f"{type(self).__name__} sets has_secret and has no open_broken(); define it")

    async def pass_time(self, seconds: float, /) -> None:
        """Let *seconds* pass for the engine; override it where the engine's clock can be moved."""
        await anyio.sleep(seconds)


class SourceTraits(Traits):
    """What the source suite has to know."""

    ends: bool = True
    """Whether exchange() returns None once everything is settled; else a source counts as dry after `quiet_seconds`."""
    redelivers: bool = True
    """Whether unsettled items come again, and settled ones are remembered, when the same source is opened again."""
    settles_out_of_order: bool = True
    """Whether the source remembers items that are settled before earlier ones."""
    keeps_counts: bool = True
    """Whether deliveries, failures and maybe_done are kept."""
    supports_claims: bool = True
    """Whether items in hand fall to another member when `claim_seconds` are over; the suite waits for that long."""
    supports_members: bool = True
    """Whether several members may be open at the same time and share the items."""
    supports_epochs: bool = True
    """Whether a settlement is refused when it carries an old epoch."""
    supports_delay: bool = True
    """Whether the source keeps the time of a retry."""
    counts_bytes: bool = True
    """Whether the source knows the size of an item and keeps to max_bytes."""
    knows_lag: bool = True
    """Whether lag() returns a number."""
    delay_seconds: float = 0.3
    """Delay of the retries that the suite makes."""
    quiet_seconds: float = 0.5
    """Seconds without an item after which a source that does not end counts as dry."""
    prompt_seconds: float = 1.0
    """Seconds within which exchange() answers when nothing is ready."""

    def make_item(self, number: int, size: int, /) -> object:
        """Return an item that is different for each *number* and takes about *size* bytes."""
        return f"{number:06}".encode().ljust(size, b".")


class SinkTraits(Traits):
    """What the sink suite has to know."""

    reads_back: bool = True
    """Whether `written` is defined; without it the suite cannot see what arrived."""
    has_bad_item: bool = True
    """Whether `make_bad_item` is defined: an item that the sink refuses."""
    large_batch: int = 5_000
    """Items in the largest batch that the suite writes."""

    def make_item(self, number: int, /) -> Any:  # Any: items are whatever the sink takes
        """Return an item that is different for each *number*."""
        return {"number": number, "text": f"item {number}"}

    def make_bad_item(self, number: int, /) -> Any:
        """Return an item that the sink must answer with a failure."""
        raise NotImplementedError(
            f"{type(self).__name__} has no make_bad_item(); define it to return an item that the sink refuses, "
            f"or set has_bad_item = False"
        )

    async def written(self, sink: Any, /) -> Sequence[Any]:
        """Return all items that have been written to the engine behind *sink*, in any order."""
        raise NotImplementedError(
            f"{type(self).__name__} has no written(); define it to return what the sink's engine holds, "
            f"or set reads_back = False"
        )


class DeadLetterStoreTraits(Traits):
    """What the dead-letter store suite has to know."""


class ControllerTraits(Traits):
    """What the controller suite has to know: what a controller has set itself to do."""

    adapts: bool = True
    """Whether it looks for the batch size and the number of calls that get most done, and gives way to failures."""
    keeps_goal: bool = True
    """Whether it keeps to `Goal.p99`."""
    heeds_refusals: bool = True
    """Whether it makes batches smaller that are refused for their size."""
    heeds_load: bool = True
    """Whether it makes batches smaller under system load, at least where each item costs something."""
    watches: bool = True
    """Whether it has `tick()` and gives way when calls do not answer any more."""
    adjusts: bool = True
    """Whether it has `adjust()`."""


class StateStoreTraits(Traits):
    """What the state store suite has to know."""

    supports_ttl: bool = True
    """Whether put_many() keeps to `ttl`."""
    ttl_seconds: float = 0.5
    """The ttl that the suite uses."""
