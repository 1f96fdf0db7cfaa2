"""API keys: who is asking, and for which tenant. Checked inside every gateway replica, against one small database.

A key reads `lm_admin_<kid>_<secret>` or `lm_tenant_<kid>_<secret>`. The kid (8 characters) finds the row, the secret
(256 random bits) proves possession; only a hash is stored, so a lost key cannot be shown again, only replaced. A fast
hash is right here: there is nothing to guess in 256 random bits.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa

from cluster.control_store import ControlStore
from memory_actor.errors import Forbidden, NotFound, Unauthenticated

__all__ = ["KeyStore", "Principal"]

Kind = Literal["admin", "tenant"]

_KEY = re.compile(r"lm_(admin|tenant)_([a-z2-7]{8})_([a-z2-7]{52})", re.ASCII)
_CACHED_KEYS_MAX: Final = 4096

_metadata = sa.MetaData()
_api_key = sa.Table(
    "api_key",
    _metadata,
    sa.Column("kid", sa.String(8), primary_key=True),
    sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("tenant", sa.String(128), index=True),  # NULL for admin keys
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request. The tenant comes from here and never from a body."""

    kind: Kind
    tenant: str | None  # None for the admin
    kid: str

    def require_admin(self, action: str) -> None:
        """Pass the admin only. Raises Forbidden; `action` completes "this key may not …"."""
        if self.kind != "admin":
            raise Forbidden(action)

    def require_tenant(self, name: str) -> None:
        """Pass the admin and the tenant's own key. Raises NotFound, as for a tenant that does not exist."""
        if self.kind != "admin" and self.tenant != name:
            raise NotFound("tenant", name)


@dataclass(frozen=True, slots=True)
class _StoredKey:
    principal: Principal
    secret_hash: bytes
    revoked: bool


class KeyStore:
    """The keys in `STATE_DIR/control.sqlite`. Several processes may have it open; safe to share between threads.

    `cache_s`: seconds during which this process does not look a known key up again, and so the longest time a key
    works here after another process revoked it.
    """

    def __init__(self, path: Path, cache_s: float = 5.0) -> None:
        """Open or create the database. Raises StateFolderUnusable (not writable, foreign or damaged)."""
        self._store = ControlStore(path, _metadata)
        self._cache_s = cache_s
        self._cache: dict[str, tuple[float, _StoredKey]] = {}

    def close(self) -> None:
        """Release the database; may be called twice."""
        self._store.close()

    # -- issuing ------------------------------------------------------------------------------------------------

    def ensure_admin(self, now: float) -> str | None:
        """A new admin key when there is none in force, else None: the key was shown when it was made."""
        with self._changing() as connection:
            valid = sa.select(_api_key.c.kid).where(_api_key.c.kind == "admin", _api_key.c.revoked_at.is_(None))
            if connection.execute(valid).first() is not None:
                return None
            return _insert_key(connection, "admin", None, now)

    def reset_admin(self, now: float) -> str:
        """A new admin key in the place of all earlier ones."""
        with self._changing() as connection:
            _revoke(connection, _api_key.c.kind == "admin", now)
            return _insert_key(connection, "admin", None, now)

    def issue(self, tenant: str, now: float) -> str:
        """A new key for the tenant in the place of its earlier ones: one key per tenant."""
        with self._changing() as connection:
            _revoke(connection, _api_key.c.tenant == tenant, now)
            return _insert_key(connection, "tenant", tenant, now)

    def revoke_tenant(self, tenant: str, now: float) -> int:
        """End the tenant's keys; returns how many were in force."""
        with self._changing() as connection:
            return _revoke(connection, _api_key.c.tenant == tenant, now)

    # -- checking -----------------------------------------------------------------------------------------------

    def authenticate(self, authorization_header: str | None, now: float) -> Principal:
        """Who holds the key of `Authorization: Bearer lm_…`.

        Raises: Unauthenticated, the same for missing, malformed, unknown, wrong and revoked keys. Unavailable when
        the database cannot be read.
        """
        scheme, _, token = (authorization_header or "").partition(" ")
        parts = _KEY.fullmatch(token.strip())
        if scheme.lower() != "bearer" or parts is None:
            raise Unauthenticated()
        kind, kid, secret = parts.groups()
        stored = self._lookup(kid, now)
        # An unknown kid costs the same hash and comparison as a known one.
        tenant = stored.principal.tenant if stored else None
        expected = stored.secret_hash if stored else bytes(32)
        matches = hmac.compare_digest(expected, _secret_hash(kind, tenant, kid, secret))
        if stored is None or not matches or stored.revoked:
            raise Unauthenticated()
        return stored.principal

    def _lookup(self, kid: str, now: float) -> _StoredKey | None:
        cached = self._cache.get(kid)
        if cached is not None and 0 <= now - cached[0] < self._cache_s:
            return cached[1]
        with self._store.reading() as connection:
            row = connection.execute(sa.select(_api_key).where(_api_key.c.kid == kid)).one_or_none()
        if row is None:  # not remembered: strangers must not be able to fill the cache
            return None
        stored = _StoredKey(Principal(row.kind, row.tenant, row.kid), row.secret_hash, row.revoked_at is not None)
        if len(self._cache) >= _CACHED_KEYS_MAX:
            self._cache.clear()
        self._cache[kid] = (now, stored)
        return stored

    @contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        with self._store.changing() as connection:
            yield connection
        self._cache.clear()


def _insert_key(connection: sa.Connection, kind: Kind, tenant: str | None, now: float) -> str:
    kid, secret = _random_text(5), _random_text(32)
    values: dict[str, Any] = {"kid": kid, "kind": kind, "tenant": tenant, "created_at": now}
    connection.execute(sa.insert(_api_key), values | {"secret_hash": _secret_hash(kind, tenant, kid, secret)})
    return f"lm_{kind}_{kid}_{secret}"


def _revoke(connection: sa.Connection, which: sa.ColumnElement[bool], now: float) -> int:
    in_force = _api_key.c.revoked_at.is_(None)
    return connection.execute(sa.update(_api_key).where(which, in_force).values(revoked_at=now)).rowcount


def _random_text(size: int) -> str:
    """`size` random bytes in lower-case base32: selects with a double click, survives every shell and URL."""
    return base64.b32encode(secrets.token_bytes(size)).decode("ascii").rstrip("=").lower()


def _secret_hash(kind: str, tenant: str | None, kid: str, secret: str) -> bytes:
    """SHA-256 over the secret and what it grants, so that a row that was changed grants nothing."""
    return hashlib.sha256("\0".join((secret, kid, kind, tenant or "")).encode()).digest()
