"""For tests of arbitrary input: what a parser made of it, or the problem it found. Other exceptions fail the test."""

from collections.abc import Callable
from typing import TypeVar

from proxy.oci.errors import OciError, Problem

Parsed = TypeVar("Parsed")


def attempt(call: Callable[[str], Parsed], text: str) -> Parsed | Problem:
    try:
        return call(text)
    except OciError as error:
        return error.problem
