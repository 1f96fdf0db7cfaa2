"""`larimar receipt`: proofs of what was erased."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli_options import OutputOption
from cluster.console_output import Exit, Format, Output, reporting

receipt_app = typer.Typer(no_args_is_help=True, help="Signed receipts of what was erased.")


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `app`."""
    app.add_typer(receipt_app, name="receipt")


@receipt_app.command()
@reporting
def verify(
    file: Annotated[Path, typer.Argument(help="The receipt, - for standard input.", allow_dash=True)],
    key: Annotated[
        str | None,
        typer.Option("--key", help="The server's public key in hex, or a file that holds it ('larimar vault status')."),
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Check a receipt's signature, offline. Exit code 1 when it is not genuine."""
    from memory_actor.errors import ReceiptInvalid  # noqa: PLC0415
    from memory_actor.receipts import verify_receipt  # noqa: PLC0415 - cryptography

    shown = Output(output)
    public_key = None if key is None else _public_key(key)
    try:
        document = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}", param_hint="FILE") from None
    try:
        receipt = verify_receipt(document.decode("utf-8", "replace"), public_key)
    except ReceiptInvalid as error:
        shown.refuse(error.code, str(error))
        raise typer.Exit(int(Exit.FAILED)) from None
    values = {field.name: getattr(receipt, field.name) for field in dataclasses.fields(receipt)}
    shown.fields({"genuine": True, "signed_by_given_key": key is not None} | values)
    if key is None:
        shown.note(
            "Nothing was changed since it was signed, but by whom was not checked: give the server's key with --key."
        )


def _public_key(given: str) -> bytes:
    """32 bytes from hex, or from a file with hex in it."""
    text = given
    if not re.fullmatch(r"[0-9a-fA-F]{64}", given):
        try:
            text = Path(given).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise typer.BadParameter(
                "is neither 64 hex digits nor a file that can be read", param_hint="--key"
            ) from None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise typer.BadParameter(f"file {given} does not hold 64 hex digits", param_hint="--key")
    return bytes.fromhex(text)
