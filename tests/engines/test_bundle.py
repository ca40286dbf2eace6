"""The script is run here with a stand-in for trtexec, uname and the device tree; no board has run it yet."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bitswitch_deploy.engines.bundle import BUILD_FOLDER, SCRIPT, write_bundle
from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.errors import GraphError, OutputError, UsageError
from bitswitch_deploy.target import Target

BATCHES = ShapeRange(input="x", minimum=(1, 3, 8, 8), optimum=(2, 3, 8, 8), maximum=(4, 3, 8, 8))
BANNERS = {
    "8.5.2": "v8502",
    "8.6.2": "v8602",
    "10.3.0": "v100300",
    "10.16.2": "v101602",
    "11.4.1": "v110401",
}

TRTEXEC = """#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT {banner}] [b9] # trtexec $*"
[ "$1" = --help ] && exit 0
printf '%s\\n' "$@" >>"{calls}"
echo "{line}"
for argument in "$@"; do
    case $argument in --saveEngine=*) {write} ;; esac
done
exit {code}
"""
WRITE_ENGINE = 'echo engine >"${argument#--saveEngine=}"'


def _target(**changes: object) -> Target:
    mapping = {
        "schema": "bitswitch-target/1",
        "name": "jetson-test",
        "title": "Test board",
        "family": "jetson",
        "arch": "aarch64",
        "detect": {"compatible": ["tegra234"]},
        "stacks": [
            {"name": "6.2", "engine_version": "10.3.0", "opset": 21, "ir_version": 10, "python": "3.10",
             "typing": "weak", "default": True}
        ],
        "quantization": {
            "activation": {"dtype": "int8", "zero_point": 0},
            "weight_containers": dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), "int8"),
            "residual": "skip_input",
            "residual_min_agreement": 99.5,
        },
        "lowering": [],
        "engine": {"name": "tensorrt", "build": "on_device", "builder_flags_legacy": ["INT8", "FP16"]},
        "measure": {"min_warmup_s": 10, "min_seconds": 30},
        "limits": {"max_workspace_mb": 1024},
    }  # fmt: skip
    return Target.from_mapping(mapping | changes, source="test.yaml")


class Board:
    """A folder with a bundle, and the programs that the script finds."""

    def __init__(self, tmp_path: Path) -> None:
        self.package = tmp_path / "a package"
        self.programs = tmp_path / "bin"
        self.calls = tmp_path / "calls"
        self.device_tree = tmp_path / "compatible"
        self.package.mkdir()
        self.programs.mkdir()
        self.device_tree.write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
        self.program("uname", "#!/bin/sh\necho aarch64\n")
        self.trtexec()

    @property
    def built(self) -> Path:
        return self.package / BUILD_FOLDER

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def trtexec(self, banner: str = "v100300", line: str = "ok", write: str = WRITE_ENGINE, code: int = 0) -> None:
        self.program("trtexec", TRTEXEC.format(banner=banner, line=line, write=write, code=code, calls=self.calls))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.calls.unlink(missing_ok=True)
        environment = {
            "PATH": f"{self.programs}:{os.defpath}",
            "BITSWITCH_DEVICE_TREE": str(self.device_tree),
        }
        command = [str(self.package / SCRIPT), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def arguments(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def board(tmp_path: Path, qdq_conv: Callable[..., bytes]) -> Board:
    """A package of two widths with an open batch."""
    board = Board(tmp_path)
    for label in ("w8", "w4"):
        (board.package / f"{label}.onnx").write_bytes(qdq_conv(batch="N"))
    write_bundle(board.package, (("w8", "w8.onnx"), ("w4", "w4.onnx")), _target(), (BATCHES,))
    return board


@pytest.mark.parametrize(
    ("version", "precision", "no_run"),
    [
        ("8.5.2", ["--int8", "--fp16"], "--buildOnly"),
        ("8.6.2", ["--int8", "--fp16"], "--skipInference"),
        ("10.3.0", ["--int8", "--fp16"], "--skipInference"),
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
    for label in ("w8", "w4"):
        partial = next(
            a for a in board.arguments() if a.startswith(f"--saveEngine={board.built}/.{label}.plan.partial-")
        )
        expected += [
            f"--onnx={board.package}/{label}.onnx",
            partial,
            f"--timingCacheFile={board.built}/timing-{version}.cache",
            f"--exportLayerInfo={board.built}/{label}.layers.json",
            *precision,
            no_run,
            "--memPoolSize=workspace:1024",
            "--minShapes=x:1x3x8x8",
            "--optShapes=x:2x3x8x8",
            "--maxShapes=x:4x3x8x8",
            "--profilingVerbosity=detailed",
        ]
        assert (board.built / f"{label}.plan").read_text() == "engine\n"
        assert "RUNNING TensorRT" in (board.built / f"{label}.log").read_text()
    assert board.arguments() == expected
    assert not list(board.built.glob(".*"))


def test_a_static_graph_without_limit_has_fewer_flags(tmp_path: Path, qdq_conv: Callable[..., bytes]) -> None:
    board = Board(tmp_path)
    (board.package / "w8.onnx").write_bytes(qdq_conv())
    write_bundle(board.package, (("w8", "w8.onnx"),), _target(limits={}), ())
    assert board.run().returncode == 0
    assert not [a for a in board.arguments() if a.startswith(("--memPool", "--min", "--opt", "--max"))]


def test_what_is_there_is_not_built_again(board: Board) -> None:
    board.run()
    second = board.run()
    assert second.returncode == 0
    assert second.stderr.count("up to date") == 2
    assert board.arguments() == []
    (board.built / "w4.plan").unlink()
    board.run()
    assert [a for a in board.arguments() if a.startswith("--onnx")] == [f"--onnx={board.package}/w4.onnx"]
    board.run("--force")
    assert sum(a.startswith("--onnx") for a in board.arguments()) == 2


def test_another_release_builds_again(board: Board) -> None:
    board.run()
    board.trtexec("v101602")
    board.run()
    assert sum(a.startswith("--onnx") for a in board.arguments()) == 2


def test_a_failed_build_is_said_and_the_others_go_on(board: Board) -> None:
    failing = 'case $2 in *.w8.*) echo "out of memory"; exit 7 ;; esac; ' + WRITE_ENGINE
    board.trtexec(write=failing)
    result = board.run()
    assert result.returncode == 1
    assert "w8: FAILED: trtexec refused the graph or ran out of memory" in result.stderr
    assert "out of memory\n" in result.stderr
    assert "1 of the engines could not be built" in result.stderr
    assert not (board.built / "w8.plan").exists()
    assert (board.built / "w4.plan").exists()
    board.trtexec()
    assert board.run().returncode == 0
    assert (board.built / "w8.plan").exists()


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
    assert result.stderr.count(message) == 2
    assert not list(board.built.glob("*.plan"))
    assert not list(board.built.glob(".*"))


def test_a_failed_rebuild_keeps_the_old_engine(board: Board) -> None:
    board.run()
    board.trtexec(write='echo torn >"${argument#--saveEngine=}"', code=1)
    assert board.run("--force").returncode == 1
    assert (board.built / "w8.plan").read_text() == "engine\n"
    assert not list(board.built.glob(".*"))


def test_another_graph_is_refused(board: Board) -> None:
    with (board.package / "w4.onnx").open("ab") as file:
        file.write(b"\0")
    result = board.run()
    assert result.returncode == 3
    assert "w4.onnx is not the graph that was exported" in result.stderr
    (board.package / "w4.onnx").unlink()
    assert "w4.onnx is missing" in board.run().stderr


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


def test_a_target_without_known_boards_is_built_on_any(tmp_path: Path, qdq_conv: Callable[..., bytes]) -> None:
    board = Board(tmp_path)
    board.device_tree.unlink()
    (board.package / "w8.onnx").write_bytes(qdq_conv())
    write_bundle(board.package, (("w8", "w8.onnx"),), _target(detect={}), ())
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
        ("v8201", "TensorRT 8.2.1 is too old. 8.5 or newer"),
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


@pytest.mark.parametrize("arguments", [["--fast"], ["--force", "--force"], [""]])
def test_other_arguments_are_refused(board: Board, arguments: list[str]) -> None:
    result = board.run(*arguments)
    assert result.returncode == 2
    assert "Allowed: --force" in result.stderr


def test_the_shell_accepts_the_script(board: Board) -> None:
    subprocess.run(["sh", "-n", str(board.package / SCRIPT)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_accepts_the_script(board: Board) -> None:
    command = ["shellcheck", "--shell=sh", str(board.package / SCRIPT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == ""


def test_the_same_package_gives_the_same_script(board: Board) -> None:
    first = (board.package / SCRIPT).read_bytes()
    assert write_bundle(board.package, (("w8", "w8.onnx"), ("w4", "w4.onnx")), _target(), (BATCHES,)) == (SCRIPT,)
    assert (board.package / SCRIPT).read_bytes() == first
    assert str(board.package).encode() not in first
    assert hashlib.sha256((board.package / "w8.onnx").read_bytes()).hexdigest().encode() in first


@pytest.mark.parametrize("engine", [{"name": "tensorrt", "build": "host", "builder_flags_legacy": ["INT8"]}])
def test_other_targets_have_no_bundle(tmp_path: Path, engine: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="target jetson-test: tensorrt engines, built: host"):
        write_bundle(tmp_path, (), _target(engine=engine), ())


def test_other_engines_have_no_bundle(tmp_path: Path) -> None:
    target = _target()
    target = replace(target, engine=replace(target.engine, name="onnxruntime"))
    with pytest.raises(UsageError, match="target jetson-test: onnxruntime engines"):
        write_bundle(tmp_path, (), target, ())


@pytest.mark.parametrize("name", ["w8;rm", "../w8", "-w8", "", "w 8", "$w8"])
def test_names_are_words_of_the_script(board: Board, name: str) -> None:
    with pytest.raises(UsageError, match="bundle: name "):
        write_bundle(board.package, ((name, "w8.onnx"),), _target(), (BATCHES,))
    with pytest.raises(UsageError, match="bundle: name "):
        write_bundle(board.package, (("w8", name),), _target(), (BATCHES,))


def test_a_profile_that_does_not_fit_is_refused(board: Board) -> None:
    with pytest.raises(UsageError, match=r"w8\.onnx: input 'x' has open dimensions"):
        write_bundle(board.package, (("w8", "w8.onnx"),), _target(), ())


def test_unreadable_graphs_are_refused(board: Board) -> None:
    (board.package / "bad.onnx").write_bytes(b"not a graph")
    for name in ("bad.onnx", "nothing.onnx"):
        with pytest.raises(GraphError, match=f"{name}: not readable"):
            write_bundle(board.package, (("w8", name),), _target(), ())


def test_an_input_name_that_trtexec_cannot_take_is_refused(board: Board, qdq_conv: Callable[..., bytes]) -> None:
    data = qdq_conv(batch="N").replace(b"\n\x01x", b"\n\x01,")
    (board.package / "comma.onnx").write_bytes(data)
    with pytest.raises(GraphError, match=r"comma\.onnx: input name ','"):
        write_bundle(board.package, (("w8", "comma.onnx"),), _target(), ())


def test_a_folder_that_cannot_be_written_is_said(board: Board) -> None:
    (board.package / SCRIPT).unlink()
    (board.package / SCRIPT).mkdir()
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        write_bundle(board.package, (("w8", "w8.onnx"),), _target(), (BATCHES,))
