"""stdout while a command runs: a disk that is full and a reader that has gone are no bugs, and are told from them."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from bitswitch_deploy.errors import OutputError


class ClosedPipeError(Exception):
    """Whoever read stdout has gone, as `head` does when it has enough: nothing is wrong."""


class _Stdout:
    """A stream whose failures are ours."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write `text`.

        Raises:
            ClosedPipeError: nobody reads it any more.
            OutputError: it cannot be written.
        """
        with self._failing():
            return self._stream.write(text)

    def flush(self) -> None:
        """Hand over what was written.

        Raises:
            ClosedPipeError, OutputError: as `write`.
        """
        with self._failing():
            self._stream.flush()

    def end(self) -> None:
        """After a failure, drop what is still held: Python would write it when it ends, and fail again."""
        if self._has_failed:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            self._has_failed = True
            if exc.errno == errno.EPIPE:
                raise ClosedPipeError from exc
            raise _refusal(f"cannot be written: {exc.strerror or exc}") from exc


@contextmanager
def guarded_stdout() -> Iterator[None]:
    """Put a stream whose failures are ours in the place of stdout, if there is one."""
    stream = cast("TextIO | None", sys.stdout)
    if stream is None:
        yield
        return
    guarded = _Stdout(stream)
    sys.stdout = cast(TextIO, guarded)
    try:
        yield
    finally:
        guarded.end()
        sys.stdout = stream


def check_stdout() -> None:
    """Refuse a stdout that the caller has closed, before anything is done for it.

    Raises:
        OutputError: it is closed.
    """
    if cast("TextIO | None", sys.stdout) is None:
        raise _refusal("is closed")


def _refusal(got: str) -> OutputError:
    allowed = "a terminal, a pipe that is read, or a file on a disk with free space"
    return OutputError(where="stdout", got=got, allowed=allowed, do="free disk space, or send the output elsewhere")
