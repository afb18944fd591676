"""The command `compute_norm_stats`: writes the norm stats of a dataset for a training configuration."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import sys
from typing import Annotated

import tyro

from vlad_configs.errors import VladError
from vlad_configs.openpi_configs import OPENPI_CONFIGS
from vlad_configs.training import train_config
from vlad_engines.checkpoint.norm_stats import NORM_STATS_FILE, stats_warnings
from vlad_training.lerobot_dataset import LeRobotDataset
from vlad_training.statistics import compute_norm_stats, write_norm_stats
from vlad_training.task import task_contract

logger = logging.getLogger("vlad.training")


@dataclasses.dataclass(frozen=True)
class Args:
    """Compute mean, standard deviation and percentiles of states and action chunks."""

    config: Annotated[str, tyro.conf.Positional]
    """Training configuration, such as pi05_libero_small."""
    data: pathlib.Path
    """LeRobotDataset v3 directory."""
    output: pathlib.Path = pathlib.Path("assets")
    """Folder of the result, which is <output>/<asset id>/norm_stats.json."""


def main() -> None:
    """Entry point of `compute_norm_stats`."""
    args = tyro.cli(Args, prog="compute_norm_stats")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        config = train_config(args.config)
        contract = task_contract(config)
        stats = compute_norm_stats(LeRobotDataset(args.data.expanduser(), contract.environment), contract)
    except VladError as error:
        print(f"compute_norm_stats: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    path = args.output / OPENPI_CONFIGS[config.openpi_config].asset_id / NORM_STATS_FILE
    write_norm_stats(stats, path)
    for warning in stats_warnings(contract, stats):
        logger.warning("%s", warning)
    print(path)  # noqa: T201


if __name__ == "__main__":
    main()
