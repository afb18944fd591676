"""One observation to model inputs, one model chunk to robot actions, as a `Contract` says.

The order of the steps is that of openpi's `policies/policy_config.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.contract import Contract
from vlad_configs.environments import Camera, prompt_text
from vlad_configs.errors import CheckpointError, EngineError, ObservationError
from vlad_configs.models import CAMERA_SLOTS
from vlad_engines.processing import images, robot_conventions
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.processing.normalization import Normalizer, NormStats
from vlad_engines.processing.tokenizer import Tokenizer, encode_prompt, pad_tokens

_FLOAT32_MAX = float(np.finfo(np.float32).max)

_FAR_OUTSIDE: Mapping[str, float] = {"quantile": 2.0, "zscore": 5.0, "identity": math.inf}
"""Normalised states beyond are noted: half a span (q01 to q99) away, or five standard deviations."""


class Processor:
    """Converts between a robot and a model. Holds no state between requests and writes into none.

    Args:
        contract: what checkpoint and environment agree on.
        norm_stats: statistics of state and actions.
        tokenizer: of the checkpoint.
        default_prompt: used for requests without a prompt; goes before the contract's own.

    Raises:
        CheckpointError: where the statistics do not fit the contract.
    """

    def __init__(
        self,
        contract: Contract,
        norm_stats: NormStats,
        tokenizer: Tokenizer,
        default_prompt: str | None = None,
    ) -> None:
        self._contract = contract
        self._environment = contract.environment
        self._tokenizer = tokenizer
        self._default_prompt = contract.default_prompt if default_prompt is None else default_prompt
        self._state = Normalizer.create(contract.norm_kind["state"], contract.norm_formula, norm_stats.state)
        self._actions = Normalizer.create(
            contract.norm_kind["actions"], contract.norm_formula, norm_stats.actions
        )
        check_stats_width(contract, norm_stats)
        mask = contract.delta_mask or ()
        self._delta_columns = np.flatnonzero(mask)

    @property
    def default_prompt(self) -> str | None:
        """What a request without a prompt gets; None where it is refused."""
        return self._default_prompt

    def prepare(self, observation: Mapping[str, Any]) -> ModelInputs:
        """Turn a request into model inputs.

        Args:
            observation: the request, openpi's keys; its arrays may be read-only.

        Raises:
            ObservationError: for the first key at fault.
        """
        self._environment.check(observation, prompt_optional=self._default_prompt is not None)
        prompt = self._prompt(observation)
        cameras, pictures = self._pictures(observation)
        robot_state, state = self._states(observation)
        self._check_magnitude(state)
        ids = self._token_ids(prompt, state)
        tokens, token_mask = pad_tokens(ids, self._contract.model.max_token_len)
        return ModelInputs(
            cameras=cameras,
            images=pictures,
            tokens=tokens,
            token_mask=token_mask,
            state=_pad(state, self._contract.model.action_dim),
            robot_state=robot_state,
            notes=self._notes(ids, state),
        )

    def count_tokens(self, observation: Mapping[str, Any]) -> int:
        """How long a valid request's prompt is with all that its template adds; `prepare` may cut it."""
        return len(self._token_ids(self._prompt(observation), self._states(observation)[1]))

    def finish(self, model_actions: npt.NDArray[np.float32], inputs: ModelInputs) -> npt.NDArray[np.float64]:
        """Turn a chunk of the model into actions of the robot.

        Args:
            model_actions: `[action_horizon, action_dim]` float32.
            inputs: what `prepare` returned for the same request.

        Returns:
            `[action_horizon, action_width]` float64.

        Raises:
            EngineError: where the chunk holds NaN or infinity; such actions never reach a robot.
        """
        finite = np.isfinite(model_actions)
        if not finite.all():
            raise EngineError(
                f"the model returned {int((~finite).sum())} non-finite of {finite.size} action values; "
                "the chunk was discarded"
            )
        actions = self._unnormalize(model_actions)
        actions[:, self._delta_columns] += inputs.robot_state[self._delta_columns]
        return robot_conventions.actions_to_robot(
            self._environment.conversion, actions[:, : self._environment.action_width]
        )

    def robot_state(self, observation: Mapping[str, Any]) -> npt.NDArray[np.float64]:
        """The state of a valid request in the robot's own units, `[state_width]`: the anchor of its chunk."""
        parts = [
            np.asarray(observation[vector.key], dtype=np.float64).reshape(vector.width)
            for vector in self._environment.state
        ]
        return np.concatenate(parts)

    def actions_to_model(
        self, actions: npt.NDArray[np.floating[Any]], inputs: ModelInputs
    ) -> npt.NDArray[np.float64]:
        """Undo `finish`: actions of the robot to what the model would have to return for `inputs`.

        Args:
            actions: `[k, action_width]` in the robot's units.
            inputs: of the request that the model shall answer; the anchor of relative actions.

        Returns:
            `[k, action_width]`, normalised; the model's padding columns are left out.
        """
        converted = robot_conventions.actions_to_model(
            self._environment.conversion, actions.astype(np.float64)
        )
        return self._to_model(converted, inputs)

    def reanchor(
        self,
        model_actions: npt.NDArray[np.floating[Any]],
        anchor_state: npt.NDArray[np.floating[Any]] | None,
        inputs: ModelInputs,
    ) -> npt.NDArray[np.float64]:
        """Express actions of an earlier chunk as the model would for `inputs`.

        Relative actions become absolute with the state that they were computed from, then relative to
        the present one. Absolute actions stay as they are.

        Args:
            model_actions: `[k, action_dim]`, as the model returned them.
            anchor_state: `[state_width]`, from `robot_state` for the earlier request.

        Returns:
            `[k, action_width]`, normalised; the model's padding columns are left out.

        Raises:
            ObservationError: for relative actions without an anchor, or one of another width.
        """
        width, state_width = self._environment.action_width, self._environment.state_width
        if not len(self._delta_columns):
            return model_actions[:, :width].astype(np.float64)
        if anchor_state is None or anchor_state.shape != (state_width,):
            received = "nothing" if anchor_state is None else f"shape {list(anchor_state.shape)}"
            expected = f"the {state_width} numbers of state that the relative model_actions started from"
            raise ObservationError("vlad/rtc/anchor_state", expected, received)
        anchor = robot_conventions.state_to_model(
            self._environment.conversion, anchor_state.astype(np.float64)
        )
        actions = self._unnormalize(model_actions)
        actions[:, self._delta_columns] += anchor[self._delta_columns]
        return self._to_model(actions[:, :width], inputs)

    def _unnormalize(self, model_actions: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        if self._actions is None:
            return model_actions.astype(np.float64)
        return self._actions.unnormalize(model_actions)

    def _to_model(self, actions: npt.NDArray[np.float64], inputs: ModelInputs) -> npt.NDArray[np.float64]:
        """Absolute `[k, action_width]` in the model's convention, an array of our own, to normalised ones."""
        actions[:, self._delta_columns] -= inputs.robot_state[self._delta_columns]
        return actions if self._actions is None else self._actions.normalize(actions)

    def _prompt(self, observation: Mapping[str, Any]) -> str:
        if "prompt" not in observation:
            assert self._default_prompt is not None, "Environment.check admits no request without a prompt"
            return self._default_prompt
        prompt = prompt_text(observation["prompt"])
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise ObservationError("prompt", "a text", "lone surrogates, which encode no character") from None
        return prompt

    def _states(
        self, observation: Mapping[str, Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The state of a valid request in the model's convention, and the same normalised."""
        robot_state = robot_conventions.state_to_model(
            self._environment.conversion, self.robot_state(observation)
        )
        return robot_state, robot_state if self._state is None else self._state.normalize(robot_state)

    def _pictures(
        self, observation: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], npt.NDArray[np.uint8] | npt.NDArray[np.float32]]:
        by_slot: dict[str, Any] = {}
        for camera in self._environment.cameras:
            group: Any = observation
            for part in camera.path:
                group = group.get(part)
                if group is None:
                    break
            if group is not None and camera.slot is not None:
                by_slot[camera.slot] = self._picture(camera, group)
        cameras = tuple(slot for slot in CAMERA_SLOTS if slot in by_slot)
        return cameras, np.stack([by_slot[slot] for slot in cameras])

    def _picture(self, camera: Camera, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        pixels, side = images.channels_last(image, camera.layout), self._contract.model.siglip.image_size
        try:
            if self._contract.image_resize == "pil_antialiased":
                return images.resize_with_pad(images.to_uint8(pixels), side, side)
            unit = images.resize_with_pad_bilinear(images.to_unit_float(pixels), side, side)
            return unit * np.float32(2) - np.float32(1)
        except ValueError as error:
            raise ObservationError(camera.key, "uint8 in 0..255 or float in 0..1", str(error)) from None

    def _check_magnitude(self, state: npt.NDArray[np.float64]) -> None:
        """Refuse a state that overflows float32 once normalised: it would turn the chunk into NaN."""
        if not (np.abs(state) < _FLOAT32_MAX).all():
            keys = ", ".join(vector.key for vector in self._environment.state)
            raise ObservationError(keys, "numbers in the robot's range", "numbers beyond float32")

    def _notes(self, ids: list[int], state: npt.NDArray[np.float64]) -> dict[str, Any]:
        notes: dict[str, Any] = {}
        if (cut := len(ids) - self._contract.model.max_token_len) > 0:
            notes["cut_tokens"] = cut
        limit = _FAR_OUTSIDE[self._contract.norm_kind["state"]]
        if float(np.abs(state).max(initial=0.0)) > limit:
            outside = np.flatnonzero(np.abs(state) > limit).tolist()
            notes["state_outside"] = [[index, float(state[index])] for index in outside]
        return notes

    def _token_ids(self, prompt: str, state: npt.NDArray[np.float64]) -> list[int]:
        if self._contract.prompt_state_dims is not None:
            state = _pad(state, self._contract.prompt_state_dims)
        return encode_prompt(self._tokenizer, self._contract.prompt_template, prompt, state)


def check_stats_width(contract: Contract, norm_stats: NormStats) -> None:
    """Hold the widths of the statistics against the robot.

    Statistics may be as wide as the robot's vectors, or padded to the model's `action_dim` as old
    openpi checkpoints have them. Any other width belongs to another robot.

    Raises:
        CheckpointError: names the feature and the widths.
    """
    environment, model = contract.environment, contract.model
    for feature, stats, width in (
        ("state", norm_stats.state, environment.state_width),
        ("actions", norm_stats.actions, environment.action_width),
    ):
        if contract.norm_kind[feature] != "identity" and stats.width not in (width, model.action_dim):
            raise CheckpointError(
                f"norm stats of '{feature}' have {stats.width} numbers; {environment.name} has {width} "
                f"(or {model.action_dim}, padded as in the model); these statistics belong to another robot"
            )


def _pad(vector: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    return np.concatenate([vector, np.zeros(max(0, width - len(vector)))])
