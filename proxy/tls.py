"""TLS between a connection's transport and what speaks HTTP on it.

An event loop's own TLS lets nobody else encrypt, and one event loop encrypts less than two processors could, holds what
it encrypts for each client that is slow, and answers nobody meanwhile. Here what is small is encrypted on the loop, and
a session is lent to a thread that sends a stretch of a file (`files.Senders`), by which alone it is used until then.
"""

import asyncio
import contextlib
import math
import ssl
from typing import Any

from proxy.sealing import RECORD, SLICE, Sealed

HELD = 64 * 1024  # bytes beyond which a client whose session is lent is read from no more
FULL = 8 * 1024 * 1024  # bytes that may wait for a client while it goes on to talk: twice as long as an answer may be
HANDSHAKE = 60.0  # seconds
FAREWELL = 30.0  # seconds for which a client may take nothing of what was written before its connection was closed


class Secured(asyncio.Transport):
    """A connection as it looks to who speaks HTTP on it: what is written here is encrypted on its way."""

    def __init__(self, session: "Session", raw: asyncio.Transport, tls: ssl.SSLObject, sealed: ssl.MemoryBIO) -> None:
        super().__init__()
        self._session = session
        self._raw = raw
        self._tls = tls
        self._sealed = sealed
        self._is_closing = False
        self._is_lent = False
        self._waiting: list[bytes] = []  # written while the session is lent
        self._is_paused = False

    # What a thread is lent

    def outlet(self) -> Sealed:
        """By which files are sent."""
        return Sealed(self._raw.get_extra_info("socket").fileno(), self._tls, self._sealed, self)

    @property
    def is_lent(self) -> bool:
        """Whether a thread uses the session, and nobody else may."""
        return self._is_lent

    def lend(self) -> None:
        """Let a thread use the session."""
        self._is_lent = True

    def take_back(self, left: bytes) -> None:
        """Use it here again. What the thread has encrypted and the client not taken comes first."""
        self._is_lent = False
        if self._raw.is_closing():
            return
        if left:
            self._raw.write(left)
        for data in self._waiting:
            self._seal(data)
        self._waiting.clear()
        if self._is_closing:
            self._end()
        else:
            self._later()

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, now or later."""
        if self.is_closing() or not data:
            return
        if self._is_lent:
            self._waiting.append(bytes(data))
        else:
            self._seal(data)

    def writelines(self, list_of_data: Any) -> None:
        """Send them one after the other."""
        self.write(b"".join(list_of_data))

    def _seal(self, data: bytes | bytearray | memoryview) -> None:
        try:
            for start in range(0, len(data), SLICE):
                self._tls.write(memoryview(data)[start : start + SLICE])
                self.flush()
        except ssl.SSLError:
            self.abort()

    def flush(self) -> None:
        """Send what the session has for the client."""
        if self._sealed.pending and not self._raw.is_closing():
            self._raw.write(self._sealed.read())

    def can_write_eof(self) -> bool:
        """Not: TLS ends for both at once, as far as HTTP/1.1 knows."""
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """How many bytes may wait, encrypted, before the protocol is asked to pause."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The same, low and high."""
        return self._raw.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        """Bytes that wait."""
        return self._raw.get_write_buffer_size() + sum(map(len, self._waiting))

    # Reading

    @property
    def is_paused(self) -> bool:
        """Whether the protocol wants nothing just now."""
        return self._is_paused

    def is_reading(self) -> bool:
        """Whether the protocol gets what comes."""
        return not self._is_paused and not self._is_closing

    def pause_reading(self) -> None:
        """Let the client wait."""
        self._is_paused = True
        if not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Read on, what has come before first."""
        self._is_paused = False
        self._later()

    def _later(self) -> None:
        """Not at once: whoever calls is in the middle of something."""
        asyncio.get_running_loop().call_soon(self._session.go_on)

    # The connection

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What there is to know of TLS, as far as aiohttp asks, and of the transport below."""
        own = {"sslcontext": self._tls.context, "ssl_object": self._tls}
        return own.get(name) or self._raw.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who speaks HTTP."""
        protocol: asyncio.BaseProtocol = self._session.protocol
        return protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have somebody else speak on it."""
        self._session.protocol = protocol

    def is_closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._is_closing or self._raw.is_closing()

    def close(self) -> None:
        """Send what was written, then say that it is over: whoever gets less than that can tell (RFC 8446, 6.1)."""
        if not self._is_closing:
            self._is_closing = True
            if not self._is_lent and not self._raw.is_closing():
                self._end()

    def _end(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # it wants the client's word as well, for which nobody waits
            self._tls.unwrap()
        self.flush()
        self._session.leave()

    def lose(self) -> None:
        """Nobody is there to be told that it is over."""
        self._is_closing = True

    def abort(self) -> None:
        """Let the client go at once."""
        self._is_closing = True
        self._raw.abort()


class Session(asyncio.Protocol):
    """What the event loop knows of a connection: it decrypts what comes, and hands it on."""

    def __init__(self, protocol: asyncio.Protocol, context: ssl.SSLContext) -> None:
        self.protocol: Any = protocol
        self._context = context
        self._arrived = ssl.MemoryBIO()
        self._held = bytearray()  # what came while the session is lent
        self._is_ready = False  # the handshake is done
        self._is_told = False  # the protocol, to write no more
        self._secured: Secured
        self._raw: asyncio.Transport
        self._tls: ssl.SSLObject
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # TCP's is one
        """The client is there, and has to say hello."""
        sealed = ssl.MemoryBIO()
        self._raw, self._tls = transport, self._context.wrap_bio(self._arrived, sealed, server_side=True)
        self._secured = Secured(self, transport, self._tls, sealed)
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Decrypt it, unless somebody else has the session."""
        if self._raw.get_write_buffer_size() > FULL:  # TLS itself answers some of what it is told (RFC 8446, 4.6.3)
            self._raw.abort()
            return
        if self._secured.is_lent or self._held:
            self._held += data
            if len(self._held) > HELD:
                self._raw.pause_reading()
            return
        self._arrived.write(data)
        self._decrypt()

    def go_on(self) -> None:
        """Decrypt what has come meanwhile, and read on."""
        if self._raw.is_closing() or self._secured.is_lent:
            return
        self._arrived.write(self._held)
        self._held.clear()
        if not self._secured.is_paused:
            self._raw.resume_reading()
        self._decrypt()

    def _decrypt(self) -> None:
        try:
            if not self._is_ready:
                self._shake_hands()
            while self._secured.is_reading() and not self._secured.is_lent:
                if not (data := self._tls.read(RECORD)):
                    self._secured.close()  # the client has said that it is over
                    return
                self.protocol.data_received(data)
                if not self._arrived.pending and not self._tls.pending():
                    break  # to ask for more would raise, which takes 3 of the 30 microseconds of a small answer
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._secured.flush()  # what TLS has to say to it
            self.leave()
            return
        if not self._secured.is_lent:
            self._secured.flush()

    def _shake_hands(self) -> None:
        self._tls.do_handshake()
        self._is_ready = True
        self._keep()
        self._secured.flush()
        self.protocol.connection_made(self._secured)

    def leave(self) -> None:
        """Close the connection, once the client has taken what was written, or takes nothing any more."""
        self._raw.close()
        self._wait(math.inf)

    def _wait(self, before: float) -> None:
        self._keep()
        if (left := self._raw.get_write_buffer_size()) < before:
            self._deadline = asyncio.get_running_loop().call_later(FAREWELL, self._wait, left)
        else:
            self._raw.abort()

    def _keep(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        if self._is_ready:
            self._is_told = True
            self.protocol.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._is_told:
            self._is_told = False
            self.protocol.resume_writing()

    def eof_received(self) -> bool | None:
        """The client says nothing more, and takes nothing either, as far as HTTP/1.1 over TLS goes."""
        if self._is_ready:
            self.protocol.eof_received()
        self.leave()  # not for ever: it may have been sent what it does not read
        return None

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone."""
        self._keep()
        self._secured.lose()  # before the protocol closes it: nothing can be said to the client, or waited for
        if self._is_ready:
            self.protocol.connection_lost(error)
