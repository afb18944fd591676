"""Chooses robot and configuration for a checkpoint and derives the contract between them."""

from __future__ import annotations

from vlad_configs.contract import Contract
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import CheckpointError, ConfigError
from vlad_configs.openpi_configs import OPENPI_CONFIGS, openpi_config
from vlad_engines.checkpoint.contract_lerobot import lerobot_contract
from vlad_engines.checkpoint.contract_openpi import NamedConfig, openpi_contract
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.geometry import lora_variants
from vlad_engines.checkpoint.tensor_names import TensorNames, family_of

DEFAULT_ENVIRONMENT = "LIBERO"


def derive_contract(
    files: CheckpointFiles, names: TensorNames, environment: str | None = None, config: str | None = None
) -> tuple[Contract, NamedConfig | None]:
    """Derive what a checkpoint and a robot agree on; every field tells its source.

    Args:
        environment: a name of `ENVIRONMENTS`; None for the configuration's robot, or else LIBERO.
        config: a name of `OPENPI_CONFIGS`; None for the one that the checkpoint names, or else the
            environment's default.

    Returns:
        The contract, and the openpi configuration that it follows (None for LeRobot checkpoints).

    Raises:
        ConfigError: for unknown or contradictory names.
        CheckpointError: where the checkpoint contradicts itself, the robot or the configuration.
    """
    if environment is not None and environment not in ENVIRONMENTS:
        raise ConfigError(f"unknown environment '{environment}'; known: {', '.join(sorted(ENVIRONMENTS))}")
    named = _named_config(files, config)
    robot, source = _environment(environment, named)
    if files.layout == "lerobot":
        family = family_of(files)[0]
        if named is not None and named.config.family != family:
            raise CheckpointError(
                f"{files.path} holds a {family} model, but '{named.name}' is {named.config.family}"
            )
        return lerobot_contract(files, names, robot, source), None
    if named is None:
        default = ENVIRONMENTS[robot].default_config
        named = NamedConfig(default, f"default configuration of {robot}: {default}", explicit=False)
    return openpi_contract(files, names, robot, source, named), named


def contract_warnings(files: CheckpointFiles) -> list[str]:
    """What can be served but deserves a look."""
    warnings = []
    if variants := lora_variants(files.config):
        warnings.append(
            f"config.json names {' and '.join(variants)}: openpi's converter drops LoRA deltas without a "
            "word, so these may be the weights from before the fine-tuning"
        )
    if files.random_weights:
        warnings.append("the weights are random: the actions are meaningless and no robot should run them")
    return warnings


def _named_config(files: CheckpointFiles, config: str | None) -> NamedConfig | None:
    if config is not None:
        openpi_config(config)
        return NamedConfig(config, f"named configuration {config}", explicit=True)
    written = files.config.get("openpi_config")
    if written is None:
        return None
    if written not in OPENPI_CONFIGS:
        raise CheckpointError(f"config.json in {files.path}: unknown openpi_config {written!r}")
    return NamedConfig(written, f"config.json: openpi_config {written}", explicit=True)


def _environment(environment: str | None, named: NamedConfig | None) -> tuple[str, str]:
    if named is None:
        if environment is None:
            return DEFAULT_ENVIRONMENT, "default"
        return environment, "named environment"
    robot = named.config.environment
    if environment is None:
        return robot, named.source
    # ALOHA and ALOHA_SIM are one robot.
    if environment.partition("_")[0] != robot.partition("_")[0]:
        raise ConfigError(
            f"environment {environment} contradicts '{named.name}' ({named.source}), which drives {robot}"
        )
    return environment, "named environment"
