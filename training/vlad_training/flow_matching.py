"""The flow-matching loss of pi0 and pi0.5, in a module so that it can be trained on several devices.

x_t = t * noise + (1 - t) * actions; the network predicts noise - actions; the loss is the mean square.
Source: openpi `pi0_pytorch.py`; first actions given clean: arXiv 2512.05964 and LeRobot's pi05.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlad_configs.models import CAMERA_SLOTS
from vlad_configs.training import TrainConfig
from vlad_engines.model.pi0 import KVCache, Pi0, Prefix
from vlad_engines.model.token_pruner import straight_through
from vlad_training.augmentation import augment
from vlad_training.batch import Batch
from vlad_training.draws import Draws


class FlowMatchingLoss(nn.Module):
    """A network and its loss.

    Args:
        model: with float32 parameters.
        config: precision, augmentation, what counts in the loss.
        cameras: slots of the images in a batch, in order.
    """

    _moving: Tensor

    def __init__(self, model: Pi0, config: TrainConfig, cameras: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self._config = config
        # On the device from the start: what is copied there in a step makes the step wait.
        moving = torch.tensor(["wrist" not in camera for camera in cameras], device=model.rope_cos.device)
        self.register_buffer("_moving", moving, persistent=False)
        if not set(cameras) <= set(CAMERA_SLOTS):
            raise ValueError(f"cameras must be some of {CAMERA_SLOTS}, not {cameras}")

    def forward(self, batch: Batch, draws: Draws, pruning_noise: float = 0.0) -> Tensor:
        """The mean loss of a batch, a float32 scalar.

        Args:
            pruning_noise: height of the noise on the pruner's scores; without pruning it is ignored.
        """
        errors = self.elements(batch, draws, pruning_noise).mean(dim=-1)
        horizon = torch.arange(errors.shape[1], device=errors.device)
        counts = horizon >= draws.given[:, None]
        if self._config.mask_padding:
            counts = counts & _repeated(batch.inside, self._config.draws_per_sample)
        # The mean of each sample's mean: unlike one mean over all counted actions, it is the same
        # whether the batch is computed by one process or by several.
        per_sample = (errors * counts).sum(1) / counts.sum(1).clamp(min=1)
        return per_sample.mean()

    def elements(self, batch: Batch, draws: Draws, pruning_noise: float = 0.0) -> Tensor:
        """Squared errors of the velocity, `[B * K, H, A]` float32; see `Draws` for K."""
        model, device, each = self.model, batch.images.device.type, self._config.draws_per_sample
        bf16 = self._config.precision == "bf16"
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            prefix = self._prefix(batch, draws, pruning_noise)
            cache = model.compute_prefix_kv_cache(prefix)
        # Gradients of a sample's draws add up where they meet the one prefix.
        cache = KVCache(*(_repeated(part, each, dim=1) for part in cache))
        actions, state = _repeated(batch.actions, each), _repeated(batch.state, each)
        lengths, start = (
            None if part is None else _repeated(part, each) for part in (prefix.lengths, prefix.suffix_start)
        )
        # openpi keeps these in float32, and so does serving.
        with torch.autocast(device, enabled=False):
            given = torch.arange(actions.shape[1], device=draws.given.device)[None, :] < draws.given[:, None]
            time = torch.where(given, 0.0, draws.time[:, None])[:, :, None]
            x_t = time * draws.noise + (1 - time) * actions
            of_time = model.time_conditioning(draws.time)
            if self._config.rtc_max_delay:
                at_zero = model.time_conditioning(torch.zeros_like(draws.time))
                of_time = model.frozen_conditioning(of_time, at_zero, given)
            conditioning = model.as_conditioning(of_time)
            tokens = model.embed_suffix(x_t, conditioning, state)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            suffix = model.place_suffix(prefix.embeddings.shape[1], lengths, start)
            modulations = None if isinstance(conditioning, Tensor) else conditioning
            hidden = model.expert(tokens, suffix, cache, modulations)
        with torch.autocast(device, enabled=False):
            velocity = model.action_out_proj(hidden[:, -model.config.action_horizon :].float())
            errors: Tensor = (draws.noise - actions - velocity).square()
        return errors

    def pixels(self, images: Tensor, draws: Draws) -> Tensor:
        """Images `[B, C, S, S, 3]` uint8 to augmented `[B * C, 3, S, S]` float32 in [-1, 1]."""
        unit = images.flatten(0, 1).permute(0, 3, 1, 2).float() / 255.0
        if draws.image is not None:
            assert self._config.augmentation is not None
            moving = self._moving.repeat(len(images))
            unit = augment(unit, draws.image.flatten(0, 1), moving, self._config.augmentation)
        return unit * 2.0 - 1.0

    def _prefix(self, batch: Batch, draws: Draws, pruning_noise: float) -> Prefix:
        model = self.model
        with torch.autocast(batch.images.device.type, enabled=False):
            pixels = self.pixels(batch.images, draws)
        tokens = model.embed_images(pixels)
        images = tokens.view(len(batch.images), -1, tokens.shape[-1])
        prompts = model.embed_prompt(batch.tokens)
        lengths = images.shape[1] + batch.token_counts
        positions = None
        if (pruning := self._config.pruning) is not None:
            real = torch.arange(prompts.shape[1], device=prompts.device) < batch.token_counts[:, None]
            generator = torch.Generator(images.device).manual_seed(draws.pruning_seed)
            images, chosen = straight_through(images, prompts, real, pruning_noise, generator)
            if pruning.positions == "original":
                behind = torch.arange(prompts.shape[1], device=chosen.device) + images.shape[1]
                positions = torch.cat((chosen, behind.expand(len(chosen), -1)), dim=1)
        embeddings = torch.cat((images, prompts.to(images.dtype)), dim=1)
        return Prefix(embeddings, lengths, positions)


def _repeated(tensor: Tensor, times: int, dim: int = 0) -> Tensor:
    """Each entry of a dimension so many times in a row; the tensor itself for once."""
    return tensor if times == 1 else tensor.repeat_interleave(times, dim)
