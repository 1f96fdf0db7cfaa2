"""zsRE: questions edited one after another into one memory (the paper's Table 3), asked again when all are in it.

ERR is the mean F1 over all past edits after the whole sequence. F1 is GRACE's, on the sets of unique decoder tokens of
what was said and of the answer, case and all, a final full stop and white space taken off first, as the paper does.
It punishes whole sentences, which a model that reads the fact in its prompt likes to give: so beside it stands whether
the answer is in what was said at all.
Unrelated questions are Natural Questions: as users ask them, and once more with the prefix that the file gives them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from jobs.evaluation.asks import Answer, Ask
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import EditedMemory, LarimarMemory, NearestFact, Recollection, Unedited, as_ask
from jobs.evaluation.outcome import Figure, Outcome
from jobs.evaluation.paper_memory import PaperMemory
from jobs.evaluation.recalls import encode_ahead, figures, says
from jobs.evaluation.records import QuestionRecord
from jobs.evaluation.statistics import mean_interval, share, token_f1
from memory_actor.types import FactText
from workers.ports import AnswerMode
from workers.row_codec import RowCodec

NAME = "zsre"
TOKENS_MAX = 20  # generated per question, as GRACE does
PREFIX = "nq question: "


class Kind(StrEnum):
    """What a query is to the memory."""

    EDIT = "edit"
    REPHRASE = "rephrase"
    UNRELATED = "unrelated"
    UNRELATED_PREFIXED = "unrelated_prefixed"  # asks the gate only


@dataclass(frozen=True, slots=True)
class Query:
    """One query after all edits; `index` is the edit's position, `answer` what the edit says."""

    index: int
    kind: Kind
    text: str
    answer: str = ""

    @property
    def decoded(self) -> bool:
        return self.kind is not Kind.UNRELATED_PREFIXED


def run(lab: Lab) -> Outcome:
    """The first `limit` questions are edited; all rows see the same sequence and the same queries."""
    records = lab.data.questions[: lab.limit]
    queries = [query for index, record in enumerate(records) for query in queries_of(index, record)]
    facts = [record.fact() for record in records]
    encode_ahead(lab, facts, [query.text for query in queries])
    recalled = {memory.name: _recall(lab, memory, facts, queries) for memory in _memories(lab)}
    base, answers = _answer(lab, queries, recalled)
    outcome = Outcome(NAME, {f"{NAME}.n": len(records)})
    for name, found in recalled.items():
        place = NAME if name == LarimarMemory.name else f"{NAME}.{name}"
        marks = [
            mark(query, one, answer, base.get(query.index), lab.codec)
            for query, one, answer in zip(queries, found, answers[name], strict=True)
        ]
        outcome.summary |= question_figures(place, queries, marks, gated=name != Unedited.name)
        outcome.items += _items(name, queries, found, answers[name], marks)
    return outcome


def queries_of(index: int, record: QuestionRecord) -> Iterator[Query]:
    """The four queries about one edit."""
    unrelated = record.unrelated.removeprefix(PREFIX)
    yield Query(index, Kind.EDIT, record.question, record.target_new)
    yield Query(index, Kind.REPHRASE, record.rephrasing, record.target_new)
    yield Query(index, Kind.UNRELATED, unrelated)
    yield Query(index, Kind.UNRELATED_PREFIXED, PREFIX + unrelated)


@dataclass(frozen=True, slots=True)
class QuestionMark:
    """What one query showed. `f1`, `said` and `right_fact` are for edits' questions, `changed` for the unrelated."""

    in_scope: bool
    right_fact: bool | None = None  # only where the question was in scope
    f1: float | None = None
    said: bool | None = None  # the generated text contains the answer
    changed: bool | None = None  # the generated tokens are not the unedited model's


def mark(
    query: Query, recollection: Recollection, answer: Answer | None, base: Answer | None, codec: RowCodec
) -> QuestionMark:
    """`base` is what the unedited model answers to the unrelated question of the same record."""
    in_scope = recollection.index is not None
    if query.kind in {Kind.EDIT, Kind.REPHRASE}:
        right = recollection.index == query.index if in_scope else None
        if answer is None:
            return QuestionMark(in_scope, right)
        f1 = token_f1(said_tokens(answer.text, codec), said_tokens(query.answer, codec))
        return QuestionMark(in_scope, right, f1, says(answer.text, query.answer))
    changed = None if answer is None or base is None else answer.tokens != base.tokens
    return QuestionMark(in_scope, changed=changed)


def said_tokens(text: str, codec: RowCodec) -> list[int]:
    """Decoder tokens of an answer without its final full stop and outer white space."""
    return codec.tokens(FactText("", text.strip().removesuffix(".")))[1]


def question_figures(
    place: str, queries: Sequence[Query], marks: Sequence[QuestionMark], *, gated: bool
) -> dict[str, Figure]:
    """Flat figures of one row; those of the gate only where there is one."""
    by_kind = {kind: [m for q, m in zip(queries, marks, strict=True) if q.kind is kind] for kind in Kind}
    summary: dict[str, Figure] = {}
    for name, kind in (("all_edits", Kind.EDIT), ("rephrase", Kind.REPHRASE)):
        scores = [found.f1 for found in by_kind[kind] if found.f1 is not None]
        said = [found.said for found in by_kind[kind] if found.said is not None]
        if scores:
            summary |= figures(f"{place}.f1_{name}", mean_interval(scores))
            summary |= figures(f"{place}.generation_{name}", share(said))
    changed = [found.changed for found in by_kind[Kind.UNRELATED] if found.changed is not None]
    if changed:
        summary |= figures(f"{place}.unrelated_changed", share(changed))
    if gated:
        for kind in Kind:
            if by_kind[kind]:
                summary |= figures(f"{place}.{kind}_in_scope", share([found.in_scope for found in by_kind[kind]]))
        right = [found.right_fact for found in by_kind[Kind.REPHRASE] if found.right_fact is not None]
        if right:
            summary |= figures(f"{place}.right_fact", share(right))
    return summary


def _memories(lab: Lab) -> Iterator[EditedMemory]:
    yield LarimarMemory(lab)
    if lab.rows == "all":
        yield Unedited(lab)
        yield NearestFact(lab)
        yield PaperMemory(lab, addressing="pinv")
        yield PaperMemory(lab, addressing="gaussian")


def _recall(lab: Lab, memory: EditedMemory, facts: Sequence[FactText], queries: Sequence[Query]) -> list[Recollection]:
    """Write the facts one after another, then recall all queries."""
    memory.clear()
    with lab.progress(f"{NAME}: {memory.name} is edited", len(facts)) as advance:
        for fact in facts:
            memory.write([fact])
            advance(1)
    found = memory.recall([query.text for query in queries])
    memory.close()
    return found


def _answer(
    lab: Lab, queries: Sequence[Query], recalled: Mapping[str, Sequence[Recollection]]
) -> tuple[dict[int, Answer], dict[str, list[Answer | None]]]:
    """The unedited model's answers to the unrelated questions, by record; and every row's answers to its queries."""
    unrelated = [query for query in queries if query.kind is Kind.UNRELATED]
    decoded = [index for index, query in enumerate(queries) if query.decoded]
    asks = [Ask(query.text, mode=AnswerMode.ANSWER, max_tokens=TOKENS_MAX) for query in unrelated]
    for found in recalled.values():
        asks += [
            as_ask(found[index], queries[index].text, mode=AnswerMode.ANSWER, max_tokens=TOKENS_MAX)
            for index in decoded
        ]
    answers = iter(lab.pool.answer(asks, f"{NAME}: the decoder answers"))
    base = {query.index: next(answers) for query in unrelated}
    said: dict[str, list[Answer | None]] = {}
    for name in recalled:
        said[name] = [None] * len(queries)
        for index in decoded:
            said[name][index] = next(answers)
    return base, said


def _items(
    row: str,
    queries: Sequence[Query],
    found: Sequence[Recollection],
    answers: Sequence[Answer | None],
    marks: Sequence[QuestionMark],
) -> Iterator[dict[str, object]]:
    for query, one, answer, shown in zip(queries, found, answers, marks, strict=True):
        item: dict[str, object] = {"row": row, "edit": query.index, "kind": query.kind, "query": query.text}
        item |= {"in_scope": shown.in_scope, "score": round(one.score, 4), "matched": one.index}
        if answer is not None:
            item |= {
                "text": answer.text,
                "wanted": query.answer,
                "f1": shown.f1,
                "said": shown.said,
                "changed": shown.changed,
            }
        yield item
