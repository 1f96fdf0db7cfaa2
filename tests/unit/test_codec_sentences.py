"""Sentences for the codec: cut where sentences end, told apart by source, no text on both sides."""

from __future__ import annotations

import json

import pytest

from jobs.codec.sentences import Sentence, distinct, sentences, split_prose


@pytest.fixture
def data(tmp_path):
    """One file of every kind, small."""
    for folder in ("text/novels", "creak", "dart", "pararel/pattern_data/graphs_json", "pararel/trex_lms_vocab", "lre"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lre").rename(tmp_path / "lre_relations")
    texts = {
        "text/openstax-history.txt": "The war began in May. It ended in June!\nA new page has one sentence.\n",
        "text/openstax-astronomy.txt": "Stars are far away. The war began in May.\n",
        "text/novels/Doe_Tale_1900.txt": 'It was a dark\nand stormy night. "Come in!" He came.\n\nThe end was near.\n',
        "text/enwiki_articles.txt": "= Anarchism =\nIt is a view. == No heading\n== History ==\nIt is old today.\n",
        "text/wordnet-glosses.tsv": "noun\tspare key; key\ta key kept for need; another sense\n",
        "creak/train.json": json.dumps({"sentence": "Cats can run fast.", "entity": "Cat"}) + "\n",
        "creak/dev.json": json.dumps({"sentence": "Dogs can swim well.", "entity": "Dog"}) + "\n",
        "dart/dart-v1.1.1-full-dev.json": json.dumps(
            [{"tripleset": [["Ana", "JOINED", "1973"]], "annotations": [{"text": "Ana  joined in 1973."}]}]
        ),
        "pararel/pattern_data/graphs_json/P1.jsonl": json.dumps({"pattern": "[X] was born in [Y] ."}) + "\n",
        "pararel/trex_lms_vocab/P1.jsonl": json.dumps({"sub_label": "ana", "obj_label": "Rome"}) + "\n",
        "lre_relations/city.json": json.dumps(
            {"prompt_templates": ["{} lies in"], "samples": [{"subject": "Rome", "object": "Italy"}]}
        ),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_every_kind_of_source_is_read(data):
    found = {sentence.text for sentence in sentences(data) if sentence.source != "facts"}
    assert {
        "The war began in May.",
        "It was a dark and stormy night.",
        "It is a view. == No heading",
        "It is old today.",
        "Spare key: a key kept for need.",
        "Cats can run fast.",
        "Ana joined in 1973.",
        "Ana was born in Rome.",
        "Rome lies in Italy.",
    } <= found


def test_made_up_facts_are_filled_and_the_same_for_a_seed(data):
    first, again = ([s.text for s in sentences(data) if s.source == "facts"] for _ in range(2))
    assert first == again
    assert len(first) == 20_000
    assert not any("{" in text for text in first)
    assert first != [s.text for s in sentences(data, seed=1) if s.source == "facts"]


def test_no_text_is_on_both_sides(data):
    """What a validation source says is not trained on, even where a training source says it too."""
    kept = list(distinct(sentences(data)))
    train, held_out = ({s.text for s in kept if s.validation is side} for side in (False, True))
    assert "The war began in May." in held_out  # of the textbook for validation, and of another one
    assert {"Dogs can swim well.", "Stars are far away."} <= held_out
    assert not train & held_out
    assert "He came." not in train  # two words are a fragment
    assert len(kept) == len({s.text for s in kept})


def test_a_source_is_on_one_side_whole():
    """Decided by names: all sentences of an article or a subject go together, about one part in fifty to validation."""
    assert Sentence("a", "enwiki", "Anarchism").validation == Sentence("b", "enwiki", "Anarchism").validation
    parts = [Sentence("a", "wordnet", f"word {number}").validation for number in range(5000)]
    assert 0.01 < sum(parts) / len(parts) < 0.03
    assert not Sentence("a", "Doe_Tale_1900", "Doe_Tale_1900").validation


def test_prose_is_cut_at_sentence_ends():
    assert split_prose('He said "No." Then he left.  "Why?" she asked.') == [
        'He said "No."',
        "Then he left.",
        '"Why?" she asked.',
    ]
    assert split_prose("One. Two?\tThree!") == ["One.", "Two?", "Three!"]
    assert split_prose("It cost 3.5 million in all. then lower case.") == [
        "It cost 3.5 million in all. then lower case."
    ]
