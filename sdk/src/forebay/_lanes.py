"""Lanes: items with the same key run one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from forebay._batcher import Piece, Record
from forebay._types import Offset

_Waiting = tuple[object, int, float, Record | None]
"""An item, its position, when it arrived, and what is remembered of it."""

Shed = Callable[[int, float], Offset | None]
"""Gives the item at a position back to its source, to come again at a time of the loop's clock; returns its offset.

`None` where that is not possible: then the item has to wait here.
"""


def _keep(position: int, until: float) -> Offset | None:
    return None


def _unknown(position: int) -> Offset | None:
    return None


def _no_time() -> float:
    return 0.0


def _all_fit(taken: Sequence[Piece], piece: Piece) -> int:
    return len(piece.items)


GRACE_SECONDS = 30.0
"""How much later than promised an item that went back may come again; after that others do not wait for it."""


class Lanes:
    """Which keys have an item running, and what waits behind them.

    A key is *busy* from the moment one of its items is chosen for a batch until `release` is called for it,
    so waits for another attempt included: later items of the key stay behind the one that failed.
    When too many wait behind one that failed, further ones go back to their source; they come again in the order
    of their going, and until then every later item of the key goes back too. Behind one that just runs they all
    wait: it will not take long.
    """

    __slots__ = (
        "_away",
        "_blocked",
        "_busy",
        "clock",
        "in_order",
        "max_lane",
        "max_waiting",
        "offset",
        "peak",
        "ready",
        "shed",
        "waiting",
    )

    def __init__(
        self,
        *,
        in_order: bool,
        max_lane: int = 1_000,
        max_waiting: int = 10_000,
        shed: Shed = _keep,
        offset: Callable[[int], Offset | None] = _unknown,
        clock: Callable[[], float] = _no_time,
    ) -> None:
        self.in_order = in_order  # whether a batch may hold several items of a key
        self.max_lane = max_lane  # items that may wait behind one key
        self.max_waiting = max_waiting  # items that may wait behind all keys
        self.shed = shed
        self.offset = offset
        self.clock = clock
        self._blocked: dict[str, float] = {}  # by key: when the item that failed is tried again
        self._away: dict[
            str, list[tuple[Offset, float]]
        ] = {}  # by key: what went back and when it comes again, in order
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
            again = self._away and key in self._away
            if again and not self._comes_again(key, position):
                continue
            if key in busy and not (several and key in owned):
                self._queue(key, (item, position, piece.since, piece.record), front=bool(again))
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

    def _comes_again(self, key: str, position: int) -> bool:
        """Return whether the item may run: it is the next of those that went back. If not, it goes back (again)."""
        away = self._away[key]
        now = self.clock()
        while away and away[0][1] + GRACE_SECONDS < now:
            del away[0]  # somebody else has finished it
        offset = self.offset(position)
        if not away or offset == away[0][0]:
            del away[:1]
            if not away:
                del self._away[key]
            return True
        until = self._blocked.get(key, 0.0)
        gone = self.shed(position, until)
        place = next((index for index, (other, _) in enumerate(away) if other == offset), None)
        if gone is None:  # it has no source to wait in
            if place is not None:
                del away[place]
            return True
        if place is None:
            away.append((gone, max(until, now)))
        else:
            away[place] = (gone, max(until, now))
        return False

    def _queue(self, key: str, waiting: _Waiting, *, front: bool) -> None:
        lane = self._busy[key]
        if lane is None:
            lane = self._busy[key] = deque()
        if key in self._blocked and (len(lane) >= self.max_lane or self.waiting >= self.max_waiting):
            gone = self.shed(waiting[1], self._blocked[key])
            if gone is not None:
                away = self._away.setdefault(key, [])
                away.insert(0 if front else len(away), (gone, self._blocked[key]))
                return
        lane.append(waiting)
        self._count_waiting(1)

    def _count_waiting(self, more: int) -> None:
        self.waiting += more
        if self.waiting > self.peak:
            self.peak = self.waiting

    def block(self, keys: Iterable[str], until: float) -> None:
        """Take note that the heads of these lanes failed and are tried again at *until*."""
        for key in keys:
            self._blocked[key] = until

    def unblock(self, keys: Iterable[str]) -> None:
        """The heads of these lanes run again."""
        for key in keys:
            self._blocked.pop(key, None)

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
            if self._blocked:
                self._blocked.pop(key, None)
            if lane:
                busy[key] = None
                self._promote(key, lane)
                woken = True
        return woken

    def _promote(self, key: str, lane: deque[_Waiting]) -> None:
        """Make the head of *lane* ready; all of it where a batch may hold several."""
        heads = [lane.popleft()]
        _, _, since, record = heads[0]
        if self.in_order and record is None:
            while lane and lane[0][3] is None:  # what has a record comes in a piece of its own
                heads.append(lane.popleft())
        count = len(heads)
        items, positions = [head[0] for head in heads], [head[1] for head in heads]
        self.waiting -= count
        if lane:
            self._busy[key] = lane
        self.ready.append(Piece(items, positions=positions, keys=[key] * count, record=record, since=since))

    def depart(self, keys: Iterable[str], offset: Offset, until: float) -> None:
        """The heads of these lanes went back to their source and come again at *until*: what is behind follows them."""
        for key in keys:
            lane = self._busy.pop(key, None) or deque()
            self._blocked[key] = until
            away = self._away.setdefault(key, [])
            away.insert(0, (offset, until))
            behind = [(self.shed(waiting[1], until), waiting) for waiting in lane]
            away[1:1] = [(gone, until) for gone, _ in behind if gone is not None]
            rest = deque(waiting for gone, waiting in behind if gone is None)
            self.waiting -= len(lane) - len(rest)
            if rest:  # no source to wait in: they go on
                self._busy[key] = None
                self._promote(key, rest)

    def put_back(self, singles: Sequence[Piece]) -> None:
        """Put items in front of the lanes of their keys, in this order: they were not reached.

        Those whose head went back to its source follow it there if they can; the others go on.
        """
        keys = [single.keys[0] for single in singles if single.keys]
        headless = {key: 0 for key in keys if key not in self._busy and key in self._away}  # to how many followed
        staying = [single for single in singles if not self._follows(single, headless)]
        for single in reversed(staying):
            assert single.keys is not None
            assert single.positions is not None
            key = single.keys[0]
            lane = self._busy.get(key)
            if lane is None:
                lane = self._busy[key] = deque()
            lane.appendleft((single.items[0], single.positions[0], single.since, single.record))
            self._count_waiting(1)
        for key in headless:
            lane = self._busy.get(key)
            if lane:  # nobody holds it, so nobody would free it
                self._busy[key] = None
                self._promote(key, lane)

    def _follows(self, single: Piece, headless: dict[str, int]) -> bool:
        """Return whether an item has followed the head of its key to their source."""
        assert single.keys is not None
        assert single.positions is not None
        key = single.keys[0]
        if key not in headless:
            return False
        until = self._blocked.get(key, 0.0)
        gone = self.shed(single.positions[0], until)
        if gone is None:
            return False
        headless[key] += 1
        self._away[key].insert(headless[key], (gone, until))
        return True

    def take_ready(
        self, max_items: int, owned: set[str], fitting: Callable[[Sequence[Piece], Piece], int] = _all_fit
    ) -> list[Piece]:
        """Return pieces of items that hold their lanes, at most *max_items* items.

        Args:
            max_items: Limit of the batch.
            owned: Keys of the batch; those of the pieces are added.
            fitting: Says how many items of a piece fit into the batch beside others, by their size.
        """
        taken: list[Piece] = []
        while self.ready and max_items > 0:
            piece = self.ready[0]
            keys = piece.keys
            assert keys is not None
            if piece.record is not None and piece.record.alone and taken:
                break
            count = min(max_items, fitting(taken, piece))
            if count < len(piece.items):
                if taken:
                    break
                self._return_rest(piece, count)
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
        rest: list[_Waiting] = [
            (item, position, piece.since, None)
            for item, position in zip(piece.items[count:], piece.positions[count:], strict=True)
        ]
        lane.extendleft(reversed(rest))
        self._count_waiting(len(rest))
        piece.items, piece.positions, piece.keys = piece.items[:count], piece.positions[:count], piece.keys[:count]
