"""The paper's own numbers: Das et al., "Larimar", ICML 2024 (arXiv:2403.11901v4). Other models, partly other protocols.

They stand beside ours for orientation, never as rows of the same experiment: the paper edits GPT-2 XL, GPT-J and its
own trained decoders of 1.3 and 6 billion parameters, on CounterFact's full form, and scores likelihoods only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

CITATION: Final = (
    "Das et al., *Larimar: Large Language Models with Episodic Memory Control*, ICML 2024, "
    "[arXiv:2403.11901v4](https://arxiv.org/abs/2403.11901v4)"
)


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One row of the paper: who, where it stands, and its figures by our measures' names, in our units."""

    model: str
    where: str
    figures: Mapping[str, float]


def _row(model: str, where: str, **figures: float) -> PaperRow:
    return PaperRow(model, where, MappingProxyType(figures))


def _counterfact(model: str, edit: float, rephrase: float, neighbourhood: float) -> PaperRow:
    return _row(
        model,
        "Table 2",
        edit_success=edit / 100,
        rephrase_success=rephrase / 100,
        neighbourhood_success=neighbourhood / 100,
    )


COUNTERFACT: Final = (
    _counterfact("GPT-2 XL, unedited", 22.2, 24.7, 78.1),
    _counterfact("GPT-2 XL, fine-tuned (FT)", 100.0, 87.9, 40.4),
    _counterfact("GPT-2 XL, ROME", 100.0, 96.4, 75.4),
    _counterfact("Larimar-1.3B", 100.0, 83.5, 74.7),
    _counterfact("GPT-J, unedited", 16.3, 18.6, 83.0),
    _counterfact("GPT-J, fine-tuned (FT)", 100.0, 96.6, 10.3),
    _counterfact("GPT-J, ROME", 99.9, 99.1, 78.9),
    _counterfact("GPT-J, fact in the prompt (PROMPT)", 99.7, 91.0, 37.9),
    _counterfact("GPT-J, IKE (32 demonstrations)", 100.0, 95.2, 77.0),
    _counterfact("Larimar-6B", 99.6, 88.4, 80.4),
)

ZSRE: Final = (
    _row("GPT-2 XL, ROME, one edit at a time", "Table 12", rephrase_accuracy=0.881),
    _row("Larimar-1.3B, one edit at a time", "Table 12", rephrase_accuracy=0.816),
    _row("Larimar-6B, one edit at a time", "Table 12", rephrase_accuracy=0.704),
)

SEQUENTIAL: Final = (
    _row("MEND, 1,000 edits in a row", "Table 3", f1_all_edits=0.27),
    _row("GRACE, 1,000 edits in a row", "Table 3", f1_all_edits=0.93),
    _row("Larimar-1.3B, 1,000 edits in a row", "Table 3", f1_all_edits=0.97),
    _row("Larimar-6B, 1,000 edits in a row", "Table 3", f1_all_edits=0.92),
)

#: Rewrite accuracy of a batch by the number of facts, with a memory of 512 rows; the text of section 5.3 and Fig. 4.
BATCH: Final = (_row("Larimar-6B, memory of 512 rows", "Figs. 2a, 3", recall_512=1.0, recall_1024=0.82),)

#: The same by facts per memory row: N = K is 512 facts in 512 rows.
CAPACITY: Final = (_row("Larimar-6B, facts per memory row", "Fig. 4", ratio_1=0.99, ratio_2=0.80, ratio_4=0.54),)

#: Recall of forgotten and of retained facts, CounterFact, K = 512.
FORGET: Final = (
    _row("Larimar-1.3B, N = K", "Table 4", forgotten=0.001, retained=0.997),
    _row("Larimar-1.3B, N = 2K", "Table 4", forgotten=0.02, retained=0.79),
    _row("Larimar-6B, N = K", "Table 4", forgotten=0.0, retained=0.993),
    _row("Larimar-6B, N = 2K", "Table 4", forgotten=0.03, retained=0.71),
    _row("Llama2-13B told to forget in its prompt, N = 20", "Table 4", forgotten=0.75, retained=0.77),
)

LEAKAGE: Final = (
    _row("ROME", "Table 5", attack_success=0.29),
    _row("MEMIT", "Table 5", attack_success=0.493),
    _row("Larimar, one fact", "Table 5", attack_success=0.176),
    _row("Larimar, a batch", "Table 5", attack_success=0.215),
)


def _context(model: str, *recalls: float) -> PaperRow:
    return _row(
        model, "Table 6", **{f"recall_{n}": recall for n, recall in zip((64, 96, 128, 256), recalls, strict=False)}
    )


#: Recall of one of n facts (CNN Fast Facts) in the context. Llama2-13B ran out of memory from 128 facts on.
CONTEXT: Final = (
    _context("Mistral-7B, all facts in the prompt", 0.98, 0.96, 0.57, 0.42),
    _context("GPT-NeoX-20B, all facts in the prompt", 0.52, 0.36, 0.33, 0.35),
    _context("Llama2-13B, all facts in the prompt", 0.97, 0.66),
    _context("Supersizing Transformer, filtered", 0.72, 0.71, 0.70, 0.69),
    _context("Larimar-1.3B", 0.89, 0.88, 0.88, 0.86),
    _context("Larimar-6B", 0.82, 0.81, 0.81, 0.80),
)

#: One edit, ten CounterFact records on one A100; Table 7 is quoted there from Yao et al. 2023.
WALLCLOCK: Final = (
    _row("ROME, GPT-J", "Table 1", edit_ms=13_900),
    _row("GRACE, GPT-J", "Table 1", edit_ms=19_300),
    _row("Larimar-1.3B, GPT-2", "Table 1", edit_ms=1_100),
    _row("Larimar-6B, GPT-J", "Table 1", edit_ms=1_700),
    _row("FT, GPT-J", "Table 7", edit_ms=35_940),
    _row("MEND, GPT-J", "Table 7", edit_ms=510),
)

SCOPE: Final = (_row("Larimar, external detector, 3,800 EasyEdit samples", "App. B", eer_1=0.029),)

#: The paper's rows by the name of our experiment.
PAPER_ROWS: Final[Mapping[str, tuple[PaperRow, ...]]] = MappingProxyType(
    {
        "counterfact": COUNTERFACT,
        "zsre": ZSRE,
        "sequential": SEQUENTIAL,
        "batch": BATCH,
        "capacity": CAPACITY,
        "forget": FORGET,
        "leakage": LEAKAGE,
        "context": CONTEXT,
        "wallclock": WALLCLOCK,
        "scope": SCOPE,
    }
)
