"""The adaptive controller: finds the batch size and the number of calls that a service wants, and keeps finding them.

Latency alone says little: larger batches take longer, and so do calls that get in each other's way. So each of the two
is judged side by side, by calls that went out moments apart, and no baseline can grow old:

- *Size*: now and then one call carries a smaller batch. The slope of log latency over log size is the share of a call's
  cost that grows with its items: 0 where the fixed cost is all, 1 where nothing is gained by a larger batch, and more
  where it does harm. Batches grow until it is 0.72.
- *Calls*: now and then the limit drops for one round trip. Latency at the full limit beside that at the lower one,
  with what the size explains taken out, shows how much calls disturb each other. The limit grows until that is 15 %.
- *Time*: a goal's p99 bounds the latency of a call; beyond it, whichever of the two is to blame gives way.

Two gears. It *searches* after the start, after a collapse and after a large improvement: round by round, by doubling,
first the size, then the calls. Then it *holds*: probes, small steps, and ever fewer of them while nothing changes.
A collapse is seen before any call comes back, by the age of those in flight.

Everything is kept in natural logarithms, because both limits range over orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from typing import Final

from attrs import evolve

from forebay._arms import Ceiling, Cycle, Round, dip
from forebay._types import Bounds, Goal, Limits, Observation

_LOG2: Final = math.log(2)
_LOG4: Final = math.log(4)
_EFFICIENT: Final = 0.72
"""Slope of log latency over log size at which a batch is large enough: about 15 % of its cost is fixed."""
_CROWDED: Final = math.log(1.15)
"""Rise of log latency from the lower limit of calls to the full one at which there are enough."""
_SHARE: Final = 0.45
"""Share of a goal's p99 that a call may take; the rest is for waiting and for calls that take longer than most."""
_SCOUTS: Final = 8
"""One call in so many carries a batch of another size."""
_QUARTER: Final = 0.25
_ROUNDING: Final = 0.35
"""Less than a half, because where calls get in each other's way one too many costs more than one too few."""
_SPARE: Final = 7.7
"""More calls than so many times those that items alone would keep busy shorten a call by less than 15 %."""


def _clamp(value: float, low: float, high: float) -> float:
    return low if value < low else high if value > high else value


class AdaptiveController:
    """Steers a stage towards its goal, or towards the best throughput.

    Args:
        bounds: What it never leaves.
        goal: The p99 to keep; `None` for the best throughput.
        start: Where it begins.
    """

    def __init__(self, bounds: Bounds, goal: Goal | None, start: Limits) -> None:
        self._bounds = bounds
        self._budget = _budget(goal)
        self._size = math.log(start.batch_size)  # limits, before any probe
        self._calls = math.log(start.concurrency + 0.5 - _ROUNDING)
        self._ceiling = Ceiling()
        self._trim = 0.0  # how far sizes stay below their limit while nothing waits
        self._useful = math.inf  # calls that are of use while nothing waits
        self._pressure = 0.0
        self._answer = start
        # What calls look like: smoothed logarithms of latency and size, and the variance of the former.
        self._latency: float | None = None
        self._usual_size = 0.0
        self._variance = 0.04
        self._slope = 0.36  # of log latency over log size
        self._crowding = 0.0
        self._knee = math.inf  # limit of calls from which on they disturbed each other, last time
        # What is in flight.
        self._since = -math.inf  # calls that were sent before say nothing about the present limits
        self._stale = 0  # of those in flight
        self._last_answer = 0.0
        # Latency and size to judge the age of calls by.
        self._expected: tuple[float, float] | None = (self._budget, self._size) if self._budget < math.inf else None
        self._patience = 1.0
        self._trust = 1.0
        self._before_collapse: tuple[float, float, float, float] | None = None
        self._failures = 0  # in a row
        self._failing = 0.0  # share of calls that fail, smoothed
        self._mean = 0.0  # seconds of a call, smoothed
        self._finished = 0
        self._begin_search(-math.inf)
        self._say("it starts here")

    # --- What the stage asks --------------------------------------------------------------------

    def observe(self, observation: Observation, /) -> Limits:
        """Learn from one finished call; return what holds from now on."""
        now = observation.now
        sent = now - observation.seconds
        self._pressure = observation.pressure
        if self._stale and now - observation.oldest_call >= self._since:
            self._stale = 0  # the oldest call in flight was sent since: there are no others left
        self._finished += 1
        if observation.too_large:
            if self._ceiling.refused(observation.size, sent, now):
                self._say(f"a batch of {observation.size} was refused for its size")
            return self._limits()
        if sent < self._since:
            self._saw_stale(observation, now)
            return self._limits()
        self._last_answer = now
        self._before_collapse = None
        if observation.failed:
            self._failed(observation, now)
            return self._limits()
        self._failing += 0.02 * (self._failures * (1.0 - self._failing) - self._failing)
        self._failures = 0
        self._mean += 0.1 * (observation.seconds - self._mean) if self._mean else observation.seconds
        self._patience = 1.0
        size, latency = math.log(observation.size), math.log(max(observation.seconds, 1e-6))
        self._ceiling.passed(size)
        if self._searching:
            self._search(size, latency, observation, sent, now)
        else:
            self._hold(size, latency, observation, sent, now)
        known = self._latency
        self._expected = (latency, size) if known is None else (known, self._usual_size)
        return self._limits()

    def tick(self, now: float, in_flight: int, oldest_call: float, queued: int, pressure: float, /) -> Limits:
        """Look at calls that have not answered yet; return what holds from now on."""
        self._pressure = pressure
        live = in_flight - self._stale
        if live > 0 and self._expected is not None:
            latency, size = self._expected
            expected = math.exp(latency + max(0.0, self._size - size)) * self._patience * self._trust
            age = min(oldest_call, now - self._since)
            quiet = now - max(self._last_answer, self._since)
            spread = math.sqrt(max(self._variance, 0.25 * (1 - self._finished / 30)))
            usual = max(expected, self._mean * expected / math.exp(latency))
            # Old calls alone may be stragglers; but of so many in flight some should have come back meanwhile.
            if age > expected * math.exp(2 * spread + 0.1) and quiet > usual * (0.3 + 5 / live):
                self._collapse(now, in_flight, quiet, expected)
        return self._limits()

    def adjust(self, bounds: Bounds, goal: Goal | None, /) -> Limits:
        """Work within other bounds, or towards another goal, from now on."""
        self._bounds, self._budget = bounds, _budget(goal)
        self._say("its bounds or its goal were changed")
        return self._limits()

    # --- The limits -----------------------------------------------------------------------------

    def _count(self) -> int:
        """Return the limit of calls."""
        count = int(min(math.exp(self._calls), self._useful) + _ROUNDING)
        return max(self._bounds.min_concurrency, min(count, self._bounds.max_concurrency))

    def _limits(self) -> Limits:
        bounds = self._bounds
        self._size = _clamp(self._size, math.log(bounds.min_size), math.log(bounds.max_size))
        self._calls = _clamp(
            self._calls,
            math.log(bounds.min_concurrency),
            math.log(bounds.max_concurrency + 1 - _ROUNDING) - 1e-9,
        )
        size = math.exp(min(self._size + self._trim, self._ceiling.log) + self._relief())
        calls = self._count()
        probe = False
        if not self._searching:
            if self._finished % (3 * _SCOUTS if self._quiet else _SCOUTS) == 0:
                size *= _QUARTER if size >= 8 else 4.0
                probe = True
            if self._dipping and calls > 1:
                calls = dip(calls)
                probe = True
        batch = min(max(round(size), bounds.min_size), bounds.max_size)
        calls = min(max(calls + self._stale, bounds.min_concurrency), bounds.max_concurrency)
        last = self._answer
        if batch != last.batch_size or calls != last.concurrency or probe != last.probe:
            self._answer = evolve(last, batch_size=batch, concurrency=calls, reason=self._reason, probe=probe)
        return self._answer

    def _relief(self) -> float:
        """Return by how much the log size shrinks under system load, which helps only where items cost something."""
        if self._pressure <= 0.05:
            return 0.0
        # In steps, so that it does not move with every call.
        return -round(5 * _clamp((self._slope - 0.25) / 0.4, 0.0, 1.0) * 1.4 * self._pressure) / 5

    def _say(self, reason: str) -> None:
        self._reason = reason

    def _share(self) -> float:
        """Return the slope where it can be a share."""
        return _clamp(self._slope, 0.0, 1.0)

    def _over(self, latency: float) -> float:
        """Return how far the log of most latencies is over the budget."""
        return latency + 0.5 * math.sqrt(self._variance) - self._budget

    # --- What goes wrong ------------------------------------------------------------------------

    def _failed(self, observation: Observation, now: float) -> None:
        self._failures += 1
        # So many in a row are one in 100,000 at the usual rate of failures.
        if self._failures < _clamp(-11.5 / math.log(_clamp(self._failing, 0.03, 0.5)), 3, 12):
            return
        self._say(f"{self._failures} calls in a row failed")
        self._stale = max(0, observation.in_flight - 1)
        self._size -= 2 * _LOG4
        self._calls = max(min(self._calls, _LOG2), self._calls - _LOG2)
        self._forget(now)

    def _collapse(self, now: float, in_flight: int, quiet: float, expected: float) -> None:
        """Nothing has come back for much too long: retreat, and let those in flight not count against the limit."""
        if self._patience == 1.0 and self._expected is not None:
            self._before_collapse = (self._size, self._calls, math.exp(self._expected[0]), now)
        self._say(f"no call has answered for {_shown(quiet)}, where one takes {_shown(expected)}")
        self._stale = in_flight
        self._patience = 4.0
        self._size -= 5 * _LOG2
        self._calls = min(self._calls, _LOG2)
        self._forget(now)

    def _saw_stale(self, observation: Observation, now: float) -> None:
        """A call from before the retreat has ended: if it took no longer than usual, the retreat was a mistake."""
        self._stale = max(0, self._stale - 1)
        if self._before_collapse is None or observation.failed:
            return
        size, calls, usual, at = self._before_collapse
        if observation.seconds < 2.5 * usual and now < at + usual:
            self._size, self._calls = size, calls
            self._say("the calls answered after all")
            self._before_collapse = None
            self._since, self._stale, self._last_answer = -math.inf, 0, now
            self._patience, self._trust = 1.0, min(4.0, 1.5 * self._trust)
            self._begin_hold()

    def _forget(self, now: float) -> None:
        self._since = now
        self._latency = None
        self._failures = 0
        self._variance = max(self._variance, 0.04)
        self._begin_search(now)

    # --- Searching ------------------------------------------------------------------------------

    def _begin_search(self, now: float) -> None:
        self._searching = True
        self._knee = math.inf
        self._crowding = 0.0
        self._streak = 0
        self._trim = 0.0
        self._useful = math.inf
        self._quiet = self._dipping = False
        self._tried_fewer = False
        self._last_round: tuple[float, float, float, float] | None = None
        self._judge: Callable[[float, float, float], None] = self._judge_size
        self._round = Round(now)

    def _search(self, size: float, latency: float, observation: Observation, sent: float, now: float) -> None:
        if self._latency is None:
            self._latency, self._usual_size = latency, size
        else:
            self._latency += 0.3 * (latency - self._latency)
            self._usual_size += 0.3 * (size - self._usual_size)
        this = self._round
        if sent < this.since:
            return
        this.calls += 1
        this.waits += observation.queued > 0
        count = self._count()
        sizing = self._judge == self._judge_size
        if size > min(self._size, self._ceiling.log) - 0.5 if sizing else observation.in_flight >= 0.8 * count:
            this.latencies.append(latency)
            this.sizes.append(size)
        need = min(max(count, 2), 5) if sizing else self._calls_needed(count)
        last = self._last_round
        steep = sizing and last is not None and this.is_steep(last[1], last[0])
        if len(this.latencies) < need and not steep:
            if this.calls >= 2 * need + 6:  # the limit is not what holds the stage back
                self._begin_hold()
            return
        self._end_round(observation.queued, now)

    def _calls_needed(self, count: int) -> float:
        """Return how many calls tell whether more of them disturb each other: the more they differ, the more."""
        few = count < 6
        return max(count + 1, min((2 if few else 4) * count, self._variance / (0.005 if few else 0.0025)))

    def _end_round(self, queued: int, now: float) -> None:
        latency, size = median(self._round.latencies), median(self._round.sizes)
        self._variance += 0.3 * (self._round.spread() - self._variance)
        self._backlog = queued
        self._judge(size, latency, self._over(latency))
        if self._searching:
            self._round = Round(now)

    def _judge_size(self, size: float, latency: float, over: float) -> None:
        last, self._last_round = self._last_round, (size, latency, self._size, self._calls)
        grew = last is not None and size > last[0] + 0.3
        if over > 0:
            if last is not None and grew:
                self._step_back(last[2], "the larger batch took too long")
            elif not self._tried_fewer and self._count() > 1:
                self._tried_fewer = True
                self._judge = self._judge_fewer
                self._calls -= _LOG2
                self._say("calls take too long: perhaps there are too many")
            else:
                self._size -= _clamp(over, _LOG2, 1.5 * _LOG4)
                self._last_round = None
                self._say("calls take too long")
                if self._size <= math.log(self._bounds.min_size):
                    self._judge_calls_next()
            return
        step = _LOG4 if last is None else _LOG2
        if last is not None and grew:
            slope = (latency - last[1]) / (size - last[0])
            self._slope = _clamp(slope, -0.2, 2.0)
            if slope > 1.05:
                self._step_back(last[2], "a larger batch cost more for each item")
                return
            error = 1.25 * math.sqrt(2 * max(0.04, self._variance) / len(self._round.latencies)) / (size - last[0])
            step = _LOG4 if slope + error < 0.35 else _LOG2 if slope + error < 0.66 else 0.0
        # A limit that no batch would reach would be found out by the first burst.
        step = min(step, math.log1p(self._backlog / math.exp(self._size)))
        step = min(step, -over / 0.6, math.log(self._bounds.max_size) - self._size, self._ceiling.log - self._size)
        if step < 0.25:
            self._judge_calls_next()
            return
        self._size += step
        self._say(f"items wait, and {100 * (1 - self._share()):.0f} % of a call's cost is fixed")

    def _step_back(self, size: float, reason: str) -> None:
        self._size = size
        self._say(reason)
        self._judge_calls_next()

    def _judge_calls_next(self) -> None:
        self._judge = self._judge_calls
        self._last_round = None

    def _judge_fewer(self, size: float, latency: float, over: float) -> None:
        """The calls were halved because they took too long: did it help?"""
        last = self._last_round
        assert last is not None
        fall = (last[1] - latency - self._share() * (last[0] - size)) / _LOG2
        if fall > 0.45:
            self._say("fewer calls are quicker")
            self._knee = min(self._knee, self._calls + _LOG2 - 0.1)
            if over > 0 and self._count() > 1:
                self._last_round = (size, latency, self._size, self._calls)
                self._calls -= _LOG2
                return
        else:
            self._say("fewer calls are no quicker")
            self._calls += _LOG2
        self._judge = self._judge_size
        self._last_round = None

    def _judge_calls(self, size: float, latency: float, over: float) -> None:
        last, self._last_round = self._last_round, (size, latency, self._size, self._calls)
        if last is not None and self._calls > last[3] + 0.1:
            rise = (latency - last[1] - self._share() * (size - last[0])) / (self._calls - last[3])
            if rise > 0.45 or over > 0:
                self._knee = self._calls
                self._calls = last[3] + (0.3 * (self._calls - last[3]) if rise < 1 else 0.0)
                self._say("more calls only disturb each other" if rise > 0.45 else "calls take too long")
                self._begin_hold()
                return
        step = min(_LOG2 if self._count() < 6 else 0.405, self._knee - 0.1 - self._calls)
        at_bound = self._count() >= self._bounds.max_concurrency
        if over > 0 or self._round.waits < 0.5 * self._round.calls or at_bound or step < 0.05:
            self._begin_hold()
            return
        self._calls += step
        self._say("items wait, and calls do not disturb each other")

    # --- Holding --------------------------------------------------------------------------------

    def _begin_hold(self) -> None:
        self._searching = False
        self._good_size = self._size
        self._streak = 0
        self._raised: tuple[float, float, int] | None = None  # from which size, with what latency and limit of calls
        self._raise_pause, self._raise_wait = 0, 4
        self._trips = 1.0  # round trips at the full limit between two dips
        if self._latency is None:
            self._latency = self._expected[0] if self._expected is not None else math.log(0.05)
        self._begin_cycle()

    def _begin_cycle(self) -> None:
        """Begin with the lower limit; the full one follows."""
        self._dipping = True
        self._cycle = Cycle(self._usual_size, self._latency or 0.0)

    def _hold(self, size: float, latency: float, observation: Observation, sent: float, now: float) -> None:
        count = self._count()
        if self._latency is None:
            self._latency, self._usual_size = latency, size
            self._cycle.latency, self._cycle.size = latency, size
        share = self._learn(size, latency)
        cycle = self._cycle
        cycle.add(sent, now, observation.size, observation.seconds)
        self._tally(size, latency, share, observation, count)
        over = self._over(self._latency)
        if cycle.calls >= 4 and over > 0.9:
            self._too_slow(now)
        elif self._has_improved(share, over):
            self._say("calls have become much quicker")
            self._variance = max(self._variance, 0.04)
            self._begin_search(now)
        elif self._dipping:
            if cycle.arm_calls >= max(6, 0.7 * count) or count == 1:
                self._dipping = False
                cycle.next_arm(now)
        else:
            # Quiet times may last long; but once items wait, it is time to look.
            trips = min(self._trips, 12.0) if cycle.waits > 0.5 * cycle.calls else self._trips
            if cycle.arm_calls >= max(8, trips * count):
                self._act(over, count, now)

    def _learn(self, size: float, latency: float) -> float:
        """Take one call into the smoothed figures; return the share of its cost that grows with its items."""
        assert self._latency is not None
        lever, change = size - self._usual_size, latency - self._latency
        is_scout = abs(lever) > 0.7
        if is_scout:
            gain = 0.2 if self._trips < 3 else 0.1
            self._slope += gain * (_clamp(change / lever, -0.2, 2.0) - self._slope)
        else:
            self._usual_size += 0.2 * lever
            self._variance += 0.05 * (min(1.0, change * change) - self._variance)
        share = self._share()
        explained = share * lever if is_scout else 0.0
        self._latency += 0.2 * _clamp(change - explained, -1.2, 1.2)
        if is_scout and not self._cycle.full:  # the usual size has changed for good: follow it
            self._usual_size += 0.2 * lever
            self._latency += 0.2 * share * lever
        return share

    def _tally(self, size: float, latency: float, share: float, observation: Observation, count: int) -> None:
        """Count what held one call back, and how long it took beside the others."""
        cycle = self._cycle
        in_flight = observation.in_flight
        if observation.queued > 0:
            cycle.waits += 1
            cycle.full += size > min(self._size, self._ceiling.log) - 0.4 and self._trim > -0.05
            cycle.busy += in_flight >= dip(count)
        backlog = observation.queued / math.exp(self._size + self._trim)
        if backlog > 1:
            self._useful = math.inf
        if backlog > 3:
            self._trim = 0.0
            self._quiet = False
        cycle.add_to_arm(latency - share * (size - cycle.size) - cycle.latency, in_flight, count)

    def _too_slow(self, now: float) -> None:
        """Calls take far longer than they may."""
        self._say("calls take far longer than the goal allows")
        if self._size > self._good_size + 0.1:  # the larger size did it
            self._size = self._usual_size = self._good_size
            self._latency = None
            self._since = now
            self._slope = max(self._slope, _EFFICIENT)
            self._begin_cycle()
            return
        sizes_matter = self._slope > 0.36
        self._size -= _LOG4 if sizes_matter else math.log(1.5)
        self._calls = max(min(self._calls, _LOG4), self._calls - math.log(1.5 if sizes_matter else 2.5))
        self._stale = 0
        self._variance = 0.04
        self._forget(now)

    def _has_improved(self, share: float, over: float) -> bool:
        """Return whether calls have become so much quicker, while items wait, that it pays to search anew."""
        assert self._latency is not None
        if self._cycle.calls < 6 or self._cycle.waits <= 0.7 * self._cycle.calls or over >= -0.5:
            return False
        gain = self._cycle.latency - self._latency + share * (self._usual_size - self._cycle.size)
        return gain > 0.5 + 2 * math.sqrt(self._variance)

    def _act(self, over: float, count: int, now: float) -> None:
        """Both arms of a cycle have been seen: move."""
        cycle = self._cycle
        crowding = cycle.difference()
        error = cycle.error(self._variance)
        if crowding is not None:
            self._crowding += (1.0 if self._streak > 1 else 0.6) * (crowding - self._crowding)
            crowding = self._crowding
        if count == 1:
            crowding = 0.0
        full = self._cycle.full > 0.3 * self._cycle.calls
        useful = math.inf if full else self._useful_calls(now)
        if count > useful:
            self._useful = max(useful, 0.7 * count)
            self._say(f"batches are not full, and {useful:.0f} calls are about as quick as {count}")
        elif self._cycle.busy > 0.4 * self._cycle.calls and crowding is not None:
            self._move_calls(crowding, error, count)
        else:
            self._spare_calls(crowding, count)
        if over > 0:
            self._keep_goal(over, crowding, error)
        elif not self._take_back(count) and full:
            self._move_size(over, count)
        self._trim_size(count, now)
        self._begin_cycle()

    def _useful_calls(self, now: float) -> float:
        """Return how many calls are of use while batches are not full: more would only make each a little shorter.

        Items alone keep `L` calls busy, whatever the size of batches (Little's law over the part of the cost that
        grows with them). With `n` calls the fixed cost is spread so that one takes `n / (n - L)` times the least.
        """
        in_flight = self._cycle.in_flight(now)
        return math.inf if in_flight is None else 1.0 + _SPARE * self._share() * in_flight

    def _move_calls(self, crowding: float, error: float, count: int) -> None:
        room = _CROWDED - crowding
        self._streak = self._streak + 1 if room > 0.5 * _CROWDED else 0
        if self._streak > 8:
            self._knee = math.inf  # flat for long enough: it has moved
        up = min(0.6, room * min(6.0, 1.5**self._streak))
        if self._calls + up > self._knee:  # feel the way
            up = min(up, max(0.08, self._knee - self._calls))
        if room > 0:
            self._calls += up
            if count < 4:
                self._calls = max(self._calls, math.log(count + 1.2))
            if up > 0.1:
                self._trips = 1.0
            self._say(f"items wait, and latency rises by {_percent(crowding)} only from {dip(count)} calls to {count}")
        elif room < -error:  # shrink on evidence only
            self._calls += max(-0.7, room if room < -0.2 else 0.6 * room)
            self._knee = self._calls + 0.1
            self._say(f"latency rises by {_percent(crowding)} from {dip(count)} calls to {count}")
        self._trips = 1.0 if abs(room) > 0.2 else min(12.0, 1.5 * self._trips)

    def _spare_calls(self, crowding: float | None, count: int) -> None:
        """The limit of calls is not what holds the stage back: keep no more than are of use."""
        self._trips = min(150.0, 2 * self._trips)
        if crowding is None and count > 4:
            self._calls -= 0.01
        elif crowding is not None and crowding > _CROWDED:
            self._calls -= min(0.3, crowding - _CROWDED)
            self._say(f"nothing waits, and latency rises by {_percent(crowding)} from {dip(count)} calls to {count}")

    def _keep_goal(self, over: float, crowding: float | None, error: float) -> None:
        if crowding is not None and (crowding > 2 * _CROWDED + error or self._slope < 0.29):
            self._calls -= min(0.5, over + 0.1)
            self._say(f"calls take {_percent(over)} longer than the goal allows, and disturb each other")
        else:
            self._size -= min(1.0, over + (0.5 if self._streak > 1 else 0.1))
            self._say(f"calls take {_percent(over)} longer than the goal allows")

    def _take_back(self, count: int) -> bool:
        """Go back to the size before the last raise, if a batch costs more for each item since."""
        raised, self._raised = self._raised, None
        self._raise_pause = max(0, self._raise_pause - 1)
        if raised is None or raised[2] != count or self._size < raised[0] + 0.1:
            return False
        assert self._latency is not None
        if self._latency - raised[1] <= self._size - raised[0] + 0.0:
            return False
        self._size = raised[0]
        self._raise_pause, self._raise_wait = self._raise_wait, min(32, 2 * self._raise_wait)
        self._say("a larger batch cost more for each item")
        return True

    def _move_size(self, over: float, count: int) -> None:
        room = (_EFFICIENT - self._slope) * _LOG4
        self._good_size = self._size
        step = room if abs(room) > 0.3 else 0.4 * room
        most = -over / (0.4 if self._slope < 0.36 else 1.0)
        if step > 0 and self._raise_pause:
            return
        if step > 0.1:
            self._raised = self._size, self._latency or 0.0, count
        self._size += max(-0.5, min(0.7 if room > 0.6 else 0.35, step, most))
        if room > 0:
            self._say(f"batches are full, and {100 * (1 - self._share()):.0f} % of a call's cost is fixed")
        else:
            self._say("more items in a batch make it no cheaper")

    def _trim_size(self, count: int, now: float) -> None:
        """While nothing waits, spread the items over the calls there are: smaller batches are quicker."""
        waits = self._cycle.waits / self._cycle.calls
        rate = self._cycle.rate(now)
        self._quiet = waits < 0.4 and self._trips > 8
        if waits > 0.6:
            self._trim = min(0.0, self._trim + 0.2)
            self._useful *= 1.3
        elif self._slope > 0.45 and rate is not None:
            assert self._latency is not None
            needed = math.log(1.15 * rate * math.exp(self._latency) / count)
            self._trim = _clamp(max(needed - self._size, self._trim - 0.25), math.log(0.1), 0.0)


def _budget(goal: Goal | None) -> float:
    """Return the log of what most calls may take."""
    return math.inf if goal is None or goal.p99 is None else math.log(_SHARE * goal.p99)


def _percent(log: float) -> str:
    return f"{100 * math.expm1(log):.0f} %"


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
