"""A codec's training under real Ray: two processes, one of them killed, and the curve of an undisturbed run."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from jobs.codec.models import CodecRun
from jobs.codec.rows import RowReader
from jobs.codec.sentences import Sentence
from jobs.codec.train_loop import HELD_OUT, shares
from jobs.codec.training import CodecPlan
from jobs.company import Company
from tests.tiny_bert import tiny_bert
from tests.tiny_llama import tiny_llama
from workers.latent_model import LatentPlan
from workers.slot_reader import AdapterPlan

SCRIPT = """
import json, os, pickle, signal, sys
from pathlib import Path
from jobs.codec.ray_training import own_ray, train

run, sentences = pickle.loads(Path(sys.argv[1]).read_bytes())
killed, starts = [], []

def kill_one(board):
    starts.append(board.starts)
    if not killed and board.latest[0] >= 5:
        killed.append(board.pids[1])
        os.kill(board.pids[1], signal.SIGKILL)

with own_ray(None, 4):
    trained = train(run, sentences, Path(sys.argv[1]).parent, workers=2, report_steps=4, watch=kill_one)
print(json.dumps({"curve": trained.curve, "killed": len(killed), "starts": max(starts)}))
"""


@pytest.fixture
def bundle(tmp_path) -> Path:
    from workers.bundle import materialise_bundle

    (tmp_path / "encoder").mkdir()
    encoder, decoder = tiny_bert(tmp_path / "encoder"), tiny_llama(tmp_path / "decoder")
    return materialise_bundle(tmp_path / "bundle", encoder=str(encoder), decoder=str(decoder)).folder


def texts() -> list[Sentence]:
    rng = random.Random(0)
    found = [Sentence("".join(rng.choices("abcdefgh ", k=rng.randint(4, 8))), "text", "text") for _ in range(60)]
    return found + [Sentence(f"held {number:02d}", "creak-dev", "x") for number in range(20)]


class OneOfTwo(Company):
    """Two threads in the place of two processes, with the means taken here."""

    meeting = threading.Barrier(2)
    brought: ClassVar[dict[int, list[torch.Tensor]]] = {}

    def __init__(self, rank: int) -> None:
        self._rank = rank

    @property
    def rank(self) -> int:
        return self._rank

    def average(self, tensors):
        self.brought[self.rank] = [tensor.clone() for tensor in tensors]
        self.meeting.wait()
        for tensor, one, other in zip(tensors, self.brought[0], self.brought[1], strict=True):
            tensor.copy_((one + other) / 2)
        self.meeting.wait()


def undisturbed(run: CodecRun) -> list[dict]:
    """The same training without Ray and without torch.distributed."""
    read = RowReader.of(run.bundle, 8)
    rows = [read([one.text for one in texts() if one.validation is out]) for out in (False, True)]
    looked_at = random.Random(1).sample(rows[1], min(HELD_OUT, len(rows[1])))
    trainers = [run.trainer(rows[0], OneOfTwo(rank)) for rank in (0, 1)]
    curve: list[dict] = []

    def steps(rank: int) -> None:
        for number in range(run.plan.steps):
            losses.append(trainers[rank].step()) if rank == 0 else trainers[rank].step()
            if number % 4 == 3 and rank == 0:
                curve.append({"loss": sum(losses[-4:]) / 4} | shares(trainers[0], looked_at))

    losses: list[float] = []
    threads = [threading.Thread(target=steps, args=(rank,)) for rank in (0, 1)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    return curve


def test_a_killed_process_changes_nothing_but_the_time(bundle, tmp_path):
    """All start again from the last checkpoint: the same losses and shares as in a run that nothing happened to."""
    plan = CodecPlan(steps=12, minutes=1e6, episode=4, episodes=1, spelling_episodes=2, warmup_steps=2, bfloat16=False)
    shape = LatentPlan(latent_size=64, slots=8, attention_heads=2, width=32)
    run = CodecRun(str(bundle), shape, AdapterPlan(rank=2), plan, device="cpu")
    (tmp_path / "run.pickle").write_bytes(pickle.dumps((run, texts())))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run.pickle")],
        check=False, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["killed"], found["starts"]) == (1, 2)
    assert [point["step"] for point in found["curve"]] == [4, 8, 12]
    expected = undisturbed(run)
    for name in ("loss", "token", "exact", "spelled"):
        values = [point[name] for point in expected]
        assert [point[name] for point in found["curve"]] == pytest.approx(values, abs=2e-3), name
