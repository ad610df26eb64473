"""What upstreams allow, kept in files: read again whole, and worth nothing when damaged."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.oci.ratelimit import Allowance, State
from proxy.stores.directory import open_tree
from proxy.stores.limits import DiskLimits

KNOWN = State(Allowance(100, 42, 21600, "192.0.2.1"), 1_790_000_000.5, 1_790_000_060.0, 0.0, 3, 1_790_003_600.0)


@dataclass(frozen=True, slots=True)
class Kept:
    """The store, and where it is."""

    limits: DiskLimits
    root: Path

    @property
    def file(self) -> Path:
        """The only file there is."""
        (found,) = (path for path in (self.root / "limits").rglob("*") if path.is_file())
        return found


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    """A store with one account's budget in it."""
    tree = await asyncio.to_thread(open_tree, tmp_path / "store")
    limits = DiskLimits(tree)
    await limits.save("docker.io", "ann", KNOWN)
    yield Kept(limits, tmp_path / "store")
    tree.close()


async def test_what_is_recorded_is_read_again(kept: Kept) -> None:
    assert await kept.limits.load("docker.io", "ann") == KNOWN
    assert await kept.limits.load("docker.io", "bob") is None
    assert await kept.limits.load("ghcr.io", "ann") is None
    await kept.limits.save("own.example:5000", "a/../b", State())
    assert await kept.limits.all() == [("docker.io", "ann", KNOWN), ("own.example:5000", "a/../b", State())]


async def test_a_file_is_named_after_nobody(kept: Kept) -> None:
    assert "ann" not in str(kept.file.relative_to(kept.root))


@pytest.mark.parametrize(
    "change",
    [
        {"seen": "yesterday"}, {"seen": float("nan")}, {"seen": float("inf")}, {"paused_until": 1e300}, {"seen": -1},
        {"empty_at": 1e300}, {"refusals": None}, {"allowance": {"limit": 1}}, {"allowance": []}, {"allowance": 5},
    ],
)  # fmt: skip
async def test_a_file_that_says_nonsense_says_nothing(kept: Kept, change: dict[str, Any]) -> None:
    record = json.loads(kept.file.read_text())
    kept.file.write_text(json.dumps({**record, **change}))
    assert await kept.limits.load("docker.io", "ann") is None
    assert await kept.limits.all() == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 5000, b"{}", b" " * 5000])
async def test_a_file_that_is_damaged_says_nothing(kept: Kept, body: bytes) -> None:
    kept.file.write_bytes(body)
    assert await kept.limits.load("docker.io", "ann") is None
    await kept.limits.save("docker.io", "ann", KNOWN)
    assert await kept.limits.load("docker.io", "ann") == KNOWN
