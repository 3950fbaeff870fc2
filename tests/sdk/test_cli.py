"""The `forebay` command, with packages installed on disk."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from forebay import Summary
from forebay._cli import main
from forebay.abc import Limits, LimitsInfo, Quantiles

Install = Callable[[str, str], None]

STEEL = """
    from contextlib import asynccontextmanager
    from forebay.hooks import hookimpl

    @asynccontextmanager
    async def open_it(*, url=""):
        yield url

    @hookimpl
    def forebay_register_sinks(register):
        register("steel", open_it, schemes=("steel", "steels"))

    @hookimpl
    def forebay_batch_done(info): ...
"""

COMMAND = """
    from forebay.hooks import hookimpl

    def greet(parser):
        '''Say hello.

        More about it.
        '''
        parser.add_argument("who")
        return lambda parsed: {result}

    @hookimpl
    def forebay_register_cli_commands(register):
        register("greet", greet)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with an entry point into a folder on the path, without the plugins of this environment."""
    monkeypatch.setenv("FOREBAY_DISABLE_PLUGINS", ",".join(point.name for point in entry_points(group="forebay")))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def install(name: str, source: str) -> None:
        module = f"pkg_{name}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pkg-{name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[forebay]\n{name} = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()

    return install


def test_plugins_shows_package_names_schemes_and_hooks(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("steel", STEEL)

    code = main(["plugins"])

    shown = capsys.readouterr().out
    assert code == 0
    assert f"forebay {version('forebay')}, hooks version 1\n" in shown
    assert f"\nforebay (package forebay {version('forebay')})\n" in shown
    assert "  supplies  dead_letter_stores: memory memory://\n" in shown
    assert (
        "\nsteel (package pkg-steel 1.2)\n"
        "  supplies  sinks: steel steel:// steels://\n"
        "  hooks     forebay_batch_done\n"
        "            forebay_register_sinks\n"
    ) in shown


def test_plugins_shows_what_is_left_out_and_disabled_within_80_columns_and_exits_1(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("steel", "raise RuntimeError('the native library is missing; install libsteel 4 or newer, then try again')")
    install("a-long-name", "import no_such_client")
    disabled = ",".join(point.name for point in entry_points(group="forebay") if not point.value.startswith("pkg_"))
    monkeypatch.setenv("FOREBAY_DISABLE_PLUGINS", f"{disabled},lead")

    code = main(["plugins"])

    shown = capsys.readouterr().out
    assert code == 1
    assert (
        "  steel     RuntimeError: the native library is missing; install libsteel 4 or\n"
        "              newer, then try again\n"
    ) in shown
    assert "  a-long-name\n            ModuleNotFoundError: No module named 'no_such_client'\n" in shown
    assert "\ndisabled\n" in shown
    assert "  lead      by FOREBAY_DISABLE_PLUGINS\n" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_plugins_as_json_is_for_programs(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("steel", STEEL)

    code = main(["plugins", "--json"])

    shown = json.loads(capsys.readouterr().out)
    assert code == 0
    assert shown["plugins"][-1] == {
        "name": "steel",
        "distribution": "pkg-steel",
        "version": "1.2",
        "hooks": ["forebay_batch_done", "forebay_register_sinks"],
        "supplies": {"sinks": [{"name": "steel", "schemes": ["steel", "steels"]}]},
    }
    assert (shown["forebay"], shown["spec_version"], shown["left_out"]) == (version("forebay"), 1, {})


def test_a_plugin_adds_a_subcommand(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("greet", COMMAND.format(result="print('hello', parsed.who)"))

    code = main(["greet", "you"])

    assert (code, capsys.readouterr().out) == (0, "hello you\n")


def test_the_exit_code_of_a_subcommand_is_the_programs(install: Install) -> None:
    install("greet", COMMAND.format(result="7"))

    assert main(["greet", "you"]) == 7


def test_help_lists_the_subcommands_with_the_first_line_of_their_docstring(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("greet", COMMAND.format(result="None"))

    code = main(["--help"])

    shown = capsys.readouterr().out
    assert code == 0
    assert "greet               Say hello.\n" in shown or "greet     Say hello.\n" in shown
    assert "More about it" not in shown


def test_a_subcommand_says_on_the_side_what_was_left_out(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("greet", COMMAND.format(result="print('hello')"))
    install("steel", "import no_such_client")

    code = main(["greet", "you"])

    out, err = capsys.readouterr()
    assert (code, out) == (0, "hello\n")
    assert err == "forebay: plugin 'steel' was left out: ModuleNotFoundError: No module named 'no_such_client'\n"


def test_a_subcommand_that_gives_nothing_to_run_is_named(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("greet", COMMAND.format(result="None").replace("return lambda parsed: None", "return 3"))

    code = main(["greet", "you"])

    assert code == 1
    assert capsys.readouterr().err == (
        "forebay: the factory of command 'greet' (plugin 'greet') returned 3; "
        "return the function that runs the command\n"
    )


def test_two_plugins_with_one_name_end_the_command_with_a_sentence(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("steel", STEEL)
    install("other", STEEL)

    code = main(["plugins"])

    assert code == 1
    assert capsys.readouterr().err.startswith("forebay: two plugins register sink 'steel': ")


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["plugins", "--no-such-option"]])
def test_wrong_usage_exits_2(arguments: list[str], install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(arguments)

    assert code == 2
    assert "usage: forebay" in capsys.readouterr().err


def test_arguments_are_the_programs_unless_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["forebay", "--version"])

    code = main()

    assert (code, capsys.readouterr().out) == (0, f"forebay {version('forebay')}\n")


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "forebay", "--version"], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"forebay {version('forebay')}\n", "")


# --- forebay explain ----------------------------------------------------------------------------


def test_explain_prints_the_story_of_a_saved_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_DISABLE_PLUGINS", ",".join(point.name for point in entry_points(group="forebay")))
    before, after = Limits(64, 8, 0.0), Limits(64, 5, 0.0)
    moves = [LimitsInfo("orders", "enrich", before, after, "p99 210 ms over goal 200 ms", 1e9)]
    summary = Summary(
        *("orders", "orders-1", 3, 3, 0, 0, 0, 0, 0, 0, 0, 1.5, Quantiles(), True, ()), moves=moves, moves_made=1
    )
    file = tmp_path / "run.json"
    file.write_text(json.dumps(summary.as_dict()))

    code = main(["explain", str(file)])

    assert (code, capsys.readouterr().out) == (0, f"{summary.explain()}\n")
    assert summary.explain().endswith("enrich: concurrency 8 -> 5: p99 210 ms over goal 200 ms")


@pytest.mark.parametrize("content", [b"no json", b"[]", b'{"seen": 3}', b"\xff\xfe", None])
def test_explain_says_what_is_wrong_with_a_file(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_DISABLE_PLUGINS", ",".join(point.name for point in entry_points(group="forebay")))
    file = tmp_path / "run.json"
    if content is not None:
        file.write_bytes(content)

    code = main(["explain", str(file)])

    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.startswith(f"forebay explain: cannot read {file}: ")
