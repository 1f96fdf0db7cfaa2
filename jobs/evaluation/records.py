"""What the experiments are about: CounterFact in its reduced or original form, zsRE questions, and facts in plenty.

The reduced form's `rephrase_prompt` is mostly a *generation prompt* of the original, so scores on it are not comparable
with published paraphrase scores. The original's paraphrases carry an unrelated sentence in front: it is cut off for
`rephrasings` and left on for `rephrasings_distractor`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from jobs.evaluation.needles import needles
from jobs.scope_relations import split_front
from memory_actor.types import FactText

UNRELATED_FILE = Path(__file__).with_name("unrelated.txt")
_FORMS = "CounterFact (reduced or original form) or zsRE, as a JSON list, {'records': [...]} or JSON lines"

T = TypeVar("T")


class BadData(ValueError):
    """The data cannot be evaluated on: says which file, which record and what was expected."""


@dataclass(frozen=True, slots=True)
class EditRecord:
    """One CounterFact edit: `prompt target_true` is to become `prompt target_new`."""

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
    answers: tuple[str, ...]
    unrelated: str
    unrelated_answer: str

    def fact(self) -> FactText:
        return FactText(self.question, self.target_new)


@dataclass
class EvalData:
    """What `--data` names: one file, or a folder with counterfact/{val,train}.json and zsre/*.json; or nothing."""

    path: Path | None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | None) -> EvalData:
        """Raises: BadData if `path` is neither a file nor a folder that holds counterfact/val.json."""
        if path is not None and not path.is_file() and not (path / "counterfact" / "val.json").is_file():
            raise BadData(f"{path}: give a file of {_FORMS}, or a folder that holds counterfact/val.json")
        return cls(path)

    @property
    def folder(self) -> Path | None:
        return self.path if self.path is not None and self.path.is_dir() else None

    @property
    def name(self) -> str:
        return "none" if self.path is None else self.path.name

    @cached_property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file, or of the folder's files that are read as records."""
        digest = hashlib.sha256()
        for path in self._files():
            digest.update(path.read_bytes())
        return digest.hexdigest()

    @cached_property
    def records(self) -> tuple[EditRecord, ...]:
        """The CounterFact edits, one for each prompt: a later one would supersede the first. Raises: BadData."""
        path = self._file("counterfact", "val.json")
        kept: dict[str, EditRecord] = {}
        raw = _read(path)
        for index, content in enumerate(raw):
            record = _record(path, index, content, edit_record)
            kept.setdefault(record.prompt, record)
        if len(kept) < len(raw):
            self.notes.append(f"{len(raw) - len(kept)} records left out: an earlier one has the same prompt")
        return tuple(kept.values())

    @cached_property
    def questions(self) -> tuple[QuestionRecord, ...]:
        """The zsRE edits, one for each question. Raises: BadData."""
        path = self._file("zsre", "zsre_500.json")
        kept: dict[str, QuestionRecord] = {}
        for index, content in enumerate(_read(path)):
            record = _record(path, index, content, question_record)
            kept.setdefault(record.question, record)
        return tuple(kept.values())

    def facts(self, count: int) -> list[FactText]:
        """`count` facts of distinct prompts: the records' edits, the folder's training edits, then made-up ones."""
        kept: dict[str, FactText] = {}
        if self.path is not None and self._holds_edits():
            kept = {record.prompt: record.fact() for record in self.records[:count]}
        train = None if self.folder is None else self.folder / "counterfact" / "train.json"
        if train is not None and train.is_file() and len(kept) < count:
            for index, content in enumerate(_read(train)):
                record = _record(train, index, content, edit_record)
                kept.setdefault(record.prompt, record.fact())
        missing = count - len(kept)
        if missing > 0:
            kept |= {needle.fact.prompt: needle.fact for needle in needles(missing, seed=1)}
        return list(kept.values())[:count]

    def _holds_edits(self) -> bool:
        if self.folder is not None:
            return True
        first = _read(self._file("counterfact", "val.json"))[0]
        return isinstance(first, dict) and "alt" not in first

    def _file(self, folder: str, name: str) -> Path:
        if self.path is None:
            raise BadData(f"this experiment needs records: give --data a file of {_FORMS}, or a folder of them")
        path = self.path if self.folder is None else self.path / folder / name
        if not path.is_file():
            raise BadData(f"{path} is missing: this experiment reads it")
        return path

    def _files(self) -> list[Path]:
        if self.path is None:
            return []
        if self.folder is None:
            return [self.path]
        parts = ("counterfact/val.json", "counterfact/train.json", "zsre/zsre_500.json")
        return [path for part in parts if (path := self.path / part).is_file()]


def edit_record(content: dict[str, Any], index: int) -> EditRecord:
    """A CounterFact record of either form. Raises: KeyError, TypeError, as `_record` expects."""
    if "requested_rewrite" in content:
        return _original(content, index)
    prompt, subject = _text(content, "prompt"), _text(content, "subject")
    rephrasing = _text(content, "rephrase_prompt")
    case_id = int(content.get("case_id", index))
    return EditRecord(
        case_id=case_id,
        prompt=prompt,
        subject=subject,
        target_new=_text(content, "target_new"),
        target_true=_text(content, "ground_truth"),
        rephrasings=(rephrasing,),
        rephrasings_distractor=(f"{unrelated_sentence(case_id)} {rephrasing}",),
        neighbours=(_text(content, "locality_prompt"),),
        neighbours_true=(_text(content, "locality_ground_truth"),),
    )


def _original(content: dict[str, Any], index: int) -> EditRecord:
    rewrite = content["requested_rewrite"]
    subject = _text(rewrite, "subject")
    true = _text(rewrite["target_true"], "str")
    paraphrases, neighbours = _texts(content, "paraphrase_prompts"), _texts(content, "neighborhood_prompts")
    return EditRecord(
        case_id=int(content.get("case_id", index)),
        prompt=_text(rewrite, "prompt").format(subject),
        subject=subject,
        target_new=_text(rewrite["target_new"], "str"),
        target_true=true,
        rephrasings=tuple(without_front(text, subject) for text in paraphrases),
        rephrasings_distractor=paraphrases,
        neighbours=neighbours,
        neighbours_true=(true,) * len(neighbours),
    )


def question_record(content: dict[str, Any], _: int) -> QuestionRecord:
    """A zsRE record. Raises: KeyError, TypeError, as `_record` expects."""
    return QuestionRecord(
        subject=_text(content, "subject"),
        question=_text(content, "src"),
        rephrasing=_text(content, "rephrase"),
        target_new=_text(content, "alt"),
        answers=_texts(content, "answers"),
        unrelated=_text(content, "loc"),
        unrelated_answer=_text(content, "loc_ans"),
    )


def without_front(text: str, subject: str) -> str:
    """`text` from the sentence on that names the subject; the whole text when none does."""
    if subject not in text:
        return text.strip()
    front, _ = split_front(text, subject)
    return text.strip()[len(front) :].strip()


def unrelated_sentence(number: int) -> str:
    """One of our sentences about nothing in particular, the same for the same number."""
    sentences = UNRELATED_FILE.read_text(encoding="utf-8").split("\n")
    sentences = [sentence for sentence in sentences if sentence]
    return sentences[number % len(sentences)]


def _read(path: Path) -> list[Any]:
    """The records of a file as they are. Raises: BadData."""
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        try:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError:
            raise BadData(f"{path} is not JSON (line {error.lineno}: {error.msg}); expected {_FORMS}") from error
    if isinstance(content, dict) and isinstance(content.get("records"), list):
        content = content["records"]
    if not isinstance(content, list) or not content:
        raise BadData(f"{path} holds no records; expected {_FORMS}")
    return content


def _record(path: Path, index: int, content: Any, make: Callable[[dict[str, Any], int], T]) -> T:
    try:
        if not isinstance(content, dict):
            raise TypeError(f"expected an object, got {type(content).__name__}")
        return make(content, index)
    except KeyError as error:
        raise BadData(f"{path}, record {index}: the field {error} is missing; expected {_FORMS}") from error
    except (TypeError, ValueError, IndexError) as error:
        raise BadData(f"{path}, record {index}: {error}; expected {_FORMS}") from error


def _text(content: dict[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"the field '{key}' must be a text, got {value!r:.60}")
    return value.strip()


def _texts(content: dict[str, Any], key: str) -> tuple[str, ...]:
    values: Sequence[Any] = content[key]
    if not isinstance(values, list) or not values or not all(isinstance(value, str) and value for value in values):
        raise TypeError(f"the field '{key}' must be a list of texts, got {values!r:.60}")
    return tuple(value.strip() for value in values)
