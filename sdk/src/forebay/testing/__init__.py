"""Virtual time, fakes, and cancellation at every step, for tests of programs that use forebay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyio import wait_all_tasks_blocked as wait_all_tasks_blocked

from forebay.testing._cuts import CutFailure as CutFailure
from forebay.testing._cuts import CutReport as CutReport
from forebay.testing._cuts import How as How
from forebay.testing._cuts import Scenario as Scenario
from forebay.testing._cuts import cancel_at_every_step as cancel_at_every_step
from forebay.testing._cuts import count_steps as count_steps
from forebay.testing._fakes import FakeDeadLetterStore as FakeDeadLetterStore
from forebay.testing._fakes import FakeSink as FakeSink
from forebay.testing._fakes import FakeStateStore as FakeStateStore
from forebay.testing._fakes import Late as Late
from forebay.testing._fakes import RecordingObserver as RecordingObserver
from forebay.testing._run import BackendName as BackendName
from forebay.testing._run import run_virtual as run_virtual
from forebay.testing._run import virtual_backend as virtual_backend
from forebay.testing._run import virtual_backends as virtual_backends
from forebay.testing._source import Empty as Empty
from forebay.testing._source import Pause as Pause
from forebay.testing._source import Raise as Raise
from forebay.testing._source import ScriptedSession as ScriptedSession
from forebay.testing._source import ScriptedSource as ScriptedSource

if TYPE_CHECKING:
    from forebay.testing._fixtures import anyio_virtual_backend as anyio_virtual_backend
    from forebay.testing._fixtures import real_time as real_time
    from forebay.testing._loop import VirtualLoop as VirtualLoop

# Loaded on first use: asyncio for those who run Trio alone, pytest for those who use another runner.
_LAZY = {"VirtualLoop": "_loop", "anyio_virtual_backend": "_fixtures", "real_time": "_fixtures"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    # pytest looks here when the module is named in pytest_plugins.
    return sorted({*globals(), *_LAZY})
