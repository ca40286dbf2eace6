from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bitswitch_deploy import __version__
from bitswitch_deploy.cli import main as main_module
from bitswitch_deploy.cli.main import COMMANDS
from tests.conftest import Run


def test_help_lists_every_command_and_the_exit_codes(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    assert all(f"  {name} " in outcome.out for name in COMMANDS)
    assert "70 a bug" in outcome.out
    assert "\\" not in outcome.out
    assert all(len(line) <= 80 for line in outcome.out.splitlines())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['bitswitch-deploy', '--help']\n"
        "from bitswitch_deploy.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'onnx', 'onnxruntime', 'numpy', 'torch', 'onnx_graphsurgeon', 'rich', 'pygal'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(run: Run, name: str) -> None:
    outcome = run(name, "--help")
    assert outcome.code == 0
    assert f"bitswitch-deploy {name}" in outcome.out


def test_version(run: Run) -> None:
    assert __version__ in run("--version").out


@pytest.mark.parametrize(
    "words",
    [
        ("frobnicate",),
        ("export",),
        ("export", "--target", "jetson", "--max-drop", "-1"),
        ("export", "--target", "jetson", "--max-drop", "inf"),
        ("export", "--target", "jetson", "--min-agreement", "nan"),
        ("validate", "package", "--max-drop", "nan"),
        ("profile", "package", "--duration", "inf"),
        ("profile", "package", "--duration", "nan"),
        ("search", "--max-drop", "nan"),
        ("check", "--max-drop", "nan"),
        ("export", "--target", "jetson", "--bits", ""),
        ("export", "--target", "jetson", "--data", ""),
        ("export", "--target", "jetson", "--master", ""),
        ("export", "--target", "jetson", "--output", ""),
        ("blame", "--target", "rtx", "--bits", ""),
        ("search", "--bits", ""),
        ("profile", "package", "--report", ""),
        ("verify", ""),
        ("export", "--target", "jetson", "--frob"),
        ("verify",),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, words: tuple[str, ...]) -> None:
    outcome = run(*words)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Error" in outcome.err or "error" in outcome.err


def test_an_unknown_target_lists_the_known_ones_and_the_closest(run: Run) -> None:
    outcome = run("export", "--target", "jetson-orin-nani")
    assert outcome.code == 2
    assert "jetson-thor" in outcome.err
    assert "jetson-orin-nano" in outcome.err


def test_a_bad_file_exits_with_3_and_one_message(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"not a master")
    outcome = run("inspect", path)
    assert outcome.code == 3
    assert outcome.err.startswith(f"error: {path}")
    assert "Traceback" not in outcome.err
    assert all(word in outcome.err for word in ("allowed:", "do:"))


def test_a_failure_is_json_where_json_was_asked_for(run: Run, tmp_path: Path) -> None:
    outcome = run("inspect", tmp_path / "no.safetensors", "--json")
    document = json.loads(outcome.out)
    assert outcome.code == document["exit_code"] == 3
    assert document["kind"] == "MasterError"
    assert document["do"]


@pytest.mark.parametrize(
    ("words", "where", "got"),
    [
        (("export", "--json", "--nope"), "bitswitch-deploy export", "No such option"),
        (("verify", "--json"), "bitswitch-deploy verify", "Missing argument"),
        (("frobnicate", "--json"), "bitswitch-deploy", "No such command"),
    ],
)
def test_wrong_usage_is_json_where_json_was_asked_for(run: Run, words: tuple[str, ...], where: str, got: str) -> None:
    outcome = run(*words)
    document = json.loads(outcome.out)
    assert outcome.code == document["exit_code"] == 2
    assert (document["schema"], document["kind"]) == ("bitswitch-error/1", "UsageError")
    assert document["where"] == where
    assert got in document["got"]
    assert document["do"] == f"read `{where} --help`"


@pytest.mark.parametrize(
    "words",
    [
        ("profile", "package", "-o"),
        ("profile", "package", "--trace"),
        ("profile", "package", "--latency-table"),
        ("profile", "package", "--report"),
        ("blame", "package", "--report"),
        ("check", "package", "--junit"),
        ("check", "package", "--report"),
        ("search", "package", "--report"),
        ("search", "package", "-o"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    for place in (tmp_path, tmp_path / "missing" / "file"):
        outcome = run(*words, place)
        assert outcome.code == 3
        assert outcome.err.startswith(f"error: {place}: cannot be written: ")  # and not that there is no such package


def test_what_is_not_here_exits_with_4(run: Run, tmp_path: Path) -> None:
    assert run("export", "--target", "jetson", "--bits", "8", "--output", tmp_path / "p").code == 0
    outcome = run("build", tmp_path / "p")
    assert outcome.code == 4
    assert "build_on_device.sh" in outcome.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("this is broken"), 70, ["RuntimeError: this is broken", "please report"]),
        (MemoryError("Unable to allocate"), 4, ["memory ran out: Unable to allocate\n  allowed: "]),
    ],
)
def test_a_bug_keeps_its_traceback_and_memory_that_runs_out_is_none(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, said: list[str]
) -> None:
    def broken(**_: object) -> None:
        raise error

    monkeypatch.setattr(main_module.cli, "main", broken)
    outcome = run("inspect")
    assert outcome.code == code
    assert all(text in outcome.err for text in said)
    assert ("Traceback" in outcome.err) is (code == 70)


def test_ctrl_c_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module.cli, "main", interrupted)
    outcome = run("inspect")
    assert outcome.code == 130
    assert "no result was written; engines and measurements that were finished stay" in outcome.err
