"""The command line as a person meets it: in a process of its own, in 80 columns."""

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

import proxy
from proxy.__main__ import main

from .harness import DEADLINE

ENTREPOT = (str(Path(sys.executable).parent / "entrepot"),)
MODULE = (sys.executable, "-m", "proxy")
GOOD = '[[upstream]]\nregistry = "own.example"\nurl = "https://registry.own.example"\n'


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


async def run(*arguments: str, command: Sequence[str] = MODULE, **environ: str) -> Said:
    """Run the command line to its end."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ENTREPOT_")}
    process = await asyncio.create_subprocess_exec(
        *command, *arguments, env={**kept, "COLUMNS": "80", **environ}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(2 * DEADLINE):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    said = Said(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in said.out + said.err
    return said


@pytest.mark.parametrize("command", [ENTREPOT, MODULE], ids=["entrepot", "module"])
async def test_help_says_what_it_is_and_what_to_type(command: Sequence[str]) -> None:
    said = await run("--help", command=command)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("Usage: entrepot [OPTIONS] COMMAND")
    assert "a pull-through cache for container images" in said.out
    for name in ("serve", "check", "demo", "ls", "du", "show", "rm", "pin", "unpin", "refresh", "moves", "freeze"):
        assert re.search(rf"^  {name} +[A-Z]", said.out, re.MULTILINE)
    assert "..." not in said.out.partition("Commands:")[2], "a summary is cut off"
    assert all(len(line) <= 80 for line in said.out.splitlines())


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_has_help(name: str) -> None:
    said = CliRunner(env={"COLUMNS": "80"}).invoke(main, [name, "--help"], prog_name="entrepot")
    assert (said.exit_code, said.stderr) == (0, "")
    assert said.stdout.startswith(f"Usage: entrepot {name} [OPTIONS]")
    assert "--worker-socket" not in said.stdout
    assert all(len(line) <= 80 for line in said.stdout.splitlines())


@pytest.mark.parametrize("command", [ENTREPOT, MODULE], ids=["entrepot", "module"])
async def test_the_version_is_the_packages(command: Sequence[str]) -> None:
    assert await run("--version", command=command) == Said(0, f"entrepot, version {proxy.__version__}\n", "")


def test_a_mistyped_command_is_met_with_the_nearest_one() -> None:
    said = CliRunner().invoke(main, ["chek"])
    assert said.exit_code == 2
    assert "Did you mean 'check'?" in said.stderr


async def test_check_says_what_a_good_configuration_would_do(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    await asyncio.to_thread(config.write_text, GOOD)
    said = await run("check", "--config", str(config), ENTREPOT_STORE_PATH=str(tmp_path / "cache"))
    assert (said.code, said.err) == (0, "")
    assert "own.example from https://registry.own.example, the default" in said.out
    assert "…" not in said.out
    assert said.out.endswith("\nwould start\n")
    assert not (tmp_path / "cache").exists()


async def test_the_configuration_may_be_named_by_the_environment(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    await asyncio.to_thread(config.write_text, GOOD)
    environ = {"ENTREPOT_CONFIG": str(config), "ENTREPOT_STORE_PATH": str(tmp_path / "cache")}
    said = await run("check", ENTREPOT_SERVER_WORKERS="3", **environ)
    assert said.code == 0
    assert "own.example from" in said.out
    assert "3 processes" in said.out


async def test_check_tells_every_mistake_and_ends_with_2(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    await asyncio.to_thread(config.write_text, "[server]\nworkrs = 2\n[store]\nmax_size = 'big'\n" + GOOD)
    said = await run("check", "--config", str(config))
    assert (said.code, said.out) == (2, "")
    assert said.err.splitlines() == [
        "entrepot: server.workrs: no such key; did you mean 'workers'?",
        """entrepot: store.max_size: 'big' is no size: write "500 MiB", "100 GiB" or "2 TB\"""",
    ]


async def test_check_ends_with_2_if_the_machine_is_what_is_wrong(tmp_path: Path) -> None:
    said = await run("check", ENTREPOT_STORE_PATH="/dev/null")
    assert said.code == 2
    assert "entrepot: store.path: /dev/null is no directory" in said.out
    assert said.out.endswith("\nwould not start\n")


async def test_the_demo_pulls_through_a_cache_and_prints_what_that_took() -> None:
    said = await run("demo", "--size", "1", "--layers", "2", "--clients", "4")
    assert said.code == 0, said.err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines() if "│" in line]
    table = {row[0]: (int(row[1]), int(row[4]), float(row[5])) for row in rows if row[1].isdigit()}
    assert table == {  # clients, requests upstream, MiB from upstream
        "without the cache": (1, 4, 2.0),
        "cold": (1, 4, 2.0),
        "warm": (1, 1, 0.0),
        "cold, all at once": (4, 4, 2.0),
        "warm, all at once": (4, 1, 0.0),
        "upstream stopped": (1, 0, 0.0),
    }
    assert all(len(line) <= 80 for line in said.out.splitlines())
    assert "…" not in said.out


@pytest.mark.parametrize("option", ["--clients=0", "--layers=0", "--size=0", "--size=much"])
def test_the_demo_refuses_what_cannot_be(option: str) -> None:
    said = CliRunner().invoke(main, ["demo", option])
    assert said.exit_code == 2
    assert f"Invalid value for '{option.partition('=')[0]}'" in said.stderr
