"""Docker's helpers are run as Docker runs them, and leave nothing behind."""

import asyncio
import json
import os
import stat
import time
from base64 import b64encode
from pathlib import Path

import pytest

from proxy.credentials import helper
from proxy.credentials.base import Credential, CredentialError, Issued
from proxy.credentials.docker import DockerLogin
from proxy.credentials.docker_config import HUB

ANSWER = '{"ServerURL":"x","Username":"me","Secret":"hunter2"}'
NOT_FOUND = "echo credentials not found in native keychain; exit 1"


class Bin:
    """A folder of helpers, the first on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, script: str) -> None:
        file = self.folder / f"docker-credential-{name}"
        file.write_text(f"#!/bin/sh\ncd {self.folder}\n{script}\n")
        file.chmod(stat.S_IRWXU)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bin:
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Bin(folder)


def config(folder: Path, **content: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(content))
    return file


async def test_a_helper_is_told_the_server_and_answers_with_a_login(programs: Bin) -> None:
    programs.add("mine", f"echo $1 > verb; cat > server; echo '{ANSWER}'")
    assert await helper.ask("mine", "ghcr.io") == Credential("me", "hunter2")
    assert programs.read("verb") == "get\n"
    assert programs.read("server") == "ghcr.io"


async def test_a_helper_that_does_not_listen_is_heard_all_the_same(programs: Bin) -> None:
    programs.add("mine", f"exec <&-; echo '{ANSWER}'")
    assert await helper.ask("mine", "ghcr.io") == Credential("me", "hunter2")


async def test_an_identity_token_is_a_refresh_token(programs: Bin) -> None:
    programs.add("mine", """echo '{"Username":"<token>","Secret":"hunter2"}'""")
    assert await helper.ask("mine", "ghcr.io") == Credential("<token>", "hunter2", is_refresh_token=True)


@pytest.mark.parametrize("script", [NOT_FOUND, """echo '{"Username":"","Secret":""}'"""])
async def test_a_helper_may_know_nothing_of_a_registry(programs: Bin, script: str) -> None:
    programs.add("mine", script)
    assert await helper.ask("mine", "ghcr.io") is None


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo hunter2; echo hunter2 >&2; exit 3", "failed with status 3: see what it says to: echo ghcr.io |"),
        ("echo hunter2", "something else than a user name and a secret"),
        ("echo '[]'", "something else"),
        ("""echo '{"Username":"hunter2"}'""", "something else"),
        ("""echo '{"Username":"me","Secret":["hunter2"]}'""", "no text"),
        (":", "something else"),
        ("kill -9 $$", "failed with status -9"),
    ],
)
async def test_what_is_wrong_with_a_helper_is_said_without_what_it_said(
    programs: Bin, script: str, complaint: str
) -> None:
    programs.add("mine", script)
    with pytest.raises(CredentialError, match=r"^docker-credential-mine ") as caught:
        await helper.ask("mine", "ghcr.io")
    assert complaint in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_helper_that_is_not_there_is_named() -> None:
    with pytest.raises(CredentialError, match=r"docker-credential-none cannot be run .* is it on the PATH"):
        await helper.ask("none", "ghcr.io")


async def test_a_helper_that_may_not_be_run_is_named(programs: Bin) -> None:
    programs.add("mine", "")
    (programs.folder / "docker-credential-mine").chmod(0o600)
    with pytest.raises(CredentialError, match="docker-credential-mine cannot be run"):
        await helper.ask("mine", "ghcr.io")


def is_gone(process: int) -> bool:
    """Whether a process has ended: there is nothing of it, or nothing but its status, which init will collect."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(process: int) -> None:
    until = time.monotonic() + 10
    while not is_gone(process):
        assert time.monotonic() < until, "it lives on"
        time.sleep(0.01)


@pytest.mark.parametrize("last", ["wait", "exit 0"], ids=["hangs itself", "leaves its child with the output"])
async def test_a_helper_that_hangs_is_ended_with_all_that_it_started(programs: Bin, last: str) -> None:
    programs.add("mine", f"sleep 600 & echo $! > child; echo $$ > self; {last}")
    with pytest.raises(CredentialError, match=r"^docker-credential-mine did not answer within 0\.5 s$"):
        await helper.ask("mine", "ghcr.io", limit=0.5)
    for name in ("child", "self"):
        await asyncio.to_thread(wait_until_gone, int(programs.read(name)))


async def test_a_helper_whose_asker_leaves_is_ended_too(programs: Bin) -> None:
    os.mkfifo(programs.folder / "started")
    programs.add("mine", "echo $$ > self; : > started; exec sleep 600")
    task = asyncio.create_task(helper.ask("mine", "ghcr.io"))
    await asyncio.to_thread((programs.folder / "started").read_bytes)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    with pytest.raises(ProcessLookupError):
        os.kill(int(programs.read("self")), 0)  # it has been reaped, too


# The whole source


async def test_a_login_in_the_file_is_good_until_the_file_changes(tmp_path: Path) -> None:
    first, other = (b64encode(text).decode() for text in (b"me:hunter2", b"me:hunter3-and-more"))
    source = DockerLogin(config(tmp_path, auths={"ghcr.io": {"auth": first}}), ("ghcr.io",))
    assert await source.fetch() == Issued(Credential("me", "hunter2"))
    config(tmp_path, auths={"ghcr.io": {"auth": other}})
    assert await source.fetch() == Issued(Credential("me", "hunter3-and-more"))


async def test_a_helpers_answer_is_asked_for_again_after_a_while(tmp_path: Path, programs: Bin) -> None:
    programs.add("mine", f"cat > server; echo '{ANSWER}'")
    source = DockerLogin(config(tmp_path, credHelpers={"docker.io": "mine"}), ("docker.io", "registry-1.docker.io"))
    assert await source.fetch() == Issued(Credential("me", "hunter2"), helper.LIFE)
    assert programs.read("server") == HUB


async def test_the_general_helper_is_asked_for_each_name(tmp_path: Path, programs: Bin) -> None:
    programs.add("mine", f"""if [ "$(cat)" = real.example ]; then echo '{ANSWER}'; else {NOT_FOUND}; fi""")
    source = DockerLogin(config(tmp_path, credsStore="mine"), ("name.example", "real.example"))
    assert (await source.fetch()).credential == Credential("me", "hunter2")


async def test_what_the_general_helper_does_not_know_the_file_may(tmp_path: Path, programs: Bin) -> None:
    programs.add("mine", NOT_FOUND)
    entry = {"username": "me", "password": "hunter2"}
    source = DockerLogin(config(tmp_path, credsStore="mine", auths={"ghcr.io": entry}), ("ghcr.io",))
    assert await source.fetch() == Issued(Credential("me", "hunter2"), helper.LIFE)


async def test_a_registry_that_nobody_logged_in_to_is_complained_of(tmp_path: Path) -> None:
    file = config(tmp_path, auths={"ghcr.io": {}})
    with pytest.raises(CredentialError, match=rf"^{file} has no login for ghcr.io: docker login ghcr.io$"):
        await DockerLogin(file, ("ghcr.io",)).fetch()


async def test_a_file_that_is_not_there_or_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=r"config\.json cannot be read"):
        await DockerLogin(tmp_path / "config.json", ("ghcr.io",)).fetch()
    file = config(tmp_path, credsStore="../sh")
    with pytest.raises(CredentialError, match=r"config\.json: .*impossible helper"):
        await DockerLogin(file, ("ghcr.io",)).fetch()
