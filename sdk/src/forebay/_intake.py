"""What a free worker of a stage takes next: what is to run again, the heads of lanes, then what has come in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from attrs import define

from forebay._batch import Batch, Exit
from forebay._batcher import Piece
from forebay._buffer import Buffer
from forebay._lanes import Lanes
from forebay._waiting import Waiting


@define(eq=False, kw_only=True)
class Intake:
    """Makes the batches of one stage, as large as its limits and what has gathered allow."""

    inbox: Buffer[Piece]
    exit: Exit
    waiting: Waiting
    lanes: Lanes | None = None
    max_size: int
    max_bytes: int | None = None
    per_item: bool = False
    max_concurrency: int = 1
    """Calls among which single items are shared out."""
    max_wait: float = 0.0
    """Longest time in seconds that an item waits for company while a worker is free."""
    waits_until: float = math.inf
    """Time at which what has gathered goes out, full or not; infinite while nothing waits for company."""
    clock: Callable[[], float]
    mean_item: float = 1.0
    """Smoothed seconds of one item, for handlers of single items."""

    def next_batch(self) -> Batch | None:
        """Return what a free worker does next: as much as has gathered, up to the limits."""
        waiting = self.waiting
        while waiting.again:
            batch = self._still_ours(waiting.again.popleft())
            if batch.items:
                return batch
        if len(waiting.due) >= waiting.max_batches:
            self.waits_until = math.inf
            return None  # enough waits for another attempt; what is due wakes a worker
        if self.lanes is not None:
            return self._next_in_lanes(self.lanes)
        if self.max_wait and self._waits_for_company():
            return None
        pieces = self.inbox.take_nowait(self._size_now() if self.per_item else self.max_size, self.max_bytes)
        if len(pieces) > 1:
            pieces = self._without_loners(pieces)
        return Batch(pieces) if pieces else None

    def _waits_for_company(self) -> bool:
        """Return whether what has gathered is less than a batch and may wait for more."""
        inbox = self.inbox
        self.waits_until = math.inf
        if not inbox.parts or inbox.held >= self.max_size:
            return False
        until = inbox.parts[0].since + self.max_wait
        if until <= self.clock():
            return False
        self.waits_until = until
        return True

    def _still_ours(self, batch: Batch) -> Batch:
        """Take those items out of *batch* that another member has taken over while they waited."""
        if all(self.exit.is_ours(piece) for piece in batch.pieces):
            return batch
        keys = batch.keys()
        batch.pieces = [single for single in self.exit.scatter(batch) if self.exit.is_ours(single)]
        batch.items = [item for single in batch.pieces for item in single.items]
        if self.lanes is not None:
            self.waiting.release_keys(self.lanes, keys - batch.keys())  # those that are left stay its own
        return batch

    def _without_loners(self, pieces: list[Piece]) -> list[Piece]:
        """Put what has to run alone into batches of its own."""
        loners = [piece for piece in pieces if _is_alone(piece)]
        again = self.waiting.again
        again.extend(Batch([piece]) for piece in loners)
        return [piece for piece in pieces if piece not in loners] or again.pop().pieces if loners else pieces

    def _size_now(self) -> int:
        """Return how many items a worker takes that handles them one by one.

        One, so that all workers have something to do; several only where an item takes so little time that
        handing it over would cost more.
        """
        share = self.inbox.held // (2 * self.max_concurrency)
        return max(1, min(self.max_size, share, int(0.001 / self.mean_item) if self.mean_item else 1))

    # --- Behind `key_by` ------------------------------------------------------------------------

    def _next_in_lanes(self, lanes: Lanes) -> Batch | None:
        owned: set[str] = set()
        limit = self._size_now() if self.per_item else self.max_size
        pieces = lanes.take_ready(limit, owned, self._fitting)
        room = limit - sum(len(piece.items) for piece in pieces)
        if pieces and _is_alone(pieces[-1]):
            room = 0
        while room > 0 and lanes.waiting <= lanes.max_waiting:
            taken = self._take_beside(pieces, room)
            if not taken:
                break
            for piece in taken:
                self.exit.listed(piece)
                chosen = lanes.choose(piece, owned)
                if chosen is None:
                    continue
                if pieces and (_is_alone(chosen) or _is_alone(pieces[-1])):
                    self.waiting.again.append(Batch([chosen]))
                else:
                    pieces.append(chosen)
                    room = 0 if _is_alone(chosen) else room - len(chosen.items)
        return Batch(pieces) if pieces else None

    def _take_beside(self, pieces: Sequence[Piece], room: int) -> list[Piece]:
        """Take what fits into a batch that has *pieces* already."""
        weigh, max_bytes = self.inbox.weigh, self.max_bytes
        if weigh is None or max_bytes is None:
            return self.inbox.take_nowait(room, None)
        room_bytes = max_bytes - sum(weigh(item) for piece in pieces for item in piece.items)
        parts = self.inbox.parts
        if pieces and parts and weigh(parts[0].items[0]) > room_bytes:
            return []
        return self.inbox.take_nowait(room, max(room_bytes, 1))

    def _fitting(self, taken: Sequence[Piece], piece: Piece) -> int:
        """Return how many of the items of *piece* fit into a batch beside *taken*; one that is too large goes alone."""
        weigh, max_bytes = self.inbox.weigh, self.max_bytes
        if weigh is None or max_bytes is None:
            return len(piece.items)
        room = max_bytes - sum(weigh(item) for other in taken for item in other.items)
        for index, item in enumerate(piece.items):
            room -= weigh(item)
            if room < 0:
                return 1 if not taken and index == 0 else index
        return len(piece.items)


def _is_alone(piece: Piece) -> bool:
    return piece.record is not None and piece.record.alone
