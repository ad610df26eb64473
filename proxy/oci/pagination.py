"""Pages of tags/list (distribution-spec, "Listing Tags") and the Link header that joins them (RFC 8288)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import parse_qsl

from proxy.oci.errors import OciError, Problem

MAX_PAGE = 1000

_NUMBER = re.compile(r"[0-9]+", re.ASCII)
_KEY = re.compile(r"[A-Za-z_]{1,32}", re.ASCII)
_VALUE = re.compile(r"[ -~]{0,2048}", re.ASCII)

_PARAMETER = r"""([!#$%&'*+.^_`|~0-9A-Za-z-]++)[ \t]*+(?:=[ \t]*+("[^"\\]*+(?:\\.[^"\\]*+)*+"|[^\s,;"]++)?+)?+"""
_LINK = re.compile(rf"<([^<>]++)>((?:[ \t]*+;[ \t]*+(?:{_PARAMETER})?+)*+)", re.ASCII | re.DOTALL)
_LINK_PARAMETER = re.compile(_PARAMETER, re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """What a client asked for; rest holds the other parameters, which are cursors of the upstream's own."""

    n: int | None = None
    last: str | None = None
    rest: tuple[tuple[str, str], ...] = ()


def parse_query(pairs: Sequence[tuple[str, str]]) -> Page:
    """Read the decoded query of a tags/list request; OciError(BAD_REQUEST) for what no registry would understand."""
    asked: dict[str, str] = {}
    rest: list[tuple[str, str]] = []
    for key, value in pairs:
        if key == "ns":
            continue
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value) or key in asked:
            raise OciError(Problem.BAD_REQUEST, "malformed or repeated query parameter", detail=key)
        if key in {"n", "last"}:
            asked[key] = value
        else:
            rest.append((key, value))
    return Page(_parse_number(asked.get("n")), asked.get("last"), tuple(rest))


def _parse_number(text: str | None) -> int | None:
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise OciError(Problem.BAD_REQUEST, "n is not a number", detail=text)
    return min(int(text), MAX_PAGE)


def next_link(headers: Sequence[str]) -> str | None:
    """The raw target of the link with the relation 'next', if there is one."""
    for header in headers:
        for link in _LINK.finditer(header):
            if "next" in _relations(link[2]):
                return link[1].strip()
    return None


def _relations(parameters: str) -> list[str]:
    for parameter in _LINK_PARAMETER.finditer(parameters):
        if parameter[1].lower() == "rel":
            return (parameter[2] or "").strip('"').lower().split()
    return []


def query_of(link: str) -> tuple[tuple[str, str], ...]:
    """The decoded query parameters of a link, absolute or relative."""
    query = link.partition("#")[0].partition("?")[2]
    return tuple(parse_qsl(query, keep_blank_values=True))


def cut(tags: list[str], page: Page) -> tuple[list[str], bool]:
    """The part of a list that a page shows, and whether more follows, for upstreams that ignore n or last.

    That they do is seen by what they send: the tag that was to be passed, or more tags than were asked for. All else is
    left as it is, whatever its order: it is better to show a tag twice than never.
    """
    ignored = page.last in tags or (page.n is not None and len(tags) > page.n)
    shown = _ordered(tags) if ignored else tags
    if page.last in shown:
        # Behind its last copy: a client that walks through the pages must get ahead.
        shown = shown[len(shown) - shown[::-1].index(page.last) :]
    if page.n is None:
        return shown, False
    return shown[: page.n], len(shown) > page.n


def _ordered(tags: list[str]) -> list[str]:
    """A whole list in an order that the specification allows: its own if it is one, else the ASCIIbetical."""
    return tags if _is_in_order(tags) or _is_in_order([tag.lower() for tag in tags]) else sorted(tags)


def _is_in_order(keys: list[str]) -> bool:
    return all(one <= other for one, other in pairwise(keys))
