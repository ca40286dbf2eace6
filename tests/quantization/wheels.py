"""Wheels of this project, built in a copy of what the build reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
LIBRARY = "bitswitch_deploy/quantization/librounding_shift.so"


def build_wheel(folder: Path, compiler: str) -> tuple[Path, str]:
    """The wheel that hatchling makes with `compiler`, and what it printed."""
    source = folder / "source"
    for name in ("pyproject.toml", "README.md", "hatch_build.py"):
        source.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, source / name)
    for name in ("bitswitch_deploy", "targets"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (source / "calibration" / "digits").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=source,
        env={**os.environ, "CC": compiler},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    assert not (source / LIBRARY).exists()
    return wheel, done.stdout + done.stderr
