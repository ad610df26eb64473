"""What an upstream asks for in WWW-Authenticate (RFC 9110, section 11.6.1), read leniently and in linear time."""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

# Possessive quantifiers, and a last alternative that swallows whole runs, so that no character is read twice.
# An unquoted value may hold any visible character: realms are URLs, and not everybody quotes them.
_ELEMENT = re.compile(
    r"""
    (?P<key>[!#$%&'*+.^_`|~0-9A-Za-z-]++) [ \t]*+ = [ \t]*+
        (?: "(?P<quoted>[^"\\]*+(?:\\.[^"\\]*+)*+)" | (?P<bare>[^\s,"]++) )
  | (?P<scheme>[!#$%&'*+.^_`|~0-9A-Za-z-]++) (?=[\s,]|\Z)
        (?: [ \t]++ [A-Za-z0-9._~+/-]++ =*+ (?=[ \t]*+(?:,|\Z)) )?+
  | "[^"\\]*+(?:\\.[^"\\]*+)*+"?+
  | [^\s,"]++
    """,
    re.ASCII | re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: the scheme and the names of its parameters in lower case, each name once."""

    scheme: str
    parameters: tuple[tuple[str, str], ...] = ()

    def get(self, key: str) -> str | None:
        """The value of a parameter, '' where it is empty and None where it is missing."""
        return dict(self.parameters).get(key)

    @property
    def realm(self) -> str | None:
        """Where a token is to be had."""
        return self.get("realm")

    @property
    def service(self) -> str | None:
        """The name of the registry towards the token server; NVCR sends none, Google an empty one."""
        return self.get("service")

    @property
    def scope(self) -> str | None:
        """What the request would have needed."""
        return self.get("scope")

    @property
    def error(self) -> str | None:
        """Why a token that was sent is not good enough."""
        return self.get("error")


def basic(username: str, secret: str) -> str:
    """The answer to a Basic challenge (RFC 7617), and to a proxy's."""
    return f"Basic {b64encode(f'{username}:{secret}'.encode()).decode()}"


def parse(headers: Sequence[str]) -> tuple[Challenge, ...]:
    """Read every challenge of these headers; what cannot be read is left out."""
    return tuple(challenge for header in headers for challenge in _parse_one(header))


def _parse_one(header: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    for element in _ELEMENT.finditer(header):
        if element["scheme"] is not None:
            found.append((element["scheme"].lower(), {}))
        elif element["key"] is not None and found:
            value = element["bare"] if element["quoted"] is None else _ESCAPE.sub(r"\1", element["quoted"])
            found[-1][1].setdefault(element["key"].lower(), value)
    return [Challenge(scheme, tuple(parameters.items())) for scheme, parameters in found]
