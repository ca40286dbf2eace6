"""A folder on a device, against a real ssh server."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bitswitch_deploy.errors import OutputError, PackageError, UnavailableError
from bitswitch_deploy.remote import device as remote_device
from bitswitch_deploy.remote import held_lock
from bitswitch_deploy.remote.device import Device, PatientFolder
from bitswitch_deploy.remote.device_folder import DeviceFolder
from bitswitch_deploy.remote.ssh import ConnectionLostError, Ssh
from tests.remote.server import Server, needs_sshd
from tests.remote.test_ssh import lose_connections

pytestmark = needs_sshd

Listed = list[tuple[Path, str, str]]


@pytest.fixture
def ssh(server: Server) -> Iterator[Ssh]:
    with Ssh(server.address, options=server.options) as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> Listed:
    """Files with awkward names, one of them in a folder."""
    listed = []
    for index, path in enumerate(("a.onnx", 'on device/it\'s "b" $HOME.onnx', "-c")):
        source = tmp_path / "package" / path
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(bytes(range(256)) * (100 + index))
        listed.append((source, path, hashlib.sha256(source.read_bytes()).hexdigest()))
    return listed


def place(server: Server) -> Path:
    return server.home / ".cache/bitswitch-deploy/over-ssh/name"


def test_files_go_there_once_and_nothing_is_left(server: Server, ssh: Ssh, files: Listed) -> None:
    copied: list[int] = []
    with DeviceFolder(ssh, "name", print) as folder:
        assert folder.upload(files, copied.append) == 3
        assert copied == [sum(source.stat().st_size for source, _, _ in files)]
        for source, path, _ in files:
            assert (place(server) / path).read_bytes() == source.read_bytes()
        (place(server) / "a.onnx").write_bytes(b"changed")
        assert folder.upload(files, copied.append) == 1
        assert folder.upload(files, copied.append) == 0
    assert server.left() == []


def test_what_is_a_link_here_is_a_file_there(server: Server, ssh: Ssh, files: Listed, tmp_path: Path) -> None:
    source, _, sha256 = files[0]
    symbolic, hard = tmp_path / "latest", tmp_path / "again"
    symbolic.symlink_to(source)
    hard.hardlink_to(source)
    with DeviceFolder(ssh, "name", print) as folder:
        assert folder.upload([(hard, "hard", sha256), (symbolic, "symbolic", sha256), files[0]], lambda _: None) == 3
        for name in ("hard", "symbolic", "a.onnx"):
            assert (place(server) / name).stat().st_nlink == 1
            assert (place(server) / name).read_bytes() == source.read_bytes()


def test_a_connection_that_is_lost_while_cleaning_up_does_not_take_the_result(
    server: Server, ssh: Ssh, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    removing = DeviceFolder(ssh, "name", lines.append).__enter__()

    def lose(command: str) -> None:
        raise ConnectionLostError(where="x", got="the connection was lost", allowed="x", do="x")

    with monkeypatch.context() as patched:
        patched.setattr(ssh, "run", lose)
        removing.__exit__(None, None, None)
    (line,) = lines
    assert line.startswith("the connection was lost; ~/.cache/bitswitch-deploy/over-ssh/name stays there until")
    assert place(server).is_dir()
    with DeviceFolder(ssh, "name", print):  # not locked
        pass


def test_files_come_back(server: Server, ssh: Ssh, files: Listed, tmp_path: Path) -> None:
    with DeviceFolder(ssh, "name", print) as folder:
        folder.upload(files, lambda _: None)
        assert folder.names("nothing") == []
        paths = [files[0][1], *folder.names("on device")]
        assert paths == [files[0][1], files[1][1]]
        assert folder.download(paths, tmp_path / "back") == [tmp_path / "back" / path for path in paths]
        for source, path, _ in files[:2]:
            assert (tmp_path / "back" / path).read_bytes() == source.read_bytes()
        assert folder.download(paths, tmp_path / "back") == []
        with pytest.raises(UnavailableError, match=r"missing.engine"):
            folder.download(["missing.engine"], tmp_path / "back")
    assert not (tmp_path / "back" / "missing.engine").exists()


def test_a_command_runs_in_the_folder(server: Server, ssh: Ssh) -> None:
    lines: list[str] = []
    with DeviceFolder(ssh, "name", print) as folder:
        done = folder.run("""pwd; echo "it's running" >&2; exit 3""", lines.append)
        assert (done.code, done.stdout.decode().strip(), lines) == (3, str(place(server)), ["it's running"])


def test_what_was_started_is_ended(server: Server, ssh: Ssh) -> None:
    """Also what it started itself, and what does not listen."""
    sleep = f"sleep {4000 + server.port}"
    server.put("hang", f"#!/bin/sh\ntrap '' TERM\n{sleep} & echo started >&2; wait; wait\n")
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        lose_connections(server)

    with pytest.raises(ConnectionLostError), DeviceFolder(ssh, "name", print) as folder:
        folder.run("hang", say)
    assert lines == ["started"]
    assert place(server).is_dir()
    wait_for_start(sleep)
    with Ssh(server.address, options=server.options) as again, DeviceFolder(again, "name", print):
        assert not running(sleep)
    assert server.left() == []


@pytest.mark.parametrize("note", ["{pid}", "{pid}:{born}:another start of the system", "{pid}:1:{booted}", ""])
def test_a_number_that_is_another_process_by_now_is_left_alone(server: Server, ssh: Ssh, note: str) -> None:
    """A run that a power cut ended leaves its note; numbers begin again with the system."""
    place(server).mkdir(parents=True)
    booted = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as other:
        born = Path(f"/proc/{other.pid}/stat").read_text().rpartition(") ")[2].split()[19]
        (place(server) / ".process").write_text(note.format(pid=other.pid, born=born, booted=booted))
        with DeviceFolder(ssh, "name", print):
            pass
        assert other.poll() is None
        place(server).mkdir()
        (place(server) / ".process").write_text(f"{other.pid}:{born}:{booted}\n")
        with DeviceFolder(ssh, "name", print):
            assert other.wait(10) == -signal.SIGTERM
    assert server.left() == []


def test_a_shell_that_searches_for_folders_does_not_disturb(
    server: Server, ssh: Ssh, files: Listed, tmp_path: Path
) -> None:
    """With CDPATH set, `cd` prints where it went."""
    server.put("settings", f"export CDPATH=.:{server.home}\n")
    with DeviceFolder(ssh, "name", print) as folder:
        folder.upload(files, lambda _: None)
        assert folder.run("echo here").stdout == b"here\n"
        assert folder.names("on device") == ['on device/it\'s "b" $HOME.onnx']
        assert folder.download(["a.onnx"], tmp_path / "back") == [tmp_path / "back/a.onnx"]


def test_any_name_of_a_file_is_found_again(ssh: Ssh, tmp_path: Path) -> None:
    listed = []
    for name in ("my\\master", "two\nlines", os.fsdecode(b"\xff"), "ü ß", " -x"):
        (tmp_path / name).write_bytes(b"abc")
        listed.append((tmp_path / name, f"master/{name}", hashlib.sha256(b"abc").hexdigest()))
    with DeviceFolder(ssh, "name", print) as folder:
        assert folder.upload(listed, lambda _: None) == 5
        assert folder.upload(listed, lambda _: None) == 0


def test_an_interrupt_leaves_the_device_clean(server: Server, ssh: Ssh) -> None:
    sleep = f"sleep {6000 + server.port}"

    def interrupt(line: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def work() -> None:
        with DeviceFolder(ssh, "name", print) as folder:
            folder.run(f"touch half; echo started >&2; {sleep}", interrupt)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not running(sleep)
    assert server.left() == []


def test_one_run_at_a_time(server: Server, ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits, is refused, and does the first no harm; it gets in when the first has gone."""
    monkeypatch.setattr(held_lock, "_HOLD", held_lock._HOLD.replace(f"-w {held_lock._WAIT_S}", "-w 1"))
    lines: list[str] = []
    with (
        Ssh(server.address, options=server.options) as other,
        DeviceFolder(ssh, "name", print) as folder,
        ThreadPoolExecutor() as pool,
    ):
        # what the second would end if it took the first for a run that was cut off
        running = pool.submit(folder.run, "sleep 3; echo done")
        with pytest.raises(UnavailableError, match=r"another build or profile over ssh is running there"):
            DeviceFolder(other, "another name", lines.append).__enter__()
        assert running.result().stdout == b"done\n"
        assert lines == [held_lock._SAYS_WAITING]
        assert not place(server).with_name("another name").exists()
    with Ssh(server.address, options=server.options) as other, DeviceFolder(other, "another name", print):
        pass
    assert server.left() == []


def test_a_run_that_is_not_heard_of_any_more_loses_its_lock(
    server: Server, ssh: Ssh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a router that was switched off: no one tells the device that the connection is no more."""
    monkeypatch.setattr(held_lock, "_HOLD", held_lock._HOLD.replace(f"timeout {held_lock._SILENCE_S}", "timeout 2"))
    silent = DeviceFolder(ssh, "name", print)
    silent.__enter__()
    with Ssh(server.address, options=server.options) as other, DeviceFolder(other, "name", print) as folder:
        silent.__exit__(None, None, None)
        assert folder.run("echo here").stdout == b"here\n"


def test_a_run_that_comes_back_to_a_device_of_another_does_it_no_harm(
    server: Server, ssh: Ssh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are of one package, so the folder is the same one."""
    monkeypatch.setattr(held_lock, "_HOLD", held_lock._HOLD.replace(f"-w {held_lock._WAIT_S}", "-w 1"))
    with Ssh(server.address, options=server.options) as other:
        cut_off = DeviceFolder(ssh, "name", print).__enter__()
        lose_connections(server)
        with DeviceFolder(other, "name", print) as second:
            second.run("echo mine >result")
            second.start("sleep 60")
            with pytest.raises(UnavailableError, match="another build or profile") as refused:
                cut_off.resume()
            cut_off.__exit__(UnavailableError, refused.value, None)
            assert second.run('cat result; kill -s 0 "$(cut -d: -f1 .recorder)" && echo runs').stdout == b"mine\nruns\n"
    assert server.left() == []


def test_an_interrupt_from_the_keyboard_does_not_take_the_lock(server: Server, ssh: Ssh) -> None:
    """Ctrl-C goes to all processes of the terminal's session."""
    with DeviceFolder(ssh, "name", print) as folder:
        process = folder._locks[0]._process
        assert process is not None
        assert os.getsid(process.pid) != os.getsid(0)


def test_a_lock_is_kept_as_long_as_it_is_heard_of(server: Server, ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = held_lock._HOLD.replace(f"timeout {held_lock._SILENCE_S}", "timeout 3")
    monkeypatch.setattr(held_lock, "_HOLD", changed.replace(f"-w {held_lock._WAIT_S}", "-w 6"))
    monkeypatch.setattr(held_lock, "_BEAT_S", 0.5)
    with (
        Ssh(server.address, options=server.options) as other,
        DeviceFolder(ssh, "name", print),
        pytest.raises(UnavailableError, match="another build or profile"),
    ):
        DeviceFolder(other, "name", print).__enter__()


def test_a_device_without_flock(server: Server, ssh: Ssh) -> None:
    server.put("settings", 'PATH=$HOME/bin/few; mkdir -p "$PATH"\n')
    for name in ("sh", "mkdir", "cat", "rm", "kill"):
        (server.home / "bin/few").mkdir(exist_ok=True)
        (server.home / "bin/few" / name).symlink_to(str(shutil.which(name)))
    with DeviceFolder(ssh, "name", print) as folder:
        assert folder.run("echo here").stdout == b"here\n"


def test_a_pipe_in_place_of_a_lock_is_not_waited_for(server: Server, ssh: Ssh) -> None:
    os.mkfifo(server.home / "pipe")
    refusal = UnavailableError(where="x", got="x", allowed="x", do="x")
    with DeviceFolder(ssh, "name", print) as folder, pytest.raises(OutputError, match="cannot be locked"):
        folder.lock("pipe", refusal)


@pytest.mark.parametrize("code", [64, 65])
def test_a_home_without_locks(server: Server, ssh: Ssh, code: int) -> None:
    """As on some file systems of a network; it is not taken for a lock that somebody has."""
    server.put("flock", f"#!/bin/sh\nexit {code}\n")
    with DeviceFolder(ssh, "name", print) as folder:
        assert folder.run("echo here").stdout == b"here\n"


def test_a_command_that_was_broken_off_is_run_again(server: Server, ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone: what was started beside it goes on, and the lock is held again."""
    monkeypatch.setattr(remote_device, "RETRY_AFTER_S", (0.1, 0.1))
    lines: list[str] = []
    beside = f"sleep {5000 + server.port}"
    with DeviceFolder(ssh, "name", print) as folder:
        device = Device(address=server.address, ssh_config=None, say=lines.append)
        patient = PatientFolder(device, folder)
        patient.start(f"sh -c 'echo recorded; exec {beside}'")
        command = "echo x >>calls; echo started >&2; [ $(wc -l <calls) = 2 ] || exec sleep 60; echo done"
        done = patient.run(command, lambda line: lose_connections(server) if patient.lost == 0 else None)
        assert (done.code, done.stdout, patient.lost) == (0, b"done\n", 1)
        assert len(lines) == 1
        assert "the connection was lost" in lines[0]
        assert running(beside)
        lines.clear()
        monkeypatch.setattr(held_lock, "_HOLD", held_lock._HOLD.replace(f"-w {held_lock._WAIT_S}", "-w 0"))
        with (
            Ssh(server.address, options=server.options) as other,
            pytest.raises(UnavailableError, match="another build or profile"),
        ):
            DeviceFolder(other, "name", print).__enter__()
        assert patient.stop() == b"recorded\n"
        assert not running(beside)
    assert server.left() == []


def test_after_a_lost_connection_the_next_command_opens_another(server: Server, ssh: Ssh, files: Listed) -> None:
    with DeviceFolder(ssh, "name", print) as folder:
        folder.upload(files[:2], lambda _: None)
        lose_connections(server)
        assert folder.upload(files, lambda _: None) == 1


def test_an_error_leaves_the_device_clean(server: Server, ssh: Ssh, files: Listed) -> None:
    files[0][0].unlink()
    with pytest.raises(FileNotFoundError), DeviceFolder(ssh, "name", print) as folder:
        folder.upload([files[1], files[0]], lambda _: None)
    assert server.left() == []


def test_a_file_that_is_not_the_exported_one(ssh: Ssh, files: Listed) -> None:
    files[0][0].write_bytes(b"changed")
    with (
        DeviceFolder(ssh, "name", print) as folder,
        pytest.raises(PackageError, match="its hash is not the manifest's"),
    ):
        folder.upload(files, lambda _: None)


def test_a_full_disk(server: Server, ssh: Ssh, files: Listed) -> None:
    server.put("tar", "#!/bin/sh\necho 'tar: ./a.onnx: Cannot write: No space left on device' >&2; exit 2\n")
    with (
        DeviceFolder(ssh, "name", print) as folder,
        pytest.raises(OutputError, match=r"(?s)No space left.*free some space"),
    ):
        folder.upload(files, lambda _: None)
    assert server.left() == []


def test_a_disk_that_loses_what_is_written(server: Server, ssh: Ssh, files: Listed) -> None:
    server.put("tar", "#!/bin/sh\ncat >/dev/null\n")
    with DeviceFolder(ssh, "name", print) as folder, pytest.raises(OutputError, match="not there as they were sent"):
        folder.upload(files, lambda _: None)


def test_a_home_that_cannot_be_written(server: Server, ssh: Ssh) -> None:
    (server.home / ".cache").write_text("a file")
    with pytest.raises(OutputError, match="a home folder that can be written"):
        DeviceFolder(ssh, "name", print).__enter__()


def running(command: str) -> bool:
    return subprocess.run(["pgrep", "-f", command], capture_output=True, check=False).returncode == 0


def wait_for_start(command: str) -> None:
    """What a shell has forked is still the shell until it becomes the command."""
    deadline = time.monotonic() + 10
    while not running(command):
        assert time.monotonic() < deadline, f"{command} does not run"
        time.sleep(0.1)


def wait_for_end(command: str) -> None:
    deadline = time.monotonic() + 10
    while running(command):
        assert time.monotonic() < deadline, f"{command} still runs"
        time.sleep(0.1)
