"""A policy in one object: checkpoint, processing and backend behind `infer(observation)`."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vlad_configs.contract import Contract
from vlad_configs.errors import ConfigError, ObservationError
from vlad_engines.backends.base import BackendOptions, InferenceResult, Precision
from vlad_engines.backends.registry import check_backend, create_backend
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint, open_policy_checkpoint
from vlad_engines.fidelity.cache import FidelityCache
from vlad_engines.fidelity.gate import LoadedPolicy, admit
from vlad_engines.policy_metadata import describe_policy
from vlad_engines.processing.processor import Processor
from vlad_engines.processing.tokenizer import SentencePieceTokenizer

logger = logging.getLogger("vlad.policy")

ReportProgress = Callable[[str, float], None]

_STAGES = ("vision", "prefix", "denoise")


class UnifiedPolicy:
    """One checkpoint, ready to turn observations into action chunks. Works offline.

    Not thread-safe: one `infer` at a time.

    Args:
        checkpoint_dir: openpi PyTorch or LeRobot directory, told apart by content; `demo`; or `random:pi05`
            and its kin, which have random weights and no files.
        backend: a name of `vlad_engines.backends.registry`.
        num_denoising_steps: Euler steps; None for the checkpoint's own number.
        enable_kv_cache: False computes the prefix again in every step, with the same result.
        env: robot, a name of `ENVIRONMENTS`; None for that of `config`, or else LIBERO.
        config: openpi configuration name; None for the checkpoint's or the robot's default.
        precision: `fp32` or `bf16`; None for bf16 on a GPU and fp32 on a CPU.
        device: torch device; None for the first GPU, or else the CPU.
        tokenizer: SentencePiece file; None to look beside the checkpoint and in `OPENPI_DATA_HOME`.
        norm_stats: `norm_stats.json`; None for the checkpoint's own.
        default_prompt: for observations without one.
        progress: told the stage of loading and how far it is, 0..1.

    Raises:
        TypeError: for an unknown option.
        ConfigError: for options that cannot work.
        CheckpointError: for a checkpoint that cannot be loaded as asked.
    """

    def __init__(
        self,
        checkpoint_dir: str,
        backend: str = "pytorch",
        num_denoising_steps: int | None = None,
        enable_kv_cache: bool = True,
        *,
        env: str | None = None,
        config: str | None = None,
        precision: Precision | None = None,
        device: str | None = None,
        tokenizer: str | None = None,
        norm_stats: str | None = None,
        default_prompt: str | None = None,
        progress: ReportProgress | None = None,
        **unknown: Any,
    ) -> None:
        _refuse_unknown(unknown)
        check_backend(backend)
        report = progress or _no_report
        report("reading the checkpoint", 0.0)
        checkpoint = open_policy_checkpoint(
            checkpoint_dir, environment=env, config=config, norm_stats=norm_stats, tokenizer=tokenizer
        )
        for warning in checkpoint.warnings:
            logger.warning("%s: %s", checkpoint.files.path, warning)
        self._contract = checkpoint.contract
        self._processor = Processor(
            checkpoint.contract,
            checkpoint.norm_stats,
            SentencePieceTokenizer(checkpoint.tokenizer, checkpoint.contract.model.vocab_size),
            default_prompt,
        )
        self._options = _backend_options(checkpoint, num_denoising_steps, enable_kv_cache, precision, device)
        report("loading the weights", 0.1)
        weights = open_weights(checkpoint, self._options.device)
        self._backend = create_backend(backend, checkpoint.contract.model, weights, self._options)
        self._loaded = LoadedPolicy(
            checkpoint, self._processor, weights, self._backend, backend, self._options
        )
        self._metadata = describe_policy(
            checkpoint,
            backend=backend,
            options=self._options,
            components=self._backend.describe(),
            default_prompt=self._processor.default_prompt,
        )
        self._noise_source = np.random.Generator(np.random.PCG64())
        report("loaded", 1.0)

    @property
    def contract(self) -> Contract:
        """What checkpoint and robot agree on, with the source of every value."""
        return self._contract

    @property
    def metadata(self) -> dict[str, Any]:
        """For clients: what runs here and what it expects. Plain JSON and msgpack types."""
        return dict(self._metadata)

    def infer(
        self,
        observation: Mapping[str, Any],
        *,
        noise: npt.ArrayLike | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Compute the action chunk for one observation.

        Args:
            observation: the robot's keys, openpi's; never written to.
            noise: where the flow starts, `[H, action_dim]` or `[1, H, action_dim]`, taken as float32.
            seed: draws the noise reproducibly; the same seed gives the same chunk, bit by bit.

        Returns:
            `actions` float64 `[H, action width]`; `policy_timing`, milliseconds per stage.

        Raises:
            ObservationError: for an observation, noise or seed that does not fit.
            EngineError: where the engine failed, or returned non-finite actions.
        """
        start = time.perf_counter()
        inputs = self._processor.prepare(observation)
        initial = self._noise(noise, seed)
        prepared = time.perf_counter()
        result = self._backend.infer(inputs, initial)
        computed = time.perf_counter()
        actions = self._processor.finish(result.actions, inputs)
        finished = time.perf_counter()
        return {
            "actions": actions,
            "policy_timing": {
                "infer_ms": (computed - prepared) * 1e3,
                "preprocess_ms": (prepared - start) * 1e3,
                **_stage_timing(result),
                "postprocess_ms": (finished - computed) * 1e3,
            },
        }

    def warm_up(self, progress: ReportProgress | None = None) -> None:
        """Do once what would make the first request slow."""
        self._backend.warm_up(progress or _no_report)

    def verify_fidelity(
        self, *, allow_low_fidelity: bool = False, progress: ReportProgress | None = None
    ) -> None:
        """Hold the backend against float32 before anything is served; `metadata` then has `fidelity`.

        Costs seconds, and 13 GB of the device for a full-size network, where it was not done before.

        Args:
            allow_low_fidelity: warn instead of refusing.

        Raises:
            ConfigError: for a backend below the thresholds of its precision.
            EngineError: where reference or backend cannot be run.
        """
        self._metadata["fidelity"] = admit(
            self._loaded,
            allow_low_fidelity=allow_low_fidelity,
            progress=progress or _no_report,
            cache=FidelityCache(),
        )

    def close(self) -> None:
        """Give weights and buffers back; the policy cannot be used afterwards."""
        self._backend.close()

    def _noise(self, noise: npt.ArrayLike | None, seed: int | None) -> npt.NDArray[np.float32]:
        shape = (self._contract.model.action_horizon, self._contract.model.action_dim)
        if noise is not None:
            if seed is not None:
                raise ObservationError("vlad/seed", "either a seed or noise", "both")
            return _given_noise(noise, shape)
        source = self._noise_source if seed is None else np.random.Generator(np.random.PCG64(_seed(seed)))
        return source.standard_normal(shape, dtype=np.float32)


def _seed(seed: Any) -> int:
    number = seed.item() if isinstance(seed, np.ndarray | np.generic) and np.size(seed) == 1 else seed
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ObservationError("vlad/seed", "an integer of 0 or more", f"{type(seed).__name__} {seed!r:.64}")
    return number


def _given_noise(noise: npt.ArrayLike, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    expected = f"finite float32 of shape {list(shape)} or {[1, *shape]}"
    try:
        array = np.asarray(noise)
    except ValueError:
        raise ObservationError("vlad/noise", expected, "a ragged list") from None
    if array.dtype.kind != "f" or array.shape not in (shape, (1, *shape)):
        raise ObservationError("vlad/noise", expected, f"{array.dtype} of shape {list(array.shape)}")
    with np.errstate(over="ignore"):
        values = array.reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise ObservationError("vlad/noise", expected, "non-finite numbers")
    return values


def _stage_timing(result: InferenceResult) -> dict[str, float]:
    return {f"{stage}_ms": float(result.stage_seconds[stage]) * 1e3 for stage in _STAGES}


def _backend_options(
    checkpoint: PolicyCheckpoint,
    num_denoising_steps: int | None,
    enable_kv_cache: bool,
    precision: Precision | None,
    device: str | None,
) -> BackendOptions:
    steps = checkpoint.contract.num_denoising_steps if num_denoising_steps is None else num_denoising_steps
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise ConfigError(f"num_denoising_steps must be an integer, not {steps!r}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision is None:
        precision = "bf16" if device.startswith("cuda") else "fp32"
    cameras = [camera for camera in checkpoint.contract.environment.cameras if camera.slot is not None]
    required = sum(camera.required for camera in cameras)
    return BackendOptions(
        num_steps=steps,
        precision=precision,
        device=device,
        enable_kv_cache=enable_kv_cache,
        camera_counts=tuple(range(required, len(cameras) + 1)),
    )


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    if not options:
        return
    known = [
        name
        for name, parameter in inspect.signature(UnifiedPolicy).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    raise TypeError(
        f"unknown option{'s' if len(options) > 1 else ''} {', '.join(map(repr, options))}; "
        f"known: {', '.join(known)}"
    )


def _no_report(stage: str, fraction: float) -> None:
    """Nobody asked."""
