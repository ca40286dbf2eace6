"""A board that is not there: a folder with a package, and the programs that build_on_device.sh finds."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from bitswitch_deploy.engines.bundle import SCRIPT
from bitswitch_deploy.engines.engine_record import BUILD_FOLDER

TRTEXEC = """#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT {banner}] [b9] # trtexec $*"
[ "$1" = --help ] && exit 0
printf '%s\\n' "$@" >>"{calls}"
echo "{line}"
for argument in "$@"; do
    case $argument in --saveEngine=*) {write} ;; esac
done
exit {code}
"""
WRITE_ENGINE = 'echo engine >"${argument#--saveEngine=}"'


class Board:
    """A folder with a bundle, and the programs that the script finds."""

    def __init__(self, tmp_path: Path) -> None:
        self.package = tmp_path / "a package"
        self.programs = tmp_path / "bin"
        self.calls = tmp_path / "calls"
        self.device_tree = tmp_path / "compatible"
        self.release = tmp_path / "nv_tegra_release"
        self.cache = tmp_path / "cache"
        self.environment = {"XDG_CACHE_HOME": str(self.cache)}
        self.package.mkdir()
        self.programs.mkdir()
        self.device_tree.write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
        self.release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
        self.program("uname", "#!/bin/sh\necho aarch64\n")
        self.program("nvpmodel", "#!/bin/sh\necho NV Power Mode: 15W\necho 0\n")
        self.trtexec()

    @property
    def built(self) -> Path:
        return self.package / BUILD_FOLDER

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def trtexec(self, banner: str = "v100300", line: str = "ok", write: str = WRITE_ENGINE, code: int = 0) -> None:
        self.program("trtexec", TRTEXEC.format(banner=banner, line=line, write=write, code=code, calls=self.calls))

    def start(self, *arguments: str, start_new_session: bool = False) -> subprocess.Popen[str]:
        self.calls.unlink(missing_ok=True)
        return subprocess.Popen(
            [str(self.package / SCRIPT), *arguments],
            env={
                "PATH": f"{self.programs}:{os.defpath}",
                "BITSWITCH_DEVICE_TREE": str(self.device_tree),
                "BITSWITCH_TEGRA_RELEASE": str(self.release),
                **self.environment,
            },
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=start_new_session,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        _, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, "", stderr)

    def wait_for(self, pattern: str) -> list[Path]:
        for _ in range(3000):
            found = [path for path in self.built.glob(pattern) if path.stat().st_size]
            if found:
                return found
            time.sleep(0.01)
        raise TimeoutError(f"no {pattern} in {self.built}")

    def arguments(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []
