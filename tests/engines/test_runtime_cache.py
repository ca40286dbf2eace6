"""The runtime cache against a stand-in that counts what it compiles; and the names of the real module, where it is."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from bitswitch_deploy.engines.runtime_cache import RuntimeCache, runtime_cache_of
from bitswitch_deploy.engines.tensorrt_module import load_module
from bitswitch_deploy.engines.tensorrt_session import TensorRtDevice, TensorRtSession
from tests.engines.tensorrt_device import Device, RuntimeConfig, install, plan

X = np.ones((2, 3), np.float32)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Device:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return install(monkeypatch, "1.7.1.116", "tensorrt_rtx")


def compiled(device: Device) -> list[tuple[object, ...]]:
    """What was compiled since the last look."""
    found = [call[1:] for call in device.calls if call[0] == "compile"]
    device.calls.clear()
    return found


def process(*batches: int, factors: tuple[float, ...] = (2.0, 3.0)) -> None:
    """Run what an application runs, in a runtime of its own."""
    shared = TensorRtDevice("tensorrt_rtx")
    for session in [TensorRtSession(plan(factor), shared) for factor in factors]:
        for batch in batches:
            session.run_all({"x": np.ones((batch, 3), np.float32)})


def test_only_the_first_process_compiles(device: Device) -> None:
    process(1, 2)
    assert compiled(device) == [(2.0, (1, 3)), (2.0, (2, 3)), (3.0, (1, 3)), (3.0, (2, 3))]
    process(1, 2)
    assert compiled(device) == []
    process(2, 4)
    assert compiled(device) == [(2.0, (4, 3)), (3.0, (4, 3))]


def test_a_user_without_a_home_folder_compiles_each_time(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    for _ in range(2):
        process(1, factors=(2.0,))
        assert compiled(device) == [(2.0, (1, 3))]


def test_two_devices_of_a_process_lose_nothing_of_each_other(device: Device) -> None:
    """As the engines of a switcher and the reference of a profile."""
    sessions = [TensorRtSession(plan(factor), TensorRtDevice("tensorrt_rtx")) for factor in (2.0, 3.0)]
    for session in sessions:
        session.run_all({"x": X[:1]})
    assert len(compiled(device)) == 2
    sessions.clear()
    del session
    process(1)
    assert compiled(device) == []


def test_contexts_share_memory_and_compile_before_they_run(device: Device) -> None:
    TensorRtSession(plan(2.0), TensorRtDevice("tensorrt_rtx"))
    assert ("context", "user managed", "eager") in device.calls


def test_a_cache_of_another_gpu_is_started_again(device: Device) -> None:
    process(1)
    compiled(device)
    device.gpu = "another GPU"
    process(1)
    assert len(compiled(device)) == 2
    process(1)
    assert compiled(device) == []


def test_it_is_written_for_new_shapes_only(device: Device, tmp_path: Path) -> None:
    shared = TensorRtDevice("tensorrt_rtx")
    session = TensorRtSession(plan(2.0), shared)
    session.run_all({"x": X})
    (file,) = tmp_path.glob("bitswitch-deploy/tensorrt_rtx-1.7.1.116-*.runtime")
    file.unlink()
    session.run_all({"x": X})
    assert not file.exists()
    session.run_all({"x": X[:1]})
    assert file.exists()


def test_profiling_keeps_no_configuration(device: Device) -> None:
    session = TensorRtSession(plan(2.0), TensorRtDevice("tensorrt_rtx"))
    for _ in range(3):
        session.profile({"x": X}, 1)
    gc.collect()
    assert sum(type(each) is RuntimeConfig for each in gc.get_objects()) == 1


def test_a_folder_that_cannot_be_written_stops_nothing(device: Device, tmp_path: Path) -> None:
    (tmp_path / "bitswitch-deploy").write_text("a file")
    process(1, 2)
    assert len(compiled(device)) == 4


def test_tensorrt_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3.0")
    assert TensorRtDevice("tensorrt").runtime_cache is None


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="no tensorrt_rtx here")
def test_the_real_module_has_the_names_that_are_used() -> None:
    trt = load_module("tensorrt_rtx")
    assert isinstance(runtime_cache_of(trt), RuntimeCache)
    config = {"create_runtime_cache", "set_runtime_cache", "set_execution_context_allocation_strategy"}
    assert config | {"dynamic_shapes_kernel_specialization_strategy"} <= set(dir(trt.IRuntimeConfig))
    assert {"serialize", "deserialize"} <= set(dir(trt.IRuntimeCache))
    assert hasattr(trt.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert hasattr(trt.IExecutionContext, "profiler")
    # a profiler is made as for a run
    assert type("Profiler", (trt.IProfiler,), {"report_layer_time": print})() is not None
