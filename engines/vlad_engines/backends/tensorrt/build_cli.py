"""The command `build_engines`: TensorRT engines of a checkpoint, or of exported graphs, for this GPU.

From exported graphs it needs tensorrt, pycuda and numpy alone.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

import tyro

from vlad_configs.errors import ConfigError
from vlad_configs.pruning import Positions, PruningMode, TokenPruning, pruning_of_options
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.choice import parse_batches
from vlad_engines.backends.tensorrt.api import ReportProgress, TensorRt, load_tensorrt
from vlad_engines.backends.tensorrt.arithmetic import ComponentArithmetic, parse_arithmetic
from vlad_engines.backends.tensorrt.attestation import write_report
from vlad_engines.backends.tensorrt.backend import TensorRtBackend
from vlad_engines.backends.tensorrt.cache import EngineCache
from vlad_engines.backends.tensorrt.cuda_device import open_device
from vlad_engines.backends.tensorrt.device import Device
from vlad_engines.backends.tensorrt.engine_plans import BuiltPlans, Engineering, GivenPlans, Plans
from vlad_engines.backends.tensorrt.graph_source import BundleGraphs, GraphSource
from vlad_engines.backends.tensorrt.manifest import BuildSettings
from vlad_engines.command import run_command, say_progress
from vlad_engines.export.bundle import BUNDLE_FILE, read_bundle
from vlad_engines.export.spec import COMPONENTS, shape_keys
from vlad_engines.fidelity.check import check_backend
from vlad_engines.fidelity.report import FidelityReport
from vlad_engines.fidelity.stored_reference import Reference, read_reference

if TYPE_CHECKING:
    import torch

    from vlad_engines.float8.calibrator import Calibrator


@dataclasses.dataclass(frozen=True)
class Args:
    """Build the engines of all components into a folder; those that are there already are kept."""

    source: tyro.conf.Positional[str]
    """Folder that export_onnx wrote; or a checkpoint, as for export_onnx."""
    output: tyro.conf.Positional[pathlib.Path]
    """Folder for the engines, for --engine-dir when serving."""
    precision: str = "fp32"
    """fp32, tf32, bf16, fp8, or one for each part; exported graphs must have been exported with it."""
    calibration: str | None = None
    """Recording (mcap) or npz file for fp8 of a checkpoint; drawn observations where not given."""
    cameras: str = "1,2,3"
    """Numbers of cameras that requests may have."""
    batch: str = "1"
    """Numbers of requests that are computed together."""
    optimization_level: int = 3
    """0 to 5: how hard TensorRT tries."""
    workspace_gib: float = 8.0
    """Largest scratch memory of a kernel."""
    device: str = "cuda"
    """GPU, such as cuda:1; for a checkpoint with random weights also where they are drawn."""
    env: str | None = None
    """Robot, for a checkpoint: LIBERO, DROID, ALOHA or ALOHA_SIM."""
    config: str | None = None
    """openpi configuration name, for a checkpoint that needs one."""
    num_steps: int | None = None
    """Denoising steps, for a checkpoint; its own number where not given."""
    tokenizer: str | None = None
    """SentencePiece model, for fp8 of a checkpoint; looked for beside it where not given."""
    norm_stats: str | None = None
    """norm_stats.json, for fp8 of a checkpoint; looked for in it where not given."""
    keep_tokens: int | None = None
    """Token pruning, for a checkpoint: how many image tokens the prefix keeps; all where not given."""
    keep_ratio: float | None = None
    """The same as a share of the image tokens, above 0 and at most 1."""
    pruning_mode: PruningMode = "fixed"
    """fixed fills every slot; union keeps only tokens with a vote and masks the other slots."""
    pruning_positions: Positions = "original"
    """Whether kept tokens stay where they were (original) or move together (compact)."""


def run(args: Args) -> FidelityReport | None:
    """Build as the arguments say, print what was built, and compare it with the float32 reference.

    Returns:
        The comparison, which then also lies beside the engines; None where there is nothing to compare with.

    Raises:
        VladError: for what cannot work, and where TensorRT fails.
    """
    arithmetic, settings, pruning = parse_arithmetic(args.precision), _settings(args), _pruning(args)
    is_exported = (pathlib.Path(args.source) / BUNDLE_FILE).is_file()
    if args.calibration is not None and (is_exported or arithmetic.prefix != "fp8"):
        raise ConfigError("--calibration is for --precision fp8 of a checkpoint; exported graphs have theirs")
    tensorrt = load_tensorrt()
    tensorrt.check_arithmetic(arithmetic)
    device = open_device(args.device)
    arithmetic.check_gpu(device.name, device.compute_capability)
    if not is_exported:
        with tempfile.TemporaryDirectory(prefix="vlad-export-") as folder:
            source = _checkpoint_graphs(args, arithmetic, pathlib.Path(folder))
            show(build_engines(source, args, arithmetic, settings, tensorrt, device, say_progress))
        return None
    bundle = read_bundle(pathlib.Path(args.source))
    if pruning is not None and pruning != bundle.form.pruning:
        raise ConfigError(
            f"{args.source} was exported with token pruning {bundle.form.pruning}, not with {pruning}: "
            "export it again"
        )
    plans = build_engines(BundleGraphs(bundle), args, arithmetic, settings, tensorrt, device, say_progress)
    show(plans)
    # What no profile fits cannot be compared.
    if 1 not in parse_batches(args.batch) or not bundle.reference_path.is_file():
        return None
    reference = read_reference(bundle.reference_path).with_cameras(parse_batches(args.cameras))
    if not reference.cases:
        return None
    report = compare(plans, args, arithmetic, tensorrt, device, reference)
    print(report.table())  # noqa: T201
    return report


def show(plans: Plans) -> None:
    """Print the files, their sizes and how long they took."""
    for component in COMPONENTS:
        manifest = plans[component].manifest
        print(  # noqa: T201
            f"{component}-{manifest.identity.digest}.plan  {manifest.plan_bytes >> 20} MiB, "
            f"built in {manifest.build_seconds:.0f} s"
        )


def compare(
    plans: Plans,
    args: Args,
    arithmetic: ComponentArithmetic,
    tensorrt: TensorRt,
    device: Device,
    reference: Reference,
) -> FidelityReport:
    """Hold engines against the reference, and keep the report beside them.

    Raises:
        ConfigError: where the folder cannot be written.
        EngineError: where TensorRT fails.
    """
    manifests = {component: plan.manifest for component, plan in plans.items()}
    folder, model = plans["denoise"].folder, manifests["denoise"].identity.model
    cameras = tuple(sorted({len(case.inputs.cameras) for case in reference.cases}))
    options = BackendOptions(
        reference.num_steps,
        args.precision,
        args.device,
        camera_counts=cameras,
        engine_dir=str(folder),
        pruning=manifests["denoise"].identity.form.pruning,
    )
    backend = TensorRtBackend(model, options, arithmetic, tensorrt, device, GivenPlans(plans))
    try:
        report = check_backend(
            backend,
            reference,
            name="tensorrt",
            precision=args.precision,
            pruned=options.pruning is not None,
        )
        write_report(folder, manifests, report)
    except OSError as error:
        raise ConfigError(f"the fidelity report cannot be written to {folder}: {error}") from error
    finally:
        backend.close()
    return report


def build_engines(
    source: GraphSource,
    args: Args,
    arithmetic: ComponentArithmetic,
    settings: BuildSettings,
    tensorrt: TensorRt,
    device: Device,
    progress: ReportProgress,
) -> Plans:
    """The plans of all components, from the output folder where they are there already.

    Raises:
        VladError: see `PlanProvider.provide`.
    """
    keys = shape_keys(source.model, parse_batches(args.cameras), parse_batches(args.batch))
    wanted = Engineering(source.model, source.form.num_steps, arithmetic, keys, source.form.pruning)
    with device.active():
        plans = BuiltPlans(EngineCache(args.output), source, settings)
        return plans.provide(wanted, tensorrt, device, progress)


def _settings(args: Args) -> BuildSettings:
    try:
        return BuildSettings(args.optimization_level, int(args.workspace_gib * 2**30))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _pruning(args: Args) -> TokenPruning | None:
    return pruning_of_options(args.keep_tokens, args.keep_ratio, args.pruning_mode, args.pruning_positions)


def _checkpoint_graphs(args: Args, arithmetic: ComponentArithmetic, folder: pathlib.Path) -> GraphSource:
    try:
        from vlad_engines.backends.tensorrt.checkpoint_graphs import CheckpointGraphs
        from vlad_engines.export.network import open_network
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"building from a checkpoint needs the package '{error.name}'; export_onnx elsewhere, and build "
            "from its folder"
        ) from error
    contract, weights = open_network(args.source, args.env, args.config, args.device)
    steps = contract.num_denoising_steps if args.num_steps is None else args.num_steps
    calibrator = _calibrator(args, weights) if arithmetic.prefix == "fp8" else None
    form = arithmetic.form(steps, "step", _pruning(args))
    return CheckpointGraphs(contract.model, weights, form, folder, calibrator)


def _calibrator(args: Args, weights: Mapping[str, torch.Tensor]) -> Calibrator:
    from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
    from vlad_engines.float8.calibrator import calibration_device, checkpoint_calibrator

    checkpoint = open_policy_checkpoint(
        args.source,
        environment=args.env,
        config=args.config,
        norm_stats=args.norm_stats,
        tokenizer=args.tokenizer,
    )
    device = calibration_device(args.device)
    return checkpoint_calibrator(checkpoint, weights, args.calibration, device)


def main() -> None:
    """Entry point of `build_engines`; exit code 1 for engines that are too far from float32."""
    report = run_command("build_engines", Args, run)
    sys.exit(0 if report is None or report.passed else 1)


if __name__ == "__main__":
    main()
