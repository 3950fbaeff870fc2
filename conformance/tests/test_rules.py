"""Each rule has a check, each check a rule, and each rule a wrong plugin that it catches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import forebay_conformance
from conformance.tests.right_controller import RightController
from conformance.tests.right_others import (
    BAD,
    RightSink,
    open_right_dead_letters,
    open_right_sink,
    open_right_state,
)
from conformance.tests.right_source import open_right_source
from conformance.tests.wrong import Wrong, end_leaks
from conformance.tests.wrong_controllers import WRONG_CONTROLLERS
from conformance.tests.wrong_dead_letters import WRONG_DEAD_LETTER_STORES
from conformance.tests.wrong_others import WRONG_SINKS, WRONG_STATE_STORES
from conformance.tests.wrong_sources import WRONG_SOURCES
from forebay_conformance import KIND_LIST, RULES, Kind, Opener, Traits, kind_named, rules_of, run_check, run_checks
from forebay_conformance._rules import KINDS

WRONG = [
    *WRONG_SOURCES.plugins,
    *WRONG_SINKS.plugins,
    *WRONG_DEAD_LETTER_STORES.plugins,
    *WRONG_STATE_STORES.plugins,
    *WRONG_CONTROLLERS.plugins,
]
RIGHT: dict[str, Opener] = {
    "source": open_right_source,
    "sink": open_right_sink,
    "dead-letter-store": open_right_dead_letters,
    "state-store": open_right_state,
    "controller": RightController,
}


@pytest.fixture(autouse=True)
def ends_leaks() -> Iterator[None]:
    yield
    end_leaks()


async def written(sink: RightSink) -> Sequence[object]:
    return sink.rows


def bad_item(_number: int) -> object:
    return BAD


def traits_for(kind: Kind, **changes: object) -> Traits:
    traits = kind.traits()
    settings: dict[str, object] = {"virtual_time": True, "patience": 3.0}
    if kind.name == "sink":
        settings |= {"written": written, "make_bad_item": bad_item, "large_batch": 2000}
    for name, value in (settings | changes).items():
        setattr(traits, name, value)
    return traits


def test_each_rule_has_a_check_and_each_check_a_rule() -> None:
    proven = [check.rule.id for kind in KIND_LIST.values() for check in kind.checks]

    assert sorted(proven) == sorted(RULES)
    assert list(KIND_LIST) == list(KINDS)


def test_each_rule_has_a_wrong_plugin() -> None:
    caught = {wrong.rule for wrong in WRONG}

    assert caught == set(RULES)


def test_the_kit_uses_only_what_every_plugin_may_use() -> None:
    sources = Path(forebay_conformance.__file__).parent.glob("*.py")

    private = [
        f"{path.name}: {line}"
        for path in sources
        for line in path.read_text("utf-8").splitlines()
        if re.match(r"\s*(from|import) forebay\._", line)
    ]

    assert private == []


def test_rules_read_as_sentences() -> None:
    for rule in RULES.values():
        assert not rule.sentence.endswith("."), rule.id
        assert rule.reason.endswith("."), rule.id
        assert rule.id == f"{rule.kind}:{rule.name}"


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of source, sink, .*, not 'sauce'"):
        rules_of("sauce")
    with pytest.raises(ValueError, match=r"kind must be one of source, sink, .*, not 'sauce'"):
        kind_named("sauce")


@pytest.mark.parametrize("kind", list(RIGHT))
def test_a_right_plugin_breaks_no_rule(kind: str) -> None:
    results = list(run_checks(kind, RIGHT[kind], traits_for(KIND_LIST[kind])))

    assert [str(result.failure) for result in results if result.failure is not None] == []
    off = {result.rule.name for result in results if result.status == "off"}
    assert off == {"no-secrets"} & {rule.name for rule in rules_of(kind)}


def _named(wrong: Any) -> str:
    return f"{wrong.rule}-{wrong.name}"


@pytest.mark.parametrize("wrong", WRONG, ids=_named)
def test_a_wrong_plugin_is_caught_by_its_rule_and_no_other(wrong: Wrong) -> None:
    kind = KIND_LIST[RULES[wrong.rule].kind]
    traits = traits_for(kind, **wrong.traits)

    results = list(run_checks(kind.name, wrong.opener, traits, backends=["trio"]))

    failed = {result.rule.name for result in results if result.status == "failed"}
    assert RULES[wrong.rule].name in failed
    assert failed <= {RULES[wrong.rule].name, *wrong.also}


@pytest.mark.parametrize("wrong", WRONG, ids=_named)
def test_a_wrong_plugin_is_caught_on_asyncio_too(wrong: Wrong) -> None:
    kind = KIND_LIST[RULES[wrong.rule].kind]
    check = next(check for check in kind.checks if check.rule.id == wrong.rule)

    result = run_check(check, wrong.opener, traits_for(kind, **wrong.traits), "asyncio")

    assert result.status == "failed"
    assert result.failure is not None
    assert result.failure.rule.id == wrong.rule
    assert len(str(result.failure).splitlines()) == 5
