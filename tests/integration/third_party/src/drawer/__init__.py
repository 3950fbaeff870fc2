"""Folders of files for forebay: a source, a sink and a dead-letter store."""

from drawer._letters import DrawerDeadLetters as DrawerDeadLetters
from drawer._letters import open_drawer_letters as open_drawer_letters
from drawer._sink import DrawerSink as DrawerSink
from drawer._sink import open_drawer_sink as open_drawer_sink
from drawer._source import DrawerSource as DrawerSource
from drawer._source import open_drawer_source as open_drawer_source
from forebay.abc import DeadLetterStore, Sink, Source
from forebay.hooks import Registry, hookimpl


@hookimpl
def forebay_register_sources(register: Registry[Source[object]]) -> None:
    """Register the files of a folder: `drawer:///inbox?suffix=.json`."""
    register("drawer", open_drawer_source, schemes=("drawer",))


@hookimpl
def forebay_register_sinks(register: Registry[Sink[object]]) -> None:
    """Register a file for each item: `drawer:///outbox`."""
    register("drawer", open_drawer_sink, schemes=("drawer",))


@hookimpl
def forebay_register_dead_letter_stores(register: Registry[DeadLetterStore]) -> None:
    """Register a file of dead letters: `drawer:///failed`."""
    register("drawer", open_drawer_letters, schemes=("drawer",))
