"""The command `export_onnx`: the graphs of a checkpoint in a folder, for `build_engines` elsewhere."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import sys
from typing import Annotated, Literal

import tyro

from vlad_configs.errors import ConfigError, VladError
from vlad_engines.backends.tensorrt.arithmetic import parse_arithmetic
from vlad_engines.export.bundle import Bundle
from vlad_engines.export.spec import COMPONENTS


@dataclasses.dataclass(frozen=True)
class Args:
    """Export vision, prefix and denoise of a checkpoint as ONNX graphs, opset 17."""

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
    """fp32, tf32, bf16, or one for each part: vision=fp16,prefix=tf32,denoise=tf32."""
    denoise: Literal["step", "unrolled"] = "step"
    """One denoising step per run of the graph, or all of them."""
    device: str = "cpu"
    """Where random weights are drawn; CPU and CUDA draw different ones."""


def run(args: Args) -> Bundle:
    """Export as the arguments say.

    Raises:
        VladError: for what cannot work.
    """
    arithmetic = parse_arithmetic(args.precision)
    try:
        from vlad_engines.export.exporter import export_bundle
        from vlad_engines.export.network import open_network
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"exporting needs the package '{error.name}': install the 'tensorrt' extra"
        ) from error
    contract, weights = open_network(args.checkpoint, args.env, args.config, args.device)
    steps = contract.num_denoising_steps if args.num_steps is None else args.num_steps
    form = arithmetic.form(steps, args.denoise)
    return export_bundle(contract.model, weights, form, args.output, _report)


def _report(stage: str, fraction: float) -> None:
    print(f"{100 * fraction:3.0f} %  {stage}", file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """Entry point of `export_onnx`."""
    args = tyro.cli(Args, prog="export_onnx")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        bundle = run(args)
    except VladError as error:
        print(f"export_onnx: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    for component in COMPONENTS:
        print(bundle.path(component))  # noqa: T201


if __name__ == "__main__":
    main()
