"""The vault: every key that stored data is sealed under, each wrapped by the one above it. Destroying one is erasure.

Root key (a file, see `key_folder`) wraps tenant keys, a tenant key wraps data keys: one per fact, one per checkpoint.
Data keys are only ever added, under ids that ascend and are never given twice; a stale incarnation can therefore add
keys that nobody uses, and do no other harm. Keys are durable before anything is sealed under them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import sqlalchemy as sa

from memory_actor import sqlite_errors, vault_postgres, vault_sqlite
from memory_actor.crash_points import reached
from memory_actor.errors import LarimarError, LedgerCorrupt, LedgerFailed
from memory_actor.key_wrapping import DataKey, KeyDamaged, data_prefix, opened, tenant_context, wrap_fresh
from memory_actor.sealing import Cipher, SealBroken, new_key
from memory_actor.vault_lock import Unlocked, fingerprint, fresh_meta, meta_rows, unlock
from memory_actor.vault_schema import DESTROYED, Statements, statements

__all__ = ["DataKey", "KeyDamaged", "Vault"]

_CIPHERS_MAX: Final = 4096  # tenants whose key stays unwrapped in memory, about 2 KB each


class _Rotated(Exception):
    """Another process rotated the vault's keys: this one's are out of date."""


class Vault:
    """One memory actor's keys. Safe to share between threads: one lock, held for one transaction."""

    def __init__(self, connection: sa.Connection, location: str, text: Statements, unlocked: Unlocked) -> None:
        """Use `open_sqlite` or `over`."""
        self._connection = connection
        self._location = location
        self._text = text
        self._unlocked = unlocked
        self._lock = threading.Lock()
        self._stopped: LarimarError | None = None
        self._ciphers: dict[str, tuple[int, Cipher]] = {}
        self._zeros: int | None = None  # rows of destroyed keys, for `scrub`

    @classmethod
    def open_sqlite(cls, path: Path, root_keys: Sequence[bytes]) -> Self:
        """Open or create the vault file `path`; a new one is sealed under the first of `root_keys`.

        Raises: VaultLocked (no root key, or another one), StateFolderUnusable, LedgerCorrupt; then nothing was changed.
        """
        with ExitStack() as undo:
            connection = vault_sqlite.open_connection(path, root_keys)
            undo.callback(_release, connection)
            vault = cls.over(connection, str(path.absolute()), root_keys)
            undo.pop_all()
        return vault

    @classmethod
    def over(
        cls, connection: sa.Connection, location: str, root_keys: Sequence[bytes], *, schema: str | None = None
    ) -> Self:
        """The vault behind an open connection, which it owns from now on and shares with nobody.

        Args: location: for messages, without a password. schema: PostgreSQL's, in which tables are made if missing.
        Raises: as `open_sqlite`.
        """
        postgres = connection.dialect.name == "postgresql"
        text = statements(postgres=postgres, schema=schema)
        try:
            with connection.begin():
                if postgres:
                    vault_postgres.prepare(connection, schema, root_keys, location)
                rows = connection.exec_driver_sql(text.all_meta).all()
                unlocked = unlock(rows, root_keys, location)
        except sa.exc.DBAPIError as error:
            raise _reading_error(location, error) from error
        return cls(connection, location, text, unlocked)

    @property
    def location(self) -> str:
        """The file or database, for messages."""
        return self._location

    @property
    def identity(self) -> str:
        """32 hex digits that name this vault, so that a ledger can tell its own from another."""
        return self._unlocked.identity.hex()

    @property
    def root_fingerprint(self) -> str:
        """Which root key the vault is sealed under."""
        return fingerprint(self._unlocked.root_key)

    # -- making keys --------------------------------------------------------------------------------------------

    def create_tenant(self, uid: str) -> None:
        """Make a tenant's key, durable on return; nothing happens when it has one.

        Raises: KeyDamaged when the key existed and was destroyed; LedgerFailed, after which no key can be made.
        """
        with self._guarded():
            wrapped = Cipher(self._unlocked.root_key).seal(new_key(), tenant_context(uid))
            with self._connection.begin():
                added = self._connection.exec_driver_sql(self._text.add_tenant, (uid, wrapped)).rowcount
                self._require_lock()
                if not added:
                    self._require(uid)

    def issue(self, wanted: Sequence[tuple[str, int]]) -> list[list[DataKey]]:
        """Make that many fresh data keys for each tenant named, in one transaction; durable on return.

        Args: wanted: (uid, count) pairs; a uid may come twice. Returns: per pair its keys, ids ascending.
        Raises: KeyDamaged when a tenant has no usable key (then nothing was stored); LedgerFailed, after which no key
        can be made: the process has to end, since a failed flush must not be tried again.
        """
        total = sum(count for _, count in wanted)
        if total == 0:
            return [[] for _ in wanted]
        with self._guarded():
            with self._connection.begin():
                owners = [(uid, count, *self._require(uid)) for uid, count in wanted]
                ids = self._reserve(total)
                issued, rows = wrap_fresh(owners, ids)
                self._connection.exec_driver_sql(self._text.insert, rows)
                self._require_lock()
                reached("keys.before_commit")
            reached("keys.after_commit")
        return issued

    # -- reading ------------------------------------------------------------------------------------------------

    def data_keys(self, uid: str, ids: Sequence[int]) -> dict[int, bytes]:
        """Those of a tenant's data keys that exist, by id; an id that is missing was destroyed, or is another's.

        Raises: KeyDamaged when a stored key is not what was written; LedgerCorrupt, LedgerFailed.
        """
        if not ids:
            return {}
        with self._reading():
            owner = self._owner(uid)
            if owner is None:
                return {}
            number, cipher = owner
            rows = self._connection.exec_driver_sql(self._text.select, (number, self._text.ids_value(ids))).all()
        try:
            prefix = data_prefix(uid)
            return {
                key_id: cipher.unseal(wrapped, prefix + key_id.to_bytes(8, "big"))
                for key_id, wrapped in rows
                if wrapped != DESTROYED
            }
        except SealBroken:
            raise KeyDamaged(uid, "a data key is not what was stored") from None

    def holds(self, uid: str) -> bool:
        """Whether the tenant has a key here that was not destroyed."""
        with self._reading():
            return self._owner(uid) is not None

    def counts(self) -> dict[str, int]:
        """How many tenants and data keys there are, destroyed ones left out."""
        with self._reading():
            tenants = self._connection.exec_driver_sql(self._text.tenants).all()
            keys = self._connection.exec_driver_sql(self._text.live).scalar_one()
        return {"tenants": sum(wrapped != DESTROYED for _, _, wrapped in tenants), "keys": keys}

    # -- destroying ---------------------------------------------------------------------------------------------

    def destroy(self, uid: str, ids: Sequence[int]) -> int:
        """Destroy data keys, durable on return: what they sealed is unreadable for ever.

        Returns: how many existed until now. Raises: LedgerFailed.
        """
        if not ids:
            return 0
        with self._guarded(), self._connection.begin():
            found = self._tenant_row(uid)
            if found is None:
                return 0
            values = (found[0], self._text.ids_value(ids))
            gone = self._connection.exec_driver_sql(self._text.destroy, values).rowcount
            self._zeros = None if self._zeros is None else self._zeros + gone
            return gone

    def destroy_tenant(self, uid: str) -> int:
        """Destroy a tenant's key and then all its data keys, durable on return; may be repeated after a crash.

        Returns: how many keys existed until now, the tenant's own included. Raises: LedgerFailed.
        """
        with self._guarded():
            self._ciphers.pop(uid, None)
            with self._connection.begin():
                found = self._tenant_row(uid)
                if found is None:
                    return 0
                number, wrapped = found
                own = int(wrapped != DESTROYED)
                self._connection.exec_driver_sql(self._text.rewrap_tenant, (DESTROYED, number))
            # From here on nothing of the tenant can be read. The rest is tidying, of any length.
            with self._connection.begin():
                gone = self._connection.exec_driver_sql(self._text.destroy_all, (number,)).rowcount
                self._zeros = None if self._zeros is None else self._zeros + gone
            return own + gone

    def scrub(self) -> None:
        """Leave no byte of destroyed or replaced keys in the vault's files. Raises LedgerFailed."""
        with self._guarded():
            if self._text.postgres:
                vault_postgres.scrub(self._connection, self._text.prefix)
            else:
                self._zeros = vault_sqlite.scrub(self._connection, self._location, self._zeros)

    # -- rotation -----------------------------------------------------------------------------------------------

    def rotate_root(self, new_root: bytes) -> int:
        """Wrap every tenant key under another root key, all or none; durable on return.

        Returns: how many, 0 when that is the root key already. `scrub` afterwards removes what the old key can open.
        Raises: KeyDamaged, naming a tenant whose key does not open (then nothing was changed), LedgerFailed.
        """
        if new_root == self._unlocked.root_key:
            return 0
        new, old = Cipher(new_root), Cipher(self._unlocked.root_key)
        with self._guarded():
            with self._connection.begin():
                self._hold_others_off()
                rows = []
                for number, uid, wrapped in self._connection.exec_driver_sql(self._text.tenants).all():
                    if wrapped != DESTROYED:
                        context = tenant_context(uid)
                        rows.append((new.seal(opened(old, wrapped, context, uid), context), number))
                if rows:
                    self._connection.exec_driver_sql(self._text.rewrap_tenant, rows)
                unlocked = self._new_lock(new_root)
            self._unlocked = unlocked
        return len(rows)

    def rotate_tenant(self, uid: str) -> int:
        """Give a tenant a new key and wrap its data keys under it, all or none; durable on return.

        Returns: how many data keys. Raises: KeyDamaged (then nothing was changed), LedgerFailed.
        """
        fresh = new_key()
        cipher, prefix = Cipher(fresh), data_prefix(uid)
        with self._guarded():
            with self._connection.begin():
                self._hold_others_off()
                number, old = self._require(uid)
                count, after = 0, 0
                while rows := self._connection.exec_driver_sql(self._text.of_tenant, (number, after)).all():
                    renewed = []
                    for key_id, wrapped in rows:
                        context = prefix + key_id.to_bytes(8, "big")
                        renewed.append((cipher.seal(opened(old, wrapped, context, uid), context), key_id))
                    self._connection.exec_driver_sql(self._text.rewrap, renewed)
                    count, after = count + len(rows), rows[-1][0]
                wrapped_fresh = Cipher(self._unlocked.root_key).seal(fresh, tenant_context(uid))
                self._connection.exec_driver_sql(self._text.rewrap_tenant, (wrapped_fresh, number))
                unlocked = self._new_lock(self._unlocked.root_key)
            self._unlocked = unlocked
            self._ciphers[uid] = (number, cipher)
        return count

    # -- life ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Release the file; may be called twice."""
        with self._lock:
            self._ciphers.clear()
            if not self._connection.closed:
                _release(self._connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _tenant_row(self, uid: str) -> tuple[int, bytes] | None:
        row = self._connection.exec_driver_sql(self._text.tenant, (uid,)).first()
        return None if row is None else (row[0], row[1])

    def _owner(self, uid: str) -> tuple[int, Cipher] | None:
        """A tenant's number and its key, ready for use; None when it has none or it was destroyed."""
        kept = self._ciphers.get(uid)
        if kept is not None:
            return kept
        row = self._tenant_row(uid)
        if row is None or row[1] == DESTROYED:
            return None
        cipher = Cipher(opened(Cipher(self._unlocked.root_key), row[1], tenant_context(uid), uid))
        if len(self._ciphers) >= _CIPHERS_MAX:
            self._ciphers.clear()
        self._ciphers[uid] = row[0], cipher
        return row[0], cipher

    def _require(self, uid: str) -> tuple[int, Cipher]:
        owner = self._owner(uid)
        if owner is None:
            raise KeyDamaged(uid, "the tenant's key is not in the vault: it was destroyed, or the vault is another's")
        return owner

    def _hold_others_off(self) -> None:
        """Before a rotation: on PostgreSQL, nobody adds a key while this transaction lasts."""
        if self._text.postgres:
            for table in ("tenant_key", "data_key"):
                self._connection.exec_driver_sql(f"LOCK TABLE {self._text.prefix}{table} IN EXCLUSIVE MODE")

    def _new_lock(self, root_key: bytes) -> Unlocked:
        """Seal the vault under `root_key`, in the caller's transaction. Tells older incarnations that they are."""
        meta = fresh_meta(root_key, self._unlocked.identity)
        rows = [(value, checksum, name) for name, value, checksum in meta_rows(meta)]
        self._connection.exec_driver_sql(self._text.set_meta, rows)
        return Unlocked(root_key, self._unlocked.identity, meta["check"])

    def _require_lock(self) -> None:
        """After rows were added: on PostgreSQL, a rotation may have come first that this incarnation knows not of.

        What it would wrap under a replaced key could never be opened. On SQLite the file is locked.
        """
        if self._text.postgres:
            check = self._connection.exec_driver_sql(self._text.get_check).scalar_one()
            if check != self._unlocked.check:
                raise _Rotated("its keys were rotated meanwhile")

    def _reserve(self, count: int) -> Sequence[int]:
        """`count` ids that no data key had before, ascending."""
        found = self._connection.exec_driver_sql(self._text.reserve, (count,)).scalars().all()
        if self._text.postgres:
            return sorted(found)
        return range(found[0] - count + 1, found[0] + 1)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """The lock, for something that writes. A storage error stops the vault: a failed flush must not be retried."""
        with self._lock:
            if self._stopped is not None:
                raise type(self._stopped)(*self._stopped.args)
            if self._connection.closed:
                raise LedgerFailed(self._location, "it is closed")
            try:
                yield
            except (sa.exc.SQLAlchemyError, vault_sqlite.DriverError, OSError, _Rotated) as error:
                self._stopped = LedgerFailed(self._location, _reason(error))
                raise self._stopped from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            if self._connection.closed:
                raise LedgerFailed(self._location, "it is closed")
            try:
                with self._connection.begin():
                    yield
            except sa.exc.DBAPIError as error:
                raise _reading_error(self._location, error) from error


def _release(connection: sa.Connection) -> None:
    connection.close()
    connection.engine.dispose()


def _reason(error: BaseException | None) -> str:
    """What a database, driver or file system says, in our words."""
    if isinstance(error, sa.exc.DBAPIError):
        return _reason(error.orig)
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, _Rotated):
        return str(error)
    if hasattr(error, "sqlstate"):
        from memory_actor import postgres  # noqa: PLC0415 - psycopg, where there is an error of it

        return postgres.reason_of(error)
    return sqlite_errors.reason_of(error)


def _reading_error(location: str, error: sa.exc.DBAPIError) -> LarimarError:
    if hasattr(error.orig, "sqlstate"):
        from memory_actor import postgres  # noqa: PLC0415 - psycopg, where there is an error of it

        damaged = postgres.is_damage(error.orig)
    else:
        damaged = sqlite_errors.is_damage(error.orig)
    if damaged:
        return LedgerCorrupt(location, f"it cannot be read: {_reason(error)}")
    return LedgerFailed(location, _reason(error))
