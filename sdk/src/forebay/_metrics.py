"""Counters and histograms, read by `statistics()`, the summary and exporters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import frexp
from operator import mul

from forebay._types import Quantiles, StageSummary

_STEPS = 16  # buckets in an octave: a reading is off by at most 1/32 of itself
_TWICE = 2 * _STEPS
_FOLD = 2048
_ZERO = -100_000  # the bucket of all that is not positive


class Histogram:
    """Counts of positive numbers in log-linear buckets.

    Each power of two is cut into 16 equal buckets, so a quantile is within 3.2 % of the true one at any scale;
    with *whole*, numbers are whole and those below 32 are exact.
    Zero and below count as the smallest bucket. Not for use from several threads.

    Source: the bucket layout of HdrHistogram (Gil Tene), with 4 bits of sub-bucket.
    """

    __slots__ = ("_counts", "_maximum", "_raw", "_total", "_weighted", "whole")

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        # Measurements are kept as they come and sorted into buckets by the thousand: that costs a third of one by one.
        self._raw: list[float] = []
        self._weighted: list[tuple[float, int]] = []
        self._counts: Counter[int] = Counter()
        self._total = 0.0
        self._maximum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count *value* as measured *times* times."""
        if times == 1:
            self._raw.append(value)
            if len(self._raw) >= _FOLD:
                self._fold()
        else:
            self._weighted.append((value, times))
            if len(self._weighted) >= _FOLD:
                self._fold()

    def _fold(self) -> None:
        raw, self._raw = self._raw, []
        if raw:
            self._counts.update([e * _STEPS + int(m * _TWICE) if m > 0 else _ZERO for m, e in map(frexp, raw)])
            self._total += sum(raw)
            self._maximum = max(self._maximum, max(raw))
        weighted, self._weighted = self._weighted, []
        if weighted:
            values, weights = zip(*weighted, strict=True)
            counts = self._counts
            for (m, e), times in zip(map(frexp, values), weights, strict=True):
                counts[e * _STEPS + int(m * _TWICE) if m > 0 else _ZERO] += times
            self._total += sum(map(mul, values, weights))
            self._maximum = max(self._maximum, max(values))

    def add_all(self, values: Sequence[float]) -> None:
        """Count each of *values* once."""
        self._raw += values
        self._fold()

    @property
    def count(self) -> int:
        """How many measurements have been counted."""
        return self._folded().total()

    @property
    def maximum(self) -> float:
        """The largest measurement; 0.0 when there are none."""
        self._folded()
        return self._maximum

    def _folded(self) -> Counter[int]:
        if self._raw or self._weighted:
            self._fold()
        return self._counts

    def merge(self, other: Histogram) -> None:
        """Add all that *other* has counted."""
        self._folded().update(other._folded())
        self._total += other._total
        self._maximum = max(self._maximum, other._maximum)

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Yield (exclusive upper bound, count) ascending, without empty buckets."""
        counts = self._folded()
        for bucket in sorted(counts):
            yield _bounds(bucket)[1], counts[bucket]

    def quantile(self, share: float) -> float:
        """Return the value that *share* (0 to 1) of the measurements do not exceed; 0.0 when there are none."""
        counts = self._folded()
        wanted = share * counts.total()
        seen = 0
        for bucket in sorted(counts):
            seen += counts[bucket]
            if seen >= wanted:
                lower, upper = _bounds(bucket)
                exact = self.whole and upper - lower <= 1
                return min(lower if exact else (lower + upper) / 2, self._maximum)
        return self._maximum

    def quantiles(self) -> Quantiles:
        """Return the usual figures."""
        count = self.count
        if not count:
            return Quantiles()
        return Quantiles(
            count=count,
            mean=self._total / count,
            p50=self.quantile(0.50),
            p95=self.quantile(0.95),
            p99=self.quantile(0.99),
            maximum=self.maximum,
        )


def _bounds(bucket: int) -> tuple[float, float]:
    """Return where *bucket* begins and ends."""
    if bucket == _ZERO:
        return 0.0, 0.0
    exponent, step = divmod(bucket - _STEPS, _STEPS)
    width: float = 2.0**exponent / (2 * _STEPS)
    return (step + _STEPS) * width, (step + _STEPS + 1) * width


class StageMetrics:
    """What one stage has done so far."""

    __slots__ = (
        "_batch_sizes",
        "_call_seconds",
        "_calls",
        "_raw",
        "_waited",
        "dead",
        "done",
        "dropped",
        "failed",
        "filtered",
        "received",
        "retried",
        "seconds",
    )

    def __init__(self) -> None:
        self.received = 0
        self.done = 0
        self.filtered = 0
        self.failed = 0
        self.retried = 0
        self.dead = 0
        self.dropped = 0
        self.seconds = 0.0
        self._calls = 0
        self._raw: list[tuple[int, float, float]] = []
        self._batch_sizes = Histogram(whole=True)
        self._call_seconds = Histogram()
        self._waited = Histogram()

    def call_ended(self, size: int, seconds: float, waited: float) -> None:
        """Count one call of the handler."""
        self._raw.append((size, seconds, waited))
        if len(self._raw) >= _FOLD:
            self._fold()

    def _fold(self) -> None:
        if self._raw:
            sizes, seconds, waits = zip(*self._raw, strict=True)
            self._calls += len(sizes)
            self.seconds += sum(seconds)
            self._batch_sizes.add_all(sizes)
            self._call_seconds.add_all(seconds)
            self._waited.add_all(waits)
            self._raw.clear()

    def summary(self, name: str) -> StageSummary:
        """Return a reading."""
        self._fold()
        return StageSummary(
            name=name,
            received=self.received or self.done,
            done=self.done,
            filtered=self.filtered,
            failed=self.failed,
            retried=self.retried,
            dead=self.dead,
            dropped=self.dropped,
            calls=self._calls,
            seconds=self.seconds,
            batch_sizes=self._batch_sizes.quantiles(),
            call_seconds=self._call_seconds.quantiles(),
            waited=self._waited.quantiles(),
        )
