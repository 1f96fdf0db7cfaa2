"""Data keys for the facts of a group: asked of the vault in one transaction, with some in store for later groups.

A key costs nothing until it is used, but making it durable costs a flush of the vault. So a tenant that is written to
often gets more keys than it needs at the moment, at most as many as it has used so far: a lone write then waits for
one flush, that of the ledger. Keys still in store when the process ends are never used by anyone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from memory_actor.vault import DataKey, Vault

STORE_MAX: Final = 256
"""Keys that one tenant may have in store, about 200 bytes each."""

_TENANTS_MAX: Final = 4096


class KeyStore:
    """Fresh data keys by incarnation. Used by one thread at a time."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._stored: dict[str, deque[DataKey]] = {}
        self._used: dict[str, int] = {}

    def take(self, wanted: Mapping[str, int]) -> dict[str, deque[DataKey]]:
        """That many durable keys for each incarnation, never given out before. Raises what `Vault.issue` raises."""
        short = {uid: count for uid, count in wanted.items() if len(self._stored.get(uid, ())) < count}
        if short:
            ordered = [(uid, count + min(self._used.get(uid, 0), STORE_MAX)) for uid, count in short.items()]
            for (uid, _), keys in zip(ordered, self._vault.issue(ordered), strict=True):
                self._stored.setdefault(uid, deque()).extend(keys)
        taken = {}
        for uid, count in wanted.items():
            store = self._stored.get(uid, deque())
            taken[uid] = deque(store.popleft() for _ in range(count))
            self._used[uid] = min(self._used.get(uid, 0) + count, STORE_MAX)
        if len(self._stored) > _TENANTS_MAX:
            self._stored.clear()
            self._used.clear()
        return taken

    def drop(self, uids: Iterable[str]) -> None:
        """Forget the keys in store of incarnations that ended."""
        for uid in uids:
            self._stored.pop(uid, None)
            self._used.pop(uid, None)
