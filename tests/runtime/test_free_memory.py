"""What a process holds after many switches, with the option that gives memory back and without."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.master import write_master
from bitswitch_deploy.runtime.free_memory import return_free_memory
from tests.graph.masters import build, layer, per_channel
from tests.pipeline.conftest import WIDTHS, export_to

# prints what was computed, and the resident KiB that switches added
SWITCHES = """
import sys
import numpy as np
from bitswitch_deploy.runtime import RuntimeOptions, load

def resident():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))

before = resident()
switcher = load(sys.argv[1], options=RuntimeOptions(threads=1, release_memory=sys.argv[2] == "on"))
x = np.ones((1, 2048), np.float32)
answers = []
for bits in (8, 6, 4, 2) * 4:
    switcher.switch(bits)
    answers.append(float(switcher.run(x).sum()))
print(answers[:4] == answers[-4:], answers[:4], resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_memory_is_given_back_and_answers_stay(tmp_path: Path) -> None:
    text = """net (float[n, 2048] x, float[2048, 2048] "a.weight", float[2048, 2048] "b.weight") => (float[n, 2048] y)
        { h = MatMul (x, "a.weight") y = MatMul (h, "b.weight") }"""
    layers = [layer(name, "MatMul", per_channel(1), "none") for name in ("a", "b")]
    write_master(build(text, layers), tmp_path / "m.safetensors")
    package = export_to(tmp_path / "p", "x86-cpu", master=tmp_path / "m.safetensors", widths=WIDTHS).package
    said = {}
    for option in ("off", "on"):
        command = [sys.executable, "-c", SWITCHES, str(package), option]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        said[option] = printed.strip().rsplit(" ", 1)
    assert said["on"][0] == said["off"][0]
    assert said["on"][0].startswith("True")
    assert int(said["on"][1]) < 0.9 * int(said["off"][1])


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_another_c_library_changes_nothing(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def library(name: object) -> object:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", library)
    return_free_memory()
    assert np.zeros(3).sum() == 0
