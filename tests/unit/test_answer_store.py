"""Answers on disk: kept for the decoder that gave them, and readable after whatever ended the last run."""

from __future__ import annotations

import pytest

from jobs.evaluation.answer_store import AnswerStore
from jobs.evaluation.asks import Answer

FIRST = Answer((1.25, 0.1 + 0.2), ' "Rome",\n東京', (7, 49000))
SECOND = Answer((), "", ())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "answers.jsonl"


def filled(path, decoder="one") -> None:
    store = AnswerStore(path, decoder)
    store.add([("a", FIRST), ("b", SECOND)])
    store.close()


def test_answers_come_back_as_they_were(path):
    filled(path)
    store = AnswerStore(path, "one")
    assert (store["a"], store["b"]) == (FIRST, SECOND)
    assert "c" not in store
    store.close()


def test_answers_are_on_disk_before_the_store_is_closed(path):
    store = AnswerStore(path, "one")
    store.add([("a", FIRST)])
    reader = AnswerStore(path, "one")
    assert reader["a"] == FIRST
    reader.close()
    store.close()


@pytest.mark.parametrize("torn", [1, 10, 40])
def test_a_torn_last_line_costs_its_own_answer_only(path, torn):
    """Cut anywhere in the last line, as a kill may leave it, and written on: the others stay, before and after."""
    filled(path)
    path.write_bytes(path.read_bytes()[:-torn])
    for _ in range(2):  # what was written behind the torn line is found by the next run as well
        store = AnswerStore(path, "one")
        assert store["a"] == FIRST
        assert ("b" in store) == (torn == 1)  # of a line that lacks its end only, nothing is missing
        store.add([("c", SECOND)])
        assert store["c"] == SECOND
        store.close()


@pytest.mark.parametrize("line", [b"[]", b"null", b'{"ask": "c", "decoder": "one"}', b"\xff\xfe", b"\x00" * 40])
def test_a_line_of_something_else_is_no_answer(path, line):
    filled(path)
    path.write_bytes(path.read_bytes() + line + b"\n")
    store = AnswerStore(path, "one")
    assert store["a"] == FIRST
    assert "c" not in store
    store.close()


def test_another_decoder_finds_no_answers(path):
    filled(path)
    other = AnswerStore(path, "two")
    assert "a" not in other
    other.add([("a", SECOND)])
    other.close()
    first = AnswerStore(path, "one")
    assert first["a"] == FIRST
    first.close()
