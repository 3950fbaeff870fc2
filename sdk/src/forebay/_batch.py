"""Batches on their way through a stage, and where their items go once it has decided."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

from attrs import define

from forebay._batcher import Piece, Record
from forebay._handler import BatchPart
from forebay._types import Category, Offset

_NO_KEYS: set[str] = set()
_batch_ids = itertools.count(1)


class Batch:
    """Items that go to the handler in one call."""

    __slots__ = ("error", "failures", "held", "id", "is_part", "items", "maybe_done", "pieces", "since", "slot")

    def __init__(self, pieces: list[Piece]) -> None:
        first = pieces[0]
        self.pieces = pieces
        self.items = first.items if len(pieces) == 1 else [item for piece in pieces for item in piece.items]
        self.since = first.since
        self.failures = 0  # failed attempts of the batch as a whole
        self.maybe_done = False
        self.held: set[str] = _NO_KEYS  # keys with an item that waits for another attempt
        self.is_part = False  # of a batch that was taken apart and frees its keys when all parts have run
        self.error: Exception | None = None  # what failed the last call as a whole
        self.id = next(_batch_ids)
        self.slot: list[Batch] | None = None  # where the worker that runs it says what it runs

    def keys(self) -> set[str]:
        """Return the ordering keys of the items."""
        return {key for piece in self.pieces for key in piece.keys or ()}

    def places(self) -> Iterable[tuple[Piece, int]]:
        """Yield the piece and the index in it of every item, in order."""
        return ((piece, index) for piece in self.pieces for index in range(len(piece.items)))


@define
class Dead:
    """An item that is about to be set aside."""

    piece: Piece
    """Just the item."""
    error: BaseException
    category: Category
    attempts: int


class Exit(Protocol):
    """Where a stage's items come from and go to: a pipeline's ledger, or callers that wait."""

    def finish(self, pieces: Sequence[Piece], now: float) -> None:
        """All items of *pieces* are done, since *now*, and nothing follows."""
        ...

    async def forward(self, pieces: Sequence[Piece]) -> None:
        """Send results on to what follows."""
        ...

    def scatter(self, batch: Batch) -> list[Piece]:
        """Return a piece for each item of *batch*; they go separate ways from now on."""
        ...

    def listed(self, piece: Piece) -> None:
        """Make *piece* ready for its items to go separate ways."""
        ...

    def drop(self, piece: Piece, reason: str) -> None:
        """Throw a single item away on purpose."""
        ...

    async def set_aside(self, dead: Sequence[Dead], batch: Batch) -> None:
        """Take items that failed for good; raises where that ends the run."""
        ...

    def is_ours(self, piece: Piece) -> bool:
        """Return whether all items of *piece* still wait for an outcome from here."""
        ...

    def ended(self, batch: Batch) -> None:
        """The call of *batch* is over and each of its items has had its outcome from it."""
        ...

    def failures_before(self, piece: Piece, index: int) -> int:
        """Return how often the item failed before this run had it."""
        ...

    def send_back(self, piece: Piece, record: Record, delay: float, error: BaseException) -> Offset | None:
        """Return a single item to its source, to come again after *delay*; `None` if it has to wait here."""
        ...

    def give_up(self, piece: Piece, record: Record, delay: float) -> Offset | None:
        """Return a single item to its source, because this run will not see its next attempt; its offset if it can."""
        ...

    def parts(self, batch: Batch) -> tuple[BatchPart, ...]:
        """Return where the items of *batch* came from."""
        ...

    def maybe_done(self, batch: Batch) -> bool:
        """Return whether an attempt at an item of *batch* was cut off before this run had it."""
        ...
