"""A single byte range, answered as RFC 9110 wants it."""

import re
from dataclasses import replace

from .reply import Reply
from .wire import Request

_SINGLE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


def ranged(reply: Reply, request: Request) -> Reply:
    """The 206 or 416 to a single Range of a GET; the whole answer to anything else."""
    reply = reply.adding(("Accept-Ranges", "bytes"))
    asked = _SINGLE.fullmatch(request.header("Range") or "")
    if request.method != "GET" or asked is None or asked.group(0) == "bytes=-":
        return reply
    size = len(reply.body)
    start, stop = _resolve(asked[1], asked[2], size)
    if start >= stop:
        return Reply(416, (("Content-Range", f"bytes */{size}"),))
    part = replace(reply, status=206, body=reply.body[start:stop])
    return part.adding(("Content-Range", f"bytes {start}-{stop - 1}/{size}"))


def _resolve(first: str, last: str, size: int) -> tuple[int, int]:
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size
