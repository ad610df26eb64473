"""Files that list images: one a line, with # for comments. `entrepot record` writes such, to the last blob.

A name alone is an image, as whole as it is wanted. A digest with the word "manifest" or "blob" behind it is that
document or that blob, and nothing else:

    docker.io/library/nginx:1.27
    docker.io/library/app:v1@sha256:...  manifest
    docker.io/library/app@sha256:...     blob
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["manifest", "blob"]


@dataclass(frozen=True, slots=True)
class Wish:
    """A line of a list: what it names, as people write it, and whether it is a part of an image alone."""

    name: str
    part: Part | None = None


def parse(text: str) -> list[Wish]:
    """Read a list. Raises ValueError with the line that is wrong."""
    wishes = []
    for number, line in enumerate(text.splitlines(), 1):
        match line.partition("#")[0].split():
            case []:
                continue
            case [name]:
                wishes.append(Wish(name))
            case [name, "manifest"] if "@" in name:
                wishes.append(Wish(name, "manifest"))
            case [name, "blob"] if "@" in name:
                wishes.append(Wish(name, "blob"))
            case _:
                raise ValueError(f'line {number}: write an image alone, or one@sha256:... with "manifest" or "blob"')
    return wishes


def write(title: str, wishes: Iterable[Wish], notes: Mapping[str, str]) -> bytes:
    """A list, each repository's manifests before its blobs; `notes` is what is to be said of a digest."""
    lines = [f"# {title}"]
    for one in sorted(wishes, key=lambda one: (_repository(one.name), one.part != "manifest", one.name)):
        note = notes.get(one.name.partition("@")[2])
        lines.append(f"{one.name}  {one.part or ''}".rstrip() + ("" if note is None else f"  # {note}"))
    return "".join(f"{line}\n" for line in lines).encode()


def split(name: str) -> tuple[str, str | None, str | None]:
    """What stands in front of the tag, the tag, and the digest, as far as they are given."""
    head, _, digest = name.partition("@")
    path, colon, tag = head.rpartition(":")
    return (path, tag, digest or None) if colon and "/" not in tag else (head, None, digest or None)


def _repository(name: str) -> str:
    return split(name)[0]
