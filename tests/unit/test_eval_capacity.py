"""One linear memory at its limits, against least squares and counting."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jobs.evaluation.capacity import configured, predicted_cosine, served, single
from memory_actor.addressing import Addressing
from memory_actor.types import EncodedFacts, MemoryConfig

CONFIG = MemoryConfig(
    fingerprint="ca9", key_size=24, address_size=16, latent_size=40, feature_map_scale=3.0, ridge=1e-6
)


def facts(count):
    random = np.random.default_rng(count)
    keys = random.standard_normal((count, 24))
    keys = (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float16)
    latents = (random.integers(0, 2, (count, 40)) * 2 - 1).astype(np.int8)
    return EncodedFacts(keys, latents, *[np.ones(count, np.int32)] * 3)


def cosines(values, encoded):
    return torch.cosine_similarity(values, torch.from_numpy(encoded.latents).float(), dim=1)


@pytest.mark.parametrize("row", ["pinv", "fourier"])
def test_a_memory_gives_back_what_fits(row):
    """Up to K facts every content comes back as written; at 2 K it is the least-squares blend of all."""
    config = configured(CONFIG, row, 16)
    half = single(config, facts(8))
    assert half.rank == 8
    assert torch.allclose(half.values, torch.from_numpy(facts(8).latents).float(), atol=1e-2)
    double = facts(32)
    addresses = Addressing(config).addresses(torch.from_numpy(double.keys.astype(np.float32))).numpy().astype(float)
    fitted = addresses @ np.linalg.lstsq(addresses, double.latents.astype(float), rcond=None)[0]
    found = single(config, double)
    assert found.rank == 16
    assert np.allclose(found.values.numpy(), fitted, atol=1e-3)


def test_random_contents_come_back_with_the_predicted_cosine():
    """With 4 K facts in K addresses the mean cosine is near sqrt(1/4), within three standard errors of such a mean."""
    encoded = facts(64)
    found = single(configured(CONFIG, "pinv", 16), encoded)
    assert predicted_cosine(found.rank, 64) == 0.5
    one = cosines(found.values, encoded)
    assert float(one.mean()) == pytest.approx(0.5, abs=3 * float(one.std()) / 8)


def test_nothing_comes_back_better_than_whole():
    """The prediction for fewer facts than addresses is 1."""
    assert predicted_cosine(8, 8) == predicted_cosine(16, 8) == 1.0


def test_the_served_memory_opens_shards_instead_of_blurring():
    """Four times K facts all come back as written, since each shard holds K at most; one memory blurs them."""
    encoded = facts(64)
    config = configured(replace(CONFIG, scope_threshold=0.7), "larimar", 16)
    assert float(cosines(served(config, encoded).values, encoded).min()) > 0.95
    assert float(cosines(single(config, encoded).values, encoded).mean()) < 0.6
