"""Builds real engines with TensorRT for RTX, which needs no GPU for that."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bitswitch_deploy.engines.shape_range import ShapeRange
from bitswitch_deploy.engines.tensorrt_config import BuildSettings
from bitswitch_deploy.engines.tensorrt_engine import EngineBuild, build_engine, inspect_engine
from bitswitch_deploy.engines.tensorrt_module import load_module
from bitswitch_deploy.errors import GraphError, UnavailableError, UsageError

pytest.importorskip("tensorrt_rtx")

BATCHES = ShapeRange(input="x", minimum=(1, 3, 8, 8), optimum=(2, 3, 8, 8), maximum=(4, 3, 8, 8))
AMPERE = BuildSettings(workspace_mb=64, compute_capabilities=("SM86",))


def _build(model: bytes, settings: BuildSettings = AMPERE) -> EngineBuild:
    return build_engine(model, module="tensorrt_rtx", settings=settings)


def test_an_int8_convolution_builds(qdq_conv: Callable[..., bytes]) -> None:
    build = _build(qdq_conv())
    assert len(build.plan) > 1000
    assert (build.module, build.typing, build.warnings) == ("tensorrt_rtx", "strong", ())
    assert build.version == load_module("tensorrt_rtx").__version__


def test_the_same_graph_gives_the_same_engine(qdq_conv: Callable[..., bytes]) -> None:
    assert _build(qdq_conv()).plan == _build(qdq_conv()).plan


def test_int4_weights_build(int4_matmul: bytes) -> None:
    assert len(_build(int4_matmul).plan) > 1000


def test_a_graph_with_its_weights_in_another_file_builds(qdq_conv: Callable[..., bytes], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model = onnx.load_from_string(qdq_conv())
    onnx.save(model, path, save_as_external_data=True, location="net.onnx.data", size_threshold=16)
    assert path.with_name("net.onnx.data").stat().st_size >= 4 * 3 * 3 * 3
    engine = build_engine(path, module="tensorrt_rtx", settings=AMPERE)
    assert len(engine.plan) == len(_build(qdq_conv()).plan)


def test_an_open_batch_builds_with_a_profile(qdq_conv: Callable[..., bytes]) -> None:
    settings = BuildSettings(compute_capabilities=("SM86", "SM120"), profile=(BATCHES,))
    assert len(_build(qdq_conv(batch="N"), settings).plan) > 1000


def test_an_open_batch_without_profile_is_refused(qdq_conv: Callable[..., bytes]) -> None:
    with pytest.raises(UsageError, match=r"input 'x' has open dimensions \?x3x8x8"):
        _build(qdq_conv(batch="N"))


def test_more_capabilities_make_a_larger_engine(qdq_conv: Callable[..., bytes]) -> None:
    both = BuildSettings(compute_capabilities=("SM86", "SM120"))
    assert _build(qdq_conv(), both).plan != _build(qdq_conv()).plan


def test_unsigned_codes_are_refused_although_they_build(qdq_conv: Callable[..., bytes]) -> None:
    with pytest.raises(GraphError, match="UINT8 codes, which TensorRT reads as INT8"):
        _build(qdq_conv(activation="uint8"))


def test_parser_errors_name_the_node(qdq_conv: Callable[..., bytes]) -> None:
    with pytest.raises(GraphError, match=r"refuses the graph \(1 errors\): activation_q QuantizeLinear: .*zero point"):
        _build(qdq_conv(activation="uint8", zero_point=128))


def test_garbage_is_refused() -> None:
    with pytest.raises(GraphError, match=r"refuses the graph \(1 errors\): graph: .*Failed to parse the ONNX model"):
        _build(b"not a graph")


def test_an_unknown_capability_is_refused(qdq_conv: Callable[..., bytes]) -> None:
    with pytest.raises(UsageError, match=r"compute capability 'SM87'\n  allowed: .*SM86"):
        _build(qdq_conv(), BuildSettings(compute_capabilities=("SM87",)))


def test_there_is_no_timing_cache(qdq_conv: Callable[..., bytes], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="allowed: none: it has no timing cache"):
        _build(qdq_conv(), BuildSettings(timing_cache=tmp_path / "cache"))


def test_progress_ends_at_one(qdq_conv: Callable[..., bytes]) -> None:
    fractions: list[float] = []
    build_engine(qdq_conv(), module="tensorrt_rtx", settings=AMPERE, progress=fractions.append)
    assert fractions == sorted(fractions)
    assert len(fractions) > 1
    assert fractions[-1] == 1.0


def test_an_interrupt_ends_the_build(qdq_conv: Callable[..., bytes]) -> None:
    fractions: list[float] = []

    def interrupt(fraction: float) -> None:
        fractions.append(fraction)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build_engine(qdq_conv(), module="tensorrt_rtx", settings=AMPERE, progress=interrupt)
    assert len(fractions) == 1


def test_inspection_needs_the_gpu(qdq_conv: Callable[..., bytes]) -> None:
    plan = _build(qdq_conv()).plan
    try:
        layers = inspect_engine(plan, module="tensorrt_rtx")
    except UnavailableError as exc:
        assert "inspect it on the device" in str(exc)  # noqa: PT017 - a machine with the GPU takes the other branch
    else:
        assert "Layers" in layers


def test_a_missing_module_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError, match=r"not importable.*\n.*\n.*--system-site-packages") as caught:
        load_module("tensorrt")
    assert isinstance(caught.value.__cause__, ImportError)


def test_an_unknown_module_is_refused() -> None:
    with pytest.raises(UsageError, match="engine: 'os'\n  allowed: tensorrt, tensorrt_rtx"):
        load_module("os")  # type: ignore[arg-type]
