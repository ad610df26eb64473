"""The only place with blocking file calls; each public coroutine is one hop to a thread.

Everything of the store happens below one root directory, reached component by component from its descriptor with
O_NOFOLLOW: no link in the tree is ever followed, whoever put it there. What a path names is used only if it is a
regular file of ours. `rooted` is that way down, `spools` the files that grow, `tree` all the rest; `calls` are the
calls on what is open, `cached` those for which no thread is needed, `outside` is for files that an operator names,
`scratch` for what lasts as long as processes do, `machine` for what the machine says of itself.
"""

from proxy.files.calls import (
    PIECE,
    Handle,
    catch_up,
    hash_piece,
    hop,
    hop_to,
    is_damage,
    is_exhausted,
    is_number,
    outlast,
    pour,
    read_hashed,
    read_number,
    rehash,
    sync,
    write_number,
)
from proxy.files.machine import boot, count_descriptors, identity, processors, raise_descriptor_limit, stamp, unhurried
from proxy.files.outside import Stream, Unusable, reading, replacing
from proxy.files.receiving import Inlet
from proxy.files.rooted import UnsafeDirectory, check_root, is_ours
from proxy.files.scratch import Scratch, scratch
from proxy.files.sending import Extent, Outlet, Senders, send_now
from proxy.files.spools import SpoolState
from proxy.files.tree import Disk, Entry, Tree

__all__ = [
    "PIECE",
    "Disk",
    "Entry",
    "Extent",
    "Handle",
    "Inlet",
    "Outlet",
    "Scratch",
    "Senders",
    "SpoolState",
    "Stream",
    "Tree",
    "UnsafeDirectory",
    "Unusable",
    "boot",
    "catch_up",
    "check_root",
    "count_descriptors",
    "hash_piece",
    "hop",
    "hop_to",
    "identity",
    "is_damage",
    "is_exhausted",
    "is_number",
    "is_ours",
    "outlast",
    "pour",
    "processors",
    "raise_descriptor_limit",
    "read_hashed",
    "read_number",
    "reading",
    "rehash",
    "replacing",
    "scratch",
    "send_now",
    "stamp",
    "sync",
    "unhurried",
    "write_number",
]
