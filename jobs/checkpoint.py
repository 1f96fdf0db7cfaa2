"""Publish checkpoints of many tenants: `larimar checkpoint --all` as a job.

    python -m jobs.checkpoint --all [--location NAME]
    ray job submit -- python -m jobs.checkpoint --tenant acme --tenant beta --url http://127.0.0.1:8000

The key comes from LARIMAR_API_KEY, or is the one this user was shown. One line of JSON per tenant; exit code 1 when
any of them failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from cluster.cli_options import admin_client
from cluster.many_tenants import for_each


def main(argv: Sequence[str] | None = None) -> int:
    """0 when every checkpoint was published, 1 when any was not. Raises what ends the whole job."""
    parser = argparse.ArgumentParser(prog="jobs.checkpoint", description="Publish checkpoints of many tenants.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every tenant; needs the admin key")
    which.add_argument("--tenant", action="append", help="this tenant; may be repeated")
    parser.add_argument("--location", default="local", help="a location's name from the settings")
    parser.add_argument(
        "--url", default=os.environ.get("LARIMAR_URL"), help="the server; default: the one started last"
    )
    arguments = parser.parse_args(argv)
    failed = 0
    with admin_client(arguments.url) as client:
        names = arguments.tenant or [tenant.name for tenant in client.tenants()]
        for row in for_each(names, lambda name: client.checkpoint(name, arguments.location)):
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            failed += not row["done"]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
