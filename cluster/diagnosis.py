"""What `larimar doctor` says: what happened, to which tenant, what is safe, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """`error`: something is refused or may be lost. `warning`: all is well now, but a promise is weaker."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding, in words for whoever is woken up by it."""

    code: str
    severity: Severity
    what: str
    safe: str
    cure: str
    tenant: str | None = None

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Diagnosis:
        """From a finding as the API or a memory actor words it."""
        return cls(
            code=str(plain["code"]),
            severity=Severity(plain["severity"]),
            what=str(plain["what"]),
            safe=str(plain["safe"]),
            cure=str(plain["cure"]),
            tenant=plain["tenant"],
        )
