"""Profiles of real packages in onnxruntime, and of stand-ins of TensorRT. No assertion is about a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from bitswitch_deploy.catalogue import load_target
from bitswitch_deploy.engines.device_facts import device_facts
from bitswitch_deploy.engines.engine_record import EngineRecord, Recipe, record_path
from bitswitch_deploy.engines.read_back import NodePrecision, ReadBack
from bitswitch_deploy.errors import CheckFailedError, InputFileError, UnavailableError, UsageError
from bitswitch_deploy.latency_table import read_latency_table
from bitswitch_deploy.lowering.approximation import Approximation
from bitswitch_deploy.master import assemble_master, read_master, write_master
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.package.verify import read_manifest
from bitswitch_deploy.pipeline.building.kept_layers import EngineFacts, keep_facts
from bitswitch_deploy.pipeline.profiling import profile as profiling
from bitswitch_deploy.pipeline.profiling import steps
from bitswitch_deploy.pipeline.profiling.bench import Bench, package_widths
from bitswitch_deploy.pipeline.profiling.onnxruntime_bench import OnnxRuntimeBench
from bitswitch_deploy.pipeline.profiling.profile import schedule_for
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.profiling.board.device_lock import alone_on_this_machine
from bitswitch_deploy.profiling.board.energy import EnergyMeter
from bitswitch_deploy.profiling.board.host import Host
from bitswitch_deploy.profiling.board.state import BoardWatch
from bitswitch_deploy.profiling.feeds import make_feeds
from bitswitch_deploy.profiling.interleave import Pace, Schedule
from bitswitch_deploy.profiling.result import ProfileResult
from bitswitch_deploy.search.latency import CLOCK_MS, without_noise
from bitswitch_deploy.search.resources import Choices, Resources
from bitswitch_deploy.tensors import WidthAssignment
from tests.engines import fake_trtexec
from tests.engines.tensorrt_device import install, plan
from tests.graph import masters
from tests.pipeline.conftest import WIDTHS, export_to
from tests.pipeline.profiling.conftest import MASTER, put_reference, run
from tests.profiling.board.machines import JETSON_FILES, X86_FILES, machine
from tests.profiling.board.test_state import Recorded
from tests.runtime.conftest import MIXED, Packages


@pytest.fixture(scope="module")
def whole(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> tuple[ProfileResult, Path]:
    """One profile of everything: four widths, a mixed one, the reference, trace and table, on a made-up laptop."""
    folder = tmp_path_factory.mktemp("profile")
    host = machine(folder / "machine", X86_FILES)
    files = {"trace": folder / "trace.json", "latency_table": folder / "table.json"}
    return run(packages.own, host, budget_ms=1e6, **files), folder


def test_every_width_and_the_reference_are_timed(whole: tuple[ProfileResult, Path]) -> None:
    result, _ = whole
    assert [each.label for each in result.candidates] == ["w8", "w6", "w4", "w2", "mixed", "float32"]
    assert [each.bits for each in result.candidates] == [8, 6, 4, 2, None, None]
    assert (result.engine, result.reference_label, result.turns) == ("onnxruntime", "float32", 6)
    for each in result.candidates:
        statistics = each.statistics
        assert 0 < statistics.min_ms <= statistics.p50_ms <= statistics.p90_ms <= statistics.p95_ms
        assert statistics.p95_ms <= statistics.p99_ms <= statistics.max_ms
        assert len(each.turn_medians_ms) == 6


def test_every_width_has_a_ratio_and_a_sentence_and_the_reference_has_none(whole: tuple[ProfileResult, Path]) -> None:
    *widths, reference = whole[0].candidates
    for each in widths:
        assert each.ratio is not None
        assert each.ratio.low <= each.ratio.value <= each.ratio.high
        claim = "faster than float32" if each.ratio.high < 1 else "no faster than float32"
        assert each.verdict.startswith(claim)
        assert ("because" in each.verdict) == (each.ratio.high >= 1)
    assert (reference.ratio, reference.verdict) == (None, "")
    assert not [name for name, _ in reference.operators if "QLinear" in name or "Quantize" in name]


def test_two_profiles_at_once_are_refused(packages: Packages) -> None:
    """Of whatever package: both would be wrong."""
    with alone_on_this_machine(), pytest.raises(UnavailableError, match="another profile is running there"):
        run(packages.own)


def test_layers_are_those_of_the_master_and_add_up(whole: tuple[ProfileResult, Path]) -> None:
    names = {"blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "blocks.1.shortcut.conv"}
    names |= {"blocks.2.conv1", "blocks.2.conv2"}
    for each in whole[0].candidates[:5]:
        assert names <= {node.layer for node in each.layers}
        assert sum(node.share for node in each.layers) <= 1 + 1e-9
        assert [node.ms for node in each.layers] == sorted((node.ms for node in each.layers), reverse=True)
        assert sum(count for _, count in each.operators) == len({node.name for node in each.layers})


def test_what_a_layer_of_float_inputs_computes_with(tmp_path: Path) -> None:
    """The operator is the same; the graph that really runs tells."""
    text = 'net (float[n, 64] x, float[64, 96] "a.weight") => (float[n, 96] y) { y = MatMul (x, "a.weight") }'
    write_master(masters.build(text, [masters.layer("a", "MatMul", activation="none")]), tmp_path / MASTER)
    for name, approximations, arithmetic in (
        ("exact", frozenset(), "weight-only"),
        ("rounded", frozenset({Approximation.INT8_INPUTS}), "integer"),
    ):
        changes = {"master": tmp_path / MASTER, "widths": WIDTHS[2:3], "approximations": approximations}
        result = run(export_to(tmp_path / name, "x86-cpu", **changes).package)
        found = {(each.operator, each.arithmetic) for each in result.candidates[0].layers}
        assert ("MatMulNBits", arithmetic) in found
        assert NOTE_ON_NARROW_CODES not in result.notes


def test_the_latency_table_holds_what_the_result_says(whole: tuple[ProfileResult, Path]) -> None:
    result, folder = whole
    table = read_latency_table(folder / "table.json")
    p50 = {each.label: each.statistics.p50_ms for each in result.candidates}
    assert table.widths == (8, 6, 4, 2)
    assert table.end_to_end_ms == tuple((bits, p50[f"w{bits}"]) for bits in (8, 6, 4, 2))
    assert [layer.name for layer in table.layers] == [
        *("blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "blocks.1.shortcut.conv"),
        *("blocks.2.conv1", "blocks.2.conv2"),
    ]
    assert all(ms > 0 for layer in table.layers for _, ms in layer.latency_ms)
    facts = dict(table.device)
    assert (facts["processor"], facts["clocks"], facts["governor"]) == ("Some Processor 7", "not locked", "powersave")
    assert [each.label for each in result.residuals] == ["w8", "w6", "w4", "w2", "mixed"]
    # at one width the overhead is its own, at the others it is too large: never too fast a prediction
    assert min(abs(each.error) for each in result.residuals[:4]) == pytest.approx(0, abs=1e-9)
    assert all(each.error > -1e-9 for each in result.residuals[:4])
    mixed = result.residuals[4]
    bits = {layer.name: MIXED.bits_of(layer.name) for layer in table.layers}
    expected = table.overhead_ms + sum(dict(layer.latency_ms)[bits[layer.name]] for layer in table.layers)
    assert mixed.predicted_ms == pytest.approx(expected)


def test_search_predicts_what_the_profile_compares_with_its_measurement(
    packages: Packages, whole: tuple[ProfileResult, Path]
) -> None:
    """The sum of a row of `search`, less its margin, is the prediction beside each width, but for noise.

    A search takes times of a layer that are within the noise of the table for one.
    """
    result, folder = whole
    table, master = read_latency_table(folder / "table.json"), read_master(packages.own.parent / MASTER)
    names = [layer.name for layer in table.layers]
    choices = Choices(groups=tuple((name,) for name in names), widths=(table.widths,) * len(names))
    resources = Resources(master, choices, macs=dict.fromkeys(names, 1), targets={}, tables=(table,))
    (row,) = [each for each in resources.counted() if each.name == f"latency_p50_ms@{table.target}"]
    check = resources.checks[0]
    noise = check.noise_percent / 100
    for residual in result.residuals:
        bits = MIXED if residual.label == "mixed" else WidthAssignment(default=int(residual.label[1:]))
        total = row.total(tuple(table.widths.index(bits.bits_of(name)) for name in names))
        predicted_ms = (total - check.margin_ns) / row.per_unit
        settled = [dict(without_noise(layer.latency_ms, noise))[bits.bits_of(layer.name)] for layer in table.layers]
        rounding_ms = 1e-6 * (len(names) + 1)  # ns, rounded up
        assert predicted_ms == pytest.approx(table.overhead_ms + sum(settled), abs=rounding_ms)
        most_ms = sum(max(noise * ms, CLOCK_MS) for ms in settled)
        assert predicted_ms == pytest.approx(residual.predicted_ms, abs=most_ms + rounding_ms)
    assert result.residuals[-1].label == "mixed"


def test_the_trace_shows_every_candidate(whole: tuple[ProfileResult, Path]) -> None:
    result, folder = whole
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert list(names.values()) == [each.label for each in result.candidates]
    for process, label in names.items():
        nodes = {event["args"]["node"] for event in events if event["ph"] == "X" and event["pid"] == process}
        layers = next(each.layers for each in result.candidates if each.label == label)
        assert nodes == {node.name for node in layers}


def test_energy_is_per_inference_and_says_its_source(whole: tuple[ProfileResult, Path]) -> None:
    """The counter of the made-up laptop stands still."""
    for each in whole[0].candidates:
        assert each.energy is not None
        assert (each.energy.source, each.energy.millijoules_per_inference) == ("RAPL, processor packages", 0.0)
        assert each.energy.seconds > 0


def test_the_board_is_part_of_the_result(whole: tuple[ProfileResult, Path]) -> None:
    board = whole[0].board
    assert board.looks >= 1
    assert (board.after.clocks_locked, board.after.governors) == (False, ("powersave",))
    assert not board.unstable


def test_a_board_that_moves_marks_the_result(packages: Packages, tmp_path: Path) -> None:
    host = machine(tmp_path, JETSON_FILES)
    modes = iter(["NV Power Mode: 15W", "NV Power Mode: 25W"])
    moving = Host(root=tmp_path, run=lambda words: next(modes) if words[0] == "nvpmodel" else None, start=host.start)
    result = run(packages.own, moving, widths=("w4",))
    assert "the power mode went from 15W to 25W" in result.unstable


def test_shared_weights_and_batches(packages: Packages, tmp_path: Path) -> None:
    result = run(packages.shared, machine(tmp_path, {}), widths=("w4", "w8"), batches=(1, 3))
    assert [(each.label, each.batch_size) for each in result.candidates] == [
        *(("w8", 1), ("w4", 1), ("float32", 1)),
        *(("w8", 3), ("w4", 3), ("float32", 3)),
    ]
    assert [(each.label, each.batch_size, each.verdict) for each in result.budget] == []


def test_layers_of_shared_weights_are_those_of_files_of_their_own(packages: Packages, tmp_path: Path) -> None:
    """Nodes whose names a shared graph leaves out are none that a profile shows."""
    found = []
    for package in (packages.own, packages.shared):
        result = run(package, machine(tmp_path / package.name, {}), widths=("w4", "w8"), master=None)
        # onnxruntime numbers what it puts in between
        names = (
            [(re.sub(r"_token_\d+$", "", node.name), str(node.layer)) for node in each.layers]
            for each in result.candidates
        )
        found.append([sorted(each) for each in names])
    assert found[0] == found[1]
    assert all(layers for layers in found[0])


def test_the_budget_is_for_the_widths_not_for_the_reference(whole: tuple[ProfileResult, Path]) -> None:
    assert [each.label for each in whole[0].budget] == ["w8", "w6", "w4", "w2", "mixed"]
    assert whole[0].is_within_budget


def test_without_its_master_a_package_has_no_reference(packages: Packages, tmp_path: Path) -> None:
    """The master of these packages is not the bundled one."""
    result = run(packages.own, machine(tmp_path, {}), widths=("w8",), master=None)
    assert [each.label for each in result.candidates] == ["w8"]
    assert (result.candidates[0].ratio, result.candidates[0].verdict, result.reference_label) == (None, "", None)
    assert "--master FILE" in result.reference


def test_another_master_is_refused(packages: Packages, tmp_path: Path) -> None:
    master = read_master(packages.own.parent / MASTER)
    tensors = {**master.tensors, "linear.bias": np.asarray(master.tensors["linear.bias"]) + np.float32(1)}
    path = tmp_path / "other.safetensors"
    write_master(assemble_master(spec=master.spec, tensors=tensors, skeleton=master.skeleton), path)
    with pytest.raises(UsageError, match=r"--master: a master with sha256(.|\n)*that the package was made from"):
        run(packages.own, master=path)


def test_a_package_that_was_changed_is_not_timed(packages: Packages, tmp_path: Path) -> None:
    package = Path(copytree(packages.own, tmp_path / "p"))
    graph = package / "digits-w4.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(CheckFailedError, match=r"digits-w4.onnx \(changed\)"):
        run(package, master=packages.own.parent / MASTER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": ("w8", "w3")}, r"--widths: w3, which .* has not\n  allowed: mixed, w2, w4, w6, w8"),
        ({"engine": "openvino"}, r"--engine: 'openvino'\n  allowed: onnxruntime, tensorrt, tensorrt_rtx, trtexec"),
        ({"turns": 5}, r"--turns: 5\n  allowed: 6 or more"),
        ({"duration_s": 1.0}, r"--duration: --turns as well"),
        ({"latency_table": Path("t"), "batches": (1, 2)}, r"--latency-table: 2 batch sizes"),
        ({"latency_table": Path("t"), "widths": ("mixed",)}, r"--latency-table: no uniform width"),
        ({"latency_table": Path("t"), "master": None}, r"--latency-table: no master at hand"),
        ({"trace": Path("t"), "batches": (1, 2)}, r"--trace: 2 batch sizes"),
        ({"target": "jetson-orin-nano"}, r"--target: jetson-orin-nano, and the package is for x86-cpu"),
        ({"engine": "tensorrt"}, r"no tensorrt on this machine(.|\n)*bitswitch-deploy profile own"),
    ],
)
def test_what_cannot_be_is_refused(packages: Packages, changes: dict[str, object], message: str) -> None:
    with pytest.raises((UsageError, UnavailableError), match=message):
        run(packages.own, None, **changes)


def test_a_batch_that_the_graphs_do_not_take_is_refused_before_anything_is_timed(
    packages: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[int] = []

    def make_feeds(inputs: object, batch: int) -> dict[str, object]:
        if batch == 3:
            raise UsageError(where="--batch", got="3", allowed="1", do="x")
        return {}

    monkeypatch.setattr(profiling, "make_feeds", make_feeds)
    monkeypatch.setattr(profiling, "time_batch", lambda bench, paced, *others: timed.append(paced.batch_size))
    with pytest.raises(UsageError, match="--batch: 3"):
        run(packages.own, batches=(1, 3))
    assert timed == []


def test_an_error_while_timing_leaves_no_recording_behind(
    packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trtexec that hangs in the third turn."""
    recorded = Recorded()

    def time_batch(bench: object, paced: object, schedule: object, watch: BoardWatch, progress: object) -> None:
        watch.look(warming_up=False)
        raise UnavailableError(where="trtexec", got="it hangs", allowed="x", do="x")

    monkeypatch.setattr(profiling, "time_batch", time_batch)
    host = replace(machine(tmp_path, {}), start=lambda words: recorded)
    with pytest.raises(UnavailableError, match="it hangs"):
        run(packages.own, host)
    assert recorded.stops == 1


def test_the_target_says_how_long() -> None:
    measure = load_target("x86-cpu").target.measure
    whole = schedule_for(measure, 50.0, turns=None, duration_s=None)
    assert (whole.turns, whole.warmup_turns) == (400, 60)  # 20 s, and 3 s of warm-up
    short = schedule_for(measure, 50.0, turns=None, duration_s=1.0)
    assert (short.turns, short.warmup_turns) == (20, 3)
    assert schedule_for(measure, 50.0, turns=7, duration_s=None).warmup_turns == 2
    assert schedule_for(measure, 1000.0, turns=None, duration_s=0.1).turns == 6
    assert schedule_for(measure, 402.0, turns=None, duration_s=None).turns == 50


def test_the_time_is_for_runs_as_long_as_they_are(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two candidates of 1 s and 3 s for a run and one more of warm-up: 4 s for a turn of both, on average."""
    paces = iter([Pace(runs=1, run_ms=999.0), Pace(runs=1, run_ms=2999.0)])
    monkeypatch.setattr(steps, "learn_pace", lambda time_runs, turn_ms: next(paces))
    result = run(packages.own, turns=None, duration_s=40.0, widths=("w8",))
    assert (result.turns, result.warmup_turns, result.turn_ms) == (10, 2, 4000.0)


def test_what_is_not_one_measurement_marks_the_result_and_its_table(
    packages: Packages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(profiling, "drift", lambda label, medians: f"{label} drifted")
    monkeypatch.setattr(profiling, "disturbance", lambda statistics: "disturbed")
    result = run(packages.own, widths=("w8",), latency_table=tmp_path / "table.json")
    assert read_latency_table(tmp_path / "table.json").unstable == result.unstable
    assert result.unstable[-3:] == ("w8 at batch 1 drifted", "float32 at batch 1 drifted", "disturbed")


def test_energy_is_for_one_inference() -> None:
    """4 J for runs of 5 samples; 300 ms of measured turns are three runs of 100 ms."""
    calls: list[int] = []
    session = SimpleNamespace(time_runs=lambda feeds, runs: calls.append(runs))
    bench = cast(Bench, SimpleNamespace(sessions={"w8": session}))
    meter = cast(EnergyMeter, SimpleNamespace(source="x", start=lambda: None, stop=lambda: 4.0))
    timed = steps.TimedBatch(batch_size=5, feeds={}, turns={"w8": (np.array([100.0]),)})
    schedule = Schedule(turns=6, warmup_turns=1, turn_ms=50.0)
    energy = steps.measure_energy(bench, timed, meter, schedule, Silent())["w8"]
    assert calls == [3]
    assert energy.millijoules_per_inference == pytest.approx(4000 / 15)
    assert energy.mean_watts * energy.seconds == pytest.approx(4.0)


def test_the_first_run_of_each_profiled_turn_is_left_out(packages: Packages) -> None:
    (width,) = package_widths(packages.own, read_manifest(packages.own), ["w8"])
    with ExitStack() as stack:
        bench = OnnxRuntimeBench(
            packages.own, read_manifest(packages.own), [width], master=None, threads=1, stack=stack
        )
        feeds = make_feeds(bench.sessions["w8"].inputs, 1)
        profiled = bench.profile(feeds, {"w8": 3})["w8"]
    assert (len(profiled.runs), len(profiled.plain_ms)) == (30, 30)


NOTE_ON_NARROW_CODES = "codes below 8 bits are computed by the same 8-bit kernels: no width is faster for its bits"


def test_notes_say_what_the_numbers_need(whole: tuple[ProfileResult, Path]) -> None:
    result, _ = whole
    seconds = result.turns * result.turn_ms / 1e3
    assert result.notes == (
        f"{seconds:.1f} s for each candidate; the profile of x86-cpu asks for 20 s",
        NOTE_ON_NARROW_CODES,
    )


# --- engines ---------------------------------------------------------------------------------------------------------


def test_engines_are_timed_as_an_application_runs_them(
    jetson_package: Callable[[Callable[[int], bytes]], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    device = install(monkeypatch, "10.3.0")
    package = jetson_package(lambda bits: plan(float(bits), scratch=64))
    result = run(package, machine(tmp_path / "board", JETSON_FILES), master=None, trust=True)
    assert (result.engine, result.engine_version) == ("tensorrt", "10.3.0")
    assert [each.label for each in result.candidates] == ["w8", "w4"]
    assert {call[1] for call in device.calls if call[0] == "execute"} == {8.0, 4.0}
    assert "no FP16 engine" in result.reference
    assert result.board.after.power_mode == "25W"
    energy = result.candidates[0].energy
    assert energy is not None
    assert energy.source == "INA rails VDD_IN"
    assert energy.mean_watts == pytest.approx(6.0, rel=0.05)


def test_the_fp16_engine_is_the_reference_where_the_package_has_one(
    packages: Packages,
    jetson_package: Callable[[Callable[[int], bytes]], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    device = install(monkeypatch, "10.3.0")
    device.layers = (
        ("node_Conv_118 + node_relu", 0.5),
        ("blocks.0.conv1.weight/Q + node_Conv_119", 1.0),
        ("[x]", 0.25),
    )
    package = jetson_package(lambda bits: plan(float(bits), scratch=64))
    put_reference(package)
    (package / "on_device" / "digits-fp16.engine").write_bytes(plan(16.0, scratch=64))
    master = packages.own.parent / MASTER
    result = run(package, machine(tmp_path / "board", {}), master=master, trust=True)
    assert [each.label for each in result.candidates] == ["w8", "w4", "fp16"]
    assert result.reference_label == "fp16"
    assert 16.0 in {call[1] for call in device.calls if call[0] == "execute"}
    assert [each.ratio is not None for each in result.candidates] == [True, True, False]
    # what IProfiler told, for each engine; by share, as all is scaled to what the whole takes without it
    for each in result.candidates:
        layers = {node.name: node.layer for node in each.layers}
        assert layers == dict(zip((name for name, _ in device.layers), ("conv1", "blocks.0.conv1", None)))
        assert each.operators == (("TensorRT layer", 3),)


def test_trtexec_times_engines_where_there_is_no_python_package(
    packages: Packages,
    jetson_package: Callable[[Callable[[int], bytes]], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    log = fake_trtexec.install(tmp_path / "bin", monkeypatch)
    names = ("node_Conv_118 + node_relu", "blocks.0.conv1.weight/Q + node_Conv_119 + node_relu_1", "[x]")
    layers = dict(zip(names, (0.5, 1.0, 0.25)))
    package = jetson_package(lambda bits: json.dumps({"ms": bits / 4, "layers": layers}).encode())
    with pytest.raises(CheckFailedError, match=r"an engine without digits-w8.engine.json(.|\n)*--trust"):
        run(package, engine="trtexec", master=None)
    master, host = packages.own.parent / MASTER, machine(tmp_path / "board", JETSON_FILES)
    put_reference(package)
    (package / "on_device" / "digits-fp16.engine").write_text(json.dumps({"ms": 1.5, "layers": layers}))
    fell_back = NodePrecision(node="node_Conv_119", operator="Conv", precision="fp16")
    found = ReadBack(engine_layers=2, int8=(), fell_back=(fell_back,), in_float=(), unfused=(), unseen=())
    engine = package / "on_device" / "digits-w8.engine"
    keep_facts(engine, EngineFacts(engine_sha256=hash_file(engine)[0], layers=found))
    result = run(package, host, engine="trtexec", master=master, trust=True)
    assert [each.verdict.partition(", because ")[2] for each in result.candidates] == [
        "1 of 1 layers compute in float (node_Conv_119)",
        "",
        "",
    ]
    assert (result.engine, result.engine_version) == ("trtexec", "10.3.0")
    assert [(each.label, each.statistics.p95_ms) for each in result.candidates[:2]] == [
        ("w8", 2.0),
        ("w4", 1.0),
    ]
    nodes = {node.name: (node.layer, node.ms) for node in result.candidates[0].layers}
    assert nodes == dict(zip(names, (("conv1", 0.5), ("blocks.0.conv1", 1.0), (None, 0.25))))
    timed = [line for line in log.read_text().splitlines() if "--exportTimes" in line]
    assert all(" --useSpinWait --noDataTransfers --useCudaGraph --infStreams=1 " in line for line in timed)
    assert result.candidates[0].energy is None


def test_before_tensorrt_8_6_the_streams_have_another_name(
    jetson_package: Callable[[Callable[[int], bytes]], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log = fake_trtexec.install(tmp_path / "bin", monkeypatch, number="8502")
    package = jetson_package(lambda bits: json.dumps({"ms": 1.0, "layers": {"a": 1.0}}).encode())
    result = run(package, machine(tmp_path / "board", {}), engine="trtexec", master=None, trust=True, widths=("w8",))
    assert (result.engine_version, result.candidates[0].statistics.p95_ms) == ("8.5.2", 1.0)
    timed = [line for line in log.read_text().splitlines() if "--exportTimes" in line]
    assert all(" --useCudaGraph --streams=1 " in line for line in timed)


@pytest.mark.parametrize("captured", [True, False])
def test_since_tensorrt_11_the_same_is_measured_with_fewer_flags(
    jetson_package: Callable[[Callable[[int], bytes]], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    captured: bool,
) -> None:
    """Spin wait and CUDA graph became defaults, transfers are off."""
    log = fake_trtexec.install(tmp_path / "bin", monkeypatch, number="11.1.0.106")
    engine = {"ms": 1.0, "layers": {"a": 1.0}} | ({} if captured else {"uncaptured": True})
    package = jetson_package(lambda bits: json.dumps(engine).encode())
    result = run(package, machine(tmp_path / "board", {}), engine="trtexec", master=None, trust=True, widths=("w8",))
    assert (result.engine_version, result.candidates[0].statistics.p95_ms) == ("11.1.0", 1.0)
    timed = [line.split() for line in log.read_text().splitlines() if "--exportTimes" in line]
    assert {word for words in timed for word in words if word.startswith(("--use", "--no", "--inf"))} == {
        "--infStreams=1"
    }
    assert ("w8: no CUDA graph was captured, so launches count as well" in result.notes) is not captured


def test_an_engine_that_is_not_the_one_of_its_record(
    jetson_package: Callable[[Callable[[int], bytes]], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_trtexec.install(tmp_path / "bin", monkeypatch)
    package = jetson_package(lambda bits: b"{}")
    for bits in (8, 4):
        engine = package / "on_device" / f"digits-w{bits}.engine"
        recipe = Recipe(
            graph_sha256=(hash_file(package / f"digits-w{bits}.onnx")[0],),
            module="tensorrt",
            version="10.3.0",
            flags=(),
            shapes=(),
            workspace_mb=None,
            dla_core=None,
            device=device_facts(),
        )
        size = engine.stat().st_size
        record = EngineRecord(label=f"w{bits}", sha256="0" * 64, size_bytes=size, tool="trtexec", recipe=recipe)
        record_path(engine).write_text(record.to_json())
    with pytest.raises(CheckFailedError, match="it is not the engine that its record describes"):
        run(package, engine="trtexec", master=None)


def test_an_unreadable_answer_of_trtexec(
    jetson_package: Callable[[Callable[[int], bytes]], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_trtexec.install(tmp_path / "bin", monkeypatch)
    package = jetson_package(lambda bits: json.dumps({"ms": 1, "layers": {}, "times": "[]"}).encode())
    with pytest.raises(InputFileError, match="trtexec --exportTimes"):
        run(package, engine="trtexec", master=None, trust=True)


def test_an_engine_that_is_not_built(
    jetson_package: Callable[[Callable[[int], bytes]], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_trtexec.install(tmp_path / "bin", monkeypatch)
    package = jetson_package(lambda bits: b"{}")
    (package / "on_device" / "digits-w4.engine").unlink()
    with pytest.raises(UnavailableError, match=r"the engine of w4 is not built(.|\n)*bitswitch-deploy build"):
        run(package, engine="trtexec", master=None, trust=True)
