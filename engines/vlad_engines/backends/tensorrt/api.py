"""Every difference between TensorRT 8.6, 10 and 11, and nothing else.

| | 8.6 | 10, 11 |
|---|---|---|
| types of a network | float32 | those of the ONNX graph (strongly typed) |
| bf16, float8 products | no | yes |
| progress of a build | no | `IProgressMonitor` |
| timing cache of an earlier build | refused | taken |
| scratch memory of a context | `device_memory` | `set_device_memory`, with its size |
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

from vlad_configs.errors import ConfigError, EngineError
from vlad_engines.backends.tensorrt.arithmetic import Arithmetic, ComponentArithmetic
from vlad_engines.backends.tensorrt.bindings import (
    Builder,
    BuilderConfig,
    Engine,
    ExecutionContext,
    LegacyEngine,
    ModernBuilderConfig,
    ModernEngine,
    Network,
    OnnxParser,
    Runtime,
)
from vlad_engines.export.spec import COMPONENTS, Dtype

logger = logging.getLogger("vlad.tensorrt")

ReportProgress = Callable[[str, float], None]

OLDEST = (8, 6)
_STRONGLY_TYPED_SINCE = (10, 1)

ENUM_MEMBERS = {
    "BuilderFlag": ("TF32",),
    "DataType": ("FLOAT", "HALF", "INT32"),
    "LayerInformationFormat": ("JSON",),
    "MemoryPoolType": ("WORKSPACE",),
    "ProfilingVerbosity": ("DETAILED",),
    "TacticSource": ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"),
    "TensorIOMode": ("INPUT", "OUTPUT"),
}
"""What is used of TensorRT's enumerations in every version."""

LEGACY_ENUM_MEMBERS = {
    "NetworkDefinitionCreationFlag": ("EXPLICIT_BATCH",),
}
MODERN_ENUM_MEMBERS = {
    "DataType": ("BF16", "FP8"),  # FP8 only within graphs
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
}

_DTYPE_NAMES: dict[Dtype, str] = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int32": "INT32",
}


def load_tensorrt() -> TensorRt:
    """The TensorRT that is installed.

    Raises:
        ConfigError: where there is none, or one that is too old or broken.
    """
    try:
        module = importlib.import_module("tensorrt")
    except ImportError as error:
        raise ConfigError(
            f"TensorRT cannot be loaded ({error}); install the 'tensorrt' extra on a machine with an "
            "NVIDIA driver"
        ) from error
    return TensorRt(module)


class TensorRt:
    """One version of TensorRT.

    Args:
        module: `tensorrt`, or its bindings under another name.

    Raises:
        ConfigError: for a version before 8.6, and for 9 and 10.0.
    """

    def __init__(self, module: ModuleType) -> None:
        self._trt: Any = module
        self.version: str = module.__version__
        numbers = tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])
        if numbers < OLDEST or (9, 0) <= numbers < _STRONGLY_TYPED_SINCE:
            raise ConfigError(f"TensorRT {self.version} is not supported; 8.6 and 10.1 or newer are")
        self.strongly_typed = numbers >= _STRONGLY_TYPED_SINCE
        # 8.6 was seen to refuse, with an error of its inner compiler, what it had written itself.
        self.keeps_timing = self.strongly_typed
        self._logger: Any = None
        self._runtime: Runtime | None = None

    # ---- what it can ----

    def check_arithmetic(self, arithmetic: ComponentArithmetic) -> None:
        """Refuse what this version cannot compute.

        Raises:
            ConfigError: names the component and what to choose instead.
        """
        if self.strongly_typed:
            return
        # Without strong typing a build that allows fp16 was seen to compute in float32 throughout.
        missing = {"fp8": "has no fp8", "bf16": "has no bf16", "fp16": "is not held to fp16"}
        for name, reason in missing.items():
            for component in COMPONENTS:
                if arithmetic.of(component) == name:
                    raise ConfigError(
                        f"TensorRT {self.version} {reason}, which {component} shall use: choose "
                        "--precision fp32, or install TensorRT 10.1 or newer"
                    )

    def flags(self, arithmetic: Arithmetic) -> tuple[str, ...]:
        """Names of all flags and tactic sources of a build, for the manifest."""
        names = [f"TacticSource.{name}" for name in ENUM_MEMBERS["TacticSource"]]
        if self.strongly_typed:
            names.append("NetworkDefinitionCreationFlag.STRONGLY_TYPED")
        if arithmetic == "tf32":
            names.append("BuilderFlag.TF32")
        return tuple(sorted(names))

    # ---- building ----

    def create_builder(self) -> Builder:
        """A builder whose messages go to our log."""
        return cast(Builder, self._trt.Builder(self._log()))

    def create_network(self, builder: Builder) -> Network:
        """An empty network that takes its types from the ONNX graph, where the version can."""
        flags = self._trt.NetworkDefinitionCreationFlag
        flag = flags.STRONGLY_TYPED if self.strongly_typed else flags.EXPLICIT_BATCH
        return builder.create_network(1 << int(flag))

    def create_parser(self, network: Network) -> OnnxParser:
        """A parser that fills `network`."""
        return cast(OnnxParser, self._trt.OnnxParser(network, self._log()))

    def configure(self, config: BuilderConfig, arithmetic: Arithmetic, workspace_bytes: int) -> None:
        """Set flags, sources of kernels and memory.

        cuBLAS and cuDNN are left out everywhere: a plan then needs neither where it runs.
        """
        trt = self._trt
        if arithmetic == "tf32":
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        sources = 0
        for name in ENUM_MEMBERS["TacticSource"]:
            sources |= 1 << int(getattr(trt.TacticSource, name))
        config.set_tactic_sources(sources)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        # One stream per component: the schedule alone decides what runs beside what.
        config.max_aux_streams = 0

    def report_progress(self, config: BuilderConfig, stage: str, progress: ReportProgress) -> None:
        """Tell `progress` how far a build is, where the version can."""
        if self.strongly_typed:
            monitor = _make_monitor(self._trt, stage, progress)
            cast(ModernBuilderConfig, config).progress_monitor = monitor

    # ---- running ----

    def load_engine(self, plan: memoryview) -> Engine:
        """Deserialise an engine into device memory.

        Raises:
            EngineError: where TensorRT refuses it.
        """
        if self._runtime is None:
            # Kept: it must outlive its engines.
            self._runtime = cast(Runtime, self._trt.Runtime(self._log()))
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"TensorRT {self.version} cannot load an engine; the log says why")
        return engine

    def scratch_bytes(self, engine: Engine) -> int:
        """Scratch memory that any context of an engine needs."""
        if self.strongly_typed:
            return cast(ModernEngine, engine).device_memory_size_v2
        return cast(LegacyEngine, engine).device_memory_size

    def create_context(self, engine: Engine, scratch: int, scratch_bytes: int) -> ExecutionContext:
        """A context that works in memory of ours; contexts that share it must not run at once.

        Args:
            scratch: address, aligned to 256 bytes.

        Raises:
            EngineError: where TensorRT cannot make one.
        """
        context: ExecutionContext | None
        if self.strongly_typed:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            modern = cast(ModernEngine, engine).create_execution_context(strategy)
            if modern is not None:
                modern.set_device_memory(scratch, scratch_bytes)
            context = modern
        else:
            legacy = cast(LegacyEngine, engine).create_execution_context_without_device_memory()
            if legacy is not None:
                legacy.device_memory = scratch
            context = legacy
        if context is None:
            raise EngineError("TensorRT cannot create an execution context; the log says why")
        return context

    def dtype(self, engine: Engine, tensor: str) -> Dtype | None:
        """The dtype of an input or output; None for one that our graphs never have."""
        found = engine.get_tensor_dtype(tensor)
        for dtype, name in _DTYPE_NAMES.items():
            if found == getattr(self._trt.DataType, name, None):
                return dtype
        return None

    def is_input(self, engine: Engine, tensor: str) -> bool:
        """Whether a tensor goes in."""
        return bool(engine.get_tensor_mode(tensor) == self._trt.TensorIOMode.INPUT)

    def layer_report(self, engine: Engine) -> str:
        """What TensorRT made of the layers, as JSON."""
        return engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)

    # ---- inside ----

    def _log(self) -> Any:
        if self._logger is None:
            self._logger = _make_logger(self._trt)
        return self._logger


def _make_logger(trt: Any) -> Any:
    severities = trt.ILogger.Severity
    levels = {
        severities.INTERNAL_ERROR: logging.ERROR,
        severities.ERROR: logging.ERROR,
        severities.WARNING: logging.WARNING,
        severities.INFO: logging.DEBUG,
        severities.VERBOSE: logging.DEBUG,
    }

    class PythonLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity != severities.VERBOSE:
                logger.log(levels[severity], "TensorRT: %s", msg)

    return PythonLogger()


def _make_monitor(trt: Any, stage: str, progress: ReportProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases nest; the outermost ones follow each other and count as the progress."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost: str | None = None
            self._steps = 1

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._outermost, self._steps = phase_name, max(1, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outermost:
                progress(stage, min(1.0, (step + 1) / self._steps))
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outermost:
                progress(stage, 1.0)

    return Monitor()
