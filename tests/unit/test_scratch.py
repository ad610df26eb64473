"""Directories that last as long as processes do: what a killed one left goes, and nothing that is used or not ours."""

import contextlib
import errno
import fcntl
import os
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from proxy.files import scratch

PREFIX = "counters-"


def names(place: Path) -> set[str]:
    """What there is."""
    return {entry.name for entry in place.iterdir()}


def opened(place: Path) -> list[str]:
    """What this process has open below it; what else it has open, other tests' threads may close meanwhile."""
    links = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was of listing them
            links.append(os.readlink(f"/proc/self/fd/{entry}"))
    return [link for link in links if link.startswith(f"{place}/")]


def left(place: Path, name: str = f"{PREFIX}left") -> Path:
    """One whose processes were killed: the kernel has let go of their lock."""
    path = place / name
    path.mkdir()
    (path / "counter_7.db").write_bytes(b"counted")
    return path


def test_it_is_its_users_alone_and_gone_with_them(tmp_path: Path) -> None:
    with scratch(PREFIX, tmp_path) as one:
        (one.path / "counter_7.db").write_bytes(b"counted")
        assert names(tmp_path) == {one.path.name}
        assert one.path.stat().st_mode & 0o777 == 0o700
    assert names(tmp_path) == set()


def test_what_killed_processes_left_goes_and_what_others_use_stays(tmp_path: Path) -> None:
    with scratch(PREFIX, tmp_path) as used:
        left(tmp_path)
        with scratch(PREFIX, tmp_path) as one:
            assert names(tmp_path) == {used.path.name, one.path.name}


def test_where_what_was_left_cannot_be_listed_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    path = left(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refused)
        with scratch(PREFIX, tmp_path) as one:
            assert one.path.exists()
            assert path.exists()


def test_what_a_worker_still_uses_stays_though_who_made_it_was_killed(tmp_path: Path) -> None:
    path = left(tmp_path)
    inherited = os.open(path, os.O_RDONLY)
    fcntl.flock(inherited, fcntl.LOCK_EX)
    with scratch(PREFIX, tmp_path):
        assert path.exists()
    os.close(inherited)
    with scratch(PREFIX, tmp_path):
        assert not path.exists()


def test_what_is_another_thing_of_that_name_or_has_another_stays(tmp_path: Path) -> None:
    other = left(tmp_path, "other")
    (tmp_path / f"{PREFIX}link").symlink_to(other)
    (tmp_path / f"{PREFIX}file").touch()
    with scratch(PREFIX, tmp_path):
        pass
    assert names(tmp_path) == {"other", f"{PREFIX}link", f"{PREFIX}file"}
    assert names(other) == {"counter_7.db"}


def test_what_belongs_to_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = left(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with scratch(PREFIX, tmp_path):
        assert path.exists()


def test_one_that_is_swept_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, flock, swept = tempfile.mkdtemp, fcntl.flock, list[str]()

    def before_it_is_opened(**where: object) -> str:
        made = make(**where)  # type: ignore[call-overload]
        if not swept:
            swept.append(made)
            os.rmdir(made)
        return str(made)

    def before_it_is_locked(fd: int, how: int) -> None:
        if len(swept) == 1:
            swept.append(os.readlink(f"/proc/self/fd/{fd}"))
            os.rmdir(swept[-1])
        flock(fd, how)

    monkeypatch.setattr(tempfile, "mkdtemp", before_it_is_opened)
    monkeypatch.setattr(fcntl, "flock", before_it_is_locked)
    with scratch(PREFIX, tmp_path) as one:
        assert len(swept) == 2
        assert names(tmp_path) == {one.path.name}
    assert opened(tmp_path) == []
