"""Looks into the components while they serve one request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlad_engines.backends.capabilities import Trace
from vlad_engines.backends.pytorch.components import TorchDenoise, slot_prefix
from vlad_engines.components import Components, Slot
from vlad_engines.fidelity.reference import seen
from vlad_engines.processing.model_inputs import ModelInputs

_REQUEST_ID = -1
"""Pipelines count their requests from zero."""


class Tracer:
    """Runs the components of a pipeline in its slot, and copies out what they hand to each other."""

    def __init__(self, components: Components, slot: Slot) -> None:
        assert isinstance(components.denoise, TorchDenoise)
        self._components = components
        self._denoise = components.denoise
        self._slot = slot

    @torch.inference_mode()
    def trace(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> Trace:
        """See `capabilities.Traceable`."""
        slot = self._slot
        slot.load(_REQUEST_ID, inputs, noise)
        self._components.vision(slot, _REQUEST_ID)
        vision_tokens = _host(slot.image_tokens)
        self._components.prefix(slot, _REQUEST_ID)
        lengths = slot_prefix(slot).lengths
        return Trace(
            vision_tokens=vision_tokens,
            prefix_keys=_host(seen(slot.cache.keys[:, 0], lengths)),
            prefix_values=_host(seen(slot.cache.values[:, 0], lengths)),
            x_t=np.concatenate([_host(x_t) for x_t in self._denoise.path(slot)]),
        )


def _host(tensor: Tensor) -> npt.NDArray[np.float32]:
    # A copy also on the CPU: the slot's buffers serve the next request too.
    array: npt.NDArray[np.float32] = tensor.detach().to("cpu", torch.float32, copy=True).numpy()
    return array
