"""Commands on another machine through the system's OpenSSH client, with the user's configuration, keys and known hosts.

Nothing is ever asked (BatchMode) and no host key is accepted that the user has not (StrictHostKeyChecking=yes). All
commands of a connection share one, so that the second costs no handshake. What ran there is ended when it is lost.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from bitswitch_deploy.errors import UnavailableError
from bitswitch_deploy.records import shown
from bitswitch_deploy.remote.address import Address

# ssh itself failed: no connection, no permission, or it was lost
_SSH_FAILED = 255
_ALIVE_S, _ALIVE_COUNT = 5, 3
_CONNECT_S = 20

Say = Callable[[str], None]


class ConnectionLostError(UnavailableError):
    """A connection that had stood broke; what was done so far may be gone on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A command that ended. code: its exit code. stdout: bytes. stderr: the last lines."""

    code: int
    stdout: bytes
    stderr: str


class Ssh:
    """A connection to one machine, to be used as a context.

    Args:
        address: of the machine. options: more words for ssh, such as `-F FILE`.

    Raises:
        UnavailableError: (on entry) there is no ssh here, or it does not get in, or the shell there prints of its own
            accord; the message says why.
    """

    def __init__(self, address: Address, *, options: Sequence[str] = ()) -> None:
        self.address = address
        self._options = tuple(options)
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Ssh:
        self._folder = _control_folder()
        try:
            finished = self._run("true")
            if finished.code == _SSH_FAILED:
                raise self._refused(finished.stderr)
            if finished.stdout:  # which would stand in front of what each command answers
                self._end_connection()
                raise self._talkative(finished.stdout)
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._end_connection()
            self._folder.cleanup()

    def _end_connection(self) -> None:
        subprocess.run([*self._words(), "-O", "exit", self.address.host], capture_output=True, check=False)

    def run(
        self, command: str, *, stdin: BinaryIO | None = None, stdout: BinaryIO | None = None, say: Say | None = None
    ) -> Finished:
        """Run a command of the POSIX shell there to its end.

        Args:
            stdin: what it reads. stdout: takes its output, which `Finished` has otherwise.
            say: gets each line that it writes to stderr, as it comes.

        Raises:
            ConnectionLostError: the connection broke.
        """
        finished = self._run(_in_shell(command), stdin=stdin, stdout=stdout, say=say)
        self.check_connection(finished.code, finished.stderr)
        return finished

    def start(self, command: str, say: Say) -> subprocess.Popen[bytes]:
        """Start a command of the POSIX shell there that reads and writes while it runs; `say` gets its stderr.

        Its code tells `check_connection` whether the connection was lost.
        """
        words = [*self._words(), "--", self.address.host, _in_shell(command)]
        # in a session of its own: Ctrl-C is for the run, which cleans up under the lock that this command holds
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        threading.Thread(target=_follow, args=(process.stderr, [], say), daemon=True).start()
        return process

    def check_connection(self, code: int, said: str = "") -> None:
        """Refuse the code of a command that ended because the connection did.

        Raises:
            ConnectionLostError: the connection broke.
        """
        if code == _SSH_FAILED:
            raise ConnectionLostError(
                where=str(self.address),
                got=f"the connection was lost: {said or 'ssh does not say why'}",
                allowed="a connection that stands",
                do="run the same command again: it goes on where it was",
            )

    def _run(
        self, command: str, *, stdin: BinaryIO | None = None, stdout: BinaryIO | None = None, say: Say | None = None
    ) -> Finished:
        words = [*self._words(), "--", self.address.host, command]
        try:
            process = subprocess.Popen(
                words,
                stdin=stdin if stdin is not None else subprocess.DEVNULL,
                stdout=stdout if stdout is not None else subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as exc:
            raise UnavailableError(
                where=str(self.address),
                got=f"no ssh on this machine: {exc.strerror}",
                allowed="OpenSSH's client in PATH",
                do="install it: sudo apt install openssh-client",
            ) from exc
        lines: list[str] = []
        # the connection's own process holds stderr as long as the command runs there, even when this one was ended
        reader = threading.Thread(target=_follow, args=(process.stderr, lines, say), daemon=True)
        reader.start()
        try:
            output = b"" if process.stdout is None else process.stdout.read()
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
        reader.join()
        return Finished(code=process.returncode, stdout=output, stderr="\n".join(lines[-20:]))

    def _words(self) -> list[str]:
        """`ssh` and its options; host and command follow."""
        if self._folder is None:
            raise AssertionError("Ssh is used as a context")
        settings = {
            "BatchMode": "yes",
            # what the user's configuration may have for work by hand
            "RequestTTY": "no",
            "RemoteCommand": "none",
            "ClearAllForwardings": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": _CONNECT_S,
            "ServerAliveInterval": _ALIVE_S,
            "ServerAliveCountMax": _ALIVE_COUNT,
            "ControlMaster": "auto",
            "ControlPath": Path(self._folder.name) / "control",
            "ControlPersist": "60",
        }
        words = ["ssh", *self._options, *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
        if self.address.port is not None:
            words += ["-p", str(self.address.port)]
        if self.address.user is not None:
            words += ["-l", self.address.user]
        return words

    def _talkative(self, said: bytes) -> UnavailableError:
        return UnavailableError(
            where=str(self.address),
            got=f"its shell prints {shown(said.decode('utf-8', 'replace'))} before a command runs",
            allowed="a shell that prints nothing where nobody sees it",
            do="begin ~/.bashrc there, or what prints it, with: case $- in *i*) ;; *) return ;; esac",
        )

    def _refused(self, said: str) -> UnavailableError:
        where, got = str(self.address), said or "ssh does not say why"
        host, port, words = self.address.host, self.address.port, self.address.words
        names = {
            "there": shlex.join(words),
            "login": shlex.join([*self._options, *words]),
            "known": shlex.quote(f"[{host}]:{port}" if port is not None else host),
        }
        for sign, allowed, do in _REASONS:
            if sign.lower() in said.lower():
                return UnavailableError(where=where, got=got, allowed=allowed, do=do.format(**names))
        return UnavailableError(
            where=where,
            got=got,
            allowed="a machine that ssh gets into without a question",
            do=f"try: ssh -v {names['login']}",
        )


# what ssh says -> what would have been accepted, what to do: login and there are words for ssh, with and without its
# options; known is the name of the host among the known ones
_REASONS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key that you know",
        "find out why it changed; if you know, ssh-keygen -R {known}, and connect once by hand",
    ),
    (
        "Host key verification failed",
        "a host whose key you have accepted",
        "connect once by hand and compare the fingerprint: ssh {login}",
    ),
    (
        "Permission denied",
        "a key that the device accepts, without a password",
        "ssh-copy-id {there}, or start an agent: ssh-add",
    ),
    ("Could not resolve hostname", "a name that can be resolved", "check the name, or use the address"),
    ("Connection refused", "a device that runs an ssh server", "start it there: sudo systemctl enable --now ssh"),
    ("timed out", "a device that answers", "check that it is on and in this network"),
    ("No route to host", "a device that answers", "check that it is on and in this network"),
)


def _in_shell(command: str) -> str:
    """The command in the POSIX shell, whatever the login shell is.

    Without CDPATH, with which `cd` prints where it goes; and with 254 for an exit code that says that ssh failed.
    """
    told = f'[ "$code" -ne {_SSH_FAILED} ] || code={_SSH_FAILED - 1}; exit "$code"'
    words = f"unset CDPATH; (\n{command}\n); code=$?; {told}"
    return f"sh -c {shlex.quote(words)}"


def _control_folder() -> tempfile.TemporaryDirectory[str]:
    """For the socket of a connection; the path of a socket has 104 bytes on some systems, 48 of which follow here.

    ssh takes blanks, quotes and % in it for something else.
    """
    folder = tempfile.gettempdir()
    is_usable = len(os.fsencode(folder)) <= 104 - 48 and re.fullmatch(r"[\w/.+-]+", folder, re.ASCII)
    return tempfile.TemporaryDirectory(prefix="bitswitch-ssh-", dir=None if is_usable else "/tmp")


def _follow(stream: IO[bytes] | None, lines: list[str], say: Say | None) -> None:
    if stream is None:
        return
    with stream:
        for raw in stream:
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                lines.append(line)
                if say is not None:
                    say(line)
