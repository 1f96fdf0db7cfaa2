"""A verifier's judgements, each pair judged once however many memories and thresholds ask for it."""

from __future__ import annotations

from collections.abc import Sequence

from workers.scope_verifier import ScopeVerifier

_CALL_PAIRS = 512


class Matches:
    """`ScopeVerifier.match_queries` with a cache."""

    def __init__(self, verifier: ScopeVerifier) -> None:
        self._verifier = verifier
        self._kept: dict[tuple[str, str], float] = {}

    def __call__(self, queries: Sequence[str], prompts: Sequence[str]) -> list[float]:
        """N queries, each beside the prompt that was found for it, to N matches in [0, 1]."""
        pairs = list(zip(queries, prompts, strict=True))
        missing = list(dict.fromkeys(pair for pair in pairs if pair not in self._kept))
        for start in range(0, len(missing), _CALL_PAIRS):
            part = missing[start : start + _CALL_PAIRS]
            found = self._verifier.match_queries([query for query, _ in part], [prompt for _, prompt in part])
            self._kept.update(zip(part, found, strict=True))
        return [self._kept[pair] for pair in pairs]
