"""The errors a registry answers (distribution-spec, "Error Codes") as one table and one exception."""

# ruff: noqa: PIE796 - two problems may well have one answer
import json
from enum import Enum


class Problem(Enum):
    """What can go wrong: one row each, the code of the distribution spec and the HTTP status.

    The specification's codes cover only 4xx; UNAVAILABLE is what Distribution itself answers for the rest.
    """

    code: str
    status: int

    NAME_INVALID = ("NAME_INVALID", 400)
    NAME_UNKNOWN = ("NAME_UNKNOWN", 404)
    TAG_INVALID = ("NAME_INVALID", 400)
    DIGEST_INVALID = ("DIGEST_INVALID", 400)
    MANIFEST_UNKNOWN = ("MANIFEST_UNKNOWN", 404)
    BLOB_UNKNOWN = ("BLOB_UNKNOWN", 404)
    NOT_FOUND = ("NAME_UNKNOWN", 404)
    UNSUPPORTED = ("UNSUPPORTED", 405)
    BAD_REQUEST = ("UNSUPPORTED", 400)
    DENIED = ("DENIED", 403)
    CREDENTIALS_REFUSED = ("DENIED", 403)  # ours: no word on who may have what
    TOO_MANY_REQUESTS = ("TOOMANYREQUESTS", 429)
    UPSTREAM_INVALID = ("UNAVAILABLE", 502)  # nonsense: wrong bytes, lying headers, a refused redirect
    UPSTREAM_UNREACHABLE = ("UNAVAILABLE", 502)  # the connection failed or was reset
    UPSTREAM_ERROR = ("UNAVAILABLE", 502)  # upstream answered 5xx
    UPSTREAM_TIMEOUT = ("UNAVAILABLE", 504)
    UPSTREAM_PAUSED = ("UNAVAILABLE", 503)  # our own breaker is open
    CREDENTIALS_MISSING = ("UNAVAILABLE", 503)  # ours cannot be had just now
    OVERLOADED = ("UNAVAILABLE", 503)  # descriptors exhausted and the like: our own trouble

    def __new__(cls, code: str, status: int) -> "Problem":
        # Numbered, because members with equal values would be one member under two names.
        member = object.__new__(cls)
        member._value_ = len(cls.__members__)
        member.code = code
        member.status = status
        return member

    @property
    def is_outage(self) -> bool:
        """Whether upstream gave no usable answer, so that stale content may be served instead."""
        return self in {
            Problem.TOO_MANY_REQUESTS,
            Problem.CREDENTIALS_REFUSED,
            Problem.CREDENTIALS_MISSING,
            Problem.UPSTREAM_INVALID,
            Problem.UPSTREAM_UNREACHABLE,
            Problem.UPSTREAM_ERROR,
            Problem.UPSTREAM_TIMEOUT,
            Problem.UPSTREAM_PAUSED,
        }


class OciError(Exception):
    """A request that ends in an error answer; whoever raises it chooses the problem, one place renders it."""

    def __init__(
        self, problem: Problem, message: str, *, detail: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message
        self.detail = detail
        self.retry_after = retry_after

    def body(self) -> bytes:
        """The JSON body of the distribution spec, "Error Codes"."""
        error = {"code": self.problem.code, "message": _printable(self.message)}
        if self.detail is not None:
            error["detail"] = _printable(self.detail)
        return json.dumps({"errors": [error]}, separators=(",", ":")).encode("ascii")


def _printable(text: str) -> str:
    # A lone surrogate (an undecodable byte of a path) has no UTF-8 form, and strict JSON readers refuse its escape.
    return text.encode("utf-8", "replace").decode("utf-8")
