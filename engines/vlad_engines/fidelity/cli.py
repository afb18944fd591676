"""The command `verify_policy`."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import sys

import torch
import tyro

from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError, VladError
from vlad_engines.backends.choice import parse_batches, parse_choices
from vlad_engines.checkpoint.random_checkpoint import RANDOM_PREFIX
from vlad_engines.fidelity.report import FidelityReport
from vlad_engines.fidelity.verify import verify_checkpoint


@dataclasses.dataclass(frozen=True)
class Args:
    """Hold a backend against the float32 reference: image tokens, keys, values, velocities, actions.

    Ends with exit code 1 where a threshold is missed.
    """

    checkpoint: str | None = None
    """Checkpoint directory, or `demo`."""
    random_weights: str | None = None
    """Network with random weights instead: pi05, pi0, pi05_dummy or pi0_dummy."""
    env: str = "LIBERO"
    """Robot whose observations are used."""
    backend: str = "pytorch"
    """Backends, several with commas; NAME:PRECISION overrides --precision. Ratios are to the first."""
    precision: str | None = None
    """fp32, bf16 or fp8; bf16 on a GPU and fp32 on a CPU where not given."""
    device: str | None = None
    """Torch device; the first GPU, or else the CPU, where not given."""
    num_steps: int | None = None
    """Denoising steps; the checkpoint's own number where not given."""
    batch: str = "1"
    """Batch sizes to check too, several with commas, for backends that run batches."""
    observations: str | None = None
    """Recording (mcap) or npz file of observations, or how many to draw; 4 drawn ones where not given."""
    config: str | None = None
    """openpi configuration name, where the checkpoint needs one."""
    tokenizer: str | None = None
    """SentencePiece model; looked for beside the checkpoint where not given."""
    norm_stats: str | None = None
    """norm_stats.json; looked for in the checkpoint where not given."""
    json: pathlib.Path | None = None
    """Where to write the reports as JSON."""


def run(args: Args) -> list[FidelityReport]:
    """Check every backend that was named, and print each report as it comes.

    Raises:
        VladError: for arguments that cannot work, and where a backend fails.
    """
    if (args.random_weights is None) == (args.checkpoint is None):
        raise ConfigError("name either --checkpoint or --random-weights")
    if args.env not in ENVIRONMENTS:
        raise ConfigError(f"unknown environment '{args.env}'; known: {', '.join(sorted(ENVIRONMENTS))}")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = args.precision or ("bf16" if device.startswith("cuda") else "fp32")
    candidates = parse_choices(args.backend, precision)
    observations: int | str | None = args.observations
    if args.observations is not None and args.observations.isdecimal():
        observations = int(args.observations)
        if not observations:
            raise ConfigError("--observations must be at least 1")
    reports: list[FidelityReport] = []
    for report in verify_checkpoint(
        args.checkpoint or f"{RANDOM_PREFIX}{args.random_weights}",
        candidates,
        environment=args.env,
        device=device,
        num_steps=args.num_steps,
        batch_sizes=parse_batches(args.batch),
        observations=observations,
        config=args.config,
        tokenizer=args.tokenizer,
        norm_stats=args.norm_stats,
    ):
        print(report.table(), end="\n\n", flush=True)  # noqa: T201
        reports.append(report)
    if len(reports) > 1:
        print(comparison(reports))  # noqa: T201
    return reports


def comparison(reports: list[FidelityReport]) -> str:
    """Normalised action errors side by side, as multiples of the first report's."""
    base = reports[0].final
    lines = [f"{'normalised action error':<24}{'p50':>11}{'p99':>11}{'max':>11}{'p99 ratio':>11}"]
    for report in reports:
        final = report.final
        ratio = final.p99 / base.p99 if base.p99 else float("nan")
        lines.append(
            f"{report.backend + ' ' + report.precision:<24}"
            f"{final.p50:>11.3g}{final.p99:>11.3g}{final.max:>11.3g}{ratio:>11.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point of `verify_policy`."""
    args = tyro.cli(Args, prog="verify_policy")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        reports = run(args)
    except VladError as error:
        print(f"verify_policy: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    if args.json is not None:
        args.json.write_text(json.dumps([report.to_json() for report in reports], indent=1) + "\n", "utf-8")
    sys.exit(0 if all(report.passed for report in reports) else 1)


if __name__ == "__main__":
    main()
