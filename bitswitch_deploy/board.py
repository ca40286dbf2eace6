"""What a Jetson says about itself in /proc and /etc, and which GPU a process sees. Standard library only: the runtime
reads it, too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path


def board_names(root: Path) -> list[str]:
    """Numbers of carrier, module and chip: `nvidia,p3768-0000+p3767-0005`, `nvidia,tegra234` gives three names."""
    try:
        text = (root / "proc/device-tree/compatible").read_bytes().decode("ascii", errors="replace")
    except OSError:
        return []
    entries = [entry.removeprefix("nvidia,") for entry in text.split("\0") if entry.startswith("nvidia,")]
    # JetPack 6 adds `-super` to the module of boards flashed for the higher clocks.
    return [part.removesuffix("-super") for entry in entries for part in entry.split("+")]


def l4t_version(root: Path) -> str | None:
    """`# R36 (release), REVISION: 4.3, ...` is 36.4.3; None in a container that does not show the file."""
    try:
        text = (root / "etc/nv_tegra_release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return f"{match[1]}.{match[2]}" if match else None


def visible_gpu() -> str:
    """The first GPU that this process sees, as nvidia-smi takes it for --id: a number or a UUID."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
