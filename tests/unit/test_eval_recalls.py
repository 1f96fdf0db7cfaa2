"""Which facts an experiment asks for, and what counts as said."""

import pytest

from jobs.evaluation.recalls import evenly, figures, says
from jobs.evaluation.statistics import share


@pytest.mark.parametrize(("count", "most", "expected"), [(3, 5, [0, 1, 2]), (10, 5, [0, 2, 4, 6, 8]), (7, 2, [0, 3])])
def test_positions_are_spread_evenly(count, most, expected):
    """A sample takes every n-th position from the first on, and all of them where they fit."""
    assert evenly(count, most) == expected


@pytest.mark.parametrize(
    ("text", "wanted", "expected"),
    [
        ("It is in New\n York.", "new york", True),
        ("He speaks French", "French", True),
        ("A Frenchman", "French", False),  # part of another word is not the answer
        ("C++ it is", "C++", True),
        ("nothing", "", False),
    ],
)
def test_an_answer_says_whole_words(text, wanted, expected):
    """Containment is of whole words, whatever their case and the white space between them."""
    assert says(text, wanted) is expected


def test_a_share_brings_its_interval():
    """A figure stands beside the ends of its 95 % interval."""
    written = figures("batch.recall_512", share([True] * 9 + [False]))
    assert list(written) == ["batch.recall_512", "batch.recall_512_low", "batch.recall_512_high"]
    assert written["batch.recall_512"] == 0.9
