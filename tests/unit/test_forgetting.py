"""Records of what is gone: forgotten after a month, and not before; what is there, frozen or history stays."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy import forgetting
from proxy.files import Tree
from proxy.forgetting import LIFE, forget
from proxy.oci.digest import Digest
from proxy.oci.history import Move
from proxy.oci.reference import Repository, Tag
from proxy.stores.base import Link, Pin, TagRecord
from proxy.stores.directory import open_tree
from proxy.stores.disk import DiskBlobs, DiskRepositories
from proxy.stores.keys import history_key, link_key, pin_key, tag_key

REPOSITORY = Repository("docker.io", "library/app")
THERE, GONE = Digest.of(b"there"), Digest.of(b"gone")
OLD = LIFE + 3600


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    monkeypatch.setattr(forgetting, "IDLE", 0.0)
    with contextlib.closing(open_tree(tmp_path / "cache")) as one:
        asyncio.run(DiskBlobs(one).put(THERE, b"there"))
        yield one


def age(tree: Tree, key: str, seconds: float) -> Path:
    """Have a record be so old."""
    path, when = tree.root / key, time.time() - seconds
    os.utime(path, (when, when))
    return path


def link(tree: Tree, digest: Digest, seconds: float) -> Path:
    """A link that was last used so many seconds ago."""
    asyncio.run(DiskRepositories(tree).put_link(REPOSITORY, digest, Link(5)))
    return age(tree, link_key(REPOSITORY, digest), seconds)


def tag(tree: Tree, name: str, digest: Digest, seconds: float, *, is_frozen: bool = False) -> Path:
    """A tag that was last asked for so many seconds ago."""
    record = TagRecord(digest, time.time() - seconds, is_frozen)
    asyncio.run(DiskRepositories(tree).put_tag(REPOSITORY, Tag(name), record))
    return age(tree, tag_key(REPOSITORY, Tag(name)), seconds)


def test_links_and_tags_of_what_went_a_month_ago_are_forgotten(tree: Tree) -> None:
    gone = [link(tree, GONE, OLD), tag(tree, "gone", GONE, OLD)]
    stays = [link(tree, THERE, OLD), tag(tree, "there", THERE, OLD)]
    assert forget(tree) == 2
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in stays)


def test_what_was_used_within_a_month_stays(tree: Tree) -> None:
    stays = [link(tree, GONE, LIFE - 60), tag(tree, "gone", GONE, LIFE - 60)]
    assert forget(tree) == 0
    assert all(path.exists() for path in stays)


def test_frozen_tags_histories_and_strangers_stay(tree: Tree) -> None:
    frozen = tag(tree, "frozen", GONE, OLD, is_frozen=True)
    asyncio.run(DiskRepositories(tree).put_history(REPOSITORY, Tag("gone"), [Move(1.0, GONE)]))
    history = age(tree, history_key(REPOSITORY, Tag("gone")), OLD)
    stranger = tree.root / "repositories" / "stranger"
    stranger.write_text("not ours to judge")
    age(tree, "repositories/stranger", OLD)
    assert forget(tree) == 0
    assert all(path.exists() for path in (frozen, history, stranger))


@pytest.mark.parametrize(("ended", "stays"), [(LIFE + 60, False), (60.0, True), (-60.0, True), (None, True)])
def test_a_pin_is_forgotten_a_month_after_it_ran_out(tree: Tree, ended: float | None, stays: bool) -> None:
    until = None if ended is None else time.time() - ended
    asyncio.run(DiskRepositories(tree).put_pin(REPOSITORY, THERE, Pin(0.0, until)))
    forget(tree)
    assert (tree.root / pin_key(REPOSITORY, THERE)).exists() is stays
