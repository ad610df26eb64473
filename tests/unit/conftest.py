"""A store's directory; a file, and the threads that send it."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.files import Handle, Senders, Tree
from proxy.stores.directory import open_tree

from .stretches import BODY


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """A store's directory."""
    with contextlib.closing(open_tree(tmp_path / "store")) as one:
        yield one


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
