"""What every package of the workspace carries, so that its wheel does too (`make try-wheels` looks into those)."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]
MEMBERS = sorted(folder for pattern in UV["workspace"]["members"] for folder in ROOT.glob(pattern))


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_package_carries_the_licence_of_the_repository(member: Path) -> None:
    # A copy: a build backend takes nothing from above the package's folder, and an sdist would keep a link as a link.
    licence = member / "LICENSE"

    assert not licence.is_symlink()
    assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_package_is_typed(member: Path) -> None:
    assert [file.parent.parent for file in member.glob("src/*/py.typed")] == [member / "src"]


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_package_is_known_to_the_workspace_by_its_folder(member: Path) -> None:
    name = tomllib.loads((member / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]

    assert name in UV["sources"]
    assert name == member.name or member.parent == ROOT
