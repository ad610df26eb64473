"""A wire to a server that can be cut, so that what is on it ends early, or held, so that it stays in the middle."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial

CHUNK = 65536


class Hold:
    """Connections that get no further: those over which so many bytes have come from one of their ends."""

    def __init__(self, after: int, *, is_down: bool) -> None:
        self.count = 0
        self._after = after
        self._is_down = is_down
        self._is_reset = False
        self._over = threading.Event()

    def release(self) -> None:
        """Let them all go on."""
        self._over.set()

    def reset(self) -> None:
        """End them all, as the end of a machine would: a server that is gone takes no more from its clients."""
        self._is_reset = True
        self._over.set()

    def passes(self, came: int, *, is_down: bool) -> bool:
        """Wait, if this is one of them; False if it is to be reset."""
        if is_down != self._is_down or came < self._after or self._over.is_set():
            return True
        self.count += 1
        self._over.wait()
        return not self._is_reset


class Wire:
    """A port that leads to another one, in threads of its own."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._target = 0
        self._lock = threading.Lock()
        self._cut_after: int | None = None
        self._hold: Hold | None = None
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

    @contextlib.contextmanager
    def held(self, after: int, *, is_down: bool) -> Iterator[Hold]:
        """Hold connections over which so many bytes have come from the server (down) or the client, until released."""
        self._hold = hold = Hold(after, is_down=is_down)
        try:
            yield hold
        finally:
            self._hold = None
            hold.release()

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
                hold = self._hold
                if hold is not None and not hold.passes(came, is_down=is_down):
                    _reset(source)
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


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
