"""The cut through the model that every backend makes, and the memory that a request occupies meanwhile.

Axes: C real cameras, T image tokens per camera (256), n real prompt tokens, P = C*T + n prefix length,
W width of the VLM (2048), L layers (18), H action horizon, A action width (32).

| component | reads from the slot | writes to the slot |
|---|---|---|
| vision  | `pixels` (C, 3, 224, 224) | `image_tokens` (C*T, W), projector included |
| prefix  | `image_tokens`, `prompt_tokens` (n) | `cache`: K and V, (L, 1, kv_heads, P, head_dim) each |
| denoise | `noise` (1, H, A), `state` (1, A; pi0 only), `cache`, `guidance` | `actions` (1, H, A) |

Pixels, noise, state, guidance and actions are float32, and so is the integration; tokens, embeddings and
K/V have the activation dtype of the precision. A component only enqueues work on the device's current
stream: it never waits for the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlad_configs.errors import EngineError
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_configs.rtc import GuidanceMode
from vlad_engines.backends.base import PrunedTokens
from vlad_engines.guidance_buffers import GuidanceBuffers
from vlad_engines.model.guided_flow import FlowGuidance
from vlad_engines.model.pi0 import KVCache
from vlad_engines.model.token_pruner import PrunedPrefix
from vlad_engines.processing.guidance import Guidance
from vlad_engines.processing.model_inputs import ModelInputs


class Slot:
    """All device memory of one request in flight, and its pinned host ends.

    Buffers are made once, for the largest request of the model; the properties are views of the part that
    the present request fills. Addresses therefore never change.

    Attributes:
        guidance_mode: how the present request continues an earlier chunk; None where it does not. A graph
            that reads `guidance` needs it only to tell `guided_vjp` apart.
        pruned: the prefix component's own prefix, where image tokens were left out; None where not.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        num_steps: int,
        pruning: TokenPruning | None = None,
    ) -> None:
        self.device = device
        self.request_id: int | None = None
        self.guidance_mode: GuidanceMode | None = None
        self.pruned: PrunedPrefix | None = None
        self._pruning = pruning
        self._config = config
        self._num_cameras = 0
        self._num_prompt_tokens = 0
        vlm, size, cameras = config.vlm, config.siglip.image_size, len(CAMERA_SLOTS)
        max_prefix = cameras * config.siglip.num_tokens + config.max_token_len
        pixels = (cameras, 3, size, size)
        actions = (1, config.action_horizon, config.action_dim)
        kv = (vlm.depth, 1, vlm.num_kv_heads, max_prefix, vlm.head_dim)

        def on_host(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")

        def on_device(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        image_bytes = (cameras * size * size * 3 * 4,)  # room for float32
        self._host_images = on_host(image_bytes, torch.uint8)
        self._images = on_device(image_bytes, torch.uint8)
        self._pixels = on_device(pixels, torch.float32)
        self._host_tokens = on_host((config.max_token_len,), torch.int64)
        self._tokens = on_device((config.max_token_len,), torch.int64)
        self._embeddings = on_device((1, max_prefix, vlm.width), dtype)
        self._keys = on_device(kv, dtype)
        self._values = on_device(kv, dtype)
        self._host_state = on_host((1, config.action_dim), torch.float32)
        self.state = on_device((1, config.action_dim), torch.float32)
        self._host_noise = on_host(actions, torch.float32)
        self.noise = on_device(actions, torch.float32)
        self.actions = on_device(actions, torch.float32)
        self._host_actions = on_host(actions, torch.float32)
        self._host_selected = on_host((2,), torch.int32)
        self._guidance = GuidanceBuffers(config, num_steps, device)

    def load(self, request_id: int, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> None:
        """Take over a request and enqueue its upload. The caller's arrays are free again on return.

        Args:
            noise: `[H, A]`.

        Raises:
            EngineError: for arrays that do not fit the model; the slot is unchanged then.
        """
        num_prompt_tokens = self._check(inputs, noise)
        self.request_id = request_id
        self._num_cameras = len(inputs.cameras)
        self._num_prompt_tokens = num_prompt_tokens
        self._load_images(inputs.images)
        self._host_tokens.numpy()[: len(inputs.tokens)] = inputs.tokens
        self._host_state.numpy()[0] = inputs.state
        self._host_noise.numpy()[0] = noise
        self._load_guidance(inputs.guidance)
        self._tokens.copy_(self._host_tokens, non_blocking=True)
        self.state.copy_(self._host_state, non_blocking=True)
        self.noise.copy_(self._host_noise, non_blocking=True)

    def require(self, request_id: int) -> None:
        """Assert, at the beginning of every stage, whose data this is.

        Raises:
            EngineError: where the slot holds another request.
        """
        if self.request_id != request_id:
            raise EngineError(f"slot holds request {self.request_id}, a stage expected request {request_id}")

    @property
    def prefix_length(self) -> int:
        """P of the present request."""
        return self.image_slots + self._num_prompt_tokens

    @property
    def image_slots(self) -> int:
        """Image tokens of the prefix: all of them, or the slots of the pruning."""
        tokens = self._num_cameras * self._config.siglip.num_tokens
        return tokens if self._pruning is None or not tokens else self._pruning.slots(tokens)

    @property
    def pixels(self) -> Tensor:
        """`[C, 3, 224, 224]` float32 in [-1, 1]."""
        return self._pixels[: self._num_cameras]

    @property
    def image_tokens(self) -> Tensor:
        """`[C*T, W]`, the first part of `embeddings`."""
        return self._embeddings[0, : self._num_cameras * self._config.siglip.num_tokens]

    @property
    def prompt_tokens(self) -> Tensor:
        """`[n]` int64."""
        return self._tokens[: self._num_prompt_tokens]

    @property
    def prompt_embeddings(self) -> Tensor:
        """`[n, W]`, the second part of `embeddings`; not with pruning, which makes a prefix of its own."""
        return self._embeddings[0, self.image_slots : self.prefix_length]

    @property
    def embeddings(self) -> Tensor:
        """`[1, P, W]`: image tokens and prompt without gaps."""
        return self._embeddings[:, : self.prefix_length]

    @property
    def cache(self) -> KVCache:
        """K and V of the prefix, each `[L, 1, kv_heads, P, head_dim]`."""
        length = self.prefix_length
        return KVCache(self._keys[:, :, :, :length], self._values[:, :, :, :length])

    @property
    def guidance(self) -> FlowGuidance:
        """How the chunk continues an earlier one; all weights and frozen actions 0 for plain sampling."""
        return self._guidance.device

    def enqueue_download(self) -> None:
        """Start copying the actions to the host, and what pruning selected."""
        self._host_actions.copy_(self.actions, non_blocking=True)
        if self.pruned is not None:
            selection = self.pruned.selection
            self._host_selected.copy_(torch.cat((selection.kept, selection.union)), non_blocking=True)

    def pruned_tokens(self) -> PrunedTokens | None:
        """What pruning did to the present request, as downloaded; None where it is off."""
        if self.pruned is None:
            return None
        kept, voted = self._host_selected.tolist()
        return PrunedTokens(self._num_cameras * self._config.siglip.num_tokens, kept, voted)

    def take_actions(self) -> npt.NDArray[np.float32]:
        """A copy `[H, A]` of the downloaded actions; the device must have finished by then."""
        actions: npt.NDArray[np.float32] = self._host_actions.numpy()[0].copy()
        return actions

    def _load_guidance(self, guidance: Guidance | None) -> None:
        mode = None if guidance is None else guidance.mode
        if mode is None and self.guidance_mode is None:
            return  # the buffers hold zeros already
        self.guidance_mode = mode
        self._guidance.fill([guidance])
        self._guidance.upload()

    def _load_images(self, images: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> None:
        dtype = torch.uint8 if images.dtype == np.uint8 else torch.float32
        host = self._host_images[: images.nbytes].view(dtype).view(images.shape)
        device = self._images[: images.nbytes].view(dtype).view(images.shape)
        np.copyto(host.numpy(), images)
        device.copy_(host, non_blocking=True)
        self.pixels.copy_(device.permute(0, 3, 1, 2))
        if dtype == torch.uint8:
            self.pixels.div_(255.0).mul_(2.0).sub_(1.0)

    def _check(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> int:
        """Refuse what does not fit; returns the number of real prompt tokens."""
        config, size, cameras = self._config, self._config.siglip.image_size, len(inputs.cameras)
        order = [CAMERA_SLOTS.index(camera) for camera in inputs.cameras if camera in CAMERA_SLOTS]
        if len(order) != cameras or order != sorted(set(order)):
            raise EngineError(f"cameras must be some of {CAMERA_SLOTS} in this order, not {inputs.cameras}")
        _check_array("images", inputs.images, (cameras, size, size, 3), ("uint8", "float32"))
        length, longest = len(inputs.tokens), config.max_token_len
        if length > longest:
            raise EngineError(f"{length} prompt tokens exceed the model's max_token_len {longest}")
        _check_array("tokens", inputs.tokens, (length,), ("int64", "int32"))
        _check_array("token_mask", inputs.token_mask, (length,), ("bool",))
        real = int(np.count_nonzero(inputs.token_mask))
        if not inputs.token_mask[:real].all():
            raise EngineError("token_mask must begin with the real tokens; there is a gap in it")
        if real and not 0 <= inputs.tokens[:real].min() <= inputs.tokens[:real].max() < config.vocab_size:
            raise EngineError(f"prompt tokens must lie in 0..{config.vocab_size - 1}: {inputs.tokens[:real]}")
        if not cameras and not real:
            raise EngineError("neither a camera nor a prompt token to look at")
        _check_array("state", inputs.state, (config.action_dim,), ("float64", "float32"))
        self._guidance.check([inputs.guidance])
        _check_array("noise", noise, (config.action_horizon, config.action_dim), ("float32",))
        return real


def _check_array(name: str, array: npt.NDArray[Any], shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if array.shape != shape or array.dtype.name not in dtypes:
        raise EngineError(
            f"{name} must be {' or '.join(dtypes)} of shape {shape}, not {array.dtype} of shape {array.shape}"
        )


class Vision(Protocol):
    """Pixels of the real cameras to image tokens: SigLIP and projector."""

    def __call__(self, slot: Slot, request_id: int) -> None:
        """Enqueue. Raises EngineError where the slot holds another request."""
        ...


class Prefix(Protocol):
    """Image tokens and prompt to the K and V of every layer of the VLM."""

    def __call__(self, slot: Slot, request_id: int) -> None:
        """Enqueue. Raises EngineError where the slot holds another request."""
        ...


class Denoise(Protocol):
    """Noise to actions: all Euler steps of the action expert over the slot's K and V."""

    def __call__(self, slot: Slot, request_id: int) -> None:
        """Enqueue. Raises EngineError where the slot holds another request."""
        ...


class Components(NamedTuple):
    """What a backend makes. The names are those of the stages in timings and metadata."""

    vision: Vision
    prefix: Prefix
    denoise: Denoise
