"""Makes a plan from an ONNX graph."""

from __future__ import annotations

import dataclasses
import logging
import pathlib

from vlad_configs.errors import EngineError
from vlad_engines.backends.tensorrt.api import ReportProgress, TensorRt
from vlad_engines.backends.tensorrt.arithmetic import Arithmetic
from vlad_engines.backends.tensorrt.bindings import Builder, BuilderConfig, HostMemory, Network, OnnxParser
from vlad_engines.backends.tensorrt.cache import TimingCache
from vlad_engines.backends.tensorrt.manifest import BuildSettings, Shapes

logger = logging.getLogger("vlad.tensorrt")


@dataclasses.dataclass(frozen=True)
class PlanBuilder:
    """Builds on the current CUDA device.

    Attributes:
        timing_cache: filled by every build and read by the next, where TensorRT takes its own again.
    """

    tensorrt: TensorRt
    settings: BuildSettings
    timing_cache: TimingCache

    def build(
        self,
        onnx: pathlib.Path,
        arithmetic: Arithmetic,
        profiles: Shapes,
        stage: str,
        progress: ReportProgress,
    ) -> HostMemory:
        """Build one engine; takes minutes at full size.

        Args:
            profiles: the engine runs exactly these shapes.
            stage: what `progress` is told.

        Raises:
            EngineError: where TensorRT cannot; its last words are in the text.
        """
        progress(stage, 0.0)
        builder = self.tensorrt.create_builder()
        network = self.tensorrt.create_network(builder)
        parser = self._parse(network, onnx)
        config = builder.create_builder_config()
        self.tensorrt.configure(config, arithmetic, self.settings.workspace_bytes)
        config.builder_optimization_level = self.settings.optimization_level
        _add_profiles(builder, config, network, profiles)
        learnt_before = self.timing_cache.load() if self.tensorrt.keeps_timing else b""
        config.set_timing_cache(config.create_timing_cache(learnt_before), ignore_mismatch=False)
        self.tensorrt.report_progress(config, stage, progress)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"TensorRT {self.tensorrt.version} cannot build {onnx.name}; the log says why")
        del parser  # until here: the network's weights lie in its memory
        learnt = config.get_timing_cache()
        if learnt is not None and self.tensorrt.keeps_timing:
            self.timing_cache.store(bytes(memoryview(learnt.serialize())))  # type: ignore[arg-type]
        progress(stage, 1.0)
        return plan

    def _parse(self, network: Network, onnx: pathlib.Path) -> OnnxParser:
        parser = self.tensorrt.create_parser(network)
        # By path, not by content: only so the parser finds the weights beside the graph.
        if parser.parse_from_file(str(onnx)):
            return parser
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EngineError(f"TensorRT {self.tensorrt.version} cannot read {onnx.name}: {errors}")


def _add_profiles(builder: Builder, config: BuilderConfig, network: Network, profiles: Shapes) -> None:
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    for shapes in profiles:
        if shapes.keys() != inputs:
            raise EngineError(f"the graph has the inputs {sorted(inputs)}, expected {sorted(shapes)}")
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT refuses the shapes {shapes}")
