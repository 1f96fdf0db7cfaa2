"""`larimar tenant` and `larimar key`: who may use the system. All of it needs the admin key."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cluster.cli_options import (
    ConfigOption,
    OutputOption,
    StateDirOption,
    UrlOption,
    YesOption,
    admin_client,
    server_url,
    settings_of,
    tenant_client,
)
from cluster.console_output import Format, Output, reporting

tenant_app = typer.Typer(no_args_is_help=True, help="Tenants: each has a memory and a key of its own.")
key_app = typer.Typer(no_args_is_help=True, help="API keys.")

NameArgument = Annotated[str, typer.Argument(help="The tenant's name.")]


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `app`."""
    app.add_typer(tenant_app, name="tenant")
    app.add_typer(key_app, name="key")


@tenant_app.command()
@reporting
def create(
    name: NameArgument,
    retention: Annotated[str, typer.Option("--retention", help="text, or latent to store no text anywhere.")] = "text",
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Create a tenant. Its key is shown once, and kept for this user."""
    if retention not in ("text", "latent"):
        raise typer.BadParameter("must be text or latent", param_hint="--retention")
    with admin_client(url) as client:
        reply = client.create_tenant(name, "latent" if retention == "latent" else "text")
    kept = _keep(url, name, reply.key)
    Output(output).fields({**reply.model_dump(exclude={"hint", "replayed", "outcome"}), "kept_in": kept})


@tenant_app.command("list")
@reporting
def list_tenants(url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """All tenants."""
    with admin_client(url) as client:
        rows = [tenant.model_dump(exclude={"state_hash"}) for tenant in client.tenants()]
    Output(output).rows(rows, ("name", "facts", "version", "residency", "retention", "created_at"))


@tenant_app.command()
@reporting
def show(name: NameArgument, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """One tenant, with its state hash."""
    with tenant_client(url, name) as client:
        Output(output).fields(client.tenant(name).model_dump())


@tenant_app.command()
@reporting
def delete(
    name: NameArgument, yes: YesOption = False, url: UrlOption = None, output: OutputOption = Format.TABLE
) -> None:
    """Delete a tenant, its facts and its key."""
    from cluster.credentials import Credentials  # noqa: PLC0415

    if not yes:
        typer.confirm(f"Delete tenant {name} and all its facts?", abort=True)
    with admin_client(url) as client:
        reply = client.delete_tenant(name)
    Credentials().drop_tenant(server_url(url), name)
    Output(output).fields(reply.model_dump(exclude={"state_hash"}))


@tenant_app.command()
@reporting
def sleep(name: NameArgument, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """Put a tenant's memory on disk only. Every command goes on working and wakes it."""
    with admin_client(url) as client:
        Output(output).fields(client.sleep(name).model_dump(exclude={"state_hash"}))


@tenant_app.command()
@reporting
def wake(name: NameArgument, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """Load a tenant's memory before somebody asks."""
    with admin_client(url) as client:
        Output(output).fields(client.wake(name).model_dump(exclude={"state_hash"}))


@tenant_app.command()
@reporting
def key(name: NameArgument, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """Make a new key for a tenant; the old one stops working."""
    with admin_client(url) as client:
        made = client.new_key(name)
    Output(output).fields({"tenant": name, "key": made, "kept_in": _keep(url, name, made)})


@key_app.command("reset-admin")
@reporting
def reset_admin(
    state_dir: StateDirOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Make a new admin key; the old one stops working. Works on the state folder, whether or not the system runs."""
    from cluster.auth import KeyStore  # noqa: PLC0415 - SQLAlchemy
    from cluster.credentials import Credentials  # noqa: PLC0415
    from cluster.state_folder import StateFolder  # noqa: PLC0415

    folder = StateFolder(settings_of(config, state_dir).state_dir)
    folder.check()
    folder.prepare()
    made = KeyStore(folder.control).reset_admin(time.time())
    system = folder.running()
    kept = Credentials()
    kept.save_admin(server_url(url or (system.url if system else None)), made)
    Output(output).fields({"admin_key": made, "kept_in": str(kept.path)})


def _keep(url: str | None, tenant: str, key_shown: str | None) -> str:
    """Remember a tenant's key for this user; the path of the file it is in."""
    from cluster.credentials import Credentials  # noqa: PLC0415

    kept = Credentials()
    if key_shown is not None:
        kept.save_tenant(server_url(url), tenant, key_shown)
    return str(kept.path)
