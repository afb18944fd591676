"""The `tensorrt` backend: one engine per component, one batch at a time."""

from __future__ import annotations

import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vlad_configs.errors import ConfigError, EngineError
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.capabilities import Trace
from vlad_engines.backends.tensorrt.api import ReportProgress, TensorRt, load_tensorrt
from vlad_engines.backends.tensorrt.arithmetic import ComponentArithmetic, parse_arithmetic
from vlad_engines.backends.tensorrt.attestation import read_report
from vlad_engines.backends.tensorrt.cache import EngineFolder, Plan
from vlad_engines.backends.tensorrt.components import make_components
from vlad_engines.backends.tensorrt.cuda_device import open_device
from vlad_engines.backends.tensorrt.device import Device, HostArray
from vlad_engines.backends.tensorrt.engine_plans import (
    BuiltPlans,
    Engineering,
    PlanProvider,
    PrebuiltPlans,
    engine_cache,
)
from vlad_engines.backends.tensorrt.loaded_engine import LoadedEngine
from vlad_engines.backends.tensorrt.manifest import BuildSettings
from vlad_engines.backends.tensorrt.schedule import SequentialSchedule
from vlad_engines.backends.tensorrt.slot import Array, Slot, choose_key
from vlad_engines.checkpoint.demo import cache_directory
from vlad_engines.checkpoint.open_weights import CheckpointWeights
from vlad_engines.export.fingerprint import weights_digest
from vlad_engines.export.spec import COMPONENTS, Component, Dtype, GraphForm, ShapeKey, shape_keys
from vlad_engines.fidelity.report import FidelityReport
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.worker_protocol import ComponentEngine

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("vlad.tensorrt")

Kind = TypeVar("Kind", bound="TensorRtBackend")


def create(
    config: ModelConfig, weights: Mapping[str, torch.Tensor], options: BackendOptions
) -> TensorRtBackend:
    """See `registry.create_backend`.

    Args:
        weights: may be empty where engines are prebuilt: those hold their weights.
    """
    return create_as(TensorRtBackend, config, weights, options)


def create_as(
    kind: type[Kind], config: ModelConfig, weights: Mapping[str, torch.Tensor], options: BackendOptions
) -> Kind:
    """Check what was asked for, then make a backend of this kind."""
    arithmetic = parse_arithmetic(options.precision)
    check_options(options)
    tensorrt = load_tensorrt()
    tensorrt.check_arithmetic(arithmetic)
    device = open_device(options.device)
    arithmetic.check_gpu(device.name, device.compute_capability)
    plans = choose_plans(config, weights, options, arithmetic)
    return kind(config, options, arithmetic, tensorrt, device, plans)


class TensorRtBackend:
    """See `base.Backend`; of `capabilities`: `Attested`, `Counted`, `WatchesMemory`.

    Args:
        plans: asked once, by `warm_up` or by the first request.
        use_graphs: record each component as a CUDA graph.
    """

    def __init__(
        self,
        config: ModelConfig,
        options: BackendOptions,
        arithmetic: ComponentArithmetic,
        tensorrt: TensorRt,
        device: Device,
        plans: PlanProvider,
        use_graphs: bool = True,
    ) -> None:
        self._config = config
        self._options = options
        self._arithmetic = arithmetic
        self._tensorrt = tensorrt
        self._device = device
        self._keys = shape_keys(config, options.camera_counts, options.batch_sizes)
        self._plans: PlanProvider | None = plans
        self._use_graphs = use_graphs
        self._running: Running | None = None
        self._engine_files: dict[str, ComponentEngine] = {}
        self._attested: FidelityReport | None = None
        self._calibration: str | None = None
        self._closed = False

    name = "tensorrt"
    """In the registry."""

    def warm_up(self, progress: Callable[[str, float], None]) -> None:
        """Load the engines, building those that are missing, and run every shape once."""
        with self._device.active():
            self._ready(progress)
            for index, key in enumerate(self._keys):
                progress(f"warming up {self.name}: {key}", index / len(self._keys))
                self._prepare(key)
            progress(f"warming up {self.name}", 1.0)

    def infer(self, inputs: ModelInputs, noise: Array) -> InferenceResult:
        """See `base.Backend.infer`."""
        return self.infer_batch([inputs], [noise])[0]

    def infer_batch(self, inputs: Sequence[ModelInputs], noise: Sequence[Array]) -> list[InferenceResult]:
        """See `capabilities.Batched`."""
        key = choose_key(self._config, self._keys, inputs, noise)
        with self._device.active():
            result = self._ready(say_nothing).schedule.run(key, inputs, noise)
        return result.chunks.results(result.stage_seconds)

    def trace(self, inputs: ModelInputs, noise: Array) -> Trace:
        """See `capabilities.Traceable`."""
        key = choose_key(self._config, self._keys, [inputs], [noise])
        with self._device.active():
            running = self._ready(say_nothing)
            running.schedule.run(key, [inputs], [noise])
            return running.look(key, int(np.count_nonzero(inputs.token_mask)))

    def describe(self) -> dict[str, Any]:
        """See `base.Backend.describe`. A prefix in fp8 has its calibration, once the engines are there."""
        parts: dict[str, Any] = {
            component: {
                "engine": "tensorrt",
                "precision": self._arithmetic.of(component),
                "version": f"TensorRT {self._tensorrt.version}",
                "device": self._device.name,
            }
            for component in COMPONENTS
        }
        if self._calibration is not None:
            parts["prefix"]["calibration"] = self._calibration
        return parts

    @property
    def engine_files(self) -> Mapping[str, ComponentEngine]:
        """See `capabilities.FromEngineFiles`."""
        return self._engine_files

    def memory_bytes(self) -> tuple[int, int]:
        """See `capabilities.WatchesMemory`."""
        with self._device.active():
            return self._device.free_bytes(), self._device.total_bytes

    @property
    def attested_fidelity(self) -> FidelityReport | None:
        """See `capabilities.Attested`."""
        return self._attested

    @property
    def calls(self) -> Mapping[str, int]:
        """See `capabilities.Counted`."""
        return dict.fromkeys(COMPONENTS, 0) if self._running is None else self._running.schedule.calls

    def layer_reports(self) -> dict[str, str]:
        """Component -> what TensorRT made of its layers, as JSON: their kernels, types and formats."""
        with self._device.active():
            return self._ready(say_nothing).layer_reports()

    def close(self) -> None:
        """See `base.Backend.close`."""
        self._closed = True
        with self._device.active():
            self._plans = self._running = None

    def _ready(self, progress: ReportProgress) -> Running:
        if self._closed:
            raise EngineError("the backend is closed")
        if self._running is None:
            assert self._plans is not None
            options = self._options
            wanted = Engineering(
                self._config, options.num_steps, self._arithmetic, self._keys, options.pruning
            )
            plans = self._plans.provide(wanted, self._tensorrt, self._device, progress)
            self._plans = None  # the checkpoint's weights go with it
            self._calibration = plans["prefix"].manifest.identity.calibration
            folder = plans["denoise"].folder
            self._attested = read_report(folder, {name: plan.manifest for name, plan in plans.items()})
            engines: dict[Component, LoadedEngine] = {}
            for index, component in enumerate(COMPONENTS):
                progress(f"loading the {component} engine", index / len(COMPONENTS))
                # Without another reference the file's pages are free once the engine is on the device.
                engines[component] = self._load(component, plans.pop(component))
            self._running = Running(self._device, self._config, engines, self._keys, self._use_graphs)
        return self._running

    def _prepare(self, key: ShapeKey) -> None:
        """Run a shape once. The engines are loaded."""
        sample, noise = empty_request(self._config, key), self._no_noise()
        self._ready(say_nothing).schedule.prepare(key, [sample] * key.batch, [noise] * key.batch)

    def _load(self, component: Component, plan: Plan) -> LoadedEngine:
        began, free = time.monotonic(), self._device.free_bytes()
        engine = LoadedEngine(self._tensorrt, self._device, plan)
        manifest = plan.manifest
        self._engine_files[component] = ComponentEngine(
            plan.lookup, manifest.build_seconds, time.monotonic() - began, manifest.plan_bytes
        )
        logger.info(
            "loaded the %s engine in %.1f s: %.0f MiB of device memory, %.0f MiB of it scratch",
            component,
            time.monotonic() - began,
            (free - self._device.free_bytes()) / 2**20,
            engine.device_bytes / 2**20,
        )
        return engine

    def _no_noise(self) -> Array:
        return np.zeros((self._config.action_horizon, self._config.action_dim), np.float32)


class Running:
    """Engines, memory and schedule: what exists from the first use on."""

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        engines: Mapping[Component, LoadedEngine],
        keys: Sequence[ShapeKey],
        use_graphs: bool,
    ) -> None:
        self._config = config
        self._engines = engines
        self._form: GraphForm = engines["denoise"].manifest.identity.form
        self._stream = device.create_stream()
        self._slot = Slot(device, config, self._form, keys, self._stream)
        components = make_components(engines, device, self._slot, use_graphs)
        self.schedule = SequentialSchedule(device, self._slot, components, self._stream)

    def layer_reports(self) -> dict[str, str]:
        """See `TensorRtBackend.layer_reports`."""
        return {component: engine.layer_report() for component, engine in self._engines.items()}

    def look(self, key: ShapeKey, prompt_length: int) -> Trace:
        """What the components handed over in the last run, of one request."""
        config, form, vlm = self._config, self._form, self._config.vlm
        axes = key.axes(config, form.pruning)
        cache_shape = (vlm.num_kv_heads, axes["prefix"], vlm.head_dim)
        real = seen = axes["slots"] + prompt_length
        if form.pruning is not None:
            address = self._slot.address("visible_lengths")
            seen = int(self._slot.read(address, (1,), "int32", self._stream).view(np.int32)[0])

        def layers(part: str) -> Array:
            addresses = [self._slot.address(f"{part}_{layer}") for layer in range(vlm.depth)]
            cache = np.stack([self._read(address, cache_shape, form.denoise) for address in addresses])
            cache[:, :, seen:] = 0.0
            return cache

        tokens_shape = (axes["image_tokens"], vlm.width)
        path_shape = (form.num_steps, config.action_horizon, config.action_dim)
        return Trace(
            vision_tokens=self._read(self._slot.address("image_tokens"), tokens_shape, form.prefix),
            prefix_keys=layers("keys")[:, :, :real],
            prefix_values=layers("values")[:, :, :real],
            x_t=self._read(self._slot.x_address(key, 1), path_shape, "float32"),
        )

    def _read(self, address: int, shape: tuple[int, ...], dtype: Dtype) -> Array:
        return _widen(self._slot.read(address, shape, dtype, self._stream), dtype).reshape(shape)


def check_options(options: BackendOptions) -> None:
    """Refuse what this backend cannot do, before anything is loaded.

    Raises:
        ConfigError: says what to choose instead.
    """
    if not options.device.startswith("cuda"):
        raise ConfigError(f"backend 'tensorrt' needs an NVIDIA GPU, not device '{options.device}'")
    if not options.enable_kv_cache:
        raise ConfigError("backend 'tensorrt' always keeps the prefix's keys and values; leave the cache on")
    if not set(options.camera_counts) <= set(range(1, len(CAMERA_SLOTS) + 1)):
        raise ConfigError(f"camera counts must lie in 1..{len(CAMERA_SLOTS)}, not {options.camera_counts}")


def choose_plans(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    options: BackendOptions,
    arithmetic: ComponentArithmetic,
) -> PlanProvider:
    """Prebuilt engines where a folder is named, else the cache, only read where nothing can be built.

    Raises:
        ConfigError: for a folder that is not there.
    """
    if options.engine_dir is not None:
        return PrebuiltPlans(EngineFolder(pathlib.Path(options.engine_dir).expanduser()), _digest(weights))
    cache = engine_cache(cache_directory())
    # Here and not above: a robot's computer with prebuilt engines has neither torch nor onnx.
    try:
        from vlad_engines.backends.tensorrt.checkpoint_graphs import CheckpointGraphs
        from vlad_engines.float8.calibrator import Calibrator, calibration_device
    except ModuleNotFoundError as error:
        why = (
            f"\nbuilding engines needs the package '{error.name}': install it, or name a folder of prebuilt "
            "ones with --engine-dir"
        )
        if not cache.folder.is_dir():
            raise ConfigError(f"there are no engines in {cache.folder}{why}") from error
        return PrebuiltPlans(EngineFolder(cache.folder), _digest(weights), why)
    form, calibrator = arithmetic.form(options.num_steps, "step", options.pruning), None
    if form.prefix_float8:
        calibrator = Calibrator(config, weights, options.calibration, calibration_device(options.device))
    graphs = CheckpointGraphs(config, weights, form, cache.folder, calibrator)
    return BuiltPlans(cache, graphs, BuildSettings())


def _digest(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Of the weights that engines must hold; None where there are none at hand."""
    if isinstance(weights, CheckpointWeights):
        return weights.digest()
    return weights_digest(weights) if weights else None


def empty_request(config: ModelConfig, key: ShapeKey) -> ModelInputs:
    size = config.siglip.image_size
    return ModelInputs(
        cameras=CAMERA_SLOTS[: key.cameras],
        images=np.zeros((key.cameras, size, size, 3), np.uint8),
        tokens=np.zeros(key.prompt, np.int64),
        token_mask=np.ones(key.prompt, np.bool_),
        state=np.zeros(config.action_dim),
        robot_state=np.zeros(config.action_dim),
    )


def _widen(content: HostArray, dtype: Dtype) -> Array:
    """Bytes of a float dtype as float32. For inspection: on its way to actions nothing is converted."""
    if dtype == "bfloat16":
        widened: Array = (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return widened
    kind = np.float16 if dtype == "float16" else np.float32
    return content.view(kind).astype(np.float32)


def say_nothing(stage: str, fraction: float) -> None:
    """A request has nobody to tell."""
