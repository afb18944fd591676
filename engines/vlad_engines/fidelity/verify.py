"""From a checkpoint to fidelity reports: one reference, any number of backends against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlad_configs.fidelity import fidelity_thresholds
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.choice import BackendChoice
from vlad_engines.backends.registry import create_backend
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint, open_policy_checkpoint
from vlad_engines.fidelity.check import check_backend
from vlad_engines.fidelity.observations import (
    calibration_inputs,
    fitting_observations,
    make_cases,
    recorded_observations,
)
from vlad_engines.fidelity.reference import compute_reference
from vlad_engines.fidelity.report import FidelityReport
from vlad_engines.processing.processor import Processor
from vlad_engines.processing.tokenizer import SentencePieceTokenizer


def verify_checkpoint(
    checkpoint: str,
    candidates: Sequence[BackendChoice],
    *,
    environment: str,
    device: str,
    num_steps: int | None = None,
    batch_sizes: tuple[int, ...] = (1,),
    observations: int | str | None = None,
    config: str | None = None,
    tokenizer: str | None = None,
    norm_stats: str | None = None,
) -> Iterator[FidelityReport]:
    """Compare each candidate with the float32 reference; nothing of one is left when the next is made.

    Args:
        checkpoint: directory, `demo`, or `random:` and a size.
        environment: robot, a name of `ENVIRONMENTS`.
        num_steps: Euler steps; None for the checkpoint's own.
        batch_sizes: sizes to check with backends that run batches.
        observations: a recording or npz file, or how many to draw; None for the usual set.

    Raises:
        VladError: for whatever cannot be loaded, made or run.
    """
    for candidate in candidates:
        fidelity_thresholds(candidate.precision)
    opened = open_policy_checkpoint(
        checkpoint, environment=environment, config=config, tokenizer=tokenizer, norm_stats=norm_stats
    )
    contract = opened.contract
    processor = make_processor(opened)
    if isinstance(observations, str):
        requests = recorded_observations(observations, contract.environment)
    elif observations is not None:
        requests = fitting_observations(processor, contract, observations)
    else:
        requests = fitting_observations(processor, contract)
    cases = make_cases(processor, contract.model, requests)
    steps = contract.num_denoising_steps if num_steps is None else num_steps
    weights = open_weights(opened, device)
    reference = compute_reference(contract.model, weights, cases, steps, device)
    calibration = calibration_inputs(processor, contract)
    camera_counts = tuple(sorted({len(case.inputs.cameras) for case in cases}))
    for candidate in candidates:
        options = BackendOptions(
            steps,
            candidate.precision,
            device,
            camera_counts=camera_counts,
            batch_sizes=batch_sizes,
            image_dtype=contract.image_dtype,
            calibration=calibration,
        )
        backend = create_backend(candidate.name, contract.model, weights, options)
        try:
            backend.warm_up(_no_report)
            yield check_backend(
                backend,
                reference,
                name=candidate.name,
                precision=candidate.precision,
                batch_sizes=batch_sizes,
            )
        finally:
            backend.close()


def make_processor(checkpoint: PolicyCheckpoint) -> Processor:
    """The processing that serves this checkpoint."""
    contract = checkpoint.contract
    return Processor(
        contract,
        checkpoint.norm_stats,
        SentencePieceTokenizer(checkpoint.tokenizer, contract.model.vocab_size),
    )


def _no_report(stage: str, fraction: float) -> None:
    """The report is the result."""
