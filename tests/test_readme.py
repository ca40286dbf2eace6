"""The README says what is there, and its commands work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(mark: str) -> str:
    """The indented lines between a mark and its end."""
    _, _, rest = README.partition(f"<!-- {mark} -->")
    return "\n".join(line[4:] for line in rest.split("<!-- end -->")[0].splitlines() if line.startswith("    "))


def test_the_folder_table_is_the_pipeline_in_the_order_of_the_import_contract() -> None:
    listed = re.findall(r"^\| `(\w+)/` \|", README, re.MULTILINE)
    assert set(listed) == {
        path.name for path in (ROOT / "bitswitch_deploy").iterdir() if (path / "__init__.py").exists()
    }
    contract = re.search(r"layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert contract is not None
    layers = re.findall(r"\w+", contract[1])
    assert [name for name in layers if name in listed] == listed


def test_the_demo_ends_with_the_main_job_and_shows_what_it_prints(run: Run, tmp_path: Path) -> None:
    command = block("demo command").split(" && ")[-1]
    assert command == "bitswitch-deploy export --target jetson"
    outcome = run(*shlex.split(command)[1:], "--output", tmp_path / "package")
    assert outcome.code == 0
    shown = [
        line.split()[0]
        for line in block("demo output: tools/update_readme.py").splitlines()
        if "exact" in line or "approx" in line
    ]
    assert shown[:4] == ["w8", "w6", "w4", "w2"]


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    assert "python -m pytest" in block("test command")
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


def test_every_exit_code_of_the_help_is_in_the_readme(run: Run) -> None:
    text = " ".join(run("--help").out.split())
    for code in ("0 done", "1 a check", "2 wrong", "3 bad", "4 target", "70 a bug", "130, 143 inter"):
        assert code in text
        assert re.search(rf"^\| {code.split()[0].strip(',')}\b", README, re.MULTILINE)


def test_the_training_example_gives_a_master_that_exports(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    batches = [(torch.randn(8, 3, 32, 32), torch.randint(5, (8,))) for _ in range(2)]
    monkeypatch.chdir(tmp_path)
    exec(block("training example"), {"model": model, "batches": batches})
    outcome = run("export", "--target", "jetson", "--master", "master.safetensors", "--output", "package")
    assert outcome.code == 0
    assert len(list((tmp_path / "package").glob("master-w*.onnx"))) == 4


def test_the_runtime_example_switches_a_package(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("export", "--target", "x86-cpu", "--shared-weights", "--bits", "8,4").code == 0
    names: dict[str, object] = {"images": np.zeros((1, 8, 8, 1), np.uint8)}
    exec(compile(block("runtime example"), "README.md", "exec"), names)
    assert np.asarray(names["y"]).shape == (1, 10)
