"""Joint runs on several replicas or alone; each replica writes what each run ends with, OUTPUT.<run>.<replica>.

torchrun --nproc-per-node 2 -m tests.training.replicated OUTPUT JSON      a list of changes of the settings

`nan_at` among the changes: the place of a sample that has no number in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitswitch_deploy.training.batches import Augmentation, Batch, Batches
from bitswitch_deploy.training.checkpoint import save_checkpoint
from bitswitch_deploy.training.evaluation import measure_widths
from bitswitch_deploy.training.prepare import PrepareOptions, prepare
from bitswitch_deploy.training.recipe import JointSettings
from bitswitch_deploy.training.replicas import joined_replicas, replica_count, replica_index
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


class Damaged(Batches):
    """Batches in which one sample is not a number; -1: none."""

    nan_at = -1

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        batch.inputs[batch.indices == self.nan_at] = float("nan")
        return batch


def train(changes: dict[str, Any]) -> dict[str, Any]:
    nan_at = changes.pop("nan_at", -1)
    prepared = prepare(network(), EXAMPLE, PrepareOptions(widths=(8, 4, 2)))
    settings = JointSettings(**{"epochs": 1, "batch_size": 16, "learning_rate": 6e-3, "weight_decay": 1e-4, **changes})
    stage = JointStage(prepared, settings, samples=64)
    augmentation = Augmentation(shift=0)
    batches = Damaged(halves(), preprocessing=PREPROCESSING, augmentation=augmentation, batch_size=16, seed=3)
    batches.nan_at = nan_at
    reached: list[Milestone] = []
    run_stage(stage, batches, RunPlan(start=0, stop=8, total=8, save_every=100), reached.append)
    accuracy = measure_widths(stage.result, (8, 4, 2), halves(n=41, seed=2), PREPROCESSING)
    return {
        "replicas": replica_count(),
        "state": reached[-1].state,
        "losses": reached[-1].losses,
        "top1": {f"w{entry.bits}": entry.value for entry in accuracy},
    }


def main(output: Path, changes: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    with joined_replicas(torch.device("cpu")):
        for number, each in enumerate(changes):
            save_checkpoint(train(each), output.with_name(f"{output.name}.{number}.{replica_index()}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
