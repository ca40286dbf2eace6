"""Each kind of network through the whole of `export`, at every width, for the three engines that run or build here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.engines.reference import ReferenceSession
from bitswitch_deploy.graph.canonical import canonical_graph
from bitswitch_deploy.master import write_master
from bitswitch_deploy.package.verify import verify_package
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.validation.hops import HOPS
from tests.networks.comparing import Array
from tests.networks.zoo import Sample, inputs
from tests.pipeline.conftest import export_to

SAMPLES = 300  # agreement of 1,000 is in test_lowered.py


@pytest.mark.parametrize("target", ["x86-cpu", "jetson-orin-nano", "rtx"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet-v2", "vit", "decoder"])
def test_export(sample: Callable[[str], Sample], name: str, target: str, tmp_path: Path) -> None:
    made = sample(name)
    write_master(made.master, tmp_path / "m.safetensors")
    x = inputs(made.entry, SAMPLES, seed=5).numpy()
    if made.entry.dense:
        np.savez(tmp_path / "data.npz", x=x)
    else:
        np.savez(tmp_path / "data.npz", x=x, y=labels(made, x))
    exported = export_to(
        tmp_path / "package", target, master=tmp_path / "m.safetensors", data=tmp_path / "data.npz", max_drop=100.0
    )
    assert verify_package(exported.package).is_ok
    assert [width.label for width in exported.report.widths] == ["w8", "w6", "w4", "w2"]
    for width in exported.report.widths:
        assert (exported.package / width.file_name).is_file()
        lowered = width.hops[HOPS.index("lowered")]
        assert lowered.n == SAMPLES
        if made.entry.dense:
            assert (lowered.relative_error or 0.0) < 0.005
        else:
            assert (lowered.agreement_percent or 0.0) >= 99.5
    assert len(list(exported.package.rglob("*.engine"))) == (5 if target == "rtx" else 0)


def labels(made: Sample, x: Array) -> Array:
    """What the canonical graph says at 8 bits."""
    model = canonical_graph(made.master, WidthAssignment(default=8)).model
    return np.asarray(ReferenceSession(model.SerializeToString()).run(x).argmax(1), np.int64)
