"""How forebay finds the plugin."""

import subprocess
import sys
from pathlib import Path

import pytest

import forebay_sqlite
from forebay.hooks import Plugins
from forebay_sqlite import SqliteDeadLetterStore, SqliteSink, SqliteSource, SqliteStateStore, open_sqlite_sink

pytestmark = pytest.mark.anyio


async def test_everything_is_found_by_name_and_by_url(tmp_path: Path) -> None:
    plugins = Plugins(forebay_sqlite, discover=False)
    url = f"sqlite:///{tmp_path / 'all.db'}"
    async with open_sqlite_sink(url=url, table="people", columns={"id": "INTEGER PRIMARY KEY", "name": "TEXT"}):
        pass

    async with (
        plugins.sources.build(f"{url}?queue=orders&claim_seconds=5&until_empty=true") as source,
        plugins.dead_letter_stores.build(url) as letters,
        plugins.state_stores.build("sqlite", path=tmp_path / "all.db", namespace="billing") as state,
        plugins.sinks.build(f"{url}?table=people&mode=upsert&key=id&columns=id,name&checkpoint=people") as sink,
    ):
        assert isinstance(source, SqliteSource)
        assert (source.queue, source.claim_seconds) == ("orders", 5.0)
        assert isinstance(letters, SqliteDeadLetterStore)
        assert isinstance(state, SqliteStateStore)
        assert state.namespace == "billing"
        assert isinstance(sink, SqliteSink)
        assert (sink.table, sink.checkpoint) == ("people", "people")


def test_the_installed_plugin_is_discovered() -> None:
    plugins = Plugins()

    assert "sqlite" in plugins.sources.names()
    assert "sqlite" not in plugins.broken


def test_importing_it_opens_nothing_and_loads_no_event_loop() -> None:
    program = "import sys, forebay_sqlite; print(*sorted({'asyncio', 'trio'} & set(sys.modules)))"

    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert "trio" not in loaded.stdout
