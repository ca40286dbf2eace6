"""ResNet-18 for 1,000 classes: first convolution and classifier pinned, as bit operations are counted in the field."""

from __future__ import annotations

from bitswitch_deploy.master import Master
from bitswitch_deploy.master.spec import LayerSpec
from tests.graph.masters import build, layer

STEM_MACS, STEM_WEIGHTS = 112 * 112 * 64 * 3 * 49, 64 * 3 * 49
CLASSIFIER = 512 * 1000
_PADS = "pads: ints = [1, 1, 1, 1]"


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.weights: list[str] = []
        self.layers: list[LayerSpec] = []

    def conv(self, name: str, source: str, channels: tuple[int, int], kernel: int, stride: int) -> str:
        self.weights.append(f'float[{channels[1]}, {channels[0]}, {kernel}, {kernel}] "{name}.weight"')
        pads = ", ".join([str(kernel // 2)] * 4)
        attributes = f"<strides: ints = [{stride}, {stride}], pads: ints = [{pads}]>"
        self.nodes.append(f'{name} = Conv {attributes} ({source}, "{name}.weight")')
        self.layers.append(layer(name, activation="pinned" if name == "stem" else "unsigned"))
        return name

    def relu(self, source: str) -> str:
        self.nodes.append(f"{source}_relu = Relu ({source})")
        return f"{source}_relu"


def resnet18() -> Master:
    net = _Writer()
    x, width = net.relu(net.conv("stem", "x", (3, 64), 7, 2)), 64
    net.nodes.append(f"pooled = MaxPool <kernel_shape: ints = [3, 3], strides: ints = [2, 2], {_PADS}> ({x})")
    x = "pooled"
    for block, channels in enumerate((64, 64, 128, 128, 256, 256, 512, 512)):
        stride = 1 if channels == width else 2
        y = net.relu(net.conv(f"b{block}a", x, (width, channels), 3, stride))
        y = net.conv(f"b{block}b", y, (channels, channels), 3, 1)
        shortcut = x if channels == width else net.conv(f"b{block}s", x, (width, channels), 1, stride)
        net.nodes.append(f"sum{block} = Add ({y}, {shortcut})")
        x, width = net.relu(f"sum{block}"), channels
    net.nodes += [f"mean = GlobalAveragePool ({x})", "flat = Flatten (mean)", 'logits = MatMul (flat, "fc.weight")']
    net.weights.append('float[512, 1000] "fc.weight"')
    net.layers.append(layer("fc", "MatMul", activation="pinned"))
    values = ", ".join(["float[n, 3, 224, 224] x", *net.weights])
    body = "\n".join(net.nodes)
    return build(f"net ({values}) => (float[n, 1000] logits)\n{{\n{body}\n}}", net.layers)
