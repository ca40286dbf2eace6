"""The script is run here with a stand-in for trtexec, uname and the device tree; no board has run it yet."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitswitch_deploy.engines.bundle import BUILD_FOLDER, SCRIPT, write_bundle
from bitswitch_deploy.engines.shape_range import ShapeRange
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

    def start(self, *arguments: str, start_new_session: bool = False) -> subprocess.Popen[str]:
        self.calls.unlink(missing_ok=True)
        return subprocess.Popen(
            [str(self.package / SCRIPT), *arguments],
            env={"PATH": f"{self.programs}:{os.defpath}", "BITSWITCH_DEVICE_TREE": str(self.device_tree)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=start_new_session,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        _, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, "", stderr)

    def wait_for(self, pattern: str) -> list[Path]:
        for _ in range(3000):
            found = [path for path in self.built.glob(pattern) if path.stat().st_size]
            if found:
                return found
            time.sleep(0.01)
        raise TimeoutError(f"no {pattern} in {self.built}")

    def arguments(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def board(tmp_path: Path, qdq_conv: Callable[..., bytes], target_with: Callable[..., Target]) -> Board:
    """A package of two widths with an open batch."""
    board = Board(tmp_path)
    for label in ("w8", "w4"):
        (board.package / f"{label}.onnx").write_bytes(qdq_conv(batch="N"))
    write_bundle(board.package, (("w8", "w8.onnx"), ("w4", "w4.onnx")), target_with(), (BATCHES,))
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
    assert not list(board.built.glob(".*.plan*"))


def test_a_static_graph_without_limit_has_fewer_flags(
    tmp_path: Path, qdq_conv: Callable[..., bytes], target_with: Callable[..., Target]
) -> None:
    board = Board(tmp_path)
    (board.package / "w8.onnx").write_bytes(qdq_conv())
    write_bundle(board.package, (("w8", "w8.onnx"),), target_with(limits={}), ())
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
    board.trtexec("v100301")
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
    assert not list(board.built.glob(".*.plan*"))


def test_a_failed_rebuild_keeps_the_old_engine(board: Board) -> None:
    board.run()
    board.trtexec(write='echo torn >"${argument#--saveEngine=}"', code=1)
    assert board.run("--force").returncode == 1
    assert (board.built / "w8.plan").read_text() == "engine\n"
    assert not list(board.built.glob(".*.plan*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_no_partial_engine(board: Board, number: signal.Signals, code: int) -> None:
    board.trtexec(write=WRITE_ENGINE + "; sleep 60")
    run = board.start(start_new_session=True)
    partials = board.wait_for(".w8.plan.partial-*")
    os.killpg(run.pid, number)
    run.communicate(timeout=60)
    assert run.returncode == code
    assert not any(partial.exists() for partial in partials)


def test_what_a_killed_run_left_is_removed(board: Board) -> None:
    board.trtexec(write=WRITE_ENGINE + "; sleep 60")
    run = board.start(start_new_session=True)
    partials = board.wait_for(".w8.plan.partial-*")
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
    board.wait_for(".w8.plan.partial-*")
    second = board.run()
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    assert second.returncode == 4
    assert "another build is running" in second.stderr


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


def test_a_target_without_known_boards_is_built_on_any(
    tmp_path: Path, qdq_conv: Callable[..., bytes], target_with: Callable[..., Target]
) -> None:
    board = Board(tmp_path)
    board.device_tree.unlink()
    (board.package / "w8.onnx").write_bytes(qdq_conv())
    write_bundle(board.package, (("w8", "w8.onnx"),), target_with(detect={}), ())
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
