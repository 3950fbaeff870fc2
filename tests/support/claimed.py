"""A scripted source whose items fall to others unless their claims are renewed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from forebay.abc import Member
from forebay.testing import ScriptedSession, ScriptedSource

T = TypeVar("T")


class ClaimedSession(ScriptedSession[T]):
    """A session that has to renew its claims, and hears then what others have taken over."""

    @property
    def claim_seconds(self) -> float | None:
        """Long enough for an exchange, short enough for a test to see renewals."""
        return 3.0


class ClaimedSource(ScriptedSource[T]):
    """A `ScriptedSource` with claims; nothing is taken over unless the test says `steal`."""

    @asynccontextmanager
    async def open(self, member: Member, /) -> AsyncGenerator[ScriptedSession[T]]:
        """Open a session with claims."""
        async with super().open(member) as session:
            yield ClaimedSession(session.source, session.epoch)


async def steal_after(seconds: float, source: ScriptedSource[Any], *offsets: int) -> None:
    """Let another member take over the items at *offsets* after so many seconds."""
    await anyio.sleep(seconds)
    source.steal(*offsets)
