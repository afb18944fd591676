"""The contract of a loaded policy: what goes in, what comes out, and how the two are converted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from vlad_configs.environments import Environment
from vlad_configs.models import ModelConfig

CheckpointLayout = Literal["openpi", "lerobot"]
PromptTemplate = Literal["text", "text_newline_joint", "task_state_action"]
NormKind = Literal["zscore", "quantile", "identity"]
NormFormula = Literal["openpi", "lerobot"]
ImageResize = Literal["pil_antialiased", "bilinear"]


@dataclasses.dataclass(frozen=True)
class Contract:
    """What a checkpoint and an environment agree on; derived once, at load time.

    Attributes:
        layout: where the weights came from.
        environment: the robot's side: request keys, cameras, widths.
        model: shapes of the network.
        num_denoising_steps: Euler steps from noise to actions.
        prompt_template: `text` = cleaned text and a newline encoded apart (openpi without state);
            `text_newline_joint` = raw text and newline encoded together (LeRobot pi0);
            `task_state_action` = "Task: ..., State: ...;\\nAction: " (state in the prompt).
        prompt_state_dims: width of the state in the prompt, only for `task_state_action`.
        norm_kind: per feature, keys `state` and `actions`.
        norm_formula: openpi adds 1e-6 to every span, LeRobot only guards exact zeros.
        delta_mask: per action column, True where the model predicts a difference to the state;
            None where no column does. Columns past its end are absolute.
        image_resize: how an image that is not 224x224 becomes one.
        trained_max_delay: longest delay for which the checkpoint was trained to continue a chunk whose
            first actions are given (arXiv 2512.05964); None where it was not.
        default_prompt: used where neither the request nor the daemon names one.
        metadata: extra keys for the client, such as `reset_pose`.
        sources: for each derived field, in words, where its value came from.
    """

    layout: CheckpointLayout
    environment: Environment
    model: ModelConfig
    num_denoising_steps: int
    prompt_template: PromptTemplate
    norm_kind: Mapping[str, NormKind]
    norm_formula: NormFormula
    delta_mask: tuple[bool, ...] | None
    image_resize: ImageResize
    prompt_state_dims: int | None = None
    trained_max_delay: int | None = None
    default_prompt: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def image_dtype(self) -> Literal["uint8", "float32"]:
        """What an image is after resizing: rounded to bytes, or not."""
        return "uint8" if self.image_resize == "pil_antialiased" else "float32"
