"""Build hook: compiles the rounding shift for the wheel where there is a C compiler, and says so where there is none.

Without it the package is complete: quantization/rounding.py then derives the same codes with NumPy.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "bitswitch_deploy/quantization/rounding_shift.c"
LIBRARY = "bitswitch_deploy/quantization/librounding_shift.so"


class CompileRoundingShift(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled library to the wheel; to the source tree for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        is_editable = version == "editable"
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self.root, LIBRARY) if is_editable else Path(self._folder.name, "librounding_shift.so")
        library.unlink(missing_ok=True)  # of an earlier editable install
        problem = _compile(Path(self.root, SOURCE), library)
        if problem:
            self.app.display_warning(f"weights will be derived by NumPy, at less than half the speed: {problem}")
            return
        build_data["pure_python"] = False
        # No symbol of Python is used: one wheel for every version of it.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        if not is_editable:
            build_data["force_include"][str(library)] = LIBRARY

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._folder.cleanup()


def _compile(source: Path, library: Path) -> str | None:
    """What went wrong, or None. CC names another compiler than `cc`, with options if need be."""
    command = [*shlex.split(os.environ.get("CC", "cc")), "-O3", "-shared", "-fPIC", str(source), "-o", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return None if done.returncode == 0 else done.stderr.strip() or f"{command[0]}: exit code {done.returncode}"
