"""Token ids to text, piece by piece, without ever showing half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what an incomplete UTF-8 sequence decodes to


class TextStream:
    """The text of a growing token list. The pieces add up to `decode(all tokens)`, less leading blanks if asked."""

    def __init__(self, decode: Callable[[Sequence[int]], str], *, strip_start: bool) -> None:
        self._decode = decode
        self._strip_start = strip_start
        self._tokens: list[int] = []
        self._sent = 0  # characters already handed out

    def push(self, token: int) -> str:
        """The new text that `token` completes; empty while a character is incomplete."""
        self._tokens.append(token)
        return self._new_text(final=False)

    def finish(self) -> str:
        """What was held back; an incomplete character comes out as U+FFFD."""
        return self._new_text(final=True)

    def _new_text(self, *, final: bool) -> str:
        text = self._decode(self._tokens)
        if self._strip_start:
            text = text.lstrip()
        if not final:
            text = text.rstrip(REPLACEMENT)
        piece = text[self._sent :]
        self._sent += len(piece)
        return piece
