"""What a policy tells its clients about itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlad_engines.backends.base import BackendOptions
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint


def describe_policy(
    checkpoint: PolicyCheckpoint,
    *,
    backend: str,
    options: BackendOptions,
    components: Mapping[str, Any],
    default_prompt: str | None,
    batch_sizes: Sequence[int],
    rtc: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Collect the metadata; plain JSON and msgpack types, no path of this machine.

    `action_horizon` and `action_dim` are the shape of the chunks that the robot receives,
    `noise_shape` that of the optional request key `vlad/noise`. `vlad` is what the engine has to say
    about the additions to the protocol; the daemon adds its own.

    Args:
        batch_sizes: of `UnifiedPolicy`.
        rtc: from `ContinuationPlanner.capabilities`.
    """
    contract = checkpoint.contract
    robot, model = contract.environment, contract.model
    return {
        "environment": robot.name,
        "family": model.family,
        "checkpoint": checkpoint.files.path.name,
        "layout": contract.layout,
        "config": checkpoint.openpi_config,
        "weights": "random" if checkpoint.files.random_weights else "checkpoint",
        "action_horizon": model.action_horizon,
        "action_dim": robot.action_width,
        "noise_shape": [model.action_horizon, model.action_dim],
        "image_keys": [camera.key for camera in robot.cameras if camera.slot is not None],
        "required_image_keys": [camera.key for camera in robot.cameras if camera.required],
        "state_keys": [vector.key for vector in robot.state],
        "state_dim": robot.state_width,
        "num_denoising_steps": options.num_steps,
        "prompt_template": contract.prompt_template,
        "max_token_len": model.max_token_len,
        "norm_kind": dict(contract.norm_kind),
        "norm_formula": contract.norm_formula,
        "delta_mask": None if contract.delta_mask is None else list(contract.delta_mask),
        "image_resize": contract.image_resize,
        "default_prompt": default_prompt,
        "backend": backend,
        "components": dict(components),
        "precision": options.precision,
        "device": options.device,
        "kv_cache": options.enable_kv_cache,
        "batch_sizes": list(batch_sizes),
        "token_pruning": None if options.pruning is None else options.pruning.to_json(),
        "vlad": {"rtc": None if rtc is None else dict(rtc)},
        **contract.metadata,
    }
