"""The contract of an openpi checkpoint: its tensors, `config.json`, and a named openpi configuration."""

from __future__ import annotations

import dataclasses

from vlad_configs.contract import Contract, NormKind
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import CheckpointError
from vlad_configs.models import Family
from vlad_configs.openpi_configs import OPENPI_CONFIGS, OpenpiConfig
from vlad_engines.checkpoint import geometry
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.tensor_names import TensorNames, family_of
from vlad_engines.checkpoint.trained_delay import trained_max_delay

OPENPI_STEPS = 10


@dataclasses.dataclass(frozen=True)
class NamedConfig:
    """An openpi configuration and how it was chosen.

    `explicit` is True where somebody named it, and False for the environment's default.
    """

    name: str
    source: str
    explicit: bool

    @property
    def config(self) -> OpenpiConfig:
        """The configuration itself."""
        return OPENPI_CONFIGS[self.name]


def openpi_contract(
    files: CheckpointFiles, names: TensorNames, environment: str, source: str, named: NamedConfig
) -> Contract:
    """Derive the contract.

    Args:
        environment: a name of `ENVIRONMENTS`.
        source: where that name came from, in words.
        named: the configuration to go by.

    Raises:
        CheckpointError: for contradictions between the configuration and the tensors.
    """
    robot, config = ENVIRONMENTS[environment], named.config
    family, family_source = family_of(files)
    _check_family(files, environment, named, family)
    sources = {"family": family_source, "environment": source, "layout": "tensor names"}
    model = geometry.written_model(files, family)
    if model is not None:
        for field in ("model", "action_horizon", "max_token_len", "action_dim"):
            sources[field] = "config.json: model"
    else:
        horizon, sources["action_horizon"] = _horizon(files, named)
        model = geometry.derive_model(
            files, names, family, action_horizon=horizon, max_token_len=config.max_token_len
        )
        sources["model"] = "tensors and variant names"
        sources["max_token_len"] = named.source
        sources["action_dim"] = "action_in_proj"
        if model.action_dim != config.action_dim:
            raise CheckpointError(
                f"{files.path}: action_in_proj has {model.action_dim} columns, "
                f"openpi configuration '{named.name}' has {config.action_dim}"
            )
    steps, sources["num_denoising_steps"] = _steps(files)
    trained_delay, sources["trained_max_delay"] = trained_max_delay(files, model.action_horizon)
    kind: NormKind = "zscore" if family == "pi0" else "quantile"
    return Contract(
        layout="openpi",
        environment=robot,
        model=model,
        num_denoising_steps=steps,
        prompt_template="task_state_action" if config.discrete_state_input else "text",
        prompt_state_dims=robot.state_width if config.discrete_state_input else None,
        norm_kind={"state": kind, "actions": kind},
        norm_formula="openpi",
        delta_mask=config.delta_mask,
        image_resize="pil_antialiased",
        trained_max_delay=trained_delay,
        default_prompt=config.default_prompt,
        metadata=config.metadata,
        sources={
            **sources,
            "prompt_template": named.source,
            "prompt_state_dims": "the robot's state" if config.discrete_state_input else named.source,
            "norm_kind": f"family {family}",
            "norm_formula": "openpi layout: 1e-6 on every span",
            "delta_mask": named.source,
            "image_resize": "openpi layout: Pillow's antialiased bilinear",
            "default_prompt": named.source,
            "metadata": named.source,
            "cameras": f"openpi's {environment} policy",
            "conversion": f"openpi's {environment} policy",
        },
    )


def _check_family(files: CheckpointFiles, environment: str, named: NamedConfig, family: Family) -> None:
    if named.config.family == family:
        return
    robot = environment.partition("_")[0]
    fitting = [
        name
        for name, config in OPENPI_CONFIGS.items()
        if config.family == family and config.environment.partition("_")[0] == robot
    ]
    raise CheckpointError(
        f"{files.path} holds a {family} model, but '{named.name}' ({named.source}) is {named.config.family}; "
        f"name its configuration with --policy.config (inspect_checkpoint: --config), "
        f"one of {', '.join(fitting)}"
    )


def _horizon(files: CheckpointFiles, named: NamedConfig) -> tuple[int, str]:
    written = files.config.get("action_horizon")
    if written is not None and (not isinstance(written, int) or isinstance(written, bool) or written < 1):
        raise CheckpointError(
            f"config.json in {files.path}: action_horizon must be a positive integer, not {written!r}"
        )
    if named.explicit or written is None:
        horizon = named.config.action_horizon
        note = "" if written in (None, horizon) else f" (config.json says {written})"
        return horizon, named.source + note
    return written, "config.json: action_horizon"


def _steps(files: CheckpointFiles) -> tuple[int, str]:
    if "num_denoising_steps" not in files.config:
        return OPENPI_STEPS, "openpi default"
    steps = files.config["num_denoising_steps"]
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise CheckpointError(
            f"config.json in {files.path}: num_denoising_steps must be a positive integer, not {steps!r}"
        )
    return steps, "config.json: num_denoising_steps"
