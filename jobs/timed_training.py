"""A training run that ends with its CPU time: steps that depend on nothing but the seed, checkpoints, resuming."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from jobs.company import Company


class Plan(Protocol):
    """What a run needs to know of its plan."""

    @property
    def seed(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def minutes(self) -> float:
        """Of two cores: training ends after twice as much CPU time."""
        ...

    @property
    def warmup_steps(self) -> int: ...


class TimedTrainer(ABC):
    """Parameters in training. `step` is deterministic in (seed, number of the step, rank): a run can be resumed."""

    def __init__(
        self,
        plan: Plan,
        groups: Mapping[float, Mapping[str, torch.nn.Parameter]],
        company: Company | None = None,
    ) -> None:
        """`groups` are the trained parameters by name, by their learning rate at its peak.

        `company` are the processes that train the same parameters, each on batches of its own; None: there are none.
        """
        self._run_plan = plan
        self._company = company or Company()
        self.steps_done = 0
        self.cpu_s = 0.0
        self._parameters = {name: one for group in groups.values() for name, one in group.items()}
        self._optimizer = torch.optim.AdamW(
            [{"params": list(group.values()), "lr": peak, "peak": peak} for peak, group in groups.items()],
            weight_decay=0.01,
        )

    @abstractmethod
    def _loss(self, rng: random.Random) -> Tensor:
        """The loss of one batch that is drawn with `rng`."""

    @abstractmethod
    def finish(self) -> None:
        """Make the weights what is shipped; called once, after the last step."""

    @property
    def progress(self) -> float:
        """Share of the run that is done, by steps or by CPU time, whichever is further."""
        return max(self.steps_done / self._run_plan.steps, self.cpu_s / (120 * self._run_plan.minutes))

    def run(self, listen: Callable[[float, float], None] = lambda _progress, _loss: None) -> Iterator[int]:
        """Train to the end; yields the number of steps after each one."""
        while self.progress < 1:
            loss = self.step()
            listen(min(1.0, self.progress), loss)
            yield self.steps_done

    def step(self) -> float:
        """One batch, forward and backward. Returns its loss."""
        started = time.process_time()
        drawn = f"{self._run_plan.seed}/{self.steps_done}" + (f"/{self._company.rank}" if self._company.rank else "")
        loss = self._loss(random.Random(drawn))  # noqa: S311 - reproducible
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._company.average([one.grad for one in self._parameters.values() if one.grad is not None])
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        warm = min(1.0, (self.steps_done + 1) / self._run_plan.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * min(warm, max(0.02, 1.0 - self.progress))
        self._optimizer.step()
        self.steps_done += 1
        # All go by one clock, or they would learn at different rates and end at different steps.
        self.cpu_s = self._company.of_first(self.cpu_s + time.process_time() - started)
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """A checkpoint to resume from."""
        state: dict[str, Any] = {
            "steps_done": self.steps_done,
            "cpu_s": self.cpu_s,
            "optimizer": self._optimizer.state_dict(),
            "trained": {name: parameter.detach() for name, parameter in self._parameters.items()},
        }
        scratch = path.with_suffix(".new")
        torch.save(state, scratch)
        scratch.replace(path)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same plan."""
        state = torch.load(path, weights_only=True)
        self.steps_done, self.cpu_s = state["steps_done"], state["cpu_s"]
        self._optimizer.load_state_dict(state["optimizer"])
        self.begin_with(state["trained"])

    def begin_with(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what was trained before, by name, and nothing else of that run.

        Raises: ValueError if names or shapes are not those of this run.
        """
        shapes = {name: tuple(one.shape) for name, one in self._parameters.items()}
        found = {name: tuple(one.shape) for name, one in tensors.items()}
        if shapes != found:
            name = min(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
            raise ValueError(
                f"tensor {name} is {shapes.get(name)} in this run and {found.get(name)} in what it starts from; "
                "None is absent. Start from a codec of the same models, slots, latent size and rank"
            )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[name])


@contextmanager
def precision(bfloat16: bool, device: str = "cpu") -> Iterator[None]:
    """Matrix products in bfloat16, if so wished; weights stay float32."""
    with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        yield
