"""What the report shows of each experiment: tables, their columns, and a few words on how it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

#: Rows of the tables beside our own, by their names in the figures' keys.
LATENT_ROW: Final = "latent"
ROWS: Final[Mapping[str, str]] = MappingProxyType(
    {
        LATENT_ROW: "larimar-serve with its latent codec",
        "unedited": "unedited model",
        "nearest": "nearest fact in the prompt, plain MiniLM at 0.70",
        "all_facts": "all facts in the prompt",
        "prompt": "the fact in the prompt",
        "paper": "the paper's memory, pseudo-inverse addresses",
        "paper_gaussian": "the paper's memory, Gaussian addresses",
        "fine_tuned": "decoder fine-tuned on the edit",
        "recursive": "the paper's recursive read, projection weights, no gate",
        "recursive_gaussian": "the paper's recursive read, Gaussian weights, no gate",
        "pinv": "one memory, pseudo-inverse addresses",
        "gaussian": "one memory, Gaussian addresses",
        "fourier": "one memory, our addresses",
    }
)


@dataclass(frozen=True, slots=True)
class Column:
    """One measure. `better` says in which direction rows are compared; None: they are not."""

    measure: str
    heading: str
    better: Literal["high", "low"] | None = "high"
    unit: str = "%"  # "%": a share; else shown as it is


@dataclass(frozen=True, slots=True)
class Table:
    """Columns side by side, one line per row of the experiment that has any of them. `caption` stands above."""

    columns: tuple[Column, ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One experiment in the report. `place` is where its figures are; the paper's rows go by `paper`."""

    place: str
    title: str
    text: str
    tables: tuple[Table, ...]
    paper: str = ""
    pictures: tuple[str, ...] = field(default=())


_EDITS = (
    Table(
        (
            Column("edit_success", "edit"),
            Column("rephrase_success", "rephrase"),
            Column("rephrase_distractor_success", "sentence in front"),
            Column("neighbourhood_success", "neighbours"),
            Column("score", "harmonic mean", unit="share"),
        ),
        "Likelihood: the new answer above the true one, and for neighbours the true one above the new. In %.",
    ),
    Table(
        (
            Column("generation_edit", "says it: edit"),
            Column("generation_rephrase", "says it: rephrase"),
            Column("generation_rephrase_distractor", "says it: sentence in front"),
            Column("changed_out_of_scope", "outputs changed, neighbours", "low"),
        ),
        "Free generation: the answer contains the target; a neighbour's output is not, token for token, the unedited "
        "model's.",
    ),
    Table(
        (
            Column("edit_in_scope", "edit"),
            Column("rephrase_in_scope", "rephrase"),
            Column("distractor_in_scope", "sentence in front"),
            Column("neighbour_in_scope", "neighbours", "low"),
            Column("same_subject_in_scope", "same subject, other relation", "low"),
            Column("right_fact", "right fact, of rephrasings in scope"),
        ),
        "The gate: let in, of each kind of query.",
    ),
)


def _by_number(measure: str, heading: str, numbers: tuple[int, ...], caption: str = "") -> Table:
    """One column for each number, put in place of "#". Of all such measures only of "forgotten" less is better."""
    better: Literal["high", "low"] = "low" if "forgotten" in measure else "high"
    columns = (Column(measure.replace("#", str(n)), heading.replace("#", f"{n:,}"), better) for n in numbers)
    return Table(tuple(columns), caption)


_STOPS = (1, 5, 10, 25, 50, 100, 200, 500, 1000, 2000)
_FACTS = (64, 96, 128, 256, 1000, 10_000, 100_000)

SECTIONS: Final = (
    Section(
        "counterfact",
        "CounterFact, one edit in memory",
        "Each record's edit is alone in memory. The same records for every row; means per record, then over records.",
        _EDITS,
        "counterfact",
        ("counterfact", "locality"),
    ),
    Section(
        "counterfact_2000",
        "CounterFact, 2,000 edits in memory",
        "All edits are live at once. Queries that another stored fact answers as well are left out of the neighbours.",
        _EDITS,
    ),
    Section(
        "zsre",
        "zsRE, edits one after another",
        "F1 on the sets of unique tokens, as GRACE and the paper take it, asked when all edits are in memory.",
        (
            Table(
                (
                    Column("f1_all_edits", "F1, past edits"),
                    Column("f1_rephrase", "F1, rephrasings"),
                    Column("generation_all_edits", "says it, past edits"),
                    Column("generation_rephrase", "says it, rephrasings"),
                    Column("unrelated_in_scope", "unrelated let in", "low"),
                    Column("unrelated_changed", "unrelated changed", "low"),
                )
            ),
        ),
        "zsre",
    ),
    Section(
        "sequential",
        "Sequential editing",
        "Edits are written one after another; at each stop a sample of all past ones is asked for again.",
        (
            _by_number("recall_#", "# edits", _STOPS, "Whole facts read back, every token right."),
            _by_number("generation_#", "# edits", _STOPS, "The decoder's answer contains the target."),
            _by_number("rephrase_right_#", "# edits", _STOPS, "A rephrasing finds its own edit."),
        ),
        "sequential",
        ("sequential",),
    ),
    Section(
        "batch",
        "Batch editing",
        "N facts are written, and asked for with their own prompts: every token of prompt and target must come back.",
        (
            _by_number("recall_#", "# facts", (512, 1024, 4096, 10_000)),
            _by_number("generation_#", "# facts", (4096,), "The decoder's answer contains the target."),
        ),
        "batch",
        ("batch",),
    ),
    Section(
        "capacity",
        "Capacity",
        "N facts in K addresses. One linear memory must blur beyond K facts; ours opens another shard.",
        (
            Table(
                tuple(Column(f"k512_n{facts}.recall", f"{facts:,} facts") for facts in (256, 512, 1024, 2048)),
                "K = 512: whole facts read back, every token right.",
            ),
        ),
        "capacity",
        ("capacity",),
    ),
    Section(
        "forget",
        "Forgetting",
        "Facts are written, some are forgotten; K is 512. The state hash is compared with that of a memory that never "
        "saw them.",
        (
            Table(
                (
                    Column("forgotten", "forgotten recalled", "low"),
                    Column("retained", "retained recalled"),
                    Column("forgotten_soft", "its words read back without a gate", "low"),
                    Column("hash_identity", "hash identity"),
                ),
                "The worst of all sizes.",
            ),
            _by_number("n_#.forgotten", "N = #", (1, 512, 1024, 4096), "Forgotten facts recalled, by size."),
            _by_number("n_#.retained", "N = #", (512, 1024, 4096), "Retained facts recalled, by size."),
        ),
        "forget",
        ("forget",),
    ),
    Section(
        "leakage",
        "Leakage",
        'An answer the model knows is overwritten with "unknown", or a made-up fact is forgotten; then it is asked for '
        "with four wordings, five samples each. An attack succeeds when any of the twenty contains the answer.",
        (
            Table(
                (
                    Column("attack_single", "blocked alone", "low"),
                    Column("attack_batch", "blocked together", "low"),
                    Column("attack", "attack succeeds", "low"),
                ),
                "Known answers, blocked.",
            ),
            Table(
                (
                    Column("remembered_needles", "before", None),
                    Column("forgotten_needles", "after forgetting", "low"),
                    Column("needles", "by chance", None),
                ),
                "Made-up facts.",
            ),
        ),
        "leakage",
    ),
    Section(
        "context",
        "Long context",
        "Made-up facts, a sample of them asked for: in other words, and with the facts' own prompts. Recalled is what "
        "the gate let in and came back whole; the recursive read has no gate and is told how long the right fact is.",
        (
            _by_number("recall_#", "# facts", _FACTS, "Asked in other words."),
            _by_number("ungated_recall_#", "# facts", _FACTS, "Asked in other words, were there no gate."),
            _by_number("prompt_recall_#", "# facts", _FACTS, "Asked with the facts' own prompts."),
            _by_number("generation_#", "# facts", _FACTS, "The decoder's answer contains the fact's."),
        ),
        "context",
        ("context",),
    ),
    Section(
        "scope",
        "Scope",
        "What the gate lets in, with one fact stored and with 2,000. The error rate is that of rephrasings against "
        "neighbours.",
        (
            Table(
                (
                    Column("eer_1", "equal error rate", "low"),
                    Column("rephrase_accept", "rephrase let in"),
                    Column("rephrase_distractor_accept", "sentence in front let in"),
                    Column("neighbour_accept", "neighbour let in", "low"),
                    Column("same_subject_accept", "same subject let in", "low"),
                ),
                "One fact stored.",
            ),
            Table(
                (
                    Column("eer_2000", "equal error rate", "low"),
                    Column("rephrase_accept_2000", "rephrase let in, right fact"),
                    Column("rephrase_distractor_accept_2000", "sentence in front let in, right fact"),
                    Column("neighbour_accept_2000", "neighbour let in", "low"),
                    Column("same_subject_accept_2000", "same subject let in", "low"),
                ),
                "2,000 facts stored.",
            ),
            Table(
                (
                    Column("private_question", "question let in, right fact"),
                    Column("private_same_subject", "same subject let in", "low"),
                    Column("private_same_relation", "same relation let in", "low"),
                    Column("private_unrelated", "unrelated let in", "low"),
                    Column("private_recalled", "question brings its fact back whole"),
                    Column("private_answered", "answered right"),
                ),
                "Private facts, all of the set stored.",
            ),
        ),
        "scope",
        ("scope",),
    ),
    Section(
        "wallclock",
        "Wall clock of one edit",
        "Milliseconds on the machine named below.",
        (
            Table(
                (
                    Column("edit_ms", "one edit", "low", "ms"),
                    Column("encode_ms", "encode", "low", "ms"),
                    Column("write_ms", "write", "low", "ms"),
                    Column("first_query_ms", "first read after it", None, "ms"),
                    Column("query_ms", "later read", None, "ms"),
                    Column("verify_ms", "verify", None, "ms"),
                    Column("finetune_ms", "fine-tuning", None, "ms"),
                )
            ),
        ),
        "wallclock",
        ("wallclock",),
    ),
)
