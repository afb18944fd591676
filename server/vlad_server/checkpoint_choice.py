"""Which checkpoint the command line means, and for which robot. Looks at paths only, loads nothing."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from urllib.parse import urlparse

from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError
from vlad_configs.openpi_configs import openpi_config

DEMO = "demo"
DEMO_ENVIRONMENT = "LIBERO"
DEFAULT_ENVIRONMENT = "ALOHA_SIM"
"""openpi's own default."""


@dataclasses.dataclass(frozen=True)
class CheckpointChoice:
    """What to serve: a checkpoint directory or `demo`, the robot, openpi's name for the policy if any."""

    checkpoint: str
    environment: str
    config: str | None


def choose_checkpoint(
    *,
    checkpoint: str | None,
    environment: str | None,
    policy: tuple[str, str] | None,
    variables: Mapping[str, str],
) -> CheckpointChoice:
    """Resolve `--checkpoint`, `--env` and `policy:checkpoint` against each other.

    Args:
        checkpoint: value of `--checkpoint`.
        environment: value of `--env`; None where it was not given.
        policy: `(--policy.config, --policy.dir)`; None for `policy:default`.
        variables: the process environment, for `OPENPI_DATA_HOME`.

    Raises:
        ConfigError: for contradictions, and where nothing can be served; the text says how to go on.
    """
    if checkpoint is not None and policy is not None:
        raise ConfigError("--checkpoint and policy:checkpoint name two checkpoints; give one of them")
    if policy is not None:
        return _named_policy(*policy, environment, variables)
    if checkpoint is None:
        return _published_checkpoint(environment or DEFAULT_ENVIRONMENT, variables)
    if checkpoint == DEMO:
        if environment not in (None, DEMO_ENVIRONMENT):
            raise ConfigError(f"the demo policy drives {DEMO_ENVIRONMENT}, not {environment}")
        return CheckpointChoice(DEMO, DEMO_ENVIRONMENT, None)
    if environment is None:
        raise ConfigError(f"--checkpoint needs --env, one of {', '.join(ENVIRONMENTS)}")
    return CheckpointChoice(_local_path(checkpoint, variables), environment, None)


def _named_policy(
    config: str, directory: str, environment: str | None, variables: Mapping[str, str]
) -> CheckpointChoice:
    robot = openpi_config(config).environment
    # openpi ignores --env here; ALOHA and ALOHA_SIM are one robot, anything else is a mistake.
    if environment is not None and environment.partition("_")[0] != robot.partition("_")[0]:
        raise ConfigError(f"--env {environment} contradicts --policy.config {config}, which drives {robot}")
    return CheckpointChoice(_local_path(directory, variables), environment or robot, config)


def _published_checkpoint(environment: str, variables: Mapping[str, str]) -> CheckpointChoice:
    robot = ENVIRONMENTS[environment]
    path = _cache_path(robot.default_checkpoint, variables)
    if path.is_dir():
        return CheckpointChoice(str(path), environment, robot.default_config)
    raise ConfigError(
        f"no checkpoint named, and the published one for {environment} is not at {path}; "
        "three ways to go on:\n"
        f"  1. serve your own:           serve_policy --env {environment} --checkpoint DIRECTORY\n"
        f"  2. fetch the published one:  copy {robot.default_checkpoint} to that place, "
        "converted to PyTorch with openpi's script (or set OPENPI_DATA_HOME to where you keep it)\n"
        "  3. try the embedded demo:    serve_policy --checkpoint demo   (LIBERO-Spatial, tiny, trained)"
    )


def _local_path(location: str, variables: Mapping[str, str]) -> str:
    if "://" not in location:
        return location
    path = _cache_path(location, variables)
    if path.is_dir():
        return str(path)
    raise ConfigError(
        f"{location} is not at {path}; this version downloads nothing: copy it there, "
        "or set OPENPI_DATA_HOME to where you keep it"
    )


def _cache_path(url: str, variables: Mapping[str, str]) -> pathlib.Path:
    """Where openpi keeps a downloaded location: `OPENPI_DATA_HOME/<bucket>/<path>`."""
    home = pathlib.Path(variables.get("OPENPI_DATA_HOME") or "~/.cache/openpi").expanduser()
    parts = urlparse(url)
    return home / parts.netloc / parts.path.strip("/")
