"""Several worker processes on one socket and one cache, and the admin listener that speaks for them all."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import mark_process_dead

from proxy.admin import Admin
from proxy.config import Config
from proxy.desk import Desk
from proxy.files import Scratch, hop, scratch
from proxy.serving import Signals, address, listening, rehearse
from proxy.stores.directory import open_tree
from proxy.stores.limits import DiskLimits
from proxy.telemetry import Logger

PAUSE = 1.0  # seconds before a worker that died is replaced
MEMORY = Path("/dev/shm")  # noqa: S108  counters need no disk, and a read-only container has no /tmp
COUNTERS = "entrepot-counters-"  # the directory of them, which all workers share
GRACE = 15.0  # seconds beyond the drain time-out before a worker is killed


class Supervisor:
    """Keeps `server.workers` processes alive until it is told to stop, and then until they have drained.

    The workers share the listening socket: connections wait in one queue, and a worker that dies loses none of them.
    A worker's standard input is a pipe from here: when this process dies, however suddenly, it ends and they stop.
    """

    def __init__(self, config: Config, log: Logger, sock: socket.socket, command: Sequence[str]) -> None:
        self._config = config
        self._log = log
        self._sock = sock
        self._command = [*command, "--worker-socket", str(sock.fileno())]
        self._workers: set[asyncio.subprocess.Process] = set()

    async def run(self, admin: socket.socket, signals: Signals) -> None:
        """Supervise until a signal. Raises ConfigError, UnsafeDirectory, OSError before it starts a worker."""
        await rehearse(self._config)
        workers = self._config.server.workers
        memory = MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        tree = await hop(open_tree, self._config.store.path)
        with contextlib.closing(tree), contextlib.ExitStack() as stack:
            shared = await hop(stack.enter_context, scratch(COUNTERS, memory))
            answering = Admin(
                self._config.admin, CollectorRegistry(), DiskLimits(tree), Desk(self._config, tree), shared.path
            )
            async with listening(answering, admin, self._config.server.client_stall_timeout):
                self._log.info("supervising", listen=address(self._sock), admin=address(admin), workers=workers)
                keepers = [asyncio.create_task(self._keep(shared)) for _ in range(workers)]
                await signals.stop.wait()
                for keeper in keepers:
                    keeper.cancel()
                await asyncio.gather(*keepers, return_exceptions=True)
                self._sock.close()  # else it would go on to take connections that no worker accepts any more
                await self._stop(signals)

    async def _keep(self, shared: Scratch) -> None:
        """See to it that there is one worker, for ever."""
        while True:
            try:
                await self._run_one(shared)
            except OSError as error:
                self._log.error("a worker cannot be started", reason=error.strerror)
            await asyncio.sleep(PAUSE)

    async def _run_one(self, shared: Scratch) -> None:
        worker = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(shared.path)},
            pass_fds=[self._sock.fileno(), shared.lock],
            start_new_session=True,  # a terminal's Ctrl-C is for the supervisor, who passes it on once
        )
        self._workers.add(worker)
        code = await worker.wait()
        self._workers.discard(worker)
        mark_process_dead(worker.pid, str(shared.path))  # type: ignore[no-untyped-call]
        self._log.error("a worker died and is replaced", pid=worker.pid, code=code)

    async def _stop(self, signals: Signals) -> None:
        self._signal(signal.SIGINT if signals.is_impatient else signal.SIGTERM)
        gone = asyncio.create_task(self._gone())
        hurry = asyncio.create_task(signals.now.wait())
        limit = self._config.server.lb_delay + self._config.server.drain_timeout + GRACE
        await asyncio.wait({gone, hurry}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if hurry.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait({gone}, timeout=GRACE)
        hurry.cancel()
        for worker in self._workers:
            if worker.returncode is None:
                self._log.error("a worker did not stop and is killed", pid=worker.pid)
                worker.kill()
        await gone

    async def _gone(self) -> None:
        await asyncio.gather(*(worker.wait() for worker in self._workers))

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.send_signal(number)


def watch_parent(signals: Signals) -> None:
    """In a worker: stop when the pipe from the supervisor ends."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def ended() -> None:
        loop.remove_reader(descriptor)
        signals.received()

    loop.add_reader(descriptor, ended)
