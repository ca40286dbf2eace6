"""Recipes: everything that decides a training run, as YAML that checks itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bitswitch_deploy.errors import CheckpointError, InputFileError, UsageError
from bitswitch_deploy.preprocessing import Preprocessing
from bitswitch_deploy.records import Reader
from bitswitch_deploy.training.batches import Augmentation
from bitswitch_deploy.training.distillation import Distillation
from bitswitch_deploy.training.prepare import PrepareOptions
from bitswitch_deploy.training.schedule import Alrs
from bitswitch_deploy.yaml_file import read_yaml

_READER = Reader(error=InputFileError, do="correct the recipe")
RECIPES = Path(__file__).resolve().parent / "recipes"


Update = Literal["per_width", "accumulated"]
MAX_SEED = 2**63 - 1  # what torch's generators take
Draw = Literal["hasb", "uniform", "random"]
NormKey = Literal["own_width", "transitional"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """One stage of training: Adam with a cosine schedule; rates per mini-batch, `weight_decay` not on scales.

    batch_size: over all replicas.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(f"{name} {value!r} is no whole number of 1 or more")
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf):
            text = f"learning_rate {self.learning_rate}, weight_decay {self.weight_decay}"
            raise ValueError(f"{text}: above 0, 0 or more, and both finite")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(get_args(hint))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JointSettings(StageSettings):
    """The stage at all widths.

    alrs: form of the scales' rate (`schedule`). update: one step for each width of a mini-batch, or one for the sum of
    their gradients, at the rates of the highest width. distillation, teacher_share: see `distillation`.
    average_decay: keep an exponential moving average of weights, scales and statistics, updated after each mini-batch,
        and measure and export that; None: no average.
    """

    alrs: Alrs = "eta"
    update: Update = "per_width"
    distillation: Distillation = "none"
    teacher_share: float = 0.7
    average_decay: float | None = None

    def __post_init__(self) -> None:
        StageSettings.__post_init__(self)  # super() without arguments does not know a class that slots rebuild
        if not 0 < self.teacher_share <= 1:
            raise ValueError(f"teacher_share {self.teacher_share} is not in 0..1")
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ValueError(f"average_decay {self.average_decay} is not between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupernetSettings(JointSettings):
    """The stage that draws a width for each layer, after the joint one (`supernet`).

    draw: how. threshold: sigma_0, the chance that a layer leaves the width of the pass in the last epoch.
    warmup_epochs: first epochs without a draw. Both are for `hasb` and `uniform`; `random` always draws.
    sensitivities: file of traces below the data folder (tools/hessian_costs.py); None measures them; for `hasb` only.
    batchnorm: statistics of a layer's own width, or of the width before and its own (`transitional`, to compare with).
    bit_scheduler: restless layers rest from the lowest width (`bit_schedule`).
    distortion: weight of RFQuant's loss (`distortion`), 0.01 there; for `random` only, which has its reference.
    """

    draw: Draw = "hasb"
    threshold: float = 0.5
    warmup_epochs: int = 10
    sensitivities: str | None = None
    batchnorm: NormKey = "own_width"
    bit_scheduler: bool = False
    distortion: float = 0.0

    def __post_init__(self) -> None:
        JointSettings.__post_init__(self)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} is not in 0..1")
        if self.draw != "random" and not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} is not in 0..{self.epochs - 1}, epochs without the last"
            )
        if self.draw != "hasb" and self.sensitivities is not None:
            raise ValueError(f"sensitivities: draw {self.draw} uses none")
        if self.distortion < 0 or (self.distortion > 0 and self.draw != "random"):
            raise ValueError(f"distortion {self.distortion} with draw {self.draw}: above 0 with random only")
        if self.draw == "random" and self.update != "accumulated":
            raise ValueError(f"draw random with update {self.update}: it has no base width, and needs accumulated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A training run.

    network, dataset: names that `networks` and `datasets` know. seed: of everything random.
    float_checkpoint: file below the data folder that holds the trained float network; None trains it first.
    pretrain: the float stage. joint: the stage at all widths. supernet: the one at mixtures of them; None: none.
    """

    name: str
    network: str
    dataset: str
    seed: int
    float_checkpoint: str | None
    preprocessing: Preprocessing
    augmentation: Augmentation
    quantization: PrepareOptions
    pretrain: StageSettings
    joint: JointSettings
    supernet: SupernetSettings | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed {self.seed} is not in 0..{MAX_SEED}")
        for field, got, allowed in self.preprocessing.faults():
            raise ValueError(f"preprocessing{field}: {got}, allowed are {allowed}")


def load_recipe(name: str) -> Recipe:
    """A bundled recipe by its name, or one by the path of its YAML file.

    Raises:
        UsageError: no bundled recipe has the name.
        InputFileError: the file cannot be read, or has unknown, missing or wrong entries.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if path.parent == RECIPES and not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise UsageError(where="--recipe", got=name, allowed=f"{known}, or the path of a .yaml file", do="use one")
    content = read_yaml(path, source=str(path), refuse=partial(_READER.refusal, is_text=True))
    return _READER.decode(Recipe, content, where=str(path))


def stage_decisions(recipe: Recipe, settings: StageSettings) -> dict[str, str]:
    """What the steps of a stage depend on, as JSON by name, for a checkpoint.

    Left out are its length, which the state itself tells, and the learning rate, which may fall where it diverged; of
    the float stage quantization, of which it knows nothing.
    """
    common = ["seed", "network", "dataset", "preprocessing", "augmentation"]
    if isinstance(settings, JointSettings):
        common.append("quantization")
    whole = asdict(recipe)
    flat: dict[str, Any] = {name: whole[name] for name in common if not isinstance(whole[name], dict)}
    for name in common:
        if isinstance(whole[name], dict):
            flat |= {f"{name}.{key}": value for key, value in whole[name].items()}
    flat |= {key: value for key, value in asdict(settings).items() if key not in ("epochs", "learning_rate")}
    return {name: json.dumps(value) for name, value in flat.items()}


def check_decisions(saved: object, wanted: Mapping[str, str], source: str) -> None:
    """See that a stage goes on as it began; what only one of them names is passed over, as versions differ in it.

    Args:
        saved: what `stage_decisions` gave, from a checkpoint. wanted: the same of this run. source: the file.

    Raises:
        CheckpointError: a decision is another one.
    """
    before = saved if isinstance(saved, Mapping) else {}
    changed = [name for name in wanted if name in before and before[name] != wanted[name]]
    if changed:
        raise CheckpointError(
            where=source,
            got="a run with " + ", ".join(f"{name} {before[name]}" for name in changed),
            allowed=", ".join(f"{name} {wanted[name]}" for name in changed) + ", as recipe and data of this run say",
            do="use the recipe, seed and data that the run was started with, or start again without its state",
        )
