"""`larimar vault`: the keys of a state folder. Works on the folder itself, not through the server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.cli_options import ConfigOption, OutputOption, StateDirOption, settings_of
from cluster.console_output import Format, Output, reporting

vault_app = typer.Typer(no_args_is_help=True, help="Keys that stored data is sealed with.")

BACKUP = (
    "Back up the key folder again now, and destroy its older copies: together with an old copy of a vault, the old "
    "root key opens what has been forgotten since."
)


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `app`."""
    app.add_typer(vault_app, name="vault")


@vault_app.command()
@reporting
def rotate(
    tenant: Annotated[
        str | None, typer.Option("--tenant", "-t", help="Only this tenant's key: its name or uid.")
    ] = None,
    state_dir: StateDirOption = None,
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Replace the root key, or one tenant's key, of a system that is stopped. If interrupted, run it again."""
    from cluster.state_folder import StateFolder  # noqa: PLC0415 - psutil
    from cluster.vault_rotation import rotate_root, rotate_tenant  # noqa: PLC0415 - SQLAlchemy

    settings = settings_of(config, state_dir)
    folder, shown = StateFolder(settings.state_dir), Output(output)
    folder.check()
    folder.prepare()
    with folder.lock(), shown.errors.status("Wrapping keys anew"):
        done = rotate_root(settings) if tenant is None else rotate_tenant(settings, tenant)
    shown.fields(done)
    if tenant is None:
        shown.note(BACKUP)


@vault_app.command()
@reporting
def status(state_dir: StateDirOption = None, config: ConfigOption = None, output: OutputOption = Format.TABLE) -> None:
    """Which root key there is, what is sealed under it, and the public key that receipts are checked with."""
    from cluster.state_folder import StateFolder  # noqa: PLC0415 - psutil
    from cluster.vault_rotation import status as status_of  # noqa: PLC0415 - SQLAlchemy

    settings = settings_of(config, state_dir)
    folder, shown = StateFolder(settings.state_dir), Output(output)
    folder.check()
    said: dict[str, Any] = status_of(settings, running=folder.running() is not None)
    if shown.json:
        shown.show_json(said)
        return
    vaults = said.pop("vaults")
    shown.fields(said)
    shown.rows(vaults, ("vault", "state", "root_key", "tenants", "keys"))
