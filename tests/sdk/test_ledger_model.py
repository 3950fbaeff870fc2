"""The account of one source against a model: several partitions and epochs, items that come again, failed sends."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forebay._account import FeedLedger, Hold
from forebay._ledger import Ledger, given_back
from forebay._ranges import Ranges
from forebay._types import Chunk, Redelivery

PARTITIONS = 3


class Account(RuleBasedStateMachine):
    """A source of numbered items that hands them out, takes settlements and loses some of the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(on_final=self._ignore_final, on_empty=self._ignore_empty)
        self.feed = FeedLedger("numbers")
        self.next_offset = [0] * PARTITIONS
        self.epochs = [1] * PARTITIONS
        self.waiting: list[list[int]] = [[] for _ in range(PARTITIONS)]
        """By partition: items that went back and may be handed out again."""
        self.in_hand: dict[int, tuple[int, int, int]] = {}
        """Position to partition, epoch and offset."""
        self.final: set[tuple[int, int]] = set()
        """Partition and offset of what has its outcome."""
        self.untold: set[tuple[int, int, int]] = set()
        """Partition, epoch and offset of what the source has not been told of, as it knows."""
        self.untold_retries = 0
        self.marks = [0] * PARTITIONS

    def _ignore_final(self, hold: Hold, count: int) -> None: ...

    def _ignore_empty(self) -> None: ...

    @initialize()
    def start(self) -> None:
        self.fetch(0, 3)

    @rule(partition=st.integers(0, PARTITIONS - 1), count=st.integers(1, 6))
    def fetch(self, partition: int, count: int) -> None:
        """Hand out new items."""
        first = self.next_offset[partition]
        self.next_offset[partition] += count
        self._register(partition, range(first, first + count))

    @rule(partition=st.integers(0, PARTITIONS - 1), data=st.data())
    def fetch_again(self, partition: int, data: st.DataObject) -> None:
        """Hand out some of what went back, in any order, with new items mixed in."""
        waiting = self.waiting[partition]
        if not waiting:
            return
        again = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
        self.waiting[partition] = [offset for offset in waiting if offset not in again]
        if data.draw(st.booleans()):
            again.append(self.next_offset[partition])
            self.next_offset[partition] += 1
        self._register(partition, data.draw(st.permutations(again)))

    def _register(self, partition: int, offsets: range | list[int]) -> None:
        epoch = self.epochs[partition]
        hold = self.ledger.register(len(offsets), self.feed, 0.0, Chunk(list(offsets), offsets, partition, epoch))
        for index, offset in enumerate(offsets):
            self.in_hand[hold.base + index] = (partition, epoch, offset)

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def raise_epoch(self, partition: int) -> None:
        """The partition was taken away and came back."""
        self.epochs[partition] += 1

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data(), verdict=st.sampled_from(["done", "filtered", "dead", "dropped"]))
    def settle(self, data: st.DataObject, verdict: str) -> None:
        """Give some items their outcome."""
        positions = data.draw(st.lists(st.sampled_from(sorted(self.in_hand)), min_size=1, unique=True))
        self.ledger.settle_list(positions, verdict=verdict)
        for position in positions:
            partition, epoch, offset = self.in_hand.pop(position)
            self.final.add((partition, offset))
            self.untold.add((partition, epoch, offset))

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data())
    def send_back(self, data: st.DataObject) -> None:
        """Return one item with its failure."""
        position = data.draw(st.sampled_from(sorted(self.in_hand)))
        partition, epoch, offset = self.in_hand.pop(position)
        self.feed.redeliver(Redelivery(offset, 1, partition=partition, epoch=epoch))
        self.ledger.settle(position, position + 1, verdict="redelivered")
        self.waiting[partition].append(offset)
        self.untold_retries += 1

    @rule(arrives=st.booleans())
    def tell(self, arrives: bool) -> None:
        """Make a statement; the source may not get it."""
        statement = self.feed.statement()
        told = [(s.partition, s.epoch, offset) for s in statement for offset in s.offsets]
        assert sorted(told, key=str) == sorted(self.untold, key=str)
        assert sum(len(s.retries) for s in statement) == self.untold_retries
        for settlement in statement:
            assert settlement.mark is not None
            assert settlement.mark >= self.marks[settlement.partition], "the mark went back"
            self.marks[settlement.partition] = settlement.mark
            below = {(settlement.partition, offset) for offset in range(settlement.mark)}
            assert below <= self.final, "the mark passed an offset that is not final"
            assert settlement.mark == self._largest_mark(settlement.partition), "the mark is not as far as it can be"
        if arrives:
            self.feed.told()
            self.untold.clear()
            self.untold_retries = 0

    def _largest_mark(self, partition: int) -> int:
        mark = 0
        while (partition, mark) in self.final:
            mark += 1
        return mark

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """What would go back if the run ended now is what is in hand; the ledger stays as it is."""
        running = Ranges()
        at_work = data.draw(st.sets(st.sampled_from(sorted(self.in_hand)))) if self.in_hand else set[int]()
        for position in at_work:
            running.add(position, position + 1)

        back = given_back(self.ledger.holds(), running).get(self.feed, [])

        expected = {(*self.in_hand[position], position in at_work) for position in self.in_hand}
        got = [(d.partition, d.epoch, offset, d.maybe_done) for d in back for offset in d.offsets]
        assert sorted(got, key=str) == sorted(expected, key=str)

    @invariant()
    def counts_agree(self) -> None:
        assert self.ledger.in_hand == len(self.in_hand)
        assert self.ledger.settled_twice == 0
        assert self.feed.unsent == len(self.untold) + self.untold_retries
        assert self.feed.seen == self.ledger.statistics().seen
        if self.in_hand:
            assert self.ledger.span() == self.ledger.next - min(self.in_hand)


TestAccount = Account.TestCase
TestAccount.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
