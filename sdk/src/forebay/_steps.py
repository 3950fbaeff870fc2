"""Inline steps: synchronous functions that run in the pump, a whole piece at a time.

Each step is one plain loop over a list, with the `try` around the loop and not in it,
so an item costs a call of the user's function and a few nanoseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter
from types import CoroutineType
from typing import NamedTuple

from attrs import define, field

from forebay._batcher import Piece
from forebay._checks import a
from forebay._errors import HandlerContractError
from forebay._metrics import StageMetrics
from forebay._watch import BLOCKED_SECONDS, LoopWatch


class Stop(NamedTuple):
    """A step has failed for one item; the piece is in three parts now."""

    step: int
    """Index of the step that failed."""
    head: Piece
    """Items before the one that failed, with the step's results."""
    bad: Piece
    """The item that failed, as the step got it."""
    tail: Piece
    """Items behind it, as the step got them."""
    error: Exception


@define(eq=False)
class Step:
    """One inline step of a run."""

    kind: str
    """`map`, `filter`, `flat_map`, `tap` or `key_by`."""
    func: Callable[[object], object]
    name: str
    metrics: StageMetrics
    drop: Callable[[Piece, list[int]], None]
    """Called with a piece of listed positions and the indexes of the items that are filtered out of it."""
    parent: Callable[[Piece, list[int]], None]
    """Called with a piece whose items become the parents of so many children each."""
    watch: LoopWatch = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.watch = LoopWatch(
            f"{self.kind} step {self.name!r}", "pass run_in='thread' or run_in='process' to move it off the loop"
        )


def run_steps(steps: tuple[Step, ...], first: int, piece: Piece) -> Stop | None:
    """Run the steps from *first* on over *piece*, in place; return where it stopped, or `None`."""
    for index in range(first, len(steps)):
        if not piece.items:
            return None
        step = steps[index]
        count = len(piece.items)
        started = perf_counter()
        stopped = _RUNNERS[step.kind](step, piece)
        seconds = perf_counter() - started
        metrics = step.metrics
        metrics.seconds += seconds
        metrics.received += count if stopped is None else count - len(stopped[2].items)
        if seconds > BLOCKED_SECONDS:
            step.watch.held(seconds, count)
        elif step.watch.streak:
            step.watch.passed()
        if stopped is not None:
            metrics.failed += 1
            metrics.done += len(stopped[0].items)
            return Stop(index, *stopped)
        metrics.done += len(piece.items)
    return None


_Stopped = tuple[Piece, Piece, Piece, Exception]


def _map(step: Step, piece: Piece) -> _Stopped | None:
    func = step.func
    out: list[object] = []
    try:
        for item in piece.items:
            out.append(func(item))
    except Exception as error:
        head, bad = _cut(piece, len(out))
        head.items = out
        return head, bad, piece, error
    if is_coroutine(out[0]):
        refuse_coroutines(step, out)
    piece.items = out
    return None


def _tap(step: Step, piece: Piece) -> _Stopped | None:
    func = step.func
    done = 0
    result: object = None
    try:
        for item in piece.items:
            result = func(item)
            done += 1
    except Exception as error:
        head, bad = _cut(piece, done)
        return head, bad, piece, error
    if is_coroutine(result):
        refuse_coroutines(step, [result])
    return None


def _filter(step: Step, piece: Piece) -> _Stopped | None:
    func = step.func
    out: list[object] = []
    dropped: list[int] = []
    verdict: object = None
    try:
        for item in piece.items:
            verdict = func(item)
            if verdict:
                out.append(item)
            else:
                dropped.append(len(out) + len(dropped))
    except Exception as error:
        head, bad = _cut(piece, len(out) + len(dropped))
        _leave_out(step, head, out, dropped)
        return head, bad, piece, error
    if is_coroutine(verdict):  # a coroutine is true: without this the filter would let all through
        refuse_coroutines(step, [verdict])
    _leave_out(step, piece, out, dropped)
    return None


def _leave_out(step: Step, piece: Piece, kept: list[object], dropped: list[int]) -> None:
    """Take the items at the indexes *dropped* out of *piece*."""
    if not dropped:
        return
    step.metrics.filtered += len(dropped)
    if piece.positions is None:
        first = piece.start
        holes = [piece.position(i) for i in dropped] if piece.holes else [first + i for i in dropped]
        piece.holes = sorted(piece.holes + holes) if piece.holes else holes
    else:
        step.drop(piece, dropped)
        gone = set(dropped)
        piece.positions = [position for index, position in enumerate(piece.positions) if index not in gone]
    if piece.keys is not None:
        gone = set(dropped)
        piece.keys = [key for index, key in enumerate(piece.keys) if index not in gone]
    piece.items = kept


def _flat_map(step: Step, piece: Piece) -> _Stopped | None:
    func = step.func
    families: list[list[object]] = []
    family: object = None
    stopped: _Stopped | None = None
    try:
        for item in piece.items:
            family = func(item)
            families.append(list(family))  # type: ignore[call-overload]  # an iterable, or the TypeError says so
    except Exception as error:
        if is_coroutine(family):
            refuse_coroutines(step, [family])
        whole = piece
        piece, bad = _cut(whole, len(families))
        stopped = piece, bad, whole, error
    if families:
        _adopt(step, piece, families)
    return stopped


def _adopt(step: Step, piece: Piece, families: list[list[object]]) -> None:
    """Put the children in the place of their parents."""
    sizes = [len(family) for family in families]
    childless = [index for index, size in enumerate(sizes) if not size]
    if childless:
        _leave_out(step, piece, [item for item, size in zip(piece.items, sizes, strict=True) if size], childless)
        sizes = [size for size in sizes if size]
    step.parent(piece, sizes)
    positions = piece.listed()
    piece.positions = [position for position, size in zip(positions, sizes, strict=True) for _ in range(size)]
    if piece.keys is not None:
        piece.keys = [key for key, size in zip(piece.keys, sizes, strict=True) for _ in range(size)]
    piece.items = [child for family in families for child in family]


def _key_by(step: Step, piece: Piece) -> _Stopped | None:
    func = step.func
    keys: list[str] = []
    try:
        for item in piece.items:
            key = func(item)
            if type(key) is not str:
                _refuse_key(step, key)
            keys.append(key)  # type: ignore[arg-type]  # just checked
    except HandlerContractError:
        raise
    except Exception as error:
        head, bad = _cut(piece, len(keys))
        head.keys = keys
        return head, bad, piece, error
    piece.keys = keys
    return None


def _refuse_key(step: Step, key: object) -> None:
    if is_coroutine(key):
        refuse_coroutines(step, [key])
    if not isinstance(key, str):
        raise HandlerContractError(
            f"key_by step {step.name!r} returned {key!r:.100}, {a(type(key).__name__)}; return a str, "
            f"the same for all items that have to stay in order"
        )


_RUNNERS: dict[str, Callable[[Step, Piece], _Stopped | None]] = {
    "map": _map,
    "tap": _tap,
    "filter": _filter,
    "flat_map": _flat_map,
    "key_by": _key_by,
}


def _cut(piece: Piece, done: int) -> tuple[Piece, Piece]:
    """Split *piece* into the first *done* items, the one behind them, and (in place) the rest."""
    head = piece.split(done)
    if len(piece.items) == 1:
        bad = piece.like(piece.items)
        bad.since = piece.since
        piece.items, piece.positions, piece.start = [], None if piece.positions is None else [], piece.stop
        piece.keys = None if piece.keys is None else []
        piece.holes = None  # they are counted with the one that failed
        return head, bad
    return head, piece.split(1)


def is_coroutine(value: object) -> bool:
    """Return whether *value* is what calling an async function gives."""
    return type(value) is CoroutineType


def refuse_coroutines(step: Step, results: Iterable[object]) -> None:
    """Raise because the function of *step* returned coroutines, which are closed."""
    for result in results:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    raise HandlerContractError(
        f"{step.kind} step {step.name!r} is a plain function that returned a coroutine, so nothing would await it; "
        f"pass the async function itself"
    )
