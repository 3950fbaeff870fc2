"""The lines that pytest prints under its header: which rules are checked, and which capabilities are off."""

from __future__ import annotations

import pytest
from attrs import define, field

from forebay_conformance._kinds import Kind
from forebay_conformance._rules import RULES_VERSION
from forebay_conformance._traits import Traits

_NAME = "forebay-conformance header"


@define
class Header:
    """Counts suites while they are collected.

    A suite registers it, so that it costs nothing in programs that have no suite: as an entry point it would be
    imported, and forebay with it, at the start of every pytest run in the environment.
    """

    suites: dict[str, str] = field(factory=dict[str, str])

    @classmethod
    def of(cls, config: pytest.Config, /) -> Header:
        """Return the header of this run."""
        known: object = config.pluginmanager.get_plugin(_NAME)
        if isinstance(known, Header):
            return known
        header = cls()
        config.pluginmanager.register(header, _NAME)
        return header

    def count(self, suite: str, kind: Kind, traits: Traits, /) -> None:
        """Note what *suite* checks."""
        off: dict[str, int] = {}
        for check in kind.checks:
            reason = check.off(traits)
            if reason is not None:
                off[reason] = off.get(reason, 0) + 1
        checked = len(kind.checks) - sum(off.values())
        skipped = ", ".join(f"{reason} ({count})" for reason, count in off.items())
        line = f"  {suite}: {checked} of {len(kind.checks)} rules for a {kind.words}"
        self.suites[suite] = f"{line}; {skipped}" if skipped else line

    def pytest_report_collectionfinish(self) -> list[str]:
        """Return the lines."""
        return [f"forebay-conformance: rules {RULES_VERSION}", *self.suites.values()]
