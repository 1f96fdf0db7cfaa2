"""`larimar write|query|forget|verify` and `larimar facts`: what one does with a tenant's memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli_options import OutputOption, TenantOption, UrlOption, YesOption, tenant_client
from cluster.cli_safekeeping import await_receipt
from cluster.console_output import Exit, Format, Output, progress_bar, reporting

FACTS_PER_BATCH = 100

facts_app = typer.Typer(no_args_is_help=True, help="The facts of a tenant.")


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `app`."""
    for command in (write, query, forget, verify):
        app.command()(command)
    app.add_typer(facts_app, name="facts")


@reporting
def write(
    *,
    tenant: TenantOption,
    text: Annotated[str | None, typer.Argument(help="One sentence to remember.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="A question or the beginning of a sentence …")] = None,
    target: Annotated[str | None, typer.Option("--target", help="… and what belongs behind it.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="One fact per line: JSON {prompt, target} or {text}, or a sentence."),
    ] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="A tag of the fact. May be repeated.")] = None,
    keep_both: Annotated[
        bool, typer.Option("--keep-both", help="Do not supersede a fact with the same prompt.")
    ] = False,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Write one fact, or many from a file or stdin (one per line)."""
    facts = [_with_options(fact, tags, keep_both=keep_both) for fact in _given_facts(text, prompt, target, file)]
    shown = Output(output)
    ids: list[str] = []
    superseded: list[str] = []
    version = 0
    try:
        with tenant_client(url, tenant) as client:
            for batch in _batches(facts, shown):
                reply = client.write(tenant, batch)
                ids += reply.ids
                superseded += reply.superseded
                version = reply.version
    except Exception:
        if ids:
            shown.note(f"{len(ids)} of {len(facts)} facts were written before this; the rest was not")
        raise
    result: dict[str, Any] = {"written": len(ids), "ids": ids, "superseded": superseded, "version": version}
    if len(facts) == 1:
        result["ms"] = reply.usage.ms
    elif not shown.json:
        result["ids"] = f"{ids[0]} … {ids[-1]}"
    shown.fields(result)


def _given_facts(text: str | None, prompt: str | None, target: str | None, file: Path | None) -> list[dict[str, Any]]:
    """What the command line, the file or stdin holds, checked as far as can be without the server."""
    given = [name for name, value in (("TEXT", text), ("--prompt", prompt), ("--file", file)) if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"give only one of {' and '.join(given)}")
    if target is not None and prompt is None:
        raise typer.BadParameter("--target needs --prompt")
    if prompt is not None:
        return [{"prompt": prompt} if target is None else {"prompt": prompt, "target": target}]
    if text not in (None, "-"):
        return [{"text": text}]
    if file is None and text is None and sys.stdin.isatty():
        raise typer.BadParameter("give a sentence, --prompt, --file, or facts on stdin")
    if file is None or str(file) == "-":
        return _parse_lines(sys.stdin, "stdin")
    try:
        with file.open(encoding="utf-8") as lines:
            return _parse_lines(lines, str(file))
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--file") from error


def _parse_lines(lines: Iterable[str], where: str) -> list[dict[str, Any]]:
    """One fact per line that is not empty. All lines are read before the first is sent."""
    facts = []
    number = 0
    try:
        for line in lines:
            number += 1
            stripped = line.strip()
            if stripped.startswith("{"):
                facts.append(dict(json.loads(stripped)))
            elif stripped:
                facts.append({"text": stripped})
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{where}, line {number}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{where} is not UTF-8 text") from error
    if not facts:
        raise typer.BadParameter(f"{where} holds no facts")
    return facts


def _with_options(fact: dict[str, Any], tags: list[str] | None, *, keep_both: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"tags": tags} if tags else {}
    return {**options, **({"keep_both": True} if keep_both else {}), **fact}


def _batches(facts: list[dict[str, Any]], shown: Output) -> Iterator[list[dict[str, Any]]]:
    """The facts in batches; a bar on stderr counts the batches that came back."""
    batches = [facts[start : start + FACTS_PER_BATCH] for start in range(0, len(facts), FACTS_PER_BATCH)]
    if len(batches) == 1 or not shown.errors.is_terminal:
        yield from batches
        return
    with progress_bar(shown.errors) as progress:
        task = progress.add_task("Writing", total=len(facts))
        for batch in batches:
            yield batch
            progress.advance(task, len(batch))


@reporting
def query(
    *,
    tenant: TenantOption,
    prompt: Annotated[str, typer.Argument(help="A question, or with --mode complete the beginning of a sentence.")],
    memory: Annotated[str, typer.Option("--memory", help="on, or off for the base model alone.")] = "on",
    mode: Annotated[str, typer.Option("--mode", help="answer a question, or complete a sentence.")] = "answer",
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Length of the answer.")] = 48,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Ask. The answer appears as it is made, then where it came from."""
    shown = Output(output)
    options: dict[str, Any] = {"memory": memory, "mode": mode, "max_tokens": max_tokens}
    with tenant_client(url, tenant) as client:
        if shown.json:
            shown.show_json(client.query(tenant, prompt, **options).model_dump())
            return
        recall: dict[str, Any] = {}
        done: dict[str, Any] = {}
        for event in client.query_stream(tenant, prompt, **options):
            if event.kind == "recall":
                recall = event.fields
            elif event.kind == "done":
                done = event.fields
            else:
                # Not through Rich: a piece of an answer is neither markup nor a line.
                sys.stdout.write(event.text)
                sys.stdout.flush()
    shown.console.print()
    shown.fields(
        {
            "in_scope": recall["in_scope"],
            "fact": [fact["id"] for fact in recall["facts"]] or None,
            "score": recall["score"],
            "match": recall["match"],
            "ms": done["usage"]["ms"],
        }
    )


@reporting
def forget(
    *,
    tenant: TenantOption,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids of facts, as 'write' and 'facts list' show them.")
    ] = None,
    about: Annotated[str | None, typer.Option("--query", help="Show the facts this is about, then ask.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be forgotten and change nothing.")] = False,
    yes: YesOption = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the bytes are destroyed as well.")] = False,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Forget facts as if they had never been written. Exactly those ids: a query only proposes."""
    if bool(ids) == (about is not None):
        raise typer.BadParameter("give the ids of facts, or --query TEXT")
    shown = Output(output)
    with tenant_client(url, tenant) as client:
        chosen = list(ids or [])
        if about is not None:
            candidates = [fact.model_dump() for fact in client.preview(tenant, query=about)]
            chosen = [fact["id"] for fact in candidates]
            if not chosen:
                shown.note("no fact of this tenant is about that; nothing was changed")
                raise typer.Exit(int(Exit.NOT_FOUND))
            if not yes and not dry_run:
                _confirm(shown, candidates)
        result = client.forget(tenant, chosen, dry_run=dry_run).model_dump()
        if wait and result["receipt_id"] is not None:
            done = await_receipt(client, result["receipt_id"], shown)
            result |= {"erasure": done.state, "receipt": done.receipt}
    shown.fields(result)


def _confirm(shown: Output, candidates: list[dict[str, Any]]) -> None:
    """Show the candidates and ask; without somebody to ask, refuse."""
    Output(Format.TABLE).rows(candidates, ("id", "score", "prompt", "target"))
    if not sys.stdin.isatty() or shown.json:
        raise typer.BadParameter("nobody to ask: repeat with --yes, or with the ids you mean")
    typer.confirm(f"Forget {'this fact' if len(candidates) == 1 else f'these {len(candidates)} facts'}?", abort=True)


@reporting
def verify(tenant: TenantOption, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """Rebuild the memory from its surviving facts and compare. Fails if the two differ."""
    with tenant_client(url, tenant) as client:
        reply = client.verify(tenant)
    Output(output).fields(reply.model_dump())
    if not reply.identical:
        raise typer.Exit(int(Exit.FAILED))


@facts_app.command("list")
@reporting
def list_facts(
    tenant: TenantOption,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Stop after this many.")] = 1000,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """The facts in the order they were written."""
    shown = Output(output)
    rows: list[dict[str, Any]] = []
    with tenant_client(url, tenant) as client:
        for fact in client.facts(tenant):
            if len(rows) == limit:
                shown.note(f"there are more than {limit}; see --limit")
                break
            rows.append(fact.model_dump())
    shown.rows(rows, ("id", "created_at", "prompt", "target", "tags"))
