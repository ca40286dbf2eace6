"""`profile --device ssh://...` against a real ssh server; what it runs there is this checkout."""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import bitswitch_deploy
from bitswitch_deploy.cli import profile as cli
from bitswitch_deploy.errors import (
    BitswitchError,
    CheckFailedError,
    InputFileError,
    OutputError,
    UnavailableError,
    UsageError,
)
from bitswitch_deploy.latency_table import read_latency_table
from bitswitch_deploy.master import master_files, read_master, write_master
from bitswitch_deploy.pipeline.profiling.remote import arguments, profile_there
from bitswitch_deploy.pipeline.profiling.request import ProfileRequest
from bitswitch_deploy.pipeline.progress import Silent
from bitswitch_deploy.profiling.board import device_lock
from bitswitch_deploy.profiling.result import ProfileResult
from bitswitch_deploy.remote import device as remote_device
from bitswitch_deploy.remote.address import Address
from bitswitch_deploy.remote.device import Device, failure
from bitswitch_deploy.remote.ssh import Finished
from tests.conftest import Run
from tests.remote.server import Server, needs_sshd, running_server
from tests.remote.test_device_folder import running
from tests.remote.test_ssh import lose_connections
from tests.runtime.conftest import Packages, packages

__all__ = ["packages"]  # a fixture

pytestmark = needs_sshd

MASTER = "digits.safetensors"
ROOT = Path(bitswitch_deploy.__file__).parent.parent
PROGRAM = f"""#!/bin/sh
echo "$*" >>"$HOME/bin/calls"
PYTHONPATH="{ROOT}" exec "{sys.executable}" -m bitswitch_deploy "$@"
"""


_SAYS = "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo 'bitswitch-deploy, version {version}'; exit; }}\n{rest}\n"
_HERE = bitswitch_deploy.__version__
_FULL = "echo 'tar: Cannot write: No space left on device' >&2; exit 2"


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    with running_server(folder) as server:
        server.put("bitswitch-deploy", PROGRAM)
        yield server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_device, "RETRY_AFTER_S", (0.1, 0.1))


class Noted:
    """The steps that were told, with the units that are done."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    def start(self, description: str, total: int) -> None:
        self.steps[description] = [0, total]

    def advance(self, n: int = 1) -> None:
        list(self.steps.values())[-1][0] += n


def test_progress_there_is_progress_here(board: Server, packages: Packages) -> None:
    """Of the two candidates, six turns and the warm-up each; and nothing of it is taken for a message."""
    noted, lines = Noted(), list[str]()
    device = Device(address=board.address, ssh_config=board.folder / "client.conf", say=lines.append)
    request = ProfileRequest(
        package=packages.own, master=packages.own.parent / MASTER, turns=6, threads=1, widths=("w4",)
    )
    result = profile_there(request, device, noted)
    turns = 2 * (result.turns + result.warmup_turns)
    assert noted.steps["127.0.0.1: timing, batch 1"] == [turns, turns]
    assert noted.steps["127.0.0.1: layers, batch 1"] == [1, 1]
    assert lines == []


def profiled(board: Server, package: Path, lines: list[str] | None = None, **changes: object) -> ProfileResult:
    said = lines if lines is not None else []
    device = Device(address=board.address, ssh_config=board.folder / "client.conf", say=said.append)
    values = {"package": package, "turns": 6, "threads": 1, "widths": ("w4",), **changes}
    return profile_there(ProfileRequest(**values), device, Silent())  # type: ignore[arg-type]


def calls(board: Server) -> list[str]:
    path = board.home / "bin/calls"
    return path.read_text().splitlines() if path.exists() else []


def test_the_result_and_its_files_come_back(board: Server, packages: Packages, tmp_path: Path) -> None:
    """A master and a target of one's own go along."""
    trace, table_path, target = tmp_path / "t.json", tmp_path / "l.json", tmp_path / "own board.yaml"
    target.write_text((ROOT / "targets/x86-cpu.yaml").read_text())
    request = {"master": packages.own.parent / MASTER, "target": str(target), "widths": ("w8", "mixed")}
    result = profiled(board, packages.own, None, **request, trace=trace, latency_table=table_path)
    assert "--target=./target/own board.yaml" in calls(board)[-1]
    assert [each.label for each in result.candidates] == ["w8", "mixed", "float32"]
    assert (result.package, result.turns, result.threads) == (str(packages.own), 6, 1)
    assert result.candidates[0].ratio is not None
    assert f"measured on {board.address}" in result.notes
    table = read_latency_table(table_path)
    assert dict(table.end_to_end_ms) == {8: result.candidates[0].statistics.p50_ms}
    assert json.loads(trace.read_text())["traceEvents"]
    assert left(board) == []


def test_the_master_that_the_export_read_goes_along(board: Server, packages: Packages, tmp_path: Path) -> None:
    """It is on this machine, not on the device."""
    package = Path(shutil.copytree(packages.own, tmp_path / "p"))
    document = json.loads((package / "manifest.json").read_text())
    document["command"] += ["--master", str(packages.own.parent / MASTER)]
    (package / "manifest.json").write_text(json.dumps(document))
    result = profiled(board, package)
    assert [each.label for each in result.candidates] == ["w4", "float32"]
    assert f"--master=./master/{MASTER}" in calls(board)[-1]


def test_page_json_and_exit_code_are_those_of_a_local_run(
    board: Server, packages: Packages, tmp_path: Path, run: Run
) -> None:
    words = ("profile", packages.own, "--turns", "6", "--threads", "1", "--widths", "4", "--budget", "0.1us")
    there = ("--device", board.address, "--ssh-config", board.folder / "client.conf")
    page = run(*words, *there, "-o", tmp_path / "there.json")
    assert page.code == 1
    local = run(*words, "-o", tmp_path / "here.json")
    assert local.code == 1
    assert _first_words(page.out) == _first_words(local.out)
    there_json, here_json = (json.loads((tmp_path / name).read_text()) for name in ("there.json", "here.json"))
    assert _keys(there_json) == _keys(here_json)
    assert [each["verdict"] for each in there_json["budget"]] == ["failed"]


def _first_words(page: str) -> list[str]:
    """The headings of a page; whether a run was unstable differs from run to run."""
    lines = [line for line in page.splitlines() if line and not line.startswith(" ")]
    return [line for line in lines if not any(map(str.isdigit, line)) and not line.lower().startswith("unstable")]


def _keys(value: object) -> object:
    """The shape of a JSON document, of lists that of their first item; without what differs from run to run."""
    if isinstance(value, dict):
        return {key: _keys(item) for key, item in value.items() if key not in ("board", "verdict", "unstable")}
    return [_keys(item) for item in value[:1]] if isinstance(value, list) and value else None


def test_every_option_is_passed_on(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line reads its own words back as the request they came from, with the paths there."""
    request = ProfileRequest(
        package=packages.own,
        master=Path("some folder/m.safetensors"),
        target="some folder/-own.yaml@6.2",
        engine="tensorrt",
        batches=(1, 8),
        threads=3,
        duration_s=1e-05,
        turns=7,
        widths=("w4", "mixed"),
        budget_ms=0.1 / 3e5,
        trace=Path("t"),
        latency_table=Path("l"),
        trust=True,
    )
    defaults = ProfileRequest(package=packages.own)
    assert not [
        each.name for each in fields(request)[1:] if getattr(request, each.name) == getattr(defaults, each.name)
    ]
    read: list[ProfileRequest] = []

    def note(found: ProfileRequest, _: object) -> ProfileResult:
        read.append(found)
        raise UsageError(where="x", got="x", allowed="x", do="x")

    monkeypatch.setattr(cli, "profile", note)
    with pytest.raises(UsageError):
        cli.command.main(list(arguments(request)), standalone_mode=False)
    there = {
        "package": Path("package"),
        "master": Path("master/m.safetensors"),
        "target": "./target/-own.yaml@6.2",
        "trace": Path("trace.json"),
        "latency_table": Path("latency-table.json"),
    }
    for each in fields(request):
        assert getattr(read[0], each.name) == there.get(each.name, getattr(request, each.name)), each.name


def test_a_master_in_several_files(packages: Packages, tmp_path: Path) -> None:
    index = tmp_path / "m.safetensors.index.json"
    write_master(read_master(packages.own.parent / MASTER), index, shard_size_bytes=20_000)
    found = master_files(index)
    assert set(found) == set(tmp_path.iterdir())
    assert len(found) > 2
    assert master_files(found[1]) == (found[1],)


def left(board: Server) -> list[Path]:
    """What is left there, but what onnxruntime keeps for itself."""
    return [path for path in board.left() if "Microsoft" not in path.parts]


def hanging_once(board: Server) -> None:
    """The first profile hangs there, with the lock of the machine, as a process that a lost connection left alone."""
    board.put("real", PROGRAM)
    # the lock of the real program
    hang = f'touch "$HOME/bin/hangs"; echo go >&2; exec flock "$TMPDIR/{device_lock.LOCK_NAME}" {HANG}{board.port}'
    rest = f'[ -f "$HOME/bin/hangs" ] || {{ {hang}; }}\nexec "$HOME/bin/real" "$@"'
    board.put("bitswitch-deploy", _SAYS.format(version=_HERE, rest=rest))


HANG = "sleep 6"


def test_a_profile_that_lost_its_connection_is_measured_again(board: Server, packages: Packages) -> None:
    """From its start, and with success: what the first attempt left running there has ended and freed the device."""
    hanging_once(board)
    thread = threading.Thread(target=_pull, args=(board, False))
    thread.start()
    lines: list[str] = []
    result = profiled(board, packages.own, lines)
    thread.join()
    assert [each.label for each in result.candidates] == ["w4"]
    assert result.turns == 6
    assert lines[0] == "go"
    assert sum("the connection was lost" in line for line in lines) == 1
    assert not running(f"{HANG}{board.port}")
    assert left(board) == []


def test_the_next_call_goes_on_where_a_device_was_away(board: Server, packages: Packages) -> None:
    """The first call gives up; the second copies nothing again, measures, and leaves nothing behind."""
    hanging_once(board)
    thread = threading.Thread(target=_pull, args=(board, False))
    thread.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(remote_device, "RETRY_AFTER_S", ())
        with pytest.raises(UnavailableError, match="the connection was lost"):
            profiled(board, packages.own)
    thread.join()
    assert left(board) != []
    board.put("tar", "#!/bin/sh\necho nothing may be sent >&2; exit 1\n")
    result = profiled(board, packages.own)
    assert [each.label for each in result.candidates] == ["w4"]
    assert not running(f"{HANG}{board.port}")
    assert left(board) == []


def test_a_device_that_is_measuring_is_refused(board: Server, packages: Packages) -> None:
    with (board.folder / "tmp" / device_lock.LOCK_NAME).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match=r"(?s)another profile is running there.*one at a time"):
            profiled(board, packages.own)
    assert left(board) == []


def test_the_page_of_a_device(board: Server, packages: Packages, tmp_path: Path, run: Run) -> None:
    """--report with --device: the numbers of the device beside the accuracy of the package, which is here."""
    there = ("--device", board.address, "--ssh-config", board.folder / "client.conf")
    words = ("profile", packages.own, *there, "--turns", "6", "--threads", "1", "--widths", "4")
    outcome = run(*words, "--report", tmp_path / "page.html", "--json")
    assert outcome.code == 0
    page = (tmp_path / "page.html").read_text()
    result = json.loads(outcome.out)
    assert f"measured on {board.address}" in page
    assert f"{result['candidates'][0]['statistics']['p50_ms']:.3f}" in page
    assert "over-ssh" not in page
    assert str(board.home) not in page
    assert left(board) == []


def test_a_device_that_stays_away(board: Server, packages: Packages) -> None:
    board.put("bitswitch-deploy", _SAYS.format(version=_HERE, rest='touch "$HOME/bin/hangs"; sleep 60'))
    thread = threading.Thread(target=_pull, args=(board, True))
    thread.start()
    with pytest.raises(UnavailableError, match="Connection refused"):
        profiled(board, packages.own)
    thread.join()


def _pull(board: Server, for_good: bool) -> None:
    deadline = time.monotonic() + 60
    while not (board.home / "bin/hangs").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    lose_connections(board, for_good=for_good)


FAULTS: list[tuple[str, str | None, type[BitswitchError], str]] = [
    ("missing", None, UnavailableError, rf"not found(.|\n)*pip install bitswitch-deploy=={_HERE}"),
    ("other", _SAYS.format(version="0.0.9", rest=""), UnavailableError, rf"version 0\.0\.9\n  allowed: .*{_HERE}"),
    ("broken", "#!/bin/sh\necho 'No module named onnx' >&2; exit 1\n", UnavailableError, "No module named onnx"),
    ("schema", _SAYS.format(version=_HERE, rest='echo \'{"schema": "x"}\''), InputFileError, "another schema"),
    ("full disk", PROGRAM, OutputError, r"(?s)No space left.*free some space"),
]


@pytest.mark.parametrize(("fault", "program", "error", "message"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_faults_of_the_device(
    board: Server, packages: Packages, fault: str, program: str | None, error: type[BitswitchError], message: str
) -> None:
    if program is None:
        (board.home / "bin/bitswitch-deploy").unlink()
    else:
        board.put("bitswitch-deploy", program)
    if fault == "full disk":
        board.put("tar", f"#!/bin/sh\n{_FULL}\n")
    with pytest.raises(error, match=message):
        profiled(board, packages.own)
    assert board.left() == []


def test_the_command_that_installs_it_there(board: Server, packages: Packages) -> None:
    """Pasted as it is said; the stand-in for the Python of the board makes an environment whose pip installs this."""
    (board.home / "bin/bitswitch-deploy").rename(board.home / "bin/ours")
    install = '#!/bin/sh\ncp "$HOME/bin/ours" "$HOME/.bitswitch-deploy/bin/bitswitch-deploy"\n'
    board.put("pip", install)
    board.put("python3", '#!/bin/sh\n[ "$2" = venv ] && mkdir -p "$4/bin" && cp "$HOME/bin/pip" "$4/bin/pip"\n')
    with pytest.raises(UnavailableError) as refused:
        profiled(board, packages.own)
    command = shlex.split(refused.value.do.partition("install it there: ")[2].splitlines()[0])
    subprocess.run(command, check=True)
    assert profiled(board, packages.own).candidates


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1, CheckFailedError),
        (2, UsageError),
        (3, InputFileError),
        (4, UnavailableError),
        (70, UnavailableError),
    ],
)
def test_a_command_that_fails_there_fails_here_alike(code: int, error: type[BitswitchError]) -> None:
    device = Device(address=Address(host="nano"), ssh_config=None, say=print)
    found = failure(device, Finished(code=code, stdout=b"", stderr="why"), allowed="a", do="d")
    assert isinstance(found, error)
    assert str(found).startswith("ssh://nano: why")


def test_the_error_of_the_device_is_said_once(board: Server, packages: Packages) -> None:
    lines: list[str] = []
    with pytest.raises(UsageError) as refused:
        profiled(board, packages.own, lines, batches=(0,))
    assert str(refused.value).count("--batch: '0'") == 1
    assert str(refused.value).count("allowed:") == str(refused.value).count("do:") == 1
    assert refused.value.where == f"{board.address}: --batch"
    assert lines == []


def test_what_can_be_refused_here_is_not_sent(board: Server, packages: Packages, tmp_path: Path) -> None:
    package = Path(shutil.copytree(packages.own, tmp_path / "package"))
    for changes, message in (
        ({"duration_s": 1.0}, "leave one out"),
        ({"widths": ("w3",)}, "--widths: w3"),
        ({"engine": "openvino"}, "--engine: 'openvino'"),
        ({"target": "jetson-orin-nano"}, "the package is for x86-cpu"),
        ({"trace": tmp_path / "t", "batches": (1, 2)}, "--trace: 2 batch sizes"),
    ):
        with pytest.raises(UsageError, match=message):
            profiled(board, package, **changes)
    (package / "digits-w4.onnx").write_bytes(b"changed")
    with pytest.raises(CheckFailedError, match=r"digits-w4\.onnx \(changed\)"):
        profiled(board, package)
    assert not (board.folder / "log").read_text().count("Accepted")
