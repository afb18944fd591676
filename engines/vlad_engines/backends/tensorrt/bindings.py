"""The part of TensorRT's Python interface that is used here, as types.

Every object of TensorRT that our code touches is annotated with one of these, so mypy keeps the code within
them, and a test compares them with the real bindings. `Legacy` types are those of TensorRT 8 and 9, which
later versions do not have; `Modern` ones came with version 10. Only `api` may use either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Enum = Any
"""A member of one of TensorRT's enumerations."""


class Dims(Protocol):
    """A shape."""

    def __iter__(self) -> Any: ...


class HostMemory(Protocol):
    """Bytes that TensorRT owns; supports the buffer protocol."""

    @property
    def nbytes(self) -> int: ...


class Tensor(Protocol):
    """A tensor of a network."""

    name: str
    dtype: Enum
    shape: Any


class Network(Protocol):
    """`INetworkDefinition`."""

    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    def get_input(self, index: int) -> Tensor: ...
    def get_output(self, index: int) -> Tensor: ...


class OptimizationProfile(Protocol):
    """`IOptimizationProfile`."""

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None: ...


class TimingCache(Protocol):
    """`ITimingCache`."""

    def serialize(self) -> HostMemory: ...


class BuilderConfig(Protocol):
    """`IBuilderConfig`."""

    builder_optimization_level: int
    max_aux_streams: int
    profiling_verbosity: Enum

    def set_flag(self, flag: Enum) -> None: ...
    def clear_flag(self, flag: Enum) -> None: ...
    def set_memory_pool_limit(self, pool: Enum, pool_size: int) -> None: ...
    def set_tactic_sources(self, tactic_sources: int) -> bool: ...
    def add_optimization_profile(self, profile: OptimizationProfile) -> int: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache: ...
    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> TimingCache | None: ...


class ModernBuilderConfig(BuilderConfig, Protocol):
    """Tells how far a build is."""

    progress_monitor: Any


class Builder(Protocol):
    """`Builder`."""

    def create_network(self, flags: int) -> Network: ...
    def create_builder_config(self) -> BuilderConfig: ...
    def create_optimization_profile(self) -> OptimizationProfile: ...
    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None: ...


class ParserError(Protocol):
    """`ParserError`."""

    def desc(self) -> str: ...


class OnnxParser(Protocol):
    """`OnnxParser`."""

    @property
    def num_errors(self) -> int: ...
    def get_error(self, index: int) -> ParserError: ...
    def parse_from_file(self, model: str) -> bool: ...


class ExecutionContext(Protocol):
    """`IExecutionContext`."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool: ...
    def get_tensor_shape(self, name: str) -> Dims: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class LegacyExecutionContext(ExecutionContext, Protocol):
    """Takes scratch memory without being told its size."""

    device_memory: int


class ModernExecutionContext(ExecutionContext, Protocol):
    """Takes scratch memory with its size."""

    def set_device_memory(self, memory: int, size: int) -> None: ...


class Engine(Protocol):
    """`ICudaEngine`."""

    @property
    def num_io_tensors(self) -> int: ...
    @property
    def num_optimization_profiles(self) -> int: ...
    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_dtype(self, name: str) -> Enum: ...
    def get_tensor_mode(self, name: str) -> Enum: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Dims]: ...
    def create_engine_inspector(self) -> EngineInspector: ...


class LegacyEngine(Engine, Protocol):
    """Names of scratch memory before version 10."""

    @property
    def device_memory_size(self) -> int: ...
    def create_execution_context_without_device_memory(self) -> LegacyExecutionContext | None: ...


class ModernEngine(Engine, Protocol):
    """Names of scratch memory since version 10.1."""

    @property
    def device_memory_size_v2(self) -> int: ...
    def create_execution_context(self, strategy: Enum) -> ModernExecutionContext | None: ...


class EngineInspector(Protocol):
    """`EngineInspector`."""

    def get_engine_information(self, format: Enum) -> str: ...


class Runtime(Protocol):
    """`Runtime`."""

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None: ...
