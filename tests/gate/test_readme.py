"""The configuration and the workflows of the README do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import yaml

import bitswitch_deploy.gate
from bitswitch_deploy.gate.config import Limits, read_config
from bitswitch_deploy.gate.metrics import METRICS
from tests.conftest import Run

README = Path(bitswitch_deploy.gate.__file__).with_name("README.md").read_text(encoding="utf-8")


def _block(mark: str) -> str:
    _, _, rest = README.partition(f"<!-- {mark} -->")
    return textwrap.dedent(rest.split("<!-- end -->")[0])


def test_the_configuration_is_one_and_shows_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "bitswitch.yaml"
    path.write_text(_block("configuration"))
    config = read_config(path)
    assert config.limits == Limits()
    assert set(yaml.safe_load(_block("configuration"))) == set(config.__dataclass_fields__)


def test_every_metric_is_in_the_table() -> None:
    table = " ".join(line.split("|")[1] for line in README.splitlines() if line.startswith("| `"))
    assert set(METRICS) <= set(re.findall(r"`([\w-]+)`", table))


def _github() -> list[str]:
    steps: list[dict[str, Any]] = yaml.safe_load(_block("github workflow"))["jobs"]["check"]["steps"]
    return [step["run"] for step in steps if "run" in step]


def _gitlab() -> list[str]:
    return [str(line) for line in yaml.safe_load(_block("gitlab workflow"))["accuracy"]["script"]]


def test_the_lines_of_the_workflows_run_in_a_shell(tmp_path: Path, run: Run) -> None:
    (tmp_path / "bitswitch.yaml").write_text("targets: [x86-cpu]\nwidths: [4]\n")
    assert run("check", tmp_path / "bitswitch.yaml", "--update-baseline").code == 0
    install, *rest = _github()
    assert [install, *rest] == _gitlab()
    assert install == "pip install 'bitswitch-deploy[images]'"  # that is what runs this test
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    for line in rest:
        command = ["bash", "-euo", "pipefail", "-c", line]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert ET.parse(tmp_path / "accuracy.xml").getroot().get("tests") == "1"
    assert "digits x86-cpu w4" in (tmp_path / "summary.md").read_text()
