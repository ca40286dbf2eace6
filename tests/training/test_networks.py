from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bitswitch_deploy.errors import UsageError
from bitswitch_deploy.training.checkpoint import import_checkpoint
from bitswitch_deploy.training.datasets import ImageSet, load_cifar10
from bitswitch_deploy.training.evaluation import top1
from bitswitch_deploy.training.networks import PadShortcut, build_network
from bitswitch_deploy.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]


def test_pad_shortcut_takes_every_second_pixel_and_pads_channels() -> None:
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4)
    y = PadShortcut(2, 4)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, 0].any()
    assert not y[:, 3].any()


@pytest.mark.parametrize(
    ("name", "shape", "parameters"), [("digits-resnet", (1, 8, 8), 38_266), ("cifar10-resnet20", (3, 32, 32), 269_722)]
)
def test_shapes_and_sizes(name: str, shape: tuple[int, ...], parameters: int) -> None:
    network = build_network(name).eval()
    assert network(torch.zeros(2, *shape)).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) == parameters


# sizes and names as of the checkpoints that torchvision publishes
@pytest.mark.parametrize(
    ("name", "parameters", "entries", "some"),
    [
        ("resnet18", 11_689_512, 122, {"layer2.0.downsample.1.running_var": (128,), "layer4.1.conv2.weight": (512,)}),
        ("resnet50", 25_557_032, 320, {"layer1.0.downsample.0.weight": (256,), "layer4.2.bn3.bias": (2048,)}),
        (
            "mobilenetv2",
            3_504_872,
            314,
            {
                "features.1.conv.1.weight": (16,),
                "features.2.conv.1.0.weight": (96,),
                "features.18.1.running_mean": (1280,),
                "classifier.1.weight": (1000,),
            },
        ),
    ],
)
def test_imagenet_networks_have_the_parameters_of_torchvision(
    name: str, parameters: int, entries: int, some: dict[str, tuple[int, ...]]
) -> None:
    network = build_network(f"imagenet-{name}").eval()
    assert sum(p.numel() for p in network.parameters()) == parameters
    state = network.state_dict()
    assert len(state) == entries
    assert {key: tuple(state[key].shape[:1]) for key in some} == some
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="network: vgg\n  allowed: digits-resnet, cifar10-resnet20"):
        build_network("vgg")


def test_the_public_checkpoint_reproduces_its_accuracy() -> None:
    found = [folder for folder in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if folder.is_dir()]
    if not found:
        pytest.skip("no folder shared/data with CIFAR-10 and the model in or beside the repository")
    checkpoint = found[0] / "models" / "resnet20_cifar10_fp32.pth"
    network = build_network("cifar10-resnet20")
    import_checkpoint(checkpoint, network)
    test = load_cifar10(found[0] / "cifar10").test
    part = ImageSet(images=test.images[:2000], labels=test.labels[:2000], name="part", sha256=test.sha256)
    # 91.73 % on all 10,000; two standard deviations of a sample of 2,000 are 1.2 points
    assert top1(network, part, load_recipe("cifar10-resnet20").preprocessing) == pytest.approx(91.73, abs=1.3)
    assert np.bincount(part.labels).min() > 150
