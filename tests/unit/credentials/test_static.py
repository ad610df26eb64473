"""A password from a file follows the file."""

import os
from pathlib import Path

import pytest

from proxy.credentials.base import CredentialError
from proxy.credentials.refreshing import LOOK, Refreshing
from proxy.credentials.static import Given, InFile
from proxy.credentials.watched import Watched
from tests.unit.credentials.fakes import Clock, recording


async def secret(source: Given | InFile) -> str:
    return (await source.fetch()).credential.secret


def replace(file: Path, text: str) -> None:
    """Put another file in its place, as careful programs do."""
    other = file.with_suffix(".new")
    other.write_text(text)
    other.rename(file)


async def test_a_given_password_is_good_until_it_changes() -> None:
    answer = await Given("me", "hunter2").fetch()
    assert (answer.credential.username, answer.credential.secret, answer.life) == ("me", "hunter2", None)
    assert "hunter2" not in repr(answer)


async def test_a_file_is_read_without_its_white_space(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" hunter2\n")
    answer = await InFile("me", file).fetch()
    assert (answer.credential.username, answer.credential.secret, answer.life) == ("me", "hunter2", None)


async def test_a_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first")
    source = InFile("me", file)
    assert await secret(source) == "first"
    replace(file, "other")
    assert await secret(source) == "other"


async def test_a_file_that_is_written_anew_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first")
    source = InFile("me", file)
    await source.fetch()
    file.write_text("a longer one")
    assert await secret(source) == "a longer one"


async def test_a_secret_that_kubernetes_rotates_is_read_again(tmp_path: Path) -> None:
    for version in ("1", "2"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "password").write_text(f"secret{version}")
        os.utime(tmp_path / f"..{version}" / "password", (1000, 1000))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "password").symlink_to("..data/password")
    source = InFile("me", tmp_path / "password")
    assert await secret(source) == "secret1"
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert await secret(source) == "secret2"


async def test_a_file_is_read_only_when_it_has_changed(tmp_path: Path) -> None:
    reads = []
    file = tmp_path / "password"
    file.write_text("first")

    def read(path: Path) -> str:
        reads.append(path)
        return path.read_text()

    watched = Watched(file, read)
    assert [await watched.look() for _ in range(3)] == ["first"] * 3
    assert reads == [file]
    replace(file, "other")
    assert [await watched.look() for _ in range(3)] == ["other"] * 3
    assert reads == [file] * 2


@pytest.mark.parametrize(
    ("content", "complaint"), [(None, "cannot be read"), (b"", "is empty"), (b" \n", "is empty"), (b"\xff", "no text")]
)
async def test_a_file_that_holds_no_password_is_complained_of(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CredentialError, match=complaint) as caught:
        await InFile("me", file).fetch()
    assert str(file) in str(caught.value)


async def test_a_vanished_or_empty_file_costs_a_warning_and_the_next_good_one_is_taken(tmp_path: Path) -> None:
    clock = Clock()
    logger, lines = recording()
    file = tmp_path / "password"
    file.write_text("first")
    credential = Refreshing(InFile("me", file), logger, clock=clock, draw=lambda: 1.0)

    async def later() -> str:
        clock.now += LOOK
        await credential.current()
        if credential._question is not None:
            await credential._question
        return (await credential.current()).secret

    assert await later() == "first"
    file.unlink()
    assert await later() == "first"
    file.write_text("")
    assert await later() == "first"
    file.write_text("other")
    assert await later() == "other"
    assert [line["log_level"] for line in lines] == ["warning", "warning", "info"]
    assert "cannot be read" in lines[0]["reason"]


async def test_a_file_that_is_gone_by_the_first_question_leaves_what_it_held_at_the_start(tmp_path: Path) -> None:
    source = InFile("me", tmp_path / "password", "hunter2")
    assert await secret(source) == "hunter2"
    with pytest.raises(CredentialError, match="cannot be read"):
        await source.fetch()
