"""The float32 reference of the check: `Pi0` run straight through, without any backend."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlad_configs.errors import EngineError
from vlad_configs.models import ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.capabilities import Trace
from vlad_engines.fidelity.observations import FidelityCase
from vlad_engines.fidelity.stored_reference import Reference
from vlad_engines.model.flow import euler_path, euler_schedule
from vlad_engines.model.observation import Observation
from vlad_engines.model.pi0 import Pi0
from vlad_engines.model.token_pruner import prune_prefix
from vlad_engines.processing.model_inputs import ModelInputs


def compute_reference(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    cases: Sequence[FidelityCase],
    num_steps: int,
    device: str,
    pruning: TokenPruning | None = None,
) -> Reference:
    """Build the float32 network, run it over all cases, and give its memory back.

    A full-size network takes 13 GB of the device meanwhile.

    Raises:
        EngineError: where it does not fit into the device's memory.
    """
    try:
        with strict_float32():
            model = Pi0.from_openpi_weights(config, weights, "fp32", device)
            traces = tuple(trace_model(model, case.inputs, case.noise, num_steps, pruning) for case in cases)
            del model
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"the float32 reference of the fidelity check does not fit on {device}: {error}"
        ) from error
    finally:
        free_device_memory(device)
    return Reference(tuple(cases), traces, num_steps)


@torch.inference_mode()
def trace_model(
    model: Pi0,
    inputs: ModelInputs,
    noise: npt.NDArray[np.float32],
    num_steps: int,
    pruning: TokenPruning | None = None,
) -> Trace:
    """Run one request and keep what the parts of the network hand to each other.

    Args:
        noise: `[H, A]`.
        pruning: of the backend that is compared; the reference selects by its own float32 tokens.
    """
    device = model.rope_cos.device
    observation = as_observation(inputs, device)
    prefix = model.embed_prefix(observation)
    vision_length = len(inputs.cameras) * model.config.siglip.num_tokens
    vision_tokens = prefix.embeddings[:, :vision_length]
    if pruning is not None and vision_length:
        prefix = prune_prefix(vision_tokens, prefix.embeddings[:, vision_length:], pruning).prefix
    cache = model.compute_prefix_kv_cache(prefix)
    suffix = model.place_suffix(prefix.embeddings.shape[1], prefix.lengths, prefix.suffix_start)
    conditioning = [model.as_conditioning(each) for each in model.step_conditioning(num_steps)]

    def velocity(step: int, x_t: Tensor) -> Tensor:
        return model.denoise_step_with_cache(x_t, conditioning[step], observation.state, cache, suffix)

    path = euler_path(velocity, torch.from_numpy(noise)[None].to(device), euler_schedule(num_steps))
    return Trace(
        vision_tokens=_host(vision_tokens[0]),
        prefix_keys=_host(seen(cache.keys[:, 0], prefix.lengths)),
        prefix_values=_host(seen(cache.values[:, 0], prefix.lengths)),
        x_t=np.concatenate([_host(x_t) for x_t in path]),
    )


def seen(cache: Tensor, lengths: Tensor | None) -> Tensor:
    """Keys or values `[L, kv_heads, P, head_dim]` of one sample, with zeros for those that nobody sees.

    Args:
        lengths: see `Prefix`.
    """
    if lengths is None:
        return cache
    real = torch.arange(cache.shape[2], device=cache.device) < lengths
    return torch.where(real[:, None], cache, torch.zeros_like(cache))


@contextlib.contextmanager
def strict_float32() -> Iterator[None]:
    """Keep TF32 out of matrix products, whatever the process has chosen."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def as_observation(inputs: ModelInputs, device: torch.device) -> Observation:
    """One request as the network takes it."""
    images = torch.from_numpy(np.ascontiguousarray(inputs.images)).to(device)
    pixels = images.permute(0, 3, 1, 2).float()
    if images.dtype == torch.uint8:
        pixels = pixels / 255.0 * 2.0 - 1.0
    count = int(np.count_nonzero(inputs.token_mask))
    return Observation(
        pixels=pixels,
        camera_counts=(len(inputs.cameras),),
        tokens=torch.from_numpy(inputs.tokens[inputs.token_mask]).long()[None].to(device),
        token_counts=(count,),
        state=torch.from_numpy(inputs.state).float()[None].to(device),
    )


def _host(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.float().cpu().numpy()
    return array


def free_device_memory(device: str) -> None:
    """Let torch give memory back that nobody holds any more."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
