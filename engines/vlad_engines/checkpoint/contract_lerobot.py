"""The contract of a LeRobot checkpoint: it says nearly everything itself."""

from __future__ import annotations

import dataclasses

from vlad_configs.contract import Contract, PromptTemplate
from vlad_configs.environments import ENVIRONMENTS, Camera, Environment
from vlad_configs.errors import CheckpointError
from vlad_configs.models import CAMERA_SLOTS
from vlad_engines.checkpoint import geometry
from vlad_engines.checkpoint import lerobot_config as lerobot
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.tensor_names import TensorNames, family_of
from vlad_engines.checkpoint.trained_delay import trained_max_delay

_TEMPLATES: dict[str, PromptTemplate] = {
    "pi05_prepare_state_tokenizer_processor_step": "task_state_action",
    "pi0_new_line_processor": "text_newline_joint",
}


def lerobot_contract(files: CheckpointFiles, names: TensorNames, environment: str, source: str) -> Contract:
    """Derive the contract from `config.json` and the processor pipelines.

    Args:
        environment: a name of `ENVIRONMENTS`.
        source: where that name came from, in words.

    Raises:
        CheckpointError: for variants that are not served and for another robot's features.
    """
    lerobot.check_fixed_fields(files)
    robot = ENVIRONMENTS[environment]
    preprocessor = lerobot.read_pipeline(files, lerobot.PREPROCESSOR)
    postprocessor = lerobot.read_pipeline(files, lerobot.POSTPROCESSOR)
    family, family_source = family_of(files)
    sources = {"family": family_source, "environment": source, "layout": "config.json: type"}
    horizon, sources["action_horizon"] = lerobot.integer(files, "chunk_size", 50)
    token_len, sources["max_token_len"] = lerobot.integer(
        files, "tokenizer_max_length", 200 if family == "pi05" else 48
    )
    steps, sources["num_denoising_steps"] = lerobot.integer(files, "num_inference_steps", 10)
    written = geometry.written_model(files, family)
    if written is None:
        model = geometry.derive_model(files, names, family, action_horizon=horizon, max_token_len=token_len)
        sources["model"] = "tensors and variant names of config.json"
    else:
        model = dataclasses.replace(written, action_horizon=horizon, max_token_len=token_len)
        sources["model"] = "config.json: model"
    _check_widths(files, robot)
    template, sources["prompt_template"] = _template(preprocessor)
    state_kind, state_source = lerobot.norm_kind(files, preprocessor.find("normalizer_processor"), "STATE")
    action_kind, action_source = lerobot.norm_kind(
        files, postprocessor.find("unnormalizer_processor"), "ACTION"
    )
    sources["norm_kind"] = f"state by {state_source}, actions by {action_source}"
    sources["cameras"] = _match_cameras(files, robot)
    trained_delay, sources["trained_max_delay"] = trained_max_delay(files, model.action_horizon)
    return Contract(
        layout="lerobot",
        # LeRobot checkpoints are trained on the robot's own joint convention.
        environment=dataclasses.replace(robot, conversion="none"),
        model=model,
        num_denoising_steps=steps,
        prompt_template=template,
        prompt_state_dims=robot.state_width if template == "task_state_action" else None,
        norm_kind={"state": state_kind, "actions": action_kind},
        norm_formula="lerobot",
        delta_mask=_delta_mask(preprocessor, postprocessor, robot.action_width),
        image_resize="bilinear",
        trained_max_delay=trained_delay,
        sources={
            **sources,
            "action_dim": "action_in_proj",
            "prompt_state_dims": "the robot's state; LeRobot before its memory variants padded it to 32",
            "norm_formula": "LeRobot layout: 1e-8 on standard deviations, none on quantile spans",
            "delta_mask": f"{lerobot.PREPROCESSOR}: relative_actions_processor",
            "image_resize": "LeRobot layout: bilinear without antialiasing",
            "default_prompt": "LeRobot has none",
            "conversion": "LeRobot layout: the robot's own joint convention",
        },
    )


def _template(preprocessor: lerobot.Pipeline) -> tuple[PromptTemplate, str]:
    for name, template in _TEMPLATES.items():
        if preprocessor.find(name) is not None:
            return template, f"{lerobot.PREPROCESSOR}: {name}"
    raise CheckpointError(
        f"{preprocessor.path} has none of the steps that write a prompt: {', '.join(_TEMPLATES)}"
    )


def _check_widths(files: CheckpointFiles, robot: Environment) -> None:
    for group, name, expected in (
        ("input_features", lerobot.STATE, robot.state_width),
        ("output_features", lerobot.ACTION, robot.action_width),
    ):
        width = lerobot.feature_width(files, group, name)
        if width != expected:
            raise CheckpointError(
                f"{files.path}: '{name}' has {width} numbers, {robot.name} has {expected}; "
                "this checkpoint drives another robot, name it with --env"
            )


def _match_cameras(files: CheckpointFiles, robot: Environment) -> str:
    """Pair the checkpoint's cameras with the robot's, in order; report the pairs in words.

    Names are free in LeRobot, so order decides. A name that also occurs at the robot, or as a slot
    of the model, must not contradict it.
    """
    cameras = [camera for camera in robot.cameras if camera.slot is not None]
    names = lerobot.camera_names(files)
    wanted = ", ".join(camera.key for camera in cameras)
    if len(names) < sum(camera.required for camera in cameras):
        raise CheckpointError(
            f"{files.path}: the checkpoint knows the cameras {', '.join(names) or '(none)'}; "
            f"{robot.name} sends {wanted}"
        )
    for index, camera in enumerate(cameras[: len(names)]):
        if any(names[index] in _aliases(other) for other in cameras if other is not camera) and names[
            index
        ] not in _aliases(camera):
            raise CheckpointError(
                f"{files.path}: camera order {', '.join(names)} contradicts that of {robot.name}: {wanted}"
            )
    pairs = [f"{name} = {camera.key}" for name, camera in zip(names, cameras, strict=False)]
    unused = names[len(cameras) :]
    return "in order: " + ", ".join(pairs) + (f"; without image: {', '.join(unused)}" if unused else "")


def _aliases(camera: Camera) -> set[str]:
    assert camera.slot in CAMERA_SLOTS
    return {camera.slot, camera.key.rpartition("/")[2]}


def _delta_mask(
    preprocessor: lerobot.Pipeline, postprocessor: lerobot.Pipeline, width: int
) -> tuple[bool, ...] | None:
    mask = lerobot.relative_mask(preprocessor, width)
    absolute = postprocessor.find("absolute_actions_processor")
    restored = absolute is not None and bool(absolute.config.get("enabled"))
    if restored != (mask is not None):
        raise CheckpointError(
            f"{preprocessor.path} and {postprocessor.path} disagree on relative actions: "
            f"relative_actions_processor is {'on' if mask else 'off'}, "
            f"absolute_actions_processor is {'on' if restored else 'off'}"
        )
    return mask
