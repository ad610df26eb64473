"""A wire to a server that can be cut: what is on it then ends early, and the next connection is whole."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

CHUNK = 65536


class Wire:
    """A port that leads to another one, in threads of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._target = 0
        self._lock = threading.Lock()
        self._cut_after: int | None = None
        self.cuts = 0
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = [self._listener]

    @contextlib.contextmanager
    def to(self, target: int) -> Iterator["Wire"]:
        """Lead to a port for as long as the block lasts."""
        self._target = target
        self._start(self._accept)
        try:
            yield self
        finally:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
            for thread in self._threads:
                thread.join()

    def cut_once(self, after: int) -> None:
        """Cut the next connection over which so many bytes have come from the server."""
        with self._lock:
            self._cut_after = after

    def _start(self, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # the end
            self._sockets.append(client)
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self._sockets.append(server)
            self._start(partial(self._pump, client, server, is_down=False))
            self._start(partial(self._pump, server, client, is_down=True))

    def _pump(self, source: socket.socket, sink: socket.socket, *, is_down: bool) -> None:
        came = 0
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                came += len(data)
                if is_down and self._is_cut(came):
                    break
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _is_cut(self, came: int) -> bool:
        with self._lock:
            if self._cut_after is None or came < self._cut_after:
                return False
            self._cut_after = None
            self.cuts += 1
            return True
