"""`larimar`: start and stop a system, and everything one can ask of it.

Exit codes: 0 done, 1 failed, 2 wrong usage or request, 3 key missing or not allowed, 4 not found, 5 conflict,
6 a limit was reached, 7 server not reachable or not ready, 8 stored data damaged or locked.
Modules behind a command are imported when it runs.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import cli_doctor, cli_memory, cli_receipt, cli_safekeeping, cli_tenants, cli_vault
from cluster.cli_options import (
    ConfigOption,
    OutputOption,
    SetOption,
    StateDirOption,
    UrlOption,
    admin_client,
    settings_of,
)
from cluster.console_output import Exit, Format, Output, reporting

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or request, 3 key missing or not allowed, 4 not found, "
    "5 conflict, 6 a limit was reached, 7 server not reachable or not ready, 8 stored data damaged or locked."
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="larimar-serve: teach a language model private facts in milliseconds, and take them back exactly.",
    epilog=EXIT_CODES,
)

HostOption = Annotated[str | None, typer.Option("--host", help="Address to bind.  [default: 127.0.0.1]")]
CODECS = {"token-smollm2-135m": "token", "latent-smollm2-135m": "larimar:latent"}  # of the bundles by name


def _known_bundle(name: str | None) -> str | None:
    if name is not None and name not in CODECS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(CODECS)}; set bundle.codec for one of your own")
    return name


BundleOption = Annotated[
    str | None,
    typer.Option("--bundle", callback=_known_bundle, help="token-smollm2-135m (default) or latent-smollm2-135m."),
]
PortOption = Annotated[int | None, typer.Option("--port", "-p", help="TCP port.  [default: 8000]")]


@app.command()
@reporting
def up(
    *,
    state_dir: StateDirOption = None,
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    bundle: BundleOption = None,
    assignments: SetOption = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and stop on Ctrl-C.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Start Ray and the whole system on this machine."""
    codec = None if bundle is None else CODECS[bundle]
    more = {"http.host": host, "http.port": port, "bundle.codec": codec}
    settings = settings_of(config, state_dir, assignments, **more)
    shown = Output(output)
    if foreground:
        _run_here(settings, shown)
        return
    from cluster.launcher import start  # noqa: PLC0415

    with shown.start_progress() as tell:
        ready = start(settings, tell)
    _announce(settings, shown, ready)


def _run_here(settings: Any, shown: Output) -> None:
    """Supervise in this process; the announcement is made when the system answers."""
    from contextlib import ExitStack  # noqa: PLC0415

    from cluster.startup_events import Event, Ready  # noqa: PLC0415
    from cluster.supervisor import Supervisor, stop_on_signals  # noqa: PLC0415

    with ExitStack() as progress:
        show = progress.enter_context(shown.start_progress())

        def tell(event: Event) -> None:
            show(event)
            if isinstance(event, Ready):
                progress.close()
                _announce(settings, shown, event)

        supervisor = Supervisor(settings, tell)
        stop_on_signals(supervisor.request_stop)
        supervisor.run()


def _announce(settings: Any, shown: Output, ready: Any) -> None:
    """Keep the admin key if it is new, and show where everything is."""
    from cluster.credentials import Credentials  # noqa: PLC0415

    kept = Credentials()
    kept.choose(ready.url)
    if ready.admin_key is not None:
        kept.save_admin(ready.url, ready.admin_key)
    known = ready.admin_key or kept.admin_key(ready.url)
    if shown.json:
        key: Any = ready.admin_key
    elif ready.admin_key is not None:
        key = f"{ready.admin_key}\n(shown this once; kept in {kept.path})"
    elif known is not None:
        key = f"as before, kept in {kept.path}"
    else:
        key = "shown at the first start; 'larimar key reset-admin' makes another"
    values = {"url": ready.url, "admin_key": key, "state_folder": str(settings.state_dir), "start_s": ready.start_s}
    shown.fields(values, title="larimar-serve is ready")


@app.command()
@reporting
def down(state_dir: StateDirOption = None, config: ConfigOption = None, output: OutputOption = Format.TABLE) -> None:
    """Stop the system of a state folder and wait until all its processes are gone."""
    from cluster.launcher import stop  # noqa: PLC0415
    from cluster.state_folder import StateFolder  # noqa: PLC0415

    settings = settings_of(config, state_dir)
    shown = Output(output)
    with shown.errors.status("Stopping"):
        stopped = stop(StateFolder(settings.state_dir))
    shown.fields({"stopped": True, "pid": stopped.pid, "killed": stopped.killed})


@app.command()
@reporting
def status(url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """What every component says of itself."""
    shown = Output(output)
    with admin_client(url) as client:
        components = client.status()
    if shown.json:
        shown.show_json(components)
        return
    memory = components.pop("memory", [])
    named = {f"memory {index}": part for index, part in enumerate(memory)} | components
    shown.rows(({"component": name, "says": part} for name, part in named.items()), ("component", "says"))


@app.command()
@reporting
def demo(
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", help="Folder of the tour's own system.  [default: ~/.larimar/demo]")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """A scripted tour on the real system: write, query, forget, verify. Fails if an expectation does not hold."""
    from cluster.demo import run_tour  # noqa: PLC0415

    if not run_tour(state_dir or Path.home() / ".larimar" / "demo", Output(output)):
        raise typer.Exit(int(Exit.FAILED))


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def bench(context: typer.Context) -> None:
    """Measure this machine: a table and, with --json FILE, all figures."""
    # A process of its own: jobs stand above this layer, and what is measured should not share our imports.
    done = subprocess.run([sys.executable, "-m", "jobs.benchmark", *context.args], check=False)  # noqa: S603
    raise typer.Exit(done.returncode)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def train(
    context: typer.Context, what: Annotated[str, typer.Argument(help="What to train: scope, verifier or codec.")]
) -> None:
    """Train the scope encoder, the verifier behind it, or a latent codec: `larimar train scope --data DIR`."""
    if what not in {"scope", "verifier", "codec"}:
        raise typer.BadParameter(f"'{what}' cannot be trained; 'scope', 'verifier' and 'codec' can")
    done = subprocess.run([sys.executable, "-m", f"jobs.train_{what}", *context.args], check=False)  # noqa: S603
    raise typer.Exit(done.returncode)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def campaign(context: typer.Context) -> None:
    """Break a system on purpose and count what is lost: NAME [--count N] [--seed S]; see docs/reliability.md."""
    done = subprocess.run([sys.executable, "-m", "jobs.campaign", *context.args], check=False)  # noqa: S603
    raise typer.Exit(done.returncode)


@app.command(
    name="eval", context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
)
def evaluate(context: typer.Context) -> None:
    """Larimar's experiments beside honest baselines: NAME [--data FILE] [--limit N]; see docs/evaluation.md."""
    command = [sys.executable, "-m", "jobs.evaluate", *context.args]
    # Ctrl-C reaches the whole terminal group. The run itself decides how it ends; here it would be killed at once.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        done = subprocess.run(command, check=False)  # noqa: S603
    finally:
        signal.signal(signal.SIGINT, before)
    raise typer.Exit(done.returncode)


cli_memory.add_to(app)
cli_safekeeping.add_to(app, cli_receipt.receipt_app)
cli_receipt.add_to(app)
cli_tenants.add_to(app)
cli_vault.add_to(app)
cli_doctor.add_to(app)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
