"""The experiments on memory and gate, small, with the default models' encoder and codec.

In the decoder's place stands one that repeats what it is shown: what an experiment lets the decoder see is then what
its answers contain.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer

from jobs.evaluation import batch, capacity, context, forget, scope, wallclock
from jobs.evaluation.asks import Answer, Ask
from jobs.evaluation.lab import Lab
from jobs.evaluation.private_facts import FILE, measure_private_facts
from jobs.evaluation.records import EvalData
from jobs.evaluation.recursive_read import RecursiveReader, Weights
from memory_actor.types import FactText

SAMPLE = Path(__file__).parents[1] / "data" / "counterfact_sample.json"


class Repeater:
    """A pool of decoders that say what they are shown, in the pool's place."""

    def __init__(self, bundle) -> None:
        self._tokenizer = Tokenizer.from_file(str(bundle.decoder_folder / "tokenizer.json"))

    def answer(self, asks: Sequence[Ask], what: str) -> list[Answer]:
        return [Answer((), self._shown(ask), ()) for ask in asks]

    def _shown(self, ask: Ask) -> str:
        if ask.condition is None:
            return ". ".join(ask.facts)
        return self._tokenizer.decode(ask.condition.candidates[:, 0].tolist())


@pytest.fixture(scope="module")
def whole_lab(bundle):
    torch.set_num_threads(1)
    console = Console(file=io.StringIO())
    return replace(Lab.open(bundle, Repeater(bundle), EvalData.open(SAMPLE), console), seed=3)


def test_every_fact_of_a_batch_comes_back(whole_lab, monkeypatch):
    """64 facts are recalled whole and said aloud, by ours and, as the paper says for N <= K, by the paper's memory."""
    monkeypatch.setattr(batch, "SIZES", (64,))
    monkeypatch.setattr(batch, "SPOKEN_SIZE", 64)
    found = batch.run(replace(whole_lab, limit=12))
    assert found.summary["batch.recall_64"] == found.summary["batch.generation_64"] == 1.0
    assert found.summary["batch.paper.recall_64"] == found.summary["batch.paper_gaussian.recall_64"] == 1.0
    assert found.summary["batch.writes_per_s_64"] > 0


def test_what_is_forgotten_is_gone_and_the_rest_is_there(whole_lab):
    """Half of 8 facts forgotten: none of them comes back by any read, all others do, hashes are equal."""
    found = forget.run(replace(whole_lab, limit=8)).summary
    assert found["forget.forgotten"] == found["forget.forgotten_soft"] == 0.0
    assert found["forget.retained"] == found["forget.hash_identity"] == 1.0
    assert found["forget.paper.forgotten"] == 0.0  # its answer is "unknown"
    assert {"forget.n_1.forgotten", "forget.n_8.retained", "forget.paper.n_8.retained"} <= found.keys()


def test_forgetting_is_not_taken_for_granted(whole_lab):
    """The same questions to a memory that forgot nothing count as recalled: the measure can fail."""
    facts = whole_lab.data.facts(6)

    class Forgetless(forget.LarimarMemory):
        def forget(self, positions):
            """Keep everything."""

    outcome = forget.Outcome("forget", {})
    forget._ask(whole_lab, Forgetless(whole_lab), facts, outcome)
    assert outcome.summary["forget.n_6.forgotten"] == 1.0


def test_needles_are_found_and_told(whole_lab):
    """64 facts: every own prompt brings its fact back, and the decoder says what the memory lets it see."""
    found = context.run(replace(whole_lab, limit=20)).summary
    assert found["context.prompt_recall_64"] == 1.0
    assert found["context.generation_64"] == found["context.recall_64"] <= found["context.ungated_recall_64"]
    assert found["context.recursive.prompt_recall_64"] == found["context.recursive_gaussian.prompt_recall_64"] == 1.0
    assert found["context.all_facts.generation_64"] == 1.0
    assert found["context.nearest.recall_64"] <= found["context.nearest.generation_64"]


def test_facts_of_several_rows_pass_through_the_recursion(whole_lab):
    """Latents put side by side come back side by side, short ones with zeros at their end."""
    facts = [FactText("The kiln's door code is", "five four"), FactText("A long tale " + "of the old harbour " * 12)]
    encoded = whole_lab.encoder.facts(facts)
    values = context.side_by_side(encoded)
    assert encoded.rows.tolist() == [1, values.shape[1] // encoded.latents.shape[1]]
    reader = RecursiveReader(torch.from_numpy(encoded.keys.astype(np.float32)), values, Weights.PROJECTION)
    for index in range(2):
        readout = reader.read(torch.from_numpy(encoded.keys[index].astype(np.float32)))
        assert torch.allclose(readout, values[index], atol=1e-2)
    assert not values[0, encoded.latents.shape[1] :].any()


def test_one_memory_blurs_where_shards_do_not(whole_lab):
    """K = 64: within capacity every row but the Gaussian filter is whole; at 4 K only ours is."""
    found = capacity.run(replace(whole_lab, limit=16)).summary
    assert found["capacity.k64_n32.recall"] == found["capacity.pinv.k64_n32.recall"] == 1.0
    assert found["capacity.k64_n256.recall"] == 1.0
    for row in ("pinv", "gaussian", "fourier"):
        assert found[f"capacity.{row}.k64_n256.recall"] < 0.5
        predicted = found[f"capacity.{row}.k64_n256.predicted_cosine"]
        assert found[f"capacity.{row}.k64_n256.cosine"] == pytest.approx(predicted, abs=0.1)


class SlowTuner:
    """In the place of fine-tuning: a thousand seconds for every edit."""

    def __init__(self, bundle) -> None:
        self.edit_ms = 1e6

    @contextmanager
    def edited(self, record):
        yield self


def test_an_edit_is_timed_in_its_parts(whole_lab, monkeypatch):
    """Encoding and writing add up to the edit, record by record; fine-tuning is slower by the quotient of medians."""
    monkeypatch.setattr(wallclock, "FineTuner", SlowTuner)
    found = wallclock.run(replace(whole_lab, limit=3))
    ours = [item for item in found.items if item["row"] == "larimar"]
    assert found.summary["wallclock.n"] == len(ours) == 3
    for item in ours:
        assert item["edit_ms"] == pytest.approx(item["encode_ms"] + item["write_ms"])
        assert item["query_ms"] > 0
    edit_ms = sorted(item["edit_ms"] for item in ours)[1]
    assert found.summary["wallclock.edit_ms"] == pytest.approx(edit_ms, abs=1e-3)
    assert found.summary["wallclock.speedup"] == pytest.approx(1e6 / edit_ms, rel=1e-3)


def test_the_gate_is_scored_alone_and_among_many(whole_lab, monkeypatch, tmp_path):
    """A question among many facts scores at least what it scores alone; where no private set is, the figures say so."""
    monkeypatch.setattr(scope, "STORED", 60)
    absent = tmp_path / "absent.json"
    monkeypatch.setattr(scope, "measure_private_facts", lambda *given: measure_private_facts(*given, absent))
    found = scope.run(replace(whole_lab, limit=10))
    assert found.summary["scope.stored"] == 60
    assert "not installed" in found.summary["scope.private"]
    kinds = {item["kind"] for item in found.items if item["row"] == "larimar"}
    assert {"rephrase", "rephrase_distractor", "neighbour"} <= kinds
    for item in found.items:
        assert item["score_60"] >= item["score_1"] - 1e-3
        assert item["right"] or item["score_60"] > item["score_1"] - 1e-3
    assert found.summary["scope.neighbour_accept"] <= found.summary["scope.neighbour_accept_60"]
    assert 0 <= found.summary["scope.eer_1"] <= 1


def test_private_facts_are_asked_for_whole(whole_lab, tmp_path):
    """Three private facts, one of them a sentence: recalls count all three, answers the two that have a target."""
    content = json.loads(FILE.read_bytes())
    chosen = [
        next(t for t in content["triples"] if "target" not in t),
        *[t for t in content["triples"] if "target" in t][:2],
    ]
    small = tmp_path / "private.json"
    small.write_text(json.dumps({"triples": chosen, "unrelated": content["unrelated"][:3]}), encoding="utf-8")
    outcome = scope.Outcome("scope", {})
    gate = scope.Gate("larimar", "scope", scope.CosineScorer(whole_lab.encoder), -1.0)
    measure_private_facts(whole_lab, [gate], outcome, small)
    assert outcome.summary["scope.private_unrelated"] == 1.0  # a threshold of -1 lets everything in
    answers = [item for item in outcome.items if item["kind"] == "private_answer"]
    assert [item["said"] for item in answers] == [item["recalled"] for item in answers]
    assert len(answers) == 2
    assert outcome.summary["scope.private_answered"] == sum(item["said"] for item in answers) / 2
