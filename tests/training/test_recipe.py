from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bitswitch_deploy.errors import InputFileError, UsageError
from bitswitch_deploy.tensors import Rounding
from bitswitch_deploy.training.networks import NETWORKS
from bitswitch_deploy.training.recipe import RECIPES, JointSettings, load_recipe

SUPERNET = {"epochs": 4, "batch_size": 1, "learning_rate": 0.1, "weight_decay": 0.0, "warmup_epochs": 0}
JOINT = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "weight_decay": 0.0}


def edited(tmp_path: Path, **changes: object) -> str:
    content = yaml.safe_load((RECIPES / "digits.yaml").read_text(encoding="utf-8"))
    content.update(changes)
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v != "DROP"}), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_bundled_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.network in NETWORKS
    # that of the paper, twice for a fifth of its epochs, and less where weights are trained already
    own_rate = {
        "cifar10-resnet20-40": 1e-3,
        "cifar10-resnet20-widened": 1.5e-4,
        "cifar10-resnet20-hasb": 1.5e-4,
    }
    assert recipe.joint.learning_rate == own_rate.get(name, 5e-4)
    assert recipe.joint.weight_decay == 5e-5
    assert recipe.quantization.widths == ((4, 3, 2) if name.endswith("-432") else (8, 6, 4, 2))
    assert (recipe.joint.alrs, recipe.joint.update) == ("eta", "per_width")
    assert recipe.joint.distillation == ("in_batch" if name.endswith("-distilled") else "none")
    assert recipe.quantization.rounding is Rounding.HALF_UP


def test_a_supernet_is_there_only_when_a_recipe_asks_for_it(tmp_path: Path) -> None:
    assert load_recipe("digits").supernet is None
    loaded = load_recipe(edited(tmp_path, supernet={**SUPERNET, "sensitivities": "traces.json"})).supernet
    assert loaded is not None
    assert (loaded.draw, loaded.threshold, loaded.batchnorm) == ("hasb", 0.5, "own_width")


def test_a_recipe_by_path(tmp_path: Path) -> None:
    assert load_recipe(edited(tmp_path, seed=7)).seed == 7


def test_unknown_name_lists_the_bundled_ones() -> None:
    with pytest.raises(UsageError, match=r"--recipe: mnist\n  allowed: cifar10-resnet20, .*digits, .*, or the path"):
        load_recipe("mnist")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sead": 1}, "unknown key: 'sead'"),
        ({"joint": {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "weight_decay": 0.0, "warmup": 3}}, "'warmup'"),
        ({"joint": {**JOINT, "epochs": 0}}, "epochs 0 is no whole number of 1 or more"),
        ({"joint": {**JOINT, "weight_decay": -1.0}}, "weight_decay -1.0: above 0, 0 or more"),
        (
            {"joint": {**JOINT, "alrs": "bracked"}},
            "joint.alrs: 'bracked'\n  allowed: none, eta, bracket, bracket_printed",
        ),
        ({"joint": {**JOINT, "update": "both"}}, "joint.update: 'both'\n  allowed: per_width, accumulated"),
        ({"joint": {**JOINT, "distillation": "kd"}}, "joint.distillation: 'kd'\n  allowed: none, ps_kd, in_batch"),
        ({"joint": {**JOINT, "teacher_share": 1.5}}, "teacher_share 1.5 is not in 0..1"),
        ({"joint": {**JOINT, "average_decay": 1}}, "average_decay 1.0 is not between 0 and 1"),
        ({"supernet": {**SUPERNET, "threshold": 1.5}}, "threshold 1.5 is not in 0..1"),
        ({"supernet": {**SUPERNET, "threshold": -0.1}}, "threshold -0.1 is not in 0..1"),
        ({"supernet": {**SUPERNET, "warmup_epochs": 4}}, "warmup_epochs 4 is not in 0..3"),
        ({"supernet": {**SUPERNET, "draw": "greedy"}}, "supernet.draw: 'greedy'\n  allowed: hasb, uniform, random"),
        ({"supernet": {**SUPERNET, "draw": "random"}}, "draw random with update per_width"),
        ({"supernet": {**SUPERNET, "distortion": 0.1}}, "distortion 0.1 with draw hasb"),
        ({"supernet": {**SUPERNET, "draw": "uniform", "sensitivities": "t.json"}}, "draw uniform uses none"),
        ({"supernet": {**SUPERNET, "batchnorm": "both"}}, "allowed: own_width, transitional"),
        ({"supernet": SUPERNET, "joint": "DROP"}, "no key joint"),
        ({"augmentation": {"shift": -1}}, "shift -1"),
        ({"augmentation": {"min_area": 0}}, "min_area 0"),
        ({"seed": "DROP"}, "no key seed"),
        ({"seed": "one"}, "seed: 'one'\n  allowed: a whole number"),
        ({"seed": True}, "seed: True\n  allowed: a whole number"),
        ({"quantization": {"rounding": "floor"}}, "quantization.rounding: 'floor'\n  allowed: half_up, half_even"),
        ({"quantization": {"widths": [2, 8]}}, "highest first"),
        ({"preprocessing": None}, "preprocessing: None"),
    ],
)
def test_wrong_entries_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises((InputFileError, UsageError), match=message):
        load_recipe(edited(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"update": "perwidth"}, "update 'perwidth' is none of per_width, accumulated"),
        ({"alrs": "etta"}, "alrs 'etta' is none of none, eta, "),
        ({"distillation": "ps-kd"}, "distillation 'ps-kd' is none of none, ps_kd, in_batch"),
        ({"epochs": 2.5}, "epochs 2.5 is no whole number"),
        ({"learning_rate": float("nan")}, "learning_rate nan, weight_decay 0.0: above 0"),
        ({"learning_rate": float("inf")}, "learning_rate inf"),
    ],
)
def test_settings_of_python_are_checked_like_those_of_a_file(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "weight_decay": 0.0}
    assert JointSettings(**good).alrs == "eta"
    with pytest.raises(ValueError, match=message):
        JointSettings(**{**good, **changes})


def test_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(InputFileError, match=r"broken\.yaml(:\d+)?: not YAML"):
        load_recipe(str(path))
    with pytest.raises(InputFileError, match=r"absent\.yaml: there is no such file"):
        load_recipe(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(ValueError, match=r"seed -?\d+ is not in 0\.\."):
        replace(load_recipe("digits"), seed=seed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": [0.5, 0.5]}, "2 means and 1 standard deviations, allowed are 1 of each for colour L"),
        ({"std": [0.0]}, "allowed are positive numbers in float32"),
        ({"size": [8, -8]}, "preprocessing: size: .*allowed are height and width of at least 1"),
        ({"centre_share": 2.0}, "centre_share: 2.0, allowed are above 0, at most 1"),
    ],
)
def test_a_preprocessing_that_no_master_takes_is_refused_before_training(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    steps = yaml.safe_load((RECIPES / "digits.yaml").read_text(encoding="utf-8"))["preprocessing"]
    with pytest.raises(InputFileError, match=message):
        load_recipe(edited(tmp_path, preprocessing={**steps, **change}))
