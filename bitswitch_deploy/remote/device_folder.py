"""A folder on a device that holds a package while something is done with it there.

Its name comes from the package's content, so a run that was cut off finds what it has copied. It needs on the device a
POSIX shell and `sha256sum` (or `shasum`), which every system with TensorRT has.
"""

from __future__ import annotations

import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType

from bitswitch_deploy.atomic_file import atomic_writer
from bitswitch_deploy.errors import BitswitchError, OutputError, PackageError, UnavailableError
from bitswitch_deploy.package.files import hash_file, hash_stream
from bitswitch_deploy.package.manifest import is_inside
from bitswitch_deploy.remote.held_lock import HeldLock
from bitswitch_deploy.remote.ssh import ConnectionLostError, Finished, Say, Ssh

_PLACE = ".cache/bitswitch-deploy/over-ssh"
_PROCESS, _RECORDER, _RECORDED = ".process", ".recorder", ".recorded"
# a line for each file, in order: beside a name the tools escape what they print
_HASHES = """
hash_of() {{ if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi; }}
for file in {0}; do {{ [ -f "$file" ] && hash_of <"$file"; }} 2>/dev/null || echo -; done
"""
_FULL = "No space left on device"
_ENDING_TENTHS = 50
# `note PID` says which process that is: numbers come again, after a start of the system soon
_DEFINE_NOTE = """
born() { sed 's/^.*) //' "/proc/$1/stat" | cut -d ' ' -f 20; } 2>/dev/null
booted() { cat /proc/sys/kernel/random/boot_id; } 2>/dev/null
note() { echo "$1:$(born "$1"):$(booted)"; }
"""
# `end FILE`: end the process that is noted in it and its group, by force where they do not listen
_DEFINE_END = f"""{_DEFINE_NOTE}
is_noted() {{ [ -n "$p" ] && [ "$3" = "$(booted)" ] && case "$(born "$p")" in "" | "$2") ;; *) return 1 ;; esac; }}
has_ended() {{ ! kill -s 0 -- "-$p" && ! kill -s 0 "$p"; }} 2>/dev/null
signal() {{ kill -s "$1" -- "-$p" || kill -s "$1" "$p" || :; }} 2>/dev/null
end() {{
    [ -f "$1" ] || return 0
    IFS=: read -r p birth boot <"$1" || :
    if is_noted "$p" "$birth" "$boot"; then
        signal TERM
        n=0
        until has_ended || [ "$n" -ge {_ENDING_TENTHS} ]; do n=$((n + 1)); sleep 0.1; done
        has_ended || signal KILL
    fi
    rm -f "$1"
}}
"""

Copied = Callable[[int], None]
# file here, path in the folder, sha256
Listed = tuple[Path, str, str]


def listed(file: Path, path: str) -> Listed:
    """A file as it is here, to be `path` in the folder."""
    return file, path, hash_file(file)[0]


class DeviceFolder:
    """A folder below the user's home on the device, removed at the end unless the connection is lost.

    One run at a time works below that home: what is left in the folder is then of a run that was cut off. A run whose
    lock another one has by now leaves the folder alone: it is that one's.

    Args:
        ssh: an open connection. name: plain, the same for the same package. say: is told what is waited for.

    Raises:
        UnavailableError: (on entry) another run works there. OutputError: the folder cannot be made.
    """

    def __init__(self, ssh: Ssh, name: str, say: Say) -> None:
        self._ssh, self._say = ssh, say
        self.path = f"{_PLACE}/{name}"
        self._locks = [self._lock(shlex.quote(_PLACE), self._busy())]

    def __enter__(self) -> DeviceFolder:
        made = self._ssh.run(f"umask 077 && mkdir -p {self._quoted('.')}")
        if made.code:
            raise self._unwritable(made)
        try:
            self._locks[0].__enter__()
        except UnavailableError:
            self._ssh.run(f"rmdir -- {self._quoted('.')} 2>/dev/null || :")
            raise
        try:
            # made again: a run that was waited for has removed it
            self._ssh.run(f"umask 077 && mkdir -p {self._quoted('.')}\n{self._ending(_PROCESS, _RECORDER)}")
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            # else the next run goes on with it, and removes it
            if self._locks[0].is_held and not isinstance(error, ConnectionLostError):
                self._ssh.run(f"{self._ending(_PROCESS, _RECORDER)}rm -rf -- {self._quoted('.')}")
        except ConnectionLostError as lost:
            if error is None:  # the work is done, and not to be done again because of this
                self._say(f"{lost.got}; ~/{self.path} stays there until the next run with this package")
        finally:
            self._release()

    def lock(self, path: str, refusal: BitswitchError) -> None:
        """Hold another lock there to the end; `path` and `refusal`: see `HeldLock`."""
        lock = self._lock(path, refusal)
        lock.__enter__()
        self._locks.append(lock)

    def resume(self) -> None:
        """Go on after a lost connection: what `run` may have left running is ended, what `start` started goes on.

        Raises:
            ConnectionLostError: the device cannot be reached yet.
            UnavailableError: another run has taken it meanwhile.
        """
        self._release()
        for lock in self._locks:
            lock.__enter__()
        self.end_command()

    def _lock(self, path: str, refusal: BitswitchError) -> HeldLock:
        return HeldLock(self._ssh, path, refusal, self._say)

    def _release(self) -> None:
        for lock in reversed(self._locks):
            lock.release()

    def _busy(self) -> UnavailableError:
        return UnavailableError(
            where=str(self._ssh.address),
            got="another build or profile over ssh is running there",
            allowed="one at a time: each would falsify what the other measures",
            do="wait for it, then run the command again",
        )

    def upload(self, files: Sequence[Listed], copied: Copied) -> int:
        """Copy what is missing or different there.

        Args:
            files: what to copy. copied: is told the bytes of each as it is done.

        Returns:
            How many files were copied.

        Raises:
            OutputError: the device's disk is full or cannot be written.
            PackageError: a file here is not what its hash says.
        """
        known = self._hashes([path for _, path, _ in files])
        missing = [each for each in files if known.get(each[1]) != each[2]]
        for source, _, sha256 in missing:
            if hash_file(source)[0] != sha256:
                raise PackageError(
                    where=str(source),
                    got="its hash is not the manifest's",
                    allowed="the exported file",
                    do="export again",
                )
        if missing:
            self._send(missing)
            copied(sum(source.stat().st_size for source, _, _ in missing))
        known = self._hashes([path for _, path, _ in missing])
        wrong = [path for _, path, sha256 in missing if known.get(path) != sha256]
        if wrong:
            raise OutputError(
                where=f"{self._ssh.address}: {', '.join(wrong)}",
                got="not there as they were sent",
                allowed="a disk that keeps what is written",
                do="check the disk of the device (df -h, dmesg), then run the command again",
            )
        return len(missing)

    def _send(self, files: Sequence[Listed]) -> None:
        """All in one archive: a file that it breaks off in has another hash and is sent again."""
        with tempfile.TemporaryFile() as archive:
            # what is a link here, as in the caches of model hubs, is a file there
            with tarfile.open(fileobj=archive, mode="w", dereference=True) as writer:
                for source, path, _ in files:
                    writer.add(source, arcname=f"./{path}", recursive=False)
            archive.seek(0)
            done = self._ssh.run(f"tar -xf - -C {self._quoted('.')}", stdin=archive)
        if done.code:
            raise self._unwritable(done)

    def run(self, command: str, say: Say | None = None) -> Finished:
        """Run a command in the folder; it and what it started are ended by `end_command`."""
        # a session of its own where that can be had, so that all of it can be ended
        start = shlex.quote(f'{_DEFINE_NOTE}note "$$" >{_PROCESS} && exec sh -c {shlex.quote(command)}')
        own = f"if command -v setsid >/dev/null 2>&1; then setsid -w sh -c {start}; else sh -c {start}; fi"
        ended = f"code=$?; rm -f {_PROCESS}; exit $code"  # the number may soon be that of another process
        try:
            return self._ssh.run(f"cd {self._quoted('.')} && {{ {own}; {ended}; }}", say=say)
        except KeyboardInterrupt:
            self.end_command()
            raise

    def start(self, command: str) -> None:
        """Start one command that goes on printing in the folder; `stop` or `end_command` end it."""
        recorder = f"(exec {command} >{_RECORDED} 2>/dev/null </dev/null) & note $! >{_RECORDER}"
        self._ssh.run(f"{self._ending(_RECORDER)}cd {self._quoted('.')} && {{ {recorder}; }}")

    def stop(self) -> bytes:
        """End what was started; what it printed."""
        return self._ssh.run(f"{self._ending(_RECORDER)}cat {self._quoted(_RECORDED)} 2>/dev/null || :").stdout

    def end_command(self) -> None:
        """End the command that an earlier run may have left running here, and wait for its end."""
        self._ssh.run(self._ending(_PROCESS))

    def _ending(self, *files: str) -> str:
        """The commands that end the processes whose numbers are in files of the folder."""
        return _DEFINE_END + "".join(f"end {self._quoted(file)}\n" for file in files)

    def names(self, folder: str) -> list[str]:
        """Paths of the files in a folder of the folder, hidden ones left out; none where it is not there."""
        listed = self._ssh.run(f"cd {self._quoted(folder)} 2>/dev/null && ls -1 || :")
        found = [f"{folder}/{name}" for name in listed.stdout.decode("utf-8", "replace").splitlines()]
        for path in found:
            if not is_inside(path):
                raise PackageError(
                    where=f"{self._ssh.address}: {folder}",
                    got=repr(path),
                    allowed="plain file names",
                    do="look at it there",
                )
        return found

    def download(self, paths: Sequence[str], folder: Path) -> list[Path]:
        """Bring files back, each in one step and checked by its hash, to the same paths below `folder`.

        Files that are here as they are there stay as they are.

        Raises:
            UnavailableError: a file is not there, or does not arrive whole. OutputError: it cannot be written here.
        """
        known = self._hashes(paths)
        wanted = [path for path in paths if not _is_here(folder / path, known.get(path))]
        with tempfile.TemporaryFile() as archive:
            words = " ".join(shlex.quote(f"./{path}") for path in wanted)
            done = self._ssh.run(f"cd {self._quoted('.')} && tar -cf - {words}", stdout=archive) if wanted else None
            archive.seek(0)
            if done is None:
                return []
            try:
                with tarfile.open(fileobj=archive) as reader:
                    for path in wanted:
                        self._place(reader, path, folder / path, known.get(path))
            except tarfile.TarError as exc:
                raise self._incomplete(", ".join(wanted), done.stderr or str(exc)) from exc
        return [folder / path for path in wanted]

    def _place(self, reader: tarfile.TarFile, path: str, target: Path, sha256: str | None) -> None:
        """One file of an archive; of a name that is not a plain file nothing is read."""
        try:
            file = reader.extractfile(f"./{path}")
        except KeyError:
            file = None
        if file is None or hash_stream(file)[0] != sha256:
            raise self._incomplete(path, "it is not there, or did not arrive whole")
        target.parent.mkdir(parents=True, exist_ok=True)
        file.seek(0)
        with atomic_writer(target) as output:
            shutil.copyfileobj(file, output)

    def _incomplete(self, path: str, got: str) -> UnavailableError:
        return UnavailableError(
            where=f"{self._ssh.address}: {path}", got=got, allowed="a file that can be read", do="run the command again"
        )

    def _hashes(self, paths: Sequence[str]) -> dict[str, str]:
        """sha256 of each of these files; something else of those that are not there."""
        if not paths:
            return {}
        words = " ".join(shlex.quote(path) for path in paths)
        done = self._ssh.run(f"cd {self._quoted('.')} && {{ {_HASHES.format(words)}}}")
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        return dict(zip(paths, (line.split(maxsplit=1)[0] for line in lines)))

    def _quoted(self, path: str) -> str:
        """The path as a word of the shell; the shell starts in the user's home."""
        return shlex.quote(str(PurePosixPath(self.path) / path))

    def _unwritable(self, done: Finished) -> OutputError:
        full = _FULL in done.stderr
        return OutputError(
            where=f"{self._ssh.address}: ~/{self.path}",
            got=done.stderr or f"exit code {done.code}",
            allowed="a disk with room for the package and its engines" if full else "a home folder that can be written",
            do="free some space there, then run the command again: it goes on where it was"
            if full
            else "check the owner of the folder there",
        )


def _is_here(path: Path, sha256: str | None) -> bool:
    return path.is_file() and hash_file(path)[0] == sha256
