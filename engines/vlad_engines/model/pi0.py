"""The pi0 / pi0.5 network, cut where the components are cut: images, prefix, denoise steps.

Shapes: B samples, T image tokens per camera, P prefix tokens (real cameras x T + real prompt tokens),
H action horizon, A action width, S suffix tokens (H, and one more for pi0's state), W width of the VLM.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlad_configs.errors import CheckpointError
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_engines.model import openpi_names
from vlad_engines.model.attention import additive_mask, block_mask
from vlad_engines.model.flow import euler_path, euler_schedule, time_embedding
from vlad_engines.model.gemma import GemmaStack, Modulation, TokenPlacement, split_modulations
from vlad_engines.model.observation import Observation
from vlad_engines.model.precision import Precision, parameter_dtype
from vlad_engines.model.rope import rope_tables
from vlad_engines.model.siglip import SiglipTower

Conditioning = Tensor | tuple[Modulation, ...]
"""pi0: `[B, expert width]`, or one per action, `[B, H, expert width]`. pi0.5: of every norm of the expert."""


class KVCache(NamedTuple):
    """Keys (after RoPE) and values of the prefix, each `[depth, B, kv_heads, P, head_dim]`."""

    keys: Tensor
    values: Tensor


class Prefix(NamedTuple):
    """Embedded prefix tokens.

    Attributes:
        embeddings: `[B, P, W]`; each sample's tokens come first, zeros pad it to the longest sample.
        lengths: `[B]` int64, tokens of each sample; None where no sample is padded.
        positions: `[B, P]` int64, where each token stands; None where it is its index.
        suffix_start: `[B]` int64, the position of the first token behind the prefix; None where it is
            the number of the sample's tokens.
    """

    embeddings: Tensor
    lengths: Tensor | None
    positions: Tensor | None = None
    suffix_start: Tensor | None = None


class Pi0(nn.Module):
    """pi0 or pi0.5, as `config.family` says. A new one is float32; see `from_openpi_weights`."""

    rope_cos: Tensor
    rope_sin: Tensor
    suffix_block_starts: Tensor
    """`[S]` bool, see `attention.block_mask`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        adaptive = config.family == "pi05"
        width = config.expert.width
        self.vision_tower = SiglipTower(config.siglip)
        self.projector = nn.Linear(config.siglip.width, config.vlm.width)
        self.token_embedding = nn.Embedding(config.vocab_size, config.vlm.width)
        self.vlm = GemmaStack(config.vlm)
        self.expert = GemmaStack(config.expert, condition_width=width if adaptive else None)
        self.action_in_proj = nn.Linear(config.action_dim, width)
        self.action_out_proj = nn.Linear(width, config.action_dim)
        if adaptive:
            self.time_mlp_in = nn.Linear(width, width)
            self.time_mlp_out = nn.Linear(width, width)
        else:
            self.state_proj = nn.Linear(config.action_dim, width)
            self.action_time_mlp_in = nn.Linear(2 * width, width)
            self.action_time_mlp_out = nn.Linear(width, width)
        cos, sin = rope_tables(config.vlm.head_dim, self.max_prefix_length + self.suffix_length)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        starts = torch.tensor(self._suffix_block_starts(), device="cpu")
        self.register_buffer("suffix_block_starts", starts, persistent=False)

    @classmethod
    def from_openpi_weights(
        cls,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        precision: Precision = "fp32",
        device: str | torch.device = "cpu",
    ) -> Pi0:
        """Build a network for inference from tensors under their openpi names.

        One tensor at a time is converted and moved. A tensor that already has the right dtype and device
        is shared with `weights`, not copied.

        Raises:
            CheckpointError: where names or shapes differ from `openpi_names.expected_tensors(config)`.
        """
        expected = openpi_names.expected_tensors(config)
        faults = [f"missing {name}" for name in expected if name not in weights]
        faults += [f"unexpected {name}" for name in weights if name not in expected]
        faults += [
            f"{name} has shape {tuple(weights[name].shape)}, expected {shape}"
            for name, shape in expected.items()
            if name in weights and tuple(weights[name].shape) != shape
        ]
        if faults:
            raise CheckpointError(f"weights do not fit this {config.family} network: " + "; ".join(faults))
        with torch.device("meta"):
            model = cls(config).requires_grad_(False)
        parameters = {
            openpi_names.parameter_name(name): weights[name].to(device, parameter_dtype(name, precision))
            for name in expected
        }
        model.load_state_dict(parameters, assign=True)
        return model.to(device).eval()

    def to_precision(self, precision: Precision) -> Pi0:
        """Convert the parameters in place; see `precision`. Going to bf16 and back keeps the rounding."""
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(parameter_dtype(openpi_names.openpi_name(name), precision))
        return self

    @property
    def activation_dtype(self) -> torch.dtype:
        """The dtype of image tokens, prefix embeddings, K/V and the residual streams."""
        return self.token_embedding.weight.dtype

    @property
    def max_prefix_length(self) -> int:
        """P with all cameras and a full prompt."""
        return len(CAMERA_SLOTS) * self.config.siglip.num_tokens + self.config.max_token_len

    @property
    def suffix_length(self) -> int:
        """S."""
        return len(self._suffix_block_starts())

    # ---- vision ----

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Images `[N, 3, 224, 224]` float32 in [-1, 1] to image tokens `[N, T, W]`."""
        tokens: Tensor = self.projector(self.vision_tower(pixels))
        return tokens

    # ---- prefix ----

    def embed_prompt(self, tokens: Tensor) -> Tensor:
        """Token ids `[...]` int64 to `[..., W]`, scaled by sqrt(W)."""
        rows: Tensor = self.token_embedding(tokens)
        return rows * math.sqrt(self.config.vlm.width)

    def embed_prefix(self, observation: Observation) -> Prefix:
        """Embed images and prompts and pack each sample's tokens without gaps."""
        image_tokens = torch.split(self.embed_images(observation.pixels), list(observation.camera_counts))
        prompts = zip(observation.tokens, observation.token_counts, strict=True)
        samples = [
            torch.cat((images.flatten(0, 1), self.embed_prompt(tokens[:count])))
            for images, (tokens, count) in zip(image_tokens, prompts, strict=True)
        ]
        lengths = [len(sample) for sample in samples]
        if len(set(lengths)) == 1:
            return Prefix(torch.stack(samples), None)
        longest = max(lengths)
        padded = [F.pad(sample, (0, 0, 0, longest - len(sample))) for sample in samples]
        return Prefix(torch.stack(padded), torch.tensor(lengths, device=observation.tokens.device))

    def compute_prefix_kv_cache(self, prefix: Prefix, out: KVCache | None = None) -> KVCache:
        """Run the VLM over the prefix as far as its keys and values need it.

        Args:
            out: where to write, buffers of the result's shape; without it new ones are made.

        Returns:
            The cache in the activation dtype. What belongs to padding is meaningless.
        """
        layers = self.vlm.key_values(prefix.embeddings, self.place_prefix(prefix))
        if out is None:
            all_keys, all_values = zip(*layers, strict=True)
            return KVCache(torch.stack(all_keys), torch.stack(all_values))
        for keys_out, values_out, (keys, values) in zip(*out, layers, strict=True):
            keys_out.copy_(keys)
            values_out.copy_(values)
        return out

    # ---- denoise ----

    def time_conditioning(self, time: Tensor) -> Tensor:
        """All that a denoise step takes from its time, `[B]` float32 with B or 1 samples.

        Returns:
            float32. pi0: the time embedding `[B, expert width]`. pi0.5: the modulations of every norm
            of the expert `[2 * depth + 1, 3, B, 1, expert width]`.
        """
        embedding = time_embedding(time, self.config.expert.width)
        if self.config.family == "pi0":
            return embedding
        return self.expert.modulations(self.adarms_condition(embedding))

    def adarms_condition(self, embedding: Tensor) -> Tensor:
        """pi0.5: time embedding `[B, expert width]` to the condition of the adaptive norms, same shape."""
        return F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(embedding))))

    def step_conditioning(self, num_steps: int) -> Tensor:
        """`time_conditioning` of every Euler step with batch 1, stacked along a new first axis."""
        times = torch.tensor(euler_schedule(num_steps).times, device=self.rope_cos.device)
        return torch.stack([self.time_conditioning(time[None]) for time in times])

    def frozen_conditioning(self, conditioning: Tensor, at_zero: Tensor, frozen: Tensor) -> Tensor:
        """Condition frozen actions on t = 0, as training-time action conditioning does, the others as given.

        Args:
            conditioning, at_zero: from `time_conditioning`, the latter for a time of 0.
            frozen: `[B, H]` bool.

        Returns:
            A conditioning per action, for `as_conditioning`. pi0: `[B, H, expert width]`. pi0.5:
            `[2 * depth + 1, 3, B, H, expert width]`.
        """
        if self.config.family == "pi0":
            return torch.where(frozen[:, :, None], at_zero[:, None], conditioning[:, None])
        return torch.where(frozen[:, :, None], at_zero, conditioning)

    def as_conditioning(self, conditioning: Tensor) -> Conditioning:
        """From `time_conditioning` or `frozen_conditioning` to what `denoise_step_with_cache` takes."""
        return conditioning if self.config.family == "pi0" else split_modulations(conditioning)

    def place_suffix(
        self, prefix_length: int, lengths: Tensor | None = None, start: Tensor | None = None
    ) -> TokenPlacement:
        """Positions and mask of the suffix behind a prefix of `prefix_length` (P) tokens.

        The same for all steps of a request.

        Args:
            lengths: see `Prefix`.
            start: `suffix_start` of `Prefix`.
        """
        positions = torch.arange(self.suffix_length, device=self.rope_cos.device)
        first = lengths if start is None else start
        if first is None:
            cos, sin = self._rope(positions + prefix_length)
        else:
            cos, sin = self._rope(positions + first[:, None])
        return TokenPlacement(cos, sin, self._suffix_bias(prefix_length, lengths))

    def embed_suffix(self, x_t: Tensor, conditioning: Conditioning, state: Tensor) -> Tensor:
        """Noisy actions `[B, H, A]`, and for pi0 state and time, to float32 tokens `[B, S, expert width]`."""
        actions: Tensor = self.action_in_proj(x_t)
        if self.config.family == "pi05":
            return actions
        assert isinstance(conditioning, Tensor)
        per_action = conditioning if conditioning.ndim == 3 else conditioning[:, None]
        time = per_action.expand_as(actions)
        mixed = F.silu(self.action_time_mlp_in(torch.cat((actions, time), dim=-1)))
        return torch.cat((self.state_proj(state)[:, None], self.action_time_mlp_out(mixed)), dim=1)

    def denoise_step_with_cache(
        self, x_t: Tensor, conditioning: Conditioning, state: Tensor, cache: KVCache, suffix: TokenPlacement
    ) -> Tensor:
        """The velocity at one time.

        Args:
            x_t: `[B, H, A]` float32.
            conditioning: from `as_conditioning`: one for all samples, one for each, or one for each action.
            state: `[B, A]` float32.
            cache: of the prefix; it is not changed.
            suffix: from `place_suffix`.

        Returns:
            v_t `[B, H, A]` float32.
        """
        tokens = self.embed_suffix(x_t, conditioning, state).to(self.activation_dtype)
        modulations = None if isinstance(conditioning, Tensor) else conditioning
        hidden = self.expert(tokens, suffix, cache, modulations)
        velocity: Tensor = self.action_out_proj(hidden[:, -self.config.action_horizon :].float())
        return velocity

    @torch.inference_mode()
    def sample_actions(
        self, observation: Observation, noise: Tensor, num_steps: int = 10, enable_kv_cache: bool = True
    ) -> Tensor:
        """Noise `[B, H, A]` float32 to actions of the same shape.

        Args:
            enable_kv_cache: False computes the prefix again in every step; same actions.
        """
        prefix = self.embed_prefix(observation)
        cache = self.compute_prefix_kv_cache(prefix)
        suffix = self.place_suffix(prefix.embeddings.shape[1], prefix.lengths, prefix.suffix_start)
        conditioning = [self.as_conditioning(each) for each in self.step_conditioning(num_steps)]

        def velocity(step: int, x_t: Tensor) -> Tensor:
            seen = cache if enable_kv_cache else self.compute_prefix_kv_cache(prefix)
            return self.denoise_step_with_cache(x_t, conditioning[step], observation.state, seen, suffix)

        *_, actions = euler_path(velocity, noise, euler_schedule(num_steps))
        return actions

    # ---- positions and masks ----

    def place_prefix(self, prefix: Prefix) -> TokenPlacement:
        """Positions and mask of the prefix tokens among themselves."""
        index = torch.arange(prefix.embeddings.shape[1], device=self.rope_cos.device)
        bias = None
        if prefix.lengths is not None:
            bias = additive_mask(index < prefix.lengths[:, None])[:, None]
        return TokenPlacement(*self._rope(index if prefix.positions is None else prefix.positions), bias)

    def _rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions `[T]` or `[B, T]` to cosines and sines for `TokenPlacement`."""
        dtype, rows = self.activation_dtype, (-1, 1, positions.shape[-1], self.rope_cos.shape[-1])
        return self.rope_cos[positions].view(rows).to(dtype), self.rope_sin[positions].view(rows).to(dtype)

    def _suffix_block_starts(self) -> tuple[bool, ...]:
        """pi0's state token is a block of its own; the actions that follow it are one block."""
        first = (True,) if self.config.family == "pi05" else (True, True)
        return first + (False,) * (self.config.action_horizon - 1)

    def _suffix_bias(self, prefix_length: int, lengths: Tensor | None) -> Tensor | None:
        if lengths is None and self.config.family == "pi05":
            return None
        device = self.rope_cos.device
        if lengths is None:
            lengths = torch.full((1,), prefix_length, device=device)
        prefix_valid = torch.arange(prefix_length, device=device) < lengths[:, None]
        suffix_valid = prefix_valid.new_ones(len(lengths), self.suffix_length)
        starts = F.pad(self.suffix_block_starts, (prefix_length, 0)).expand(len(lengths), -1)
        allowed = block_mask(torch.cat((prefix_valid, suffix_valid), dim=1), starts)
        return additive_mask(allowed[:, prefix_length:])
