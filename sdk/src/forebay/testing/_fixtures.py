"""Fixtures for pytest."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.testing._run import BACKENDS, BackendName, virtual_backend


@pytest.fixture(params=BACKENDS)
def anyio_virtual_backend(request: pytest.FixtureRequest) -> str | tuple[str, dict[str, Any]]:
    """Both backends on virtual time, for anyio's pytest plugin.

    Import it in a conftest as `anyio_backend` and every test marked `anyio` below runs twice, in no real time.
    A test that needs real time asks for the fixture `real_time`.
    """
    name: BackendName = request.param
    return name if "real_time" in request.fixturenames else virtual_backend(name)


@pytest.fixture
def real_time() -> None:
    """Put the test on the real clock: `@pytest.mark.usefixtures("real_time")`."""
