"""The command `export_onnx`: the graphs of a checkpoint in a folder, for `build_engines` elsewhere."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vlad_configs.errors import ConfigError
from vlad_configs.pruning import Positions, PruningMode, pruning_of_options
from vlad_engines.backends.tensorrt.arithmetic import parse_arithmetic
from vlad_engines.command import run_command, say_progress
from vlad_engines.export.bundle import Bundle
from vlad_engines.export.spec import COMPONENTS
from vlad_engines.fidelity.stored_reference import write_reference
from vlad_engines.float8.calibration import Calibration

if TYPE_CHECKING:
    from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint


@dataclasses.dataclass(frozen=True)
class Args:
    """Export vision, prefix and denoise of a checkpoint as ONNX graphs, opset 17, or 19 with fp8."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Checkpoint directory, openpi PyTorch or LeRobot; or `demo`, or `random:pi05` and its kin."""
    output: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder for the graphs and their weights: as large as the network in this precision."""
    env: str | None = None
    """Robot: LIBERO, DROID, ALOHA or ALOHA_SIM; the configuration's, or else LIBERO, where not given."""
    config: str | None = None
    """openpi configuration name, such as pi05_libero."""
    num_steps: int | None = None
    """Denoising steps; the checkpoint's own number where not given."""
    precision: str = "fp32"
    """fp32, tf32, bf16, fp8 (of the prefix), or one for each part: vision=fp16,prefix=tf32,denoise=tf32."""
    calibration: str | None = None
    """Recording (mcap) or npz file that tells fp8 the size of activations; drawn ones where not given."""
    denoise: Literal["step", "unrolled"] = "step"
    """One denoising step per run of the graph, or all of them."""
    keep_tokens: int | None = None
    """Token pruning: how many image tokens the prefix keeps; all where not given."""
    keep_ratio: float | None = None
    """The same as a share of the image tokens, above 0 and at most 1."""
    pruning_mode: PruningMode = "fixed"
    """fixed fills every slot; union keeps only tokens with a vote and masks the other slots."""
    pruning_positions: Positions = "original"
    """Whether kept tokens stay where they were (original) or move together (compact)."""
    reference: bool = True
    """Also write what float32 computes for the observations of the fidelity check. build_engines holds the
    engines against it, and a computer without torch serves no others. Needs the float32 network in memory."""
    tokenizer: str | None = None
    """SentencePiece model, for reference and fp8; looked for beside the checkpoint where not given."""
    norm_stats: str | None = None
    """norm_stats.json, for reference and fp8; looked for in the checkpoint where not given."""
    device: str = "cpu"
    """Where the reference is computed, fp8 calibrated, and random weights drawn; CPU and CUDA draw different
    ones."""


def run(args: Args) -> Bundle:
    """Export as the arguments say.

    Raises:
        VladError: for what cannot work.
    """
    arithmetic = parse_arithmetic(args.precision)
    is_fp8 = arithmetic.prefix == "fp8"
    if args.calibration is not None and not is_fp8:
        raise ConfigError("--calibration is for --precision fp8")
    pruning = pruning_of_options(args.keep_tokens, args.keep_ratio, args.pruning_mode, args.pruning_positions)
    try:
        from vlad_engines.export.exporter import export_bundle
        from vlad_engines.export.float8_graph import check_float8_export
        from vlad_engines.export.network import open_network
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"exporting needs the package '{error.name}': install the 'tensorrt' extra"
        ) from error
    if is_fp8:
        check_float8_export()
    contract, weights = open_network(args.checkpoint, args.env, args.config, args.device)
    steps = contract.num_denoising_steps if args.num_steps is None else args.num_steps
    form = arithmetic.form(steps, args.denoise, pruning)
    calibration = _calibrate(args) if is_fp8 else None
    bundle = export_bundle(contract.model, weights, form, args.output, say_progress, calibration)
    if args.reference:
        _write_reference(args, bundle)
    return bundle


def _open(args: Args) -> PolicyCheckpoint:
    """The checkpoint with what turns observations into inputs."""
    from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint

    return open_policy_checkpoint(
        args.checkpoint,
        environment=args.env,
        config=args.config,
        norm_stats=args.norm_stats,
        tokenizer=args.tokenizer,
    )


def _calibrate(args: Args) -> Calibration:
    """How large the inputs of float8 products become."""
    from vlad_engines.checkpoint.open_weights import open_weights
    from vlad_engines.float8.calibrator import checkpoint_calibrator

    checkpoint = _open(args)
    weights = open_weights(checkpoint, args.device)
    calibrate = checkpoint_calibrator(checkpoint, weights, args.calibration, args.device)
    say_progress("calibrating fp8", 0.0)
    calibration = calibrate()
    say_progress("calibrating fp8", 1.0)
    return calibration


def _write_reference(args: Args, bundle: Bundle) -> None:
    """What float32 computes for the observations of the fidelity check, so that engines can be held to it."""
    from vlad_engines.checkpoint.open_weights import open_weights
    from vlad_engines.fidelity.observations import fitting_observations, make_cases
    from vlad_engines.fidelity.reference import compute_reference
    from vlad_engines.fidelity.verify import make_processor

    checkpoint = _open(args)
    contract = checkpoint.contract
    processor = make_processor(checkpoint)
    cases = make_cases(processor, contract.model, fitting_observations(processor, contract))
    weights = open_weights(checkpoint, args.device)
    say_progress("computing the float32 reference", 0.0)
    form = bundle.form
    reference = compute_reference(contract.model, weights, cases, form.num_steps, args.device, form.pruning)
    try:
        write_reference(bundle.reference_path, reference)
    except OSError as error:
        raise ConfigError(f"{bundle.reference_path} cannot be written: {error}") from error
    say_progress("computing the float32 reference", 1.0)


def main() -> None:
    """Entry point of `export_onnx`."""
    bundle = run_command("export_onnx", Args, run)
    for component in COMPONENTS:
        print(bundle.path(component))  # noqa: T201


if __name__ == "__main__":
    main()
