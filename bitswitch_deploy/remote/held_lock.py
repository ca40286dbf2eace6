"""A lock on a device, held by a command there for as long as it hears from here.

A lost connection frees it: at once where the device notices, else after `_SILENCE_S`, because nothing is heard any
more. Without that a device that was cut off would stay locked for hours.
"""

from __future__ import annotations

import shlex
import subprocess
import threading
from contextlib import suppress

from bitswitch_deploy.errors import BitswitchError, OutputError
from bitswitch_deploy.remote.ssh import Say, Ssh

_BEAT_S, _SILENCE_S = 5.0, 20
# longer than an owner that was cut off keeps it
_WAIT_S = 25
_SAYS_WAITING = "another run holds the device; waiting for it to end"
# flock needs no right to write, so the file or folder may be of another user; a beat is a line that is not empty.
# A pipe that somebody has put there would wait for a writer.
# Code 1 of flock is a lock that somebody has, all others are of a file system without locks, as NFS may be.
_HOLD = f"""
command -v flock >/dev/null 2>&1 || {{ echo none; exit; }}
[ ! -p "$p" ] || exit
[ -e "$p" ] || (umask 022 && : >>"$p") || exit
exec 9<"$p"
code=0
flock -n 9 2>/dev/null || code=$?
if [ "$code" = 1 ]; then
    echo {shlex.quote(_SAYS_WAITING)} >&2
    code=0
    flock -w {_WAIT_S} 9 || code=$?
fi
case $code in
0) echo held ;;
1) echo busy; exit ;;
*) echo none; exit ;;
esac
while [ -n "$(timeout {_SILENCE_S} head -n 1 9<&-)" ]; do :; done
"""


class HeldLock:
    """One lock, as a context.

    Args:
        ssh: an open connection. path: a word of the shell there: a folder, or a file that is made where it is missing.
        refusal: raised when somebody else keeps it. say: is told that it takes a while.

    Raises:
        OutputError: (on entry) there is no such folder, or the file cannot be made.
        ConnectionLostError: the connection broke.
    """

    def __init__(self, ssh: Ssh, path: str, refusal: BitswitchError, say: Say) -> None:
        self._ssh, self._path, self._refusal, self._say = ssh, path, refusal, say
        self._process: subprocess.Popen[bytes] | None = None
        self._has_locks = True
        self._ended = threading.Event()

    def __enter__(self) -> HeldLock:
        self._process = self._ssh.start(f"p={self._path}{_HOLD}", self._say)
        try:
            self._check(self._process)
        except BaseException:
            self.release()
            raise
        self._ended = threading.Event()
        threading.Thread(target=_beat, args=(self._process, self._ended), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        """Whether it is not given back yet, and the command there still holds it; always, where there are no locks."""
        return self._process is not None and not (self._has_locks and self._process.poll() is not None)

    def release(self) -> None:
        """Give it back; it is of no use twice."""
        self._ended.set()
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not sent yet needs no one any more
                    stream.close()
        try:
            process.wait(_BEAT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _check(self, process: subprocess.Popen[bytes]) -> None:
        said = process.stdout.readline().decode("utf-8", "replace").strip() if process.stdout is not None else ""
        if said == "busy":
            raise self._refusal
        self._has_locks = said != "none"  # as on macOS, which has no flock
        if said in ("held", "none"):
            return
        self._ssh.check_connection(process.wait())
        raise OutputError(
            where=f"{self._ssh.address}: {self._path}",
            got="cannot be locked",
            allowed="a folder that can be written",
            do="correct its permissions there",
        )


def _beat(process: subprocess.Popen[bytes], ended: threading.Event) -> None:
    while process.stdin is not None and not ended.wait(_BEAT_S):
        try:
            process.stdin.write(b"on\n")
            process.stdin.flush()
        except (OSError, ValueError):  # the connection broke; or the lock was given back meanwhile
            return
