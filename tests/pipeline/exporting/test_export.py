"""The main job, whole, on the bundled master and its 600 real test images."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from bitswitch_deploy.catalogue import bundled_file, bundled_master, sample_set
from bitswitch_deploy.errors import CheckFailedError, GraphError, TargetFileError, UsageError
from bitswitch_deploy.graph.stamp import read_stamp
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.package.verify import read_manifest, verify_package
from bitswitch_deploy.pipeline.exporting import export as exporting
from bitswitch_deploy.pipeline.exporting.export import RESULTS
from bitswitch_deploy.report.export_report import LayerCounts
from bitswitch_deploy.tensors import WidthAssignment
from tests.graph import masters
from tests.graph.masters import build, layer
from tests.pipeline.conftest import WIDTHS, Exported, export_to


def double_rounding(code: int, shift: int, bits: int) -> int:
    """Half-up in Python integers: floor(code / 2^D + 1/2), clipped."""
    rounded = (2 * code + (1 << shift)) // (1 << (shift + 1)) if shift else code
    return min(max(rounded, -(1 << (bits - 1))), (1 << (bits - 1)) - 1)


def emitted_codes(model: onnx.ModelProto, name: str) -> NDArray[np.int64]:
    """The integers of a weight, as the graph holds them; of float weights, what their QuantizeLinear makes of them."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values = np.asarray(constants[name])
    if values.dtype != np.float32:
        return np.asarray(values, np.int64)
    quantize = next(node for node in model.graph.node if node.input[0] == name)
    axis = next((attribute.i for attribute in quantize.attribute if attribute.name == "axis"), 0)
    scale = constants[quantize.input[1]]
    if scale.ndim:
        scale = scale.reshape([-1 if index == axis else 1 for index in range(values.ndim)])
    return np.asarray(np.rint(values / scale), np.int64)


def test_every_emitted_weight_is_the_double_rounding_of_the_master(exported: Exported) -> None:
    master = read_master(bundled_master())
    quantized = [layer for layer in master.spec.layers if not layer.pinned]
    assert quantized
    for row in exported.report.widths:
        assert row.bits is not None
        model = onnx.load(str(exported.package / row.file_name))
        for each in quantized:
            table = {code: double_rounding(code, 8 - row.bits, row.bits) for code in range(-128, 128)}
            expected = np.vectorize(table.__getitem__)(np.asarray(master.tensors[each.weight], np.int64))
            np.testing.assert_array_equal(emitted_codes(model, each.weight), expected, err_msg=each.name)


def test_the_package_is_complete_and_says_what_it_is(exported: Exported) -> None:
    assert verify_package(exported.package).is_ok
    manifest = read_manifest(exported.package)
    assert manifest.master_sha256 == read_master(bundled_master()).sha256
    assert [entry.label for entry in manifest.files if entry.role == "graph"] == ["w2", "w4", "w6", "w8"]
    assert {"bitswitch-deploy", "onnx", "onnxruntime", "numpy"} <= dict(manifest.tools).keys()
    results = json.loads((exported.package / RESULTS).read_text())
    assert results["schema"] == "bitswitch-report/1"
    assert results["host"].endswith(f"onnxruntime {onnxruntime.__version__}")
    for row in exported.report.widths:
        made_from = read_stamp(onnx.load(str(exported.package / row.file_name)), where=row.file_name)
        assert row.bits is not None
        assert made_from.assignment == WidthAssignment(default=row.bits)
        assert made_from.master_sha256 == manifest.master_sha256


def test_the_manifest_has_the_session_entries_that_the_graphs_were_validated_with(exported: Exported) -> None:
    """An application that runs them needs the same."""
    stack = dict(read_manifest(exported.package).stack)
    entries = {key: value for key, value in stack.items() if key.startswith("session.")}
    assert entries == ({"session.qdq_matmulnbits_accuracy_level": "1"} if stack["engine"] == "onnxruntime" else {})


def test_every_hop_agrees_with_the_canonical_graph(exported: Exported) -> None:
    for row in exported.report.widths:
        canonical, lowered, engine = row.hops[1], row.hops[2], row.hops[3]
        assert canonical.n == lowered.n == 600
        assert lowered.agreement_percent is not None
        assert lowered.agreement_percent >= 99.5, row
        runs_here = exported.report.target.endswith("-cpu")
        assert (engine.n > 0) == runs_here
        if runs_here:
            assert engine.agreement_percent is not None
            assert engine.agreement_percent >= 99.5, row
        else:
            assert "engines is not measured" in engine.note


def test_the_canonical_graph_has_the_accuracy_that_the_trainer_recorded(exported: Exported) -> None:
    for row in exported.report.widths:
        trained, canonical = row.hops[0], row.hops[1]
        assert trained.same_data
        assert trained.top1_percent is not None
        assert canonical.top1_percent is not None
        # one image of 600 may sit on a rounding tie
        assert abs(trained.top1_percent - canonical.top1_percent) <= 100 / 600 + 1e-9
        assert all(verdict.verdict != "failed" for verdict in row.verdicts)


def test_what_could_not_be_done_is_said_with_the_command_that_does_it(exported: Exported) -> None:
    manifest = read_manifest(exported.package)
    names = {path.name for path in exported.package.iterdir()}
    if exported.report.target.startswith("jetson"):
        (step,) = exported.report.not_done
        assert "only be built on the board" in step.why
        assert step.command.endswith("build_on_device.sh")
        assert "build_on_device.sh" in names
        assert [skipped.step for skipped in manifest.skipped] == [step.what]
    elif exported.report.target == "rtx":
        assert exported.report.not_done == ()
        engines = [entry for entry in manifest.files if entry.role == "engine"]
        assert [entry.label for entry in engines] == ["fp16", "w2", "w4", "w6", "w8"]
        records = [entry.path for entry in manifest.files if entry.role == "record"]
        assert records == [f"{entry.path}.{kind}" for entry in engines for kind in ("json", "layers.json")]
        assert all(entry.size_bytes > 1000 for entry in engines)
        # read back without a GPU: first and last layer were left in float by training
        assert all("; 7 of 9 layers in int8" in row.engine for row in exported.report.widths)


def test_exporting_twice_gives_the_same_graphs_byte_for_byte(exported: Exported, tmp_path: Path) -> None:
    """Whatever other widths are exported with them."""
    stack = dict(read_manifest(exported.package).stack)["name"]
    again = export_to(tmp_path / "again", f"{exported.report.target}@{stack}", widths=WIDTHS[::2])
    for row in exported.report.widths[::2]:
        assert (again.package / row.file_name).read_bytes() == (exported.package / row.file_name).read_bytes()


def test_x86_graphs_load_in_a_plain_onnxruntime_session(tmp_path: Path) -> None:
    package = export_to(tmp_path / "p", "x86-cpu").package
    x = np.zeros((3, 1, 8, 8), np.float32)
    for path in package.glob("*.onnx"):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert session.run(None, {session.get_inputs()[0].name: x})[0].shape == (3, 10)


def test_strict_refuses_what_is_not_exact_and_writes_nothing(tmp_path: Path) -> None:
    master = read_master(bundled_master())
    spec = replace(master.spec, activation_container="uint8")
    path = tmp_path / "uint8.safetensors"
    write_master(assemble_master(spec=spec, tensors=master.tensors, skeleton=master.skeleton), path)
    message = r"w8 for jetson-orin-nano: the lowering is not exact: \d activations: uint8 codes 0..255 re-scaled"
    with pytest.raises(CheckFailedError, match=message):
        export_to(tmp_path / "p", "jetson", master=path, strict=True)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("target", ["jetson", "x86-cpu"])
def test_strict_accepts_what_is_exact(tmp_path: Path, target: str) -> None:
    report = export_to(tmp_path / "p", target, strict=True).report
    assert all(row.exact and row.hops[2].agreement_percent == 100.0 for row in report.widths)
    assert not any("residual" in change for row in report.widths for change in row.changes)


@pytest.mark.parametrize("strict", [True, False])
def test_strict_engines_are_built_without_float16(tmp_path: Path, strict: bool) -> None:
    """But for the reference, which is float16. TensorRT before 10.12 chooses types itself where the flag lets it."""
    package = export_to(tmp_path / "p", "jetson", strict=strict, widths=WIDTHS[:1]).package
    script = (package / "build_on_device.sh").read_text()
    assert ("fp32=yes\n" in script) is strict
    assert read_manifest(package).strict is strict


def test_a_mixed_assignment_is_exported_under_its_own_name(tmp_path: Path) -> None:
    layers = [layer.name for layer in read_master(bundled_master()).spec.layers if not layer.pinned]
    mixed = WidthAssignment(default=8, overrides=((layers[1], 4), (layers[2], 2)))
    exported = export_to(tmp_path / "p", "jetson", widths=(mixed,))
    (row,) = exported.report.widths
    assert (row.label, row.bits) == ("mixed", None)
    model = onnx.load(str(exported.package / row.file_name))
    for name, limit in ((layers[0], 127), (layers[1], 7), (layers[2], 1)):
        codes = emitted_codes(model, f"{name}.weight")
        assert codes.max() <= limit
        assert codes.max() > limit // 2


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        (
            WidthAssignment(default=8, overrides=(("no.such.layer", 4),)),
            "layer 'no.such.layer' in the width assignment",
        ),
        (WidthAssignment(default=8), "8 bits from a master of 4 bits"),
    ],
)
def test_what_does_not_fit_the_master_is_refused_before_any_width_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assignment: WidthAssignment, said: str
) -> None:
    monkeypatch.setattr(exporting, "lower_width", lambda *_, **__: pytest.fail("a width was made"))
    small = bundled_file("calibration/cifar10/resnet20-432.safetensors")
    with pytest.raises(UsageError, match=said):
        export_to(tmp_path / "p", "x86-cpu", master=small, widths=(*WIDTHS[2:], assignment))


def test_two_exports_have_one_manifest(tmp_path: Path) -> None:
    first, second = (export_to(tmp_path / name, "x86-cpu", widths=WIDTHS[:1]).package for name in ("p", "q"))
    for name in ("manifest.json", RESULTS, "report.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_width_that_was_not_trained_says_so(tmp_path: Path) -> None:
    report = export_to(tmp_path / "p", "jetson", widths=(WidthAssignment(default=5),)).report
    (row,) = report.widths
    assert any("width 5: not trained: activation ranges interpolated" in change for change in row.changes)
    assert row.hops[1].top1_percent is not None
    # between the neighbours that were trained; a wrong range would cost tens of points
    assert row.hops[1].top1_percent > 90


def test_a_drop_beyond_the_limit_fails_the_verdict_but_keeps_the_package(tmp_path: Path) -> None:
    master = read_master(bundled_master())
    boasting = tuple(replace(accuracy, value=100.0) for accuracy in master.spec.accuracy)
    path = tmp_path / "boasting.safetensors"
    write_master(
        assemble_master(spec=replace(master.spec, accuracy=boasting), tensors=master.tensors, skeleton=master.skeleton),
        path,
    )
    exported = export_to(tmp_path / "p", "jetson", master=path, widths=WIDTHS[3:], max_drop=0.1)
    verdicts = {verdict.hop: verdict.verdict for verdict in exported.report.widths[0].verdicts}
    assert verdicts["lowered"] == "failed"
    assert verify_package(exported.package).is_ok


def test_without_data_the_graphs_are_exported_and_the_gap_is_said(tmp_path: Path) -> None:
    master = read_master(bundled_master())
    path = tmp_path / "silent.safetensors"
    write_master(
        assemble_master(spec=replace(master.spec, accuracy=()), tensors=master.tensors, skeleton=master.skeleton), path
    )
    report = export_to(tmp_path / "p", "jetson", master=path, widths=WIDTHS[:1]).report
    assert report.dataset is None
    assert report.widths[0].hops == ()
    (step,) = (step for step in report.not_done if step.what == "validation")
    assert step.command == f"bitswitch-deploy validate {tmp_path / 'p'} --data PATH"
    assert any("no calibration samples" in change for change in report.widths[0].changes)


WORDS = """
net (int64[n, 4] words, float[9, 8] "table.values", float[8, 8] "mix.weight", float[32, 3] "fc.weight")
    => (float[n, 3] logits)
{
    a = Gather ("table.values", words)
    b = Relu (a)
    c = MatMul (b, "mix.weight")
    d = Relu (c)
    e = Flatten (d)
    logits = Gemm (e, "fc.weight")
}
"""


def test_a_network_of_words_is_measured_on_words(tmp_path: Path) -> None:
    master = masters.build(WORDS, [masters.layer("mix", "MatMul"), masters.layer("fc", "Gemm", activation="pinned")])
    write_master(master, tmp_path / "words.safetensors")
    rng = np.random.default_rng(1)
    x = rng.integers(0, 9, (64, 4))
    np.savez(tmp_path / "words.npz", x=x.astype(np.uint8), y=rng.integers(0, 3, 64))
    options = {"master": tmp_path / "words.safetensors", "data": tmp_path / "words.npz"}
    (row,) = export_to(tmp_path / "p", "x86-cpu", widths=WIDTHS[:1], **options).report.widths
    assert row.hops[1].n == row.hops[2].n == row.hops[3].n == 64
    assert row.hops[3].agreement_percent == 100.0
    np.savez(tmp_path / "words.npz", x=np.full((64, 4), 9))
    with pytest.raises(GraphError, match=r"indices element out of data bounds, idx=9"):
        export_to(tmp_path / "q", "x86-cpu", widths=WIDTHS[:1], **options)


def test_own_data_without_calibration_samples_is_reported(tmp_path: Path) -> None:
    samples = sample_set("digits")
    assert samples is not None
    master = read_master(bundled_master())
    path = tmp_path / "other.safetensors"
    other = tuple(replace(accuracy, dataset="unheard-of") for accuracy in master.spec.accuracy)
    write_master(
        assemble_master(spec=replace(master.spec, accuracy=other), tensors=master.tensors, skeleton=master.skeleton),
        path,
    )
    options = {"master": path, "data": samples.test, "widths": WIDTHS[:1]}
    said = "ranges that were not trained: calibrated on the validation data, name other samples with --calibration"
    assert said in export_to(tmp_path / "p", "jetson", **options).report.widths[0].changes
    for name, others in (("strict", {"strict": True}), ("named", {"calibration": samples.train})):
        (row,) = export_to(tmp_path / name, "jetson", **options, **others).report.widths
        assert "validation data" not in " ".join(row.changes)


@pytest.mark.parametrize(("least", "kept"), [(None, True), (99.5, False)])
def test_labels_keep_approximations_unless_agreement_is_asked_for(
    tmp_path: Path, doubtful: Path, least: float | None, kept: bool
) -> None:
    calibration = bundled_file("calibration/digits/train.npz")
    (row,) = export_to(
        tmp_path / "p",
        "x86-cpu",
        data=doubtful,
        calibration=calibration,
        widths=WIDTHS[2:3],
        min_agreement=least,
    ).report.widths
    said = [change for change in row.changes if change.startswith("approximations: ")]
    assert row.approximations == (("residual-codes",) if kept else ())
    assert said[0].endswith("is excluded" if kept else "99.5 % is the limit (--min-agreement)")


def test_an_approximation_that_a_width_has_no_use_for_is_said(tmp_path: Path) -> None:
    """No activation of the network is signed; `full-resolution` is another name than `full-resolution-signed`."""
    asked = frozenset({Approximation.FULL_RESOLUTION, Approximation.FULL_RESOLUTION_SIGNED})
    (row,) = export_to(tmp_path / "p", "x86-cpu", widths=WIDTHS[1:2], approximations=asked).report.widths
    assert row.approximations[0] == "full-resolution"
    unused = "approximations: full-resolution-signed: named, and of no use to this graph"
    assert [change for change in row.changes if "of no use" in change] == [unused]


def test_an_existing_output_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"--force|not a package"):
        export_to(tmp_path / "p", "jetson")
    assert (tmp_path / "p" / "mine.txt").read_text() == "mine"


def test_force_replaces_a_package(tmp_path: Path) -> None:
    first = export_to(tmp_path / "p", "jetson", widths=WIDTHS[:1])
    with pytest.raises(UsageError, match="--force"):
        export_to(tmp_path / "p", "jetson", widths=WIDTHS[:1])
    export_to(tmp_path / "p", "x86-cpu", widths=WIDTHS[:1], force=True)
    assert read_manifest(first.package).target == "x86-cpu"


def test_a_profile_that_names_an_unknown_pass_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "targets" / "x86-cpu.yaml").read_text()
    profile = tmp_path / "own.yaml"
    profile.write_text(text.replace("QuantizeBias", "QuantiseBias"))
    with pytest.raises(TargetFileError, match="no pass is named QuantiseBias"):
        export_to(tmp_path / "p", str(profile))
    assert not (tmp_path / "p").exists()


def test_layers_with_float_inputs_are_counted_as_what_they_compute_with(tmp_path: Path) -> None:
    """Wide weights become floats, narrow ones are widened on the way, and inputs that are rounded make it integers."""
    text = 'net (float[n, 64] x, float[64, 96] "a.weight") => (float[n, 96] y) { y = MatMul (x, "a.weight") }'
    write_master(masters.build(text, [masters.layer("a", "MatMul", activation="none")]), tmp_path / "m.safetensors")
    for name, approximations, expected in (
        (
            "exact",
            frozenset(),
            (
                "0 of 1 layers in integers (MatMul 1); weight-only, float32 when the graph is loaded: a",
                "0 of 1 layers in integers, 1 weight-only (MatMulNBits 1)",
            ),
        ),
        ("rounded", frozenset({Approximation.INT8_INPUTS}), ("1 of 1 layers in integers (MatMulNBits 1)",) * 2),
    ):
        changes = {"master": tmp_path / "m.safetensors", "widths": WIDTHS[::2], "approximations": approximations}
        made = export_to(tmp_path / name, "x86-cpu", **changes)
        assert [row.engine for row in made.report.widths] == [f"onnxruntime: {each}" for each in expected]
        assert [row.layers.fell_back for row in made.report.widths if row.layers] == [(), ()]


def test_weight_only_layers_that_are_dequantized_in_every_run_are_said_to_be(tmp_path: Path) -> None:
    """onnxruntime folds no DequantizeLinear, and a convolution has no other form."""
    text = """net (float[n, 4, 8, 8] x, float[8, 4, 3, 3] "a.weight") => (float[n, 8, 6, 6] y)
        { y = Conv (x, "a.weight") }"""
    layers = [masters.layer("a", "Conv", activation="none")]
    write_master(masters.build(text, layers), tmp_path / "m.safetensors")
    made = export_to(tmp_path / "p", "x86-cpu", master=tmp_path / "m.safetensors", widths=WIDTHS[::2])
    for row in made.report.widths:
        assert row.layers == LayerCounts(integer=0, total=1)
        assert row.engine.endswith("; weight-only, dequantized in every run: a")


def test_layers_that_fall_back_to_float_are_named_with_the_reason(tmp_path: Path) -> None:
    """Exactly as trained, no int32 bias keeps the codes of the digits at 8 bits: every layer runs in float."""
    made = export_to(tmp_path / "p", "x86-cpu", widths=WIDTHS[::3], strict=True)
    blocks = ("0.conv1", "0.conv2", "1.conv1", "1.conv2", "1.shortcut.conv", "2.conv1", "2.conv2")
    widest, narrowest = (row.layers for row in made.report.widths)
    assert widest == LayerCounts(integer=0, total=9, fell_back=tuple(f"blocks.{each}" for each in blocks))
    assert narrowest is not None
    assert narrowest.integer == 3
    assert set(narrowest.fell_back) < set(widest.fell_back)
    for row in made.report.widths:
        assert "(its result is read by Add: float-output)" in row.engine
        assert "float as in training: conv1, linear" in row.engine
    for row in export_to(tmp_path / "usual", "x86-cpu", widths=WIDTHS).report.widths:
        assert row.layers == LayerCounts(integer=7, total=9)
        assert "QLinearConv 7" in row.engine


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_export_leaves_nothing_half_made(tmp_path: Path, number: signal.Signals) -> None:
    package = tmp_path / "package"
    words = [sys.executable, "-m", "bitswitch_deploy", "export", "--target", "jetson", "--output", str(package)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob(".package.partial-*/*.onnx")):
        time.sleep(0.005)
    process.send_signal(number)
    process.wait()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert list(tmp_path.iterdir()) == []
    assert not package.exists()
    # what SIGKILL left behind is in nobody's way
    export_to(package, "jetson", widths=WIDTHS[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    shutil.rmtree(package)


def test_dimensions_that_no_engine_takes_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """net (float[n, tokens, 4] x, float[4, 4] "a.weight") => (float[n, tokens, 4] y) {
        y = MatMul (x, "a.weight")
    }"""
    write_master(build(text, [layer("a", "MatMul", activation="signed")]), tmp_path / "open.safetensors")

    def work(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be lowered")

    monkeypatch.setattr("bitswitch_deploy.pipeline.exporting.export.lower_width", work)
    with pytest.raises(UsageError, match="tokens"):
        export_to(tmp_path / "p", "jetson", master=tmp_path / "open.safetensors", widths=WIDTHS[:1], data=None)
    assert not (tmp_path / "p").exists()
