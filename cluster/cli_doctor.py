"""`larimar doctor`: what is wrong, which tenant, what is safe, what to do. Asks the running system, else looks itself.

Exit codes: 0 nothing that needs a person (warnings at most), 8 an error was found, others as for all commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli_options import ConfigOption, OutputOption, StateDirOption, UrlOption, admin_client, settings_of
from cluster.console_output import Exit, Format, Output, reporting

if TYPE_CHECKING:
    from cluster.diagnosis import Diagnosis


def add_to(app: typer.Typer) -> None:
    """Make this command part of `app`."""
    app.command()(doctor)


@reporting
def doctor(
    tenant: Annotated[str | None, typer.Argument(help="Only this tenant.")] = None,
    state_dir: StateDirOption = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Look for damage and for what could become damage: online when the system runs, else on the state folder."""
    from cluster.offline_check import check_local, check_offline  # noqa: PLC0415 - pydantic
    from cluster.state_folder import StateFolder  # noqa: PLC0415

    shown = Output(output)
    settings = settings_of(config, state_dir)
    system = StateFolder(settings.state_dir).running()
    with shown.errors.status("Looking") as status:
        if system is None and url is None:
            mode = "offline"
            findings = check_offline(settings, tenant, status.update)
        else:
            mode = "online"
            findings = _ask(url or (system.url if system else None), tenant)
            if system is not None:
                findings += check_local(settings)
    _report(shown, mode, tenant, findings)


def _ask(url: str | None, tenant: str | None) -> list[Diagnosis]:
    """The findings of the running system, and of what its components say of themselves."""
    from cluster.diagnosis import Diagnosis, Severity  # noqa: PLC0415

    with admin_client(url) as client:
        findings = [Diagnosis.of(plain) for plain in client.doctor(tenant).findings]
        status = client.status() if tenant is None else {}
    parts: list[tuple[str, dict[str, Any]]] = [
        (f"memory actor {index}", part) for index, part in enumerate(status.get("memory", []))
    ]
    parts += [(name, status[name]) for name in ("encoder", "decoder") if name in status]
    for name, part in parts:
        if "error" in part:
            findings.append(
                Diagnosis(
                    "component_silent",
                    Severity.ERROR,
                    f"the {name} does not answer: {part['error']}",
                    "What was acknowledged is on disk; requests that need it wait or are refused",
                    "It is restarted by itself within seconds; if not, see logs/supervisor.log in the state folder",
                )
            )
    return findings


def _report(shown: Output, mode: str, tenant: str | None, findings: Sequence[Diagnosis]) -> None:
    """Show the findings, worst first, and end with the exit code they deserve."""
    from cluster.diagnosis import Severity  # noqa: PLC0415

    ordered = sorted(findings, key=lambda finding: finding.severity is not Severity.ERROR)
    errors = sum(finding.severity is Severity.ERROR for finding in ordered)
    if shown.json:
        plain = [asdict(finding) for finding in ordered]
        shown.show_json({"healthy": not errors, "mode": mode, "findings": plain})
    else:
        for finding in ordered:
            whose = f"tenant {finding.tenant}" if finding.tenant else "the system"
            shown.fields(
                {"what": finding.what, "which": whose, "safe": finding.safe, "do": finding.cure},
                title=f"{finding.severity.upper()} {finding.code}",
            )
        what = f"tenant {tenant}" if tenant else "the system"
        told = f"{errors} errors, {len(ordered) - errors} warnings" if ordered else "nothing is wrong"
        shown.console.print(f"{what} ({mode}): {told}", markup=False)
    if errors:
        raise typer.Exit(int(Exit.DAMAGED))
