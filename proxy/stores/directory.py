"""The cache directory as a whole: opened, and what its root tells every process."""

import secrets
from pathlib import Path

from proxy.files import Tree
from proxy.stores import ledger, quarantine
from proxy.stores.keys import UPLOADS

DIRECTORIES = (
    "blobs", "repositories", "pins", "spool", "tmp", ledger.DIRECTORY, "limits", "jobs", quarantine.DIRECTORY,
    "recordings", UPLOADS,
)  # fmt: skip
BOOT = "boot"  # the file that says which boot of which machine the downloads in spool/ are from
BOOT_LIMIT = 64  # bytes
CHANGES = "changes"  # the file that says, by being another, that an operator has changed what workers remember
CHANGES_LIMIT = 64  # bytes


def open_tree(path: Path) -> Tree:
    """Open the cache directory, making what is missing; blocking. Raises UnsafeDirectory or OSError."""
    tree = Tree(path)
    try:
        tree.open_root(DIRECTORIES)
    except BaseException:
        tree.close()
        raise
    return tree


async def announce_change(tree: Tree) -> None:
    """Have every process read anew what it remembers, within a few seconds. Raises OSError."""
    await tree.write(CHANGES, secrets.token_hex(16).encode())
