"""Against a real ssh server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from bitswitch_deploy.errors import UnavailableError
from bitswitch_deploy.remote.address import Address
from bitswitch_deploy.remote.ssh import ConnectionLostError, Ssh
from tests.remote.server import Server, needs_sshd

pytestmark = needs_sshd


def test_a_command_its_input_output_and_code(server: Server, tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "in").write_bytes(b"\x00\xff" * 100_000)
    with Ssh(server.address, options=server.options) as ssh:
        done = ssh.run("""printf '%s\\n' "it's here" >&2; exit 7""", say=lines.append)
        assert (done.code, done.stdout, done.stderr, lines) == (7, b"", "it's here", ["it's here"])
        with (tmp_path / "in").open("rb") as source:
            assert ssh.run("cat", stdin=source).stdout == b"\x00\xff" * 100_000
        with (tmp_path / "out").open("wb") as target:
            assert ssh.run("echo $HOME", stdout=target).stdout == b""
    assert (tmp_path / "out").read_text().strip() == str(server.home)


@pytest.mark.parametrize("name", ["x" * 90, "a b", "50%h", '"'])
def test_a_folder_for_temporary_files_that_ssh_cannot_use(
    server: Server, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The path of a socket has 108 bytes at most, and ssh reads it as a word of its configuration."""
    folder = tmp_path_factory.mktemp("t") / name
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with Ssh(server.address, options=server.options) as ssh:
        assert ssh.run("true").code == 0


def test_the_code_of_a_command_is_no_lost_connection(server: Server) -> None:
    """255 is what ssh itself ends with."""
    with Ssh(server.address, options=server.options) as ssh:
        assert [ssh.run(f"exit {code}").code for code in (0, 1, 254, 255)] == [0, 1, 254, 254]
        assert ssh.run("exec sh -c 'exit 255'").code == 254


def test_lines_come_while_the_command_runs(server: Server) -> None:
    """The command waits for a file that appears when its first line was seen."""

    def seen(line: str) -> None:
        (server.home / line).touch()

    with Ssh(server.address, options=server.options) as ssh:
        waiting = "echo go >&2; for i in 1 2 3 4 5 6 7 8 9; do [ -f go ] && exit 0; sleep 1; done; exit 1"
        assert ssh.run(waiting, say=seen).code == 0


def test_a_configuration_for_work_by_hand_does_not_disturb(server: Server) -> None:
    with (server.folder / "client.conf").open("a") as file:
        file.write("RequestTTY force\nRemoteCommand tmux attach\nLocalForward 127.0.0.1:1 127.0.0.1:1\n")
        file.write("ExitOnForwardFailure yes\n")
    with Ssh(server.address, options=server.options) as ssh:
        done = ssh.run("printf 'a\\nb\\n'; echo c >&2")
        assert (done.code, done.stdout, done.stderr) == (0, b"a\nb\n", "c")


def test_one_connection_for_all_commands(server: Server) -> None:
    with Ssh(server.address, options=server.options) as ssh:
        for _ in range(5):
            ssh.run("true")
    assert (server.folder / "log").read_text().count("Accepted publickey") == 1


def test_a_key_that_is_not_accepted(server: Server) -> None:
    server.configure(key="other_key")
    address = Address(host="127.0.0.1", user="me", port=server.port)
    with pytest.raises(
        UnavailableError, match=rf"(?s)Permission denied.*do: ssh-copy-id -p {server.port} me@127.0.0.1"
    ):
        Ssh(address, options=server.options).__enter__()


@pytest.mark.parametrize(
    ("hosts", "do"),
    [
        ("no_hosts", "fingerprint: ssh -F {conf} -p {port} 127.0.0.1"),
        ("wrong_hosts", "ssh-keygen -R '[127.0.0.1]:{port}'"),
    ],
)
def test_host_keys_are_never_accepted(server: Server, hosts: str, do: str) -> None:
    server.configure(known_hosts=hosts)
    before = (server.folder / hosts).read_bytes()
    wanted = do.format(conf=server.folder / "client.conf", port=server.port)
    with pytest.raises(UnavailableError, match=re.escape(wanted)):
        Ssh(server.address, options=server.options).__enter__()
    assert (server.folder / hosts).read_bytes() == before


def test_nobody_listens(server: Server) -> None:
    server.process.terminate()
    server.process.wait(10)
    with pytest.raises(UnavailableError, match=r"(?s)refused.*systemctl enable --now ssh"):
        Ssh(server.address, options=server.options).__enter__()


def test_no_such_name(server: Server) -> None:
    with pytest.raises(UnavailableError, match="a name that can be resolved"):
        Ssh(Address(host="no-such-host.invalid"), options=server.options).__enter__()


def test_no_ssh_here(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="install it: sudo apt install openssh-client"):
        Ssh(server.address, options=server.options).__enter__()


def test_a_shell_that_prints_of_its_own_accord(server: Server) -> None:
    server.put("settings", "echo Welcome to the board\n")
    with pytest.raises(UnavailableError, match=r"prints 'Welcome to the board\\n' (.|\n)*begin ~/.bashrc"):
        Ssh(server.address, options=server.options).__enter__()
    assert_no_connection_is_left(server)


def test_a_lost_connection(server: Server) -> None:
    with Ssh(server.address, options=server.options) as ssh:
        threading.Timer(1.0, lose_connections, [server]).start()
        with pytest.raises(ConnectionLostError, match="it goes on where it was"):
            ssh.run("sleep 30")


def lose_connections(server: Server, *, for_good: bool = False) -> None:
    """What a pulled cable does, at once: the server's processes for this connection die; for good, the server too."""
    found = subprocess.run(["pgrep", "-P", str(server.process.pid)], capture_output=True, text=True, check=False)
    if for_good:
        server.process.terminate()
        server.process.wait(10)
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)


def test_it_ends_with_its_connection(server: Server) -> None:
    with Ssh(server.address, options=server.options) as ssh:
        ssh.run("true")
    assert_no_connection_is_left(server)


def assert_no_connection_is_left(server: Server) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _masters(server):
        time.sleep(0.1)
    assert not _masters(server)


def _masters(server: Server) -> bool:
    found = subprocess.run(["pgrep", "-f", f"ssh.*{server.folder}/client.conf"], capture_output=True, check=False)
    return bool(found.stdout.strip())


def test_the_signal_of_the_user_is_not_swallowed(server: Server) -> None:
    with Ssh(server.address, options=server.options) as ssh:
        threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            ssh.run("sleep 20")
