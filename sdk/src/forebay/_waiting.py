"""What waits in a stage for another attempt, and the pause while what lies behind the stage is down."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterable

import anyio
from attrs import define, field

from forebay._batch import Batch, Exit
from forebay._batcher import Piece, Record
from forebay._buffer import Buffer
from forebay._lanes import Lanes
from forebay._retry import Retry


@define(eq=False, kw_only=True)
class Waiting:
    """Batches of one stage that are run again, now or later."""

    exit: Exit
    inbox: Buffer[Piece]
    lanes: Lanes | None = None
    retry: Retry | None = None
    rng: random.Random = field(factory=random.Random)
    max_batches: int = 10_000
    """Batches that may wait for their time before the stage takes no new ones."""
    again: deque[Batch] = field(factory=deque[Batch])
    """What runs before anything new."""
    due: list[tuple[float, int, Batch]] = field(factory=list[tuple[float, int, Batch]])
    """What waits for its time, as a heap; changed in place only."""
    paused_until: float = 0.0
    """Time of the loop's clock until which no call starts; 0.0 while none is held up."""
    outages: int = 0
    """Calls in a row that found what lies behind down."""
    end: float = math.inf
    """Time of the loop's clock after which nothing is tried again, because the run drains."""
    _sequence: int = 0
    _due_changed: anyio.Event | None = None

    # --- The pause of an outage -----------------------------------------------------------------

    def pause(self, error: BaseException) -> None:
        """Start no call for a while: what lies behind is down, and no attempt is used up."""
        if self.paused_until > anyio.current_time():
            return  # calls that were under way when it began
        self.outages += 1
        policy = self.retry or Retry()
        delay = policy.delay(self.outages, error, None, self.rng)
        self.paused_until = max(self.paused_until, anyio.current_time() + max(delay, 0.05))

    async def wait_pause(self) -> None:
        """Wait until calls may start again, or nearly so: look at `paused_until` again."""
        await anyio.sleep(max(0.0, self.paused_until - anyio.current_time()))
        if self.paused_until <= anyio.current_time():
            self.paused_until = 0.0

    # --- Further attempts -----------------------------------------------------------------------

    def schedule(self, batch: Batch, delay: float) -> None:
        """Run *batch* again after *delay* seconds; it goes back to its source if the run will have ended by then."""
        self._sequence += 1
        due = anyio.current_time() + delay
        if due > self.end:
            self._give_up(batch, due)
            return
        heapq.heappush(self.due, (due, self._sequence, batch))
        if self.lanes is not None:
            for piece in batch.pieces:
                self.lanes.block(piece.keys or (), due)
        if self._due_changed is not None:
            self._due_changed.set()

    async def watch_due(self) -> None:
        """Bring back what waits for another attempt when it is due; runs as long as the stage does."""
        due = self.due
        while True:
            self._due_changed = anyio.Event()
            wait = due[0][0] - anyio.current_time() if due else None
            if wait is None:
                await self._due_changed.wait()
            elif wait > 0:
                with anyio.move_on_after(wait):
                    await self._due_changed.wait()
            while due and due[0][0] <= anyio.current_time():
                batch = heapq.heappop(due)[2]
                if self.lanes is not None:
                    for piece in batch.pieces:
                        self.lanes.unblock(piece.keys or ())
                self.again.append(batch)
                self.inbox.wake_one()

    def drain(self, end: float) -> None:
        """Let nothing wait for an attempt later than *end*, now and from now on: it goes back to its source."""
        self.end = end
        late = [(due, batch) for due, _, batch in self.due if due > end]
        self.due[:] = [entry for entry in self.due if entry[0] <= end]
        heapq.heapify(self.due)
        for due, batch in late:
            self._give_up(batch, due)

    def _give_up(self, batch: Batch, due: float) -> None:
        delay = due - anyio.current_time()
        departed: set[str] = set()
        for single in self.exit.scatter(batch):
            offset = self.exit.give_up(single, self.record(single, batch), delay)
            if self.lanes is not None and offset is not None:
                self.lanes.depart(single.keys or (), offset, due)
                departed.update(single.keys or ())
        if self.lanes is not None:
            self.release_keys(self.lanes, batch.keys() - departed)
        self.inbox.wake_one()

    # --- What is known of an item, and of its key -----------------------------------------------

    def record(self, single: Piece, batch: Batch) -> Record:
        """Return what is remembered of a single item of *batch*."""
        record = single.record
        if record is None:
            failures = self.exit.failures_before(single, 0) + batch.failures
            record = single.record = Record(failures=failures, maybe_done=batch.maybe_done)
        return record

    def perhaps_done(self) -> list[Batch]:
        """Return what waits and was cut off at an earlier attempt, so that its effect may have happened."""
        return [
            batch
            for batch in (*(batch for _, _, batch in self.due), *self.again)
            if batch.maybe_done or any(piece.record is not None and piece.record.maybe_done for piece in batch.pieces)
        ]

    def release(self, batch: Batch) -> None:
        """Let the next items of the batch's keys run."""
        if self.lanes is not None and not batch.is_part:
            self.release_keys(self.lanes, batch.keys())

    def release_keys(self, lanes: Lanes, keys: Iterable[str]) -> None:
        """Let the next items of *keys* run."""
        if lanes.release(keys) or lanes.waiting <= lanes.max_waiting:
            self.inbox.wake_one()
