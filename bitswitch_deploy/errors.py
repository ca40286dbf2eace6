"""The one error tree; the branch decides the exit code of the command line.

    BitswitchError
    |- CheckFailedError        1   accuracy fell too far, a package fails its hashes, --strict refused an approximation,
    |                              no assignment is within --max-drop, an output is not finite
    |- UsageError              2   an argument that cannot be: unknown width, target, layer; output exists
    |- InputFileError          3   a file handed in is bad
    |  |- MasterError              the master file
    |  |- CheckpointError          a torch checkpoint
    |  |- GraphError               an ONNX graph
    |  |- DataError                images, labels, sample sets
    |  |- TargetFileError          a targets/*.yaml file
    |  |- PackageError             an exported package
    |- OutputError             3   a folder or disk that cannot be written
    |- UnavailableError        4   the engine, device or optional package is not here, is busy, ran out of memory or
                                   time, or is of another device

A command that ends with a result that fails, such as a regression or a broken part, exits with 1 without an error.
Everything that is not a BitswitchError is a bug: it keeps its traceback and exits with 70 (`EXIT_BUG`).
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_BUG = 70
# of the document that an error is with --json
ERROR_SCHEMA = "bitswitch-error/1"


class BitswitchError(Exception):
    """A failure that its message lets the reader mend.

    Args:
        where: the file, layer, option or node that is wrong.
        got: what was found there.
        allowed: what would have been accepted.
        do: the next step for the reader; a command where there is one.
    """

    exit_code: ClassVar[int] = EXIT_BUG

    def __init__(self, *, where: str, got: str, allowed: str, do: str) -> None:
        super().__init__(f"{where}: {got}\n  allowed: {allowed}\n  do: {do}")
        self.where = where
        self.got = got
        self.allowed = allowed
        self.do = do


class CheckFailedError(BitswitchError):
    """The work was done and what it shows is not acceptable."""

    exit_code = 1


class UsageError(BitswitchError):
    """An argument names something that does not exist or cannot be combined."""

    exit_code = 2


class InputFileError(BitswitchError):
    """A file handed in is missing, damaged or not what it says."""

    exit_code = 3


class MasterError(InputFileError):
    """The master file is damaged or contradicts itself."""


class CheckpointError(InputFileError):
    """A torch checkpoint cannot be read safely or belongs to another network."""


class GraphError(InputFileError):
    """An ONNX graph is not valid or holds something that cannot be quantized as asked."""


class DataError(InputFileError):
    """Images or labels cannot be read or do not fit the master."""


class TargetFileError(InputFileError):
    """A target profile has unknown, missing or contradictory entries."""


class PackageError(InputFileError):
    """An exported package is incomplete or its manifest is not readable."""


class OutputError(BitswitchError):
    """The place to write to does not accept the result."""

    exit_code = 3


class UnavailableError(BitswitchError):
    """An engine, device or optional dependency that the request needs is not here, or cannot do it now."""

    exit_code = 4
