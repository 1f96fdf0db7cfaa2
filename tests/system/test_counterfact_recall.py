"""How much one shard of the real memory holds: CounterFact through the real encoder and token codec, without Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from memory_actor.types import EncodedFacts, FactText, Float16Array, MemoryConfig, ReadMode
from tests.memory_fixtures import Bench, ids_of

if TYPE_CHECKING:
    from workers.bundle import Bundle
    from workers.sentence_encoder import SentenceEncoder
    from workers.token_codec import TokenCodec

BATCH = 64


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    sample = Path(__file__).parent.parent / "data" / "counterfact_sample.json"
    found: list[dict[str, str]] = json.loads(sample.read_text(encoding="utf-8"))["records"]
    return found


@pytest.fixture(scope="module")
def config(bundle: Bundle) -> MemoryConfig:
    return bundle.memory_config()


def written(
    texts: Sequence[FactText], encoder: SentenceEncoder, codec: TokenCodec, config: MemoryConfig
) -> tuple[Bench, Float16Array]:
    """A tenant that these facts were written to in batches, and their keys (N, D)."""
    bench = Bench.new(config)
    keys = encoder.encode([text.prompt for text in texts]).astype(np.float16)
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        content = codec.encode(batch)
        given = EncodedFacts(
            keys[start : start + BATCH],
            content.latents,
            content.rows,
            content.prompt_tokens,
            content.target_tokens,
        )
        bench.write(batch, given, ids_of(len(batch), start))
    return bench, keys


def recalled_whole(bench: Bench, keys: Float16Array, texts: Sequence[FactText], codec: TokenCodec) -> int:
    """How many facts come back with every token right, prompt and target, when asked with their own prompt."""
    whole = 0
    for number, (key, text) in enumerate(zip(keys, texts, strict=True)):
        recall = bench.tenant.recall(key[None], ReadMode.SNAP)
        assert recall.fact_id == ids_of(1, number)[0]
        assert recall.readout is not None
        decoded = codec.condition(recall.readout, recall.prompt_tokens, recall.target_tokens).candidates[:, 0]
        prompt, target = codec.tokens(text)
        whole += decoded.tolist() == prompt + target
    return whole


def test_512_of_512_counterfact_facts_are_recalled_whole(records, encoder, codec, config):
    """K = 512 facts fill one shard to the last row, and each comes back token for token."""
    texts = [FactText(record["prompt"], record["target_new"]) for record in records[:512]]
    bench, keys = written(texts, encoder, codec, config)
    assert [shard.rows for shard in bench.tenant._shards] == [512] == [config.address_size]
    assert recalled_whole(bench, keys, texts, codec) == 512


def test_512_prompts_that_differ_only_in_the_name_are_recalled_whole(encoder, codec, config):
    """As close as real prompts get: one sentence, 512 names. All are told apart and come back token for token."""
    first = "Ana Boris Chen Diego Elif Farid Greta Hugo Ines Jonas Kavya Lars Mina Noor Olga Pedro".split()  # noqa: SIM905
    last = [
        f"{one}{other}"
        for one in ("Bau", "Gar", "Jan", "Lar", "Pet", "Sil", "Var", "Web")
        for other in ("er", "cia", "sen", "ov")
    ]
    names = [f"{one} {other}" for one in first for other in last]
    texts = [FactText(f"The access code of {name} is", f"{4096 + 7 * i}") for i, name in enumerate(names)]
    bench, keys = written(texts, encoder, codec, config)
    cosines = keys.astype(np.float32) @ keys.astype(np.float32).T - 2 * np.eye(512, dtype=np.float32)
    assert cosines.max() > 0.9  # the claim is about close prompts
    assert recalled_whole(bench, keys, texts, codec) == 512


def test_forgotten_facts_are_gone_and_the_others_stay_whole(records, encoder, codec, config):
    """600 facts over two shards, 100 forgotten: the hash is that of never having written them, the rest is whole."""
    texts = [FactText(record["prompt"], record["target_new"]) for record in records[:600]]
    bench, keys = written(texts, encoder, codec, config)
    gone = set(range(0, 600, 6))
    bench.forget([ids_of(1, i)[0] for i in gone])
    never = Bench.new(config)
    kept = [i for i in range(600) if i not in gone]
    content = codec.encode([texts[i] for i in kept])
    given = EncodedFacts(keys[kept], content.latents, content.rows, content.prompt_tokens, content.target_tokens)
    never.write([texts[i] for i in kept], given, [ids_of(1, i)[0] for i in kept])
    assert bench.hash == never.hash
    for i in range(0, 600, 3):
        recall = bench.tenant.recall(keys[i : i + 1], ReadMode.SNAP)
        assert (recall.fact_id == ids_of(1, i)[0]) == (i not in gone)
        if i not in gone:
            assert recall.readout is not None
            assert np.abs(recall.readout - bench.stored[recall.fact_id].latents).max() < 0.5
