"""API keys on the client's side: the server keeps only hashes, so the command line remembers what it was shown.

~/.config/larimar/credentials.json   (LARIMAR_CONFIG_DIR moves the folder)   0600, replaced atomically
{"current": URL, "servers": {URL: {"admin": KEY, "tenants": {NAME: KEY}}}}
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.state_folder import write_atomically

DEFAULT_URL = "http://127.0.0.1:8000"


class CredentialsDamaged(Exception):
    """The credentials file is not what this program writes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be read as credentials; correct or remove it ('larimar key reset-admin' makes a key)"
        )


class Credentials:
    """The keys this user has been given, by server. Several commands may run at once."""

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or config_folder()) / "credentials.json"

    def current_url(self) -> str:
        """The server that was started last, or the default address."""
        return str(self._read()["current"] or DEFAULT_URL)

    def admin_key(self, url: str) -> str | None:
        key = self._server(self._read(), url)["admin"]
        return None if key is None else str(key)

    def tenant_key(self, url: str, tenant: str) -> str | None:
        key = self._server(self._read(), url)["tenants"].get(tenant)
        return None if key is None else str(key)

    def choose(self, url: str) -> None:
        """Make `url` the server of later commands."""
        with self._changing() as content:
            content["current"] = url

    def save_admin(self, url: str, key: str) -> None:
        """Remember a new admin key."""
        with self._changing() as content:
            content["servers"][url] = {**self._server(content, url), "admin": key}

    def save_tenant(self, url: str, tenant: str, key: str) -> None:
        with self._changing() as content:
            server = self._server(content, url)
            content["servers"][url] = {**server, "tenants": {**server["tenants"], tenant: key}}

    def drop_tenant(self, url: str, tenant: str) -> None:
        with self._changing() as content:
            self._server(content, url)["tenants"].pop(tenant, None)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {"current": None, "servers": {}}
        except (OSError, ValueError) as error:
            raise CredentialsDamaged(self.path) from error
        if not isinstance(content, dict) or not isinstance(content.get("servers"), dict):
            raise CredentialsDamaged(self.path)
        return {"current": content.get("current"), "servers": content["servers"]}

    @staticmethod
    def _server(content: dict[str, Any], url: str) -> dict[str, Any]:
        empty: dict[str, Any] = {"admin": None, "tenants": {}}
        server: dict[str, Any] = content["servers"].get(url, empty)
        return server

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The content, written back at the end; one command at a time."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.path.parent / "credentials.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self._read()
            yield content
            write_atomically(self.path, json.dumps(content, indent=2) + "\n")


def config_folder() -> Path:
    """LARIMAR_CONFIG_DIR, or `larimar` in the user's configuration folder."""
    given = os.environ.get("LARIMAR_CONFIG_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "larimar"
