"""Keys to addresses: w = quantise(phi(k)), with phi fixed by the bundle and independent of everything ever written.

An address is a function of the key alone. Keys are float16 values and the constants of a map lie on a coarse grid, so
their products and sums are exact in float64: neither the batch a key came in nor the number of threads nor the BLAS
can move an address by one step.

Three feature maps, one per name in `FEATURE_MAPS`:
  fourier   [cos(kG), sin(kG)] sqrt(2/K), G ~ N(0, scale^2): random Fourier features of a Gaussian kernel (default)
  pinv      k M_ref^+, the paper's reference memory with pseudo-inverse addressing (sec. 3, App. E)
  gaussian  the paper's Gaussian filter over the rows of M_ref (eqs. 7-8), up to one factor per key

Dimension legend: N keys, D key size, K addresses.
"""

from __future__ import annotations

import hashlib
import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from memory_actor.types import Float64Array, MemoryConfig

_GRID = 2.0**10  # draws are multiples of 2^-10, so that no platform's log or cos can move them
_INVERSE_GRID = 2.0**20  # and those of a pseudo-inverse of 2^-20, far below one step of an address


def shake_uniform(seed: int, label: str, count: int) -> Float64Array:
    """`count` uniform float64 in (0, 1) from SHAKE-256(seed, label): the same on every platform and library version."""
    stream = hashlib.shake_256(f"larimar:{label}:{seed}".encode()).digest(8 * count)
    bits = np.frombuffer(stream, dtype="<u8") >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def shake_normal(seed: int, label: str, rows: int, columns: int) -> Float64Array:
    """Matrix (rows, columns) of N(0, 1) draws by Box-Muller, rounded to multiples of 2^-10."""
    count = rows * columns
    half = (count + 1) // 2
    uniform = shake_uniform(seed, label, 2 * half)
    radius = np.sqrt(-2.0 * np.log(uniform[:half]))
    angle = 2.0 * math.pi * uniform[half:]
    draws = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    rounded: Float64Array = np.round(draws * _GRID) / _GRID
    return rounded.reshape(rows, columns)


class FeatureMap(Protocol):
    """phi: keys (N, D) float64 -> features (N, K) float64, with `bound` the magnitude that quantises to full scale."""

    bound: float

    def __call__(self, keys: Tensor) -> Tensor: ...


class FourierMap:
    """Random Fourier features: inner products of addresses approach exp(-scale^2 |k - k'|^2 / 2)."""

    def __init__(self, config: MemoryConfig, device: torch.device) -> None:
        half = config.address_size // 2
        draws = shake_normal(config.feature_map_seed, "fourier", config.key_size, half) * config.feature_map_scale
        self._frequencies = torch.tensor(np.round(draws * _GRID) / _GRID, device=device)  # (D, K/2)
        self.bound = math.sqrt(2.0 / config.address_size)

    def __call__(self, keys: Tensor) -> Tensor:
        phase = keys @ self._frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1) * self.bound


class PseudoInverseMap:
    """The paper's addressing through a fixed reference memory: w = k M_ref^+ with M_ref ~ N(0, 1), (K, D)."""

    def __init__(self, config: MemoryConfig, device: torch.device) -> None:
        reference = shake_normal(config.feature_map_seed, "reference", config.address_size, config.key_size)
        inverse = np.round(np.linalg.pinv(reference) * _INVERSE_GRID) / _INVERSE_GRID
        self._inverse = torch.tensor(inverse, device=device)  # (D, K)
        # Four times the root mean square of a weight for a unit key; the rare larger weight saturates.
        self.bound = 4.0 * float(self._inverse.norm()) / math.sqrt(config.key_size * config.address_size)

    def __call__(self, keys: Tensor) -> Tensor:
        weights: Tensor = keys @ self._inverse
        return weights


class GaussianMap:
    """The paper's Gaussian filter, eqs. (7)-(8), unnormalised:

        w_k = exp((sigma^2 - |k - M_ref,k|^2) / (2 alpha sigma^2)).

    sigma is the distance to the nearest row of M_ref; rows are random unit vectors. A key equal to a row has
    sigma = 0, where the equation is 0/0: its limit, the one-hot address, is used. The paper's weights are these
    divided by their sum. As integers those would vanish wherever the filter is wide (1/K rounds to 0), so the
    largest weight is 1 here instead; a common factor of a fact's weights does not change what is recalled.
    """

    def __init__(self, config: MemoryConfig, device: torch.device) -> None:
        draws = shake_normal(config.feature_map_seed, "reference", config.address_size, config.key_size)
        rows = draws / np.linalg.norm(draws, axis=1, keepdims=True)
        self._reference = torch.tensor(rows.astype(np.float16), dtype=torch.float64, device=device)  # (K, D)
        self._alpha = config.feature_map_scale
        self.bound = 1.0

    def __call__(self, keys: Tensor) -> Tensor:
        reference = self._reference
        lengths = keys.square().sum(dim=1, keepdim=True) + reference.square().sum(dim=1)
        squared = lengths - 2.0 * keys @ reference.T  # (N, K)
        nearest = squared.min(dim=1, keepdim=True).values
        return ((nearest - squared) / (2.0 * self._alpha * nearest.clamp_min(1e-12))).exp()


FEATURE_MAPS: dict[str, type[FourierMap] | type[PseudoInverseMap] | type[GaussianMap]] = {
    "fourier": FourierMap,
    "pinv": PseudoInverseMap,
    "gaussian": GaussianMap,
}


class Addressing:
    """The address of each part of a fact, as int8. One instance per memory actor, shared by its tenants."""

    def __init__(self, config: MemoryConfig, device: torch.device | str = "cpu") -> None:
        if config.feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature map {config.feature_map!r} is unknown; choose one of {sorted(FEATURE_MAPS)}")
        if config.address_size % 2:
            raise ValueError(f"address_size must be even, got {config.address_size}")
        if not 1 <= config.address_scale <= 127:
            raise ValueError(f"address_scale must be 1..127 to fit int8, got {config.address_scale}")
        if not config.feature_map_scale > 0:
            raise ValueError(f"feature_map_scale must be positive, got {config.feature_map_scale}")
        if not 1 <= config.rows_per_fact_max <= config.shard_rows_max:
            raise ValueError(f"rows_per_fact_max must be 1..{config.shard_rows_max}, got {config.rows_per_fact_max}")
        self._config = config
        self._device = torch.device(device)
        self._map: FeatureMap = FEATURE_MAPS[config.feature_map](config, self._device)
        # Part p of a long fact is addressed by a fixed permutation of the fact's address: nearly orthogonal to the
        # other parts under any feature map (sign flips would keep one-hot addresses collinear).
        order = [np.arange(config.address_size)] + [
            np.argsort(shake_uniform(config.feature_map_seed, f"part:{part}", config.address_size), kind="stable")
            for part in range(1, config.rows_per_fact_max)
        ]
        self._parts = torch.tensor(np.stack(order), device=self._device)  # (P_max, K)

    def addresses(self, keys: Tensor) -> Tensor:
        """Keys (N, D), unit norm, float16 values of any dtype, to the int8 addresses (N, K) of their first parts."""
        config = self._config
        if keys.ndim != 2 or keys.shape[1] != config.key_size:
            raise ValueError(f"keys must be (N, {config.key_size}), got {tuple(keys.shape)}")
        features = self._map(keys.to(self._device, torch.float64))
        scaled = (features * (config.address_scale / self._map.bound)).round()
        return scaled.clamp(-config.address_scale, config.address_scale).to(torch.int8)

    def parts(self, address: Tensor, count: int) -> Tensor:
        """The addresses (P, K) of a fact's `count` parts, from the address (K,) of its first part."""
        if not 1 <= count <= self._config.rows_per_fact_max:
            raise ValueError(f"a fact has 1 to {self._config.rows_per_fact_max} parts, got {count}")
        if count == 1:  # nearly every fact; the first permutation is the identity
            return address.unsqueeze(0)
        return address[self._parts[:count]]
