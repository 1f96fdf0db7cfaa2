"""Wall clock of one CounterFact edit, end to end in the memory, beside fine-tuning the decoder on the same edits.

An edit is the encoding of one new fact (encoder and codec) and its durable write (ledger, fsync, memory), one at a
time. A query's search and read follow; the first read after a write solves the memory once. What was read is verified
beside the query, where the bundle has a verifier. Times are medians in milliseconds, of this machine, with the threads
that this process is given.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from jobs.evaluation.fine_tuning import FineTuner
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import LarimarMemory
from jobs.evaluation.outcome import Outcome
from jobs.evaluation.records import BadData, EditRecord

NAME = "wallclock"
WARM_UP, EDITS = 5, 50
TUNED = 5  # edits that the decoder is fine-tuned on


def run(lab: Lab) -> Outcome:
    """Medians over 50 edits (fine-tuning: 5). `limit` caps both. Raises: BadData if there are too few records."""
    edits = min(EDITS, lab.limit or EDITS)
    records = lab.data.records[: WARM_UP + edits]
    if len(records) <= WARM_UP:
        raise BadData(f"wall clock needs more than {WARM_UP} records, {lab.data.name} has {len(records)}")
    items = _edit(lab, records)[WARM_UP:]
    outcome = Outcome(NAME, {f"{NAME}.n": len(items), f"{NAME}.threads": torch.get_num_threads()}, items)
    for name in ("encode_ms", "write_ms", "edit_ms", "first_query_ms", "query_ms", "verify_ms"):
        outcome.summary[f"{NAME}.{name}"] = round(statistics.median(item[name] for item in items), 3)
    edit_ms = statistics.median(item["edit_ms"] for item in items)
    if lab.rows == "all":
        tuned_ms = _fine_tune(lab, records[WARM_UP : WARM_UP + TUNED], outcome)
        outcome.summary[f"{NAME}.finetune_ms"] = round(tuned_ms, 1)
        outcome.summary[f"{NAME}.speedup"] = round(tuned_ms / edit_ms, 1)
    return outcome


def _edit(lab: Lab, records: Sequence[EditRecord]) -> list[dict[str, Any]]:
    """One item for each record, in order, all in one memory."""
    memory = LarimarMemory(lab)
    items = []
    with lab.progress("wallclock: edits", len(records)) as advance:
        for record in records:
            items.append({"row": "larimar", "case_id": record.case_id, **_one_edit(lab, memory, record)})
            advance(1)
    memory.close()
    return items


def _one_edit(lab: Lab, memory: LarimarMemory, record: EditRecord) -> dict[str, float]:
    """Encode and write a record, then ask with its first rephrasing (its prompt, where it has none), twice."""
    fact, query = record.fact(), (*record.rephrasings, record.prompt)[0]
    # What the encoder has seen it keeps: the write does not pay for it again, the queries time search and read only.
    encode_ms = _timed(lambda: lab.encoder.facts([fact]))
    (keys,) = lab.encoder.queries([query])
    write_ms = _timed(lambda: memory.write([fact]))
    return {
        "encode_ms": encode_ms,
        "write_ms": write_ms,
        "edit_ms": encode_ms + write_ms,
        "first_query_ms": _timed(lambda: memory.recall_key(keys)),
        "query_ms": _timed(lambda: memory.recall_key(keys)),
        "verify_ms": _timed(lambda: lab.matches and lab.matches([query], [record.prompt])),
    }


def _fine_tune(lab: Lab, records: Sequence[EditRecord], outcome: Outcome) -> float:
    """Median milliseconds of tuning the decoder until it says an edit, one record at a time."""
    tuner = FineTuner(lab.bundle)
    times = []
    with lab.progress("wallclock: fine-tuning", len(records)) as advance:
        for record in records:
            with tuner.edited(record):
                times.append(tuner.edit_ms)
            outcome.items.append({"row": "finetune", "case_id": record.case_id, "edit_ms": times[-1]})
            advance(1)
    return statistics.median(times)


def _timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3
