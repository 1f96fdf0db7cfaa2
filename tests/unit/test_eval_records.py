"""Records of the experiments: both forms of CounterFact, zsRE, and what is said of files that are neither."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluation.records import BadData, EvalData, unrelated_sentences, without_front

REDUCED = {
    "case_id": 7,
    "prompt": "Singled Out debuted on",
    "target_new": "CBS",
    "subject": "Singled Out",
    "ground_truth": "MTV",
    "rephrase_prompt": "Singled Out was first seen on",
    "locality_prompt": "Daria premieres on",
    "locality_ground_truth": "MTV",
}
QUESTION = {
    "subject": "Munich",
    "src": "Who heads Munich?",
    "pred": "Dieter Reiter",
    "rephrase": "Who is the mayor of Munich?",
    "alt": "Bruno Granier",
    "answers": ["Dieter Reiter"],
    "loc": "nq question: who made the song i like to move it",
    "loc_ans": "Reel 2 Real",
    "cond": "Dieter Reiter >> Bruno Granier || Who heads Munich?",
}


def original() -> dict[str, Any]:
    """CounterFact's record 4402, one of its paraphrases cut short as it is there."""
    return {
        "case_id": 4402,
        "requested_rewrite": {
            "prompt": "{} debuted on",
            "relation_id": "P449",
            "target_new": {"str": "CBS", "id": "Q43380"},
            "target_true": {"str": "MTV", "id": "Q43359"},
            "subject": "Singled Out",
        },
        "paraphrase_prompts": [
            "No one on the ground was injured.  v",
            "The sex ratio was 1063. Singled Out is to debut on",
        ],
        "neighborhood_prompts": ["Daria premieres on", "Skins was originally aired on"],
        "generation_prompts": ["Singled Out debuted on"],
    }


def written(folder: Path, content: object, name: str = "records.json") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_record_of_the_reduced_form(tmp_path):
    """Every field has its place, and the sentence put in front of the rephrasing is one of ours."""
    (record,) = EvalData.open(written(tmp_path, [REDUCED])).records
    assert (record.case_id, record.prompt, record.subject) == (7, "Singled Out debuted on", "Singled Out")
    assert (record.target_new, record.target_true) == ("CBS", "MTV")
    assert record.rephrasings == ("Singled Out was first seen on",)
    (fronted,) = record.rephrasings_distractor
    assert fronted.removesuffix(" Singled Out was first seen on") in unrelated_sentences()
    assert (record.neighbours, record.neighbours_true) == (("Daria premieres on",), ("MTV",))
    assert (record.fact().prompt, record.fact().target) == ("Singled Out debuted on", "CBS")


def test_a_record_of_the_original_form(tmp_path):
    """The subject is put into the prompt, the unrelated sentence is cut off or left on, neighbours keep the truth."""
    data = EvalData.open(written(tmp_path, [original()]))
    (record,) = data.records
    assert (record.case_id, record.prompt) == (4402, "Singled Out debuted on")
    assert (record.target_new, record.target_true) == ("CBS", "MTV")
    assert record.rephrasings == ("Singled Out is to debut on",)
    assert record.rephrasings_distractor == ("The sex ratio was 1063. Singled Out is to debut on",)
    assert record.neighbours == ("Daria premieres on", "Skins was originally aired on")
    assert record.neighbours_true == ("MTV", "MTV")
    assert data.notes == ["records.json: 1 paraphrases left out that do not name the subject"]


@pytest.mark.parametrize(
    ("text", "subject", "expected"),
    [
        ("It rained. Ada is from", "Ada", "Ada is from"),
        ('He said "no." Why? Ada is from', "Ada", "Ada is from"),
        ("It rained on J. S. Bach. What does Ada speak? They speak", "Ada", "What does Ada speak? They speak"),
        ("It snowed. In St. Moritz, people speak", "St. Moritz", "In St. Moritz, people speak"),
        ("What does Hal play? They shall play", "Hal", "What does Hal play? They shall play"),
        ("It rained.\nada is from", "Ada", "ada is from"),
        ("Ada is from", "Ada", "Ada is from"),
        ("It rained. Nobody is from", "Ada", "It rained. Nobody is from"),
    ],
)
def test_the_sentence_in_front_is_cut_before_the_one_that_names_the_subject(text, subject, expected):
    """Full stops inside names and after the subject cut nothing."""
    assert without_front(text, subject) == expected


def test_a_record_of_zsre(tmp_path):
    """The unrelated question is asked as people ask it, without the mark of its source."""
    (record,) = EvalData.open(written(tmp_path, [QUESTION])).questions
    assert (record.subject, record.question, record.rephrasing) == (
        "Munich",
        "Who heads Munich?",
        "Who is the mayor of Munich?",
    )
    assert (record.target_new, record.answers) == ("Bruno Granier", ("Dieter Reiter",))
    assert (record.unrelated, record.unrelated_answer) == ("who made the song i like to move it", "Reel 2 Real")


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([REDUCED, original()]),
        json.dumps([REDUCED, original()], indent=2),
        json.dumps({"records": [REDUCED, original()]}),
        f"{json.dumps(REDUCED)}\n{json.dumps(original())}\n",
        f"\ufeff{json.dumps(REDUCED)}\r\n\r\n{json.dumps(original())}",
    ],
    ids=["list", "pretty list", "records", "lines", "lines of another system"],
)
def test_a_file_may_be_a_list_an_object_or_lines_and_mix_the_forms(tmp_path, content):
    """The same two records come out of every wrapping; their prompts are equal, so the second is left out, and said."""
    data = EvalData.open(written(tmp_path, content))
    assert [record.case_id for record in data.records] == [7]
    assert data.notes[-1] == "records.json: 1 records left out that have the prompt of an earlier one"


def test_one_record_on_one_line_is_a_file_of_one_record(tmp_path):
    """Also with a line separator inside a text, which JSON need not escape."""
    line = json.dumps({**REDUCED, "rephrase_prompt": "Singled Out\u2028was first on"}, ensure_ascii=False)
    assert len(EvalData.open(written(tmp_path, line)).records) == 1


WITHOUT = {key: value for key, value in REDUCED.items() if key != "ground_truth"}
BROKEN = original() | {"requested_rewrite": original()["requested_rewrite"] | {"target_new": "CBS"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no records"),
        ("[]", "holds no records"),
        ('{"records": []}', "holds no records"),
        ('[{"case_id": 1', "cannot be read"),
        ('[1, "two"]', "record 0: expected an object"),
        ([REDUCED, WITHOUT], "record 1: field 'ground_truth' is missing"),
        ([REDUCED | {"prompt": 5}], "record 0: field 'prompt' must be a text, got 5"),
        ([REDUCED | {"target_new": " "}], "record 0: field 'target_new' must be a text"),
        ([REDUCED | {"case_id": "x"}], "record 0: field 'case_id' must be a whole number, got 'x'"),
        ([BROKEN], r"record 0: field 'requested_rewrite\.target_new\.str' is missing"),
        ([original() | {"neighborhood_prompts": "none"}], "record 0: field 'neighborhood_prompts' must be a list"),
        ([original() | {"requested_rewrite": {"prompt": "Ada is from"}}], "'requested_rewrite.prompt' must have {}"),
        ([QUESTION], "record 0: this is a record of zsRE"),
    ],
)
def test_what_is_wrong_is_said_with_file_record_and_field(tmp_path, content, message):
    """Every defect of a file of edits is one BadData that begins with the file."""
    path = written(tmp_path, content)
    with pytest.raises(BadData, match=message) as raised:
        _ = EvalData.open(path).records
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([REDUCED], "record 0: this is a record of CounterFact"),
        ([QUESTION | {"answers": []}], "record 0: field 'answers' is empty"),
        ([QUESTION | {"loc": None}], "record 0: field 'loc' must be a text, got None"),
    ],
)
def test_what_is_wrong_with_questions_is_said_as_well(tmp_path, content, message):
    with pytest.raises(BadData, match=message):
        _ = EvalData.open(written(tmp_path, content)).questions


def test_a_path_that_leads_nowhere_is_refused_when_it_is_opened(tmp_path):
    """Neither a file nor a folder with records; and an experiment that needs records says so without a path."""
    with pytest.raises(BadData, match="does not exist"):
        EvalData.open(tmp_path / "nowhere.json")
    with pytest.raises(BadData, match="is a folder without"):
        EvalData.open(tmp_path)
    with pytest.raises(BadData, match="give --data"):
        _ = EvalData.open(None).records


def test_a_folder_gives_edits_questions_and_more_facts(tmp_path):
    """Facts are the edits, then the training edits, then made-up ones, no prompt twice; the hash is of all files."""
    more = [REDUCED, REDUCED | {"prompt": "Daria premieres on", "target_new": "NBC"}]
    paths = [
        written(tmp_path, [REDUCED], "counterfact/val.json"),
        written(tmp_path, more, "counterfact/train.json"),
        written(tmp_path, [QUESTION], "zsre/zsre_500.json"),
    ]
    data = EvalData.open(tmp_path)
    assert (len(data.records), len(data.questions), data.folder, data.name) == (1, 1, tmp_path, tmp_path.name)
    facts = data.facts(50)
    assert [fact.target for fact in facts[:2]] == ["CBS", "NBC"]
    assert len({fact.prompt for fact in facts}) == 50
    assert [fact.prompt for fact in data.facts(2)] == [fact.prompt for fact in facts[:2]]
    assert data.sha256 == hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_a_folder_of_edits_alone_has_no_questions(tmp_path):
    written(tmp_path, [REDUCED], "counterfact/val.json")
    data = EvalData.open(tmp_path)
    assert len(data.facts(3)) == 3
    with pytest.raises(BadData, match=r"zsre_500\.json does not exist"):
        _ = data.questions


def test_without_edits_all_facts_are_made_up(tmp_path):
    """With no path, or with a file of questions; the same ones each time."""
    questions = EvalData.open(written(tmp_path, [QUESTION]))
    assert questions.facts(20) == EvalData.open(None).facts(20)
    assert EvalData.open(None).facts(0) == []


def test_unrelated_sentences_are_many_different_and_plain():
    """At least 150, none twice, 5 to 20 words each, every one a sentence."""
    sentences = unrelated_sentences()
    assert len(set(sentences)) == len(sentences) >= 150
    assert all(5 <= len(sentence.split()) <= 20 for sentence in sentences)
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
