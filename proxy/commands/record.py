"""`entrepot record`: which manifests and blobs a boot or a build asks for."""

import asyncio
import contextlib
import ipaddress
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from proxy.commands.loading import config_option, guarded, load, refuse
from proxy.config import Config
from proxy.files import hop, replacing
from proxy.oci import imagelist
from proxy.oci.ratelimit import as_utc
from proxy.recording import NotRecorded, Recording
from proxy.recording import notes as recording_notes
from proxy.stores.directory import open_tree


class Address(click.ParamType[str]):
    """An IP address, written as a server writes those of its clients."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            self.fail(f"{value!r} is no IP address", param, ctx)


@click.command("record", context_settings={"allow_interspersed_args": False})  # what follows COMMAND is its own
@config_option
@click.option("-o", "--output", "output", required=True, type=click.Path(path_type=Path), help="The list to write.")
@click.option("--client", "clients", multiple=True, type=Address(), help="Only what this address asks for.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def record_command(path: Path | None, output: Path, clients: tuple[str, ...], command: tuple[str, ...]) -> None:
    """Write down what clients ask a running server for.

    For as long as COMMAND runs, or until Ctrl-C. The list has each manifest and each blob, and no others: entrepot
    warm -f and entrepot export -f bring exactly these. Ends as COMMAND does.
    """
    config = load(path)
    codes: list[int] = []
    try:
        guarded(lambda: _record(config, output, clients, command, codes))
    except NotRecorded as error:
        refuse(error)
    raise SystemExit(codes[0] if codes else 0)


async def _record(
    config: Config, output: Path, clients: Sequence[str], command: Sequence[str], codes: list[int]
) -> None:
    with contextlib.closing(await hop(open_tree, config.store.path)) as tree:
        recording = Recording(tree, clients)
        async with replacing(output) as stream:  # before the command runs: nobody boots twice for a mistyped path
            async with recording.going():
                codes.append(await _run(command))
                found = await recording.result()
            notes = await hop(recording_notes, tree, found)
            title = f"recorded until {as_utc(time.time())}{' of ' + ', '.join(clients) if clients else ''}"
            await stream.write(imagelist.write(title, found, notes))
    parts = [sum(one.part == part for one in found) for part in ("manifest", "blob")]
    full = "; there was more than is written down" if recording.is_full else ""
    click.echo(f"{output}: {parts[0]} manifests, {parts[1]} blobs{full}", err=True)


async def _run(command: Sequence[str]) -> int:
    """Run a command to its end, or wait for Ctrl-C; returns its exit status."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    loop.add_signal_handler(signal.SIGINT, (lambda: None) if command else told.set)  # a terminal sends it to both
    if not command:
        click.echo("recording; Ctrl-C ends it", err=True)  # from now on it does
        await told.wait()
        return 0
    try:
        child = await asyncio.create_subprocess_exec(*command)
    except OSError as error:
        raise NotRecorded(f"{command[0]}: cannot be run ({error.strerror})") from None
    passing = asyncio.create_task(_pass_on(told, child))
    try:
        code = await child.wait()
    finally:
        passing.cancel()
    return code if code >= 0 else 128 - code  # as a shell says that a signal ended it


async def _pass_on(told: asyncio.Event, child: asyncio.subprocess.Process) -> None:
    await told.wait()
    with contextlib.suppress(ProcessLookupError):
        child.terminate()


COMMANDS = (record_command,)
