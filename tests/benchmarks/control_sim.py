"""A batch stage before a downstream, simulated event by event in virtual time, with a controller in charge.

First in, first out; a batch goes as soon as a call is free, when it is full or its oldest item has waited long enough.
The same scenario, seed and limits give the same run, whatever the machine does.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence

import attrs

from forebay._types import Limits, Observation
from forebay.abc import Controller
from tests.benchmarks.control_plant import REFUSAL_SECONDS, Scenario, Segment, poisson
from tests.benchmarks.control_result import Result, breach

QUEUE = 200_000
"""Most items that wait; more are turned away."""
TICK_SECONDS = 0.01
"""A watchful controller is shown the calls in flight at most this often."""
LATE_TICK_SECONDS = 0.05
"""The same where it is shown late calls alone, as by a stage."""
TRACE_SECONDS = 0.5
ITEM_BYTES = 1000


Tick = Callable[[float, int, float, int, float], Limits]


@attrs.define
class _Call:
    size: int
    seconds: float
    failed: bool
    too_large: bool
    weight: float
    in_flight: int
    """Calls in flight when it was sent, itself included."""
    chunks: list[tuple[float, int]]


def simulate(
    scenario: Scenario,
    seed: int,
    controller: Controller | None = None,
    *,
    limits: Limits | Sequence[Limits] | None = None,
    arrivals: Sequence[int] | None = None,
    timed: bool = False,
    late_ticks: bool = False,
) -> Result:
    """Run *scenario* once and return what came of it.

    Args:
        scenario: The downstream and its load.
        seed: Arrivals and noise follow from it.
        controller: Who moves the limits; nobody if `None`.
        limits: What holds at first, by default the scenario's start; several are one for each phase.
        arrivals: What `scenario.arrivals(seed)` returned, to share between runs.
        timed: Whether to measure the CPU time of the controller.
        late_ticks: Whether a watchful controller is shown only what a stage shows it: calls that take twice as long
            as usual, every 50 ms and later less often. Otherwise it is every 10 ms, as long as a call is in flight.
    """
    by_phase = [limits] * len(scenario.phases) if isinstance(limits, Limits) else limits
    if by_phase is None:
        by_phase = [scenario.start] * len(scenario.phases)
    run = _Run(scenario, seed, controller, by_phase)
    run.clock_cost = _clock_cost() if timed else None
    run.late_ticks = late_ticks
    run.go([] if scenario.closed else scenario.arrivals(seed) if arrivals is None else arrivals)
    return run.result


class _Run:
    """The state of one run. Not attrs: attributes are read a million times."""

    clock_cost: float | None
    late_ticks: bool

    def __init__(
        self, scenario: Scenario, seed: int, controller: Controller | None, by_phase: Sequence[Limits]
    ) -> None:
        self.scenario = scenario
        self.goal = math.inf if scenario.goal is None else scenario.goal
        self.shedding = scenario.shed and not scenario.closed and scenario.goal is not None
        self.chance = random.Random(f"{scenario.name}, calls {seed}")
        self.controller = controller
        self.tick: Tick | None = getattr(controller, "tick", None)
        self.by_phase = by_phase
        self.limits = by_phase[0]
        self.shown = by_phase[0]
        self.starts = scenario.starts()
        self.segments = scenario.segments()
        self.segment: Segment = self.segments[0]
        self.next_segment = 0.0
        self.index = -1
        self.hiccups = deque(scenario.hiccups())
        self.queue: deque[tuple[float, int]] = deque()
        self.queued = 0
        self.in_memory = 0
        self.running: dict[int, float] = {}
        self.ends: list[tuple[float, int, _Call]] = []
        self.now = 0.0
        self.ticked = -math.inf
        self.usual = 0.0
        self.traced = 0.0
        self.due = math.inf
        self.full_mean = 0.1 * self.goal
        self.full_deviation = 0.04 * self.goal
        self.result = Result(scenario.seconds, good_by_second=[0] * (scenario.seconds + 1))

    # --- Time ----------------------------------------------------------------------------------

    def go(self, arrivals: Sequence[int]) -> None:
        """Run to the end."""
        moments = self.moments(arrivals)
        position, last = 0, len(moments)
        end = float(self.scenario.seconds)
        ends = self.ends
        if self.scenario.closed:
            self.arrive(2 * self.scenario.max_size)
        self.move_on(0.0)
        self.dispatch()
        while True:
            arrival = moments[position][0] if position < last else math.inf
            answer = ends[0][0] if ends else math.inf
            now = min(arrival, answer, self.due)
            if now >= end:
                break
            self.move_on(now)
            if now == answer:
                self.finish(heapq.heappop(ends))
            elif now == arrival:
                self.arrive(moments[position][1])
                position += 1
            if self.tick is not None and self.running and now >= self.tick_due() - 1e-9:
                self.call_tick(self.tick)
            self.dispatch()
        self.close(end)

    def moments(self, arrivals: Sequence[int]) -> list[tuple[float, int]]:
        """Return when how many items arrive; without items too where a controller wants to be asked meanwhile."""
        tick = self.scenario.tick
        if self.scenario.closed:
            count = round(self.scenario.seconds / TICK_SECONDS)
            return [(index * TICK_SECONDS, 0) for index in range(count)] if self.tick is not None else []
        return [(index * tick, count) for index, count in enumerate(arrivals) if count or self.tick is not None]

    def move_on(self, now: float) -> None:
        """Set the time, and what holds from it on."""
        self.result.item_seconds += self.in_memory * (now - self.now)
        self.now = now
        while now >= self.next_segment:
            self.index += 1
            phase = self.segment.phase
            self.segment = self.segments[self.index]
            after = self.index + 1
            self.next_segment = self.segments[after].start if after < len(self.segments) else math.inf
            if self.controller is None and self.segment.phase != phase:
                self.limits = self.shown = self.by_phase[self.segment.phase]
        if now >= self.traced:
            self.result.trace.append((now, self.shown.batch_size, self.shown.concurrency))
            self.traced = (now // TRACE_SECONDS + 1) * TRACE_SECONDS

    def close(self, end: float) -> None:
        """Count what is left when the time is over."""
        result = self.result
        result.item_seconds += self.in_memory * (end - self.now)
        result.left = self.in_memory
        waiting = [*self.queue, *(chunk for _, _, call in self.ends for chunk in call.chunks)]
        result.sojourns += sum((end - arrived) * count for arrived, count in waiting)

    # --- Items ---------------------------------------------------------------------------------

    def arrive(self, count: int) -> None:
        """Let *count* items in, or turn them away where too many wait."""
        if not count:
            return
        self.result.offered += count
        if self.queued + count > QUEUE:
            self.result.turned_away += count
            return
        self.queue.append((self.now, count))
        self.queued += count
        self.in_memory += count
        if self.in_memory > self.result.peak:
            self.result.peak = self.in_memory

    def shed(self) -> None:
        """Drop what a full call would no longer bring home within the goal."""
        oldest = max(self.goal - self.full_mean - 2.0 * self.full_deviation, 0.3 * self.goal)
        queue = self.queue
        while queue and self.now - queue[0][0] > oldest:
            arrived, count = queue.popleft()
            self.queued -= count
            self.in_memory -= count
            self.result.shed += count
            self.result.sojourns += (self.now - arrived) * count

    def dispatch(self) -> None:
        """Send while a call is free and a batch is ready."""
        self.due = math.inf
        while self.queued and len(self.running) < self.limits.concurrency:
            if self.shedding:
                self.shed()
                if not self.queued:
                    return
            if self.queued < self.limits.batch_size:
                due = self.queue[0][0] + self.limits.max_wait
                if due > self.now + 1e-9:
                    self.due = due
                    return
            self.send(min(self.queued, self.limits.batch_size))

    def take(self, size: int) -> list[tuple[float, int]]:
        """Take *size* items from the front of the queue."""
        taken: list[tuple[float, int]] = []
        queue = self.queue
        self.queued -= size
        while size:
            arrived, count = queue.popleft()
            if count > size:
                queue.appendleft((arrived, count - size))
                count = size
            taken.append((arrived, count))
            size -= count
        return taken

    # --- Calls ---------------------------------------------------------------------------------

    def send(self, size: int) -> None:
        """Start a call with *size* items; how it ends is settled now."""
        chunks = self.take(size)
        if self.scenario.closed:
            self.arrive(size)
        call = self.draw(size, chunks)
        number = self.result.calls
        self.result.calls += 1
        self.running[number] = self.now
        heapq.heappush(self.ends, (self.now + call.seconds, number, call))

    def draw(self, size: int, chunks: list[tuple[float, int]]) -> _Call:
        """Return a call of *size* items with the time that it takes and how it ends."""
        plant, chance, calls = self.segment.plant, self.chance, len(self.running) + 1
        weight = float(size)
        if plant.heavy_share:
            weight += min(size, poisson(chance, size * plant.heavy_share)) * (plant.heavy_weight - 1.0)
        if weight > plant.largest:
            return _Call(size, REFUSAL_SECONDS, True, True, weight, calls, chunks)
        seconds = plant.mean_seconds(weight, calls)
        if plant.noise:
            seconds *= math.exp(chance.gauss(-plant.noise * plant.noise / 2, plant.noise))
        if plant.slow_share and chance.random() < plant.slow_share:
            seconds *= plant.slow_factor
        if self.hiccups:
            seconds = self.delayed(seconds)
        failed = plant.failing > 0 and chance.random() < plant.failing
        if seconds > self.scenario.time_limit:
            self.result.timed_out += 1
            seconds, failed = self.scenario.time_limit, True
        return _Call(size, seconds, failed, False, weight, calls, chunks)

    def delayed(self, seconds: float) -> float:
        """Return *seconds* of work lengthened by the silences that fall into them."""
        while self.hiccups and self.hiccups[0][1] <= self.now:
            self.hiccups.popleft()
        end = self.now + seconds
        for start, stop in self.hiccups:
            if start >= end:
                break
            end += stop - max(start, self.now)
        return end - self.now

    def finish(self, ended: tuple[float, int, _Call]) -> None:
        """Count a call that ended, and tell the controller."""
        _, number, call = ended
        del self.running[number]
        if call.too_large:
            self.result.too_large += 1
            self.queue.extendleft(reversed(call.chunks))
            self.queued += call.size
        else:
            self.in_memory -= call.size
            self.count(call)
        if self.controller is not None:
            self.observe(self.controller, call)

    def count(self, call: _Call) -> None:
        """Count the items of a call that was not refused."""
        result, now, goal = self.result, self.now, self.goal
        settled = now - self.starts[self.segment.phase] >= self.scenario.settle
        good = 0
        for arrived, items in call.chunks:
            seconds = now - arrived
            result.sojourns += seconds * items
            if call.failed:
                continue
            result.latency.add(seconds, items)
            if settled:
                result.settled.add(seconds, items)
            if seconds <= goal:
                good += items
        if call.failed:
            result.failed += call.size
            return
        result.done += call.size
        result.good += good
        result.good_by_second[int(now)] += good
        if settled:
            result.settled_good += good
        if 2 * call.size >= self.shown.batch_size:  # a short call says nothing of a full one
            self.full_deviation += 0.1 * (abs(call.seconds - self.full_mean) - self.full_deviation)
            self.full_mean += 0.1 * (call.seconds - self.full_mean)

    # --- The controller ------------------------------------------------------------------------

    def oldest_call(self) -> float:
        """Return the age of the oldest call in flight."""
        for sent in self.running.values():
            return self.now - sent
        return 0.0

    def observe(self, controller: Controller, call: _Call) -> None:
        """Tell the controller of a call that ended."""
        self.usual += 0.2 * (call.seconds - self.usual)
        observation = Observation(
            self.now,
            call.size,
            round(call.weight * ITEM_BYTES),
            call.seconds,
            call.failed,
            call.too_large,
            self.queued,
            call.in_flight,
            self.now - self.queue[0][0] if self.queue else 0.0,
            self.oldest_call(),
            self.segment.pressure,
        )
        if self.clock_cost is None:
            self.accept(controller.observe(observation))
            return
        started = time.process_time()
        limits = controller.observe(observation)
        self.result.controller_seconds += time.process_time() - started - self.clock_cost
        self.accept(limits)

    def tick_due(self) -> float:
        """Return when the controller is to look at the calls in flight."""
        if not self.late_ticks:
            return self.ticked + TICK_SECONDS
        age = self.oldest_call()
        late = self.now - age + max(LATE_TICK_SECONDS, 2.0 * self.usual)
        return max(late, self.ticked + LATE_TICK_SECONDS * max(1.0, age))

    def call_tick(self, tick: Tick) -> None:
        """Let the controller look at what has not answered yet."""
        self.ticked = self.now
        oldest = self.oldest_call()
        if self.clock_cost is None:
            self.accept(tick(self.now, len(self.running), oldest, self.queued, self.segment.pressure))
            return
        started = time.process_time()
        limits = tick(self.now, len(self.running), oldest, self.queued, self.segment.pressure)
        self.result.controller_seconds += time.process_time() - started - self.clock_cost
        self.accept(limits)

    def accept(self, limits: Limits) -> None:
        """Let *limits* hold from now on; keep the present ones if they are out of bounds, and write that down."""
        if limits is self.limits:
            return
        wrong = breach(limits, self.scenario)
        if wrong is None:
            self.limits = limits
            if not limits.probe:
                self.shown = limits
        else:
            self.result.breaches.append(f"at {self.now:.3f} s: {wrong}")


_CLOCK_COST: list[float] = []


def _clock_cost() -> float:
    """Return the CPU time that reading the clock adds to what lies between two readings."""
    if not _CLOCK_COST:
        readings: list[float] = []
        for _ in range(2000):
            started = time.process_time()
            readings.append(time.process_time() - started)
        _CLOCK_COST.append(sorted(readings)[len(readings) // 2])
    return _CLOCK_COST[0]
