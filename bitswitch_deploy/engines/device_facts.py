"""What decides whether a TensorRT engine fits this machine, read off the machine itself. No vendor import.

An engine belongs to one GPU architecture, one module and one TensorRT build. Each fact is None where the
machine does not tell it: nothing is guessed.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitswitch_deploy.board import board_names, l4t_version, visible_gpu

# Compute capability of each Tegra chip that TensorRT 8.5 and newer runs on.
_SM_OF_CHIP = {"tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
_QUERY_SECONDS = 20
_GPU_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")


# what a query program prints; nothing where it is missing, fails or hangs
Ask = Callable[[Sequence[str]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """The machine that an engine was built on, or is loaded on.

    arch: as `uname -m`. module: part number of the Jetson module, or the name of the GPU. sm: compute capability.
    l4t: Jetson Linux release, `36.4.3`; a container need not show it. power_mode: name of the nvpmodel mode.
    """

    arch: str
    module: str | None = None
    sm: str | None = None
    l4t: str | None = None
    power_mode: str | None = None

    @property
    def is_tegra(self) -> bool:
        """Whether it is a Jetson."""
        return self.sm in _SM_OF_CHIP.values()


def device_facts(root: Path = Path("/"), *, ask: Ask | None = None) -> DeviceFacts:
    """The facts of this machine, or of another one.

    Args:
        root: where its /proc and /etc are looked for. ask: runs query programs there; None runs them here. Of several
            GPUs it is the first, here the first that this process sees.
    """
    gpu = visible_gpu() if ask is None else "0"
    arch = ask(("uname", "-m")).strip() if ask is not None else platform.machine()
    ask = ask or _answer
    names = board_names(root)
    chips = [name for name in names if name in _SM_OF_CHIP]
    if not chips:
        name, sm = _desktop_gpu(ask, gpu)
        return DeviceFacts(arch=arch, module=name, sm=sm)
    # the first entry names carrier and module, in this order
    parts = [name for name in names if re.fullmatch(r"p\d+-\d+", name)]
    return DeviceFacts(
        arch=arch,
        module=parts[-1] if parts else None,
        sm=_SM_OF_CHIP[chips[0]],
        l4t=l4t_version(root),
        power_mode=_power_mode(ask),
    )


def _desktop_gpu(ask: Ask, gpu: str) -> tuple[str | None, str | None]:
    # nvidia-smi knows fewer names of a GPU than CUDA does
    lines = (ask((*_GPU_QUERY, f"--id={gpu}")) or ask((*_GPU_QUERY, "--id=0"))).splitlines()
    name, comma, sm = lines[0].rpartition(",") if lines else ("", "", "")
    if not comma or not re.fullmatch(r"\d+\.\d+", sm.strip()):
        return None, None
    return name.strip(), sm.strip()


def _power_mode(ask: Ask) -> str | None:
    """`NV Power Mode: 15W` of `nvpmodel -q`: ids differ between modules, names do not."""
    match = re.search(r"NV Power Mode:\s*(\S+)", ask(("nvpmodel", "-q")))
    return match[1] if match else None


def _answer(command: Sequence[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_QUERY_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""
