"""`blame` on real packages, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.conftest import Run


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blame") / "package"


def _export(run: Run, path: Path, *words: str) -> Path:
    if not path.exists():
        assert run("export", "--target", "x86-cpu", "--bits", "4,2", "--output", path, *words).code == 0
    return path


def test_a_whole_package(run: Run, package: Path) -> None:
    outcome = run("blame", _export(run, package), "--samples", 32)
    assert outcome.code == 0
    assert "blocks.0.conv1" in outcome.out
    assert "no layer stands out" in outcome.out
    assert outcome.out.index("w4:") < outcome.out.index("w2:")


def test_json_holds_every_layer(run: Run, package: Path) -> None:
    outcome = run("blame", _export(run, package), "--samples", 32, "--json")
    document = json.loads(outcome.out)
    assert document["schema"] == "bitswitch-blame/1"
    assert document["changed"] == []
    assert [width["label"] for width in document["widths"]] == ["w4", "w2"]
    for width in document["widths"]:
        assert len(width["layers"]) == len(width["statistics"]) == 7
        # the last one is the whole network
        last = width["layers"][-1]["cumulative"]
        assert last == width["canonical"]
        assert width["suspects"] == []


def test_a_damaged_graph(run: Run, package: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in _export(run, package).iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    path = damaged / "digits-w4.onnx"
    model = onnx.load(path)
    (entry,) = [each for each in model.graph.initializer if each.name == "blocks.1.conv2.weight.scale"]
    scale = numpy_helper.to_array(entry).copy()
    scale[5] *= 2
    entry.CopyFrom(numpy_helper.from_array(scale, entry.name))
    onnx.save(model, path)
    outcome = run("blame", damaged, "--samples", 32)
    assert outcome.code == 1
    text = " ".join(outcome.out.split())
    assert "fault weights, scale or bias of blocks.1.conv2: 2.00 x what it should be" in text
    assert "output channel 5" in text
    assert "not as exported digits-w4.onnx (changed)" in text


def test_a_master_with_shared_weights_and_without_a_package(run: Run, tmp_path: Path) -> None:
    package = _export(run, tmp_path / "shared", "--shared-weights")
    shared = json.loads(run("blame", package, "--samples", 32, "--json").out)
    alone = json.loads(run("blame", "--target", "x86-cpu", "--bits", "4,2", "--samples", 32, "--json").out)
    assert shared["widths"] == alone["widths"]


def test_without_a_package_it_looks_at_what_a_default_export_would_write(run: Run, tmp_path: Path) -> None:
    """Float16 in layers that are not quantized is one of its approximations, where a network is strongly typed."""
    package = tmp_path / "thor"
    words = ("--target", "jetson-thor", "--bits", "4")
    assert run("export", *words, "--output", package).code == 0
    exported = json.loads(run("blame", package, "--samples", 32, "--json").out)
    lowered = json.loads(run("blame", *words, "--samples", 32, "--json").out)
    assert "computed in float16" in [each["part"]["what"] for each in exported["widths"][0]["parts"]]
    assert lowered["widths"] == exported["widths"]


def test_mixed_widths_beside_uniform_ones(run: Run, tmp_path: Path) -> None:
    widths = tmp_path / "widths.json"
    widths.write_text(json.dumps({"blocks.0.conv1": 2, "blocks.2.conv2": 6, "*": 4}))
    words = ("blame", "--target", "x86-cpu", "--samples", 32, "--mixed", widths, "--json")
    (alone,) = json.loads(run(*words).out)["widths"]
    bits = {each["layer"]: each["bits"] for each in alone["layers"]}
    assert (bits["blocks.0.conv1"], bits["blocks.0.conv2"], bits["blocks.2.conv2"]) == (2, 4, 6)
    assert [each["bits"] for each in alone["statistics"]] == list(bits.values())
    both = json.loads(run(*words, "--bits", "8").out)["widths"]
    assert [each["label"] for each in both] == ["w8", alone["label"]]
    assert both[1] == alone


def test_a_mixed_file_that_names_no_layer(run: Run, tmp_path: Path) -> None:
    (tmp_path / "widths.json").write_text('{"*": 4}')
    outcome = run("blame", "--target", "x86-cpu", "--mixed", tmp_path / "widths.json")
    assert outcome.code == 2
    assert "use --bits for uniform widths" in outcome.err


def test_refusals(run: Run, package: Path, tmp_path: Path) -> None:
    assert run("blame").code == 2
    _export(run, package)
    outcome = run("blame", package, "--bits", "4")
    assert outcome.code == 2
    assert "leave them out" in outcome.err
    assert run("blame", package, "--mixed", tmp_path / "widths.json").code == 2
    assert run("blame", tmp_path / "nothing").code == 3
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in package.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "digits-w4.onnx").write_bytes(b"no graph")
    outcome = run("blame", broken)
    assert outcome.code == 3
    assert "its protobuf does not parse" in outcome.err


def test_shared_weights_that_are_missing_or_a_link(run: Run, tmp_path: Path) -> None:
    package = _export(run, tmp_path / "shared", "--shared-weights", "--bits", "4")
    weights = package / "digits.weights"
    aside = weights.rename(package / "aside")
    outcome = run("blame", package)
    assert outcome.code == 3
    assert "external data in" in outcome.err
    weights.symlink_to(aside)
    outcome = run("blame", package)
    assert outcome.code == 3
    assert "its weights cannot be read" in outcome.err


def test_a_bug_in_reading_a_graph_is_no_damaged_file(run: Run, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("this is broken")

    _export(run, package)
    monkeypatch.setattr(onnx, "load_external_data_for_model", broken)
    outcome = run("blame", package)
    assert outcome.code == 70
    assert "RuntimeError: this is broken" in outcome.err


def test_data_without_labels(run: Run, package: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((8, 1, 8, 8), np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    outcome = run("blame", _export(run, package), "--data", tmp_path / "x.npz")
    assert outcome.code == 0
    assert "top-1 in float" not in outcome.out
    assert "output" in outcome.out
