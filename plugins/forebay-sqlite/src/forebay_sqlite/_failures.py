"""What SQLite's failures mean to a stage."""

from __future__ import annotations

import sqlite3

from forebay import EngineError

_MEANINGS: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_BUSY: ("transient", "another connection kept it locked"),
    sqlite3.SQLITE_LOCKED: ("transient", "another statement kept a table locked"),
    sqlite3.SQLITE_INTERRUPT: ("transient", "the call was cut off at its deadline"),
    sqlite3.SQLITE_NOMEM: ("transient", "SQLite ran out of memory"),
    sqlite3.SQLITE_PROTOCOL: ("transient", "the write-ahead log could not be locked"),
    sqlite3.SQLITE_FULL: ("dependency", "the disk, or the space allowed to the database, is full"),
    sqlite3.SQLITE_IOERR: ("dependency", "the disk did not read or write"),
    sqlite3.SQLITE_READONLY: ("dependency", "the file cannot be written"),
    sqlite3.SQLITE_PERM: ("dependency", "access is not permitted"),
    sqlite3.SQLITE_CANTOPEN: (
        "dependency",
        "the file cannot be opened; see that its folder exists and may be written",
    ),
    sqlite3.SQLITE_CORRUPT: ("permanent", "the file is damaged"),
    sqlite3.SQLITE_NOTADB: ("permanent", "the file is not an SQLite database"),
}

_OF_ONE_ROW = {
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_RANGE,
}


def primary_code(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary result code, or `None` where the failure is not SQLite's own."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def engine_error(error: sqlite3.Error, file: object, doing: str) -> EngineError:
    """Return what *error* means, in one sentence that names *file* and what was being done."""
    code = primary_code(error)
    category, meaning = _MEANINGS.get(code or 0, ("permanent", "SQLite refused"))
    return EngineError(f"{file}: {meaning}, while {doing} ({error})", category=category)


def is_of_one_row(error: Exception) -> bool:
    """Return whether *error* is about the values of a row, so that other rows may still be written."""
    if isinstance(error, sqlite3.Error):
        code = primary_code(error)
        return code is None or code in _OF_ONE_ROW
    return isinstance(error, (ValueError, TypeError, OverflowError))
