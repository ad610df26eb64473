"""The server's TLS certificate and key, read again when they change."""

import hashlib
import re
import ssl
from pathlib import Path

from proxy.config import ConfigError
from proxy.files import hop, stamp
from proxy.telemetry import Logger

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL | re.ASCII)


class Certificate:
    """A TLS context that follows its files: connections made after a change get the new certificate."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read both; blocking, for start-up. Raises ConfigError."""
        self._certificate = certificate
        self._key = key
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            self._stamp = stamp(self._certificate, self._key)
            self._load(self.context)
            self.fingerprint = self._fingerprint()
        except OSError as error:
            # ssl.SSLError is an OSError: a certificate that does not fit its key, or is none.
            raise ConfigError([f"server.tls_certificate, server.tls_key: cannot be used together ({error})"]) from None

    async def refresh(self, log: Logger) -> None:
        """Take over changed files; while they do not fit each other, amid a renewal, keep the old ones."""
        try:
            if await hop(self._reload):
                log.info("TLS certificate renewed", certificate=str(self._certificate))
        except OSError as error:
            log.warning("TLS certificate not renewed, keeping the old one", reason=str(error))

    def _reload(self) -> bool:
        found = stamp(self._certificate, self._key)
        if found == self._stamp:
            return False
        # Tried on a context of its own first: a failure would leave the live one without a key.
        self._load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
        self._load(self.context)
        self._stamp, self.fingerprint = found, self._fingerprint()
        return True

    def _fingerprint(self) -> str:
        """The SHA-256, in hex, of the certificate that clients are shown: the first of the file (RFC 8446, 4.4.2)."""
        found = _CERTIFICATE.search(self._certificate.read_text(errors="replace"))
        return "" if found is None else hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).hexdigest()

    def _load(self, context: ssl.SSLContext) -> None:
        # A password, though a wrong one, for a key that wants one: else OpenSSL asks the terminal, and all wait.
        context.load_cert_chain(self._certificate, self._key, password="")
