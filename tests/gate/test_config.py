from __future__ import annotations

from pathlib import Path

import pytest

from bitswitch_deploy.errors import InputFileError
from bitswitch_deploy.gate.config import CheckConfig, Limits, read_config

SHORT = "targets: [x86-cpu]\nwidths: [8, 4]\n"


def _read(tmp_path: Path, text: str) -> CheckConfig:
    path = tmp_path / "bitswitch.yaml"
    path.write_text(text)
    return read_config(path)


def test_two_lines_are_enough(tmp_path: Path) -> None:
    config = _read(tmp_path, SHORT)
    assert config == CheckConfig(targets=("x86-cpu",), widths=(8, 4))
    assert (config.metric, config.limits) == ("top-1", Limits(max_drop=0.0, effect=1.0, alpha=0.05, power=0.8))


def test_every_key(tmp_path: Path) -> None:
    text = (
        "masters: [a.safetensors]\ntargets: [x86-cpu, jetson]\nwidths: [2, mixed.json]\ndata: d\ncalibration: c.npz\n"
        "metric: recall\nbaseline: b.json\nlimits: {max_drop: 1, effect: 0.5, alpha: 0.01, power: 0.9}\n"
    )
    config = _read(tmp_path, text)
    assert config.widths == (2, "mixed.json")
    assert config.limits == Limits(max_drop=1.0, effect=0.5, alpha=0.01, power=0.9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHORT + "metirc: top-1\n", r"unknown key: 'metirc' \(did you mean metric\?\)"),
        (SHORT + "limits: {max_dorp: 1}\n", r"limits: unknown key: 'max_dorp' \(did you mean max_drop\?\)"),
        (SHORT + "colour: red\n", "unknown key: 'colour'\n"),
        (SHORT + "widths: [2]\n", r"bitswitch.yaml:3: key 'widths' stands here a second time"),
        ("targets: [a]\nwidths: [010]\n", "bitswitch.yaml:2: 010, which is 8 in YAML\n  allowed: numbers without a 0"),
        (SHORT + "limits: {alpha: 1e-3}\n", r"1e-3, which is text in YAML\n  allowed: numbers such as 1.0e-3"),
        ('targets: [a]\nwidths: [!!int ""]\n', "a value does not fit its tag"),
        ("targets: [x86-cpu]\n", "no key widths"),
        ("targets: []\nwidths: [8]\n", "at least one target"),
        ("targets: [a]\nwidths: [9]\n", r"width 9 is not in 2..8"),
        ("targets: [a]\nwidths: [8, 8]\n", "widths holds something twice"),
        ("targets: [a]\nwidths: [8.0]\n", "widths"),
        ("targets: x86-cpu\nwidths: [8]\n", "a list"),
        (SHORT + "masters: [a/n.safetensors, b/n.safetensors]\n", "two masters have the same name"),
        ("targets: [a]\nwidths: [a/m.json, b/m.json]\n", "two widths have the same name"),
        ("targets: [a]\nwidths: [8, w8.json]\n", "two widths have the same name"),
        *((SHORT + f"{key}: ''\n", "an empty name or path") for key in ("data", "calibration", "baseline")),
        (SHORT + "masters: ['']\n", "an empty name or path"),
        ("targets: ['']\nwidths: [8]\n", "an empty name or path"),
        (SHORT + "limits: {max_drop: -1}\n", "max_drop must be 0 or more"),
        (SHORT + "limits: {effect: 0}\n", "effect above 0"),
        (SHORT + "limits: {alpha: 0.7}\n", "alpha must be"),
        (SHORT + "limits: {alpha: 1.0e-9}\n", "alpha must be 0.0001 to 0.5"),
        (SHORT + "limits: {power: .nan}\n", "finite"),
        ("", "an object"),
        ("[1]", "an object"),
        ("a: [", "not YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not YAML"),
        ("\x00", "not YAML"),
        ("[" * 99, "not YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputFileError, match=message):
        _read(tmp_path, text)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="does not exist") as info:
        read_config(tmp_path / "bitswitch.yaml")
    assert "README" in info.value.do
