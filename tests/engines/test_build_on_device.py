"""The script is run here with a stand-in for trtexec, uname and the device tree; no board has run it yet."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from bitswitch_deploy.engines.bundle import SCRIPT, write_bundle
from bitswitch_deploy.engines.device_facts import DeviceFacts, device_facts
from bitswitch_deploy.engines.engine_record import EngineRecord, Recipe, read_record
from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.engines.timing_cache import timing_cache_name
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.target import Target
from tests.engines.board import WRITE_ENGINE, Board

BATCHES = ShapeRange(input="x", minimum=(1, 3, 8, 8), optimum=(2, 3, 8, 8), maximum=(4, 3, 8, 8))
LABELS = ("fp16", "w8", "w4")
BANNERS = {
    "8.2.1": "v8201",
    "8.3.0": "v8300",
    "8.4.0": "v8400",
    "8.5.2": "v8502",
    "8.6.2": "v8602",
    "10.3.0": "v100300",
    "10.11.0": "v101100",
    "10.12.0": "v101200",
    "10.16.2": "v101602",
    "11.4.1": "v110401",
}


@pytest.fixture
def board(tmp_path: Path, qdq_conv: Callable[..., bytes], target_with: Callable[..., Target]) -> Board:
    """A package of two widths with an open batch, and the reference."""
    board = Board(tmp_path)
    for label in LABELS:
        (board.package / f"net-{label}.onnx").write_bytes(qdq_conv(batch="N"))
    graphs = tuple((label, "reference" if label == "fp16" else "graph", f"net-{label}.onnx") for label in LABELS)
    write_bundle(board.package, graphs, target_with(), (BATCHES,))
    return board


@pytest.mark.parametrize(
    ("version", "precision", "no_run"),
    [
        ("8.2.1", ["--int8", "--fp16"], "--buildOnly"),
        ("8.3.0", ["--int8", "--fp16"], "--buildOnly"),
        ("8.4.0", ["--int8", "--fp16"], "--buildOnly"),
        ("8.5.2", ["--int8", "--fp16"], "--buildOnly"),
        ("8.6.2", ["--int8", "--fp16"], "--skipInference"),
        ("10.3.0", ["--int8", "--fp16"], "--skipInference"),
        ("10.11.0", ["--int8", "--fp16"], "--skipInference"),
        ("10.12.0", ["--stronglyTyped"], "--skipInference"),
        ("10.16.2", ["--stronglyTyped"], "--skipInference"),
        ("11.4.1", [], "--skipInference"),
    ],
)
def test_flags_follow_the_release(board: Board, version: str, precision: list[str], no_run: str) -> None:
    board.trtexec(BANNERS[version])
    result = board.run()
    assert result.returncode == 0, result.stderr
    assert f"TensorRT {version} on this board; the graphs were made for tensorrt 10.3.0" in result.stderr
    expected = []
    for label in LABELS:
        start = f"--saveEngine={board.built}/.net-{label}.engine.partial-"
        layers = f"--exportLayerInfo={board.built}/.net-{label}.engine.partial-"
        expected += [
            f"--onnx={board.package}/net-{label}.onnx",
            next(a for a in board.arguments() if a.startswith(start)),
            f"--timingCacheFile={board.cache}/bitswitch-deploy/tensorrt-{version}-p3767_0005-15W.timing",
            next(a for a in board.arguments() if a.startswith(layers)),
            *(["--fp16"] if label == "fp16" and "--fp16" in precision else precision),
            no_run,
            "--workspace=1024" if version in ("8.2.1", "8.3.0") else "--memPoolSize=workspace:1024",
            "--minShapes=x:1x3x8x8",
            "--optShapes=x:2x3x8x8",
            "--maxShapes=x:4x3x8x8",
            "--profilingVerbosity=detailed",
        ]
        assert (board.built / f"net-{label}.engine").read_text() == "engine\n"
        assert "RUNNING TensorRT" in (board.built / f"net-{label}.log").read_text()
    assert board.arguments() == expected
    assert not list(board.built.glob(".*.engine*"))


def test_a_static_graph_without_limit_has_fewer_flags(
    tmp_path: Path, qdq_conv: Callable[..., bytes], target_with: Callable[..., Target]
) -> None:
    board = Board(tmp_path)
    (board.package / "w8.onnx").write_bytes(qdq_conv())
    write_bundle(board.package, (("w8", "graph", "w8.onnx"),), target_with(limits={}), ())
    assert board.run().returncode == 0
    assert not [a for a in board.arguments() if a.startswith(("--memPool", "--min", "--opt", "--max"))]


def test_what_is_there_is_not_built_again(board: Board) -> None:
    board.run()
    second = board.run()
    assert second.returncode == 0
    assert second.stderr.count("up to date") == 3
    assert board.arguments() == []
    (board.built / "net-w4.engine").unlink()
    board.run()
    assert [a for a in board.arguments() if a.startswith("--onnx")] == [f"--onnx={board.package}/net-w4.onnx"]
    board.run("--force")
    assert sum(a.startswith("--onnx") for a in board.arguments()) == 3


def test_another_release_builds_again(board: Board) -> None:
    board.run()
    board.trtexec("v100301")
    board.run()
    assert sum(a.startswith("--onnx") for a in board.arguments()) == 3


def test_a_failed_build_is_said_and_the_others_go_on(board: Board) -> None:
    failing = 'case $2 in *.net-w8.*) echo "out of memory"; exit 7 ;; esac; ' + WRITE_ENGINE
    board.trtexec(write=failing)
    result = board.run()
    assert result.returncode == 1
    assert (
        "w8: FAILED: out of memory: end other programs, the desktop first, or build with less: --workspace MB"
        in result.stderr
    )
    assert "out of memory\n" in result.stderr
    assert "1 of the engines could not be built" in result.stderr
    assert not (board.built / "net-w8.engine").exists()
    assert (board.built / "net-w4.engine").exists()
    board.trtexec()
    assert board.run().returncode == 0
    assert (board.built / "net-w8.engine").exists()


def test_too_little_workspace_is_no_fault_of_the_graph(board: Board) -> None:
    said = "[E] Error Code 10: (Could not find any implementation for node conv due to insufficient workspace.)"
    board.trtexec(line=said, code=1)
    assert "w8: FAILED: too little workspace for a layer: build with more: --workspace MB" in board.run().stderr


@pytest.mark.parametrize(
    ("line", "write", "message"),
    [
        (
            "[W] [TRT] QuantizeLinear with UINT8 zero_point",
            WRITE_ENGINE,
            "TensorRT reads UINT8 codes of this graph as INT8",
        ),
        ("ok", "true", "trtexec wrote no engine"),
    ],
)
def test_success_of_trtexec_is_not_enough(board: Board, line: str, write: str, message: str) -> None:
    board.trtexec(line=line, write=write)
    result = board.run()
    assert result.returncode == 1
    assert result.stderr.count(message) == 3
    assert not list(board.built.glob("*.engine"))
    assert not list(board.built.glob(".*.engine*"))


def test_a_failed_rebuild_keeps_the_old_engine(board: Board) -> None:
    board.run()
    board.trtexec(write='echo torn >"${argument#--saveEngine=}"', code=1)
    assert board.run("--force").returncode == 1
    assert (board.built / "net-w8.engine").read_text() == "engine\n"
    assert not list(board.built.glob(".*.engine*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_no_partial_engine(board: Board, number: signal.Signals, code: int) -> None:
    board.trtexec(write=WRITE_ENGINE + "; sleep 60")
    run = board.start(start_new_session=True)
    partials = board.wait_for(".net-fp16.engine.partial-*")
    os.killpg(run.pid, number)
    run.communicate(timeout=60)
    assert run.returncode == code
    assert not any(partial.exists() for partial in partials)


@pytest.mark.parametrize("has_timeout", [True, False])
def test_a_signal_to_the_script_alone_ends_trtexec(board: Board, has_timeout: bool) -> None:
    """As a service manager sends it, which does not know of trtexec."""
    if not has_timeout:
        board.program("timeout", "#!/bin/sh\nexit 1\n")
    board.trtexec(write=f'echo "$$" >{board.programs}/pid; {WRITE_ENGINE}; exec sleep 600')
    run = board.start()
    partials = board.wait_for(".net-fp16.engine.partial-*")
    run.terminate()
    run.communicate(timeout=60)
    assert run.returncode == 143
    assert not any(partial.exists() for partial in partials)
    with pytest.raises(ProcessLookupError):
        os.kill(int((board.programs / "pid").read_text()), 0)


def test_what_is_beside_an_engine_is_of_that_engine(board: Board) -> None:
    layers, fallback = board.built / "net-w8.layers.json", board.built / "net-w8.gpu-fallback.txt"
    told = '; case $4 in --exportLayerInfo=*) echo {} >"${{4#--exportLayerInfo=}}" ;; esac'
    board.trtexec(write=WRITE_ENGINE + told.format("good"))
    board.run()
    assert layers.read_text() == "good\n"
    board.trtexec(write=WRITE_ENGINE + told.format("failed"), code=1)
    assert board.run("--force").returncode == 1
    assert layers.read_text() == "good\n"
    # of an engine that was built for DLA
    fallback.write_text("a layer\n")
    board.trtexec()
    board.run("--force")
    assert (layers.exists(), fallback.exists()) == (False, False)
    assert not list(board.built.glob(".*.engine*"))


def test_what_a_killed_run_left_is_removed(board: Board) -> None:
    board.trtexec(write=WRITE_ENGINE + "; sleep 60")
    run = board.start(start_new_session=True)
    partials = board.wait_for(".net-fp16.engine.partial-*")
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    assert partials[0].exists()
    board.trtexec()
    assert board.run().returncode == 0
    assert not partials[0].exists()


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_two_runs_at_once_are_refused(board: Board) -> None:
    board.trtexec(write=WRITE_ENGINE + "; sleep 60")
    run = board.start(start_new_session=True)
    board.wait_for(".net-fp16.engine.partial-*")
    second = board.run()
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    assert second.returncode == 4
    assert "another build is running" in second.stderr


def test_another_graph_is_refused(board: Board) -> None:
    with (board.package / "net-w4.onnx").open("ab") as file:
        file.write(b"\0")
    result = board.run()
    assert result.returncode == 3
    assert "net-w4.onnx is not the graph that was exported" in result.stderr
    (board.package / "net-w4.onnx").unlink()
    assert "net-w4.onnx is missing" in board.run().stderr


def test_another_machine_is_refused(board: Board) -> None:
    board.program("uname", "#!/bin/sh\necho x86_64\n")
    result = board.run()
    assert result.returncode == 4
    assert "this is a x86_64 machine. Engines for jetson-test are built on the aarch64 board itself" in result.stderr
    assert not board.built.exists()


def test_another_board_is_refused(board: Board) -> None:
    board.device_tree.write_bytes(b"nvidia,p2972-0000\0nvidia,tegra194\0")
    result = board.run()
    assert result.returncode == 4
    assert "this board is nvidia,p2972-0000 nvidia,tegra194 . jetson-test is one of: tegra234" in result.stderr
    board.device_tree.unlink()
    result = board.run()
    assert result.returncode == 4
    assert "this is not the board of jetson-test" in result.stderr


def test_a_target_without_known_boards_is_built_on_any(
    tmp_path: Path, qdq_conv: Callable[..., bytes], target_with: Callable[..., Target]
) -> None:
    board = Board(tmp_path)
    board.device_tree.unlink()
    (board.package / "w8.onnx").write_bytes(qdq_conv())
    write_bundle(board.package, (("w8", "graph", "w8.onnx"),), target_with(detect={}), ())
    assert board.run().returncode == 0


@pytest.mark.skipif(Path("/usr/src/tensorrt/bin/trtexec").exists(), reason="trtexec is installed here")
def test_a_missing_trtexec_is_said(board: Board) -> None:
    (board.programs / "trtexec").unlink()
    result = board.run()
    assert result.returncode == 4
    assert "trtexec is neither in PATH nor in /usr/src/tensorrt/bin. Install it" in result.stderr


@pytest.mark.parametrize(
    ("banner", "message"),
    [
        ("v8001", "TensorRT 8.0.1 is too old. 8.2 or newer"),
        ("unknown", "cannot read the TensorRT version from: trtexec"),
    ],
)
def test_an_unusable_trtexec_is_said(board: Board, banner: str, message: str) -> None:
    board.trtexec(banner)
    result = board.run()
    assert result.returncode == 4
    assert message in result.stderr


def test_a_dotted_banner_is_read(board: Board) -> None:
    board.trtexec("v11.1.0.106")
    assert "TensorRT 11.1.0 on this board" in board.run().stderr


@pytest.mark.parametrize(
    "arguments",
    [["--fast"], [""], ["--workspace"], ["--timeout", "0"], ["--workspace", "1G"], ["--timeout", "99999999"]],
)
def test_other_arguments_are_refused(board: Board, arguments: list[str]) -> None:
    result = board.run(*arguments)
    assert result.returncode == 2
    assert "Allowed: --force, --fp32, --dla, --workspace MB, --timeout MINUTES" in result.stderr


def record_at(board: Board, label: str) -> EngineRecord:
    record = read_record(board.built / f"net-{label}.engine")
    assert record is not None
    return record


def test_the_record_says_what_an_engine_was_built_from_and_on(board: Board) -> None:
    board.trtexec(write=WRITE_ENGINE + '; echo cache >"${3#--timingCacheFile=}"')
    assert board.run().returncode == 0
    cache = next(board.cache.glob("*/*.timing"))
    for label in LABELS:
        engine, graph = board.built / f"net-{label}.engine", board.package / f"net-{label}.onnx"
        assert record_at(board, label) == EngineRecord(
            label=label,
            sha256=hash_file(engine)[0],
            size_bytes=engine.stat().st_size,
            tool="trtexec",
            recipe=Recipe(
                graph_sha256=(hash_file(graph)[0],),
                module="tensorrt",
                version="10.3.0",
                flags=("FP16",) if label == "fp16" else ("FP16", "INT8"),
                shapes=("x:1x3x8x8", "x:2x3x8x8", "x:4x3x8x8"),
                workspace_mb=1024,
                dla_core=None,
                device=DeviceFacts(arch="aarch64", module="p3767-0005", sm="8.7", l4t="36.4.3", power_mode="15W"),
            ),
            timing_cache_sha256=hash_file(cache)[0],
        )


def test_the_record_is_the_one_that_the_package_writes(board: Board) -> None:
    """Byte for byte but for the tool, so each of the two knows the other's engines."""
    board.run()
    path = board.built / "net-w8.engine.json"
    assert record_at(board, "w8").to_json() == path.read_text()
    path.write_text(path.read_text().replace('"trtexec"', '"bitswitch-deploy"'))
    assert board.run().stderr.count("up to date") == 3


def test_a_board_that_tells_little_is_recorded_with_what_it_tells(board: Board) -> None:
    board.release.unlink()
    (board.programs / "nvpmodel").unlink()
    board.device_tree.write_bytes(b"nvidia,tegra234\0")
    assert board.run().returncode == 0
    device = record_at(board, "w8").recipe.device
    assert device == DeviceFacts(arch="aarch64", sm="8.7")
    assert "tensorrt-10.3.0-aarch64.timing" in " ".join(board.arguments())


@pytest.mark.parametrize(
    ("tree", "release", "mode"),
    [
        (b"nvidia,tegra234\0", None, None),
        (b"vendor,carrier\0nvidia,tegra234\0", "# R35 (release), REVISION: 1, GCID: 1", "MODE 30W"),
        (b"nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0", "# R36 (release), REVISION: 4.3, GCID: 1", "15W"),
        (b"nvidia,p3701-0005\0nvidia,tegra234\0", "nothing that is known", "MAXN"),
    ],
)
def test_a_board_is_the_same_to_both_builders(board: Board, tree: bytes, release: str | None, mode: str | None) -> None:
    board.device_tree.write_bytes(tree)
    board.release.unlink()
    (board.programs / "nvpmodel").unlink()
    root = board.package.parent / "root"
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "proc/device-tree/compatible").write_bytes(tree)
    if release is not None:
        board.release.write_text(release)
        (root / "etc/nv_tegra_release").write_text(release)
    answers = {"uname": "aarch64"}
    if mode is not None:
        answers["nvpmodel"] = f"NV Power Mode: {mode}\n0"
        board.program("nvpmodel", f"#!/bin/sh\necho NV Power Mode: {mode}\necho 0\n")
    assert board.run().returncode == 0
    device = device_facts(root, ask=lambda command: answers.get(command[0], ""))
    assert record_at(board, "w8").recipe.device == device
    assert timing_cache_name(device, version="10.3.0") in " ".join(board.arguments())


@pytest.mark.parametrize("cache", [None, "/dev/null", "relative"])
def test_without_a_cache_folder_the_timing_cache_is_beside_the_engines(board: Board, cache: str | None) -> None:
    board.environment = {} if cache is None else {"XDG_CACHE_HOME": cache}
    assert board.run().returncode == 0
    assert f"--timingCacheFile={board.built}/tensorrt-10.3.0-p3767_0005-15W.timing" in board.arguments()


def test_another_power_mode_builds_again(board: Board) -> None:
    board.run()
    board.program("nvpmodel", "#!/bin/sh\necho NV Power Mode: MAXN\n")
    assert "up to date" not in board.run().stderr
    assert record_at(board, "w8").recipe.device.power_mode == "MAXN"  # type: ignore[union-attr]


def test_a_damaged_timing_cache_is_started_again(board: Board) -> None:
    """trtexec gives up on it, and a kill while it is written leaves one."""
    board.trtexec(
        write="cache=$(printf '%s\\n' \"$@\" | sed -n 's/--timingCacheFile=//p'); "
        'if grep -q cut "$cache" 2>/dev/null; then echo "[E] TimingCache creation failed"; exit 1; fi; '
        f'echo whole >"$cache"; {WRITE_ENGINE}'
    )
    assert board.run().returncode == 0
    (cache,) = board.cache.rglob("*.timing")
    cache.write_text("cut")
    result = board.run("--force")
    assert result.returncode == 0, result.stderr
    assert f"fp16: {cache} is damaged, so it is not used and started again" in result.stderr
    assert (result.stderr.count("is damaged"), cache.read_text()) == (1, "whole\n")


def test_a_graph_that_is_refused_is_not_tried_twice(board: Board) -> None:
    board.trtexec(code=1)
    assert board.run().returncode != 0
    assert sum(word.startswith("--onnx=") for word in board.arguments()) == len(LABELS)


@pytest.mark.parametrize("damage", ["engine", "record"])
def test_a_damaged_engine_is_built_again(board: Board, damage: str) -> None:
    board.run()
    with (board.built / f"net-w8.engine{'.json' if damage == 'record' else ''}").open("a") as file:
        file.write("x")
    second = board.run()
    assert second.stderr.count("up to date") == 2
    assert "w8: building" in second.stderr


def test_a_killed_build_goes_on_with_what_is_missing(board: Board) -> None:
    board.trtexec(write="case $2 in *net-w8*) kill -KILL $(cut -d' ' -f4 /proc/$PPID/stat) ;; esac; " + WRITE_ENGINE)
    board.run()
    assert (board.built / "net-fp16.engine.json").exists()
    assert not (board.built / "net-w8.engine.json").exists()
    board.trtexec()
    second = board.run()
    assert second.returncode == 0
    assert second.stderr.count("up to date") == 1


def test_what_was_read_back_of_the_engine_before_is_forgotten(board: Board) -> None:
    board.run()
    kept = board.built / "net-w8.engine.layers.json"
    kept.write_text("{}")
    board.run()
    assert kept.exists()
    board.run("--force")
    assert not kept.exists()


def test_a_hung_trtexec_is_given_up(board: Board) -> None:
    """Minutes are seconds here: the script multiplies them by 60."""
    script = board.package / SCRIPT
    script.write_text(script.read_text().replace("minutes * 60", "minutes"))
    board.trtexec(write="case $2 in *net-w8*) exec sleep 60 ;; esac; " + WRITE_ENGINE)
    result = board.run("--timeout", "1")
    assert result.returncode == 1
    assert "w8: FAILED: not done after 1 minutes: it hangs, or needs a longer --timeout" in result.stderr
    assert (board.built / "net-w4.engine").exists()


def test_a_hung_trtexec_that_does_not_listen_is_killed(board: Board) -> None:
    """And is not taken for one that the system killed."""
    script = board.package / SCRIPT
    script.write_text(script.read_text().replace("minutes * 60", "minutes").replace("-k 30", "-k 1"))
    board.trtexec(write="case $2 in *net-w8*) trap '' TERM; sleep 60; sleep 60 ;; esac; " + WRITE_ENGINE)
    result = board.run("--timeout", "1")
    assert "w8: FAILED: not done after 1 minutes" in result.stderr
    assert "killed" not in result.stderr
    assert (board.built / "net-w4.engine").exists()


def test_a_full_disk_is_said(board: Board) -> None:
    """Also where trtexec takes an engine that was cut short for a good one."""
    df = "#!/bin/sh\necho Filesystem 1024-blocks Used Available Capacity Mounted\necho tmpfs 400 {used} {free} 99% /\n"
    board.program("df", df.format(used=390, free=10))
    result = board.run()
    assert result.returncode == 1
    assert result.stderr.count("FAILED: the disk is full: free some space, then run this again") == 3
    assert not list(board.built.glob("*.engine*"))
    board.trtexec(code=1)
    assert board.run().stderr.count("FAILED: the disk is full") == 3
    board.program("df", df.format(used=0, free=1023))
    assert board.run().stderr.count("FAILED: the disk is full") == 3
    board.program("df", df.format(used=0, free=1024))
    assert "the disk is full" not in board.run().stderr
    board.trtexec(line="[E] Saving engine failed: No space left on device", code=1)
    assert board.run().stderr.count("FAILED: the disk is full") == 3


def test_a_trtexec_that_the_system_killed_is_said(board: Board) -> None:
    board.trtexec(write="kill -KILL $$")
    assert "trtexec was killed, as the system does when memory runs out" in board.run().stderr


def test_fp32_leaves_out_the_flag_but_for_the_reference(board: Board) -> None:
    assert board.run("--fp32").returncode == 0
    assert board.arguments().count("--fp16") == 1
    assert board.arguments().count("--int8") == 2
    assert board.arguments().count("--noTF32") == 2
    assert record_at(board, "w8").recipe.flags == ("INT8", "NO_TF32")


def test_the_bundle_of_a_strict_export_has_the_option_always(board: Board, target_with: Callable[..., Target]) -> None:
    write_bundle(board.package, (("w8", "graph", "net-w8.onnx"),), target_with(), (BATCHES,), fp32=True)
    assert board.run().returncode == 0
    assert record_at(board, "w8").recipe.flags == ("INT8", "NO_TF32")


@pytest.mark.parametrize("version", ["10.3.0", "10.16.2"])
def test_fp32_is_refused_where_the_graph_holds_float16(
    tmp_path: Path, qdq_conv: Callable[..., bytes], target_with: Callable[..., Target], version: str
) -> None:
    """A strongly typed network is built as it says; a weakly typed one is not built without FP16."""
    board = Board(tmp_path)
    model = onnx.load_from_string(qdq_conv())
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float16), "half"))
    (board.package / "w8.onnx").write_bytes(model.SerializeToString())
    write_bundle(board.package, (("w8", "graph", "w8.onnx"),), target_with(), ())
    board.trtexec(BANNERS[version])
    result = board.run("--fp32")
    assert result.returncode == 2
    assert "--fp32: these graphs hold float16 themselves, which no flag takes back" in result.stderr
    assert board.run().returncode == 0


def test_float16_of_the_reference_is_no_reason_to_refuse_fp32(
    tmp_path: Path, qdq_conv: Callable[..., bytes], target_with: Callable[..., Target]
) -> None:
    """It is always float16."""
    board = Board(tmp_path)
    model = onnx.load_from_string(qdq_conv())
    (board.package / "w8.onnx").write_bytes(model.SerializeToString())
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float16), "half"))
    (board.package / "fp16.onnx").write_bytes(model.SerializeToString())
    graphs = (("fp16", "reference", "fp16.onnx"), ("w8", "graph", "w8.onnx"))
    write_bundle(board.package, graphs, target_with(), ())
    board.trtexec(BANNERS["10.16.2"])
    assert board.run("--fp32").returncode == 0


def test_workspace_overrides_the_target(board: Board) -> None:
    assert board.run("--workspace", "64").returncode == 0
    assert board.arguments().count("--memPoolSize=workspace:64") == 3
    assert record_at(board, "w8").recipe.workspace_mb == 64


@pytest.mark.parametrize("version", list(BANNERS))
def test_dla_where_the_target_says_that_it_works(
    tmp_path: Path, qdq_conv: Callable[..., bytes], target_with: Callable[..., Target], version: str
) -> None:
    board = Board(tmp_path)
    (board.package / "w8.onnx").write_bytes(qdq_conv(batch="N"))
    target = target_with(device={"dla_cores": 2, "dla_tensorrt": ["<10.8", ">=11.4.1"]})
    write_bundle(board.package, (("w8", "graph", "w8.onnx"),), target, (BATCHES,))
    line = "[W] [TRT] Layer 'activation_q' (QUANTIZE): Unsupported on DLA. Switching this layer's device type to GPU."
    board.trtexec(BANNERS[version], line=line)
    result = board.run("--dla")
    if version in ("10.11.0", "10.12.0", "10.16.2"):
        assert result.returncode == 4
        assert f"--dla: TensorRT {version} does not drive the DLA cores of jetson-test" in result.stderr
        return
    assert result.returncode == 0
    assert "w8: 1 layers fall back to the GPU" in result.stderr
    assert (board.built / "w8.gpu-fallback.txt").read_text() == f"{line}\n"
    assert {"--useDLACore=0", "--allowGPUFallback", "--maxShapes=x:1x3x8x8"} <= set(board.arguments())
    record = read_record(board.built / "w8.engine")
    assert record is not None
    assert (record.recipe.dla_core, "GPU_FALLBACK" in record.recipe.flags) == (0, True)


def test_dla_of_a_board_without_it_is_refused(board: Board) -> None:
    result = board.run("--dla")
    assert result.returncode == 4
    assert "--dla: jetson-test has no DLA cores" in result.stderr


def test_a_data_file_is_checked_and_recorded(
    tmp_path: Path, qdq_conv: Callable[..., bytes], target_with: Callable[..., Target]
) -> None:
    board = Board(tmp_path)
    (board.package / "w8.onnx").write_bytes(qdq_conv())
    (board.package / "w8.onnx.data").write_bytes(b"weights")
    write_bundle(board.package, (("w8", "graph", "w8.onnx"),), target_with(), ())
    assert board.run().returncode == 0
    record = read_record(board.built / "w8.engine")
    assert record is not None
    names = ("w8.onnx", "w8.onnx.data")
    assert record.recipe.graph_sha256 == tuple(hash_file(board.package / name)[0] for name in names)
    (board.package / "w8.onnx.data").write_bytes(b"changed")
    assert "w8.onnx.data is not the graph that was exported" in board.run().stderr


def test_the_shell_accepts_the_script(board: Board) -> None:
    subprocess.run(["sh", "-n", str(board.package / SCRIPT)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_accepts_the_script(board: Board) -> None:
    command = ["shellcheck", "--shell=sh", str(board.package / SCRIPT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == ""
