"""A check is a plain async function that proves one rule on one plugin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from attrs import define, field, frozen

from forebay_conformance._failure import ConformanceFailure, described
from forebay_conformance._probe import Opener, Probe
from forebay_conformance._rules import RULES, Rule
from forebay_conformance._traits import Traits

ProbeT = TypeVar("ProbeT", bound=Probe[Any])  # Any: a check names the probe that it wants


@frozen
class Check(Generic[ProbeT]):
    """Proves one rule; call it with an opener and traits, from a test, a script or a notebook."""

    rule: Rule
    needs: Sequence[str]
    """Traits that must be on for the rule to apply."""
    probe: type[ProbeT]
    body: Callable[[ProbeT], Awaitable[None]]

    def off(self, traits: Traits, /) -> str | None:
        """Return why the rule does not apply to a plugin with *traits*, or `None` when it does."""
        missing = [need for need in self.needs if not getattr(traits, need)]
        return f"{', '.join(missing)}: off" if missing else None

    async def __call__(self, opener: Opener, traits: Traits, /) -> None:
        """Check the plugin that *opener* opens.

        Raises:
            ConformanceFailure: the plugin broke the rule.
        """
        probe = self.probe(opener, traits, self.rule)
        try:
            await self.body(probe)
        except Exception as error:
            raise_bare(probe, error)


def raise_bare(probe: Probe[Any], error: Exception, /) -> None:
    """Raise the failure inside *error*, or turn what the plugin raised on its own into one."""
    found = next((leaf for leaf in leaves(error) if isinstance(leaf, ConformanceFailure)), None)
    if found is not None:
        raise found from found.__cause__
    first = leaves(error)[0]
    probe.fail(expected="the plugin to open and close without an exception", got=described(first), cause=first)


def leaves(error: BaseException, /) -> list[BaseException]:
    """Return *error* alone, or the exceptions inside a group of any depth."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    group = cast("BaseExceptionGroup[BaseException]", error)  # isinstance tells pyright nothing of what is inside
    return [leaf for each in group.exceptions for leaf in leaves(each)]


@define
class CheckList(Generic[ProbeT]):
    """The checks of one kind of plugin."""

    kind: str
    probe: type[ProbeT]
    checks: dict[str, Check[ProbeT]] = field(factory=dict[str, Any])

    def proves(
        self, name: str, /, *, needs: Sequence[str] = ()
    ) -> Callable[[Callable[[ProbeT], Awaitable[None]]], Check[ProbeT]]:
        """Make a function the check of the rule *name* of this kind."""
        rule_id = f"{self.kind}:{name}"
        if rule_id not in RULES:
            raise ValueError(f"no rule has the id {rule_id!r}; add it to _rules.py")
        if rule_id in self.checks:
            raise ValueError(f"two functions prove {rule_id!r}; give each its own rule")

        def register(body: Callable[[ProbeT], Awaitable[None]]) -> Check[ProbeT]:
            check = Check(RULES[rule_id], tuple(needs), self.probe, body)
            self.checks[rule_id] = check
            return check

        return register
