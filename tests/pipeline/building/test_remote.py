"""`build --device ssh://...` against a real ssh server whose board and trtexec are stand-ins."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitswitch_deploy.engines.engine_record import BUILD_FOLDER
from bitswitch_deploy.engines.read_back import ReadBack
from bitswitch_deploy.errors import BitswitchError, CheckFailedError, UnavailableError, UsageError
from bitswitch_deploy.pipeline.building.build import BuildRequest
from bitswitch_deploy.pipeline.building.engine_recipe import EngineOptions
from bitswitch_deploy.pipeline.building.kept_layers import EngineFacts, keep_facts
from bitswitch_deploy.pipeline.building.remote import _arguments, build_there, is_done
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.remote import device as remote_device
from bitswitch_deploy.remote.device import Device
from bitswitch_deploy.report.build_report import BuildReport
from tests.pipeline.conftest import export_to
from tests.remote.server import Server, needs_sshd, running_server
from tests.remote.test_ssh import lose_connections

pytestmark = needs_sshd

# writes an engine that is its own command line; what `$HOME/bin/before` says happens first
TRTEXEC = """#!/bin/sh
[ "$1" != --help ] || { echo '&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help'; exit; }
echo "$1" >>"$HOME/bin/calls"
[ ! -f "$HOME/bin/before" ] || . "$HOME/bin/before"
for argument in "$@"; do
    case $argument in --saveEngine=*) echo "$@" >"${argument#--saveEngine=}" ;; esac
done
"""


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    with running_server(folder) as server:
        server.put("uname", "#!/bin/sh\necho aarch64\n")
        server.put("nvpmodel", "#!/bin/sh\necho NV Power Mode: 15W\necho 0\n")
        server.put("trtexec", TRTEXEC)
        (server.home / "bin/compatible").write_bytes(b"nvidia,p3767-0005\0nvidia,tegra234\0")
        release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
        (server.home / "bin/release").write_text(release)
        server.put(
            "settings",
            "export BITSWITCH_DEVICE_TREE=$HOME/bin/compatible BITSWITCH_TEGRA_RELEASE=$HOME/bin/release"
            " XDG_CACHE_HOME=$HOME/bin\n",
        )
        yield server


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to(tmp_path_factory.mktemp("jetson") / "package", "jetson-orin-nano").package


@pytest.fixture
def package(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "package"))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_device, "RETRY_AFTER_S", (0.1, 0.1))


def built(board: Server, package: Path, lines: list[str] | None = None, **changes: object) -> BuildReport:
    said = lines if lines is not None else []
    device = Device(address=board.address, ssh_config=board.folder / "client.conf", say=said.append)
    return build_there(BuildRequest(package=package, **changes), device, Silent())  # type: ignore[arg-type]


def calls(board: Server) -> int:
    path = board.home / "bin/calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_every_engine_comes_back_with_its_record(board: Server, package: Path) -> None:
    lines: list[str] = []
    report = built(board, package, lines)
    assert [(row.label, row.state) for row in report.engines] == [
        (label, "built") for label in ("fp16", "w2", "w4", "w6", "w8")
    ]
    assert report.builder == f"trtexec, tensorrt 10.3.0, at {board.address}"
    assert (report.device.module, report.device.sm, report.device.power_mode) == ("p3767-0005", "8.7", "15W")
    for row in report.engines:
        assert "--saveEngine=" in Path(row.path).read_text()
        record = json.loads(Path(f"{row.path}.json").read_text())
        assert record["size_bytes"] == row.size_bytes
    assert any("w4: building" in line for line in lines)
    assert [line for line in lines if is_done(line, ("fp16", "w2", "w4", "w6", "w8"))] == [
        line for line in lines if line.endswith(".engine")
    ]
    assert sum(line.endswith(".engine") for line in lines) == 5
    assert board.left() == []


def test_what_is_here_is_not_built_again(board: Server, package: Path) -> None:
    built(board, package)
    assert calls(board) == 5
    (package / BUILD_FOLDER / "digits-w4.engine").write_text("damaged")
    assert {row.label: row.state for row in built(board, package).engines}["w4"] == "built"
    assert calls(board) == 6
    built(board, package, force=True, options=EngineOptions(workspace_mb=64))
    assert calls(board) == 11
    assert "workspace:64" in (package / BUILD_FOLDER / "digits-w4.engine").read_text()


def test_layers_of_an_engine_that_is_gone_are_not_told(board: Server, package: Path) -> None:
    """A package once built with Python, built over ssh."""
    engine = package / BUILD_FOLDER / "digits-w8.engine"
    engine.parent.mkdir()
    gone = ReadBack(engine_layers=7, int8=(), fell_back=(), in_float=(), unfused=(), unseen=())
    keep_facts(engine, EngineFacts(engine_sha256="ab" * 32, layers=gone))
    report = built(board, package)
    assert {row.label: row.layers for row in report.engines}["w8"] is None


def test_lines_of_the_script_that_end_an_engine() -> None:
    lines = (
        "jetson-orin-nano: TensorRT 10.3.0 on this board; the graphs were made for 10.3.0",
        "w8: building, this takes minutes (log: /home/x/on_device/net-w8.log)",
        "w8: 3 layers fall back to the GPU: /home/x/on_device/net-w8.gpu-fallback.txt",
        "w8: /home/x/on_device/net-w8.engine",
        "w4: up to date",
        "w2: FAILED: trtexec refused the graph. The log is /x/net-w2.log; it ends with:",
        "other: up to date",
    )
    assert [line.split(":")[0] for line in lines if is_done(line, ("w8", "w4", "w2"))] == ["w8", "w4", "w2"]


def test_every_option_is_passed_on(package: Path) -> None:
    options = EngineOptions(fp32=True, dla=True, workspace_mb=64, timeout_min=7)
    words = _arguments(BuildRequest(package=package, force=True, options=options)).split()
    assert words == ["--fp32", "--dla", "--workspace", "64", "--timeout", "7"]


@pytest.mark.parametrize("changes", [{}, {"force": True}, {"options": EngineOptions(workspace_mb=64)}])
def test_a_lost_connection_is_taken_up_again(board: Server, package: Path, changes: dict[str, object]) -> None:
    """The third engine hangs until the cable is pulled; the two before it are not built twice, whatever is here."""
    for label in ("fp16", "w2", "w4", "w6", "w8") if changes else ():
        engine = package / BUILD_FOLDER / f"digits-{label}.engine"
        engine.parent.mkdir(exist_ok=True)
        engine.write_text("stale")
        engine.with_name(f"{engine.name}.json").write_text("{}")
    hang = (
        'if [ "$(wc -l <"$HOME/bin/calls")" = 3 ]; then rm "$HOME/bin/before"; touch "$HOME/bin/hangs"; sleep 60; fi\n'
    )
    (board.home / "bin/before").write_text(hang)

    def pull() -> None:
        deadline = time.monotonic() + 60
        while not (board.home / "bin/hangs").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        lose_connections(board)

    thread = threading.Thread(target=pull)
    thread.start()
    lines: list[str] = []
    report = built(board, package, lines, **changes)
    thread.join()
    assert [row.state for row in report.engines] == ["built"] * 5
    assert calls(board) == 6
    assert any("the connection was lost" in line for line in lines)
    assert board.left() == []


def test_a_device_that_stays_away(board: Server, package: Path) -> None:
    (board.home / "bin/before").write_text("sleep 60\n")

    def switch_off() -> None:
        deadline = time.monotonic() + 60
        while not calls(board) and time.monotonic() < deadline:
            time.sleep(0.05)
        lose_connections(board, for_good=True)

    thread = threading.Thread(target=switch_off)
    thread.start()
    lines: list[str] = []
    with pytest.raises(UnavailableError, match="Connection refused"):
        built(board, package, lines)
    thread.join()
    assert any("the connection was lost" in line for line in lines)
    assert not list((package / BUILD_FOLDER).glob("*.engine"))


FAULTS = [
    ("no trtexec", UnavailableError, "trtexec is neither in PATH"),
    ("another board", UnavailableError, "this board is"),
    ("old TensorRT", UnavailableError, r"TensorRT 8\.0\.1 is too old"),
    ("failing trtexec", CheckFailedError, "5 of the engines could not be built"),
]


@pytest.mark.parametrize(("fault", "error", "message"), FAULTS, ids=[fault for fault, _, _ in FAULTS])
def test_faults_of_the_device(
    board: Server, package: Path, fault: str, error: type[BitswitchError], message: str
) -> None:
    if fault == "no trtexec":
        (board.home / "bin/trtexec").unlink()
    elif fault == "another board":
        (board.home / "bin/compatible").write_bytes(b"nvidia,p3668-0001\0nvidia,tegra194\0")
    elif fault == "old TensorRT":
        board.put("trtexec", "#!/bin/sh\necho '[TensorRT v8001]'\n")
    else:
        board.put("trtexec", TRTEXEC + "echo 'cannot do it'; exit 1\n")
    with pytest.raises(error, match=message):
        built(board, package)
    assert board.left() == []
    if fault == "failing trtexec":
        assert "cannot do it" in (package / BUILD_FOLDER / "digits-w4.log").read_text()


def test_a_changed_package_is_not_sent(board: Server, package: Path) -> None:
    (package / "digits-w4.onnx").write_bytes(b"changed")
    with pytest.raises(CheckFailedError, match=r"digits-w4\.onnx \(changed\)"):
        built(board, package)
    assert not (board.folder / "log").read_text().count("Accepted")


def test_packages_that_no_device_builds(board: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --device"):
        built(board, export_to(tmp_path / "cpu", "x86-cpu").package)


def test_a_target_is_not_asked_for(board: Server, package: Path) -> None:
    """Nor looked up: it may be a profile of the user's own, which is not here any more."""
    path = package / "manifest.json"
    path.write_text(path.read_text().replace('"jetson-orin-nano"', '"my-board"'))
    assert built(board, package).target == "my-board"
    with pytest.raises(UsageError, match="--target: --device as well"):
        built(board, package, target="jetson-orin-nano")


def test_a_timing_cache_of_this_machine_is_refused(board: Server, package: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the device keeps its own timing cache"):
        built(board, package, timing_cache=tmp_path / "cache")
