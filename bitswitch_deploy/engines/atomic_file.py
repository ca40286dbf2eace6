"""Write a file so that a killed run leaves either the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path

from bitswitch_deploy.errors import OutputError


def replace_file(path: Path, data: bytes, *, executable: bool = False) -> None:
    """Put `data` at `path`: temporary file in the same folder, fsync, rename.

    Raises:
        OutputError: the folder is missing, not writable or full.
    """
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    mode = 0o777 if executable else 0o666
    try:
        try:
            # os.open applies the umask, as for any other new file
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise OutputError(
            where=str(path),
            got=f"cannot be written: {exc.strerror}",
            allowed="a writable folder with enough free space",
            do="free space or choose another folder",
        ) from exc
