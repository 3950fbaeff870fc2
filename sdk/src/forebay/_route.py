"""The way of items between two stages: inline steps, then a queue, several branches, or the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Protocol

from attrs import define, field

from forebay._batcher import Family, Piece
from forebay._buffer import Buffer
from forebay._ledger import Ledger
from forebay._overflow import Overflow
from forebay._steps import Step, Stop, run_steps
from forebay._watch import SLICE_SECONDS


class Mishap(Protocol):
    """Decides about an item that failed in an inline step."""

    def __call__(self, route: Route, stop: Stop, /) -> Awaitable[Piece | None]:
        """Return the item after a later attempt succeeded; `None` when it has had its outcome."""
        ...


@define(eq=False)
class Route:
    """Inline steps and what stands behind them."""

    ledger: Ledger
    leaves: tuple[int, ...]
    """Branches that the items are on their way to."""
    mishap: Mishap
    steps: tuple[Step, ...] = ()
    inbox: Buffer[Piece] | None = None
    max_size: int = 0
    """Most items that the stage behind takes at once."""
    branches: tuple[Route, ...] = ()
    overflow: Overflow | None = None
    """Lets items into the queue where that leaves some out instead of waiting for room."""
    clock: Callable[[], float] = field(kw_only=True)

    async def send(self, piece: Piece, first: int = 0) -> None:
        """Run the steps from *first* on over *piece* and pass it on, waiting for room."""
        stop = run_steps(self.steps, first, piece)
        if stop is None:
            await self.deliver(piece)
        else:
            await self.mend(stop)

    def send_nowait(self, piece: Piece) -> Sequence[Piece | Stop]:
        """Send *piece* on as far as that needs no waiting; return what is left: pieces to `send`, a stop to `mend`.

        It goes batch by batch, so that the items as they came can be freed while they are warm.
        """
        inbox = self.inbox
        if inbox is None or inbox.waiting_putters or inbox.weigh is not None:
            return [piece]
        since = self.clock()
        ends = perf_counter() + SLICE_SECONDS
        rest: Piece | None = piece
        while rest is not None:
            if not inbox.fits(min(len(rest.items), self.max_size), 0) or perf_counter() > ends:
                return [rest]
            if len(rest.items) > self.max_size:
                piece = rest.split(self.max_size)
            else:
                piece, rest = rest, None
            stop = run_steps(self.steps, 0, piece)
            if stop is not None:
                return [stop] if rest is None else [stop, rest]
            if not piece.items:
                self.settle(piece)
                continue
            piece.since = since
            self.push(piece)
        return ()

    def push(self, piece: Piece) -> None:
        """Put *piece*, which has been through the steps, into the queue, whether there is room or not."""
        assert self.inbox is not None
        while len(piece.items) > self.max_size:
            part = piece.split(self.max_size)
            self.inbox.push(part, self.inbox.weight(part))
        self.inbox.push(piece, self.inbox.weight(piece))

    async def mend(self, stop: Stop) -> None:
        """Go on after a step has failed: first what came before the item, then the item, then the rest."""
        while True:
            await self.send(stop.head, stop.step + 1)
            mended = await self.mishap(self, stop)
            if mended is not None:
                await self.send(mended, stop.step + 1)
            piece = stop.tail
            again = run_steps(self.steps, stop.step, piece)
            if again is None:
                await self.deliver(piece)
                return
            stop = again

    async def deliver(self, piece: Piece) -> None:
        """Pass on *piece*, which has been through the steps."""
        if not piece.items:
            self.settle(piece)
        elif self.inbox is not None:
            await self._queue(self.inbox, piece)
        elif self.branches:
            if piece.family is not None:
                piece.family.scattered(piece.listed())  # each branch may cut where it likes
            for branch in self.branches:
                copy = piece.like(piece.items)
                copy.family = None if piece.family is None else Family(self.ledger, branch.leaves)
                await branch.send(copy)
        else:
            self.finish([piece])

    async def _queue(self, inbox: Buffer[Piece], piece: Piece) -> None:
        piece.since = self.clock()
        if self.overflow is not None:
            self.overflow.push(piece, self.max_size)
            return
        while len(piece.items) > self.max_size:
            await inbox.put(piece.split(self.max_size))
        await inbox.put(piece)

    def finish(self, pieces: Sequence[Piece]) -> None:
        """Settle *pieces*: they are done."""
        for piece in pieces:
            self.settle(piece)

    def settle(self, piece: Piece) -> None:
        """Make the positions of *piece* final."""
        ledger = self.ledger
        if piece.positions is not None:
            for leaf in self.leaves:
                ledger.settle_list(piece.positions, leaf)
            return
        if piece.holes and ledger.lost_holds:  # some may be final already, as lost
            ledger.settle_list([hole for hole in piece.holes if ledger.is_open(hole)], self.leaves[0], "filtered")
            piece.positions = piece.listed()
            self.settle(piece)
            return
        for leaf in self.leaves:
            ledger.settle(piece.start, piece.stop, leaf)
        if piece.holes and ledger.leaves == 1:
            ledger.recount("filtered", len(piece.holes))

    def listed(self, piece: Piece) -> Piece:
        """Turn *piece* into one that lists its positions; what was filtered out of it becomes final."""
        if piece.positions is None:
            holes = piece.holes
            piece.positions = piece.listed()
            piece.holes = None
            if holes:
                self.settle_positions(holes, "filtered")
        return piece

    def settle_positions(self, positions: Sequence[int], verdict: str) -> None:
        """Make *positions* final with *verdict*."""
        for leaf in self.leaves:
            self.ledger.settle_list(positions, leaf, verdict)

    # --- What the steps call --------------------------------------------------------------------

    def filter_out(self, piece: Piece, dropped: list[int]) -> None:
        """Settle the items at the indexes *dropped* of *piece*, which lists its positions."""
        positions = piece.listed()
        final = (
            [positions[index] for index in dropped] if piece.family is None else piece.family.gone(positions, dropped)
        )
        if final:
            self.settle_positions(final, "filtered")

    def become_parents(self, piece: Piece, sizes: list[int]) -> None:
        """The items of *piece* are about to be replaced by so many children each, at least one."""
        self.listed(piece)
        if piece.family is None:
            piece.family = Family(self.ledger, self.leaves)
        piece.family.born(piece.listed(), sizes)
