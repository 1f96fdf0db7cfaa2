"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.console_output import Format

if TYPE_CHECKING:
    from cluster.client import Client
    from cluster.settings import Settings

OutputOption = Annotated[Format, typer.Option("--output", "-o", help="How results are shown.")]
TenantOption = Annotated[
    str, typer.Option("--tenant", "-t", envvar="LARIMAR_TENANT", show_envvar=True, help="The tenant's name.")
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="LARIMAR_URL", show_envvar=True, help="The server; default: the one started last."),
]
StateDirOption = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        envvar="LARIMAR_STATE_DIR",
        show_envvar=True,
        help="Folder of ledger, keys and models.  [default: ~/.larimar]",
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings file, such as ray_config.yaml; default: no file.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, as in --set decoder.replicas=2. May be repeated.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def settings_of(
    config: Path | None, state_dir: Path | None, assignments: list[str] | None = None, **more: Any
) -> Settings:
    """The settings of a command: the file, then --set, then the options with a name of their own."""
    from cluster.settings import load_settings  # noqa: PLC0415 - `larimar --help` needs no pydantic

    overrides: dict[str, Any] = {}
    for assignment in assignments or []:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise typer.BadParameter(f"{assignment!r} is not NAME=VALUE", param_hint="--set")
        overrides[name] = value
    return load_settings(config, {**overrides, "state_dir": state_dir, **more})


def server_url(url: str | None) -> str:
    """The server a command talks to, without a slash at the end."""
    from cluster.credentials import Credentials  # noqa: PLC0415

    return (url or Credentials().current_url()).rstrip("/")


def admin_client(url: str | None) -> Client:
    """A client with LARIMAR_API_KEY or the admin key that this user was shown."""
    from cluster.client import Client  # noqa: PLC0415
    from cluster.credentials import Credentials  # noqa: PLC0415

    where = server_url(url)
    return Client(where, os.environ.get("LARIMAR_API_KEY") or Credentials().admin_key(where))


def tenant_client(url: str | None, tenant: str) -> Client:
    """A client with LARIMAR_API_KEY, the tenant's key or, failing both, the admin key."""
    from cluster.client import Client  # noqa: PLC0415
    from cluster.credentials import Credentials  # noqa: PLC0415

    where, kept = server_url(url), Credentials()
    key = os.environ.get("LARIMAR_API_KEY") or kept.tenant_key(where, tenant) or kept.admin_key(where)
    return Client(where, key)
