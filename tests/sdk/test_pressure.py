import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay._pressure import (
    BUDGET_UNKNOWN,
    MemoryBudget,
    PressureGauge,
    Reading,
    budget_bytes,
    size_text,
)
from forebay._types import Pressure

MIB = 2**20
GIB = 2**30
TWO = frozenset({0, 1})


class Scene:
    """A machine of which every step says how much of what is used; counters add up, time passes in half seconds."""

    def __init__(self, **fixed: Any) -> None:
        self.gauge = PressureGauge()
        given: dict[str, Any] = {
            "now": 100.0,
            "cpus": 2.0,
            "processors": TWO,
            "process_seconds": 5.0,
            "busy_seconds": 50.0,
        }
        self.reading = Reading(**{**given, **fixed})
        self.gauge.update(self.reading)

    def step(self, *, own: float = 0.0, others: float = 0.0, seconds: float = 0.5, **fields: Any) -> list[Pressure]:
        """Let *seconds* pass with so many cores in use; *fields* that count are given as a rate."""
        last = self.reading
        rates = {"process_seconds": own, "busy_seconds": own + others}
        for name in [name for name in fields if name.endswith("_seconds")]:
            rates[name] = fields.pop(name)
        counted: dict[str, Any] = {name: (getattr(last, name) or 0.0) + rate * seconds for name, rate in rates.items()}
        self.reading = attrs.evolve(last, now=last.now + seconds, **counted, **fields)
        return self.gauge.update(self.reading)

    def run(self, seconds: float, **kwargs: Any) -> list[Pressure]:
        return [record for _ in range(round(seconds * 2)) for record in self.step(**kwargs)]

    def level(self, resource: str = "cpu") -> float:
        return self.gauge.levels[resource]


# --- CPU -----------------------------------------------------------------------------------------


def test_nothing_is_under_pressure_at_first() -> None:
    gauge = PressureGauge()

    assert dict(gauge.levels) == {"cpu": 0.0, "memory": 0.0, "loop": 0.0}
    assert gauge.level == 0.0
    assert gauge.reason.endswith("nothing was read yet")


def test_a_hog_beside_us_raises_the_level_within_two_seconds_and_it_falls_within_four() -> None:
    scene = Scene()
    scene.run(5, own=0.3)
    before = scene.level()

    came = scene.run(2, own=0.2, others=1.8)
    during = scene.level()
    went = scene.run(4, own=0.3)

    assert before == 0.0
    assert during > 0.7
    assert scene.level() < 0.1
    assert [(record.resource, record.reason) for record in came] == [
        ("cpu", "other processes take 1.80 of the 2 cores that this process may run on")
    ]
    assert [record.reason.startswith("the pressure is over: ") for record in went] == [True]


@pytest.mark.parametrize("own", [1.0, 2.0])
def test_using_all_that_is_free_is_no_pressure(own: float) -> None:
    scene = Scene()

    records = scene.run(30, own=own)

    assert scene.level() == 0.0
    assert records == []


@pytest.mark.parametrize(("others", "level"), [(0.5, 0.0), (1.0, 0.385), (1.34, 0.646), (1.8, 1.0), (2.0, 1.0)])
def test_what_others_take_counts_from_a_quarter_to_nine_tenths(others: float, level: float) -> None:
    scene = Scene()

    scene.run(10, own=2.0 - others, others=others)

    assert scene.level() == pytest.approx(level, abs=0.01)


def test_more_threads_than_cores_of_our_own_are_no_pressure_from_outside() -> None:
    scene = Scene()

    records = scene.run(30, own=2.0, cpu_stalled_seconds=1.0)

    assert scene.level() == 0.0
    assert records == []


def test_tasks_that_wait_without_getting_the_cores_are_under_pressure() -> None:
    scene = Scene(cpus=1.0)

    records = scene.run(5, own=0.2, others=1.0, cpu_stalled_seconds=0.7)

    assert scene.level() == pytest.approx(0.6 * 0.8, abs=0.01)  # no longer than processors are busy
    assert records == []


def test_a_stall_that_is_told_late_does_not_outlast_the_hog() -> None:
    scene = Scene()
    scene.run(5, own=0.2, others=1.8, cpu_stalled_seconds=1.0)

    scene.run(4, own=0.0, cpu_stalled_seconds=1.0)

    assert scene.level() < 0.05


def test_tasks_that_wait_where_nothing_else_is_known_are_under_pressure() -> None:
    scene = Scene(processors=frozenset())

    records = scene.run(5, own=0.4, cpu_stalled_seconds=0.9)

    assert scene.level() == pytest.approx(0.9 * 0.8, abs=0.01)
    assert [record.reason for record in records] == ["tasks waited for a processor 90% of the time"]


def test_stalls_count_in_full_where_the_own_time_is_not_known() -> None:
    scene = Scene(process_seconds=None)
    scene.gauge.update(attrs.evolve(scene.reading, now=200.0, process_seconds=None, cpu_stalled_seconds=0.0))

    scene.gauge.update(
        Reading(now=300.0, processors=TWO, busy_seconds=250.0, process_seconds=None, cpu_stalled_seconds=80.0)
    )

    assert scene.level() == pytest.approx(0.8)


def test_on_a_large_machine_others_are_no_pressure_until_they_leave_less_than_we_may_use() -> None:
    scene = Scene(processors=frozenset(range(64)), cpus=2.0)
    scene.run(5, own=1.0, others=60.0)
    before = scene.level()

    scene.run(5, own=1.0, others=63.0)

    assert before == 0.0
    assert scene.level() == pytest.approx((0.5 - 0.25) / 0.65, abs=0.01)


def test_others_who_use_up_the_groups_quota_are_pressure() -> None:
    scene = Scene(processors=frozenset(range(8)), cpus=1.0, quota=1.0, quota_seconds=0.0)

    records = scene.run(5, own=0.2, others=0.8, quota_seconds=1.0)

    assert scene.level() == pytest.approx((0.8 - 0.25) / 0.65, abs=0.01)
    assert records[0].reason == "other processes take 0.80 of the 1 cores that its control group may use"


def test_a_quota_that_holds_us_back_is_pressure() -> None:
    scene = Scene(cpus=0.5, quota=0.5)

    records = scene.run(5, own=0.5, throttled_seconds=0.7)

    assert scene.level() == pytest.approx(0.7, abs=0.01)
    assert records[0].reason == "the CPU quota of 0.5 cores held this process back 70% of the time"


def test_the_time_that_a_quota_holds_each_processor_back_is_shared_out() -> None:
    scene = Scene(processors=frozenset(range(8)), cpus=4.0, quota=4.0)

    scene.run(5, own=4.0, throttled_seconds=2.0)

    assert scene.level() == pytest.approx(0.5, abs=0.01)


def test_a_quota_or_affinity_that_changes_is_not_read_as_load() -> None:
    scene = Scene(quota=1.0, quota_seconds=0.0)

    scene.step(own=0.1, processors=frozenset({0}), quota=0.2, quota_seconds=500.0, others=90.0)

    assert scene.level() == 0.0


def test_counters_that_begin_anew_are_not_read_as_load() -> None:
    scene = Scene()
    scene.run(5, others=2.0)
    before = scene.level()

    scene.step(process_seconds=-9.0, busy_seconds=-50.0)

    assert 0.5 < scene.level() < before


def test_a_reading_that_is_not_later_is_ignored() -> None:
    scene = Scene()
    scene.run(5, others=2.0)
    before = scene.level()

    records = scene.gauge.update(attrs.evolve(scene.reading, busy_seconds=0.0))

    assert records == []
    assert scene.level() == before


def test_a_load_that_comes_and_goes_above_the_lower_threshold_makes_no_more_records() -> None:
    scene = Scene()
    scene.run(10, others=1.4)
    rng = random.Random(1)

    records = [record for _ in range(200) for record in scene.step(others=rng.uniform(0.9, 1.4))]

    assert records == []


# --- Memory and the loop -------------------------------------------------------------------------


@pytest.mark.parametrize(("used", "level"), [(0, 0.0), (600, 0.0), (775, 0.5), (950, 1.0), (2000, 1.0)])
def test_memory_rises_between_six_tenths_and_nearly_all_of_the_limit(used: int, level: float) -> None:
    scene = Scene()

    scene.run(10, memory_limit=1000, memory_used=used)

    assert scene.level("memory") == pytest.approx(level, abs=0.01)


def test_a_limit_of_nothing_is_reached_at_once() -> None:
    scene = Scene()

    scene.run(10, memory_limit=0, memory_used=1)

    assert scene.level("memory") == pytest.approx(1.0, abs=0.01)


def test_memory_under_pressure_says_how_much_is_in_use() -> None:
    scene = Scene()

    records = scene.run(10, memory_limit=2 * GIB, memory_used=int(1.8 * GIB))

    assert [(record.resource, record.reason) for record in records] == [("memory", "1.8 GiB of 2 GiB are in use (90%)")]


def test_waiting_for_memory_is_pressure_whatever_is_in_use() -> None:
    scene = Scene()

    records = scene.run(10, memory_limit=1000, memory_used=10, memory_stalled_seconds=0.2)

    assert scene.level("memory") == pytest.approx(1.0, abs=0.01)
    assert records[0].reason == "tasks waited for memory 20% of the time"


@pytest.mark.parametrize(
    ("lag", "level"), [(0.0, 0.0), (0.002, 0.0), (0.01414, 0.5), (0.02, 0.589), (0.1, 1.0), (5.0, 1.0)]
)
def test_the_loops_lag_counts_by_doublings(lag: float, level: float) -> None:
    scene = Scene()

    scene.run(10, loop_lag=lag)

    assert scene.level("loop") == pytest.approx(level, abs=0.01)


def test_one_long_slice_makes_no_record() -> None:
    scene = Scene()
    scene.run(5, loop_lag=0.001)

    records = scene.step(loop_lag=0.3) + scene.step(loop_lag=0.001)

    assert records == []


def test_what_cannot_be_read_any_more_is_no_pressure_for_ever() -> None:
    scene = Scene()
    scene.run(10, loop_lag=0.5)
    before = scene.level("loop")

    records = scene.run(10, loop_lag=None)

    assert before > 0.9
    assert scene.level("loop") < 0.01
    assert [record.reason for record in records] == ["the pressure is over: it cannot be read"]


def test_the_highest_level_is_explained() -> None:
    scene = Scene()

    scene.run(10, others=0.5, loop_lag=0.05)

    assert scene.gauge.level == scene.level("loop")
    assert scene.gauge.reason == "loop: the event loop ran 50 ms late"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enter": 0.3, "leave": 0.3}, r"0 < leave < enter <= 1, not 0.3 and 0.3"),
        ({"enter": 1.5}, r"0 < leave < enter <= 1, not 0.3 and 1.5"),
        ({"leave": 0.0}, r"0 < leave < enter <= 1, not 0.0 and 0.5"),
        ({"seconds": 0.0}, r"seconds must be above 0, not 0.0"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(arguments: Mapping[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PressureGauge(**arguments)


rates = st.one_of(st.none(), st.floats(0, 1e6))
readings = st.builds(
    Reading,
    now=st.floats(0, 1e6),
    cpus=st.floats(0, 512),
    process_seconds=rates,
    processors=st.sampled_from([frozenset[int](), TWO]),
    busy_seconds=rates,
    quota=rates,
    quota_seconds=rates,
    throttled_seconds=rates,
    cpu_stalled_seconds=rates,
    memory_stalled_seconds=rates,
    memory_limit=st.one_of(st.none(), st.integers(0, 2**62)),
    memory_used=st.one_of(st.none(), st.integers(0, 2**62)),
    rss=st.one_of(st.none(), st.integers(0, 2**40)),
    loop_lag=st.one_of(st.none(), st.floats(0, 1e6)),
)


@given(st.lists(readings, max_size=20))
def test_levels_stay_between_0_and_1_and_records_alternate(sequence: Sequence[Reading]) -> None:
    gauge = PressureGauge()
    over = {"cpu": True, "memory": True, "loop": True}

    for reading in sequence:
        for record in gauge.update(reading):
            is_over = record.reason.startswith("the pressure is over: ")
            assert is_over != over[record.resource]
            over[record.resource] = is_over
            assert record.level <= 0.3 if is_over else record.level >= 0.5

        assert all(0.0 <= level <= 1.0 for level in gauge.levels.values())


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1000, "1000 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1.5 * MIB, "1.5 MiB"),
        (2 * GIB, "2 GiB"),
        (5000 * GIB, "5000 GiB"),
    ],
)
def test_sizes_are_written_for_people(nbytes: float, text: str) -> None:
    assert size_text(nbytes) == text


# --- The memory budget ---------------------------------------------------------------------------


def opened(budget: int, **kwargs: Any) -> MemoryBudget:
    """Return a budget that knows of no memory but what is in flight."""
    memory = MemoryBudget(budget, **kwargs)
    memory.update(Reading(now=0.0))
    return memory


def test_credit_is_given_up_to_the_ceiling_and_then_refused() -> None:
    memory = opened(100 * MIB)

    granted = [memory.take(60 * MIB), memory.take(60 * MIB), memory.take(1)]

    assert granted == [60 * MIB, 40 * MIB, 0]
    assert memory.in_flight == 100 * MIB
    assert memory.paused


def test_a_pause_lasts_until_three_quarters_are_left() -> None:
    memory = opened(100 * MIB)
    memory.take(100 * MIB)
    memory.take(1)

    first = memory.give(24 * MIB)
    refused = memory.take(1)
    second = memory.give(MIB)

    assert (first, refused, second) == (False, 0, True)
    assert memory.take(5) == 5


def test_credit_that_is_hardly_worth_a_read_is_not_given() -> None:
    memory = opened(64 * MIB)
    memory.take(63 * MIB)

    assert memory.take(MIB) == 0
    assert memory.paused


def test_an_item_larger_than_the_credit_is_counted_in_full() -> None:
    memory = opened(10 * MIB)
    granted = memory.take(8 * MIB)

    ended = memory.correct(granted, 40 * MIB)

    assert not ended
    assert memory.in_flight == 40 * MIB
    assert memory.take(1) == 0
    assert memory.give(40 * MIB)


def test_credit_that_was_not_used_comes_back() -> None:
    memory = opened(10 * MIB)
    granted = memory.take(10 * MIB)
    memory.take(1)

    ended = memory.correct(granted, MIB)

    assert ended
    assert memory.in_flight == MIB


@pytest.mark.parametrize("nbytes", [-1, 11])
def test_more_than_is_out_cannot_come_back(nbytes: int) -> None:
    memory = opened(MIB)
    memory.take(10)

    with pytest.raises(ValueError, match=rf"between 0 and the 10 bytes in flight, not {nbytes}"):
        memory.give(nbytes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MemoryBudget(0), r"budget must be at least 1 byte, not 0"),
        (lambda: MemoryBudget(5, chunk_bytes=0), r"chunk_bytes must be at least 1 byte, not 0"),
        (lambda: MemoryBudget(5).take(0), r"wanted must be at least 1 byte, not 0"),
        (lambda: MemoryBudget(5).resize(-1), r"budget must be at least 1 byte, not -1"),
        (lambda: budget_bytes(Reading(now=0.0), share=1.5), r"share must be above 0 and at most 1, not 1.5"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [(8 * GIB, 4 * GIB, GIB), (GIB, 2 * GIB, MIB), (None, 5, BUDGET_UNKNOWN), (5, None, BUDGET_UNKNOWN)],
)
def test_without_a_budget_it_is_a_share_of_what_is_free(limit: int | None, used: int | None, expected: int) -> None:
    assert budget_bytes(Reading(now=0.0, memory_limit=limit, memory_used=used)) == expected


def test_a_larger_budget_ends_a_pause_and_a_smaller_one_waits_for_what_is_out() -> None:
    memory = opened(10 * MIB)
    memory.take(10 * MIB)
    memory.take(1)

    memory.resize(100 * MIB)
    resumed = memory.paused
    memory.resize(5 * MIB)

    assert not resumed
    assert memory.take(1) == 0
    assert memory.give(8 * MIB)


def test_a_budget_used_up_makes_one_record_and_one_when_it_is_free_again() -> None:
    memory = opened(10 * MIB)

    records: list[Pressure] = []
    for second in range(1, 20):  # the pause comes and goes many times between two readings
        if second < 10:
            for _ in range(5):
                memory.take(10 * MIB)
                memory.take(1)
                memory.give(memory.in_flight)
        records += memory.update(Reading(now=float(second)))

    assert [(record.resource, record.level) for record in records] == [("memory_budget", 1.0), ("memory_budget", 0.0)]
    assert records[0].reason == "10 MiB were in flight: fetching waits at 10 MiB; the budget is 10 MiB"
    assert records[1].reason == "0 bytes were in flight, of 10 MiB that may be; the budget is 10 MiB"


class Heap:
    """A process whose bytes in flight take *overhead* times their size, with a heap that keeps what was freed."""

    def __init__(self, memory: MemoryBudget, *, overhead: float = 1.0, limit: int | None = None) -> None:
        self.memory = memory
        self.overhead = overhead
        self.leaked = 0
        self.others = 0
        self.limit = limit
        self.top = 0.0
        self.now = 0.0
        self.moved = 0
        self.records: list[Pressure] = []
        self.read()

    def read(self) -> None:
        rss = 50 * MIB + int(self.top) + self.leaked
        used = None if self.limit is None else rss + self.others
        self.records += self.memory.update(Reading(now=self.now, rss=rss, memory_limit=self.limit, memory_used=used))

    def run(self, seconds: float, *, leak: int = 0, chunk: int = MIB, rate: int = 100) -> None:
        """Read chunks as fast as credit allows, *rate* of them in half a second, and settle all but what fits."""
        for _ in range(round(seconds * 2)):
            for _ in range(rate):
                granted = self.memory.take(chunk)
                self.moved += granted
                self.top = max(self.top, self.memory.in_flight * self.overhead)
                if not granted:
                    self.memory.give(self.memory.in_flight // 2)
            if self.memory.in_flight == 1:
                self.memory.give(1)
            self.leaked += leak
            self.now += 0.5
            self.read()


@pytest.mark.parametrize("overhead", [1.0, 1.05, 1.5, 3.0])
def test_what_bytes_really_cost_is_found_and_the_process_stays_within_its_budget(overhead: float) -> None:
    heap = Heap(MemoryBudget(256 * MIB), overhead=overhead)

    heap.run(60, rate=300)

    assert heap.top <= 1.05 * 256 * MIB
    assert heap.memory.ceiling * overhead >= 0.8 * 256 * MIB


def test_items_that_come_to_cost_more_lower_the_ceiling() -> None:
    heap = Heap(MemoryBudget(256 * MIB), overhead=1.05)
    heap.run(20, rate=300)
    before = heap.memory.ceiling

    heap.overhead = 3.0
    heap.run(20, rate=300)

    assert heap.memory.ceiling < before / 2
    assert "the process grew by" in heap.memory.reason


def test_a_heap_that_keeps_what_was_freed_is_no_reason_to_shrink_again() -> None:
    heap = Heap(MemoryBudget(256 * MIB), overhead=3.9)
    heap.run(10, rate=300)
    heap.top = 1.04 * 256 * MIB
    heap.run(0.5, rate=300)
    before = heap.memory.ceiling

    heap.run(120, rate=300)

    assert heap.memory.ceiling >= before


def test_a_leak_lowers_the_flow_to_a_chunk_at_a_time_and_is_named() -> None:
    heap = Heap(MemoryBudget(64 * MIB))
    heap.run(10)
    before = heap.moved

    heap.run(60, leak=4 * MIB)

    assert heap.memory.ceiling <= 2 * MIB
    assert heap.moved - before > 60 * MIB
    named = [record for record in heap.records if "unmanaged memory" in record.reason]
    assert len(named) == 1
    assert named[0].level == 1.0
    assert "the process grew by" in named[0].reason


def test_after_a_leak_has_ended_the_flow_comes_back_a_little_at_a_time() -> None:
    heap = Heap(MemoryBudget(64 * MIB))
    heap.run(60, leak=4 * MIB)
    lowest = heap.memory.ceiling

    heap.run(3600)

    assert heap.memory.ceiling >= 16 * lowest


def test_a_leak_that_is_freed_lets_the_flow_come_back_at_once() -> None:
    heap = Heap(MemoryBudget(64 * MIB))
    heap.run(60, leak=4 * MIB)

    heap.leaked, heap.top = 0, 0.0
    heap.run(10)

    assert heap.memory.ceiling > 40 * MIB
    assert "unmanaged memory" not in heap.records[-1].reason


def test_a_second_leak_is_seen_after_the_first_was_freed() -> None:
    heap = Heap(MemoryBudget(64 * MIB))
    heap.run(60, leak=4 * MIB)
    heap.leaked, heap.top = 0, 0.0
    heap.run(30)

    heap.run(30, leak=4 * MIB)

    assert heap.memory.ceiling <= 2 * MIB
    assert len([record for record in heap.records if "unmanaged memory" in record.reason]) == 2


def test_a_slow_leak_is_named_once_however_often_a_little_more_is_tried() -> None:
    heap = Heap(MemoryBudget(64 * MIB))
    heap.run(10)

    heap.run(1800, leak=MIB // 5, rate=50)

    assert heap.memory.ceiling <= 8 * MIB
    assert len([record for record in heap.records if "unmanaged memory" in record.reason]) == 1


def stuck(overhead: float) -> Heap:
    """Return a process that has grown to its budget of 256 MiB, with a heap that never gives anything back."""
    heap = Heap(MemoryBudget(256 * MIB), overhead=overhead)
    heap.run(10, chunk=8 * MIB, rate=40)
    heap.top = 256 * MIB
    return heap


@pytest.mark.parametrize(("overhead", "most"), [(1.0, 1.0), (3.0, 1.07)])
def test_an_hour_of_trials_hardly_makes_the_process_grow(overhead: float, most: float) -> None:
    heap = stuck(overhead)
    before = heap.memory.ceiling

    heap.run(3600, chunk=8 * MIB, rate=40)

    assert heap.memory.ceiling > before  # what the heap has kept is used again
    assert heap.top <= most * 256 * MIB


def test_trials_that_failed_long_ago_do_not_count_after_there_was_room() -> None:
    heap = stuck(3.0)
    heap.run(3600, chunk=8 * MIB, rate=40)
    heap.overhead, heap.top = 1.0, 0.0
    heap.run(20, chunk=8 * MIB, rate=40)
    before = heap.memory.ceiling

    heap.top = 256 * MIB
    heap.run(20, chunk=8 * MIB, rate=40)

    assert heap.memory.ceiling > before


def test_a_heap_of_our_own_that_fills_the_machine_may_be_used_again() -> None:
    heap = Heap(MemoryBudget(900 * MIB), limit=GIB)
    heap.run(60, rate=2000)

    heap.others = 100 * MIB
    heap.run(5, rate=2000)

    assert heap.memory.ceiling >= 700 * MIB


def test_a_jump_that_nothing_in_flight_explains_is_named_at_once() -> None:
    heap = Heap(MemoryBudget(64 * MIB))
    heap.run(5, rate=2)

    heap.leaked = GIB
    heap.read()

    assert heap.records[-1].reason.startswith("unmanaged memory: the process grew by")


def test_memory_that_others_fill_up_lowers_the_flow_and_is_named() -> None:
    heap = Heap(MemoryBudget(256 * MIB), limit=2 * GIB)
    heap.run(10)
    before = heap.memory.ceiling

    heap.others = 2 * GIB
    heap.run(5)
    during, moved, reason = heap.memory.ceiling, heap.moved, heap.memory.reason
    heap.run(5)
    still = heap.moved - moved
    heap.others = 0
    heap.run(2)

    assert during == MIB
    assert "of 2 GiB are in use with" in reason
    assert still > 0
    assert heap.memory.ceiling >= before
    named = [record.reason for record in heap.records if "unmanaged memory" in record.reason]
    assert len(named) == 1
    assert "of 2 GiB are in use with" in named[0]


def test_what_bytes_really_cost_counts_in_what_the_machine_has_left() -> None:
    heap = Heap(MemoryBudget(600 * MIB), overhead=3.0, limit=2 * GIB)
    heap.run(30, chunk=8 * MIB, rate=80)
    before = heap.memory.ceiling

    heap.others = int(0.9 * 2 * GIB) - 300 * MIB - 50 * MIB
    heap.read()

    assert before > 170 * MIB
    assert heap.memory.ceiling <= 105 * MIB


def test_a_machine_that_hovers_at_its_limit_is_named_once() -> None:
    heap = Heap(MemoryBudget(256 * MIB), limit=2 * GIB)
    heap.run(5)
    rng = random.Random(1)

    for _ in range(50):
        heap.memory.give(heap.memory.in_flight)
        heap.others = int(0.9 * 2 * GIB) - 50 * MIB - rng.randrange(16 * MIB)
        heap.read()

    assert len([record for record in heap.records if "unmanaged memory" in record.reason]) == 1


def test_a_smaller_budget_is_kept_to() -> None:
    heap = Heap(MemoryBudget(256 * MIB))
    heap.run(20, rate=300)

    heap.memory.resize(64 * MIB)
    heap.memory.give(heap.memory.in_flight)
    heap.top = 0.0
    heap.run(20, rate=300)

    assert heap.top <= 1.05 * 64 * MIB


class Credits(RuleBasedStateMachine):
    """Readers that take credit, weigh what came and settle it, on a machine that shows anything at all."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryBudget(1000, chunk_bytes=10)
        self.open: list[int] = []
        """Granted, and not read yet."""
        self.held: list[int] = []
        self.excess = 0
        """By how much what is in hand is above the credit it was granted."""
        self.now = 0.0

    @rule(wanted=st.integers(1, 2000))
    def take(self, wanted: int) -> None:
        idle = self.memory.in_flight == 0
        granted = self.memory.take(wanted)

        assert granted <= wanted
        assert granted <= self.memory.ceiling
        if idle:
            assert granted >= min(wanted, 10)  # a chunk always passes
        if granted:
            assert self.memory.in_flight <= self.memory.ceiling
            self.open.append(granted)

    @precondition(lambda self: self.open)
    @rule(weight=st.integers(0, 3000))
    def arrive(self, weight: int) -> None:
        granted = self.open.pop()
        self.memory.correct(granted, weight)
        self.excess += max(0, weight - granted)
        self.held.append(weight)

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 100))
    def settle(self, index: int) -> None:
        was_paused = self.memory.paused
        ended = self.memory.give(self.held.pop(index % len(self.held)))

        assert ended == (was_paused and not self.memory.paused)
        if not self.held and not self.open:
            self.excess = 0

    @rule(
        rss=st.one_of(st.none(), st.integers(0, 10_000)),
        used=st.one_of(st.none(), st.integers(0, 10_000)),
        seconds=st.floats(0, 1000),
    )
    def read(self, rss: int | None, used: int | None, seconds: float) -> None:
        self.now += seconds
        for record in self.memory.update(Reading(now=self.now, rss=rss, memory_limit=5000, memory_used=used)):
            assert 0.0 <= record.level <= 1.0

    @invariant()
    def what_is_out_is_what_was_given_and_not_returned(self) -> None:
        assert self.memory.in_flight == sum(self.open) + sum(self.held)

    @invariant()
    def no_more_is_out_than_the_budget_and_what_came_heavier_than_its_credit(self) -> None:
        assert self.memory.in_flight <= 1000 + self.excess

    @invariant()
    def the_ceiling_is_between_a_chunk_and_the_budget(self) -> None:
        assert 10 <= self.memory.ceiling <= 1000

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        assert not (self.memory.paused and self.memory.in_flight == 0)


TestCredits = Credits.TestCase


@given(
    budget=st.integers(1, 10**6),
    chunk_bytes=st.integers(1, 10**5),
    weights=st.lists(st.integers(1, 10**6), min_size=1, max_size=60),
    seed=st.integers(0, 2**16),
)
def test_a_single_reader_moves_everything_within_the_budget_and_one_chunk(
    budget: int, chunk_bytes: int, weights: list[int], seed: int
) -> None:
    memory = MemoryBudget(budget, chunk_bytes=chunk_bytes)
    rng = random.Random(seed)
    waiting, held, steps = list(weights), [0], 0
    held.clear()

    while waiting or held:
        steps += 1
        granted = memory.take(max(1, budget)) if waiting else 0
        if granted:
            weight = waiting.pop()  # an item larger than the credit comes alone
            memory.correct(granted, weight)
            held.append(weight)
            assert memory.in_flight <= budget + max(weight, chunk_bytes)
        elif held:
            memory.give(held.pop(rng.randrange(len(held))))
        if rng.random() < 0.3:
            memory.update(Reading(now=float(steps), rss=rng.randrange(10 * budget)))

    assert memory.in_flight == 0
    assert steps <= 2 * len(weights)
