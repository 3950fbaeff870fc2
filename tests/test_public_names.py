"""The public doors: what stands in them, that it is documented and typed, and what opening them costs."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import forebay
import forebay.abc
import forebay.hooks
import forebay.testing

SOURCES = Path(forebay.__file__).parent

NAMES = [
    "Again",
    "BatchContext",
    "BatchError",
    "BatchFailed",
    "BatchPart",
    "BatchSizeError",
    "BatchTooLargeError",
    "Batcher",
    "BatcherClosedError",
    "BatcherStatistics",
    "BlockedLoopWarning",
    "Bounds",
    "Category",
    "ChannelClosedError",
    "ChannelStatistics",
    "ClosedPipeline",
    "Dropped",
    "EndOfChannel",
    "EngineError",
    "Failed",
    "ForebayError",
    "Goal",
    "HandlerContractError",
    "ItemDroppedError",
    "LostOwnershipError",
    "MemoryDeadLetterStore",
    "MemoryQueue",
    "MemoryStateStore",
    "OrderWarning",
    "Pipeline",
    "PluginError",
    "PluginWarning",
    "ReceiveChannel",
    "Retry",
    "RetryExhaustedError",
    "Scope",
    "SendChannel",
    "SettlementError",
    "Summary",
    "TimeLimitError",
    "Tuning",
    "WorkerDiedError",
    "current_batch",
    "open_batcher",
    "open_channel",
    "open_memory_dead_letters",
    "open_memory_state",
    "open_scope",
    "pipeline",
    "slice_blocks",
]


def public_names(module: ModuleType) -> set[str]:
    """Return what *module* hands on: names imported `as` themselves, and its own."""
    text = Path(str(module.__file__)).read_text()
    handed_on = set(re.findall(r"import (\w+) as \1$", text, re.MULTILINE))
    own = {
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    }
    return handed_on | own


def test_the_main_door_has_just_these_names() -> None:
    # A name here is a promise: add to the list on purpose only, and with a note of the change.
    assert sorted(public_names(forebay)) == sorted(NAMES)


def test_the_main_door_lists_its_names_before_they_are_loaded() -> None:
    code = "import json, forebay; print(json.dumps(dir(forebay)))"

    listed = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

    assert {*NAMES, "abc", "hooks", "testing"} <= set(listed)
    assert listed == sorted(listed)


def test_the_other_doors_are_reached_through_the_main_one() -> None:
    code = "import forebay; print(forebay.abc.__name__, forebay.hooks.__name__, forebay.testing.__name__)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "forebay.abc forebay.hooks forebay.testing\n"


@pytest.mark.parametrize("door", [forebay, forebay.abc, forebay.hooks, forebay.testing])
def test_each_public_name_has_a_docstring(door: ModuleType) -> None:
    silent = [
        name
        for name in sorted(public_names(door))
        if callable(thing := getattr(door, name)) and (inspect.isfunction(thing) or inspect.isclass(thing))
        if not inspect.getdoc(thing)
    ]

    assert silent == []


@pytest.mark.parametrize("door", [forebay, forebay.abc])
def test_each_public_method_has_a_docstring(door: ModuleType) -> None:
    silent = [
        f"{name}.{attribute}"
        for name in sorted(public_names(door))
        if inspect.isclass(cls := getattr(door, name))
        for attribute, method in vars(cls).items()
        if not attribute.startswith("_") and (inspect.isfunction(method) or isinstance(method, property))
        if not inspect.getdoc(method)
    ]

    assert silent == []


def test_all_exceptions_are_of_one_family() -> None:
    errors = [getattr(forebay, name) for name in NAMES if name.endswith(("Error", "Failed", "EndOfChannel"))]

    classes = [error for error in errors if isinstance(error, type) and issubclass(error, BaseException)]
    assert len(classes) > 10
    assert all(issubclass(error, forebay.ForebayError) for error in classes)


def test_opening_the_main_door_loads_nothing_that_only_some_runs_need() -> None:
    code = "import json, sys, forebay; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"

    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

    unwanted = {"trio", "redis", "asyncpg", "psutil", "opentelemetry", "pluggy", "pytest", "asyncio", "hypothesis"}
    assert unwanted.intersection(loaded) == set()


def test_a_run_loads_no_other_event_loop() -> None:
    code = (
        "import sys, anyio, forebay\n"
        "async def main():\n"
        "    summary = await forebay.pipeline(range(3)).map(str).run()\n"
        "    print(summary.done, 'trio' in sys.modules)\n"
        "anyio.run(main, backend='asyncio')\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "3 False\n"


def test_the_package_says_that_it_is_typed() -> None:
    assert (SOURCES / "py.typed").exists()


def test_every_public_type_is_known_to_pyright() -> None:
    pytest.importorskip("pyright", reason="pyright is not installed; `make check` installs it")
    # It looks for the package where the first python of PATH would.
    env = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}

    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--verifytypes", "forebay", "--ignoreexternal"],
        capture_output=True,
        text=True,
        timeout=110,
        env=env,
        check=False,
    )

    assert "Type completeness score: 100%" in done.stdout, done.stdout
