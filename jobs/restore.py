"""Restore many tenants from their newest checkpoints, each into a new tenant.

    python -m jobs.restore acme=acme-restored beta=beta-restored
    ray job submit -- python -m jobs.restore --in-place acme beta

The key comes from LARIMAR_API_KEY, or is the one this user was shown; it must be the admin's. One line of JSON per
tenant, without the new tenants' keys (`larimar tenant key NAME` makes one); exit code 1 when any of them failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from cluster.cli_options import admin_client
from cluster.client import Client
from cluster.many_tenants import for_each, pairs_of
from cluster.safekeeping_schemas import RestoreResponse


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every tenant was restored, 1 when any was not. Raises what ends the whole job."""
    parser = argparse.ArgumentParser(prog="jobs.restore", description="Restore many tenants.")
    parser.add_argument("tenants", nargs="+", help="SOURCE=TARGET; with --in-place only names")
    parser.add_argument("--in-place", action="store_true", help="replace what each tenant holds now")
    parser.add_argument(
        "--url", default=os.environ.get("LARIMAR_URL"), help="the server; default: the one started last"
    )
    arguments = parser.parse_args(argv)
    try:
        pairs = [(name, name) for name in arguments.tenants] if arguments.in_place else pairs_of(arguments.tenants)
    except ValueError as error:
        parser.error(str(error))
    sources = {target: source for source, target in pairs}
    failed = 0
    with admin_client(arguments.url) as client:
        for row in for_each(sources, lambda target: _restored(client, sources[target], target)):
            row.pop("key", None)  # a job's output is kept by Ray
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            failed += not row["done"]
    return 1 if failed else 0


def _restored(client: Client, source: str, target: str) -> RestoreResponse:
    # The same name twice comes from --in-place only: `pairs_of` refuses it.
    return client.restore(target, in_place=True) if source == target else client.restore(target, from_tenant=source)


if __name__ == "__main__":
    sys.exit(main())
