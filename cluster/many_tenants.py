"""The same work for many tenants, one after the other: what fails is noted, and the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from cluster.client import ApiError

HOPELESS = frozenset({401, 403})  # the key is at fault: it will be for the next tenant too


def for_each(names: Iterable[str], work: Callable[[str], BaseModel]) -> Iterator[dict[str, Any]]:
    """One record per name as its work ends: the reply's fields, or `problem` and `code`.

    Raises: httpx2.TransportError when the server has gone, ApiError when the key is refused.
    """
    for name in names:
        try:
            yield {"tenant": name, "done": True, **work(name).model_dump(exclude={"usage", "tenant"})}
        except ApiError as error:
            if error.status in HOPELESS:
                raise
            yield {"tenant": name, "done": False, "code": error.code, "problem": str(error)}


def pairs_of(arguments: Iterable[str]) -> list[tuple[str, str]]:
    """`SOURCE=TARGET` arguments, two different names. Raises ValueError naming the first one that is none."""
    pairs = []
    for argument in arguments:
        source, separator, target = argument.partition("=")
        if not (separator and source and target) or source == target:
            raise ValueError(f"{argument!r} is not SOURCE=TARGET with two names")
        pairs.append((source, target))
    return pairs
