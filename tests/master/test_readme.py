"""The writer in the format's documentation runs as printed, knows nothing of us, and its file is read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bitswitch_deploy.master
from bitswitch_deploy.master import describe_master, read_master, write_master

README = Path(bitswitch_deploy.master.__file__).with_name("README.md")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "import bitswitch" not in code
    assert "from bitswitch" not in code
    folder = tmp_path_factory.mktemp("readme")
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=120)
    return folder / "example.safetensors"


def test_the_example_is_a_master(example: Path) -> None:
    master = read_master(example)
    assert master.spec.widths == (8, 4, 2)
    assert [layer.name for layer in master.spec.layers] == ["conv", "fc"]
    assert master.tensors["fc.weight"].dtype == np.int8
    assert master.tensors["bn.var"].shape == (3, 4)
    assert describe_master(master).n_quantized == 40


def test_written_again_it_says_the_same(example: Path, tmp_path: Path) -> None:
    master = read_master(example)
    write_master(master, tmp_path / "again.safetensors")
    again = read_master(tmp_path / "again.safetensors")
    assert again.spec == master.spec
    assert again.skeleton == master.skeleton
    assert sorted(again.tensors) == sorted(master.tensors)
    for name, tensor in master.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
