"""trtexec on a device, with what it writes brought back: for engines/trtexec.py, which reads it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

from bitswitch_deploy.engines.trtexec import PLACES, TIMEOUT_S, Ran, no_trtexec, not_running
from bitswitch_deploy.remote.device import PatientFolder

_EXPORTED = "exported.json"
# by SIGTERM, and by SIGKILL where trtexec does not listen
_TIMED_OUT = (124, 137)
_KILL_AFTER_S = 30


class TrtexecThere:
    """The trtexec of a device.

    Args:
        folder: on the device; a run that a lost connection breaks off begins again, the others stay.
        package: the folder here whose files are below `place` there.

    Raises:
        UnavailableError: it is not there.
    """

    def __init__(self, folder: PatientFolder, package: Path, place: str) -> None:
        self._folder, self._package, self._place = folder, package, place
        places = f'"$(command -v trtexec)" {shlex.join(PLACES)}'
        found = (
            folder.run(f'for p in {places}; do if [ -x "$p" ]; then echo "$p"; exit; fi; done').stdout.decode().strip()
        )
        if not found:
            raise no_trtexec("on the device")
        self.program = found

    def place(self, engine: Path) -> str:
        """The path of an engine of the package, in the folder there."""
        return f"{self._place}/{engine.relative_to(self._package).as_posix()}"

    def run(self, words: Sequence[str], *, export: str | None = None) -> Ran:
        """Run it there to its end.

        Raises:
            UnavailableError: it hangs, or the connection is lost.
        """
        command = (self.program, *words, *((f"--{export}={_EXPORTED}",) if export is not None else ()))
        # in the foreground: it stays in the group of processes that is ended with the command
        limited = f"timeout --foreground -k {_KILL_AFTER_S} {TIMEOUT_S} {shlex.join(command)} >&2"
        log: list[str] = []
        started = monotonic()
        done = self._folder.run(f"rm -f {_EXPORTED}; {limited} && {{ cat {_EXPORTED} 2>/dev/null || :; }}", log.append)
        # what the system kills for its memory ends with the second of them as well, but earlier
        if done.code in _TIMED_OUT and monotonic() - started >= TIMEOUT_S:
            raise not_running(self.program, None, command)
        text = done.stdout.decode("utf-8", "replace")
        return Ran(code=done.code, log="\n".join(log), exported=text or None)
