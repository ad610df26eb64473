"""In a server's process: what clients ask for, written down for as long as somebody records.

recordings/worker-<random> is locked by each such process as long as it lives, recordings/<id>.lock by whoever records.
Each process has a file recordings/<id>.by-<random> then: that it is there says that the process takes part, and its
last line, once there is a recordings/<id>.over or the lock is free, that this was all.
"""

import asyncio
import contextlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.files import Tree, hop
from proxy.oci.digest import Digest
from proxy.oci.imagelist import Part
from proxy.oci.reference import Reference, Repository, Tag
from proxy.telemetry import Logger

LOOK = 1.0  # seconds between looks whether somebody records, and between writes
MOST = 100_000  # different things that are written down in one recording
WORKER, LOCK, CLIENTS, OVER, BY = "worker-", ".lock", ".clients", ".over", ".by-"
CLIENTS_LIMIT = 64 * 1024  # bytes
END, FULL = "end", "full"  # the last line, and that of a process that wrote down as much as it may


@dataclass(slots=True)
class _Session:
    """One recording: of which clients (all, if there are none), what has been noted, and what is not written yet."""

    clients: frozenset[str]
    noted: set[str] = field(default_factory=set)
    batch: list[str] = field(default_factory=list)


class Recorder:
    """Takes note of what clients ask for. `is_on` says whether anybody wants to know."""

    def __init__(self, tree: Tree, log: Logger) -> None:
        self.is_on = False
        self._tree = tree
        self._log = log
        self._own = secrets.token_hex(8)
        self._sessions: dict[str, _Session] = {}

    def note(self, client: str | None, part: Part, repository: Repository, asked: Reference, got: Digest) -> None:
        """A client was given that."""
        tag = asked if isinstance(asked, Tag) else "-"
        line = f"{part} {repository} {tag} {got}"
        for session in self._sessions.values():
            if (session.clients and client not in session.clients) or line in session.noted:
                continue
            is_full = len(session.noted) >= MOST
            if is_full and FULL in session.noted:
                continue
            session.noted.add(FULL if is_full else line)
            session.batch.append(FULL if is_full else line)

    async def run(self) -> None:
        """Heed recordings until cancelled; what fails is logged, and tried again."""
        key = f"recordings/{WORKER}{self._own}"
        while True:
            try:
                with contextlib.ExitStack() as stack:
                    await hop(stack.enter_context, self._tree.locked(key))
                    while await hop(self._tree.size, key) is not None:  # else it was swept before it was locked
                        await self._look()
                        await asyncio.sleep(LOOK)
            except OSError as error:
                self._log.error("not recorded; it is tried again", reason=error.strerror)
            except Exception:
                self._log.exception("not recorded; it is tried again")
            await asyncio.sleep(LOOK)

    async def _look(self) -> None:
        live = await hop(self._live)
        for name in live.keys() - self._sessions.keys():
            self._sessions[name] = _Session(live[name])
        self.is_on = bool(self._sessions)
        for name, session in list(self._sessions.items()):
            if name not in live:
                del self._sessions[name]  # before its last line: nothing is noted after that
                self.is_on = bool(self._sessions)
                session.batch.append(END)
            batch, session.batch = session.batch, []
            body = "".join(f"{line}\n" for line in batch).encode()
            try:
                await self._tree.append(f"recordings/{name}{BY}{self._own}", body)
            except OSError:
                session.batch[:0] = batch
                raise

    def _live(self) -> Mapping[str, frozenset[str]]:
        """The recordings that go on, and whom they are of."""
        found = {}
        keys = {entry.key for entry in self._tree.scan("recordings")}
        for key in keys:
            name = key.removeprefix("recordings/").removesuffix(LOCK)
            is_over = f"recordings/{name}{OVER}" in keys
            if key.endswith(LOCK) and not is_over and not self._tree.is_free(key):
                body = self._tree.read_now(f"recordings/{name}{CLIENTS}", CLIENTS_LIMIT)
                if body is not None:  # else it is about to be written
                    found[name] = frozenset(json.loads(body))
        return found
