"""The command `forebay-conformance`."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from forebay.testing import BackendName
from forebay_conformance._kinds import KIND_LIST, Kind, kind_named
from forebay_conformance._markdown import pages
from forebay_conformance._probe import Opener
from forebay_conformance._rules import RULES_VERSION, rules_of
from forebay_conformance._run import Result, run_checks
from forebay_conformance._traits import Traits

_BACKENDS: dict[str, Sequence[BackendName]] = {"asyncio": ["asyncio"], "trio": ["trio"], "both": ["asyncio", "trio"]}


class _UsageError(Exception):
    """What was typed cannot be done."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0: every rule holds, 1: a rule is broken, 2: the command could not be run as typed."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options) if options.command == "run" else _rules(options)
    except _UsageError as error:
        print(f"forebay-conformance: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="forebay-conformance", description="Check a plugin for forebay against its rules."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run", help="check a plugin", description="Check a plugin against every rule of its kind."
    )
    run.add_argument("kind", choices=list(KIND_LIST), metavar="KIND", help=", ".join(KIND_LIST))
    run.add_argument("target", metavar="MODULE:NAME", help="the opener, or a suite class")
    run.add_argument("--backend", choices=list(_BACKENDS), default="both", help="event loop to run on (default: both)")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TRAIT=VALUE",
        help="what the plugin can, such as supports_ttl=False",
    )
    run.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    rules = commands.add_parser("rules", help="list the rules", description="List the rules.")
    rules.add_argument("kind", nargs="?", choices=list(KIND_LIST), metavar="KIND", help="only those of one kind")
    rules.add_argument("--markdown", action="store_true", help="print the pages of the documentation")
    rules.add_argument("--into", type=Path, metavar="FOLDER", help="write the pages into a folder")
    return parser


def _rules(options: argparse.Namespace) -> int:
    kinds: list[str] = [options.kind] if options.kind else list(KIND_LIST)
    wanted = {name: text for name, text in pages().items() if not options.kind or name == f"{options.kind}.md"}
    if options.into is not None:
        folder = cast("Path", options.into)  # argparse knows no types
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in wanted.items():
            (folder / name).write_text(text, encoding="utf-8")
    elif options.markdown:
        print("\n".join(wanted.values()), end="")
    else:
        for kind in kinds:
            for rule in rules_of(kind):
                print(f"{rule.id}\n    {rule.sentence}.")
    return 0


def _run(options: argparse.Namespace) -> int:
    kind = kind_named(options.kind)
    opener, traits = _subject(kind, _load(options.target), options.target)
    for setting in options.set:
        _set(traits, setting)
    backends = _BACKENDS[options.backend]
    results = run_checks(kind.name, opener, traits, backends=backends)
    if options.json:
        found = list(results)
        print(json.dumps(_document(kind, options.target, found), indent=2))
    else:
        where = " and ".join(backends)
        print(f"{options.target} against the rules for a {kind.words}, version {RULES_VERSION}, on {where}")
        found = list(_told(results))
    return 1 if any(result.status == "failed" for result in found) else 0


def _load(target: str) -> object:
    module_name, colon, name = target.partition(":")
    if not colon or not module_name or not name:
        raise _UsageError(
            f"MODULE:NAME must name a module and something in it, such as my_plugin:open_source, not {target!r}"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise _UsageError(f"{module_name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        known = ", ".join(sorted(each for each in vars(module) if not each.startswith("_"))) or "nothing"
        raise _UsageError(f"{module_name!r} has no {name!r}; it has {known}")
    return getattr(module, name)


def _subject(kind: Kind, found: object, target: str) -> tuple[Opener, Traits]:
    if isinstance(found, type):
        held = cast("type[object]", found)  # isinstance tells pyright no more than that
        if issubclass(held, kind.traits):
            suite = held()
            method = getattr(suite, kind.opener.partition("(")[0])
            return cast("Opener", method), suite  # its own method, typed in the suite
        if not kind.is_factory or issubclass(held, Traits):
            raise _UsageError(f"{target} is a class and no suite for a {kind.words}; name an opener or a suite class")
    if not callable(found):
        raise _UsageError(f"{target} must be a function that returns {kind.promise}, not {found!r}")
    return cast("Opener", found), _alone(kind)  # what it returns shows when it is called


def _alone(kind: Kind) -> Traits:
    """Return the traits of an opener that came without a suite: what needs a method of the user is off."""
    traits = kind.traits()
    for name in ("reads_back", "has_bad_item"):
        if hasattr(traits, name):
            setattr(traits, name, False)
    return traits


def _set(traits: Traits, setting: str) -> None:
    name, _, text = setting.partition("=")
    known = sorted(
        each for each in dir(type(traits)) if isinstance(getattr(type(traits), each, None), bool | int | float | str)
    )
    known = [each for each in known if not each.startswith("_")]
    if name not in known:
        raise _UsageError(f"no trait is named {name!r} (there are: {', '.join(known)})")
    try:
        value: object = ast.literal_eval(text.capitalize() if text.lower() in ("true", "false") else text)
    except (ValueError, SyntaxError):
        value = text
    wanted = cast("type[object]", type(getattr(type(traits), name)))  # one of the four above
    if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
        raise _UsageError(f"{name} must be a {wanted.__name__}, not {text!r}")
    setattr(traits, name, value)


def _told(results: Iterable[Result]) -> Iterable[Result]:
    counts = {"passed": 0, "failed": 0, "off": 0}
    for result in results:
        counts[result.status] += 1
        if result.failure is not None:
            print(f"\nfailed on {result.backend}\n{result.failure.report()}\n")
        else:
            note = f"  ({result.off})" if result.off else ""
            print(f"{result.status:7} {result.backend:8} {result.rule.id}{note}")
        yield result
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['off']} do not apply")


def _document(kind: Kind, target: str, results: Sequence[Result]) -> dict[str, object]:
    return {
        "target": target,
        "kind": kind.name,
        "rules": RULES_VERSION,
        "results": [_entry(result) for result in results],
    }


def _entry(result: Result) -> dict[str, object]:
    entry: dict[str, object] = {
        "rule": result.rule.id,
        "backend": result.backend,
        "status": result.status,
        "seconds": round(result.seconds, 6),
    }
    if result.failure is not None:
        failure = result.failure
        entry |= {"did": failure.did, "expected": failure.expected, "got": failure.got, "page": result.rule.page}
    if result.off is not None:
        entry["off"] = result.off
    return entry
