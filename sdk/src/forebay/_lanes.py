"""Lanes: items with the same key run one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from forebay._batcher import Piece

_Waiting = tuple[object, int]
"""An item and its position."""


class Lanes:
    """Which keys have an item running, and what waits behind them.

    A key is *busy* from the moment one of its items is chosen for a batch until `release` is called for it,
    so waits for another attempt included: later items of the key stay behind the one that failed.
    """

    __slots__ = ("_busy", "in_order", "peak", "ready", "waiting")

    def __init__(self, *, in_order: bool) -> None:
        self.in_order = in_order  # whether a batch may hold several items of a key
        self.waiting = 0  # items that wait behind a busy key
        self.peak = 0
        self.ready: deque[Piece] = deque()  # heads of their lanes, to be run next
        self._busy: dict[str, deque[_Waiting] | None] = {}

    def choose(self, piece: Piece, owned: set[str]) -> Piece | None:
        """Return the items of *piece* that may run in the batch that owns the keys *owned*; queue the others.

        Their keys are added to *owned*. A span comes without holes.
        """
        busy = self._busy
        keys = piece.keys
        assert keys is not None, "a keyed stage got items without keys"
        positions = piece.listed()
        items_out: list[object] = []
        positions_out: list[int] = []
        keys_out: list[str] = []
        several = self.in_order
        for item, position, key in zip(piece.items, positions, keys, strict=True):
            if key in busy and not (several and key in owned):
                self._queue(key, item, position)
                continue
            if key not in owned:
                busy[key] = None
                owned.add(key)
            items_out.append(item)
            positions_out.append(position)
            keys_out.append(key)
        if not items_out:
            return None
        if len(items_out) == len(positions):
            return piece
        return Piece(items_out, positions=positions_out, keys=keys_out, since=piece.since)

    def _queue(self, key: str, item: object, position: int) -> None:
        lane = self._busy[key]
        if lane is None:
            lane = self._busy[key] = deque()
        lane.append((item, position))
        self.waiting += 1
        if self.waiting > self.peak:
            self.peak = self.waiting

    def waiting_for(self, key: str) -> int:
        """Return how many items wait behind *key*."""
        lane = self._busy.get(key)
        return 0 if lane is None else len(lane)

    def release(self, keys: Iterable[str]) -> bool:
        """Free *keys*; return whether that made items ready to run."""
        busy = self._busy
        woken = False
        for key in keys:
            lane = busy.pop(key, None)
            if lane:
                busy[key] = None
                self._promote(key, lane)
                woken = True
        return woken

    def _promote(self, key: str, lane: deque[_Waiting]) -> None:
        """Make the head of *lane* ready; all of it where a batch may hold several."""
        count = len(lane) if self.in_order else 1
        heads = [lane.popleft() for _ in range(count)]
        self.waiting -= count
        if lane:
            self._busy[key] = lane
        self.ready.append(
            Piece([item for item, _ in heads], positions=[position for _, position in heads], keys=[key] * count)
        )

    def take_ready(self, max_items: int, owned: set[str]) -> list[Piece]:
        """Return pieces of items that hold their lanes, at most *max_items* items."""
        taken: list[Piece] = []
        while self.ready and max_items > 0:
            piece = self.ready[0]
            keys = piece.keys
            assert keys is not None
            if piece.record is not None and piece.record.alone and taken:
                break
            if len(piece.items) > max_items:
                if taken:
                    break
                self._return_rest(piece, max_items)
            self.ready.popleft()
            max_items -= len(piece.items)
            owned.update(keys)
            taken.append(piece)
            if piece.record is not None and piece.record.alone:
                break
        return taken

    def _return_rest(self, piece: Piece, count: int) -> None:
        """Cut *piece*, all of one key, to *count* items; the rest waits in front of its lane."""
        assert piece.keys is not None
        assert piece.positions is not None
        key = piece.keys[0]
        lane = self._busy[key]
        if lane is None:
            lane = self._busy[key] = deque()
        rest = list(zip(piece.items[count:], piece.positions[count:], strict=True))
        lane.extendleft(reversed(rest))
        self.waiting += len(rest)
        piece.items, piece.positions, piece.keys = piece.items[:count], piece.positions[:count], piece.keys[:count]
