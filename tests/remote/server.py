"""A real ssh server on 127.0.0.1 with throw-away keys; those who log in find a home folder of the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitswitch_deploy.remote.address import Address

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="no OpenSSH here (Debian: openssh-server, openssh-client)"
)


@dataclass(frozen=True)
class Server:
    """A running server. folder: of its keys; home: of who logs in; config: of a client that it knows."""

    folder: Path
    home: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> Address:
        return Address(host="127.0.0.1", port=self.port)

    @property
    def options(self) -> tuple[str, ...]:
        return ("-F", str(self.folder / "client.conf"))

    def configure(self, *, key: str = "key", known_hosts: str = "known_hosts") -> None:
        """Write the configuration of the client."""
        (self.folder / "client.conf").write_text(
            f"IdentityFile {self.folder / key}\nIdentitiesOnly yes\nUserKnownHostsFile {self.folder / known_hosts}\n"
            "GlobalKnownHostsFile none\n"
        )

    def put(self, name: str, text: str) -> None:
        """Install a program for who logs in."""
        path = self.home / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def left(self) -> list[Path]:
        """What is in the home folder but programs."""
        return [path for path in self.home.rglob("*") if path.is_file() and path.parent.name != "bin"]


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    home = folder / "home"
    home.mkdir()
    (folder / "tmp").mkdir()  # a lock of its own, for tests that run side by side
    for name in ("host_key", "key", "other_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    host_key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    other_key = " ".join((folder / "other_key.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "wrong_hosts").write_text(f"[127.0.0.1]:{port} {other_key}\n")
    (folder / "no_hosts").touch()
    start = (
        f"cd {home} && export HOME={home} PATH={home}/bin:$PATH TMPDIR={folder}/tmp && "
        'if [ -f bin/settings ]; then . bin/settings; fi && eval "$SSH_ORIGINAL_COMMAND"'
    )
    (folder / "sshd.conf").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\nPidFile none\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin prohibit-password\nForceCommand {start}\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd.conf")], stderr=log)
    try:
        _wait(port, process, folder / "log")
        server = Server(folder=folder, home=home, port=port, process=process)
        server.configure()
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"sshd does not listen: {log.read_text()}")
