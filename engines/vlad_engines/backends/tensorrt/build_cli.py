"""The command `build_engines`: TensorRT engines of a checkpoint, or of exported graphs, for this GPU.

From exported graphs it needs tensorrt, pycuda and numpy alone.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import sys
import tempfile

import tyro

from vlad_configs.errors import ConfigError, VladError
from vlad_engines.backends.choice import parse_batches
from vlad_engines.backends.tensorrt.api import ReportProgress, TensorRt, load_tensorrt
from vlad_engines.backends.tensorrt.arithmetic import ComponentArithmetic, parse_arithmetic
from vlad_engines.backends.tensorrt.cache import EngineCache
from vlad_engines.backends.tensorrt.cuda_device import open_device
from vlad_engines.backends.tensorrt.device import Device
from vlad_engines.backends.tensorrt.engine_plans import BuiltPlans, Engineering, Plans
from vlad_engines.backends.tensorrt.graph_source import BundleGraphs, GraphSource
from vlad_engines.backends.tensorrt.manifest import BuildSettings
from vlad_engines.export.bundle import BUNDLE_FILE, read_bundle
from vlad_engines.export.spec import COMPONENTS, shape_keys


@dataclasses.dataclass(frozen=True)
class Args:
    """Build the engines of all components into a folder; those that are there already are kept."""

    source: tyro.conf.Positional[str]
    """Folder that export_onnx wrote; or a checkpoint, as for export_onnx."""
    output: tyro.conf.Positional[pathlib.Path]
    """Folder for the engines, which VLAD_ENGINE_DIR may name when serving."""
    precision: str = "fp32"
    """fp32, tf32, bf16, or one for each part; exported graphs must have been exported with it."""
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


def run(args: Args) -> Plans:
    """Build as the arguments say.

    Raises:
        VladError: for what cannot work, and where TensorRT fails.
    """
    arithmetic, settings = parse_arithmetic(args.precision), _settings(args)
    tensorrt = load_tensorrt()
    tensorrt.check_arithmetic(arithmetic)
    device = open_device(args.device)
    if (pathlib.Path(args.source) / BUNDLE_FILE).is_file():
        source: GraphSource = BundleGraphs(read_bundle(pathlib.Path(args.source)))
        return build_engines(source, args, arithmetic, settings, tensorrt, device, _report)
    with tempfile.TemporaryDirectory(prefix="vlad-export-") as folder:
        source = _checkpoint_graphs(args, arithmetic, pathlib.Path(folder))
        return build_engines(source, args, arithmetic, settings, tensorrt, device, _report)


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
    wanted = Engineering(source.model, source.form.num_steps, arithmetic, keys)
    with device.active():
        plans = BuiltPlans(EngineCache(args.output), source, settings)
        return plans.provide(wanted, tensorrt, device, progress)


def _settings(args: Args) -> BuildSettings:
    try:
        return BuildSettings(args.optimization_level, int(args.workspace_gib * 2**30))
    except ValueError as error:
        raise ConfigError(str(error)) from error


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
    return CheckpointGraphs(contract.model, weights, arithmetic.form(steps, "step"), folder)


def _report(stage: str, fraction: float) -> None:
    print(f"{100 * fraction:3.0f} %  {stage}", file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """Entry point of `build_engines`."""
    args = tyro.cli(Args, prog="build_engines")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        plans = run(args)
    except VladError as error:
        print(f"build_engines: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    for component in COMPONENTS:
        manifest = plans[component].manifest
        print(  # noqa: T201
            f"{component}-{manifest.identity.digest}.plan  {manifest.plan_bytes >> 20} MiB, "
            f"built in {manifest.build_seconds:.0f} s"
        )


if __name__ == "__main__":
    main()
