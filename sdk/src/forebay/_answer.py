"""What a handler answered: whether it is an answer at all, and what it says of each item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from forebay._batcher import Piece
from forebay._errors import BatchFailed, BatchSizeError, HandlerContractError
from forebay._handler import returned_coroutine
from forebay._types import Failed


def check_results(name: str, results: object, count: int, *, hands_out: bool) -> Sequence[object]:
    """Return the results, one for each item, of a handler that somebody needs results of.

    Args:
        name: What to call the handler.
        results: What it returned.
        count: Items that it got.
        hands_out: Whether callers wait for the results, and not a later stage.

    Raises:
        HandlerContractError: these are no results.
    """
    if results is None:
        who = "the callers wait for" if hands_out else "a later stage needs"
        raise HandlerContractError(
            f"{name}() returned None for {items(count)}, but {who} results; return one result for each item, in order"
        )
    if type(results) is not list and (isinstance(results, (str, bytes)) or not isinstance(results, Sequence)):
        if hasattr(results, "__await__"):
            getattr(results, "close", lambda: None)()
            raise HandlerContractError(returned_coroutine(name))
        raise HandlerContractError(
            f"{name}() returned {type(results).__name__} for {items(count)}; "
            f"return a list with one result for each item, in order, or None from a sink"
        )
    answers = cast("Sequence[object]", results)
    if len(answers) != count:
        raise BatchSizeError(
            f"{name}() got {items(count)} and returned {len(answers)} "
            f"{'result' if len(answers) == 1 else 'results'}; return one result for each item, in order"
        )
    return answers


def attributed(name: str, error: Exception, count: int, *, last: bool) -> Sequence[object] | None:
    """Return the outcomes where a handler that raised *error* has said which items failed.

    Args:
        name: What to call the handler.
        error: What it raised.
        count: Items that it got.
        last: Whether nothing follows.

    Raises:
        HandlerContractError: it says something that makes no sense, or this is what it raised.
    """
    if isinstance(error, HandlerContractError):
        raise error
    if not isinstance(error, BatchFailed):
        return [Failed(error)] if count == 1 else None
    wrong = [index for index in error.failures if not 0 <= index < count]
    if wrong:
        raise HandlerContractError(
            f"{name}() got {items(count)} and raised BatchFailed with index {wrong[0]!r}; "
            f"use the item's place in the batch, from 0"
        ) from error
    if not last and len(error.failures) < count:
        raise HandlerContractError(
            f"{name}() raised BatchFailed, which has no results for the items that succeeded; "
            f"a later stage needs them: return Failed(error) in the place of each item that failed"
        ) from error
    return [Failed(error.failures[index]) if index in error.failures else None for index in range(count)]


def matched(pieces: Sequence[Piece], results: Sequence[object]) -> list[Piece]:
    """Return pieces that hold *results* and stand for the same positions."""
    if len(pieces) == 1:
        return [pieces[0].like(list(results))]
    found: list[Piece] = []
    start = 0
    for piece in pieces:
        stop = start + len(piece.items)
        found.append(piece.like(list(results[start:stop])))
        start = stop
    return found


def items(count: int) -> str:
    """Return *count* items, for messages."""
    return "1 item" if count == 1 else f"{count} items"
