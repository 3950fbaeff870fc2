"""What becomes of items that come to a stage whose queue is full: some are left out, on purpose and counted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias, get_args

from attrs import define, field

from forebay._batcher import Piece
from forebay._buffer import Buffer

Backpressure: TypeAlias = Literal["wait", "drop_oldest", "drop_newest", "sample"]
"""`wait`: nothing is left out, and what comes before the stage slows down. The others leave items out."""

POLICIES: Final[Sequence[str]] = get_args(Backpressure)
_SAMPLED_FROM: Final = 0.5
"""Share of the queue from which on `sample` leaves items out."""


@define(eq=False, kw_only=True)
class Overflow:
    """Lets pieces into the queue of one stage, which never waits, and leaves out what there is no room for."""

    policy: Backpressure
    inbox: Buffer[Piece]
    drop: Callable[[Piece, str], None]
    """Makes the items of a piece final as dropped, for that reason."""
    rng: random.Random = field(factory=random.Random)
    dropped: int = 0

    def push(self, piece: Piece, max_size: int) -> None:
        """Queue the items of *piece*, or some of them, in parts of at most *max_size*."""
        for part in piece.cut(max_size):
            if self.policy == "drop_oldest":
                self._make_room(part)
            elif self.policy == "sample":
                part = self._sampled(part)
            kept = self._fitting(part)
            if kept is not None and kept.items:
                self.inbox.push(kept, self.inbox.weight(kept))

    def _make_room(self, part: Piece) -> None:
        """Leave out what has waited longest, until *part* fits."""
        inbox = self.inbox
        while inbox.held and not inbox.fits(len(part.items), inbox.weight(part)):
            missing = max(1, inbox.held + len(part.items) - inbox.max_items)
            for oldest in inbox.take_nowait(missing, None):
                self._leave_out(oldest)

    def _sampled(self, part: Piece) -> Piece:
        """Return a random choice of the items, the fewer the fuller the queue is; the others are left out."""
        inbox = self.inbox
        free = 1.0 - inbox.held / inbox.max_items
        if free >= 1.0 - _SAMPLED_FROM:
            return part
        share = free / (1.0 - _SAMPLED_FROM)
        kept: list[Piece] = []
        while len(part.items) > 1:
            kept += self._chosen(part.split(1), share)
        kept += self._chosen(part, share)
        for one in kept[:-1]:
            inbox.push(one, inbox.weight(one))
        return kept[-1] if kept else Piece([])

    def _chosen(self, single: Piece, share: float) -> list[Piece]:
        if not single.items or self.rng.random() < share:
            return [single]
        self._leave_out(single)
        return []

    def _fitting(self, part: Piece) -> Piece | None:
        """Return as much of *part* as there is room for; the rest is left out."""
        inbox = self.inbox
        while part.items and not inbox.fits(len(part.items), inbox.weight(part)):
            room = min(inbox.max_items - inbox.held, len(part.items) - 1)
            if room <= 0:
                self._leave_out(part)
                return None
            head = part.split(room)
            self._leave_out(part)
            part = head
        return part

    def _leave_out(self, piece: Piece) -> None:
        self.dropped += len(piece.items)
        self.drop(piece, f"queue full ({self.policy})")
