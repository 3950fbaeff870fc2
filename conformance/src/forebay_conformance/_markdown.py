"""The pages of the rules, made from the rules."""

from __future__ import annotations

from collections.abc import Mapping

from forebay_conformance._kinds import KIND_LIST, Kind
from forebay_conformance._rules import RULES_VERSION, Rule


def pages() -> Mapping[str, str]:
    """Return the text of each page by its file name."""
    return {"index.md": _index(), **{f"{kind.name}.md": _page(kind) for kind in KIND_LIST.values()}}


def _index() -> str:
    lines = [
        "# Rules for plugins",
        "",
        f"Version {RULES_VERSION} of the rules.",
        "`forebay-conformance rules --into docs/reference/conformance` writes these pages.",
        "",
        "| Plugin | Rules |",
        "| --- | --- |",
        *[f"| [{kind.words}]({kind.name}.md) | {len(kind.checks)} |" for kind in KIND_LIST.values()],
    ]
    return "\n".join(lines) + "\n"


def _page(kind: Kind) -> str:
    head = [
        f"# Rules for a {kind.words}",
        "",
        f"Version {RULES_VERSION} of the rules.",
        f"A suite defines `{kind.opener}`, which returns {kind.promise}.",
        "",
    ]
    return "\n".join([*head, ""]) + "\n".join(_entry(check.rule, list(check.needs)) for check in kind.checks)


def _entry(rule: Rule, needs: list[str]) -> str:
    reason = rule.reason.replace(". ", ".\n")  # one sentence on each line
    lines = [f"## {rule.name}", "", f"{rule.sentence}.", "", f"Why: {reason}", ""]
    if needs:
        lines += [f"Applies with {' and '.join(f'`{need}`' for need in needs)}.", ""]
    return "\n".join([*lines, f"`{rule.id}`, since {rule.since}", ""])
