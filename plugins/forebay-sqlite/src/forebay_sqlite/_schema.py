"""Tables of ours, made and brought up to date when they are first used.

`PRAGMA user_version` belongs to the program whose database this is, so versions are kept in a table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from attrs import frozen

from forebay import EngineError
from forebay_sqlite._connection import Database


@frozen
class Schema:
    """Tables that belong together, by one name."""

    name: str
    steps: Sequence[Sequence[str]]
    """Statements from each version to the next; the first step makes version 1. What was released is never changed."""


async def prepare(database: Database, schema: Schema) -> None:
    """Make sure that *database* has *schema*; any number of processes may do so at once.

    Raises:
        EngineError: the tables were made by a newer version of this package.
    """
    if await database.read(f"looking for the tables of {schema.name}", lambda c: _version(c, schema)) < len(
        schema.steps
    ):
        await database.write(f"making the tables of {schema.name}", lambda c: _upgrade(c, schema))


def _version(connection: sqlite3.Connection, schema: Schema) -> int:
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'forebay_schema'").fetchone() is None:
        return 0
    row: tuple[int] | None = connection.execute(
        "SELECT version FROM forebay_schema WHERE name = ?", (schema.name,)
    ).fetchone()
    version = row[0] if row else 0
    if version > len(schema.steps):
        raise EngineError(
            f"the tables of {schema.name} have version {version} and this forebay-sqlite knows {len(schema.steps)}; "
            "install the newer one",
            category="permanent",
        )
    return version


def _upgrade(connection: sqlite3.Connection, schema: Schema) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS forebay_schema (name TEXT PRIMARY KEY, version INTEGER NOT NULL)")
    for step in schema.steps[_version(connection, schema) :]:
        for statement in step:
            connection.execute(statement)
    connection.execute(
        "INSERT INTO forebay_schema VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET version = excluded.version",
        (schema.name, len(schema.steps)),
    )
