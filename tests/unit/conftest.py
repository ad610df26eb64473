"""A file, and the threads that send it."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.files import Handle, Senders

from .stretches import BODY


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[Handle]:
    """A file with a body in it."""
    (tmp_path / "file").write_bytes(BODY)
    with contextlib.closing(Handle(os.open(tmp_path / "file", os.O_RDONLY), len(BODY))) as one:
        yield one


@pytest.fixture
async def senders() -> AsyncIterator[Senders]:
    """One thread that sends."""
    async with contextlib.aclosing(Senders(1)) as one:
        yield one
