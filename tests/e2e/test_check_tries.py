"""`entrepot check` tries each account, and says in one line what is wrong."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from .harness import toml
from .upstream import FakeRegistry

SECRET = "open-sesame-do-not-tell"


async def check(tmp_path: Path, text: str, *options: str) -> tuple[int, str]:
    """Run the command: its exit status, and all that it says."""
    path = tmp_path / "proxy.toml"
    path.write_text(text)
    environ = {**os.environ, "ENTREPOT_STORE_PATH": str(tmp_path / "cache"), "TOKEN": SECRET, "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "check", "--config", str(path), *options, env=environ,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(30):
        said, _ = await process.communicate()
    assert process.returncode is not None
    assert SECRET.encode() not in said
    return process.returncode, said.decode()


LOGIN = 'username = "ann"\npassword_env = "TOKEN"'


@pytest.mark.parametrize("scheme", ["bearer", "basic", "none"])
async def test_credentials_that_are_right_are_passed_over_in_silence(
    upstream: FakeRegistry, tmp_path: Path, scheme: str
) -> None:
    users = {"ann": SECRET}
    {
        "bearer": lambda: upstream.require_bearer(users=users, anonymous=False),
        "basic": lambda: upstream.require_basic(users),
        "none": upstream.require_nothing,
    }[scheme]()
    code, said = await check(tmp_path, toml(upstream.url, more=LOGIN))
    assert (code, "entrepot: " in said) == (0, False), said


@pytest.mark.parametrize("scheme", ["bearer", "basic"])
async def test_credentials_that_are_wrong_are_one_line(upstream: FakeRegistry, tmp_path: Path, scheme: str) -> None:
    users = {"ann": "another"}
    if scheme == "bearer":
        upstream.require_bearer(users=users, anonymous=False)
    else:
        upstream.require_basic(users)
    code, said = await check(tmp_path, toml(upstream.url, more=LOGIN))
    (line,) = [line for line in said.splitlines() if line.startswith("entrepot: ")]
    assert code == 1
    assert line.startswith("entrepot: upstream[0]: ")
    assert "refuses the credentials of docker.io as ann" in line
    assert "would start" in said


@pytest.mark.parametrize("status", [404, 500, 302])
async def test_an_address_where_no_registry_is_is_one_line(upstream: FakeRegistry, tmp_path: Path, status: int) -> None:
    upstream.on(path="/v2/", unauthorized=True).status(status)
    code, said = await check(tmp_path, toml(upstream.url, more=LOGIN))
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("entrepot: ")]
    assert f"docker.io answered {status} to {upstream.url}/v2/" in line


async def test_an_upstream_that_does_not_answer_is_one_line(upstream: FakeRegistry, tmp_path: Path) -> None:
    await upstream.go_down()
    code, said = await check(tmp_path, toml(upstream.url, more=LOGIN))
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("entrepot: ")]
    assert "cannot connect to 127.0.0.1" in line


async def test_a_proxy_that_cannot_be_reached_is_one_line(upstream: FakeRegistry, tmp_path: Path) -> None:
    async with FakeRegistry() as gone:
        await gone.go_down()
        code, said = await check(tmp_path, toml(upstream.url, more=f'proxy = "{gone.url}"'))
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("entrepot: ")]
    assert "proxy" in line
    assert upstream.count() == 0


async def test_offline_and_with_nothing_to_try_nobody_is_asked(upstream: FakeRegistry, tmp_path: Path) -> None:
    assert (await check(tmp_path, toml(upstream.url, more=LOGIN), "--offline"))[0] == 0
    assert (await check(tmp_path, toml(upstream.url)))[0] == 0
    assert (await check(tmp_path, toml(upstream.url, more=f"{LOGIN}\nsealed = true")))[0] == 0
    assert upstream.count() == 0
