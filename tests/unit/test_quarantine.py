"""What was taken out of the store: kept for a while, and not for ever, nor without bound."""

import os
import time

import pytest

from proxy.files import Tree
from proxy.stores import quarantine

DAY = 86400


def put(tree: Tree, key: str, size: int = 10) -> os.stat_result:
    """Have a file, and what is known of it."""
    path = tree.root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path.stat()


def kept(tree: Tree) -> list[str]:
    """The names in the quarantine, without what is random in them."""
    return sorted(name.split("-", 2)[2] for name in os.listdir(tree.root / "quarantine"))


def aged(tree: Tree, name: str, seconds: float, size: int = 10) -> None:
    """Have something in the quarantine that was put there so long ago."""
    put(tree, f"quarantine/{int(time.time() - seconds)}-x-{name}", size)


def test_what_is_set_aside_is_where_it_is_said_to_be(tree: Tree) -> None:
    status = put(tree, "blobs/file")
    moved = quarantine.set_aside(tree, "blobs/file", status)
    assert moved is not None
    assert (tree.root / moved).stat().st_ino == status.st_ino
    assert not (tree.root / "blobs" / "file").exists()


@pytest.mark.parametrize("name", ["-", "-rf", "x" * 255, "\udcff", "é" * 127, "a\nb"])
def test_any_name_that_a_file_can_have_is_set_aside(tree: Tree, name: str) -> None:
    key = f"blobs/{name}"
    assert quarantine.set_aside(tree, key, put(tree, key)) is not None


def test_another_file_of_the_same_name_is_not(tree: Tree) -> None:
    status = put(tree, "blobs/file")
    put(tree, "blobs/other")
    os.replace(tree.root / "blobs" / "other", tree.root / "blobs" / "file")
    assert quarantine.set_aside(tree, "blobs/file", status) is None
    assert (tree.root / "blobs" / "file").exists()
    assert quarantine.set_aside(tree, "blobs/gone", status) is None


def test_what_is_old_goes_and_what_a_clock_ahead_left(tree: Tree) -> None:
    for name, age in (("old", 8 * DAY), ("new", 6 * DAY), ("ahead", -8 * DAY)):
        aged(tree, name, age)
    (tree.root / "quarantine" / "stranger").touch()
    quarantine.sweep(tree, time.time())
    assert kept(tree) == ["new"]


def test_what_is_too_much_goes_the_oldest_first(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "LARGEST", 100)
    for name, age, size in (("first", 300, 50), ("second", 200, 50), ("huge", 100, 101), ("last", 0, 40)):
        aged(tree, name, age, size)
    quarantine.sweep(tree, time.time())
    assert kept(tree) == ["last", "second"]
    assert quarantine.size(tree) == 90


def test_a_directory_goes_with_all_that_is_in_it_and_no_link_is_followed(tree: Tree) -> None:
    outside = tree.root.parent / "outside"
    outside.mkdir()
    (outside / "file").touch()
    folder = tree.root / "quarantine" / "1-x-folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "link").symlink_to(outside)
    (tree.root / "quarantine" / "2-x-link").symlink_to(outside)
    quarantine.sweep(tree, time.time())
    assert os.listdir(tree.root / "quarantine") == []
    assert (outside / "file").exists()
