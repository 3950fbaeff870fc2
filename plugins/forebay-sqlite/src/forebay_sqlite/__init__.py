"""SQLite for forebay: a durable source, sink, dead-letter store and state store in one file."""

from forebay.abc import DeadLetterStore, Sink, Source, StateStore
from forebay.hooks import Registry, hookimpl
from forebay_sqlite._checkpoint import Checkpoint as Checkpoint
from forebay_sqlite._checkpoint import open_sqlite_checkpoint as open_sqlite_checkpoint
from forebay_sqlite._checkpointed import CheckpointedSource as CheckpointedSource
from forebay_sqlite._checkpointed import open_checkpointed as open_checkpointed
from forebay_sqlite._dead_letters import SqliteDeadLetterStore as SqliteDeadLetterStore
from forebay_sqlite._dead_letters import open_sqlite_dead_letters as open_sqlite_dead_letters
from forebay_sqlite._offsets import OffsetSet as OffsetSet
from forebay_sqlite._queue import SqliteQueue as SqliteQueue
from forebay_sqlite._queue import open_sqlite_queue as open_sqlite_queue
from forebay_sqlite._sink import SqliteSink as SqliteSink
from forebay_sqlite._sink import open_sqlite_sink as open_sqlite_sink
from forebay_sqlite._source import SqliteSource as SqliteSource
from forebay_sqlite._source import open_sqlite_source as open_sqlite_source
from forebay_sqlite._state import SqliteStateStore as SqliteStateStore
from forebay_sqlite._state import open_sqlite_state as open_sqlite_state
from forebay_sqlite._statement import Mode as Mode
from forebay_sqlite._statement import Row as Row


@hookimpl
def forebay_register_sources(register: Registry[Source[object]]) -> None:
    """Register the durable queue: `sqlite:///orders.db?queue=orders`."""
    register("sqlite", open_sqlite_source, schemes=("sqlite",))


@hookimpl
def forebay_register_sinks(register: Registry[Sink[Row]]) -> None:
    """Register the table: `sqlite:///app.db?table=orders`."""
    register("sqlite", open_sqlite_sink, schemes=("sqlite",))


@hookimpl
def forebay_register_dead_letter_stores(register: Registry[DeadLetterStore]) -> None:
    """Register the dead letters: `sqlite:///app.db`."""
    register("sqlite", open_sqlite_dead_letters, schemes=("sqlite",))


@hookimpl
def forebay_register_state_stores(register: Registry[StateStore]) -> None:
    """Register the state: `sqlite:///app.db?namespace=billing`."""
    register("sqlite", open_sqlite_state, schemes=("sqlite",))
