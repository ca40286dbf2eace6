"""Joint runs on several replicas or alone; each replica writes what each run ends with, OUTPUT.<run>.<replica>.

torchrun --nproc-per-node 2 -m tests.training.replicated OUTPUT JSON      a list of changes of the settings

`nan_at` among the changes: the place of a sample that has no number in it. `fast`: compiled steps, but no machine code,
as no C compiler has to be there. `keeps`: the network has statistics of its own, over all replicas or its `share`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.training.batches import Augmentation, Batch, Batches
from bitswitch_deploy.training.checkpoint import save_checkpoint
from bitswitch_deploy.training.evaluation import measure_widths
from bitswitch_deploy.training.execution import Execution
from bitswitch_deploy.training.prepare import PrepareOptions, prepare
from bitswitch_deploy.training.quantizers import ActivationQuantizer
from bitswitch_deploy.training.recipe import JointSettings
from bitswitch_deploy.training.replicas import averaged, joined_replicas, replica_count, replica_index
from bitswitch_deploy.training.stages import JointStage
from bitswitch_deploy.training.trainer import Milestone, RunPlan, run_stage
from tests.training.tiny_network import EXAMPLE, PREPROCESSING, halves


def network() -> nn.Sequential:
    """Without parameters that a BatchNorm cancels: their gradient is rounding noise, which Adam makes steps of."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6, momentum=0.5),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6, momentum=0.5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 8, bias=False),
        nn.BatchNorm1d(8, momentum=0.5),
        nn.ReLU(),
        nn.Linear(8, 2),
    )


class Keeping(nn.Module):
    """Subtracts a running mean of its own."""

    mean: Tensor

    def __init__(self, keeps: str) -> None:
        super().__init__()
        self.keeps = keeps
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean = x.detach().mean()
            self.mean.lerp_(averaged(mean) if self.keeps == "all" else mean, 0.1)
        return x - self.mean


class Damaged(Batches):
    """Batches in which one sample is not a number; -1: none."""

    nan_at = -1

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        batch.inputs[batch.indices == self.nan_at] = float("nan")
        return batch


def without_machine_code(module: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(module, backend="aot_eager"))


def first_batches() -> dict[str, Any]:
    """What a quantizer makes of first batches of which only the last replica sees the negative number."""
    quantizer = ActivationQuantizer(name="layer", widths=(8,), container="int8")
    quantizer(share(1.0, 2.0, -1.0, 2.0), 8)
    twice = ActivationQuantizer(name="layer", widths=(8,), container="int8", calls=2)
    twice(share(1.0, 2.0, 3.0, 4.0), 8)
    try:
        twice(share(1.0, 2.0, -1.0, 2.0), 8)
    except UsageError:
        return {"signed": quantizer.is_signed, "scales": quantizer.exported_scales(), "second call": "refused"}
    return {"signed": quantizer.is_signed, "scales": quantizer.exported_scales(), "second call": "clipped"}


def share(*values: float) -> Tensor:
    """What this replica sees of a batch."""
    return torch.tensor(values).chunk(replica_count())[replica_index()]


def train(changes: dict[str, Any]) -> dict[str, Any]:
    nan_at, fast, keeps = changes.pop("nan_at", -1), changes.pop("fast", False), changes.pop("keeps", None)
    model = network() if keeps is None else nn.Sequential(Keeping(keeps), *network())
    prepared = prepare(model, EXAMPLE, PrepareOptions(widths=(8, 4, 2)), check_export=False)
    settings = JointSettings(**{"epochs": 1, "batch_size": 16, "learning_rate": 6e-3, "weight_decay": 1e-4, **changes})
    stage = JointStage(prepared, settings, samples=64, execution=Execution(fast=fast))
    augmentation = Augmentation(shift=0)
    batches = Damaged(halves(), preprocessing=PREPROCESSING, augmentation=augmentation, batch_size=16, seed=3)
    batches.nan_at = nan_at
    reached: list[Milestone] = []
    run_stage(stage, batches, RunPlan(start=0, stop=8, total=8, save_every=100), reached.append)
    draw = torch.rand(()).item()  # from the generator that the last step seeded
    accuracy = measure_widths(stage.result, (8, 4, 2), halves(n=41, seed=2), PREPROCESSING)
    return {
        "replicas": replica_count(),
        "draw": draw,
        "first batches": first_batches(),
        "state": reached[-1].state,
        "losses": reached[-1].losses,
        "top1": {f"w{entry.bits}": entry.value for entry in accuracy},
    }


def main(output: Path, changes: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    compiling = patch("bitswitch_deploy.training.execution.compiled", without_machine_code)
    with compiling, joined_replicas(torch.device("cpu")):
        for number, each in enumerate(changes):
            save_checkpoint(train(each), output.with_name(f"{output.name}.{number}.{replica_index()}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
