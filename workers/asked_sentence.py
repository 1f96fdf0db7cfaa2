"""The sentence of a query that asks: its key is the query's second one, beside that of the whole text. Pure.

Why no library: docs/decisions/0008-asked-sentence.md. A sentence end that is missed leaves the query as it was; one too
many adds a key that is about nothing in particular.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest

_ENDS = ".!?…"
_CLOSERS = "\"')]}»\u201d\u2019"
_OPENERS = "\"'([{«¿¡\u201c\u2018"
_TOKEN = re.compile(r"\S+")
_WORD = re.compile(r"[^\W_]+")
_LINE_BREAK = re.compile(r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")

#: No sentence ends after these: a name or an example follows.
_LEADING = re.compile(
    r"adm|approx|brig|capt|cf|cmdr|col|cpl|dr|e\.g|fr|gen|gov|hon|i\.e|lt|maj|messrs|mme|mr|mrs|ms|pres|prof|rep|rev|sen"
    r"|sgt|viz|vs",
    re.IGNORECASE,
)
#: No sentence ends after these if a number follows: "No. 5".
_NUMBERED = re.compile(r"art|bk|ch|eq|ex|figs?|nos?|op|pp?|pg|sec|vols?", re.IGNORECASE)
#: After these, initials among them, a sentence ends only if a question follows: "It is Apple Inc. Who founded it?"
_TRAILING = re.compile(
    r"[^\W\d_]|[^\W\d_]{1,2}(?:\.[^\W\d_]{1,2})+"  # J. of J. R. R. Tolkien; U.S., F.C., a.m., Ph.D.
    r"|al|assn|ave|blvd|bros|ca|co|corp|ctr|dept|dist|div|est|ft|govt|inc|intl|jr|ltd|mfg|mts?|natl|pt|pty|rd|sq|sr|ste?"
    r"|univ|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"who|whom|whose|what|which|when|where|why|how|is|are|was|were|do|does|did", re.IGNORECASE)


def asked_sentence(text: str) -> str | None:
    """The last sentence of `text` that ends with "?", else its last one; None when it is one sentence.

    A sentence ends at a line break, or at . ! ? or … (quotes and brackets may close after it) before white space and an
    upper-case letter, a digit, a quote or a bracket; not after initials and common abbreviations of English. What has
    neither letter nor digit is no sentence. The result is a part of `text` without white space around it. Linear time.
    """
    sentences = list(_sentences(text))
    if len(sentences) < 2:
        return None
    asked = (sentence for sentence in reversed(sentences) if _asks(sentence))
    return next(asked, sentences[-1])


def key_texts(queries: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """The texts whose keys N queries have, and for each query the indices of its own: itself, then its asked sentence.

    The queries come first and in their order; a sentence is never longer than its query.
    """
    texts, rows = list(queries), [[index] for index in range(len(queries))]
    for row, query in zip(rows, queries, strict=True):
        asked = asked_sentence(query)
        if asked is not None:
            row.append(len(texts))
            texts.append(asked)
    return texts, rows


def _sentences(text: str) -> Iterator[str]:
    tokens = list(_TOKEN.finditer(text))
    start = tokens[0].start() if tokens else 0
    for last, following in zip_longest(tokens, tokens[1:]):
        if following is None or _ends_between(text, start, last, following):
            if _WORD.search(text, start, last.end()):
                yield text[start : last.end()]
            start = following.start() if following else len(text)


def _ends_between(text: str, start: int, last: re.Match[str], following: re.Match[str]) -> bool:
    """Whether the sentence from `start` on ends between two tokens that nothing but white space separates."""
    if _LINE_BREAK.search(text, last.end(), following.start()):
        return True
    first = text[following.start()]
    if not (first in _OPENERS or (first.isalnum() and not first.islower())):
        return False
    open_end = last.group().rstrip(_CLOSERS)
    word = open_end.rstrip(_ENDS)
    if word == open_end:
        return False
    ends = open_end[len(word) :]
    if ends == "!" and last.start() == start:  # "Yahoo! News" is a name, "Jeopardy! Who hosts it?" is not
        return _opens_a_question(following.group())
    return ends != "." or _may_end(word.lstrip(_OPENERS), following.group())


def _may_end(word: str, following: str) -> bool:
    """Whether a full stop after `word` can end a sentence before `following`."""
    if _LEADING.fullmatch(word):
        return False
    if _NUMBERED.fullmatch(word) and following[0].isdigit():
        return False
    return _TRAILING.fullmatch(word) is None or _opens_a_question(following)


def _opens_a_question(token: str) -> bool:
    found = _WORD.search(token)
    return found is not None and _QUESTION.fullmatch(found.group()) is not None


def _asks(sentence: str) -> bool:
    ending = sentence.rstrip(_CLOSERS)
    return "?" in ending[len(ending.rstrip(_ENDS)) :]
