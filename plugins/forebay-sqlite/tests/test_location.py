"""Paths, URLs and names."""

import sqlite3
from pathlib import Path

import pytest

from forebay_sqlite._location import file_of, names_of, positive, quoted


def test_a_url_with_three_slashes_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert file_of("open_x", None, "sqlite:///data/my%20orders.db") == tmp_path / "data" / "my orders.db"


def test_a_url_with_four_slashes_is_absolute() -> None:
    assert file_of("open_x", None, "sqlite:////var/lib/orders.db") == Path("/var/lib/orders.db")


def test_a_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert file_of("open_x", "orders.db", None) == tmp_path / "orders.db"


@pytest.mark.parametrize(("path", "url"), [(None, None), ("a.db", "sqlite:///a.db")])
def test_exactly_one_of_path_and_url_is_given(path: str | None, url: str | None) -> None:
    with pytest.raises(ValueError, match=r"open_x\(\) takes either path= or url=, not (neither|both)"):
        file_of("open_x", path, url)


@pytest.mark.parametrize("url", ["redis:///a.db", "sqlite://a.db", "a.db", "sqlite:///a.db?queue=orders"])
def test_a_url_that_is_not_one_of_ours_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url "):
        file_of("open_x", None, url)


@pytest.mark.parametrize("path", ["", ":memory:", "file::memory:?cache=shared"])
def test_a_database_in_memory_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="keeps its data in a file"):
        file_of("open_x", path, None)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_seconds_must_be_positive(seconds: float) -> None:
    with pytest.raises(ValueError, match="claim_seconds must be more than 0"):
        positive("claim_seconds", seconds)


def test_names_in_text_are_separated_by_commas() -> None:
    assert names_of("id, name,") == ("id", "name")
    assert names_of(["a,b"]) == ("a,b",)


@pytest.mark.parametrize("name", ["order", 'say "hi"', "drop table x; --", "größe", "select"])
def test_any_name_can_be_a_column(name: str) -> None:
    connection = sqlite3.connect(":memory:")

    connection.execute(f"CREATE TABLE t ({quoted(name)})")

    assert connection.execute("SELECT name FROM pragma_table_info('t')").fetchall() == [(name,)]
    connection.close()


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_name_that_sql_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must have a name"):
        quoted(name)
