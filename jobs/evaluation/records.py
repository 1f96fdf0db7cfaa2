"""What the experiments are about: CounterFact in its reduced or original form, zsRE questions, and facts in plenty.

The reduced form's `rephrase_prompt` is mostly a *generation prompt* of the original, so scores on it are not comparable
with published paraphrase scores. The original's paraphrases carry an unrelated sentence in front: it is cut off for
`rephrasings` and left on for `rephrasings_distractor`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

from jobs.evaluation.needles import needles
from memory_actor.types import FactText

UNRELATED_FILE = Path(__file__).with_name("unrelated.txt")
EDITS, TRAINING_EDITS, QUESTIONS = "counterfact/val.json", "counterfact/train.json", "zsre/zsre_500.json"
_WRAPPINGS = "a JSON list, {'records': [...]} or JSON lines"
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+")
_SOURCE = "nq question: "  # zsRE says where its unrelated questions are from; nobody asks that way

T = TypeVar("T")


class BadData(ValueError):
    """The data cannot be evaluated on: says which file, which record, which field, and what was expected."""


@dataclass(frozen=True, slots=True)
class EditRecord:
    """One CounterFact edit: `prompt target_true` is to become `prompt target_new`. Texts without white space around.

    Of a file it has at least one rephrasing and one neighbour, and as many of the second tuple of each pair as of the
    first. The reduced form's one rephrasing is as in the file, and may itself have a sentence in front.
    """

    case_id: int
    prompt: str
    subject: str
    target_new: str
    target_true: str
    rephrasings: tuple[str, ...]
    rephrasings_distractor: tuple[str, ...]  # the same with an unrelated sentence in front
    neighbours: tuple[str, ...]  # other subjects, same relation
    neighbours_true: tuple[str, ...]  # their answers, which are not to change

    def fact(self) -> FactText:
        return FactText(self.prompt, self.target_new)


@dataclass(frozen=True, slots=True)
class QuestionRecord:
    """One zsRE edit: the answer of `question` is to become `target_new`; `unrelated` is to stay out of scope."""

    subject: str
    question: str
    rephrasing: str
    target_new: str
    answers: tuple[str, ...]  # of the world; at least one
    unrelated: str
    unrelated_answer: str

    def fact(self) -> FactText:
        return FactText(self.question, self.target_new)


@dataclass
class EvalData:
    """What `--data` names: one file, or a folder that holds `EDITS`, `TRAINING_EDITS` and `QUESTIONS`; or nothing.

    Files are read when they are asked for. `notes` then says what was left out of them.
    """

    path: Path | None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | None) -> EvalData:
        """Raises: BadData if `path` is neither a file nor a folder with one of the files that are read as records."""
        if path is not None and not path.is_file() and not any((path / part).is_file() for part in (EDITS, QUESTIONS)):
            what = f"is a folder without {EDITS} and {QUESTIONS}" if path.is_dir() else "does not exist"
            raise BadData(
                f"{path} {what}; give a file of CounterFact (reduced or original form) or of zsRE, as {_WRAPPINGS}, "
                f"or a folder that holds {EDITS}"
            )
        return cls(path)

    @property
    def folder(self) -> Path | None:
        return self.path if self.path is not None and self.path.is_dir() else None

    @property
    def name(self) -> str:
        return "none" if self.path is None else self.path.resolve().name

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file, or of the folder's files that are read as records one after the other."""
        digest = hashlib.sha256()
        for path in self._files():
            digest.update(path.read_bytes())
        return digest.hexdigest()

    @cached_property
    def records(self) -> tuple[EditRecord, ...]:
        """The CounterFact edits, one for each prompt: a later one would supersede the first. Raises: BadData."""
        path = self._file(EDITS)
        read = _parsed(path, edit_record)
        named = [_about_the_subject(record) for record in read]
        lost = sum(len(record.rephrasings) for record in read) - sum(len(record.rephrasings) for record in named)
        self._note(path, lost, "paraphrases", "do not name the subject")
        whole = [record for record in named if record.rephrasings and record.neighbours]
        self._note(path, len(read) - len(whole), "records", "have no paraphrase or no neighbour")
        kept: dict[str, EditRecord] = {}
        for record in whole:
            kept.setdefault(record.prompt, record)
        self._note(path, len(whole) - len(kept), "records", "have the prompt of an earlier one")
        return tuple(kept.values())

    @cached_property
    def questions(self) -> tuple[QuestionRecord, ...]:
        """The zsRE edits, one for each question. Raises: BadData."""
        path = self._file(QUESTIONS)
        read = _parsed(path, question_record)
        kept: dict[str, QuestionRecord] = {}
        for record in read:
            kept.setdefault(record.question, record)
        self._note(path, len(read) - len(kept), "records", "have the question of an earlier one")
        return tuple(kept.values())

    def edits(self, count: int) -> tuple[EditRecord, ...]:
        """At most `count` edits of distinct prompts: the records, then the folder's training edits. Raises: BadData."""
        kept = {record.prompt: record for record in self.records[:count]}
        train = None if self.folder is None else self.folder / TRAINING_EDITS
        if train is not None and train.is_file() and len(kept) < count:
            for record in _parsed(train, edit_record):
                kept.setdefault(record.prompt, record)
        return tuple(kept.values())[:count]

    def facts(self, count: int) -> list[FactText]:
        """`count` facts of distinct prompts: those of `edits`, then made-up ones.

        Raises: BadData; ValueError where more are asked for than can be made up.
        """
        edits = self.edits(count) if self._holds_edits() else ()
        kept = {record.prompt: record.fact() for record in edits}
        kept |= {needle.fact.prompt: needle.fact for needle in needles(count - len(kept), seed=1)}
        return list(kept.values())

    def _holds_edits(self) -> bool:
        if self.path is None:
            return False
        return (self.path / EDITS).is_file() if self.folder is not None else "src" not in _objects(self.path)[0]

    def _file(self, part: str) -> Path:
        if self.path is None:
            raise BadData(f"this experiment needs records: give --data a file, or a folder that holds {part}")
        path = self.path / part if self.folder is not None else self.path
        if not path.is_file():
            raise BadData(f"{path} does not exist, and this experiment reads it")
        return path

    def _files(self) -> list[Path]:
        if self.path is None:
            return []
        if self.folder is None:
            return [self.path]
        return [path for part in (EDITS, TRAINING_EDITS, QUESTIONS) if (path := self.path / part).is_file()]

    def _note(self, path: Path, count: int, what: str, why: str) -> None:
        if count:
            self.notes.append(f"{path.name}: {count} {what} left out that {why}")


def edit_record(content: dict[str, Any], index: int) -> EditRecord:
    """A CounterFact record of either form; without a `case_id` it gets its index. Raises: BadData."""
    if "src" in content:
        raise BadData("this is a record of zsRE, and a record of CounterFact is needed")
    case_id = content.get("case_id", index)
    if not isinstance(case_id, int):
        raise BadData(f"field 'case_id' must be a whole number, got {case_id!r:.60}")
    if "requested_rewrite" in content:
        return _original(content, case_id)
    rephrasing = _text(content, "rephrase_prompt")
    return EditRecord(
        case_id=case_id,
        prompt=_text(content, "prompt"),
        subject=_text(content, "subject"),
        target_new=_text(content, "target_new"),
        target_true=_text(content, "ground_truth"),
        rephrasings=(rephrasing,),
        rephrasings_distractor=(f"{unrelated_sentence(case_id)} {rephrasing}",),
        neighbours=(_text(content, "locality_prompt"),),
        neighbours_true=(_text(content, "locality_ground_truth"),),
    )


def _original(content: dict[str, Any], case_id: int) -> EditRecord:
    template = _text(content, "requested_rewrite", "prompt")
    if "{}" not in template:
        raise BadData(f"field 'requested_rewrite.prompt' must have {{}} for the subject, got {template!r:.60}")
    subject = _text(content, "requested_rewrite", "subject")
    true = _text(content, "requested_rewrite", "target_true", "str")
    paraphrases, neighbours = _texts(content, "paraphrase_prompts"), _texts(content, "neighborhood_prompts")
    return EditRecord(
        case_id=case_id,
        prompt=template.replace("{}", subject),
        subject=subject,
        target_new=_text(content, "requested_rewrite", "target_new", "str"),
        target_true=true,
        rephrasings=tuple(without_front(text, subject) for text in paraphrases),
        rephrasings_distractor=paraphrases,
        neighbours=neighbours,
        neighbours_true=(true,) * len(neighbours),
    )


def _about_the_subject(record: EditRecord) -> EditRecord:
    """The record without paraphrases that do not name its subject: a few of CounterFact's are cut short before it."""
    subject = record.subject.casefold()
    pairs = zip(record.rephrasings, record.rephrasings_distractor, strict=True)
    named = [pair for pair in pairs if subject in pair[0].casefold()]
    return replace(
        record,
        rephrasings=tuple(plain for plain, _ in named),
        rephrasings_distractor=tuple(fronted for _, fronted in named),
    )


def question_record(content: dict[str, Any], _: int) -> QuestionRecord:
    """A zsRE record. Raises: BadData."""
    if "src" not in content and ("rephrase_prompt" in content or "requested_rewrite" in content):
        raise BadData("this is a record of CounterFact, and a record of zsRE is needed")
    answers = _texts(content, "answers")
    if not answers:
        raise BadData("field 'answers' is empty")
    return QuestionRecord(
        subject=_text(content, "subject"),
        question=_text(content, "src"),
        rephrasing=_text(content, "rephrase"),
        target_new=_text(content, "alt"),
        answers=answers,
        unrelated=_text(content, "loc").removeprefix(_SOURCE),
        unrelated_answer=_text(content, "loc_ans"),
    )


def without_front(text: str, subject: str) -> str:
    """`text` from the sentence on that names the subject last; the whole text when none does."""
    named = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", text, re.IGNORECASE)]
    ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, named[-1] if named else 0)]
    return text[ends[-1] if ends else 0 :].strip()


@cache
def unrelated_sentences() -> tuple[str, ...]:
    """Our sentences about nothing in particular."""
    return tuple(UNRELATED_FILE.read_text(encoding="utf-8").splitlines())


def unrelated_sentence(number: int) -> str:
    """One of our unrelated sentences, the same for the same number."""
    return unrelated_sentences()[number % len(unrelated_sentences())]


def _parsed(path: Path, make: Callable[[dict[str, Any], int], T]) -> list[T]:
    """The records of a file. Raises: BadData, which names file, record and field."""
    made = []
    for index, content in enumerate(_objects(path)):
        try:
            made.append(make(content, index))
        except BadData as error:
            raise BadData(f"{path}, record {index}: {error}") from None
    return made


def _objects(path: Path) -> list[dict[str, Any]]:
    """The JSON objects that are the file's records, at least one. Raises: BadData."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Not splitlines(): a text may hold other separators, and JSON does not escape them.
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        content = [json.loads(line) for line in lines] if _starts_as_lines(lines) else json.loads(text or "[]")
    except ValueError as error:
        raise BadData(f"{path} cannot be read: {error}; expected {_WRAPPINGS}") from error
    if isinstance(content, dict):
        content = content.get("records", [content])
    if not isinstance(content, list) or not content:
        raise BadData(f"{path} holds no records; expected {_WRAPPINGS}")
    for index, record in enumerate(content):
        if not isinstance(record, dict):
            raise BadData(f"{path}, record {index}: expected an object with fields, got {record!r:.60}")
    return content


def _starts_as_lines(lines: list[str]) -> bool:
    return len(lines) > 1 and lines[0].startswith("{") and lines[0].endswith("}")


def _text(content: dict[str, Any], *keys: str) -> str:
    """The text at a path of keys, without white space around. Raises: BadData."""
    value: Any = content
    for depth, key in enumerate(keys):
        if not isinstance(value, dict) or key not in value:
            raise BadData(f"field '{'.'.join(keys[: depth + 1])}' is missing")
        value = value[key]
    if not isinstance(value, str) or not value.strip():
        raise BadData(f"field '{'.'.join(keys)}' must be a text, got {value!r:.60}")
    return value.strip()


def _texts(content: dict[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts, which may be empty. Raises: BadData."""
    if key not in content:
        raise BadData(f"field '{key}' is missing")
    values = content[key]
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise BadData(f"field '{key}' must be a list of texts, got {values!r:.60}")
    return tuple(value.strip() for value in values)
