"""Every test marked anyio runs on asyncio and on Trio, on virtual time unless it asks for `real_time`."""

from forebay.testing import anyio_virtual_backend as anyio_backend
from forebay.testing import real_time as real_time

__all__ = ["anyio_backend", "real_time"]
