"""Servers in processes of their own: started, waited for until they answer, ended by their ids."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import usage

END = 2.0  # seconds that it may take to end
SOON = 0.1  # seconds in which one that has gone is known to have
START = 20.0  # seconds that a server may take until it listens
MORE = "/usr/sbin:/sbin:/usr/local/sbin"  # where Debian puts servers, which is not on everyone's PATH


@dataclass(frozen=True)
class Place:
    """Where a server answers, and its process, if it has one of its own."""

    host: str
    pid: int | None = None
    is_tls: bool = False

    @property
    def url(self) -> str:
        """Its root, without a slash at the end."""
        return f"{'https' if self.is_tls else 'http'}://{self.host}"

    @property
    def peak(self) -> int:
        """The most memory that all of its processes have had so far, in bytes; 0 without a process."""
        return 0 if self.pid is None else usage.peak(self.pid)


def program(name: str) -> str | None:
    """Where a program is; None if it is not installed."""
    return shutil.which(name) or shutil.which(name, path=MORE)


@contextlib.asynccontextmanager
async def process(
    command: Sequence[str],
    port: int,
    env: Mapping[str, str] | None = None,
    *,
    log: Path | None = None,
    inherited: Sequence[int] = (),
) -> AsyncIterator[Place]:
    """A server, once it listens; what it says goes into a file, or nowhere. In the end all its processes are gone.

    `inherited`: descriptors that it gets, under the same numbers.
    """
    with contextlib.ExitStack() as stack:
        out = subprocess.DEVNULL if log is None else stack.enter_context(log.open("ab"))
        one = await asyncio.create_subprocess_exec(
            *command, stdout=out, stderr=out, env={**os.environ, **(env or {})}, pass_fds=inherited
        )
        try:
            await _listens(one, port, command[0])
            yield Place(f"127.0.0.1:{port}", one.pid)
        except Exception as error:
            with contextlib.suppress(TimeoutError):  # whom it let down may know of it first
                await asyncio.wait_for(one.wait(), SOON)
            if one.returncode is not None:  # nobody had told it to end
                error.add_note(f"{command[0]} had ended with status {one.returncode}{_last_words(log)}")
            raise
        finally:
            await _end(one)


async def _listens(one: asyncio.subprocess.Process, port: int, name: str) -> None:
    async with asyncio.timeout(START):
        while not await _answers(port):  # another process: there is no event to wait for
            if one.returncode is not None:
                raise RuntimeError(f"{name} ended with status {one.returncode} before it listened")
            await asyncio.sleep(0.01)


def _last_words(log: Path | None) -> str:
    return "" if log is None else ", and said: " + log.read_text(errors="replace")[-1000:]


async def _end(one: asyncio.subprocess.Process) -> None:
    """It may take away what is its own (Entrepot's workers count in files that are in memory), but not its time."""
    if one.returncode is None:
        started = usage.tree(one.pid)
        with contextlib.suppress(TimeoutError, ProcessLookupError):
            try:
                one.terminate()
                async with asyncio.timeout(END):
                    await one.wait()
            finally:
                _kill(one, started)
    await one.wait()


def _kill(one: asyncio.subprocess.Process, started: Sequence[int]) -> None:
    """With all that it has started, unless it has ended."""
    if one.returncode is None:
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return True


def free_port() -> int:
    """A port that nothing listens on, and that the system gives to no outgoing connection.

    Such a one could take it before the server does. And whoever looks for a server that is not there yet would find
    itself: a connection that comes from the very port it goes to is made.
    """
    given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 10_000 + secrets.randbelow(given - 10_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
