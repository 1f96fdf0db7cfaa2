"""zsRE's queries and figures, against figures worked out by hand."""

from __future__ import annotations

import pytest

from jobs.evaluation.asks import Answer
from jobs.evaluation.memories import Recollection
from jobs.evaluation.records import QuestionRecord
from jobs.evaluation.zsre import Kind, Query, QuestionMark, mark, queries_of, question_figures, said_tokens
from workers.token_codec import TokenCodec


def found(index: int | None) -> Recollection:
    return Recollection(index=index, score=0.5, condition=None)


def said(text: str, *tokens: int) -> Answer:
    return Answer((), text, tokens)


@pytest.mark.parametrize("unrelated", ["nq question: who sang it", "who sang it"])
def test_unrelated_questions_are_asked_with_and_without_the_files_prefix(unrelated: str) -> None:
    """Whatever the file holds, users ask without the prefix and the gate is asked once more with it."""
    record = QuestionRecord(
        subject="UniFirst",
        question="What does UniFirst make?",
        rephrasing="What is made by UniFirst?",
        target_new="aircraft",
        answers=("uniform",),
        unrelated=unrelated,
        unrelated_answer="someone",
    )
    queries = {query.kind: query for query in queries_of(4, record)}
    assert queries[Kind.UNRELATED].text == "who sang it"
    assert queries[Kind.UNRELATED_PREFIXED].text == "nq question: who sang it"
    assert not queries[Kind.UNRELATED_PREFIXED].decoded
    assert {query.index for query in queries.values()} == {4}
    assert queries[Kind.REPHRASE].answer == "aircraft"


def test_a_final_full_stop_does_not_count(codec: TokenCodec) -> None:
    """What is said with a full stop and blanks around it has the same tokens as the answer alone."""
    assert said_tokens(" Harvard University. \n", codec) == said_tokens("Harvard University", codec)
    assert said_tokens("Harvard", codec) != said_tokens("Harvard University", codec)


def test_f1_of_an_answer_with_words_too_many(codec: TokenCodec) -> None:
    """Right answers score 1; as many strange tokens again make precision 1/2, recall 1, F1 2/3."""
    query = Query(2, Kind.EDIT, "Where?", "Rome")
    assert len(said_tokens("Rome", codec)) == 1
    assert len(said_tokens("Rome there", codec)) == 2
    assert mark(query, found(2), said("Rome."), None, codec) == QuestionMark(True, True, 1.0, True)
    assert mark(query, found(2), said("Rome there"), None, codec).f1 == pytest.approx(2 / 3)
    assert mark(query, found(0), said("Paris"), None, codec) == QuestionMark(True, False, 0.0, False)


def test_an_unrelated_question_changes_when_its_tokens_do(codec: TokenCodec) -> None:
    """Locality is of the output, token for token, and has no F1."""
    query = Query(2, Kind.UNRELATED, "who sang it")
    assert mark(query, found(None), said("x", 1, 2), said("x", 1, 2), codec) == QuestionMark(False, changed=False)
    assert mark(query, found(0), said("x", 1, 3), said("x", 1, 2), codec) == QuestionMark(True, changed=True)


def test_figures_of_a_small_table() -> None:
    """Two edits: F1 (1 + 0.5) / 2, rephrasings let in 1/2 and the right fact 1/1, unrelated let in 1/2, changed 1/2."""
    rows = [
        (Kind.EDIT, QuestionMark(True, True, 1.0, True)),
        (Kind.EDIT, QuestionMark(True, True, 0.5, True)),
        (Kind.REPHRASE, QuestionMark(True, True, 1.0, True)),
        (Kind.REPHRASE, QuestionMark(False, None, 0.0, False)),
        (Kind.UNRELATED, QuestionMark(True, changed=True)),
        (Kind.UNRELATED, QuestionMark(False, changed=False)),
        (Kind.UNRELATED_PREFIXED, QuestionMark(False)),
        (Kind.UNRELATED_PREFIXED, QuestionMark(False)),
    ]
    queries = [Query(0, kind, "?") for kind, _ in rows]
    marks = [shown for _, shown in rows]
    gated = question_figures("zsre", queries, marks, gated=True)
    expected = {
        "f1_all_edits": 0.75,
        "f1_rephrase": 0.5,
        "generation_all_edits": 1.0,
        "generation_rephrase": 0.5,
        "rephrase_in_scope": 0.5,
        "right_fact": 1.0,
        "unrelated_in_scope": 0.5,
        "unrelated_prefixed_in_scope": 0.0,
        "unrelated_changed": 0.5,
    }
    assert {name: gated[f"zsre.{name}"] for name in expected} == pytest.approx(expected)
    ungated = question_figures("zsre.unedited", queries, marks, gated=False)
    assert not any("scope" in key for key in ungated)
