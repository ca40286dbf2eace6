"""A device that is not there: TensorRT's runtime and CUDA's library as stand-ins that record calls and really compute.

Device memory is memory of this process, so that a wrong address, size or order gives wrong numbers. An engine is a JSON
text: y = x * factor, computed through the shared scratch memory.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from bitswitch_deploy.engines import cuda_memory


class Mode(enum.Enum):
    """The vendor's names."""

    INPUT = 1
    OUTPUT = 2


class Severity(enum.Enum):
    ERROR = 1


@dataclass
class Device:
    """What was called, what is allocated, and which call fails."""

    release: str
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    # of each engine, what a profiler is told
    layers: tuple[tuple[str, float], ...] = (("conv1", 0.25), ("conv2 + relu", 0.5))
    # what the engine inspector says of them; nothing: names only
    inspected: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    gpu: str = "one GPU"
    streams: int = 0
    has_plugins: bool = False

    @property
    def allocated(self) -> list[int]:
        return sorted(ctypes.sizeof(block) for block in self.memory.values())


def plan(factor: float, *, scratch: int = 64, **changes: object) -> bytes:
    """Serialize an engine of the stand-in for float32 [n, 3]."""
    values = {"factor": factor, "scratch": scratch, "shape": [-1, 3], "dtype": "float32", "max_batch": 8}
    return json.dumps({**values, **changes}).encode()


class Context:
    def __init__(self, engine: Engine, config: RuntimeConfig | None = None) -> None:
        self.engine, self.config = engine, config
        self.profiler: Any = None
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.scratch = 0
        if engine.device.release.startswith("8."):
            return
        name = "set_device_memory_v2" if engine.device.release.startswith("11.") else "set_device_memory"
        setattr(self, name, self._set_memory)

    def _set_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.values["scratch"]
        self.scratch = address

    def __setattr__(self, name: str, value: Any) -> None:
        # 8.x has a property instead of a method
        object.__setattr__(self, "scratch" if name == "device_memory" else name, value)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return shape[0] <= int(self.engine.values["max_batch"])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3) if self.engine.values.get("data_dependent") else self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        device = self.engine.device
        device.calls.append(("execute", self.engine.values["factor"], stream))
        if "execute" in device.failing:
            self.engine.logger.log(Severity.ERROR, "an illegal memory access")
            return False
        size = int(np.prod(self.shape))
        assert self.scratch in device.memory
        assert ctypes.sizeof(device.memory[self.scratch]) >= self.engine.values["scratch"]
        x = _view(self.addresses["x"], size)
        scratch = _view(self.scratch, min(size, self.engine.values["scratch"] // 4))
        scratch[:] = x[: len(scratch)]
        _view(self.addresses["y"], size)[:] = x * np.float32(self.engine.values["factor"])
        if self.config is not None:
            self.config.cache.compile(self.engine.values["factor"], self.shape)
        for name, ms in device.layers if self.profiler is not None else ():
            self.profiler.report_layer_time(name, ms)
        return True


class RuntimeCache:
    """Kernels by engine and shape, of one GPU."""

    def __init__(self, device: Device) -> None:
        self.device, self.kernels = device, set()  # type: ignore[var-annotated]

    def compile(self, factor: float, shape: tuple[int, ...]) -> None:
        if (factor, shape) not in self.kernels:
            self.device.calls.append(("compile", factor, shape))
            self.kernels.add((factor, shape))

    def deserialize(self, blob: bytes) -> bool:
        document = json.loads(blob)
        if document["gpu"] != self.device.gpu:
            return False
        self.kernels = {(factor, tuple(shape)) for factor, shape in document["kernels"]}
        return True

    def serialize(self) -> memoryview:
        return memoryview(json.dumps({"gpu": self.device.gpu, "kernels": sorted(self.kernels)}).encode())


class RuntimeConfig:
    strategy = "static"
    dynamic_shapes_kernel_specialization_strategy = "lazy"
    cache: RuntimeCache

    def __init__(self, device: Device) -> None:
        self.device = device

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.device)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class Engine:
    num_io_tensors = 2

    def __init__(self, values: dict[str, Any], device: Device, logger: Any) -> None:
        self.values, self.device, self.logger = values, device, logger
        if device.release.startswith("8."):
            self.device_memory_size = values["scratch"]
            self.create_execution_context_without_device_memory = lambda: self._context("without memory")
        else:
            self.device_memory_size_v2 = values["scratch"]
            self.create_execution_context = self._context

    def create_engine_inspector(self) -> types.SimpleNamespace:
        def information(form: str) -> str:
            assert form == "JSON"
            names: list[Any] = [name for name, _ in self.device.layers]
            layers = self.device.inspected or names
            return json.dumps({"Layers": layers, "Bindings": ["x", "y"]})

        return types.SimpleNamespace(get_engine_information=information)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.device)

    def _context(self, strategy: str | RuntimeConfig) -> Context | None:
        if isinstance(strategy, RuntimeConfig):
            kernels = strategy.dynamic_shapes_kernel_specialization_strategy
            self.device.calls.append(("context", strategy.strategy, kernels))
            return Context(self, strategy)
        self.device.calls.append(("context", strategy))
        return None if "context" in self.device.failing else Context(self)

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.values["shape"])

    def get_tensor_dtype(self, name: str) -> str:
        return str(self.values["dtype"])


def _view(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))


def _tensorrt(device: Device, name: str) -> types.ModuleType:
    module: Any = types.ModuleType(name)
    module.__version__ = device.release
    module.ILogger = type("ILogger", (), {})
    module.IProfiler = type("IProfiler", (), {})
    module.ICudaEngine = Engine if name == "tensorrt_rtx" else type("ICudaEngine", (), {})
    if name == "tensorrt_rtx":
        module.IRuntimeCache = RuntimeCache
        module.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(EAGER="eager")
    module.TensorIOMode = Mode
    module.LayerInformationFormat = types.SimpleNamespace(JSON="JSON")

    def nptype(name: str) -> np.dtype[Any]:
        if name == "bfloat16":
            raise TypeError("no equivalent in NumPy")
        if "numpy" in device.failing:
            raise AttributeError("module 'numpy' has no attribute 'bool'")
        return np.dtype(name)

    def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
        device.has_plugins = True
        return True

    def runtime(logger: Any) -> types.SimpleNamespace:
        # trtexec makes engines with plugins, which nobody else can load without this
        assert device.has_plugins or name == "tensorrt_rtx"

        def deserialize(data: bytes) -> Engine | None:
            device.calls.append(("load", len(data)))
            if "load" in device.failing:
                logger.log(Severity.ERROR, "The engine plan file is not compatible with this version of TensorRT")
                return None
            return Engine(json.loads(data), device, logger)

        return types.SimpleNamespace(deserialize_cuda_engine=deserialize)

    module.nptype, module.Runtime = nptype, runtime
    module.init_libnvinfer_plugins = init_libnvinfer_plugins
    if not device.release.startswith("8."):
        module.ExecutionContextAllocationStrategy = types.SimpleNamespace(USER_MANAGED="user managed")
    return module  # type: ignore[no-any-return]


class Library:
    """libcudart."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.cudaGetErrorString = lambda code: b"out of memory"

    def cudaStreamCreate(self, result: Any) -> int:
        if "driver" in self._device.failing:
            return 35
        result._obj.value = 7
        self._device.streams += 1
        return 0

    def cudaStreamDestroy(self, stream: Any) -> int:
        assert stream.value == 7
        self._device.streams -= 1
        return 0

    def cudaMalloc(self, result: Any, size: Any) -> int:
        if "malloc" in self._device.failing:
            return 2
        block = (ctypes.c_char * size.value)()
        address = ctypes.addressof(block)
        self._device.memory[address] = block
        result._obj.value = address
        return 0

    def cudaFree(self, address: Any) -> int:
        del self._device.memory[address.value]
        return 0

    def cudaMemcpyAsync(self, target: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:
        assert stream.value == 7
        assert (target.value if kind.value == 1 else source.value) in self._device.memory
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:
        self._device.calls.append(("synchronize",))
        return 0


def install(monkeypatch: pytest.MonkeyPatch, release: str, module: str = "tensorrt") -> Device:
    """Put the stand-ins in the place of the vendor's module and library."""
    device = Device(release)
    monkeypatch.setitem(sys.modules, module, _tensorrt(device, module))
    monkeypatch.setattr(cuda_memory, "_load_library", lambda: Library(device))
    return device
