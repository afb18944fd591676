"""Works a plan off, one backend at a time, so that each has the device to itself."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vlad_configs.models import ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.choice import BackendChoice
from vlad_engines.backends.registry import create_backend
from vlad_engines.bench.case import RequestShape, model_inputs
from vlad_engines.bench.device import device_name, memory_in_use_by_all_gib, memory_in_use_gib
from vlad_engines.bench.engine_mode import measure_engine, repeat, runs_batch
from vlad_engines.bench.loopback import measure_loopback, running_daemon
from vlad_engines.bench.plan import Mode, Plan
from vlad_engines.bench.requests import observation_of
from vlad_engines.bench.roofline import device_peaks, floor
from vlad_engines.bench.row import STAGES, BenchRow, Samples, measured
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint, open_policy_checkpoint
from vlad_engines.checkpoint.random_checkpoint import RANDOM_PREFIX
from vlad_engines.fidelity.verify import make_processor
from vlad_engines.unified_policy import UnifiedPolicy


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one case gave, and on what."""

    mode: str
    choice: BackendChoice
    model_name: str
    model: ModelConfig
    shape: RequestShape
    batch: int
    pruning: TokenPruning | None
    samples: Samples
    memory_gib: float | None
    start_s: float


Measure = Callable[[Plan, str, PolicyCheckpoint, BackendChoice, TokenPruning | None], Iterator[Measurement]]


def run_plan(plan: Plan, *, command: str, commit: str) -> Iterator[BenchRow]:
    """Measure every combination, modes outermost and batches innermost.

    Combinations that a backend does not offer, such as batches, are left out with a printed word.

    Raises:
        VladError: where a backend cannot be made or fails.
    """
    for mode in plan.modes:
        measure = _MODES[mode]
        for name in plan.checkpoints:
            checkpoint = open_policy_checkpoint(name, environment=plan.environment)
            for choice, pruning in itertools.product(plan.backends, plan.prunings):
                for measurement in measure(plan, name, checkpoint, choice, pruning):
                    yield _row(plan, measurement, command, commit)
                gc.collect()


def _engine(
    plan: Plan,
    name: str,
    checkpoint: PolicyCheckpoint,
    choice: BackendChoice,
    pruning: TokenPruning | None,
) -> Iterator[Measurement]:
    model = checkpoint.contract.model
    if plan.chunk is not None:
        model = dataclasses.replace(model, action_horizon=plan.chunk)
    started = time.perf_counter()
    options = BackendOptions(
        plan.steps,
        choice.precision,
        plan.device,
        camera_counts=(plan.shape.cameras,),
        batch_sizes=plan.batches,
        calibration=[model_inputs(model, plan.shape, seed) for seed in range(4)],
        pruning=pruning,
    )
    backend = create_backend(choice.name, model, open_weights(checkpoint, plan.device), options)
    try:
        backend.warm_up(_no_report)
        start_s = time.perf_counter() - started
        for batch in plan.batches:
            if not runs_batch(backend, batch):
                print(f"# {choice.name} runs no batches; {batch} is left out")  # noqa: T201
                continue
            samples = measure_engine(
                backend,
                model,
                plan.shape,
                batch=batch,
                warm_up=plan.warm_up,
                repetitions=plan.repetitions,
            )
            memory = memory_in_use_gib(plan.device)
            yield Measurement(
                "engine", choice, _short(name), model, plan.shape, batch, pruning, samples, memory, start_s
            )
    finally:
        backend.close()


def _policy(
    plan: Plan,
    name: str,
    checkpoint: PolicyCheckpoint,
    choice: BackendChoice,
    pruning: TokenPruning | None,
) -> Iterator[Measurement]:
    observation, shape = _observation(plan, checkpoint)
    started = time.perf_counter()
    policy = UnifiedPolicy(
        name,
        choice.name,
        plan.steps,
        env=plan.environment,
        precision=choice.precision,
        device=plan.device,
        token_pruning=None if pruning is None else pruning.to_json(),
    )
    try:
        policy.warm_up()
        start_s = time.perf_counter() - started

        def run() -> dict[str, float]:
            timing = policy.infer(observation)["policy_timing"]
            return {stage: timing[f"{stage}_ms"] / 1e3 for stage in STAGES}

        samples = repeat(run, requests_per_run=1, warm_up=plan.warm_up, repetitions=plan.repetitions)
        memory = memory_in_use_gib(plan.device)
        model = checkpoint.contract.model
        yield Measurement("policy", choice, _short(name), model, shape, 1, pruning, samples, memory, start_s)
    finally:
        policy.close()


def _loopback(
    plan: Plan,
    name: str,
    checkpoint: PolicyCheckpoint,
    choice: BackendChoice,
    pruning: TokenPruning | None,
) -> Iterator[Measurement]:
    observation, shape = _observation(plan, checkpoint)
    options = {
        "--env": plan.environment,
        "--checkpoint": name,
        "--backend": choice.name,
        "--precision": choice.precision,
        "--device": plan.device,
        "--num-steps": str(plan.steps),
    }
    if pruning is not None:
        options["--keep-tokens"] = str(pruning.keep_tokens)
        options["--pruning-mode"] = pruning.mode
        options["--pruning-positions"] = pruning.positions
    with running_daemon([part for option in options.items() for part in option]) as (port, start_s):
        samples = measure_loopback(port, observation, warm_up=plan.warm_up, repetitions=plan.repetitions)
        memory = memory_in_use_by_all_gib(plan.device)
    model = checkpoint.contract.model
    yield Measurement("loopback", choice, _short(name), model, shape, 1, pruning, samples, memory, start_s)


_MODES: Mapping[Mode, Measure] = {"engine": _engine, "policy": _policy, "loopback": _loopback}


def _observation(plan: Plan, checkpoint: PolicyCheckpoint) -> tuple[dict[str, Any], RequestShape]:
    return observation_of(
        make_processor(checkpoint), checkpoint.contract.environment, plan.shape.prompt_tokens
    )


def _row(plan: Plan, measurement: Measurement, command: str, commit: str) -> BenchRow:
    gpu, model, choice = device_name(plan.device), measurement.model, measurement.choice
    peaks = device_peaks(gpu)
    least = None
    if peaks is not None:
        least = floor(
            model,
            measurement.shape,
            steps=plan.steps,
            batch=measurement.batch,
            precision=choice.precision,
            peaks=peaks,
            pruning=measurement.pruning,
        ).to_ms()
    return BenchRow(
        gpu=gpu,
        mode=measurement.mode,
        model=measurement.model_name,
        cameras=measurement.shape.cameras,
        prompt_tokens=measurement.shape.prompt_tokens,
        chunk=model.action_horizon,
        steps=plan.steps,
        batch=measurement.batch,
        backend=choice.name,
        precision=choice.precision,
        **measured(measurement.samples),
        memory_gib=measurement.memory_gib,
        start_s=round(measurement.start_s, 2),
        commit=commit,
        command=command,
        floor_ms=least,
        pruning=None if measurement.pruning is None else measurement.pruning.to_json(),
    )


def _short(checkpoint: str) -> str:
    return checkpoint.removeprefix(RANDOM_PREFIX).rstrip("/").rpartition("/")[2]


def _no_report(stage: str, fraction: float) -> None:
    """The figures are the report."""
