"""The story of a run: the moves of its controllers as lines for people to read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from forebay._types import Limits, LimitsInfo


def move_line(move: LimitsInfo) -> str:
    """Return one move as a line: local time, stage, what changed, and why.

    12:03:07 enrich: concurrency 8 -> 5: p99 210 ms over goal 200 ms, queueing not cost
    """
    moment = time.strftime("%H:%M:%S", time.localtime(move.at))
    return ": ".join(
        part for part in (f"{moment} {move.stage}", ", ".join(_changes(move.before, move.after)), move.reason) if part
    )


def story(title: str, moves: Sequence[LimitsInfo], made: int) -> str:
    """Return *moves*, one a line in the order of time, below *title* and how many there were.

    Args:
        title: What moved.
        moves: Those that are known.
        made: How many there were in all.
    """
    count = "no limits were moved" if not made else "1 move" if made == 1 else f"{made:,} moves"
    if made > len(moves):
        count += f", of which the last {len(moves):,} are known"
    return "\n".join([f"{title}: {count}", *map(move_line, moves)])


def in_order(moves: Sequence[LimitsInfo]) -> list[LimitsInfo]:
    """Return *moves* of several stages in the order of time."""
    return sorted(moves, key=lambda move: move.at)


def _changes(before: Limits, after: Limits) -> Iterator[str]:
    if before.batch_size != after.batch_size:
        yield f"batch {before.batch_size} -> {after.batch_size}"
    if before.concurrency != after.concurrency:
        yield f"concurrency {before.concurrency} -> {after.concurrency}"
    if before.max_wait != after.max_wait:
        yield f"wait {before.max_wait * 1000:g} -> {after.max_wait * 1000:g} ms"
    if before.max_bytes != after.max_bytes:
        yield f"bytes {_bytes(before)} -> {_bytes(after)}"


def _bytes(limits: Limits) -> str:
    return "unlimited" if limits.max_bytes is None else f"{limits.max_bytes:,}"
