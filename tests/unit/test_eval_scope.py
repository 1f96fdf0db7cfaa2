"""Figures of a gate and of forgetting, worked out by hand."""

import numpy as np
import pytest

from jobs.evaluation.forget import doomed, worst
from jobs.evaluation.gate import Gate, VerifiedScorer
from jobs.evaluation.gate_scores import Nearest
from jobs.evaluation.matches import Matches
from jobs.evaluation.probes import Kind
from jobs.evaluation.scope import gate_figures

GATE = Gate("nearest", "scope.nearest", scorer=None, threshold=0.7)


def test_shares_let_in_and_the_equal_error_rate():
    """Of four rephrasings three reach 0.7; of four neighbours one. At 0.65 one of each errs: the rate is 1/4."""
    scores = {Kind.REPHRASE: [0.9, 0.8, 0.7, 0.4], Kind.NEIGHBOUR: [0.75, 0.6, 0.5, 0.1], Kind.DISTRACTOR: [-1.0]}
    kinds = [kind for kind, values in scores.items() for _ in values]
    values = np.array([value for group in scores.values() for value in group], np.float32)
    found = gate_figures(GATE, kinds, values, 2000, "_2000")
    assert found["scope.nearest.rephrase_accept_2000"] == 0.75
    assert found["scope.nearest.neighbour_accept_2000"] == 0.25
    assert found["scope.nearest.rephrase_distractor_accept_2000"] == 0.0
    assert found["scope.nearest.eer_2000"] == 0.25
    assert found["scope.nearest.eer_2000_threshold"] == pytest.approx(0.7)
    assert "scope.nearest.same_subject_accept_2000" not in found  # nobody asked


class Fixed:
    """A first stage that finds the first prompt for everything, at the cosines it is told."""

    def __init__(self, cosines):
        self.cosines = np.array(cosines, np.float32)

    def paired(self, queries, prompts):
        return self.cosines

    def nearest(self, queries, prompts):
        return Nearest(self.cosines, np.zeros(len(queries), np.int64))


def test_the_second_stage_is_asked_about_what_the_first_one_found():
    """Below the least cosine the score is 0 and nobody is asked; above it, the match with the prompt that was found."""
    asked = []

    def match(queries, prompts):
        asked.extend(zip(queries, prompts, strict=True))
        return [0.25 + 0.5 * query.startswith("good") for query in queries]

    scorer = VerifiedScorer(Fixed([0.9, 0.3, 0.5]), match, 0.4)
    queries, prompts = ["good one", "good but far", "bad"], ["p", "q", "r"]
    assert scorer.paired(queries, prompts).tolist() == [0.75, 0.0, 0.25]
    assert asked == [("good one", "p"), ("bad", "r")]
    found = scorer.nearest(queries, prompts)
    assert (found.scores.tolist(), found.positions.tolist()) == ([0.75, 0.0, 0.25], [0, 0, 0])
    assert asked[2:] == [("good one", "p"), ("bad", "p")]


def test_each_pair_is_judged_once():
    """Equal pairs, in one call or in several, cost one judgement and get the same."""

    class Verifier:
        calls = 0

        def match_queries(self, queries, prompts):
            self.calls += len(queries)
            return [len(query) + len(prompt) / 100 for query, prompt in zip(queries, prompts, strict=True)]

    verifier = Verifier()
    matches = Matches(verifier)
    assert matches(["a", "bb", "a"], ["x", "x", "x"]) == [1.01, 2.01, 1.01]
    assert matches(["bb", "a"], ["x", "yy"]) == [2.01, 1.02]
    assert verifier.calls == 3


def test_every_second_fact_is_forgotten():
    """Half of them, and the one of one."""
    assert doomed(5) == [0, 2, 4]
    assert doomed(1) == [0]


def test_the_worst_size_stands_for_all():
    """Most forgotten facts recalled, fewest retained, fewest equal hashes, each row for itself."""
    summary = {
        "forget.n_1.forgotten": 0.0,
        "forget.n_1.hash_identity": 1.0,
        "forget.n_8.forgotten": 0.25,
        "forget.n_8.retained": 0.5,
        "forget.n_8.hash_identity": 0.9,
        "forget.paper.n_8.retained": 0.1,
    }
    assert worst(summary, [1, 8]) == {
        "forget.forgotten": 0.25,
        "forget.retained": 0.5,
        "forget.hash_identity": 0.9,
        "forget.paper.retained": 0.1,
    }
