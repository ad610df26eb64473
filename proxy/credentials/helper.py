"""Docker's credential helpers: programs that are asked by standard input and answer with JSON."""

import asyncio
import contextlib
import json
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process

from proxy.credentials.base import Credential, CredentialError

LIMIT = 9.0  # seconds for an answer, less than Refreshing gives, so that the helper is named
LIFE = 300.0  # seconds that an answer is good for: helpers keep what is slow to come by
_NOT_FOUND = b"credentials not found in native keychain"  # what all helpers say, to be told from what is amiss
_TOKEN = "<token>"  # noqa: S105  in place of a user name, it says that the secret is a refresh token


async def ask(name: str, server: str, limit: float = LIMIT) -> Credential | None:
    """The credential that docker-credential-<name> has for a server; None if it has none. Raises CredentialError."""
    program = f"docker-credential-{name}"
    try:
        process = await _start(program, server)
    except OSError as error:
        raise CredentialError(f"{program} cannot be run ({error.strerror}): is it on the PATH?") from None
    try:
        async with asyncio.timeout(limit):
            output = await _heard(process)
    except TimeoutError:
        raise CredentialError(f"{program} did not answer within {limit:g} s") from None
    if process.returncode == 0:
        return _read(program, output)
    if output.strip() == _NOT_FOUND:
        return None
    # What it printed is not repeated: nobody can say that no secret is in it.
    raise CredentialError(
        f"{program} failed with status {process.returncode}: see what it says to: echo {server} | {program} get"
    )


async def _start(program: str, server: str) -> Process:
    # The question waits in the pipe, which it is too short to fill: uvloop has closed its own end of one by the time
    # that a quick helper, which need not listen, has ended.
    question = _pipe_with(server.encode())
    try:
        return await asyncio.create_subprocess_exec(
            program, "get", stdin=question, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
    finally:
        os.close(question)


def _pipe_with(content: bytes) -> int:
    out, into = os.pipe()
    try:
        os.set_blocking(into, False)
        os.write(into, content)
    finally:
        os.close(into)
    return out


async def _heard(process: Process) -> bytes:
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        # What it started goes too: it may be what hangs, with the output still open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    return output


def _read(program: str, output: bytes) -> Credential | None:
    try:
        answer = json.loads(output)
        username, secret = answer["Username"], answer["Secret"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CredentialError(f"{program} answered with something else than a user name and a secret") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise CredentialError(f"{program} answered with a user name or a secret that is no text")
    return Credential(username, secret, username == _TOKEN) if secret else None
