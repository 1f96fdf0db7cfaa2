"""How much of a device's matmul rate a training step uses: counted operations over time, beside bare products."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.codec.training import CodecTrainer

_SIZE = 2048  # of the bare products
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
            trainer.wait()
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
    a, b = torch.randn(2, _SIZE, _SIZE, device=trainer.device).to(dtype)
    seconds = []
    for _ in range(_PRODUCTS + 2):
        started = time.perf_counter()
        a @ b
        trainer.wait()
        seconds.append(time.perf_counter() - started)
    return 2 * _SIZE**3 / statistics.median(seconds[2:])
