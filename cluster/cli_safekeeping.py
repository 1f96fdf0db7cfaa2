"""`larimar checkpoint|checkpoints|restore` and `larimar receipt show`: copies of memories, and what was destroyed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli_options import (
    OutputOption,
    TenantOption,
    UrlOption,
    YesOption,
    admin_client,
    server_url,
    tenant_client,
)
from cluster.console_output import Exit, Format, Output, progress_bar, reporting

if TYPE_CHECKING:
    from pydantic import BaseModel

    from cluster.client import Client
    from cluster.safekeeping_schemas import ReceiptReply

OVERDUE_S = 30.0  # a receipt may come this much after its time before one stops waiting

OneTenantOption = Annotated[
    str | None, typer.Option("--tenant", "-t", envvar="LARIMAR_TENANT", show_envvar=True, help="The tenant's name.")
]


def add_to(app: typer.Typer, receipts: typer.Typer) -> None:
    """Make these commands part of `app`, and `show` part of its group for receipts."""
    for command in (checkpoint, checkpoints, restore):
        app.command()(command)
    receipts.command()(show)


@reporting
def checkpoint(
    *,
    tenant: OneTenantOption = None,
    every: Annotated[
        bool, typer.Option("--all", help="All tenants, one after the other; needs the admin key.")
    ] = False,
    location: Annotated[str, typer.Option("--location", help="A location's name from the settings.")] = "local",
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Publish a sealed copy of a tenant's memory as it is now."""
    shown = Output(output)
    if every:
        with admin_client(url) as client:
            names = [item.name for item in client.tenants()]
            rows = _each(shown, "Checkpoints", names, lambda name: client.checkpoint(name, location))
        _show_all(shown, rows, ("tenant", "checkpoint_id", "version", "facts", "bytes", "problem"))
        return
    if tenant is None:
        raise typer.BadParameter("give --tenant NAME, or --all")
    with tenant_client(url, tenant) as client, shown.errors.status("Writing the checkpoint"):
        reply = client.checkpoint(tenant, location)
    shown.fields(reply.model_dump())


@reporting
def checkpoints(tenant: TenantOption, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """The checkpoints of a tenant, newest first."""
    with tenant_client(url, tenant) as client:
        rows = [item.model_dump() for item in client.checkpoints(tenant)]
    Output(output).rows(rows, ("checkpoint_id", "created_at", "location", "version", "facts", "bytes"))


@reporting
def restore(
    *,
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="The tenant to fill: a new name, or see --in-place.")],
    source: Annotated[str | None, typer.Option("--from", help="The tenant whose checkpoint it is.")] = None,
    checkpoint_id: Annotated[str, typer.Option("--checkpoint", help="Id of a checkpoint.")] = "latest",
    version: Annotated[int | None, typer.Option("--version", min=0, help="As of this version of the source.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace what the tenant holds now by its own checkpoint.")
    ] = False,
    yes: YesOption = False,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Fill a new tenant from a checkpoint. What was forgotten since stays forgotten."""
    if in_place and source not in (None, tenant):
        raise typer.BadParameter("--in-place takes the tenant's own checkpoint; leave --from out")
    if not in_place and source is None:
        raise typer.BadParameter("give --from TENANT, or --in-place")
    shown = Output(output)
    if in_place and not yes:
        typer.confirm(f"Replace what tenant {tenant} holds now by its checkpoint {checkpoint_id}?", abort=True)
    client = tenant_client(url, tenant) if in_place else admin_client(url)
    with client, shown.errors.status("Restoring"):
        reply = client.restore(
            tenant,
            from_tenant=None if in_place else source,
            checkpoint_id=checkpoint_id,
            version=version,
            in_place=in_place,
        )
    values: dict[str, Any] = reply.model_dump(exclude={"usage", "hint"}) | {"ms": reply.usage.ms}
    if reply.key is not None:
        from cluster.credentials import Credentials  # noqa: PLC0415

        kept = Credentials()
        kept.save_tenant(server_url(url), tenant, reply.key)
        values["kept_in"] = str(kept.path)
    shown.fields(values)


@reporting
def show(
    receipt_id: Annotated[str, typer.Argument(help="Id of a receipt, as 'forget' shows it.")],
    *,
    tenant: OneTenantOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the bytes are destroyed.")] = False,
    save: Annotated[Path | None, typer.Option("--save", help="Write the signed receipt to this file.")] = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """How far an erasure is, and its signed receipt. With --tenant the tenant's own key is used."""
    shown = Output(output)
    with admin_client(url) if tenant is None else tenant_client(url, tenant) as client:
        reply = await_receipt(client, receipt_id, shown) if wait else client.receipt(receipt_id)
    values: dict[str, Any] = reply.model_dump()
    if save is not None:
        values["saved_in"] = _save(reply, save, shown)
    shown.fields(values)
    if reply.state != "done" and (wait or save is not None):
        shown.note("the erasure is not done yet; ask again")
        raise typer.Exit(int(Exit.UNAVAILABLE))


def await_receipt(client: Client, receipt_id: str, shown: Output) -> ReceiptReply:
    """The receipt once it is signed, or as it is some time after it was due."""
    first = client.receipt(receipt_id)
    due_s = datetime.fromisoformat(first.erase_by).timestamp() - time.time()
    with shown.errors.status(f"Waiting for the erasure, due by {first.erase_by}"):
        return client.receipt_done(receipt_id, timeout_s=max(0.0, due_s) + OVERDUE_S)


def _save(reply: ReceiptReply, path: Path, shown: Output) -> str | None:
    """Write the document exactly as it was signed."""
    if reply.receipt is None:
        return None
    path.write_text(reply.receipt, encoding="utf-8")
    shown.note(f"saved; 'larimar receipt verify {path}' checks it without the server")
    return str(path)


def _each(shown: Output, what: str, names: Iterable[str], work: Callable[[str], BaseModel]) -> list[dict[str, Any]]:
    """The records of `for_each`, with a bar on stderr that counts them."""
    from cluster.many_tenants import for_each  # noqa: PLC0415

    names = list(names)
    rows: list[dict[str, Any]] = []
    if not shown.errors.is_terminal:
        return list(for_each(names, work))
    with progress_bar(shown.errors) as progress:
        task = progress.add_task(what, total=len(names))
        for row in for_each(names, work):
            rows.append(row)
            progress.advance(task)
    return rows


def _show_all(shown: Output, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """The table; exit code 1 when anything failed."""
    shown.rows(rows, columns)
    failed = [row["tenant"] for row in rows if not row["done"]]
    if failed:
        shown.note(f"{len(failed)} of {len(rows)} failed: {', '.join(failed[:10])}{' …' if failed[10:] else ''}")
        raise typer.Exit(int(Exit.FAILED))
