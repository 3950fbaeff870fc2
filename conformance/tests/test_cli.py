"""The command, as a stranger uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forebay_conformance import RULES
from forebay_conformance._cli import main

RIGHT = "conformance.tests.right_others:open_right_state"
FAST = ["--set", "virtual_time=true", "--backend", "trio"]


def test_a_right_plugin_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", "state-store", RIGHT, *FAST])

    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith(f"{RIGHT} against the rules for a state store, version 0.2, on trio\n")
    assert "\npassed  trio     state-store:cas-race\n" in out
    assert out.endswith("28 passed, 0 failed, 1 do not apply\n")


def test_a_wrong_plugin_ends_with_1_and_its_five_lines(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", "state-store", "conformance.tests.wrong_others:open_wrong_state", *FAST])

    out = capsys.readouterr().out
    assert code == 1
    assert "failed on trio\nstate-store:scan-order: scan() yields keys in ascending order, each once.\n  did:" in out
    assert out.endswith("27 passed, 1 failed, 1 do not apply\n")


def test_json_holds_every_result(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", "state-store", "conformance.tests.wrong_others:open_wrong_state", *FAST, "--json"])

    document = json.loads(capsys.readouterr().out)
    assert code == 1
    assert document["kind"] == "state-store"
    assert len(document["results"]) == 29
    (failed,) = [result for result in document["results"] if result["status"] == "failed"]
    assert failed["rule"] == "state-store:scan-order"
    assert failed["page"] == "docs/reference/conformance/state-store.md#scan-order"
    assert failed["did"].startswith("open a store; put_many(")


def test_a_suite_class_brings_its_traits(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", "state-store", "conformance.tests.test_builtins:TestMemoryStateStore", "--backend", "asyncio"])

    assert code == 0
    assert "28 passed, 0 failed" in capsys.readouterr().out


def test_an_opener_alone_leaves_out_what_needs_a_suite(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "sink", "conformance.tests.right_others:open_right_sink", *FAST])

    assert "off     trio     sink:writes-all  (reads_back: off)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nothing"],
            "MODULE:NAME must name a module and something in it, such as my_plugin:open_source, not 'nothing'",
        ),
        (["no_such_module:x"], "'no_such_module' cannot be imported: ModuleNotFoundError"),
        (["conformance.tests.wrong:open_nothing"], "'conformance.tests.wrong' has no 'open_nothing'; it has "),
        (["conformance.tests.wrong:LEAKED_FILES"], "must be a function that returns an async context manager that"),
        (["conformance.tests.wrong:WrongList"], "is a class and no suite for a state store"),
        ([RIGHT, "--set", "supports_tll=False"], "no trait is named 'supports_tll' (there are: "),
        ([RIGHT, "--set", "patience=soon"], "patience must be a float, not 'soon'"),
        ([RIGHT, "--set", "supports_ttl=1"], "supports_ttl must be a bool, not '1'"),
    ],
)
def test_what_cannot_be_run_ends_with_2_and_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", "state-store", *arguments])

    assert code == 2
    assert message in capsys.readouterr().err


def test_rules_lists_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["rules"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert [line for line in lines if not line.startswith(" ")] == list(RULES)


def test_rules_of_one_kind_alone(capsys: pytest.CaptureFixture[str]) -> None:
    main(["rules", "sink"])

    assert {line.split(":")[0] for line in capsys.readouterr().out.splitlines()[::2]} == {"sink"}


def test_markdown_prints_the_pages(capsys: pytest.CaptureFixture[str]) -> None:
    main(["rules", "sink", "--markdown"])

    assert capsys.readouterr().out.startswith("# Rules for a sink\n")


def test_the_committed_pages_are_those_of_the_rules(tmp_path: Path) -> None:
    main(["rules", "--into", str(tmp_path)])

    committed = Path(__file__).parents[2] / "docs/reference/conformance"
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text("utf-8") for path in committed.iterdir()}, (
        "run: forebay-conformance rules --into docs/reference/conformance"
    )
