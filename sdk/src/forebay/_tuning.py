"""What a program holds to change a run while it goes on, and to see what its controllers do."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from forebay._errors import ForebayError
from forebay._explain import in_order, story
from forebay._steer import Steer
from forebay._types import Bounds, Goal, Limits, LimitsInfo


class Tuning:
    """Changes the bounds and goals of a pipeline or batcher while it runs, and tells what its controllers do.

        tuning = forebay.Tuning()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(orders.run, tuning=tuning))
            ...
            tuning.change("store", max_concurrency=4)

    One run at a time uses it. All methods are plain functions, for tasks of the event loop that the run is in.
    """

    __slots__ = ("_running", "_steers", "_title")

    def __init__(self) -> None:
        self._steers: Sequence[Steer] | None = None
        self._running = False
        self._title = ""

    def change(
        self,
        stage: str,
        /,
        *,
        min_size: int | None = None,
        max_size: int | None = None,
        min_concurrency: int | None = None,
        max_concurrency: int | None = None,
        goal: Goal | None = None,
    ) -> Limits:
        """Change what *stage* may do and what it is steered for; return the limits that hold from now on.

        All of it happens, or nothing: if it raises, the stage goes on as before. Calls in flight are not touched.
        A stage whose control is "fixed" goes to the new bound; another one moves within the new bounds.

        Args:
            stage: Name of the stage, as in the report; for a batcher, its name.
            min_size: Fewest items that a batch may be limited to.
            max_size: Most items in a batch.
            min_concurrency: Fewest calls that the stage may be limited to.
            max_concurrency: Most calls in flight at once.
            goal: What to steer for; `Goal()` is best throughput.

        Raises:
            ForebayError: nothing runs with this `Tuning`, not yet or no more.
            TypeError: a bound is no whole number, or the goal no `Goal`.
            ValueError: there is no such stage, a bound is out of range, or the stage cannot follow a goal.
        """
        steer = self._find(stage)
        named = {
            "min_size": min_size,
            "max_size": max_size,
            "min_concurrency": min_concurrency,
            "max_concurrency": max_concurrency,
        }
        changes = {name: value for name, value in named.items() if value is not None}
        if goal is not None and not isinstance(goal, Goal):  # pyright: ignore[reportUnnecessaryIsInstance]  # who has no checker
            raise TypeError(f"goal must be a Goal, not {goal!r:.100}; write goal=Goal(p99=0.2)")
        if not changes and goal is None:
            raise TypeError(f"change({stage!r}) changes nothing; pass a goal, or one of {', '.join(named)}")
        return steer.change(changes, goal)

    def stages(self) -> list[str]:
        """Return the names of the stages that can be changed.

        Raises:
            ForebayError: nothing runs with this `Tuning`, not yet or no more.
        """
        return [steer.stage for steer in self._live()]

    def limits(self, stage: str, /) -> Limits:
        """Return within which limits *stage* works now.

        Raises:
            ForebayError: nothing runs with this `Tuning`, not yet or no more.
            ValueError: there is no such stage.
        """
        return self._find(stage).limits

    def bounds(self, stage: str, /) -> Bounds:
        """Return between what *stage* may be moved.

        Raises:
            ForebayError: nothing runs with this `Tuning`, not yet or no more.
            ValueError: there is no such stage.
        """
        return self._find(stage).bounds

    def moves(self) -> list[LimitsInfo]:
        """Return the moves so far in the order of time, the last 256 of each stage; after a run, those of the run.

        Raises:
            ForebayError: nothing has run with this `Tuning`.
        """
        return in_order([move for steer in self._known() for move in steer.moves])

    def explain(self) -> str:
        """Return the story so far: every move that is known, one a line, with its reason; after a run, its story.

        Raises:
            ForebayError: nothing has run with this `Tuning`.
        """
        made = sum(steer.made for steer in self._known())
        return story(self._title, self.moves(), made)

    def _known(self) -> Sequence[Steer]:
        if self._steers is None:
            raise ForebayError("nothing has run with this Tuning; pass it on: run(tuning=tuning)")
        return self._steers

    def _live(self) -> Sequence[Steer]:
        steers = self._known()
        if not self._running:
            raise ForebayError(f"{self._title} has ended, so there is nothing to tune; explain() still tells its story")
        return steers

    def _find(self, stage: str) -> Steer:
        steers = self._live()
        found = [steer for steer in steers if steer.stage == stage]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{len(found)} stages are named {stage!r}; pass name= to the stages to tell them apart")
        names = [steer.stage for steer in steers]
        near = get_close_matches(str(stage), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no stage is named {stage!r} (stages: {', '.join(names) or 'none'}){hint}")

    @contextmanager
    def in_use(self, title: str, steers: Sequence[Steer], /) -> Generator[None]:
        """Let the stages that *steers* steer be changed within the block; for forebay itself.

        Args:
            title: What runs.
            steers: One for each stage.
        """
        if self._running:
            raise ForebayError(f"this Tuning is in use by {self._title}; make one for each run")
        self._title, self._steers, self._running = title, tuple(steers), True
        try:
            yield
        finally:
            self._running = False
