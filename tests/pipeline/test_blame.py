"""A layer that quantization hurts is named, with the cause that was put there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.catalogue import bundled_master, load_target
from bitswitch_deploy.diagnosis.switchable_graph import SwitchableGraph
from bitswitch_deploy.errors import DataError
from bitswitch_deploy.master import read_master, write_master
from bitswitch_deploy.pipeline.blame import blame_master
from bitswitch_deploy.pipeline.inputs import load_export_data
from bitswitch_deploy.tensors import WidthAssignment
from bitswitch_deploy.validation.metrics import sqnr_db
from tests.graph.masters import build, layer


@pytest.mark.parametrize(
    ("factor", "cause"),
    [(1 / 6, "saturated activations"), (5.0, "idle codes")],
    ids=["range too narrow", "range too wide"],
)
def test_a_wrong_range_in_the_master(tmp_path: Path, factor: float, cause: str) -> None:
    """It cannot be told from a choice of training, so it is no fault: the layer is sensitive, for that reason."""
    master = read_master(bundled_master())
    name = "blocks.2.conv1.input.scale"
    scales = np.asarray(master.tensors[name]).copy()
    scales[master.spec.widths.index(4)] *= np.float32(factor)
    path = tmp_path / "master.safetensors"
    write_master(replace(master, tensors={**master.tensors, name: scales}), path)
    result = blame_master(path, load_target("rtx"), (WidthAssignment(default=4),), data=None, samples=64)
    (width,) = result.widths
    (suspect,) = width.suspects
    assert (suspect.kind, suspect.layer) == ("sensitive", "blocks.2.conv1")
    assert cause in suspect.what
    assert not result.has_fault
    alone = {each.layer: each.isolated.sqnr_db for each in width.layers}
    assert min(alone, key=lambda layer: alone[layer]) == "blocks.2.conv1"


def test_one_sample_tells_no_fault() -> None:
    result = blame_master(bundled_master(), load_target("rtx"), (WidthAssignment(default=8),), data=None, samples=1)
    assert not result.has_fault


def test_cumulative_ends_at_the_canonical_graph_and_starts_with_the_first_layer() -> None:
    mixed = WidthAssignment(default=8, overrides=(("blocks.0.conv1", 2), ("blocks.2.conv2", 4)))
    result = blame_master(bundled_master(), load_target("x86-cpu"), (mixed,), data=None, samples=32)
    (width,) = result.widths
    assert [each.bits for each in width.layers][:2] == [2, 8]
    assert width.layers[0].isolated == width.layers[0].cumulative
    assert width.layers[-1].cumulative == width.canonical
    # in between: against runs of its own
    data = load_export_data(read_master(bundled_master()), data=None, calibration=None, samples=32).test
    assert data is not None
    x, _ = next(data.batches(32))
    graph = SwitchableGraph(read_master(bundled_master()))
    in_float = graph.run(x, mixed, ())
    for index, each in enumerate(width.layers[:-1]):
        assert each.layer == graph.layers[index]
        for error, layers in ((each.isolated, (each.layer,)), (each.cumulative, graph.layers[: index + 1])):
            expected = sqnr_db(in_float, graph.run(x, mixed, layers))
            assert error.sqnr_db == pytest.approx(expected, abs=1e-3)
    assert width.lowered_layers[0].cumulative.sqnr_db >= width.lowered_layers[-1].cumulative.sqnr_db


@pytest.mark.parametrize("data", [None, Path("x.npz")])
def test_a_network_with_two_inputs_is_refused(tmp_path: Path, data: Path | None) -> None:
    text = """net (float[n, 4] x, float[n, 4] z, float[4, 3] "a.weight") => (float[n, 3] y) {
        s = Add (x, z) y = MatMul (s, "a.weight")
    }"""
    write_master(build(text, [layer("a", "MatMul", activation="signed")]), tmp_path / "two.safetensors")
    with pytest.raises(DataError, match="blame: a network with 2 inputs"):
        blame_master(
            tmp_path / "two.safetensors", load_target("x86-cpu"), (WidthAssignment(default=8),), data=data, samples=8
        )


@pytest.mark.parametrize(
    ("shape", "output"),
    [("n", "y = Squeeze (r, one)"), ("n, 1", "m = ReduceMax <keepdims: int = 0> (r) y = Add (r, m)")],
    ids=["a row", "a scalar"],
)
def test_tensors_without_channels_in_batches_of_several_sizes(tmp_path: Path, shape: str, output: str) -> None:
    """And a constant that is a node of the network."""
    text = f"""net (float[n, 3, 32, 32] x, float[3072, 1] "a.weight") => (float[{shape}] y) {{
        one = Constant <value = int64[1] {{1}}> () f = Flatten (x) r = MatMul (f, "a.weight") {output}
    }}"""
    write_master(build(text, [layer("a", "MatMul", activation="signed")]), tmp_path / "row.safetensors")
    np.savez(tmp_path / "row.npz", x=np.random.default_rng(0).normal(size=(40, 3, 32, 32)).astype(np.float32))
    result = blame_master(
        tmp_path / "row.safetensors",
        load_target("x86-cpu"),
        (WidthAssignment(default=8),),
        data=tmp_path / "row.npz",
        samples=40,
    )
    assert not result.has_fault
