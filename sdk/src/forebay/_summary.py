"""What a run did, as a record, as a table, and as a story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict, field, fields, frozen

from forebay._explain import move_line, story
from forebay._types import Limits, LimitsInfo, Quantiles, StageSummary

_SHOWN_MOVES = 5
_WIDTH = 80


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


@frozen
class Summary:
    """What a run did, from its first fetch to its last settlement."""

    pipeline: str
    run_id: str
    seen: int
    """Items taken from the sources."""
    done: int
    """Items that reached the end of the recipe."""
    filtered: int
    dropped: int
    """Items thrown away on purpose, for any of `drop_reasons`."""
    dead: int
    """Items set aside as dead letters."""
    given_back: int
    """Items returned to their source untouched or undecided."""
    lost_ownership: int
    """Items that another member took over."""
    unsettled: int
    """Items whose settlement the source did not take before the run ended."""
    retried: int
    """Further attempts made."""
    seconds: float
    latency: Quantiles
    """Time from fetch to final outcome, in seconds, by batch and weighted by its items."""
    clean: bool
    """Whether the run ended with nothing cut off, so that no item will be seen twice."""
    stages: Sequence[StageSummary]
    dead_reasons: Mapping[str, int] = field(factory=dict[str, int])
    """`stage: error type` to how many."""
    drop_reasons: Mapping[str, int] = field(factory=dict[str, int])
    abandoned: Sequence[str] = ()
    """Names of handlers that were still running in threads when the run ended."""
    listener_errors: int = 0
    """Exceptions of observing hooks and observers."""
    moves: Sequence[LimitsInfo] = ()
    """Moves of the controllers in the order of time: the last 256 of each stage."""
    moves_made: int = 0
    """Moves in all."""

    def report(self) -> str:
        """Return the summary as a table for people to read, of at most 80 columns."""
        ends = {
            "done": self.done,
            "filtered": self.filtered,
            "set aside": self.dead,
            "dropped": self.dropped,
            "given back": self.given_back,
            "lost to others": self.lost_ownership,
            "not settled": self.unsettled,
        }
        rate = self.seen / self.seconds if self.seconds > 0 else 0.0
        counts = ", ".join(f"{count:,} {name}" for name, count in ends.items() if count)
        lines = [
            f"{self.pipeline}: {self.seen:,} items in {self.seconds:.2f} s ({rate:,.0f} items/s)",
            counts or "nothing done",
            "clean end" if self.clean else "cut off: some items may be seen again",
            f"from read to settled: p50 {_shown(self.latency.p50)}, p95 {_shown(self.latency.p95)}, "
            f"p99 {_shown(self.latency.p99)}",
            "",
            f"{'stage':<28}{'items':>11}{'failed':>9}{'calls':>8}{'p50 size':>10}{'seconds':>10}",
        ]
        for stage in self.stages:
            sizes = f"{stage.batch_sizes.p50:,.0f}" if stage.calls else ""
            calls = f"{stage.calls:,}" if stage.calls else ""
            lines.append(
                f"{stage.name[:27]:<28}{stage.received:>11,}{stage.failed:>9,}{calls:>8}{sizes:>10}{stage.seconds:>10.3f}"
            )
        for title, reasons in (("set aside", self.dead_reasons), ("dropped", self.drop_reasons)):
            lines += [f"{title}: {count:,} in {reason}"[:_WIDTH] for reason, count in reasons.items()]
        lines += [f"still running in a thread: {name}"[:_WIDTH] for name in self.abandoned]
        if self.moves:
            lines += ["", self._moves_title(), *(_cut(move_line(move)) for move in self.moves[-_SHOWN_MOVES:])]
        return "\n".join(lines)

    def _moves_title(self) -> str:
        if self.moves_made <= _SHOWN_MOVES:
            return "moves of the controllers"
        return f"the last {min(_SHOWN_MOVES, len(self.moves))} of {self.moves_made:,} moves of the controllers"

    def explain(self) -> str:
        """Return the story of the run: every move of a controller that is known, one a line, with its reason."""
        return story(f"{self.pipeline}, run {self.run_id}", self.moves, self.moves_made)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as what JSON can hold; `forebay explain` reads a file of it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], /) -> Summary:
        """Return the summary that `as_dict` made *saved* of. What another version has added to it is left out.

        Raises:
            ValueError: *saved* is something else.
        """
        try:
            known = _known(cls, saved)
            known["latency"] = _quantiles(saved["latency"])
            known["stages"] = [_stage(one) for one in saved["stages"]]
            known["abandoned"] = tuple(saved.get("abandoned", ()))
            known["moves"] = [_move(one) for one in saved.get("moves", ())]
            return cls(**known)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"this is no saved summary ({error}); save what Summary.as_dict() returns") from None


def _cut(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _known(record: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    return {one.name: saved[one.name] for one in fields(record) if one.name in saved}


def _quantiles(saved: Mapping[str, Any]) -> Quantiles:
    return Quantiles(**_known(Quantiles, saved))


def _stage(saved: Mapping[str, Any]) -> StageSummary:
    known = _known(StageSummary, saved)
    for name in ("batch_sizes", "call_seconds", "waited"):
        known[name] = _quantiles(saved[name])
    return StageSummary(**known)


def _move(saved: Mapping[str, Any]) -> LimitsInfo:
    known = _known(LimitsInfo, saved)
    for name in ("before", "after"):
        known[name] = Limits(**_known(Limits, saved[name]))
    return LimitsInfo(**known)
