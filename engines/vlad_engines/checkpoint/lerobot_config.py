"""What a LeRobot directory says about itself: `config.json` and the two processor pipelines.

Layout: that of lerobot 0.6. Unknown fields of `config.json` are
tolerated, for the set grows; an unknown processing step is refused, for it would change what the
model sees.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from vlad_configs.contract import NormKind
from vlad_configs.errors import CheckpointError
from vlad_configs.models import IMAGE_SIZE
from vlad_engines.checkpoint.detect import CONFIG_FILE, CheckpointFiles, read_json

PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"
IMAGE_PREFIX = "observation.images."
STATE = "observation.state"
ACTION = "action"

_KNOWN_STEPS = {
    PREPROCESSOR: {
        "rename_observations_processor",
        "to_batch_processor",
        "relative_actions_processor",
        "normalizer_processor",
        "pi0_new_line_processor",
        "pi05_prepare_state_tokenizer_processor_step",
        "tokenizer_processor",
        "device_processor",
    },
    POSTPROCESSOR: {"unnormalizer_processor", "absolute_actions_processor", "device_processor"},
}
_NORM_KINDS: Mapping[str, NormKind] = {"MEAN_STD": "zscore", "QUANTILES": "quantile", "IDENTITY": "identity"}

# Fields whose other values change the network or its schedule: supported value by name.
_FIXED_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "min_period": (0.004,),
    "max_period": (4.0,),
    "image_resolution": ([IMAGE_SIZE, IMAGE_SIZE],),
    "use_visual_memory": (False, None),
    "use_proprioceptive_memory": (False, None),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a processor pipeline. `state_file` holds its statistics, if it has any."""

    name: str
    config: Mapping[str, Any]
    state_file: pathlib.Path | None


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A processor pipeline file."""

    path: pathlib.Path
    steps: tuple[Step, ...]

    def find(self, name: str) -> Step | None:
        """The step of that name, or None."""
        return next((step for step in self.steps if step.name == name), None)


def read_pipeline(files: CheckpointFiles, file_name: str) -> Pipeline:
    """Read `policy_preprocessor.json` or `policy_postprocessor.json`.

    Raises:
        CheckpointError: where it is missing, unreadable, or has a step that is not known here.
    """
    path = files.path / file_name
    if not path.is_file():
        raise CheckpointError(
            f"{files.path} has no {file_name}; LeRobot writes it beside {CONFIG_FILE}, and the statistics "
            "hang on it. Checkpoints older than the processor pipelines must be migrated with LeRobot first"
        )
    try:
        steps = tuple(
            Step(
                step["registry_name"],
                step.get("config", {}),
                files.path / step["state_file"] if step.get("state_file") else None,
            )
            for step in read_json(path)["steps"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a LeRobot processor pipeline: {error!r}") from error
    unknown = [step.name for step in steps if step.name not in _KNOWN_STEPS[file_name]]
    if unknown:
        raise CheckpointError(
            f"{path} has processing steps that are not supported: {', '.join(unknown)}; "
            f"known: {', '.join(sorted(_KNOWN_STEPS[file_name]))}"
        )
    return Pipeline(path, steps)


def check_fixed_fields(files: CheckpointFiles) -> None:
    """Refuse variants of the network that are not served.

    Raises:
        CheckpointError: lists the fields.
    """
    odd = [
        f"{name} = {files.config[name]!r} (supported: {allowed[0]!r})"
        for name, allowed in _FIXED_FIELDS.items()
        if name in files.config and files.config[name] not in allowed
    ]
    if odd:
        raise CheckpointError(f"{files.path / CONFIG_FILE}: unsupported {', '.join(odd)}")


def integer(files: CheckpointFiles, name: str, default: int) -> tuple[int, str]:
    """An integer field with LeRobot's default, and where it came from.

    Raises:
        CheckpointError: for a value that is no positive integer.
    """
    if name not in files.config:
        return default, f"LeRobot default of {name}"
    value = files.config[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{files.path / CONFIG_FILE}: {name} must be a positive integer, not {value!r}")
    return value, f"config.json: {name}"


def feature_width(files: CheckpointFiles, group: str, name: str) -> int:
    """Width of a vector feature, such as `observation.state` of `input_features`.

    Raises:
        CheckpointError: where the feature is missing or no vector.
    """
    feature = _features(files, group).get(name)
    shape = feature.get("shape") if isinstance(feature, Mapping) else None
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int):
        raise CheckpointError(
            f"{files.path / CONFIG_FILE}: {group} has no vector '{name}'; "
            f"present: {', '.join(_features(files, group)) or 'none'}"
        )
    return shape[0]


def camera_names(files: CheckpointFiles) -> list[str]:
    """Cameras in the order of the prefix, without the empty ones that only pad the prefix."""
    return [
        name.removeprefix(IMAGE_PREFIX)
        for name, feature in _features(files, "input_features").items()
        if isinstance(feature, Mapping)
        and feature.get("type") == "VISUAL"
        and not name.startswith(IMAGE_PREFIX + "empty_camera")
    ]


def norm_kind(files: CheckpointFiles, step: Step | None, feature_type: str) -> tuple[NormKind, str]:
    """Normalisation of `STATE` or `ACTION`: what the pipeline runs, else what `config.json` says.

    Raises:
        CheckpointError: for a mode that is not supported.
    """
    if step is not None and feature_type in step.config.get("norm_map", {}):
        mode, source = step.config["norm_map"][feature_type], f"{step.name}: norm_map"
    else:
        mapping = files.config.get("normalization_mapping", {})
        mode, source = mapping.get(feature_type, "missing"), "config.json: normalization_mapping"
    if mode not in _NORM_KINDS:
        raise CheckpointError(
            f"{files.path}: normalisation mode {mode!r} for {feature_type} is not supported; "
            f"known: {', '.join(_NORM_KINDS)}"
        )
    return _NORM_KINDS[mode], source


def relative_mask(pipeline: Pipeline, width: int) -> tuple[bool, ...] | None:
    """Which action columns are relative to the state; None where none is.

    A column is absolute where an excluded joint's name occurs in its own; columns without names are
    all relative.
    """
    step = pipeline.find("relative_actions_processor")
    if step is None or not step.config.get("enabled"):
        return None
    excluded = [str(joint).lower() for joint in step.config.get("exclude_joints") or [] if joint]
    names = [str(name).lower() for name in step.config.get("action_names") or []]
    named = tuple(not any(joint in name for joint in excluded) for name in names[:width])
    return named + (True,) * (width - len(named))


def _features(files: CheckpointFiles, group: str) -> Mapping[str, Any]:
    features = files.config.get(group)
    return features if isinstance(features, Mapping) else {}
