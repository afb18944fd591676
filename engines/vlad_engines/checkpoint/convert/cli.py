"""The command `convert_checkpoint`: JAX to PyTorch, LeRobot to openpi and back, local or from `gs://`."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import Annotated, Literal

import tyro

from vlad_configs.errors import ConfigError, VladError
from vlad_engines.checkpoint.convert.fetch import fetch
from vlad_engines.checkpoint.convert.from_jax import convert_jax, is_jax
from vlad_engines.checkpoint.convert.lerobot import lerobot_to_openpi, openpi_to_lerobot
from vlad_engines.checkpoint.convert.writing import Dtype
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
from vlad_engines.checkpoint.tokenizer_file import find_tokenizer


@dataclasses.dataclass(frozen=True)
class Args:
    """Convert a checkpoint into another layout. What comes out can be served as it is."""

    source: Annotated[str, tyro.conf.Positional]
    """Checkpoint directory (openpi JAX or PyTorch, or LeRobot, told apart by content) or gs:// location."""
    output: Annotated[pathlib.Path, tyro.conf.Positional]
    """Directory to write, which must not exist."""
    to: Literal["openpi", "lerobot"] = "openpi"
    """Layout to write."""
    config: str | None = None
    """openpi configuration, such as pi05_libero: what a JAX checkpoint was trained with, or what a LeRobot
    one shall be served as; for openpi sources only where they do not name one."""
    env: str | None = None
    """Robot of a LeRobot checkpoint; LIBERO where not given."""
    dtype: Dtype = "bf16"
    """Number format of the weights."""
    tokenizer: str | None = None
    """SentencePiece model; looked for beside the source and in OPENPI_DATA_HOME where not given."""
    norm_stats: str | None = None
    """norm_stats.json; looked for in the source where not given."""


def convert(args: Args) -> None:
    """Do what the command line says.

    Raises:
        VladError: for everything that a person can repair.
    """
    source = (
        fetch(args.source, _Progress()) if "://" in args.source else pathlib.Path(args.source).expanduser()
    )
    if is_jax(source):
        if args.to != "openpi" or args.config is None:
            raise ConfigError("a JAX checkpoint is converted --to openpi, and needs --config")
        stats = None if args.norm_stats is None else pathlib.Path(args.norm_stats).expanduser()
        tokenizer = find_tokenizer(source, args.tokenizer)
        convert_jax(source, args.output, args.config, dtype=args.dtype, tokenizer=tokenizer, norm_stats=stats)
        return
    checkpoint = open_policy_checkpoint(
        source,
        environment=args.env,
        config=args.config if args.to == "lerobot" else None,
        norm_stats=args.norm_stats,
        tokenizer=args.tokenizer,
    )
    layout = checkpoint.contract.layout
    if layout == args.to:
        raise ConfigError(f"{source} has the layout {layout} already")
    if args.to == "lerobot":
        openpi_to_lerobot(checkpoint, args.output, args.dtype)
    elif args.config is None:
        raise ConfigError("a LeRobot checkpoint needs --config, the openpi configuration to be served as")
    else:
        lerobot_to_openpi(checkpoint, args.output, args.config, args.dtype)


class _Progress:
    """A line on stderr, renewed at most once a second."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._last > 1:
            self._last = time.monotonic()
            end = "\n" if done == total else "\r"
            print(f"fetched {done / 1e6:.0f} of {total / 1e6:.0f} MB", end=end, file=sys.stderr)  # noqa: T201


def main() -> None:
    """Entry point of `convert_checkpoint`."""
    args = tyro.cli(Args, prog="convert_checkpoint")
    try:
        convert(args)
    except VladError as error:
        print(f"convert_checkpoint: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    print(args.output)  # noqa: T201


if __name__ == "__main__":
    main()
