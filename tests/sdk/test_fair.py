"""Token buckets against exact fractions, and the fair queue against a model."""

import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay._fair import FairQueue, TokenBucket

# Steps of 2^-30 s, so that every sum of them up to an hour is a float without rounding.
pauses = st.integers(0, 2**33).map(lambda steps: steps / 2**30)
rates = st.floats(1e-3, 1e6) | st.integers(1, 1000).map(float) | st.sampled_from([0.1, 0.7, 1 / 3, 49.0])


# --- Token buckets -----------------------------------------------------------------------------


def test_a_bucket_is_full_when_it_is_first_asked() -> None:
    bucket = TokenBucket(2.0, 3)

    granted = [bucket.take(1, 1000.0) for _ in range(4)]

    assert granted == [0.0, 0.0, 0.0, 0.5]


def test_nothing_is_taken_while_there_is_not_enough() -> None:
    bucket = TokenBucket(1.0, 4)
    bucket.take(3, 0.0)

    assert bucket.take(2, 0.0) == 1.0
    assert bucket.take(1, 0.0) == 0.0


@settings(max_examples=200, deadline=None)
@given(
    rate=rates,
    burst=st.integers(1, 20),
    asks=st.lists(st.tuples(pauses, st.integers(1, 30)), min_size=1, max_size=60),
)
def test_what_is_granted_never_exceeds_burst_and_rate(rate: float, burst: int, asks: list[tuple[float, int]]) -> None:
    bucket = TokenBucket(rate, burst)
    now, granted, largest = 0.0, 0, burst

    for pause, count in asks:
        now += pause
        if not bucket.take(count, now):
            granted += count
            largest = max(largest, count)
        assert granted <= largest + Fraction(rate) * Fraction(now)
        if max(count for _, count in asks) <= burst:
            assert granted <= burst + Fraction(rate) * Fraction(now)


@settings(max_examples=200, deadline=None)
@given(rate=rates, burst=st.integers(1, 20), steps=st.lists(pauses, min_size=1, max_size=60))
def test_with_demand_at_every_moment_the_whole_number_below_is_granted(
    rate: float, burst: int, steps: list[float]
) -> None:
    bucket = TokenBucket(rate, burst)
    now, granted = 0.0, 0

    for step in [0.0, *steps]:
        # What comes in while it is full is lost, so it is asked whenever something has come.
        end = now + step
        for _ in range(200):
            pause = bucket.take(1, now)
            if pause == 0.0:
                granted += 1
            elif now + pause <= end:
                now += pause
            else:
                break
        else:
            return  # more than a test has time for
        now = end
        assert granted == math.floor(burst + Fraction(rate) * Fraction(now))


def test_a_hundred_thousand_takes_later_not_a_token_is_missing() -> None:
    bucket = TokenBucket(0.7, 1)
    now, granted = 0.0, 0

    while granted < 100_000:
        pause = bucket.take(1, now)
        granted += not pause
        now += pause

    exact = Fraction(granted - 1) / Fraction(0.7)
    assert exact <= Fraction(now) <= exact + Fraction(math.ulp(now)) * 2


@settings(max_examples=300, deadline=None)
@example(rate=4.0, burst=1, start=0.225, count=1)  # 0.225 + (0.475 - 0.225) is less than 0.475
@given(rate=st.floats(1e-6, 1e9), burst=st.integers(1, 5), start=st.floats(0, 1e9), count=st.integers(1, 50))
def test_after_the_pause_the_tokens_are_there_and_not_earlier(
    rate: float, burst: int, start: float, count: int
) -> None:
    bucket = TokenBucket(rate, burst)
    bucket.take(burst, start)
    due = Fraction(start) + Fraction(min(count, burst)) / Fraction(rate)

    pause = bucket.take(count, start)

    later = start + pause
    tick = Fraction(1, 2**80)
    assert due - tick <= Fraction(later) <= due + tick + 2 * Fraction(math.ulp(later))
    assert bucket.take(count, later) == 0.0


def test_a_large_item_waits_for_a_full_bucket_and_leaves_a_debt() -> None:
    bucket = TokenBucket(10.0, 5)
    bucket.take(1, 0.0)

    assert bucket.take(100, 0.0) == pytest.approx(0.1)
    assert bucket.take(100, 0.2) == 0.0
    assert bucket.take(1, 0.2) == pytest.approx(9.6)


def test_tokens_that_were_given_back_can_be_taken_again_but_never_more_than_fit() -> None:
    bucket = TokenBucket(1.0, 3)
    bucket.take(2, 0.0)

    bucket.give_back(2)
    bucket.give_back(5)

    assert bucket.take(3, 0.0) == 0.0
    assert bucket.take(1, 0.0) == 1.0


def test_a_bucket_goes_on_with_another_rate_and_keeps_what_it_has() -> None:
    bucket = TokenBucket(1.0, 10)
    bucket.take(10, 0.0)

    bucket.change(4.0, 2, 1.0)

    assert bucket.take(1, 1.0) == 0.0
    assert bucket.take(1, 1.0) == 0.25
    assert bucket.take(2, 100.0) == 0.0
    assert bucket.take(1, 100.0) == 0.25


def test_a_smaller_burst_throws_away_what_does_not_fit() -> None:
    bucket = TokenBucket(1.0, 10)
    bucket.take(1, 0.0)

    bucket.change(1.0, 2, 0.0)

    assert bucket.take(2, 0.0) == 0.0
    assert bucket.take(1, 0.0) == 1.0


def test_a_bucket_knows_when_it_is_as_good_as_new() -> None:
    bucket = TokenBucket(2.0, 2)

    bucket.take(1, 0.0)

    assert not bucket.is_full(0.25)
    assert bucket.is_full(0.5)


def test_a_clock_that_goes_back_brings_nothing_in_and_is_followed() -> None:
    bucket = TokenBucket(1.0, 1)
    bucket.take(1, 1000.0)

    assert bucket.take(1, 0.0) == 1.0
    assert bucket.take(1, 1.0) == 0.0


def test_a_rate_too_slow_for_any_clock_never_comes() -> None:
    bucket = TokenBucket(5e-324, 1)
    bucket.take(1, 0.0)

    assert bucket.take(1, 0.0) == math.inf


# --- Whose turn it is --------------------------------------------------------------------------


def drain(queue: FairQueue[str], now: float = 0.0) -> list[str]:
    out: list[str] = []
    while (turn := queue.pop(now)) is not None:
        out.append(turn[1])
    return out


def test_an_empty_queue_has_nothing_and_waits_for_nothing() -> None:
    queue = FairQueue[str]()

    assert queue.pop(0.0) is None
    assert queue.next_at(0.0) is None
    assert len(queue) == queue.tenants == 0


def test_tenants_take_turns_and_each_keeps_its_order() -> None:
    queue = FairQueue[str]()
    for item in ["a1", "a2", "a3", "b1", "c1", "c2"]:
        queue.push(item[0], item)

    assert drain(queue) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_who_is_served_and_comes_back_at_once_waits_for_the_others() -> None:
    queue = FairQueue[str]()
    for number in range(5):
        queue.push("greedy", f"g{number}")
    queue.push("b", "b")
    order: list[str] = []

    for _ in range(6):
        turn = queue.pop(0.0)
        assert turn is not None
        order.append(turn[0])
        if turn[0] == "b":
            queue.push("b", "b")

    assert order == ["greedy", "b"] * 3


def test_weights_are_shares() -> None:
    weights = {"a": 1.0, "b": 3.0, "c": 0.5}
    queue = FairQueue[str](weight=weights.__getitem__)
    for tenant in weights:
        for _ in range(2000):
            queue.push(tenant, tenant)

    first = Counter(turn[0] for turn in (queue.pop(0.0) for _ in range(900)) if turn is not None)

    assert first == {"a": 200, "b": 600, "c": 100}


def test_sizes_are_shared_and_not_items() -> None:
    queue = FairQueue[int](quantum=100.0)
    for _ in range(3000):
        queue.push("small", 10, size=10.0)
    for _ in range(30):
        queue.push("large", 1000, size=1000.0)
    served = Counter[str]()

    for _ in range(1010):
        turn = queue.pop(0.0)
        assert turn is not None
        served[turn[0]] += turn[1]

    assert served == {"small": 10_000, "large": 10_000}


def test_whoever_had_nothing_waiting_has_saved_no_credit() -> None:
    queue = FairQueue[str](weight=lambda tenant: 10.0 if tenant == "a" else 1.0)
    queue.push("a", "a0")
    for number in range(100):
        queue.push("b", f"b{number}")
    for _ in range(51):
        queue.pop(0.0)

    for number in range(30):
        queue.push("a", f"a{number}")
    turns = [turn[0] for turn in (queue.pop(0.0) for _ in range(22)) if turn is not None]

    assert Counter(turns[:11]) == Counter(turns[11:]) == {"a": 10, "b": 1}


def test_rounds_in_which_nothing_can_go_are_not_walked_through() -> None:
    asked = 0

    def weight(tenant: str) -> float:
        nonlocal asked
        asked += 1
        return 1e-9

    queue = FairQueue[str](weight=weight)
    queue.push("a", "a", size=1e9)
    queue.push("b", "b", size=3e9)

    assert drain(queue) == ["a", "b"]
    assert asked < 10


def _work(tenants: int) -> int:
    """Return how often weights are looked up in 2,000 pops and pushes of unequal sizes."""
    looks = 0

    def weight(tenant: str) -> float:
        nonlocal looks
        looks += 1
        return 1.0 + int(tenant) % 3

    rng = random.Random(tenants)
    queue = FairQueue[int](weight=weight)
    for tenant in range(tenants):
        queue.push(str(tenant), 0, size=rng.uniform(0.1, 5))
        queue.push(str(tenant), 1, size=rng.uniform(0.1, 5))
    looks = 0
    for _ in range(2000):
        turn = queue.pop(0.0)
        assert turn is not None
        queue.push(turn[0], turn[1], size=rng.uniform(0.1, 5))
    return looks


def test_a_pop_costs_the_same_for_ten_tenants_and_for_a_hundred_thousand() -> None:
    assert _work(100_000) <= _work(10) * 2


def test_a_hundred_thousand_tenants_come_and_go_and_leave_nothing() -> None:
    queue = FairQueue[int](gate=lambda tenant, item, now: 0.0 if int(tenant) % 3 else 5.0 + item)

    for tenant in range(100_000):
        queue.push(str(tenant), tenant % 7)
        queue.pop(0.0)
    assert queue.tenants < 40_000
    while queue.tenants:
        ticketed = next(iter(queue._flows.values()))
        queue.discard(ticketed.tenant, next(iter(ticketed.items)))

    assert (len(queue), queue.next_at(0.0)) == (0, None)
    assert [len(held) for held in (queue._flows, queue._rounds, queue._order, queue._timed)] == [0, 0, 0, 0]


def test_items_that_come_and_are_taken_out_again_leave_no_trace_behind_one_that_waits() -> None:
    queue = FairQueue[str](gate=lambda tenant, item, now: 0.0 if item == "free" else 1000.0)
    queue.push("stuck", "stuck")
    queue.pop(0.0)

    for number in range(1000):
        ticket = queue.push("a", "blocked")
        assert queue.pop(number / 1000) is None
        assert queue.discard("a", ticket)

    assert len(queue._timed) < 30
    assert len(queue._rounds) < 5


def test_a_tenant_that_is_blocked_does_not_hold_up_the_others() -> None:
    pauses = {"a": 2.0, "b": 0.0}
    queue = FairQueue[str](gate=lambda tenant, item, now: pauses[tenant])
    for item in ["a1", "a2", "b1", "b2"]:
        queue.push(item[0], item)

    assert drain(queue) == ["b1", "b2"]
    assert queue.next_at(0.0) == 2.0
    assert queue.next_at(3.0) == 3.0
    pauses["a"] = 0.0
    assert drain(queue, 1.5) == []
    assert drain(queue, 2.0) == ["a1", "a2"]


def test_a_tenant_blocked_for_good_waits_to_be_unblocked() -> None:
    pauses = {"a": math.inf}
    queue = FairQueue[str](gate=lambda tenant, item, now: pauses[tenant])
    queue.push("a", "a1")

    assert queue.pop(0.0) is None
    assert queue.next_at(0.0) is None
    pauses["a"] = 0.0
    assert queue.pop(1e9) is None
    queue.unblock("a")
    queue.unblock("a")
    queue.unblock("nobody")
    assert queue.pop(1e9) == ("a", "a1")


def test_a_blocked_tenant_gathers_no_credit() -> None:
    pauses = {"a": math.inf, "b": 0.0}
    queue = FairQueue[str](gate=lambda tenant, item, now: pauses[tenant])
    for number in range(50):
        queue.push("a", f"a{number}")
        queue.push("b", f"b{number}")
    for _ in range(30):
        queue.pop(0.0)

    pauses["a"] = 0.0
    queue.unblock("a")
    turns = [turn[0] for turn in (queue.pop(0.0) for _ in range(20)) if turn is not None]

    assert Counter(turns) == {"a": 10, "b": 10}


def test_an_item_that_finds_no_room_keeps_its_turn() -> None:
    room = {"large": 4.0, "small": 0.0}
    queue = FairQueue[str](room=lambda item, now: room[item])
    queue.push("a", "large")
    queue.push("b", "small")

    assert queue.pop(0.0) is None
    assert queue.next_at(0.0) == 4.0
    room["large"] = 0.0
    assert drain(queue, 4.0) == ["large", "small"]


def test_where_room_comes_only_by_itself_there_is_no_time_to_wait_for() -> None:
    queue = FairQueue[str](room=lambda item, now: math.inf)
    queue.push("a", "a")

    assert queue.pop(0.0) is None
    assert queue.next_at(0.0) is None
    queue.push("b", "b")
    assert queue.next_at(7.0) == 7.0


def test_an_item_can_be_taken_out_once_from_anywhere() -> None:
    queue = FairQueue[str]()
    tickets = {item: queue.push(item[0], item) for item in ["a1", "a2", "a3", "b1"]}

    assert queue.discard("a", tickets["a2"])
    assert queue.discard("b", tickets["b1"])
    assert not queue.discard("a", tickets["a2"])
    assert not queue.discard("b", tickets["b1"])

    assert (len(queue), queue.tenants) == (2, 1)
    assert drain(queue) == ["a1", "a3"]


def test_the_next_one_is_asked_when_the_first_of_a_blocked_tenant_is_taken_out() -> None:
    queue = FairQueue[str](gate=lambda tenant, item, now: 9.0 if item == "large" else 0.0)
    large = queue.push("a", "large")
    queue.push("a", "small")
    assert queue.pop(0.0) is None

    queue.discard("a", large)

    assert queue.pop(0.0) == ("a", "small")
    assert queue.next_at(0.0) is None


def test_other_weights_hold_from_the_moment_that_the_queue_is_told() -> None:
    weights = {"a": 1e-6, "b": 1.0, "c": 1.0}
    queue = FairQueue[str](
        weight=weights.__getitem__, gate=lambda tenant, item, now: math.inf if tenant == "c" else 0.0
    )
    for number in range(500):
        queue.push("a", f"a{number}")
        queue.push("b", f"b{number}")
        queue.push("c", f"c{number}")
    before = Counter(turn[0] for turn in (queue.pop(0.0) for _ in range(100)) if turn is not None)

    weights["a"] = 3.0
    queue.reconsider()
    after = Counter(turn[0] for turn in (queue.pop(0.0) for _ in range(101)) if turn is not None)

    assert before == {"b": 100}
    assert after["a"] == pytest.approx(76, abs=1)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0, 7.0, 1 / 49]), min_size=2, max_size=6),
    quantum=st.sampled_from([0.25, 1.0, 10.0]),
    largest=st.sampled_from([1.0, 5.0, 50.0]),
    seed=st.integers(0, 2**32),
)
def test_shares_never_differ_by_more_than_a_turn(
    weights: list[float], quantum: float, largest: float, seed: int
) -> None:
    rng = random.Random(seed)
    queue = FairQueue[float](weight=lambda tenant: weights[int(tenant)], quantum=quantum)
    served = [0.0] * len(weights)
    for tenant in range(len(weights)):
        for _ in range(3):
            size = rng.uniform(0.5, largest)
            queue.push(str(tenant), size, size=size)

    for _ in range(1500):
        turn = queue.pop(0.0)
        assert turn is not None
        served[int(turn[0])] += turn[1]
        size = rng.uniform(0.5, largest)
        queue.push(turn[0], size, size=size)

        shares = [amount / weight for amount, weight in zip(served, weights, strict=True)]
        bound = 2 * quantum + 2 * largest / min(weights)
        assert max(shares) - min(shares) <= bound


@pytest.mark.parametrize("seed", range(1, 21))
def test_a_greedy_tenant_takes_nothing_from_ninety_nine_others(seed: int) -> None:
    """Of a server's 1,000 items a second each tenant wants 30, thrice its share, and the greedy one 3,000."""
    rng = random.Random(seed)
    queue = FairQueue[float]()
    pending = deque(
        sorted((rng.uniform(0, 10), str(tenant)) for tenant in range(100) for _ in range(300 if tenant else 30_000))
    )
    served = Counter[str]()

    for slot in range(10_000):
        now = slot / 1000
        while pending and pending[0][0] <= now:
            at, tenant = pending.popleft()
            queue.push(tenant, at)
        turn = queue.pop(now)
        if turn is not None:
            served[turn[0]] += 1

    assert all(95 <= served[str(tenant)] <= 105 for tenant in range(1, 100))
    assert served.total() >= 9_999  # nobody had come when it opened


class Fair(RuleBasedStateMachine):
    """Pushes, pops, blocks and cancellations at random, against lists that anyone can read."""

    tenants = ("a", "b", "c", "d")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.closed_until: dict[str, float] = dict.fromkeys(self.tenants, 0.0)
        self.room_at = 0.0
        self.waiting: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.made = 0
        self.queue = FairQueue[int](
            weight=lambda tenant: {"a": 0.3, "b": 1.0, "c": 2.0, "d": 5.0}[tenant],
            gate=lambda tenant, item, now: self._pause(self.closed_until[tenant]),
            room=lambda item, now: self._pause(self.room_at),
        )

    def _pause(self, until: float) -> float:
        return max(0.0, until - self.now)

    @rule(tenant=st.sampled_from(tenants), size=st.sampled_from([0.1, 1.0, 3.0, 40.0]))
    def push(self, tenant: str, size: float) -> None:
        self.made += 1
        ticket = self.queue.push(tenant, self.made, size=size)
        self.waiting[tenant].append((ticket, self.made))

    @rule()
    def pop(self) -> None:
        open_ones = [t for t in self.tenants if self.waiting[t] and self.closed_until[t] <= self.now]

        turn = self.queue.pop(self.now)

        if turn is None:
            assert not open_ones or self.room_at > self.now
        else:
            assert self.room_at <= self.now
            assert turn[0] in open_ones
            assert turn[1] == self.waiting[turn[0]].pop(0)[1]

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def take_out(self, data: st.DataObject) -> None:
        tenant = data.draw(st.sampled_from([t for t in self.tenants if self.waiting[t]]))
        place = data.draw(st.integers(0, len(self.waiting[tenant]) - 1))
        ticket, _ = self.waiting[tenant].pop(place)

        assert self.queue.discard(tenant, ticket)
        assert not self.queue.discard(tenant, ticket)

    @rule(tenant=st.sampled_from(tenants), seconds=st.sampled_from([0.0, 1.0, 2.5, math.inf]))
    def close(self, tenant: str, seconds: float) -> None:
        self.closed_until[tenant] = self.now + seconds
        self.queue.unblock(tenant)

    @rule(seconds=st.sampled_from([0.0, 1.0, math.inf]))
    def fill(self, seconds: float) -> None:
        self.room_at = self.now + seconds

    @rule()
    def reconsider(self) -> None:
        self.queue.reconsider()

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sleep_as_told(self) -> None:
        """What the queue says is when something may go: no earlier, and then something does."""
        while self.queue.pop(self.now) is not None:
            pass
        self.waiting.clear()
        for tenant, flow in self.queue._flows.items():
            self.waiting[tenant] = [(ticket, item) for ticket, (item, _) in flow.items.items()]

        at = self.queue.next_at(self.now)

        times = [max(self.closed_until[t], self.room_at) for t in self.tenants if self.waiting[t]]
        if at is None:
            assert min(times, default=math.inf) == math.inf
        else:
            assert self.now < at <= min(times)
            self.now = at

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.queue) == sum(map(len, self.waiting.values()))
        assert self.queue.tenants == sum(map(bool, self.waiting.values()))

    @invariant()
    def every_tenant_stands_in_one_place(self) -> None:
        flows = self.queue._flows
        standing = [tenant for flows_ in self.queue._rounds.values() for tenant in flows_]
        assert sorted(standing) == sorted(t for t, flow in flows.items() if flow.stands_in is not None)
        assert len(standing) == self.queue._standing


TestFair: Callable[[], object] = Fair.TestCase
Fair.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
