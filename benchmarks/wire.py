"""Another server behind a link (link.py), which is a process of its own: up, with a port, until it is taken down."""

import contextlib
import json
from asyncio import create_subprocess_exec, subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.link import Link


@dataclass
class Wire:
    """A link that is up: its process, its port, and what it has said."""

    process: subprocess.Process
    port: int
    said: list[dict[str, Any]] = field(default_factory=list)

    @property
    def host(self) -> str:
        """Where the server behind it is reached."""
        return f"127.0.0.1:{self.port}"

    async def take_down(self) -> int:
        """End it; returns the bytes that it has brought. Raises RuntimeError with what it says of a failure."""
        said, _ = await self.process.communicate(b"")  # closes its standard input
        lines = said.splitlines()
        if not all(line.startswith(b"{") for line in lines):
            raise RuntimeError(f"the link failed: {said.decode()}")
        self.said += map(json.loads, lines)
        return int(self.said[-1]["bytes"])


@contextlib.asynccontextmanager
async def linked(link: Link) -> AsyncIterator[Wire]:
    """Put one up."""
    async with child(link.command()) as process:
        yield Wire(process, (await told(process, "listening"))["port"])


@contextlib.asynccontextmanager
async def child(command: Sequence[str]) -> AsyncIterator[subprocess.Process]:
    """A process of our own, which tells of itself on its output; killed at the end."""
    pipe = subprocess.PIPE
    process = await create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def told(process: subprocess.Process, event: str) -> dict[str, Any]:
    """The line of JSON in which a process tells of something; it may tell of others before."""
    said = b""
    while process.stdout is not None and (line := await process.stdout.readline()):
        said += line
        one = json.loads(line) if line.startswith(b"{") else {}
        if one.get("event") == event:
            return dict(one)
    raise RuntimeError(f"it ended before it was {event}: {said.decode()}")
