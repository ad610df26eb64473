"""What upstreams allow each account, as small files: the workers share them, and a restart forgets no pause."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from proxy.files import Tree, hop
from proxy.oci.ratelimit import State

END = 253402300800.0  # unix seconds of the year 10000: no time that was meant
_LIMIT = 4096  # bytes of a file
_STATE = TypeAdapter(State)
_KEYS = tuple(field.name for field in fields(State))


class DiskLimits:
    """limits/<registry>/<hash of the account's name>; a file that cannot be read is as good as none."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    async def load(self, registry: str, account: str) -> State | None:
        found = await self._read(_key(registry, account))
        return None if found is None else found[2]

    async def save(self, registry: str, account: str, state: State) -> None:
        record = {"registry": registry, "account": account, **asdict(state)}
        await self._tree.write(_key(registry, account), json.dumps(record, separators=(",", ":")).encode())

    async def all(self) -> Sequence[tuple[str, str, State]]:
        entries = await hop(self._tree.scan, "limits")
        found = [await self._read(entry.key) for entry in entries]
        return sorted((one for one in found if one is not None), key=lambda one: one[:2])

    async def _read(self, key: str) -> tuple[str, str, State] | None:
        body = await self._tree.read(key, _LIMIT)
        try:
            record = None if body is None else json.loads(body)
        except (ValueError, RecursionError):
            return None
        return _parsed(record) if isinstance(record, Mapping) else None


def _key(registry: str, account: str) -> str:
    return f"limits/{registry}/{hashlib.sha256(account.encode()).hexdigest()[:32]}"


def _parsed(record: Mapping[str, Any]) -> tuple[str, str, State] | None:
    try:
        state = _STATE.validate_python({key: record[key] for key in _KEYS})
        if not all(
            0 <= moment < END for moment in (state.seen, state.paused_at, state.paused_until, state.empty_at or 0)
        ):
            return None
        return str(record["registry"]), str(record["account"]), state
    except (ValidationError, KeyError):
        return None
