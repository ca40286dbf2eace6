"""Run TensorRT engines that take turns on one piece of activation memory.

Unproven on hardware: written against the Python API of `tensorrt` 8.6 to 11 and `tensorrt_rtx`, and run by the tests
against a stand-in that records calls. What a release can do is read off its attributes, as in tensorrt_engine.py.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitswitch_deploy.engines.cuda_memory import Cuda, DeviceBuffer
from bitswitch_deploy.engines.input_signature import InputSignature, check_feeds
from bitswitch_deploy.engines.runtime_cache import runtime_cache_of
from bitswitch_deploy.engines.tensorrt_log import LogMessage, errors_of
from bitswitch_deploy.engines.tensorrt_module import Module, load_module, recording_logger, register_plugins
from bitswitch_deploy.errors import BitswitchError, DataError, GraphError, UnavailableError

# (layer of the engine, ms) of one run, in order
LayerTimes = tuple[tuple[str, float], ...]


class TensorRtDevice:
    """The device as all engines of a process share it: a runtime, a stream, activation memory of the largest engine.

    Engines run one after the other, whichever thread asks: two on one piece of memory would destroy each other.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.

    Raises:
        UnavailableError: the module, CUDA or a device is not here.
    """

    def __init__(self, module: Module) -> None:
        self.trt = load_module(module)
        self.version = str(self.trt.__version__)
        self.where = f"{self.trt.__name__} {self.version}"
        # of a process that runs for months
        self.messages: deque[LogMessage] = deque(maxlen=100)
        self.cuda = Cuda()
        self.scratch = DeviceBuffer(self.cuda)
        self.lock = threading.Lock()
        # engines go on running while another one is read
        self.reading = threading.Lock()
        # the runtime must outlive its engines, and the logger the runtime
        self._logger = recording_logger(self.trt, self.messages)
        register_plugins(self.trt, self._logger)
        self.runtime = self.trt.Runtime(self._logger)
        self.runtime_cache = runtime_cache_of(self.trt)

    def failure(self, what: str, kind: type[BitswitchError], do: str) -> BitswitchError:
        """The error for a call that returned nothing, with what TensorRT logged about it."""
        said = "; ".join(errors_of(self.messages.copy())) or "it logged no error"
        self.messages.clear()
        return kind(where=self.where, got=f"{what}: {said}", allowed="an engine of this GPU and release", do=do)


class TensorRtSession:
    """One engine. `run_all` may be called from any thread; it waits for its turn.

    Args:
        plan: the serialized engine.
        device: shared by all sessions of a process.

    Raises:
        UnavailableError: the engine is for another GPU or release, or there is no memory left.
        GraphError: an input or output cannot be held in an array.
    """

    def __init__(self, plan: bytes, device: TensorRtDevice) -> None:
        self._device, trt = device, device.trt
        with device.reading:
            self._engine = device.runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                do = "build it on this machine: bitswitch-deploy build PACKAGE"
                raise device.failure("the engine cannot be loaded", UnavailableError, do)
        with device.lock:
            if not hasattr(self._engine, "num_io_tensors"):
                raise device.failure("no tensors by name", UnavailableError, "use TensorRT 8.5 or newer")
            # the configuration must outlive the context
            self._context, self._config = self._created_context()
        self._compiled: set[tuple[tuple[int, ...], ...]] = set()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(self._signature(name) for name in names if is_input[name])
        self.output_names = tuple(name for name in names if not is_input[name])
        self._buffers = {name: DeviceBuffer(device.cuda) for name in names}

    def run_all(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name.

        Raises:
            DataError: shape or type of an array do not fit its input or what the engine was built for.
            UsageError: an input is missing or unknown.
            GraphError: TensorRT fails while it runs, or an output's shape depends on the data.
            UnavailableError: there is no device memory left.
        """
        check_feeds(self.inputs, feeds, where=self._device.where)
        with self._device.lock:
            outputs = self._run(self._context, feeds)
            self._keep_compiled(feeds)
        return outputs

    def profile(self, feeds: Mapping[str, np.ndarray], runs: int) -> tuple[LayerTimes, ...]:
        """For each of `runs` runs the layers of the engine with their ms, in order, and one run before them as warm-up.

        By the vendor's IProfiler in a context of its own: it waits for each layer, which slows the whole down.

        Raises:
            BitswitchError: as `run_all`.
        """
        check_feeds(self.inputs, feeds, where=self._device.where)
        times: list[tuple[str, float]] = []

        def report_layer_time(_: object, layer: str, ms: float) -> None:
            times.append((str(layer), float(ms)))

        members = {"report_layer_time": report_layer_time}
        profiler = type("Profiler", (self._device.trt.IProfiler,), members)()
        found = []
        with self._device.lock:
            context, _config = self._created_context()
            context.profiler = profiler
            for _ in range(runs + 1):
                times.clear()
                self._run(context, feeds)
                found.append(tuple(times))
        return tuple(found[1:])

    def layer_information(self) -> str:
        """What the engine inspector says about the layers, as the vendor's JSON."""
        with self._device.lock:
            inspector = self._engine.create_engine_inspector()
            return str(inspector.get_engine_information(self._device.trt.LayerInformationFormat.JSON))

    def _run(self, context: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        held = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in held.items():
            self._feed(context, name, array)
        outputs = {name: self._empty(context, name) for name in self.output_names}
        self._bind_scratch(context)
        for name, output in outputs.items():
            context.set_tensor_address(name, self._buffers[name].reserve(output.nbytes))
        cuda = self._device.cuda
        if not context.execute_async_v3(cuda.stream):
            raise self._device.failure("the engine failed while running", GraphError, "build it again")
        for name, output in outputs.items():
            cuda.to_host(output, self._buffers[name].address)
        cuda.synchronize()
        return outputs

    def _keep_compiled(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Save what was compiled, behind the first run of each shape: nobody knows when the process ends."""
        cache = self._device.runtime_cache
        shapes = tuple(feeds[value.name].shape for value in self.inputs)
        if cache is not None and shapes not in self._compiled:
            self._compiled.add(shapes)
            cache.save()

    def _created_context(self) -> tuple[Any, Any]:
        """A context, and the runtime configuration that must outlive it; None where it takes none."""
        config = None
        strategies = getattr(self._device.trt, "ExecutionContextAllocationStrategy", None)
        if self._device.runtime_cache is not None and strategies is not None:
            config = self._device.runtime_cache.config_of(self._engine)
            config.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
            context = self._engine.create_execution_context(config)
        elif strategies is not None:
            context = self._engine.create_execution_context(strategies.USER_MANAGED)
        else:
            context = self._engine.create_execution_context_without_device_memory()
        if context is None:
            raise self._device.failure("no execution context", UnavailableError, "free device memory")
        return context, config

    def _bind_scratch(self, context: Any) -> None:
        """Point the context at the shared memory, which moves when a larger engine comes."""
        engine = self._engine
        # since 10.1 the size is 64 bits wide under a new name
        name = "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size"
        size_bytes = int(getattr(engine, name))
        address = self._device.scratch.reserve(size_bytes)
        setter = getattr(context, "set_device_memory_v2", None) or getattr(context, "set_device_memory", None)
        if setter is not None:
            setter(address, self._device.scratch.size_bytes)
        else:
            context.device_memory = address

    def _signature(self, name: str) -> InputSignature:
        shape = tuple(None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        return InputSignature(name=name, dtype=self._dtype(name).name, shape=shape)

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._engine.get_tensor_dtype(name)
        try:
            dtype: np.dtype[Any] = np.dtype(self._device.trt.nptype(kind))
            return dtype
        except AttributeError as exc:
            # 8.5 asks NumPy for np.bool, which is gone since 1.24
            allowed, do = "TensorRT 8.6 or newer", "time the engine with trtexec: profile --engine trtexec"
            raise UnavailableError(where=self._device.where, got=str(exc), allowed=allowed, do=do) from exc
        except TypeError as exc:
            where, do = f"{self._device.where}: tensor {name!r}", "add a Cast to the graph"
            raise GraphError(where=where, got=str(kind), allowed="a type that NumPy has", do=do) from exc

    def _feed(self, context: Any, name: str, array: np.ndarray) -> None:
        if not context.set_input_shape(name, array.shape):
            got, allowed = f"shape {list(array.shape)}", "shapes that the engine was built for"
            raise DataError(where=f"input {name!r}", got=got, allowed=allowed, do="change the batch, or build again")
        address = self._buffers[name].reserve(array.nbytes)
        context.set_tensor_address(name, address)
        self._device.cuda.to_device(address, array)

    def _empty(self, context: Any, name: str) -> np.ndarray:
        shape = tuple(int(size) for size in context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            where, do = f"output {name!r}", "run this graph with onnxruntime"
            raise GraphError(
                where=where, got=f"shape {list(shape)}", allowed="a shape that follows from the inputs", do=do
            )
        return np.empty(shape, self._dtype(name))
