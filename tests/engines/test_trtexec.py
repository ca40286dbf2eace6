"""trtexec against a program that answers like it (fake_trtexec.py). No board has run these paths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.engines import trtexec
from bitswitch_deploy.engines.input_signature import InputSignature
from bitswitch_deploy.engines.trtexec import (
    LocalTrtexec,
    TrtexecSession,
    parse_layers,
    parse_times,
    parse_version,
    timing_flags,
)
from bitswitch_deploy.errors import GraphError, InputFileError, UnavailableError
from tests.engines.fake_trtexec import install

FLAGS = ("--useSpinWait", "--noDataTransfers", "--useCudaGraph", "--infStreams=1")
FEEDS = {"x": np.zeros((4, 3, 8, 8), np.float32)}


@pytest.mark.parametrize(
    ("number", "version"),
    [
        *(("8502", "8.5.2"), ("8602", "8.6.2"), ("100300", "10.3.0"), ("101602", "10.16.2"), ("110401", "11.4.1")),
        *(("11.1.0.106", "11.1.0"), ("10.3.0", "10.3.0")),
    ],
)
def test_the_banner_tells_the_version(number: str, version: str) -> None:
    assert parse_version(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] [b26] # trtexec") == version


def test_no_banner_no_version() -> None:
    assert parse_version("usage: trtexec") is None


def test_flags_that_are_set_for_each_turn_are_left_out() -> None:
    flags = ("--useSpinWait", "--warmUp=10000", "--duration=30", "--percentile=50,90,95,99", "--infStreams=1")
    assert timing_flags(flags) == ("--useSpinWait", "--infStreams=1")


def test_exported_times_are_latencies() -> None:
    text = json.dumps([{"latencyMs": 1.5, "computeMs": 1.0}, {"latencyMs": 2.5, "computeMs": 2.0}])
    np.testing.assert_array_equal(parse_times(text, where="t"), [1.5, 2.5])


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[1]", '[{"computeMs": 1}]', '[{"latencyMs": "a"}]', '[{"latencyMs": NaN}]', "[" * 9999]
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(InputFileError, match="the JSON that trtexec --exportTimes writes"):
        parse_times(text, where="t")


def test_exported_layers_follow_the_count() -> None:
    layers = [
        {"name": "conv1 + relu", "timeMs": 12.0, "averageMs": 1.2, "medianMs": 1.0, "percentage": 60.0},
        {"name": "old", "timeMs": 8.0, "averageMs": 0.8, "percentage": 40.0},
    ]
    found = parse_layers(json.dumps([{"count": 10}, *layers]), where="t")
    assert [(each.name, each.median_ms) for each in found] == [
        ("conv1 + relu", 1.0),
        ("old", 0.8),
    ]
    with pytest.raises(InputFileError, match="a layer without its times"):
        parse_layers(json.dumps([{"name": "x"}]), where="t")


def session(tmp_path: Path, *shape: int | str, **engine: object) -> TrtexecSession:
    path = tmp_path / "net.engine"
    path.write_text(json.dumps({"ms": 2.5, "layers": {"a": 1.0, "b": 1.5}, **engine}))
    inputs = (InputSignature(name="x", dtype="float32", shape=shape),)
    return TrtexecSession(LocalTrtexec(), path, inputs, flags=FLAGS)


def test_a_call_names_every_flag_and_the_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path / "bin", monkeypatch)
    opened = session(tmp_path, "n", 3, 8, 8)
    np.testing.assert_array_equal(opened.time_runs(FEEDS, 12), [2.5] * 12)
    assert opened.is_graph_captured is True
    words = log.read_text().split()
    assert words[:2] == [f"--loadEngine={tmp_path}/net.engine", "--shapes=x:4x3x8x8"]
    assert words[2:-1] == [*FLAGS, "--iterations=12", "--duration=0", "--warmUp=500"]


def test_a_fixed_shape_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = install(tmp_path / "bin", monkeypatch)
    opened = session(tmp_path, 4, 3, 8, 8)
    assert [(each.name, each.median_ms) for each in opened.layer_times(FEEDS, 1)] == [("a", 1.0), ("b", 1.5)]
    assert "--shapes" not in log.read_text()
    assert "--dumpProfile" in log.read_text()


def test_a_graph_that_was_not_captured_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", monkeypatch)
    opened = session(tmp_path, 4, 3, 8, 8, uncaptured=True)
    opened.time_runs(FEEDS, 1)
    assert opened.is_graph_captured is False


def test_layers_are_described_where_trtexec_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", monkeypatch)
    described = session(tmp_path, "n", 3, 8, 8, info={"k": ["conv", "relu"]}).layer_information(FEEDS)
    assert json.loads(described)["Layers"][0]["Metadata"] == "[ONNX Layer: conv][ONNX Layer: relu]"
    assert session(tmp_path, "n", 3, 8, 8, fail=1).layer_information(FEEDS) == ""


def test_an_engine_that_trtexec_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", monkeypatch)
    with pytest.raises(GraphError, match=r"trtexec ended with 1: (.|\n)*Version tag does not match(.|\n)*--force"):
        session(tmp_path, 4, 3, 8, 8, fail=True).time_runs(FEEDS, 1)


def test_a_trtexec_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr(trtexec, "TIMEOUT_S", 1)
    with pytest.raises(UnavailableError, match="did not end within 1 s"):
        session(tmp_path, 4, 3, 8, 8, hang=True).time_runs(FEEDS, 1)


def test_no_trtexec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trtexec, "PLACES", (str(tmp_path / "trtexec"),))
    with pytest.raises(UnavailableError, match="no trtexec on this machine"):
        LocalTrtexec()
