"""Checks run without pytest, also inside an event loop that is running."""

from __future__ import annotations

import pytest

from conformance.tests.right_others import open_right_state
from forebay_conformance import KIND_LIST, StateStoreTraits, run_checks

pytestmark = pytest.mark.anyio


def traits(**changes: object) -> StateStoreTraits:
    made = StateStoreTraits()
    made.virtual_time = True
    for name, value in changes.items():
        setattr(made, name, value)
    return made


async def test_a_check_is_a_plain_async_function() -> None:
    for check in KIND_LIST["state-store"].checks[:4]:
        await check(open_right_state, traits())


def test_results_name_what_does_not_apply_and_why() -> None:
    results = run_checks("state-store", open_right_state, traits(supports_ttl=False), backends=["trio"])

    off = {result.rule.name: result.off for result in results if result.status == "off"}
    assert off == {
        "ttl": "supports_ttl: off",
        "ttl-replaced": "supports_ttl: off",
        "no-secrets": "has_secret: off",
    }


def test_both_backends_are_run_by_default() -> None:
    results = list(run_checks("state-store", open_right_state, traits()))

    assert [result.backend for result in results] == ["asyncio"] * 29 + ["trio"] * 29
