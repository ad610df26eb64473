"""If-None-Match and If-Range (RFC 9110, section 13) where the entity tag is the digest."""

from collections.abc import Sequence

from proxy.oci.digest import Digest


def etag(digest: Digest) -> str:
    """The strong entity tag of content with this digest."""
    return f'"{digest}"'


def none_match(headers: Sequence[str], digest: Digest) -> bool:
    """Whether the client has this content already and 304 is the answer."""
    # Weak comparison (13.1.2); like Distribution, a digest without its quotes is understood.
    known = {"*", str(digest), etag(digest)}
    return any(element.strip(" \t").removeprefix("W/") in known for header in headers for element in header.split(","))


def if_range(header: str | None, digest: Digest) -> bool:
    """Whether the Range of this request is to be honoured: strong comparison (13.1.5), and dates never match."""
    return header is None or header.strip(" \t") == etag(digest)
