"""Capacity of one linear memory (the paper's Fig. 4): N facts in K addresses, under three ways of addressing.

Every fact is asked for with its own key. A linear memory whose N addresses have rank r gives back random contents with
cosine sqrt(r / N): beyond K facts it must blur. Our own row is the memory as it is served, with K addresses to a
shard: it opens another shard where the paper's single memory would be overloaded.

Only facts of one latent row take part, so that a fact is one address. All rows have the bundle's keys and ridge; the
Gaussian filter has the paper's alpha of 1e-3. No decoder takes part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.evaluation.bare_memory import BareMemory, taken
from jobs.evaluation.lab import Lab
from jobs.evaluation.memories import Recollection, whole
from jobs.evaluation.outcome import Figure, Outcome
from jobs.evaluation.recalls import evenly, figures
from jobs.evaluation.statistics import share
from memory_actor.addressing import Addressing
from memory_actor.episodic_memory import SufficientStatistics, read, solve
from memory_actor.types import EncodedFacts, FactText, MemoryConfig

NAME = "capacity"
ADDRESSES = (64, 128, 256, 512)  # K
LOADS = (0.5, 1, 2, 4)  # N / K
MAPS = {"pinv": 1.0, "gaussian": 1e-3, "fourier": None}  # feature_map_scale; None: the bundle's own
SAMPLE = 256  # facts of one cell that are decoded


@dataclass(frozen=True, slots=True)
class Readouts:
    """What one memory gave back for each of its N facts: (N, C) float32, and the rank of their addresses."""

    values: Tensor
    rank: int


def run(lab: Lab) -> Outcome:
    """Whole-fact recall and readout cosine in every cell of K and N / K. `limit` caps K and the facts decoded."""
    sizes = [size for size in ADDRESSES if lab.limit is None or size <= lab.limit] or [ADDRESSES[0]]
    facts, encoded = _short_facts(lab, int(sizes[-1] * LOADS[-1]))
    summary: dict[str, Figure] = {}
    items: list[dict[str, Any]] = []
    rows = ["larimar", *(MAPS if lab.rows == "all" else ())]
    with lab.progress("capacity: memories filled and read", len(sizes) * len(LOADS) * len(rows)) as advance:
        for size in sizes:
            for load in LOADS:
                count = int(size * load)
                part = taken(encoded, range(count))
                for row in rows:
                    config = configured(lab.bundle.memory_config(), row, size)
                    found = served(config, part) if row == "larimar" else single(config, part)
                    cell = _cell(lab, found, facts[:count], part)
                    place = f"{NAME}.k{size}_n{count}" if row == "larimar" else f"{NAME}.{row}.k{size}_n{count}"
                    summary |= figures(f"{place}.recall", share([item["whole"] for item in cell]))
                    summary[f"{place}.cosine"] = float(_cosines(found.values, part).mean())
                    if row != "larimar":
                        summary[f"{place}.predicted_cosine"] = predicted_cosine(found.rank, count)
                    items += [{"row": row, "addresses": size, "facts": count, **item} for item in cell]
                    advance(1)
    return Outcome(NAME, summary, items)


def configured(config: MemoryConfig, row: str, size: int) -> MemoryConfig:
    """The bundle's memory with K = `size` and a row's feature map; our own keeps the bundle's."""
    if row == "larimar":
        return replace(config, address_size=size)
    scale = MAPS[row]
    return replace(
        config,
        address_size=size,
        feature_map=row,
        feature_map_scale=config.feature_map_scale if scale is None else scale,
    )


def single(config: MemoryConfig, encoded: EncodedFacts) -> Readouts:
    """N facts of one row each in one memory, whatever K is, and what it reads at their own addresses."""
    addresses = Addressing(config).addresses(torch.from_numpy(encoded.keys.astype(np.float32)))
    statistics = SufficientStatistics.zeros(config.address_size, config.latent_size)
    statistics.write_(addresses, torch.from_numpy(encoded.latents))
    memory = solve(statistics, config.ridge * config.address_scale**2)
    rank = int(torch.linalg.matrix_rank(addresses.to(torch.float64)))
    return Readouts(read(memory, addresses, config.latent_scale), rank)


def served(config: MemoryConfig, encoded: EncodedFacts) -> Readouts:
    """N facts of one row each in the memory as served: scope search, snap read, shards of K rows. Out of scope: 0."""
    memory = BareMemory(config)
    memory.write(encoded, [f"f_{index:06d}" for index in range(len(encoded))])
    values = torch.zeros(len(encoded), config.latent_size)
    for index, key in enumerate(encoded.keys):
        readout = memory.recall(key[None]).readout
        if readout is not None:
            values[index] = torch.from_numpy(readout[0])
    return Readouts(values, len(encoded))


def predicted_cosine(rank: int, count: int) -> float:
    """Expected cosine of readout and content for random contents: the square root of the share r / N that is kept."""
    return math.sqrt(min(1.0, rank / count))


def _short_facts(lab: Lab, count: int) -> tuple[list[FactText], EncodedFacts]:
    """The first `count` facts that are one latent row long."""
    asked = count
    while True:
        facts = lab.data.facts(asked)
        encoded = lab.encoder.facts(facts)
        short = np.flatnonzero(encoded.rows == 1)[:count].tolist()
        if len(short) == count:
            return [facts[index] for index in short], taken(encoded, short)
        asked += 2 * (count - len(short))


def _cell(lab: Lab, found: Readouts, facts: list[FactText], encoded: EncodedFacts) -> list[dict[str, Any]]:
    """One item for each fact decoded: whether every token came back, and the cosine of its readout."""
    cosines = _cosines(found.values, encoded)
    items = []
    for index in evenly(len(facts), min(SAMPLE, lab.limit or SAMPLE)):
        readout = found.values[index : index + 1].numpy()
        tokens = int(encoded.prompt_tokens[index]), int(encoded.target_tokens[index])
        recollection = Recollection(index=index, score=1.0, condition=lab.codec.condition(readout, *tokens))
        correct = whole(recollection, facts[index], lab.codec)
        items.append({"index": index, "whole": correct, "cosine": round(float(cosines[index]), 4)})
    return items


def _cosines(values: Tensor, encoded: EncodedFacts) -> Tensor:
    return torch.cosine_similarity(values, torch.from_numpy(encoded.latents).to(torch.float32), dim=1)  # (N,)
