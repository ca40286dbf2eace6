"""The ImageNet recipes, cut to one step on a tiny image folder: from images to a master."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bitswitch_deploy.errors import DataError
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.training.checkpoint import save_checkpoint
from bitswitch_deploy.training.networks import build_network
from bitswitch_deploy.training.recipe import Recipe, load_recipe
from bitswitch_deploy.training.run_session import run_session
from bitswitch_deploy.training.session import Session


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


def two_classes(name: str) -> nn.Module:
    """The network of a recipe with outputs for the two class folders."""
    network = build_network(name)
    head = network.classifier if name == "imagenet-mobilenetv2" else network
    assert isinstance(head, nn.Module)
    place = "1" if head is not network else "fc"
    setattr(head, place, nn.Linear(head.get_submodule(place).in_features, 2))  # type: ignore[arg-type]
    return network


@pytest.fixture
def matching_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitswitch_deploy.training.run_session.build_network", two_classes)


def small(name: str) -> Recipe:
    recipe = load_recipe(f"imagenet-{name}")
    return replace(
        recipe,
        preprocessing=replace(recipe.preprocessing, size=(32, 32)),
        pretrain=replace(recipe.pretrain, epochs=1, batch_size=8),
        joint=replace(recipe.joint, epochs=1, batch_size=8),
    )


@pytest.mark.usefixtures("matching_head")
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv2"])
def test_one_step_from_a_checkpoint(tmp_path: Path, data: Path, name: str) -> None:
    torch.manual_seed(0)
    checkpoint = tmp_path / "float.pth"
    save_checkpoint(two_classes(f"imagenet-{name}").state_dict(), checkpoint)
    trained = run_session(Session(recipe=small(name), data=data, state=tmp_path / "state", checkpoint=checkpoint))
    spec = trained.master.spec
    assert {(entry.dataset, entry.n) for entry in spec.accuracy} == {("imagenet", 8)}
    pinned = [layer.name for layer in spec.layers if layer.pinned]
    assert pinned == (["features.0.0", "classifier.1"] if name == "mobilenetv2" else ["conv1", "fc"])
    assert sum(not layer.pinned for layer in spec.layers) == {"resnet18": 19, "resnet50": 52, "mobilenetv2": 51}[name]
    canonical_graph(trained.master, WidthAssignment(default=2))


def test_a_folder_of_some_of_the_classes_is_refused(tmp_path: Path, data: Path) -> None:
    words = "imagenet: class folders: 2\n  allowed: 1000, as the network has 1000 outputs"
    with pytest.raises(DataError, match=words):
        run_session(Session(recipe=small("resnet18"), data=data, state=tmp_path / "state"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("matching_head")
def test_a_damaged_image_of_the_test_split_is_said_before_the_training(tmp_path: Path, data: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    broken = tmp_path / "data" / "imagenet" / "val" / "n01443537" / "3.JPEG"
    broken.write_bytes(broken.read_bytes()[:100])
    session = Session(recipe=small("resnet18"), data=tmp_path / "data", state=tmp_path / "state")
    with pytest.raises(DataError, match=r"3\.JPEG: not readable as an image"):
        run_session(session)
    assert not session.state.exists()


@pytest.mark.usefixtures("matching_head")
def test_without_the_checkpoint_the_float_network_comes_first(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    run_session(Session(recipe=small("resnet18"), data=data, state=tmp_path / "state", log=log))
    assert "no models/resnet18-f37072fd.pth in" in capsys.readouterr().err
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["float_checkpoint"] is None
    assert [line["stage"] for line in lines if line["event"] == "epoch"] == ["float", "joint"]
