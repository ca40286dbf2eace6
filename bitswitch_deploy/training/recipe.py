"""Recipes: everything that decides a training run, as YAML that checks itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from bitswitch_deploy.errors import InputFileError, UsageError
from bitswitch_deploy.master.spec import Preprocessing
from bitswitch_deploy.records import Reader
from bitswitch_deploy.training.batches import Augmentation
from bitswitch_deploy.training.prepare import PrepareOptions

_READER = Reader(error=InputFileError, do="correct the recipe")
RECIPES = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """One stage of training: Adam with a cosine schedule; rates per mini-batch, `weight_decay` not on scales."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A training run.

    network, dataset: names that `networks` and `datasets` know. seed: of everything random.
    float_checkpoint: file below the data folder that holds the trained float network; None trains it first.
    pretrain: the float stage. joint: the stage at all widths.
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
    joint: StageSettings


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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise InputFileError(
            where=str(path), got=f"cannot be read: {exc}", allowed="a YAML file", do="check the path and the file"
        ) from exc
    return _READER.decode(Recipe, content, where=str(path))
