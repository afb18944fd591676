"""Everything of a checkpoint but the weights: opened, derived, checked, in one place."""

from __future__ import annotations

import dataclasses
import pathlib

from vlad_configs.contract import Contract
from vlad_engines.checkpoint.accounting import account_for_tensors
from vlad_engines.checkpoint.contract import DEFAULT_ENVIRONMENT, contract_warnings, derive_contract
from vlad_engines.checkpoint.demo import DEMO, demo_checkpoint
from vlad_engines.checkpoint.detect import CheckpointFiles, open_checkpoint
from vlad_engines.checkpoint.embedded_policy import embedded_policy
from vlad_engines.checkpoint.norm_stats import load_norm_stats, stats_warnings
from vlad_engines.checkpoint.random_checkpoint import (
    is_random,
    packaged_tokenizer,
    random_files,
    random_norm_stats,
)
from vlad_engines.checkpoint.tensor_names import TensorNames, resolve_names
from vlad_engines.checkpoint.tokenizer_file import find_tokenizer
from vlad_engines.processing.normalization import NormStats


@dataclasses.dataclass(frozen=True)
class PolicyCheckpoint:
    """A checkpoint that fits a robot and can be loaded.

    Attributes:
        openpi_config: configuration that the contract follows; None for LeRobot checkpoints.
        norm_stats_source: file or files that the statistics came from.
        warnings: what deserves a look, in words.
    """

    files: CheckpointFiles
    names: TensorNames
    contract: Contract
    openpi_config: str | None
    norm_stats: NormStats
    norm_stats_source: str
    tokenizer: pathlib.Path
    warnings: tuple[str, ...]


def open_policy_checkpoint(
    checkpoint: str | pathlib.Path,
    *,
    environment: str | None = None,
    config: str | None = None,
    norm_stats: str | None = None,
    tokenizer: str | None = None,
) -> PolicyCheckpoint:
    """Open a directory, the embedded `demo` or a `random:` model; check all that needs no weights.

    Raises:
        CheckpointError: says what is missing or odd.
        ConfigError: for unknown or contradictory names of environment and configuration.
    """
    files = checkpoint_files(checkpoint, environment, config)
    names = resolve_names(files)
    contract, named = derive_contract(files, names, environment, config)
    account_for_tensors(files, names, contract.model)
    asset_id = None if named is None else named.config.asset_id
    stats, source = checkpoint_norm_stats(files, contract, asset_id, norm_stats)
    return PolicyCheckpoint(
        files=files,
        names=names,
        contract=contract,
        openpi_config=None if named is None else named.name,
        norm_stats=stats,
        norm_stats_source=source,
        tokenizer=checkpoint_tokenizer(files, tokenizer),
        warnings=(*contract_warnings(files), *stats_warnings(contract, stats)),
    )


def checkpoint_files(
    checkpoint: str | pathlib.Path, environment: str | None = None, config: str | None = None
) -> CheckpointFiles:
    """What a name stands for: a directory, `demo` (the trained one in the package, or else a random one,
    built where it does not exist yet) or a `random:` model.

    Args:
        environment, config: as for `open_policy_checkpoint`; they give `random:` models their robot.

    Raises:
        CheckpointError, ConfigError: as `open_policy_checkpoint` does.
    """
    if is_random(checkpoint):
        return random_files(str(checkpoint), environment or DEFAULT_ENVIRONMENT, config)
    if checkpoint == DEMO:
        return open_checkpoint(embedded_policy() or demo_checkpoint())
    return open_checkpoint(pathlib.Path(checkpoint).expanduser())


def checkpoint_norm_stats(
    files: CheckpointFiles, contract: Contract, asset_id: str | None, override: str | None
) -> tuple[NormStats, str]:
    """As `load_norm_stats`; for a `random:` model made up, unless a file is named."""
    if is_random(files.path) and override is None:
        return random_norm_stats(contract.environment), "made up for random weights"
    return load_norm_stats(files, contract, asset_id, override)


def checkpoint_tokenizer(files: CheckpointFiles, override: str | None) -> pathlib.Path:
    """As `find_tokenizer`; for a `random:` model the demo's, unless a file is named."""
    if is_random(files.path) and override is None:
        return packaged_tokenizer()
    return find_tokenizer(files.path, override)
