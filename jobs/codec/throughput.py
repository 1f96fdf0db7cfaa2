"""How much of a device's matmul rate a training step uses: counted operations over time, beside bare products."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.codec.training import CodecTrainer
from workers.runtime import resolve_device

_SIZE, _SMALL = 2048, 256  # of the bare products
_PRODUCTS, _STEPS = 9, 5


def throughput(trainer: CodecTrainer) -> dict[str, float]:
    """Of joint steps: operations, seconds, and the share of the matmul rate, which is measured before and after.

    Operations are those of matrix products and attention, forward and backward. The trainer is spoilt by it: its steps
    count.
    """
    plan = trainer.plan
    trainer.plan = replace(plan, spelling_share=0.0)
    try:
        trainer.step()  # the first one allocates
        with FlopCounterMode(display=False) as counter:
            trainer.step()
        rates, seconds = [matmul_rate(trainer)], []
        for _ in range(_STEPS):
            started = time.perf_counter()
            trainer.step()
            _wait(trainer.device)
            seconds.append(time.perf_counter() - started)
        rates.append(matmul_rate(trainer))
    finally:
        trainer.plan = plan
    flops, second, rate = counter.get_total_flops(), statistics.median(seconds), statistics.mean(rates)
    return {
        "flops_per_step": float(flops),
        "seconds_per_step": round(second, 3),
        "matmul_flops_per_s": round(rate),
        "share": round(flops / second / rate, 3),
    }


def matmul_rate(trainer: CodecTrainer) -> float:
    """Operations per second of square products in the precision of training, median of several."""
    dtype = torch.bfloat16 if trainer.plan.bfloat16 else torch.float32
    return _rate(_SIZE, dtype, trainer.device)


def bfloat16_pays() -> bool:
    """Whether products in bfloat16 are clearly faster here than in float32: on a GPU if there is one.

    Measured, since it decides between a third of the time and hundreds of times of it: a CPU that has no instructions
    for bfloat16 adds number by number.
    """
    device = resolve_device("auto")
    half, full = (_rate(_SMALL, dtype, device) for dtype in (torch.bfloat16, torch.float32))
    return half > 1.2 * full


def _rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    seconds = []
    for _ in range(_PRODUCTS + 2):
        started = time.perf_counter()
        a @ b
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[2:])


def _wait(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
