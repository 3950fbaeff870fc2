"""Batch and event processing inside a Python program, on structured concurrency.

A program hands forebay a source and functions; forebay batches, paces, retries, dead-letters and settles every item.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forebay._blocks import slice_blocks as slice_blocks
    from forebay._buffer import ChannelStatistics as ChannelStatistics
    from forebay._channel import ReceiveChannel as ReceiveChannel
    from forebay._channel import SendChannel as SendChannel
    from forebay._channel import open_channel as open_channel
    from forebay._dead_letter import MemoryDeadLetterStore as MemoryDeadLetterStore
    from forebay._dead_letter import open_memory_dead_letters as open_memory_dead_letters
    from forebay._errors import BatcherClosedError as BatcherClosedError
    from forebay._errors import BatchError as BatchError
    from forebay._errors import BatchFailed as BatchFailed
    from forebay._errors import BatchSizeError as BatchSizeError
    from forebay._errors import BatchTooLargeError as BatchTooLargeError
    from forebay._errors import BlockedLoopWarning as BlockedLoopWarning
    from forebay._errors import ChannelClosedError as ChannelClosedError
    from forebay._errors import EndOfChannel as EndOfChannel
    from forebay._errors import EngineError as EngineError
    from forebay._errors import ForebayError as ForebayError
    from forebay._errors import HandlerContractError as HandlerContractError
    from forebay._errors import ItemDroppedError as ItemDroppedError
    from forebay._errors import LostOwnershipError as LostOwnershipError
    from forebay._errors import OrderWarning as OrderWarning
    from forebay._errors import PluginError as PluginError
    from forebay._errors import PluginWarning as PluginWarning
    from forebay._errors import RetryExhaustedError as RetryExhaustedError
    from forebay._errors import SettlementError as SettlementError
    from forebay._errors import TimeLimitError as TimeLimitError
    from forebay._errors import WorkerDiedError as WorkerDiedError
    from forebay._handler import BatchContext as BatchContext
    from forebay._handler import BatchPart as BatchPart
    from forebay._handler import current_batch as current_batch
    from forebay._pipeline import ClosedPipeline as ClosedPipeline
    from forebay._pipeline import Pipeline as Pipeline
    from forebay._pipeline import pipeline as pipeline
    from forebay._push import Batcher as Batcher
    from forebay._push import BatcherStatistics as BatcherStatistics
    from forebay._push import open_batcher as open_batcher
    from forebay._queue import MemoryQueue as MemoryQueue
    from forebay._retry import Retry as Retry
    from forebay._scope import Scope as Scope
    from forebay._scope import open_scope as open_scope
    from forebay._state import MemoryStateStore as MemoryStateStore
    from forebay._state import open_memory_state as open_memory_state
    from forebay._summary import Summary as Summary
    from forebay._tuning import Tuning as Tuning
    from forebay._types import Again as Again
    from forebay._types import Bounds as Bounds
    from forebay._types import Category as Category
    from forebay._types import Dropped as Dropped
    from forebay._types import Failed as Failed
    from forebay._types import Goal as Goal

# A name is loaded when it is first used: a program that only submits to a batcher does not pay for sources,
# dead letters and ledgers, and `import forebay` costs next to nothing.
_HOMES = {
    "Again": "_types",
    "BatchContext": "_handler",
    "BatchError": "_errors",
    "BatchFailed": "_errors",
    "BatchPart": "_handler",
    "BatchSizeError": "_errors",
    "BatchTooLargeError": "_errors",
    "Batcher": "_push",
    "BatcherClosedError": "_errors",
    "BatcherStatistics": "_push",
    "BlockedLoopWarning": "_errors",
    "Bounds": "_types",
    "Category": "_types",
    "ChannelClosedError": "_errors",
    "ChannelStatistics": "_buffer",
    "ClosedPipeline": "_pipeline",
    "Dropped": "_types",
    "EndOfChannel": "_errors",
    "EngineError": "_errors",
    "Failed": "_types",
    "ForebayError": "_errors",
    "Goal": "_types",
    "HandlerContractError": "_errors",
    "ItemDroppedError": "_errors",
    "LostOwnershipError": "_errors",
    "MemoryDeadLetterStore": "_dead_letter",
    "MemoryQueue": "_queue",
    "MemoryStateStore": "_state",
    "OrderWarning": "_errors",
    "Pipeline": "_pipeline",
    "PluginError": "_errors",
    "PluginWarning": "_errors",
    "ReceiveChannel": "_channel",
    "Retry": "_retry",
    "RetryExhaustedError": "_errors",
    "Scope": "_scope",
    "SendChannel": "_channel",
    "SettlementError": "_errors",
    "Summary": "_summary",
    "TimeLimitError": "_errors",
    "Tuning": "_tuning",
    "WorkerDiedError": "_errors",
    "current_batch": "_handler",
    "open_batcher": "_push",
    "open_channel": "_channel",
    "open_memory_dead_letters": "_dead_letter",
    "open_memory_state": "_state",
    "open_scope": "_scope",
    "pipeline": "_pipeline",
    "slice_blocks": "_blocks",
}
_DOORS = frozenset({"abc", "hooks", "testing"})


def __getattr__(name: str) -> object:
    if name in _DOORS:
        return import_module(f"forebay.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'forebay' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"forebay.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_DOORS})
