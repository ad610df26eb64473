"""Whom one upstream's TLS believes and as whom it appears, read again when the files change."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy.config import Config, ConfigError
from proxy.files import hop, stamp
from proxy.sections.upstream import Upstream
from proxy.telemetry import Logger

Context = ssl.SSLContext | bool  # True: the system's roots and nothing more; False: nothing is verified


@dataclass(frozen=True, slots=True)
class Contexts:
    """What TLS is made with, by who is at the other end."""

    own: Context  # the upstream's own origin: with the client certificate, and unverified if it is insecure
    realm: Context  # a host of realm_hosts: with the client certificate
    foreign: Context  # whoever upstream sends us to
    proxy: ssl.SSLContext | None  # an https:// proxy, if there is one


class Trust:
    """The contexts of one upstream: connections made after a change of its files get new ones."""

    def __init__(self, settings: Upstream) -> None:
        self._settings = settings
        files = (settings.ca_file, settings.client_certificate, settings.client_key)
        self._files = [file for file in files if file is not None]
        # Until `open` there is no trust but the system's.
        self.contexts = Contexts(own=not settings.insecure, realm=True, foreign=True, proxy=None)
        self._stamp: Sequence[tuple[int, ...]] = ()
        self._warned = False

    async def open(self) -> None:
        """Read the files. Raises ConfigError."""
        try:
            await hop(self._load)
        except ValueError as error:
            raise ConfigError([f"upstream {self._settings.registry}: {error}"]) from None

    async def refresh(self, log: Logger) -> bool:
        """Whether changed files were taken over; while they are no use, amid a renewal, the old ones stay."""
        if not self._files:
            return False
        try:
            changed = await hop(self._reload)
        except ValueError as error:
            if not self._warned:
                self._warned = True
                log.warning(
                    "upstream's TLS files not renewed, keeping the old ones",
                    upstream=self._settings.registry,
                    reason=str(error),
                )
            return False
        self._warned = False
        if changed:
            log.info("upstream's TLS files renewed", upstream=self._settings.registry)
        return changed

    def _reload(self) -> bool:
        if self._look() == self._stamp:
            return False
        self._load()
        return True

    def _load(self) -> None:
        # The stamp is from before: what changes while it is read is read once more.
        found = self._look()
        self.contexts = _contexts(self._settings)
        self._stamp = found

    def _look(self) -> Sequence[tuple[int, ...]]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        return stamp(file)
    except OSError:
        return ()  # that it is gone is a change as well


def problems(config: Config) -> list[str]:
    """What is wrong with the TLS files of all upstreams, a line each that begins with the key's path; blocking."""
    found = []
    for index, upstream in enumerate(config.upstream):
        try:
            _contexts(upstream)
        except ValueError as error:
            found.append(f"upstream[{index}].{error}")
    return found


def _contexts(settings: Upstream) -> Contexts:
    """Read the files. Raises ValueError, which names the key and what is wrong."""
    ca = settings.ca_file
    pair = _pair(settings)
    foreign: Context = True if ca is None else _verifying(ca)
    proxy = _verifying(ca) if settings.proxies.any_by_tls else None
    realm = foreign if pair is None else _appearing(_verifying(ca), *pair)
    own = realm
    if settings.insecure:
        own = False if pair is None else _appearing(_believing(), *pair)
    return Contexts(own=own, realm=realm, foreign=foreign, proxy=proxy)


def _verifying(ca: Path | None) -> ssl.SSLContext:
    """The system's roots, and those of a file."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    if ca is None:
        return context
    try:
        context.load_verify_locations(cafile=ca)
    except ssl.SSLError:
        raise ValueError(f"ca_file: {ca} holds no certificate in PEM, or a broken one") from None
    except OSError as error:
        raise ValueError(f"ca_file: {ca} cannot be read ({error.strerror})") from None
    return context


def _believing() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(("http/1.1",))
    return context


def _appearing(context: ssl.SSLContext, certificate: Path, key: Path) -> ssl.SSLContext:
    try:
        # A password, though a wrong one, for a key that wants one: else OpenSSL asks the terminal, and all wait.
        context.load_cert_chain(certificate, key, password="")
    except OSError:
        raise ValueError(
            f"client_certificate, client_key: {certificate} and {key} do not belong together, or one is broken"
        ) from None
    return context


def _pair(settings: Upstream) -> tuple[Path, Path] | None:
    certificate, key = settings.client_certificate, settings.client_key
    if certificate is None or key is None:
        return None
    if b"-----BEGIN CERTIFICATE-----" not in _read(certificate, "client_certificate"):
        raise ValueError(f"client_certificate: {certificate} holds no certificate in PEM")
    text = _read(key, "client_key")
    if b"ENCRYPTED" in text:
        raise ValueError(f"client_key: {key} is encrypted: give one without a passphrase")
    if b"PRIVATE KEY-----" not in text:
        raise ValueError(f"client_key: {key} holds no private key in PEM")
    return certificate, key


def _read(file: Path, key: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"{key}: {file} cannot be read ({error.strerror})") from None
