"""`profile --device ssh://... --engine trtexec`: a real ssh server whose board and trtexec are stand-ins."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitswitch_deploy.engines.device_facts import DeviceFacts
from bitswitch_deploy.engines.engine_record import BUILD_FOLDER, EngineRecord, Recipe, record_path
from bitswitch_deploy.errors import UnavailableError
from bitswitch_deploy.latency_table import read_latency_table
from bitswitch_deploy.package.files import hash_file
from bitswitch_deploy.pipeline.profiling import remote_host
from bitswitch_deploy.pipeline.profiling.remote import profile_there
from bitswitch_deploy.pipeline.profiling.request import ProfileRequest
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.profiling.board import device_lock
from bitswitch_deploy.profiling.board.state import BoardRecord
from bitswitch_deploy.profiling.result import ProfileResult
from bitswitch_deploy.remote import device as remote_device
from bitswitch_deploy.remote import held_lock
from bitswitch_deploy.remote import trtexec as remote_trtexec
from bitswitch_deploy.remote.device import Device
from bitswitch_deploy.tensors import WidthAssignment
from tests.engines.fake_trtexec import program_text
from tests.pipeline.conftest import export_to
from tests.profiling.board.machines import JETSON_FILES
from tests.remote.server import Server, needs_sshd, running_server
from tests.remote.test_device_folder import running, wait_for_end
from tests.remote.test_ssh import lose_connections

pytestmark = needs_sshd

ORIN = DeviceFacts(arch="aarch64", module="p3767-0005", sm="8.7", l4t="36.4.3", power_mode="15W")
# form of JetPack 6; it goes on until it is ended
LINE = "RAM 2447/7620MB (lfb 2x4MB) CPU [0%@1344] GR3D_FREQ 99%@[918] cpu@51.5C tj@52C VDD_IN 5000mW/5000mW"
TEGRASTATS = f"#!/bin/sh\nwhile :; do echo '{LINE}'; sleep 0.1; done \n"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    root = tmp_path / "root of the board"
    release = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    names = "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0"
    files = {**JETSON_FILES, "proc/device-tree/compatible": names, "etc/nv_tegra_release": release}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(remote_host, "_ROOT", str(root))
    monkeypatch.setattr(remote_device, "RETRY_AFTER_S", (0.1, 0.1))
    # the lock that is waited for is nobody's who was cut off
    monkeypatch.setattr(held_lock, "_HOLD", held_lock._HOLD.replace(f"-w {held_lock._WAIT_S}", "-w 1"))
    with running_server(folder) as server:
        server.put("uname", "#!/bin/sh\necho aarch64\n")
        server.put("nvpmodel", "#!/bin/sh\necho NV Power Mode: 15W\necho 0\n")
        server.put("tegrastats", TEGRASTATS)
        server.put("trtexec", program_text(server.home / "bin/calls"))
        yield server


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    widths = tuple(WidthAssignment(default=bits) for bits in (8, 4))
    return export_to(tmp_path_factory.mktemp("jetson") / "package", "jetson-orin-nano", widths=widths).package


@pytest.fixture
def package(exported: Path, tmp_path: Path) -> Path:
    """With engines, as `build --device` brings them back."""
    package = Path(shutil.copytree(exported, tmp_path / "package"))
    for label, ms in (("w8", 2.0), ("w4", 1.0), ("fp16", 4.0)):
        put_engine(package, label, {"ms": ms, "layers": {"a": ms}})
    return package


def put_engine(package: Path, label: str, engine: dict[str, object], device: DeviceFacts = ORIN) -> None:
    path = package / BUILD_FOLDER / f"digits-{label}.engine"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(engine))
    recipe = Recipe(
        graph_sha256=(hash_file(package / f"digits-{label}.onnx")[0],),
        module="tensorrt",
        version="10.3.0.30",
        flags=(),
        shapes=(),
        workspace_mb=None,
        dla_core=None,
        device=device,
    )
    sha256, size = hash_file(path)
    record = EngineRecord(label=label, sha256=sha256, size_bytes=size, tool="trtexec", recipe=recipe)
    record_path(path).write_text(record.to_json())


def profiled(board: Server, package: Path, lines: list[str] | None = None, **changes: object) -> ProfileResult:
    said = lines if lines is not None else []
    device = Device(address=board.address, ssh_config=board.folder / "client.conf", say=said.append)
    values = {"package": package, "turns": 6, "engine": "trtexec", **changes}
    return profile_there(ProfileRequest(**values), device, Silent())  # type: ignore[arg-type]


def timed(board: Server) -> list[str]:
    """The engine of each timed turn."""
    path = board.home / "bin/calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [Path(line.split()[0]).stem for line in lines if "--exportTimes" in line]


def test_turns_are_driven_from_here(board: Server, package: Path, tmp_path: Path) -> None:
    result = profiled(board, package, widths=("w4",), trace=tmp_path / "t.json", budget_ms=0.5)
    assert (result.engine, result.engine_version, result.reference_label) == ("trtexec", "10.3.0", "fp16")
    assert [(each.label, each.statistics.p95_ms) for each in result.candidates] == [
        ("w4", 1.0),
        ("fp16", 4.0),
    ]
    assert [each.ratio.value for each in result.candidates if each.ratio] == [0.25]
    assert not result.is_within_budget
    assert f"measured on {board.address}" in result.notes
    # how many runs fill a turn is found out first, and layers are timed at the end
    rounds = result.turns + result.warmup_turns
    turns = timed(board)[-2 - 2 * rounds : -2]
    assert [sorted(pair) for pair in zip(turns[::2], turns[1::2])] == [["digits-fp16", "digits-w4"]] * rounds
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert board.left() == []
    check_board(result.board)
    wait_for_end(f"{board.home}/bin/tegrastats")


def test_a_latency_table_of_that_board(board: Server, package: Path, tmp_path: Path) -> None:
    """One kernel for each layer, in the order of the master, and nothing of the machine that drives it."""
    convolutions = ("119", "120", "121", "122", "123", "124", "125")
    times = {f"node_Conv_{number} + node_relu": (index + 1) / 64 for index, number in enumerate(convolutions)}
    for label, ms in (("w8", 2.0), ("w4", 1.0)):
        put_engine(package, label, {"ms": ms, "layers": times})
    result = profiled(board, package, latency_table=tmp_path / "table.json")
    table = read_latency_table(tmp_path / "table.json")
    assert [[ms for _, ms in layer.latency_ms] for layer in table.layers] == [
        [(each + 1) / 64] * 2 for each in (0, 1, 2, 3, 4, 5, 6)
    ]
    owned = sum(times.values())
    assert (table.overhead_ms, table.end_to_end_ms) == (2.0 - owned, ((8, 2.0), (4, 1.0)))
    assert [(each.label, each.predicted_ms) for each in result.residuals] == [("w8", 2.0), ("w4", 2.0)]
    facts = dict(table.device)
    assert (facts["processor"], facts["module"]) == ("NVIDIA Jetson Orin Nano Developer Kit", "p3767-0005")
    assert (facts["power mode"], facts["l4t"], "cpu features" in facts) == ("15W", "36.4.3", False)
    assert facts["MHz"] == "17000000.gpu 918, fastest cpu 1344, tegrastats GR3D 918"
    assert board.left() == []


def check_board(state: BoardRecord) -> None:
    """The files of the board, its nvpmodel, and tegrastats beside the turns."""
    assert (state.after.power_mode, state.after.clocks_locked) == ("15W", True)
    assert dict(state.after.temperatures_c) == {"cpu-thermal": 48.562, "tj-thermal": 49.312}
    assert dict(state.after.rails_w)["VDD_IN"] == 6.0
    assert dict(state.after.throttle_events) == {"over-current oc1": 0, "over-current oc3": 2}
    spans = {span.name: (span.lowest, span.highest) for span in state.clocks_mhz}
    assert spans == {"17000000.gpu": (918, 918), "fastest cpu": (1344, 1344), "tegrastats GR3D": (918, 918)}
    assert ("tegrastats tj", 52.0) in [(span.name, span.highest) for span in state.temperatures_c]
    assert not state.unstable


def hanging_once(board: Server) -> None:
    """From now on the first turn beside tegrastats hangs."""
    gate = '[ -f "$HOME/bin/hung" ] || [ ! -f .recorder ] || { touch "$HOME/bin/hung"; sleep 60; }'
    board.put("real", program_text(board.home / "bin/calls"))
    board.put("trtexec", f'#!/bin/sh\n[ "$1" = --help ] || {{ {gate}\n}}\nexec "$HOME/bin/real" "$@"\n')


def test_a_turn_that_a_lost_connection_broke_off_is_measured_again(board: Server, package: Path) -> None:
    """It alone: the turns before it stay, and so does what tegrastats recorded."""
    hanging_once(board)
    seen: list[bool] = []

    def pull() -> None:
        deadline = time.monotonic() + 120
        while not (board.home / "bin/hung").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        seen.append(running(f"{board.home}/bin/tegrastats"))
        lose_connections(board)

    thread = threading.Thread(target=pull)
    thread.start()
    lines: list[str] = []
    result = profiled(board, package, lines, widths=("w4",))
    thread.join()
    assert seen == [True]
    assert sum("the connection was lost" in line for line in lines) == 1
    assert any("was lost 1 times" in note for note in result.notes)
    rounds = result.turns + result.warmup_turns
    # three calls of each find out how many runs fill a turn, one is for the layers
    assert len(timed(board)) <= 2 * (rounds + 3) + 2
    assert [each.ratio.value for each in result.candidates if each.ratio] == [0.25]
    check_board(result.board)
    assert board.left() == []
    wait_for_end(f"{board.home}/bin/tegrastats")


def test_a_device_that_is_measuring_is_refused(board: Server, package: Path) -> None:
    """Whatever it measures and whoever does: a profile of somebody else holds the lock of the machine."""
    lock = board.folder / "tmp" / device_lock.LOCK_NAME
    lock.touch(0o444)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match=r"(?s)another profile is running there.*one at a time"):
            profiled(board, package)
    assert timed(board) == []
    assert board.left() == []
    assert profiled(board, package, widths=("w4",)).engine == "trtexec"


def test_a_board_without_trtexec(board: Server, package: Path) -> None:
    (board.home / "bin/trtexec").unlink()
    with pytest.raises(UnavailableError, match="no trtexec on the device"):
        profiled(board, package)
    assert board.left() == []


def test_engines_are_checked_against_that_board(board: Server, package: Path) -> None:
    put_engine(package, "w4", {"ms": 1.0, "layers": {}}, DeviceFacts(arch="aarch64", module="p3701-0005", sm="8.7"))
    with pytest.raises(UnavailableError, match="module p3701-0005, here p3767-0005"):
        profiled(board, package)
    assert timed(board) == []
    assert board.left() == []


def test_a_trtexec_that_hangs(board: Server, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_engine(package, "w4", {"ms": 1.0, "layers": {}, "hang": 1})
    monkeypatch.setattr(remote_trtexec, "TIMEOUT_S", 1)
    with pytest.raises(UnavailableError, match=r"did not end within"):
        profiled(board, package, widths=("w4",))
    assert board.left() == []
