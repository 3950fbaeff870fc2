"""Every exception that forebay raises, and the one that handlers raise."""

from __future__ import annotations

from collections.abc import Mapping


class ForebayError(Exception):
    """Base of everything that goes wrong while forebay runs."""


class ChannelClosedError(ForebayError):
    """The channel's other side, or this side, has been closed."""


class EndOfChannel(ForebayError):  # the field's word for a normal end, as in trio
    """Every sender is closed and all that was sent has been received."""


class BatcherClosedError(ForebayError):
    """The batcher is shutting down and takes no more items."""


class HandlerContractError(ForebayError, TypeError):
    """A handler returned something that its stage cannot take."""


class BatchSizeError(HandlerContractError):
    """A batch handler returned a different number of results than it got items."""


class BatchTooLargeError(ForebayError):  # raised by handlers to report, not by forebay
    """Raised by a batch handler to say that the batch was refused for its size, and that nothing of it was done.

    Its items run again in two halves, and that is no failed attempt. A single item that is too large has failed.
    """

    category = "permanent"


class BatchError(ForebayError):
    """A batch failed as a whole; `__cause__` is the handler's exception.

    Each caller of `Batcher.submit` gets an instance of its own.
    """


class BatchFailed(ForebayError):  # raised by handlers to report, not by forebay
    """Raised by a batch handler to say which of its items failed.

    Args:
        failures: Index in the batch (from 0) to the exception of that item.
            Items that are not named are done.
    """

    def __init__(self, failures: Mapping[int, BaseException], /) -> None:
        if not failures:
            raise ValueError("failures must name at least one item, not {}; return None when all went well")
        self.failures: dict[int, BaseException] = dict(failures)
        for index, error in self.failures.items():
            if not isinstance(error, BaseException):  # pyright: ignore[reportUnnecessaryIsInstance]  # who has no checker
                raise TypeError(f"failures[{index!r}] must be an exception, not {error!r:.100}")
        super().__init__(f"{len(self.failures)} items failed: {sorted(self.failures)[:10]}")

    def __reduce__(self) -> tuple[type[BatchFailed], tuple[dict[int, BaseException]]]:
        return (type(self), (self.failures,))


class ItemDroppedError(ForebayError):
    """The handler answered `Dropped(reason)` for the item that a caller had submitted."""


class RetryExhaustedError(ForebayError):
    """The handler asked for another attempt (`Again`) and the policy allows no more."""


class TimeLimitError(ForebayError, TimeoutError):
    """A handler was cut off at its stage's time limit; whether its effect happened is not known."""


class SettlementError(ForebayError):
    """A source or dead-letter store did not take what was settled before its deadline."""

    category = "transient"
    """Asked again: settling is idempotent."""


class LostOwnershipError(ForebayError):
    """A write carried an epoch that is no longer the current one; nothing was written."""


class EngineError(ForebayError):
    """The database or server behind a plugin refused or failed.

    `category` says how a stage should see it: the name of a `Category`.
    """

    category: str = "transient"

    def __init__(self, message: str, /, *, category: str = "transient") -> None:
        super().__init__(message)
        self.category = category


class WorkerDiedError(ForebayError):
    """A worker process ended before the function that it ran.

    `category` says how a stage should see it: `poison` if it died in the call, `transient` if it never started.
    """

    def __init__(self, message: str, /, *, category: str = "poison") -> None:
        super().__init__(message)
        self.category = category


class PluginError(ForebayError):
    """A plugin or a name that a plugin should supply cannot be used."""


class PluginWarning(UserWarning):
    """An installed plugin was left out, or a listener was disabled."""


class BlockedLoopWarning(UserWarning):
    """A synchronous step held the event loop for longer than it should."""


class OrderWarning(UserWarning):
    """The source cannot keep the order that the recipe asks for."""
