"""The ImageNet recipes, cut to one step on a tiny image folder: from images to a master."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.checkpoint import save_checkpoint
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.recipe import Recipe, load_recipe
from bitswitch_deploy.training.session import Session, run_session


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            (folder / "imagenet" / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "imagenet" / split / name / f"{number}.JPEG")
    return folder


def small(name: str) -> Recipe:
    recipe = load_recipe(f"imagenet-{name}")
    return replace(
        recipe,
        preprocessing=replace(recipe.preprocessing, size=(32, 32)),
        pretrain=replace(recipe.pretrain, epochs=1, batch_size=8),
        joint=replace(recipe.joint, epochs=1, batch_size=8),
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv2"])
def test_one_step_from_a_checkpoint(tmp_path: Path, data: Path, name: str) -> None:
    torch.manual_seed(0)
    checkpoint = tmp_path / "float.pth"
    save_checkpoint(build_network(f"imagenet-{name}").state_dict(), checkpoint)
    trained = run_session(Session(recipe=small(name), data=data, state=tmp_path / "state", checkpoint=checkpoint))
    spec = trained.master.spec
    assert {(entry.dataset, entry.n) for entry in spec.accuracy} == {("imagenet", 8)}
    pinned = [layer.name for layer in spec.layers if layer.pinned]
    assert pinned == (["features.0.0", "classifier.1"] if name == "mobilenetv2" else ["conv1", "fc"])
    assert sum(not layer.pinned for layer in spec.layers) == {"resnet18": 19, "resnet50": 52, "mobilenetv2": 51}[name]
    canonical_graph(trained.master, WidthAssignment(default=2))


def test_without_the_checkpoint_the_float_network_comes_first(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    run_session(Session(recipe=small("resnet18"), data=data, state=tmp_path / "state", log=log))
    assert "no models/resnet18-f37072fd.pth in" in capsys.readouterr().err
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["float_checkpoint"] is None
    assert [line["stage"] for line in lines if line["event"] == "epoch"] == ["float", "joint"]
