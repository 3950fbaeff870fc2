"""The page of hooks and the hooks are held to each other, and its examples run."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import anyio
import pytest

import forebay.hooks

PAGE = (Path(__file__).parents[2] / "docs/reference/hooks.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SIGNATURES = [
    f"{name}{inspect.signature(function)}".replace("'", "")
    for name, function in vars(forebay.hooks).items()
    if hasattr(function, "forebay_spec")
]


def test_there_are_hooks_to_compare() -> None:
    assert len(SIGNATURES) == 24


def test_every_hook_has_a_heading_that_is_its_signature_in_the_order_of_the_module() -> None:
    assert HEADINGS == SIGNATURES


def test_every_kind_has_a_hook() -> None:
    kinds = forebay.hooks.Plugins(discover=False).kinds()

    assert kinds == [match[1] for line in SIGNATURES if (match := re.match(r"forebay_register_(\w+)", line))]


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_of_the_page_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "example"}

    exec(code, names)
    if "main" in names:
        anyio.run(names["main"])

    shown = capsys.readouterr().out
    expected = (
        "['forebay', 'audit']\n" if "Audit" in code else "['list://here', 'list://here']\n" if "Lists" in code else ""
    )
    assert shown == expected
