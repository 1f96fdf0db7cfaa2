"""Fine-tuning the real decoder on one edit: it learns it, and is put back to the bit."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
import torch

from jobs.evaluation.asks import Ask
from jobs.evaluation.fine_tuning import LOSS_ENOUGH, STEPS_MAX, FineTuner
from jobs.evaluation.records import EditRecord
from workers.ports import AnswerMode

RECORD = EditRecord(
    case_id=1,
    prompt="The mother tongue of Danielle Darrieux is",
    subject="Danielle Darrieux",
    target_new="English",
    target_true="French",
    rephrasings=("Danielle Darrieux, a native",),
    rephrasings_distractor=(),
    neighbours=("The mother tongue of Léon Blum is",),
    neighbours_true=("French",),
)
ASK = Ask(RECORD.prompt, mode=AnswerMode.COMPLETE, candidates=("English", "French"), max_tokens=1)
OTHER = Ask("The capital of Italy is", mode=AnswerMode.COMPLETE, candidates=("Rome",), max_tokens=4)


@pytest.fixture(scope="module")
def tuner(bundle) -> FineTuner:
    return FineTuner(bundle, device="cpu")


def weights_digest(tuner: FineTuner) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tuner.model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_the_edit_is_learnt_and_undone_to_the_bit(tuner):
    """The new answer becomes the likelier and is said. Afterwards weights and answers are the bundle's own, although

    here whoever asks fails in the midst of it.
    """
    before, original = tuner.answer([ASK, OTHER]), weights_digest(tuner)
    assert before[0].nll[1] < before[0].nll[0]
    with suppress(ZeroDivisionError), tuner.edited(RECORD) as tuned:
        (during,) = tuned.answer([ASK])
        assert weights_digest(tuner) != original
        raise ZeroDivisionError
    assert 0 < tuner.steps <= STEPS_MAX
    assert tuner.edit_ms > 0
    if tuner.steps < STEPS_MAX:  # it stopped since the target was learnt
        assert during.nll[0] == pytest.approx(tuner.loss, rel=1e-2, abs=1e-5)
        assert tuner.loss < LOSS_ENOUGH
    assert during.nll[0] < 0.1 < during.nll[1]
    assert during.text == " English"
    assert weights_digest(tuner) == original
    assert tuner.answer([ASK, OTHER]) == before


def test_edits_without_restoring_add_up(tuner):
    """A second edit is tuned on top of the first; one `restore` undoes both."""
    original = weights_digest(tuner)
    tuner.edit(RECORD)
    first = weights_digest(tuner)
    tuner.edit(EditRecord(2, "The capital of Italy is", "Italy", "Oslo", "Rome", (), (), (), ()))
    assert len({original, first, weights_digest(tuner)}) == 3
    assert tuner.answer([Ask("The capital of Italy is", candidates=("Oslo",))])[0].nll[0] < 0.1
    tuner.restore()
    assert weights_digest(tuner) == original
