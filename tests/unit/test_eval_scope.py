"""Figures of a gate and of forgetting, worked out by hand."""

import numpy as np
import pytest

from jobs.evaluation.forget import doomed, worst
from jobs.evaluation.gate import Gate
from jobs.evaluation.probes import Kind
from jobs.evaluation.scope import gate_figures

GATE = Gate("nearest", "scope.nearest", encoder=None, threshold=0.7)


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
