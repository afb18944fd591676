"""A policy in one object: checkpoint, processing and backend behind `infer(observation)`."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from vlad_configs.contract import Contract
from vlad_configs.errors import ConfigError
from vlad_configs.precision import parse_precision
from vlad_configs.pruning import TokenPruning
from vlad_configs.rtc import ChunkContinuation
from vlad_engines.backends.base import BackendOptions, InferenceResult, Precision
from vlad_engines.backends.capabilities import (
    Batched,
    Counted,
    FromEngineFiles,
    Guided,
    Overlapped,
    Queued,
)
from vlad_engines.backends.registry import check_backend, create_backend, usual_device, usual_precision
from vlad_engines.begun_batch import BegunBatch
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint, open_policy_checkpoint
from vlad_engines.device_memory import device_memory
from vlad_engines.fidelity.cache import FidelityCache
from vlad_engines.fidelity.gate import LoadedPolicy, admit
from vlad_engines.fidelity.observations import calibration_inputs
from vlad_engines.model.euler import euler_schedule
from vlad_engines.overlap.meter import OverlapReport
from vlad_engines.pending_chunk import PendingChunk, PreparedRequest, computed_now
from vlad_engines.policy_metadata import describe_policy
from vlad_engines.processing.continuation import ContinuationPlanner
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.processing.noise import NoiseSource
from vlad_engines.processing.processor import Processor
from vlad_engines.processing.tokenizer import SentencePieceTokenizer
from vlad_engines.worker_protocol import ComponentEngine, DeviceMemory

logger = logging.getLogger("vlad.policy")

ReportProgress = Callable[[str, float], None]


class UnifiedPolicy:
    """One checkpoint, ready to turn observations into action chunks. Works offline.

    Not thread-safe: all calls come from one thread, but for those of `prepare`.

    Args:
        checkpoint_dir: openpi PyTorch or LeRobot directory, told apart by content; `demo`; or `random:pi05`
            and its kin, which have random weights and no files.
        backend: a name of `vlad_engines.backends.registry`.
        num_denoising_steps: Euler steps; None for the checkpoint's own number.
        enable_kv_cache: False computes the prefix again in every step, with the same result.
        env: robot, a name of `ENVIRONMENTS`; None for that of `config`, or else LIBERO.
        config: openpi configuration name; None for the checkpoint's or the robot's default.
        precision: `fp32`, `tf32`, `bf16`, `fp8`, or one for each component, as far as the backend has it;
            None for bf16 on a GPU and fp32 on a CPU.
        engine_dir: folder of prebuilt TensorRT engines, which is only read; None to build what is missing.
        calibration: recording or npz file of observations from which `fp8` learns; None for drawn ones.
        device: torch device; None for the first GPU, or else the CPU.
        tokenizer: SentencePiece file; None to look beside the checkpoint and in `OPENPI_DATA_HOME`.
        norm_stats: `norm_stats.json`; None for the checkpoint's own.
        default_prompt: for observations without one.
        batch_sizes: how many observations `infer_batch` shall take, for backends that compute batches.
        token_pruning: fields of `vlad_configs.pruning.TokenPruning`; None keeps all image tokens.
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
        engine_dir: str | None = None,
        calibration: str | None = None,
        device: str | None = None,
        tokenizer: str | None = None,
        norm_stats: str | None = None,
        default_prompt: str | None = None,
        batch_sizes: Sequence[int] = (1,),
        token_pruning: Mapping[str, Any] | None = None,
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
        if calibration is not None and engine_dir is not None:
            raise ConfigError("engines in engine_dir are calibrated already: leave calibration out")
        is_fp8 = precision is not None and "fp8" in parse_precision(precision).values()
        needs_calibration = is_fp8 and engine_dir is None
        self._options = _backend_options(
            checkpoint,
            backend,
            num_denoising_steps,
            enable_kv_cache,
            precision,
            device,
            batch_sizes,
            engine_dir,
            calibration_inputs(self._processor, self._contract, calibration) if needs_calibration else (),
            None if token_pruning is None else TokenPruning.from_json(token_pruning),
        )
        report("loading the weights", 0.1)
        weights = open_weights(checkpoint, self._options.device)
        self._backend = create_backend(backend, checkpoint.contract.model, weights, self._options)
        if self.batch_sizes != self._options.batch_sizes:
            self._backend.close()
            raise ConfigError(
                f"backend '{backend}' computes one request at a time: batch_sizes must be (1,), "
                f"not {self._options.batch_sizes}"
            )
        self._loaded = LoadedPolicy(
            checkpoint, self._processor, weights, self._backend, backend, self._options
        )
        model = self._contract.model
        self._planner = ContinuationPlanner(
            self._processor,
            times=euler_schedule(self._options.num_steps).times,
            horizon=model.action_horizon,
            action_dim=model.action_dim,
            action_width=self._contract.environment.action_width,
            modes=self._backend.guidance_modes if isinstance(self._backend, Guided) else (),
            trained_max_delay=self._contract.trained_max_delay,
        )
        self._metadata = describe_policy(
            checkpoint,
            backend=backend,
            options=self._options,
            components=self._backend.describe(),
            default_prompt=self._processor.default_prompt,
            batch_sizes=self.batch_sizes,
            rtc=self._planner.capabilities(),
        )
        self._noise_source = NoiseSource(model.action_horizon, model.action_dim)
        report("loaded", 1.0)

    @property
    def contract(self) -> Contract:
        """What checkpoint and robot agree on, with the source of every value."""
        return self._contract

    @property
    def metadata(self) -> dict[str, Any]:
        """For clients: what runs here and what it expects. Plain JSON and msgpack types."""
        metadata = dict(self._metadata)
        if isinstance(self._backend, Counted):
            calls = self._backend.calls
            components = metadata["components"].items()
            metadata["components"] = {name: {**part, "calls": calls[name]} for name, part in components}
        return metadata

    def infer(
        self,
        observation: Mapping[str, Any],
        *,
        noise: npt.ArrayLike | None = None,
        seed: int | None = None,
        chunk_continuation: ChunkContinuation | None = None,
    ) -> dict[str, Any]:
        """Compute the action chunk for one observation.

        Args:
            observation: the robot's keys, openpi's; never written to.
            noise: where the flow starts, `[H, action_dim]` or `[1, H, action_dim]`, taken as float32.
            seed: draws the noise reproducibly; the same seed gives the same chunk, bit by bit.
            chunk_continuation: what is left of the chunk that the robot executes meanwhile.

        Returns:
            `actions` float64 `[H, action width]`; `policy_timing`, milliseconds per stage. For the next
            continuation: `model_actions` float32 `[H, action_dim]`, the chunk in the model's space, and
            `anchor_state` float64 `[state width]`, the robot's state that belongs to it. With a
            continuation also `rtc`: `mode`, `delay`, `prefix_end`, `beta`, `schedule`, `valid_from`
            (the first action meant to be executed) and `note`, which says why it is not what was asked for.
            `notes` of the `ModelInputs` where there are any.

        Raises:
            ObservationError: for an observation, noise, seed or continuation that does not fit.
            EngineError: where the engine failed, or returned non-finite actions.
        """
        pending = self.start(observation, noise=noise, seed=seed, chunk_continuation=chunk_continuation)
        return pending.result()

    def start(
        self,
        observation: Mapping[str, Any],
        *,
        noise: npt.ArrayLike | None = None,
        seed: int | None = None,
        chunk_continuation: ChunkContinuation | None = None,
    ) -> PendingChunk:
        """Hand one observation over; the chunk is `infer`'s, to be had from `PendingChunk.result`.

        A `_pipelined` backend returns while the device still works, so that the next observation can be
        handed over, and waits only where it has no place left. The others return when they are done.
        Always called from one thread; results may be waited for in others.

        Args:
            observation, noise, seed, chunk_continuation: as for `infer`.

        Raises:
            ObservationError: for an observation, noise, seed or continuation that does not fit.
            EngineError: where an overlapped backend cannot take the request. What fails later is raised
                by `PendingChunk.result`.
        """
        request = self._prepare(observation, noise, seed, chunk_continuation)
        backend, handed_over = self._backend, time.perf_counter()
        if isinstance(backend, Overlapped):
            computing = backend.start(request.inputs, request.noise)
        else:
            computing = computed_now(lambda: backend.infer(request.inputs, request.noise))
        return PendingChunk(request, computing, self._processor, handed_over)

    def infer_batch(
        self,
        observations: Sequence[Mapping[str, Any]],
        *,
        noise: Sequence[npt.ArrayLike | None] | None = None,
        seeds: Sequence[int | None] | None = None,
        chunk_continuations: Sequence[ChunkContinuation | None] | None = None,
    ) -> list[dict[str, Any]]:
        """Compute the chunks of several observations together, as many as one of `batch_sizes`.

        Args:
            observations: with the same cameras each.
            noise, seeds, chunk_continuations: for each observation, as for `infer`; None for none at all.

        Returns:
            What `infer` would return for each. Stage times are those of the whole batch.

        Raises:
            ConfigError: for a number of observations that is none of `batch_sizes`.
            ObservationError: for the first one that does not fit.
            EngineError: where the engine failed, or returned non-finite actions.
        """
        nothing = [None] * len(observations)
        rows = zip(
            observations, noise or nothing, seeds or nothing, chunk_continuations or nothing, strict=True
        )
        self._check_count(len(observations))
        batch = self.begin([self._prepare(*row) for row in rows])
        batch.wait()
        return [batch.reply(index) for index in range(len(observations))]

    def prepare(
        self,
        observation: Mapping[str, Any],
        *,
        noise: npt.ArrayLike | None = None,
        seed: int | None = None,
        chunk_continuation: ChunkContinuation | None = None,
    ) -> PreparedRequest:
        """What needs no device, for `begin`. May run in another thread than the rest, one at a time.

        Args:
            observation, noise, seed, chunk_continuation: as for `infer`; the images may still be read until
                the chunk is computed.

        Raises:
            ObservationError: for an observation, noise, seed or continuation that does not fit.
        """
        return self._prepare(observation, noise, seed, chunk_continuation)

    def begin(self, requests: Sequence[PreparedRequest]) -> BegunBatch:
        """Begin the chunks of prepared observations together, as many as one of `batch_sizes`.

        Wait for what was begun before, unless the backend overlaps. Backends that cannot begin without
        waiting compute while they are waited for.

        Raises:
            ConfigError: for a number of observations that is none of `batch_sizes`.
            EngineError: where the requests do not fit the model or each other.
        """
        self._check_count(len(requests))
        backend, handed_over = self._backend, time.perf_counter()
        inputs, starts = [request.inputs for request in requests], [request.noise for request in requests]
        if isinstance(backend, Queued):
            computing = backend.begin_batch(inputs, starts)
            return BegunBatch(requests, computing, self._processor, handed_over)

        def compute() -> list[InferenceResult]:
            if len(requests) == 1:
                return [backend.infer(inputs[0], starts[0])]
            assert isinstance(backend, Batched)
            return backend.infer_batch(inputs, starts)

        return BegunBatch(requests, compute, self._processor, None)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """How many observations `infer_batch` takes, ascending."""
        return self._options.batch_sizes if isinstance(self._backend, Batched) else (1,)

    @property
    def overlap(self) -> OverlapReport | None:
        """What requests in flight computed side by side so far; None for a sequential backend."""
        return self._backend.overlap if isinstance(self._backend, Overlapped) else None

    @property
    def engine_files(self) -> Mapping[str, ComponentEngine]:
        """By component, after `warm_up`; empty for backends without engine files."""
        return self._backend.engine_files if isinstance(self._backend, FromEngineFiles) else {}

    def device_memory(self) -> DeviceMemory | None:
        """The memory of the device now; None on a CPU. Called by the thread that calls everything else."""
        return device_memory(self._options.device, self._backend)

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

    def _check_count(self, count: int) -> None:
        if count not in self.batch_sizes:
            raise ConfigError(f"{count} observations at once; this policy takes {list(self.batch_sizes)}")

    def _prepare(
        self,
        observation: Mapping[str, Any],
        noise: npt.ArrayLike | None,
        seed: int | None,
        continuation: ChunkContinuation | None,
    ) -> PreparedRequest:
        start = time.perf_counter()
        inputs, plan = self._processor.prepare(observation), None
        if continuation is not None:
            plan = self._planner.plan(continuation, inputs)
            inputs = dataclasses.replace(inputs, guidance=plan.guidance)
        return PreparedRequest(
            inputs=inputs,
            noise=self._noise_source.draw(noise, seed),
            anchor_state=self._processor.robot_state(observation),
            plan=plan,
            preprocess_s=time.perf_counter() - start,
        )


def _backend_options(
    checkpoint: PolicyCheckpoint,
    backend: str,
    num_denoising_steps: int | None,
    enable_kv_cache: bool,
    precision: Precision | None,
    device: str | None,
    batch_sizes: Sequence[int],
    engine_dir: str | None,
    calibration: Sequence[ModelInputs],
    pruning: TokenPruning | None,
) -> BackendOptions:
    steps = checkpoint.contract.num_denoising_steps if num_denoising_steps is None else num_denoising_steps
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise ConfigError(f"num_denoising_steps must be an integer, not {steps!r}")
    sizes = tuple(sorted(set(batch_sizes)))
    if sizes[:1] != (1,):
        raise ConfigError(f"batch_sizes must be 1 or more, with 1 among them, not {list(batch_sizes)}")
    if device is None:
        device = usual_device(backend)
    if precision is None:
        precision = usual_precision(backend, device)
    cameras = [camera for camera in checkpoint.contract.environment.cameras if camera.slot is not None]
    required = sum(camera.required for camera in cameras)
    return BackendOptions(
        num_steps=steps,
        precision=precision,
        device=device,
        enable_kv_cache=enable_kv_cache,
        camera_counts=tuple(range(required, len(cameras) + 1)),
        batch_sizes=sizes,
        image_dtype=checkpoint.contract.image_dtype,
        engine_dir=engine_dir,
        calibration=calibration,
        pruning=pruning,
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
