"""The evaluation's workers under real Ray: answers in order, each asked once, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil

SCRIPT = """
import json, sys
from pathlib import Path
from rich.console import Console
from jobs.evaluation.answer_pool import AnswerPool
from jobs.evaluation.asks import Ask
from workers.bundle import Bundle

asks = [Ask(f"The number {number} is", candidates=("even", "odd"), max_tokens=4) for number in range(40)]
with AnswerPool(Bundle.open(sys.argv[1]), Path(sys.argv[2]), Console(), workers=1, device="cpu") as pool:
    answers = pool.answer([*asks, *reversed(asks)], "Numbers")
assert answers[:40] == answers[:39:-1]
print(json.dumps({"texts": [answer.text for answer in answers[:40]], "ray": "ray" in sys.modules}))
"""


def run(bundle, store: Path, meanwhile=lambda process: None) -> dict:
    arguments = [sys.executable, "-c", SCRIPT, str(bundle.folder), str(store)]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    )
    threading.Thread(target=meanwhile, args=(psutil.Process(process.pid),)).start()
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])


def test_a_killed_worker_costs_no_answer_and_a_second_run_asks_nothing(bundle, codec, tmp_path):
    killed = threading.Event()

    def kill_the_worker(driver: psutil.Process) -> None:
        """End the first process that is seen at an ask."""
        while driver.is_running() and not killed.wait(0.02):
            for child in driver.children(recursive=True):
                try:
                    if "AnswerWorker.answer" in "".join(child.cmdline()):
                        child.kill()
                        killed.set()
                except psutil.NoSuchProcess:
                    continue

    store = tmp_path / "answers.jsonl"
    first = run(bundle, store, kill_the_worker)
    assert killed.is_set()
    assert len(store.read_bytes().splitlines()) == 40  # eighty asks, forty different ones
    second = run(bundle, store)
    assert second == {"texts": first["texts"], "ray": False}
