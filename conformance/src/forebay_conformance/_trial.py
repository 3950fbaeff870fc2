"""A stage in virtual time: it sends to a plant what its controller allows, and shows it what came of it.

The same plant, seed and answers give the same run, whatever the machine does.
"""

from __future__ import annotations

import heapq
import math
import random

from attrs import define, field

from forebay.abc import Observation
from forebay_conformance._controller_probe import Subject, Tick
from forebay_conformance._plant import Plant

TICK_SECONDS = 0.05
"""Time between two looks at a call that takes longer than usual, and the least that is expected of a call."""
REFUSAL_SECONDS = 0.005
"""Time in which a batch is refused for its size."""
BACKLOG = 100_000
"""Items that wait where the queue is never empty."""


@define(eq=False)
class _Call:
    size: int
    sent: float
    seconds: float
    in_flight: int
    """Calls in flight when it was sent, itself included."""
    failed: bool
    too_large: bool


@define
class Stretch:
    """What came of some time."""

    seconds: float
    done: int = 0
    """Items."""
    calls: int = 0
    refused: int = 0
    """Calls that were too large."""
    spans: list[float] = field(factory=list[float])
    """Seconds of each call."""

    @property
    def rate(self) -> float:
        """Items done in a second."""
        return self.done / self.seconds

    def span(self, share: float, /) -> float:
        """Return the seconds within which this share of the calls ended; infinite if none did."""
        return sorted(self.spans)[int(share * (len(self.spans) - 1))] if self.spans else math.inf


class Trial:
    """A stage that sends what waits as soon as a call is free, and asks its controller when forebay would.

    Args:
        plant: What takes its calls.
        subject: What it obeys.
        seed: The noise follows from it.
    """

    def __init__(self, plant: Plant, subject: Subject, *, seed: int = 1) -> None:
        self.plant = plant
        self.pressure = 0.0
        self.failing = False
        """Whether calls that are sent from now on fail."""
        self.silent = False
        """Whether calls that are sent from now on never answer."""
        self._subject = subject
        self._chance = random.Random(f"{plant.name}, {seed}")
        self._now = 0.0
        self._sent = 0
        """Calls so far; each has its number."""
        self._usual = 0.0
        self._ticked = -math.inf
        self._comes = plant.rate < math.inf
        """Whether items come at a rate; else there is no end of them."""
        self._waiting = 0.0
        """Items, where they come at a rate."""
        self._flying: dict[int, _Call] = {}
        """The oldest first."""
        self._ends: list[tuple[float, int]] = []

    def run(self, seconds: float) -> Stretch:
        """Go on for so long; return what came of it."""
        self._subject.probe.trail.append(f"{seconds:.3g} s before {self.plant.name}")
        stretch, end = Stretch(seconds), self._now + seconds
        self._send()
        while True:
            answer = self._ends[0][0] if self._ends else math.inf
            tick = self._tick_due()
            moment = min(answer, tick, self._item_due())
            if moment > end:
                self._pass_until(end)
                return stretch
            self._pass_until(moment)
            if moment == answer:
                self._end_call(stretch)
            elif moment == tick:
                self._look()
            self._send()

    def hang(self, calls: int | None = None) -> None:
        """Let the oldest *calls* in flight never answer; all of them without a number."""
        lost = set(list(self._flying)[:calls])
        self._ends = [each for each in self._ends if each[1] not in lost]
        heapq.heapify(self._ends)

    # --- Items ----------------------------------------------------------------------------------

    def _pass_until(self, moment: float) -> None:
        if self._comes:
            self._waiting += self.plant.rate * (moment - self._now)
        self._now = moment

    def _queued(self) -> int:
        return int(self._waiting + 1e-6) if self._comes else BACKLOG

    def _item_due(self) -> float:
        """Return when the next item comes; only where a call waits for it."""
        if not self._comes or len(self._flying) >= self._subject.limits.concurrency or self._queued():
            return math.inf
        return self._now + (1.0 - self._waiting) / self.plant.rate

    # --- Calls ----------------------------------------------------------------------------------

    def _send(self) -> None:
        flying = self._flying
        while len(flying) < self._subject.limits.concurrency:
            size = min(self._subject.limits.batch_size, self._queued())
            if not size:
                return
            if self._comes:
                self._waiting -= size
            call = self._drawn(size, len(flying) + 1)
            self._sent += 1
            flying[self._sent] = call
            if not self.silent:
                heapq.heappush(self._ends, (self._now + call.seconds, self._sent))

    def _drawn(self, size: int, in_flight: int) -> _Call:
        plant = self.plant
        if size > plant.largest:
            return _Call(size, self._now, REFUSAL_SECONDS, in_flight, True, True)
        noise = 1.0 + plant.noise * (2.0 * self._chance.random() - 1.0)
        seconds = plant.seconds(size, in_flight) * noise
        if seconds > plant.time_limit:
            return _Call(size, self._now, plant.time_limit, in_flight, True, False)
        return _Call(size, self._now, seconds, in_flight, self.failing, False)

    def _end_call(self, stretch: Stretch) -> None:
        """Count the call that ends now, and show it to the controller."""
        call = self._flying.pop(heapq.heappop(self._ends)[1])
        seconds = call.seconds
        self._usual += 0.2 * (seconds - self._usual)
        stretch.calls += 1
        stretch.spans.append(seconds)
        if call.failed:
            stretch.refused += call.too_large
            self._waiting += call.size
        else:
            stretch.done += call.size
        queued = self._queued()
        wait = queued / self.plant.rate if self._comes else 1.0
        self._subject.show(
            Observation(
                self._now,
                call.size,
                None,
                seconds,
                call.failed,
                call.too_large,
                queued,
                call.in_flight,
                wait,
                self._now - self._oldest_sent(),
                self.pressure,
            )
        )

    def _oldest_sent(self) -> float:
        """Return when the oldest call in flight was sent; now, if there is none."""
        for call in self._flying.values():
            return call.sent
        return self._now

    def _tick_due(self) -> float:
        if self._subject.watchful is None or not self._flying:
            return math.inf
        sent = self._oldest_sent()
        late = sent + max(TICK_SECONDS, 2 * self._usual)
        if late > self._now:
            return late
        return max(self._now, self._ticked + TICK_SECONDS * max(1.0, self._now - sent))

    def _look(self) -> None:
        """Show the controller the calls in flight."""
        self._ticked = now = self._now
        self._subject.show(Tick(now, len(self._flying), now - self._oldest_sent(), self._queued(), self.pressure))
