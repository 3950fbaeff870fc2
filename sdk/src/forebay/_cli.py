"""The `forebay` command: what is installed, the story of a run, and the subcommands that plugins add."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap

from forebay._errors import PluginError, PluginWarning
from forebay.hooks import SPEC_VERSION, Command, Entry, PluginInfo, Plugins

_WIDTH = 80


def main(argv: Sequence[str] | None = None) -> int:
    """Run `forebay` with *argv* (default: the program's arguments) and return its exit code.

    0: it went well. 1: a plugin cannot be used, or what the subcommand says. 2: wrong usage.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(arguments)
    except PluginError as exc:
        print(f"forebay: {exc}", file=sys.stderr)
        return 1
    except SystemExit as exc:  # argparse has printed the help, or what is wrong
        return exc.code if isinstance(exc.code, int) else 1


def _run(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--version"]:  # answered before any plugin is loaded
        print(f"forebay {_version()}")
        return 0
    plugins = _load()
    parsed = _parser(plugins, arguments).parse_args(arguments)
    if parsed.command != "plugins":
        for name, why in plugins.broken.items():
            print(f"forebay: plugin {name!r} was left out: {why}", file=sys.stderr)
    run: Command = parsed.run
    return run(parsed) or 0


def _load() -> Plugins:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # printed as plain lines
        plugins = Plugins()

    def add_plugins_command(parser: argparse.ArgumentParser) -> Command:
        """List the installed plugins and what they supply."""
        parser.add_argument("--json", action="store_true", help="print JSON, for programs")
        return lambda parsed: _show_plugins(plugins, as_json=parsed.json)

    register = plugins.cli_commands.owned_by("forebay", "forebay")
    register("plugins", add_plugins_command)
    register("explain", _add_explain_command)
    return plugins


def _parser(plugins: Plugins, arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forebay", description="Batch and event processing inside your program.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for entry in sorted(plugins.cli_commands, key=lambda entry: entry.name):
        first_line = (entry.factory.__doc__ or "").strip().partition("\n")[0]
        subparser = commands.add_parser(entry.name, help=first_line, description=first_line)
        if entry.name in arguments:  # the others need not import what they work with
            subparser.set_defaults(run=_command(entry, subparser))
    return parser


def _command(entry: Entry[Command], parser: argparse.ArgumentParser) -> Command:
    run = entry.factory(parser)
    if not callable(run):
        raise PluginError(
            f"the factory of command {entry.name!r} (plugin {entry.plugin!r}) returned {run!r}; "
            "return the function that runs the command"
        )
    return run


def _version() -> str:
    from importlib.metadata import version

    return version("forebay")


# --- forebay explain ---------------------------------------------------------------------------


def _add_explain_command(parser: argparse.ArgumentParser) -> Command:
    """Print the story of a run: every move of a controller, and why."""
    parser.add_argument("file", help="file that holds the run's Summary.as_dict() as JSON")
    return lambda parsed: _explain(parsed.file)


def _explain(file: str) -> int:
    """Print the story in *file*; 1 when there is none in it."""
    import json
    from pathlib import Path

    from forebay._summary import Summary

    try:
        summary = Summary.from_dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:  # what is no JSON, or no text, is a ValueError too
        print(f"forebay explain: cannot read {file}: {exc}", file=sys.stderr)
        return 1
    print(summary.explain())
    return 0


# --- forebay plugins ---------------------------------------------------------------------------


def _show_plugins(plugins: Plugins, *, as_json: bool) -> int:
    """Print what is installed; 1 when a plugin was left out, so that a deployment can check for it."""
    if as_json:
        import json

        print(json.dumps(_as_json(plugins), indent=2))
    else:
        print("\n".join(_lines(plugins)))
    return 1 if plugins.broken else 0


def _as_json(plugins: Plugins) -> Mapping[str, object]:
    return {
        "forebay": _version(),
        "spec_version": SPEC_VERSION,
        "plugins": [
            {
                "name": info.name,
                "distribution": info.distribution,
                "version": _version_of(info),
                "hooks": list(info.hooks),
                "supplies": {
                    kind: [{"name": entry.name, "schemes": list(entry.schemes)} for entry in entries]
                    for kind, entries in _supplies(plugins, info)
                },
            }
            for info in plugins.registered()
        ],
        "left_out": plugins.broken,
        "disabled": plugins.disabled,
    }


def _lines(plugins: Plugins) -> Iterator[str]:
    yield f"forebay {_version()}, hooks version {SPEC_VERSION}"
    for info in plugins.registered():
        yield ""
        yield f"{info.name} (package {info.distribution} {_version_of(info)})"
        yield from _rows("supplies", (_supplied(kind, entries) for kind, entries in _supplies(plugins, info)))
        yield from _rows("hooks", info.hooks)
    for title, reasons in (("left out", plugins.broken), ("disabled", plugins.disabled)):
        if reasons:
            yield ""
            yield title
        for name, why in reasons.items():
            yield from _rows(name, [why if title == "left out" else f"by {why}"])


def _rows(label: str, texts: Iterable[str]) -> Iterator[str]:
    """Give *texts* one below the other, the first beside *label*."""
    if len(label) > 8:
        yield f"  {label}"
        label = ""
    for text in texts:
        for line in wrap(text, _WIDTH - 12, subsequent_indent="  ", break_on_hyphens=False) or [""]:
            yield f"  {label:<8}  {line}"
            label = ""


def _supplied(kind: str, entries: Sequence[Entry[object]]) -> str:
    return f"{kind}: " + ", ".join(
        entry.name + "".join(f" {scheme}://" for scheme in entry.schemes) for entry in entries
    )


def _supplies(plugins: Plugins, info: PluginInfo) -> list[tuple[str, list[Entry[object]]]]:
    return [(kind, [entry for entry in plugins.kind(kind) if entry.plugin == info.name]) for kind in info.supplies]


def _version_of(info: PluginInfo) -> str | None:
    return _version() if info.distribution == "forebay" else info.version
