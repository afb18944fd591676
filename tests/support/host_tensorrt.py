"""TensorRT and a GPU in host memory, for machines that have neither.

`HostDevice` keeps the order that CUDA keeps and no more: work is only done when somebody waits for it, so a
missing wait shows as wrong numbers. Fresh memory holds NaN. `make_tensorrt` is a module with the interface of
one TensorRT version, as far as `bindings` names it; its plans are ONNX graphs, run by onnxruntime, or by onnx
itself where there is bfloat16, on the addresses that contexts were given.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import importlib.machinery
import io
import itertools
import json
import pathlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime

from vlad_configs.errors import EngineError
from vlad_engines.backends.tensorrt.device import HostArray

Work = Callable[[], None]


def at(address: int, size_bytes: int) -> HostArray:
    """The bytes at an address."""
    return np.frombuffer((ctypes.c_ubyte * size_bytes).from_address(address), np.uint8)


class HostStream:
    """Work that waits to be waited for."""

    def __init__(self, device: HostDevice, handle: int) -> None:
        self.handle = handle
        self._device = device
        self._waiting: list[Work] = []
        self._recording: list[Work] | None = None
        self._done = 0
        self._enqueued = 0

    def enqueue(self, work: Work) -> None:
        if self._recording is not None:
            self._recording.append(work)
            return
        self._waiting.append(work)
        self._enqueued += 1

    def wait_for(self, event: HostEvent) -> None:
        self.enqueue(event.synchronize)

    def run_until(self, position: int) -> None:
        while self._done < position:
            work = self._waiting.pop(0)
            self._done += 1
            work()

    @property
    def position(self) -> int:
        return self._enqueued

    def record(self, work: Callable[[], None]) -> list[Work]:
        if self._waiting:
            raise EngineError("capture of a stream with unfinished work")
        self._recording = []
        try:
            work()
            return self._recording
        finally:
            self._recording = None


class HostEvent:
    """Time is the number of pieces of work that were done before."""

    def __init__(self) -> None:
        self._stream: HostStream | None = None
        self._position = 0

    def record(self, stream: HostStream) -> None:
        self._stream, self._position = stream, stream.position

    def synchronize(self) -> None:
        if self._stream is not None:
            self._stream.run_until(self._position)

    def seconds_since(self, earlier: HostEvent) -> float:
        return 1e-3 * (self._position - earlier._position)


class HostGraph:
    """Recorded work."""

    def __init__(self, work: list[Work]) -> None:
        self._work = work

    def launch(self, stream: HostStream) -> None:
        for work in self._work:
            stream.enqueue(work)


class HostMemory:
    """Bytes that begin as NaN of every float dtype."""

    def __init__(self, size_bytes: int) -> None:
        self._buffer = np.full(size_bytes + 256, 0xFF, np.uint8)
        start: int = self._buffer.ctypes.data
        self.address = start + -start % 256


class HostDevice:
    """See `vlad_engines.backends.tensorrt.device.Device`."""

    name = "host"
    total_bytes = 4 << 30

    def __init__(
        self, multiprocessors: int = 0, can_be_parted: bool = True, compute_capability: str = "0.0"
    ) -> None:
        self.multiprocessors = multiprocessors
        self.compute_capability = compute_capability
        self._can_be_parted = can_be_parted
        self._handles = itertools.count(1)
        self.streams: dict[int, HostStream] = {}
        self.depth = 0
        self.captures = 0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def free_bytes(self) -> int:
        assert self.depth
        return 1 << 30

    def allocate(self, size_bytes: int) -> HostMemory:
        assert self.depth
        return HostMemory(size_bytes)

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
        assert self.depth
        return np.zeros(shape, dtype)

    def create_stream(self, *, urgent: bool = False, spared: int = 0) -> HostStream:
        if spared and not self._can_be_parted:
            raise EngineError("cuGreenCtxCreate failed")
        stream = HostStream(self, next(self._handles))
        self.streams[stream.handle] = stream
        return stream

    def create_event(self) -> HostEvent:
        return HostEvent()

    def upload(self, address: int, array: HostArray, stream: HostStream) -> None:
        assert array.flags.c_contiguous

        def copy() -> None:
            at(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

        stream.enqueue(copy)

    def download(self, array: HostArray, address: int, stream: HostStream) -> None:
        assert array.flags.c_contiguous

        def copy() -> None:
            array.reshape(-1).view(np.uint8)[:] = at(address, array.nbytes)

        stream.enqueue(copy)

    def capture(self, stream: HostStream, work: Callable[[], None]) -> HostGraph:
        self.captures += 1
        return HostGraph(stream.record(work))


def _enumeration(name: str, members: str) -> Any:
    return enum.IntEnum(name, members.split(), start=0)


_NUMPY: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT32": np.int32,
    "BF16": onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16),
}
_ONNX = {
    onnx.TensorProto.FLOAT: "FLOAT",
    onnx.TensorProto.FLOAT16: "HALF",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.INT32: "INT32",
}
SCRATCH_BYTES = 512


def _runner(model: onnx.ModelProto) -> Callable[[dict[str, Any]], dict[str, Any]]:
    if any(item.data_type == onnx.TensorProto.BFLOAT16 for item in model.graph.initializer):
        # onnxruntime's processor kernels do not know it.
        evaluator = onnx.reference.ReferenceEvaluator(model)
        return lambda feed: dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [entry.name for entry in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def make_tensorrt(version: str, device: HostDevice) -> Any:
    """A module that behaves as TensorRT of this version does.

    It has what it was told in `builds`: a list of the flags, shapes and levels of every build.
    """
    modern = not version.startswith("8.")
    trt: Any = types.ModuleType("tensorrt")
    trt.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    trt.__version__, trt.builds = version, []
    trt.BuilderFlag = _enumeration("BuilderFlag", "TF32")
    trt.DataType = _enumeration("DataType", "FLOAT HALF INT32 BF16" if modern else "FLOAT HALF INT32")
    trt.LayerInformationFormat = _enumeration("LayerInformationFormat", "ONELINE JSON")
    trt.MemoryPoolType = _enumeration("MemoryPoolType", "WORKSPACE")
    trt.ProfilingVerbosity = _enumeration("ProfilingVerbosity", "LAYER_NAMES_ONLY DETAILED")
    trt.TacticSource = _enumeration("TacticSource", "EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS")
    trt.TensorIOMode = _enumeration("TensorIOMode", "NONE INPUT OUTPUT")
    trt.NetworkDefinitionCreationFlag = _enumeration(
        "NetworkDefinitionCreationFlag", "STRONGLY_TYPED" if modern else "EXPLICIT_BATCH"
    )
    severities = _enumeration("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    class ILogger:
        Severity = severities

        def __init__(self) -> None:
            pass

    trt.ILogger = ILogger
    if modern:
        trt.ExecutionContextAllocationStrategy = _enumeration("Strategy", "STATIC USER_MANAGED")
        trt.IProgressMonitor = type("IProgressMonitor", (), {})

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Any:
            return Network(flags)

        def create_builder_config(self) -> Any:
            return Config()

        def create_optimization_profile(self) -> Any:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            trt.builds.append({"network": network, "config": config})
            if network.model is None or not config.profiles:
                return None
            monitor = getattr(config, "progress_monitor", None)
            if monitor is not None:
                monitor.phase_start("build", None, 2)
                monitor.phase_start("inner", "build", 5)
                monitor.step_complete("inner", 0)
                monitor.step_complete("build", 0)
                monitor.phase_finish("build")
            config.timing.content += b"+"
            header = json.dumps({"version": version, "profiles": config.profiles}).encode()
            return len(header).to_bytes(4, "little") + header + network.model.SerializeToString()

    class Network:
        def __init__(self, flags: int) -> None:
            self.flags = flags
            self.model: onnx.ModelProto | None = None

        @property
        def num_inputs(self) -> int:
            assert self.model is not None
            return len(self.model.graph.input)

        def get_input(self, index: int) -> Any:
            assert self.model is not None
            return self.model.graph.input[index]

    class OnnxParser:
        def __init__(self, network: Network, logger: Any) -> None:
            self._network = network
            self._error = ""

        @property
        def num_errors(self) -> int:
            return int(bool(self._error))

        def get_error(self, index: int) -> Any:
            return types.SimpleNamespace(desc=lambda: self._error)

        def parse_from_file(self, model: str) -> bool:
            try:
                self._network.model = onnx.load(model)
            except Exception as error:
                self._error = str(error)
                return False
            return pathlib.Path(model).suffix == ".onnx"

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, list[int]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            assert min == opt == max
            self.shapes[input] = list(opt)

    class Config:
        def __init__(self) -> None:
            self.flags = {trt.BuilderFlag.TF32}
            self.profiles: list[dict[str, list[int]]] = []
            self.timing: Any = None
            self.tactic_sources = -1

        def set_flag(self, flag: Any) -> None:
            self.flags.add(flag)

        def clear_flag(self, flag: Any) -> None:
            self.flags.discard(flag)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            self.workspace = pool_size

        def set_tactic_sources(self, tactic_sources: int) -> bool:
            self.tactic_sources = tactic_sources
            return True

        def add_optimization_profile(self, profile: Profile) -> int:
            self.profiles.append(profile.shapes)
            return len(self.profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            cache = types.SimpleNamespace(content=bytes(serialized_timing_cache))
            cache.serialize = lambda: cache.content
            return cache

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self.timing = cache
            return True

        def get_timing_cache(self) -> Any:
            return self.timing

    class Engine:
        def __init__(self, plan: bytes) -> None:
            length = int.from_bytes(plan[:4], "little")
            header = json.loads(plan[4 : 4 + length])
            if header["version"] != version:
                raise ValueError("a plan of another version")
            self.profiles = header["profiles"]
            self.taken: set[int] = set()
            self.model = onnx.load(io.BytesIO(plan[4 + length :]))
            self.run = _runner(self.model)
            graph = self.model.graph
            self.tensors = {
                value.name: (mode, _ONNX[value.type.tensor_type.elem_type])
                for values, mode in ((graph.input, "INPUT"), (graph.output, "OUTPUT"))
                for value in values
            }

        @property
        def num_io_tensors(self) -> int:
            return len(self.tensors)

        @property
        def num_optimization_profiles(self) -> int:
            return len(self.profiles)

        def get_tensor_name(self, index: int) -> str:
            return list(self.tensors)[index]

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType[self.tensors[name][1]]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode[self.tensors[name][0]]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
            return [self.profiles[profile_index][name]] * 3

        def create_engine_inspector(self) -> Any:
            return types.SimpleNamespace(get_engine_information=lambda format: '{"Layers": []}')

    class Context:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine
            self._profile: int | None = None
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self.scratch = 0

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            if not modern:
                # Before version 10, two contexts cannot have one profile.
                if profile_index in self._engine.taken:
                    return False
                self._engine.taken.add(profile_index)
            self._profile, self._shapes = profile_index, {}
            return stream_handle in device.streams

        def set_input_shape(self, name: str, shape: Any) -> bool:
            assert self._profile is not None
            self._shapes[name] = tuple(shape)
            return list(shape) == self._engine.profiles[self._profile][name]

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return name in self._engine.tensors

        def execute_async_v3(self, stream_handle: int) -> bool:
            engine, shapes, addresses = self._engine, dict(self._shapes), dict(self._addresses)
            if addresses.keys() != engine.tensors.keys() or not self.scratch:
                return False

            def run() -> None:
                feed = {}
                for name, shape in shapes.items():
                    dtype = np.dtype(_NUMPY[engine.tensors[name][1]])
                    size = int(np.prod(shape)) * dtype.itemsize
                    feed[name] = at(addresses[name], size).view(dtype).reshape(shape)
                for name, value in engine.run(feed).items():
                    at(addresses[name], value.nbytes)[:] = value.reshape(-1).view(np.uint8)

            device.streams[stream_handle].enqueue(run)
            return True

    class LegacyContext(Context):
        @property
        def device_memory(self) -> int:
            raise AttributeError("device_memory can only be written")

        @device_memory.setter
        def device_memory(self, memory: int) -> None:
            self.scratch = memory

    class ModernContext(Context):
        def set_device_memory(self, memory: int, size: int) -> None:
            assert size >= SCRATCH_BYTES
            self.scratch = memory

    class LegacyEngine(Engine):
        device_memory_size = SCRATCH_BYTES

        def create_execution_context_without_device_memory(self) -> Any:
            return LegacyContext(self)

    class ModernEngine(Engine):
        device_memory_size_v2 = SCRATCH_BYTES

        def create_execution_context(self, strategy: Any) -> Any:
            assert strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return ModernContext(self)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            try:
                return (ModernEngine if modern else LegacyEngine)(bytes(serialized_engine))
            except Exception as error:
                self._logger.log(severities.ERROR, str(error))
                return None

    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, OnnxParser, Runtime
    return trt
