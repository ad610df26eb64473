"""A fake upstream, and file systems to break."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import upstream

from .disks import LoopDisk, loop_disk, what_is_missing

__all__ = ["upstream"]


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[str], LoopDisk]]:
    """Makes a file system of a kind; skipped where that cannot be."""
    reason = what_is_missing()
    if reason is not None:
        pytest.skip(reason)
    with ExitStack() as stack:
        yield lambda kind: stack.enter_context(loop_disk(kind, tmp_path))
