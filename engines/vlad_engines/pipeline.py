"""The order in which the components work on requests."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch

from vlad_engines.backends.base import InferenceResult
from vlad_engines.components import Components, Slot
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.stage_clock import make_stage_clock


class SequentialPipeline:
    """One request at a time, one slot: vision, prefix, denoise, then the only wait.

    All work goes to the device's current stream, which orders the stages among themselves.
    """

    def __init__(self, components: Components, slot: Slot) -> None:
        self._components = components
        self._slot = slot
        self._clock = make_stage_clock(slot.device)
        self._request_ids = itertools.count()

    @torch.inference_mode()
    def run(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> InferenceResult:
        """Turn noise `[H, A]` into actions; returns when they are in host memory.

        Raises:
            EngineError: for inputs that do not fit the model.
        """
        slot, request_id = self._slot, next(self._request_ids)
        self._clock.start()
        slot.load(request_id, inputs, noise)
        for stage, component in zip(Components._fields, self._components, strict=True):
            component(slot, request_id)
            self._clock.mark(stage)
        slot.enqueue_download()
        stage_seconds = self._clock.wait()
        return InferenceResult(slot.take_actions(), stage_seconds, pruned=slot.pruned_tokens())
