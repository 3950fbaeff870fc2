import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay._metrics import Histogram, StageMetrics
from forebay._types import Quantiles, StageSummary

positive = st.floats(1e-9, 1e9)
shares = st.floats(0.001, 1.0)


def exact(values: list[float], share: float) -> float:
    """Return the smallest value that *share* of *values* do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@given(st.lists(positive, min_size=1), shares)
def test_a_quantile_is_within_a_thirtieth_of_the_true_one(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)

    assert histogram.quantile(share) == pytest.approx(exact(values, share), rel=1 / 31)
    assert histogram.maximum == max(values)
    assert histogram.count == len(values)


@given(st.lists(st.integers(0, 31), min_size=1), shares)
def test_whole_numbers_below_32_are_exact(values: list[int], share: float) -> None:
    histogram = Histogram(whole=True)
    for value in values:
        histogram.add(value)

    assert histogram.quantile(share) == exact([float(value) for value in values], share)


@given(st.lists(st.integers(1, 100_000), min_size=1), shares)
def test_larger_whole_numbers_are_close(values: list[int], share: float) -> None:
    histogram = Histogram(whole=True)
    for value in values:
        histogram.add(value)

    assert histogram.quantile(share) == pytest.approx(exact([float(value) for value in values], share), rel=1 / 31)


def test_a_histogram_without_measurements_says_zero() -> None:
    histogram = Histogram()

    assert (histogram.count, histogram.maximum, histogram.quantile(0.5)) == (0, 0.0, 0.0)
    assert histogram.quantiles() == Quantiles()
    assert list(histogram.buckets()) == []


def test_what_is_not_positive_counts_as_the_smallest() -> None:
    histogram = Histogram()
    for value in (0.0, -3.0, 0.0, 8.0):
        histogram.add(value)
    histogram.add(-1.0, 2)

    assert (histogram.quantile(0.5), histogram.quantile(1.0), histogram.count) == (0.0, 8.0, 6)
    assert list(histogram.buckets()) == [(0.0, 5), (8.5, 1)]


def test_a_share_that_rounding_puts_above_all_is_the_maximum() -> None:
    histogram = Histogram()
    histogram.add(5.0)

    assert histogram.quantile(1.0000001) == 5.0


@given(st.lists(st.tuples(positive, st.integers(1, 9)), min_size=1, max_size=20), shares)
def test_a_measurement_can_count_several_times(weighted: list[tuple[float, int]], share: float) -> None:
    together, apart = Histogram(), Histogram()
    for value, times in weighted:
        together.add(value, times)
        for _ in range(times):
            apart.add(value)

    assert list(together.buckets()) == list(apart.buckets())
    assert together.quantile(share) == apart.quantile(share)
    assert together.quantiles().mean == pytest.approx(apart.quantiles().mean)


@given(st.lists(positive), st.lists(positive))
def test_merging_is_like_counting_everything_in_one(first: list[float], second: list[float]) -> None:
    one, other, together = Histogram(), Histogram(), Histogram()
    for value in first:
        one.add(value)
    for value in second:
        other.add(value)
    for value in first + second:
        together.add(value)

    one.merge(other)

    assert list(one.buckets()) == list(together.buckets())
    assert one.maximum == together.maximum
    assert one.quantiles().mean == pytest.approx(together.quantiles().mean)
    assert other.count == len(second)


@given(st.lists(positive, min_size=1))
def test_buckets_are_ascending_and_their_upper_bounds_are_exclusive(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)

    buckets = list(histogram.buckets())

    bounds = [bound for bound, _ in buckets]
    assert bounds == sorted(set(bounds))
    assert all(count > 0 for _, count in buckets)
    for bound, _ in buckets:
        below = sum(count for upper, count in buckets if upper <= bound)
        assert below == sum(value < bound for value in values)


def test_many_measurements_are_counted_like_few() -> None:
    histogram = Histogram(whole=True)
    for _ in range(1_000):
        for value in range(5):
            histogram.add(value)
            histogram.add(value, 2)

    assert histogram.count == 15_000
    assert [count for _, count in histogram.buckets()] == [3_000] * 5
    assert histogram.quantiles() == Quantiles(count=15_000, mean=2.0, p50=2.0, p95=4.0, p99=4.0, maximum=4)


def test_a_stage_reports_its_calls() -> None:
    metrics = StageMetrics()
    metrics.received, metrics.done, metrics.filtered, metrics.failed = 9, 5, 1, 3
    metrics.retried, metrics.dead, metrics.dropped = 2, 1, 2
    for size, seconds in ((2, 0.5), (4, 1.0), (2, 0.5)):
        metrics.call_ended(size, seconds, 0.25)

    summary = metrics.summary("store")

    assert summary.batch_sizes == Quantiles(count=3, mean=8 / 3, p50=2.0, p95=4.0, p99=4.0, maximum=4)
    assert summary.call_seconds.mean == pytest.approx(2 / 3)
    assert summary.call_seconds.maximum == 1.0
    assert summary.waited.p50 == 0.25
    assert summary == StageSummary(
        name="store",
        received=9,
        done=5,
        filtered=1,
        failed=3,
        retried=2,
        dead=1,
        dropped=2,
        calls=3,
        seconds=2.0,
        batch_sizes=summary.batch_sizes,
        call_seconds=summary.call_seconds,
        waited=summary.waited,
    )


def test_a_stage_that_did_not_count_arrivals_received_what_it_did() -> None:
    metrics = StageMetrics()
    metrics.done = 4

    summary = metrics.summary("store")

    assert summary.received == 4
    assert (summary.batch_sizes, summary.call_seconds, summary.waited) == (Quantiles(), Quantiles(), Quantiles())


def test_a_stage_reports_many_calls_like_few() -> None:
    metrics = StageMetrics()
    for _ in range(1_500):
        metrics.call_ended(2, 0.5, 0.25)
        metrics.call_ended(4, 1.5, 0.25)

    summary = metrics.summary("store")

    assert (summary.calls, summary.seconds) == (3_000, 3_000.0)
    assert summary.batch_sizes == Quantiles(count=3_000, mean=3.0, p50=2.0, p95=4.0, p99=4.0, maximum=4)
