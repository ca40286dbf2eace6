"""Running engines against a stand-in that records calls (tensorrt_device.py). No board has run these paths."""

from __future__ import annotations

import gc
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.engines.cuda_memory import Cuda
from bitswitch_deploy.engines.tensorrt_session import TensorRtDevice, TensorRtSession
from bitswitch_deploy.errors import DataError, GraphError, UnavailableError, UsageError
from tests.engines.tensorrt_device import Device, install, plan

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(params=["8.6.2", "10.3.0", "11.4.1"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    return install(monkeypatch, request.param)


def test_an_engine_computes_and_says_what_it_takes(device: Device) -> None:
    session = TensorRtSession(plan(3.0), TensorRtDevice("tensorrt"))
    (value,) = session.inputs
    assert (value.name, value.dtype, value.shape) == ("x", "float32", (None, 3))
    assert session.output_names == ("y",)
    np.testing.assert_array_equal(session.run_all({"x": X})["y"], X * 3)
    assert device.calls[-2:] == [("execute", 3.0, 7), ("synchronize",)]
    strategy = "without memory" if device.release == "8.6.2" else "user managed"
    assert ("context", strategy) in device.calls


def test_engines_share_activation_memory_as_large_as_the_largest_needs(device: Device) -> None:
    shared = TensorRtDevice("tensorrt")
    small, large = TensorRtSession(plan(2.0, scratch=1000), shared), TensorRtSession(plan(5.0, scratch=9000), shared)
    for session, factor in ((small, 2), (large, 5), (small, 2), (large, 5)):
        np.testing.assert_array_equal(session.run_all({"x": X})["y"], X * factor)
    # input and output of each engine, and one piece of scratch
    assert device.allocated == [24, 24, 24, 24, 9000]


def test_a_release_that_does_not_know_this_numpy(device: Device) -> None:
    device.failing.add("numpy")
    with pytest.raises(UnavailableError, match=r"no attribute 'bool'\n  allowed: TensorRT 8\.6 or newer"):
        TensorRtSession(plan(2.0), TensorRtDevice("tensorrt"))


def test_an_engine_that_needs_no_activation_memory(device: Device) -> None:
    session = TensorRtSession(plan(2.0, scratch=0), TensorRtDevice("tensorrt"))
    np.testing.assert_array_equal(session.run_all({"x": X})["y"], X * 2)


def test_buffers_grow_with_the_batch_and_are_given_back(device: Device) -> None:
    shared = TensorRtDevice("tensorrt")
    session = TensorRtSession(plan(2.0), shared)
    for batch in (1, 4, 2):
        x = np.random.default_rng(batch).normal(size=(batch, 3)).astype(np.float32)
        np.testing.assert_array_equal(session.run_all({"x": x})["y"], x * 2)
    assert device.allocated == [48, 48, 64]
    del session
    gc.collect()
    assert (device.allocated, device.streams) == ([64], 1)
    del shared
    gc.collect()
    assert (device.allocated, device.streams) == ([], 0)


def test_engines_go_on_answering_while_another_one_is_read(device: Device) -> None:
    shared = TensorRtDevice("tensorrt")
    session = TensorRtSession(plan(2.0), shared)
    begun, go_on = threading.Event(), threading.Event()
    read = shared.runtime.deserialize_cuda_engine

    def slow(data: bytes) -> Any:
        begun.set()
        assert go_on.wait(60)
        return read(data)

    shared.runtime.deserialize_cuda_engine = slow
    with ThreadPoolExecutor() as pool:
        other = pool.submit(TensorRtSession, plan(3.0), shared)
        assert begun.wait(60)
        answer = pool.submit(session.run_all, {"x": X})
        np.testing.assert_array_equal(answer.result(60)["y"], X * 2)
        go_on.set()
        np.testing.assert_array_equal(other.result(60).run_all({"x": X})["y"], X * 3)


def test_arrays_that_are_not_contiguous_are_copied_first(device: Device) -> None:
    session = TensorRtSession(plan(2.0), TensorRtDevice("tensorrt"))
    x = np.asfortranarray(X)
    np.testing.assert_array_equal(session.run_all({"x": x})["y"], X * 2)


def test_threads_take_turns_on_the_shared_memory(device: Device) -> None:
    shared = TensorRtDevice("tensorrt")
    sessions = {factor: TensorRtSession(plan(factor), shared) for factor in (2.0, 3.0, 5.0)}

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            factor = float(rng.choice(list(sessions)))
            x = rng.normal(size=(int(rng.integers(1, 9)), 3)).astype(np.float32)
            np.testing.assert_array_equal(sessions[factor].run_all({"x": x})["y"], x * np.float32(factor))

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result()
    kinds = [call[0] for call in device.calls if call[0] in ("execute", "synchronize")]
    assert kinds == ["execute", "synchronize"] * 400


@pytest.mark.parametrize(
    ("feeds", "error", "message"),
    [
        ({"x": X.astype(np.float64)}, DataError, "input 'x': float64\n  allowed: float32"),
        ({"x": X[:, :2]}, DataError, r"shape \[2, 2\]\n  allowed: shape \[None, 3\]"),
        (
            {"x": np.zeros((9, 3), np.float32)},
            DataError,
            r"shape \[9, 3\]\n  allowed: shapes that the engine was built",
        ),
        ({"z": X}, UsageError, "values for 'z'\n  allowed: exactly 'x'"),
    ],
)
def test_wrong_inputs_are_refused_and_the_next_one_is_answered(
    device: Device, feeds: dict[str, Any], error: type[Exception], message: str
) -> None:
    session = TensorRtSession(plan(2.0), TensorRtDevice("tensorrt"))
    with pytest.raises(error, match=message):
        session.run_all(feeds)
    np.testing.assert_array_equal(session.run_all({"x": X})["y"], X * 2)


def test_an_engine_of_another_release_is_refused(device: Device) -> None:
    device.failing.add("load")
    with pytest.raises(UnavailableError, match=r"cannot be loaded: The engine plan file is not compatible"):
        TensorRtSession(plan(2.0), TensorRtDevice("tensorrt"))


def test_a_context_that_cannot_be_made_is_said(device: Device) -> None:
    device.failing.add("context")
    with pytest.raises(UnavailableError, match="no execution context: it logged no error"):
        TensorRtSession(plan(2.0), TensorRtDevice("tensorrt"))


def test_a_failure_while_running_is_translated_and_does_not_last(device: Device) -> None:
    session = TensorRtSession(plan(2.0), TensorRtDevice("tensorrt"))
    device.failing.add("execute")
    with pytest.raises(GraphError, match="failed while running: an illegal memory access"):
        session.run_all({"x": X})
    device.failing.clear()
    np.testing.assert_array_equal(session.run_all({"x": X})["y"], X * 2)


def test_a_full_device_is_said_and_does_not_last(device: Device) -> None:
    session = TensorRtSession(plan(2.0), TensorRtDevice("tensorrt"))
    device.failing.add("malloc")
    with pytest.raises(UnavailableError, match="CUDA: error 2: out of memory"):
        session.run_all({"x": X})
    device.failing.clear()
    np.testing.assert_array_equal(session.run_all({"x": X})["y"], X * 2)


def test_shapes_and_types_without_an_array_are_refused(device: Device) -> None:
    shared = TensorRtDevice("tensorrt")
    with pytest.raises(GraphError, match="tensor 'x': bfloat16\n  allowed: a type that NumPy has"):
        TensorRtSession(plan(2.0, dtype="bfloat16"), shared)
    session = TensorRtSession(plan(2.0, data_dependent=True), shared)
    with pytest.raises(GraphError, match=r"output 'y': shape \[-1, 3\]"):
        session.run_all({"x": X})


def test_a_machine_without_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setattr("bitswitch_deploy.engines.cuda_memory._NAMES", ("libcudart.so.0",))
    with pytest.raises(UnavailableError, match="no CUDA runtime library"):
        Cuda()


def test_the_vendors_classes_have_what_is_called() -> None:
    """TensorRT for RTX has the API of TensorRT 10 and newer, and its classes can be looked at without a GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    engine = ("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_shape", "get_tensor_dtype")
    context = ("set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3", "set_device_memory")
    for kind, names in (
        (trt.ICudaEngine, (*engine, "create_execution_context", "device_memory_size_v2", "create_engine_inspector")),
        (trt.EngineInspector, ("get_engine_information",)),
        (trt.LayerInformationFormat, ("JSON",)),
        (trt.IProfiler, ("report_layer_time",)),
        (trt.IExecutionContext, context),
        (trt.ExecutionContextAllocationStrategy, ("USER_MANAGED",)),
        (trt.TensorIOMode, ("INPUT",)),
        (trt, ("nptype",)),
        (trt.Runtime, ("deserialize_cuda_engine",)),
    ):
        assert [name for name in names if not hasattr(kind, name)] == []


def test_a_machine_without_a_driver_is_said(device: Device) -> None:
    device.failing.add("driver")
    with pytest.raises(UnavailableError, match=r"error 35(.|\n)*allowed: a machine with an NVIDIA GPU and its driver"):
        TensorRtDevice("tensorrt")


def test_layers_are_timed_in_a_context_of_their_own(device: Device) -> None:
    session = TensorRtSession(plan(2.0), TensorRtDevice("tensorrt"))
    runs = session.profile({"x": X}, 3)
    assert runs == (device.layers,) * 3
    executed = [call for call in device.calls if call[0] == "execute"]
    # the first one is warm-up
    assert len(executed) == 4
    assert len([call for call in device.calls if call[0] == "context"]) == 2
    np.testing.assert_array_equal(session.run_all({"x": X})["y"], X * 2)
    assert session.profile({"x": X}, 1) == (device.layers,)


def test_layers_are_described_by_the_inspector(device: Device) -> None:
    session = TensorRtSession(plan(2.0), TensorRtDevice("tensorrt"))
    assert json.loads(session.layer_information())["Layers"] == ["conv1", "conv2 + relu"]
