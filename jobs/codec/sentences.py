"""Sentences to train a codec on: prose, glosses, claims, triples and facts, and which of their sources are held out.

Training and validation are split by source, not by sentence: two sentences of one page tell of each other.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.scope_domains import Templates
from jobs.scope_pairs import fill
from jobs.scope_statements import Relation

_SENTENCE = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))\s+(?=[\"'(\[]?[A-Z])")
_WORDS_MIN = 3
_TEMPLATE_FACTS = 20_000
_VALIDATION_BOOKS = ("openstax-astronomy", "Hardy_Jude_1895")
_VALIDATION_PERCENT = 2  # of sources that are many and small: relations' subjects, lemmas, articles


@dataclass(frozen=True, slots=True)
class Sentence:
    """`source` is the file, and `part` what of it belongs together: a book, an article, a subject."""

    text: str
    source: str
    part: str

    @property
    def validation(self) -> bool:
        """Whether its part is for validation; decided by names alone."""
        if self.source in _VALIDATION_BOOKS or self.source == "creak-dev":
            return True
        if self.source.startswith("openstax") or self.part == self.source:
            return False
        digest = hashlib.sha256(f"{self.source}/{self.part}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < _VALIDATION_PERCENT


def sentences(data: Path, seed: int = 0) -> Iterator[Sentence]:
    """Every sentence of the data folder, and made-up facts from our templates; duplicates included.

    Raises: FileNotFoundError for a folder without texts.
    """
    yield from _books(data / "text")
    yield from _articles(data / "text" / "enwiki_articles.txt")
    yield from _glosses(data / "text" / "wordnet-glosses.tsv")
    yield from _claims(data / "creak")
    yield from _triples(data / "dart" / "dart-v1.1.1-full-dev.json")
    yield from _pararel(data / "pararel")
    yield from _relations(data / "lre_relations")
    yield from _facts(seed)


def distinct(found: Iterator[Sentence]) -> Iterator[Sentence]:
    """Without later copies of a text and without fragments. A text that is anywhere in validation is only there."""
    kept = [sentence for sentence in found if len(sentence.text.split()) >= _WORDS_MIN]
    held_out = {_normal(sentence.text) for sentence in kept if sentence.validation}
    seen: set[str] = set()
    for sentence in kept:
        normal = _normal(sentence.text)
        if normal in seen or (normal in held_out and not sentence.validation):
            continue
        seen.add(normal)
        yield sentence


def split_prose(paragraph: str) -> list[str]:
    """Sentences of a paragraph, white space made plain."""
    return [" ".join(part.split()) for part in _SENTENCE.split(paragraph.strip()) if part.strip()]


def _books(folder: Path) -> Iterator[Sentence]:
    for path in [*sorted(folder.glob("openstax-*.txt")), *sorted((folder / "novels").glob("*.txt"))]:
        # Novels break lines in the middle of sentences; textbooks have a paragraph on each line.
        paragraphs = re.split(r"\n\s*\n" if path.parent.name == "novels" else r"\n", path.read_text("utf-8"))
        for paragraph in paragraphs:
            for text in split_prose(paragraph):
                yield Sentence(text, path.stem, path.stem)


def _articles(path: Path) -> Iterator[Sentence]:
    title = ""
    for line in path.read_text("utf-8").splitlines():
        if heading := re.fullmatch(r"= ([^=]+) =", line.strip()):
            title = heading[1]
        elif not line.startswith("="):
            for text in split_prose(line):
                yield Sentence(text, "enwiki", title)


def _glosses(path: Path) -> Iterator[Sentence]:
    for line in path.read_text("utf-8").splitlines():
        _, lemmas, gloss = line.split("\t")
        lemma = lemmas.split(";")[0].strip()
        yield Sentence(f"{lemma[:1].upper()}{lemma[1:]}: {gloss.split(';')[0].strip()}.", "wordnet", lemma)


def _claims(folder: Path) -> Iterator[Sentence]:
    for name in ("train", "dev"):
        for line in (folder / f"{name}.json").read_text("utf-8").splitlines():
            claim = json.loads(line)
            yield Sentence(claim["sentence"].strip(), f"creak-{name}", claim["entity"])


def _triples(path: Path) -> Iterator[Sentence]:
    for record in json.loads(path.read_bytes()):
        for annotation in record["annotations"]:
            text = " ".join(annotation["text"].split())
            yield Sentence(text, "dart", str(record["tripleset"][0][0]))


def _pararel(folder: Path) -> Iterator[Sentence]:
    """Each fact in one of its relation's patterns, chosen by its subject."""
    for path in sorted((folder / "pattern_data" / "graphs_json").glob("*.jsonl")):
        patterns = [json.loads(line)["pattern"] for line in path.read_text("utf-8").splitlines() if line]
        facts = folder / "trex_lms_vocab" / path.name
        if not patterns or not facts.is_file():
            continue
        for line in facts.read_text("utf-8").splitlines():
            fact = json.loads(line)
            subject, target = fact["sub_label"], fact["obj_label"]
            pattern = patterns[int(hashlib.sha256(subject.encode()).hexdigest()[:8], 16) % len(patterns)]
            text = pattern.replace("[X]", subject).replace("[Y]", target)
            yield Sentence(f"{text[:1].upper()}{text[1:]}".replace(" .", "."), "pararel", subject)


def _relations(folder: Path) -> Iterator[Sentence]:
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_bytes())
        for template in content["prompt_templates"]:
            for sample in content["samples"]:
                text = f"{template.format(sample['subject'])} {sample['object']}."
                yield Sentence(f"{text[:1].upper()}{text[1:]}", "lre", sample["subject"])


def _facts(seed: int) -> Iterator[Sentence]:
    """Private facts as people write them: our templates, filled with made-up names."""
    rng = random.Random(f"codec facts/{seed}")  # noqa: S311 - reproducible, not secret
    templates = Templates()
    told = [(domain, relation) for domain in templates.domains for relation in domain.relations if _tells(relation)]
    for _ in range(_TEMPLATE_FACTS):
        domain, relation = rng.choice(told)
        (subject,) = templates.subjects(domain, 1, rng)
        target = templates.fill(rng.choice(relation.targets or ("",)), rng)
        wording = rng.choice([*relation.sentences, *(f"{prompt} {{t}}." for prompt in relation.prompts if target)])
        yield Sentence(fill(wording, subject, target), "facts", subject)


def _tells(relation: Relation) -> bool:
    return bool(relation.sentences or (relation.prompts and relation.targets))


def _normal(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()
