"""Keys to addresses: deterministic, independent of company and threads, faithful to each map's equation."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from memory_actor.addressing import (
    FEATURE_MAPS,
    Addressing,
    FourierMap,
    GaussianMap,
    PseudoInverseMap,
    shake_normal,
    shake_uniform,
)
from memory_actor.types import MemoryConfig
from tests.memory_fixtures import REAL, SMALL, addressing_of, unit_keys

GOLDEN_DRAWS = "0d018e59b443c01d4333b3aea2cbb345eba5829ca3072e2ccc249aa229b48c42"
GOLDEN_UNIFORM = "8b51df3d7be821747dde2c16cb4ecdf5b394763fde08b05606041ddeb9736183"
GOLDEN_ADDRESSES = {
    "fourier": "099d673359ad16394fafbe75ad28136db50842b74025d1886deb7e3056a3e007",
    "gaussian": "95b5a5de1d47a40485a21aad4628683582188400d38f043d5a18cb9ad0154e81",
    "pinv": "ae81cf8d2b698f68a87681d9a0649fac2bcfe36b2759b9935e85b29033d6753a",
}

CPU = torch.device("cpu")
MAPS = sorted(FEATURE_MAPS)


def keys_of(seed: int, count: int, config: MemoryConfig) -> torch.Tensor:
    return torch.from_numpy(unit_keys(seed, count, config).astype(np.float32))


# -- draws ------------------------------------------------------------------------------------------------------


def test_draws_are_golden():
    """The first draws of a seed and the hash of a large matrix never change: every stored address rests on them."""
    # Each draw is a multiple of 2^-10, so one unit in the last place of log or cos cannot change it.
    draws = shake_normal(0, "fourier", 384, 256)
    assert (draws * 1024 == np.round(draws * 1024)).all()
    assert hashlib.sha256(draws.astype("<f8").tobytes()).hexdigest() == GOLDEN_DRAWS
    assert hashlib.sha256(shake_uniform(3, "part:1", 512).tobytes()).hexdigest() == GOLDEN_UNIFORM


def test_draws_are_standard_normal():
    """A hundred thousand draws have the mean, variance and kurtosis of N(0, 1) within five standard errors."""
    draws = shake_normal(7, "reference", 250, 400).ravel()
    n = draws.size
    assert abs(draws.mean()) < 5 / n**0.5
    assert abs(draws.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((draws**4).mean() - 3) < 5 * (96 / n) ** 0.5


def test_an_odd_count_and_each_label_have_draws_of_their_own():
    """Matrices of odd size are filled, and neither label nor seed shares draws with another."""
    assert shake_normal(0, "a", 3, 5).shape == (3, 5)
    assert not np.array_equal(shake_normal(0, "a", 4, 4), shake_normal(0, "b", 4, 4))
    assert not np.array_equal(shake_normal(0, "a", 4, 4), shake_normal(1, "a", 4, 4))


# -- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPS)
def test_addresses_are_golden(name):
    """The addresses of a fixed key set have the same SHA-256 on every platform."""
    config = replace(REAL, feature_map=name)
    keys = shake_normal(1, "keys", 64, 384) / 16  # multiples of 2^-14, of length about 1.2
    addresses = addressing_of(config).addresses(torch.from_numpy(keys))
    assert addresses.dtype == torch.int8
    assert hashlib.sha256(addresses.numpy().tobytes()).hexdigest() == GOLDEN_ADDRESSES[name]


@pytest.mark.parametrize("name", MAPS)
def test_an_address_does_not_depend_on_its_batch(name):
    """Keys addressed together, alone, reversed and on one thread get the same bytes.

    In float32 a few numbers of such a batch differed by one step from those of the keys alone.
    """
    config = replace(REAL, feature_map=name)
    addressing, keys = addressing_of(config), keys_of(2, 200, config)
    together = addressing.addresses(keys)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(addressing.addresses(keys), together)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat([addressing.addresses(key[None]) for key in keys[:60]]), together[:60])
    assert torch.equal(addressing.addresses(keys.flip(0)).flip(0), together)
    assert torch.equal(addressing.addresses(keys.to(torch.float64)), together)


@pytest.mark.parametrize("name", MAPS)
def test_addresses_use_their_range(name):
    """No address of a real-sized memory is zero or overflows; full scale is reached."""
    config = replace(REAL, feature_map=name)
    addresses = addressing_of(config).addresses(keys_of(3, 200, config)).to(torch.int32).abs()
    assert addresses.max() == config.address_scale
    assert addresses.amax(dim=1).min() > config.address_scale // 4


@pytest.mark.parametrize("name", MAPS)
def test_a_smaller_scale_bounds_addresses(name):
    """With address_scale 7 every number of an address lies in -7..7."""
    config = replace(REAL, feature_map=name, address_scale=7)
    assert int(Addressing(config).addresses(keys_of(3, 50, config)).abs().max()) == 7


def test_parts_of_a_fact_are_nearly_orthogonal():
    """The 8 parts of 50 facts overlap by a cosine below 0.42.

    Numbers of a fourier address have mean exp(-1/2) / 2 over both halves and mean square 1/2, so permuted ones meet at
    a cosine of 0.18; 0.42 is more than five standard deviations of 1/sqrt(512) above.
    """
    addressing = addressing_of(REAL)
    for address in addressing.addresses(keys_of(4, 50, REAL)):
        parts = torch.nn.functional.normalize(addressing.parts(address, 8).to(torch.float64), dim=1)
        overlap = (parts @ parts.T - torch.eye(8)).abs().max()
        assert overlap < 0.42
        assert torch.equal(addressing.parts(address, 1)[0], address)


def test_parts_do_not_depend_on_their_number():
    """Part p has one address, however many parts the fact has: a permutation of the first."""
    addressing = addressing_of(SMALL)
    address = addressing.addresses(keys_of(5, 1, SMALL))[0]
    assert torch.equal(addressing.parts(address, 3)[:2], addressing.parts(address, 2))
    for part in addressing.parts(address, 3):
        assert torch.equal(part.sort().values, address.sort().values)


@pytest.mark.parametrize("count", [0, -1, 4])
def test_parts_out_of_range_are_refused(count):
    addressing = addressing_of(SMALL)
    with pytest.raises(ValueError, match="1 to 3 parts"):
        addressing.parts(torch.zeros(32, dtype=torch.int8), count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_map": "magic"}, "choose one of.*fourier"),
        ({"address_size": 31}, "must be even"),
        ({"address_scale": 0}, "1..127"),
        ({"address_scale": 128}, "1..127"),
        ({"feature_map_scale": 0.0}, "must be positive"),
        ({"feature_map_scale": float("nan")}, "must be positive"),
        ({"rows_per_fact_max": 9}, "rows_per_fact_max must be 1..8"),  # would never fit into a shard
        ({"rows_per_fact_max": 0}, "rows_per_fact_max must be 1..8"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Addressing(replace(SMALL, **change))


def test_keys_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"keys must be \(N, 8\)"):
        addressing_of(SMALL).addresses(torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r"keys must be \(N, 8\)"):
        addressing_of(SMALL).addresses(torch.zeros(8))


# -- feature maps against their equations -----------------------------------------------------------------------


def test_fourier_features_approximate_a_gaussian_kernel():
    """phi(k) phi(k') is exp(-scale^2 |k - k'|^2 / 2) within 5 / sqrt(K/2), five standard errors of its K/2 samples.

    Each sample is cos(g (k - k')), of variance at most 1/2 + 1/2.
    """
    config = replace(SMALL, address_size=8192, feature_map_scale=1.5, rows_per_fact_max=1)
    keys = keys_of(6, 30, config).to(torch.float64)
    features = FourierMap(config, CPU)(keys)
    kernel = np.exp(-(1.5**2) / 2 * ((keys[:, None] - keys[None]) ** 2).sum(-1).numpy())
    assert np.abs((features @ features.T).numpy() - kernel).max() < 5 / 4096**0.5
    assert np.allclose(features.square().sum(dim=1).numpy(), 1.0)


def test_pinv_features_are_the_papers():
    """w = k M_ref^+ as numpy computes it, to the 2^-21 sqrt(D) that rounding its inverse costs."""
    config = replace(REAL, feature_map="pinv")
    reference = shake_normal(0, "reference", 512, 384)
    keys = keys_of(7, 20, config).to(torch.float64)
    expected = keys.numpy() @ np.linalg.pinv(reference)
    assert np.abs(PseudoInverseMap(config, CPU)(keys).numpy() - expected).max() < 2.0**-21 * 384**0.5
    # and reading back through M_ref gives the key: k M_ref^+ M_ref = k for K >= D
    assert np.abs(PseudoInverseMap(config, CPU)(keys).numpy() @ reference - keys.numpy()).max() < 1e-3


def gaussian(alpha: float, **change: object) -> tuple[GaussianMap, MemoryConfig]:
    config = replace(SMALL, feature_map="gaussian", feature_map_scale=alpha, **change)
    return GaussianMap(config, CPU), config


def test_gaussian_features_are_the_papers_up_to_a_factor():
    """Divided by their sum, the features are eqs. (7)-(8) of the paper, computed here by a plain loop."""
    phi, config = gaussian(0.7)
    draws = shake_normal(0, "reference", 32, 8)
    rows = (draws / np.linalg.norm(draws, axis=1, keepdims=True)).astype(np.float16).astype(np.float64)
    keys = keys_of(8, 10, config).to(torch.float64)
    for key, features in zip(keys.numpy(), phi(keys).numpy(), strict=True):
        distances = np.array([np.linalg.norm(key - row) for row in rows])
        weights = np.exp(-(distances**2) / (2 * 0.7 * distances.min() ** 2))
        assert np.allclose(features / features.sum(), weights / weights.sum(), rtol=1e-9, atol=0)


def test_gaussian_features_at_a_row_are_one_hot():
    """A key equal to a row of M_ref, where eq. (7) is 0/0, gets the one-hot address and no NaN."""
    phi, config = gaussian(1.0)
    rows = phi._reference.to(torch.float32)
    assert torch.equal(Addressing(config).addresses(rows), 127 * torch.eye(32, dtype=torch.int8))


def test_gaussian_features_become_one_hot_and_uniform_at_the_ends():
    """alpha -> 0 leaves the nearest row alone; alpha -> infinity makes all rows alike."""
    keys = keys_of(9, 20, SMALL)
    narrow = Addressing(gaussian(1e-4)[1]).addresses(keys)
    assert ((narrow == 127).sum(dim=1) == 1).all()
    assert (narrow != 0).sum() < 30
    assert (Addressing(gaussian(1e9)[1]).addresses(keys) == 127).all()
