"""Captured graphs for one shape of batch: fill the host buffers, replay, read the host buffer."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlad_configs.models import ModelConfig
from vlad_engines.backends.capabilities import Trace
from vlad_engines.backends.chunks import Chunks, pruned_tokens
from vlad_engines.backends.triton import denoise_loop
from vlad_engines.backends.triton.denoise_loop import DenoiseLoop
from vlad_engines.backends.triton.prefix_fp8 import Fp8Prefix, Fp8PrefixStage
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.stages import DenoiseStage, PrefixStage, VisionStage
from vlad_engines.backends.triton.weights import FusedWeights, from_pair_order
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.processing.model_inputs import ModelInputs

STAGES = ("vision", "prefix", "denoise")

_WARM_UP_RUNS = 2


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """Chunks, and seconds on the device per stage."""

    chunks: Chunks
    stage_seconds: Mapping[str, float]


class CapturedEngine:
    """One graph per stage over one slot. The uploads belong to vision, the download to denoise.

    Args:
        prefix: layers in float8 that stand in for those of `weights`.
        image_dtype: of the requests' images, uint8 or float32.
        alone: no other graph ever runs at the same time.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: FusedWeights,
        key: SlotKey,
        workspace: Workspace,
        prefix: Fp8Prefix | None = None,
        *,
        image_dtype: torch.dtype = torch.uint8,
        alone: bool = True,
    ) -> None:
        self.key = key
        steps = len(weights.schedule.times)
        slot = Slot(config, key, weights.token_embedding.dtype, workspace, steps, image_dtype=image_dtype)
        self.slot = slot
        self._host_inputs = [
            (torch.zeros_like(buffer, device="cpu").pin_memory(), buffer)
            for buffer in (slot.images, slot.tokens, slot.lengths, slot.state, slot.noise)
        ]
        # Warm-up runs before the first request; a sample without any token would divide by zero.
        self._host_inputs[2][0].fill_(slot.image_rows + key.prompt_bucket)
        self._outputs = [
            (torch.zeros_like(buffer, device="cpu").pin_memory(), buffer)
            for buffer in (slot.actions, slot.selected)
            if buffer is not None
        ]
        # What the graphs of several shapes need for a moment, because one of them runs at a time.
        self._prefix_pool = None if key.pruning is None else workspace.graph_pool
        self.vision = VisionStage(config, weights, slot, workspace)
        self.prefix: PrefixStage | Fp8PrefixStage
        if prefix is None:
            self.prefix = PrefixStage(config, weights, slot, workspace)
        else:
            self.prefix = Fp8PrefixStage(config, weights, prefix, slot, workspace)
        self.denoise: DenoiseStage | DenoiseLoop
        if weights.expert_loop is not None and denoise_loop.supports(config, key):
            self.denoise = DenoiseLoop(config, weights, slot, workspace)
        else:
            self.denoise = DenoiseStage(config, weights, slot, workspace, alone=alone)
        self._graphs = self._capture()
        self._marks = [
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(len(STAGES) + 1)
        ]

    def begin(self, inputs: Sequence[ModelInputs], noise: Sequence[npt.NDArray[np.float32]]) -> None:
        """Let the device compute one batch. Nothing else may begin here until `finish` has returned.

        Args:
            inputs: `key.batch` observations that fit the key.
            noise: `[H, A]` for each.
        """
        self._fill(inputs, noise)
        self._marks[0].record()
        for graph, mark in zip(self._graphs, self._marks[1:], strict=True):
            graph.replay()
            mark.record()

    def finish(self) -> BatchResult:
        """What was begun; returns when the actions are in host memory."""
        self._marks[-1].synchronize()
        seconds = {
            stage: 1e-3 * before.elapsed_time(after)
            for stage, (before, after) in zip(STAGES, itertools.pairwise(self._marks), strict=True)
        }
        return BatchResult(self.take(), seconds)

    def take(self) -> Chunks:
        """A copy of what was downloaded; the device must have finished by then."""
        actions, *selected = (host.numpy().copy() for host, _ in self._outputs)
        return Chunks(actions, pruned_tokens(self.slot.image_rows, selected[0]) if selected else ())

    def trace(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> Trace:
        """Run the stages of one request one by one and copy out what they hand over."""
        self._fill([inputs], [noise])
        self._upload()
        self.vision()
        vision_tokens = _host(self.slot.image_tokens[0])
        self.prefix()
        rows = self.slot.prefix - self.key.prompt_bucket + int(inputs.token_mask.sum())
        keys, values = (
            _seen(cache, rows, int(self.slot.visible[0])) for cache in (self.slot.keys, self.slot.values)
        )
        return Trace(
            vision_tokens=vision_tokens,
            prefix_keys=_host(from_pair_order(keys)),
            prefix_values=_host(values),
            x_t=np.concatenate([_host(x_t) for x_t in self.denoise.path()]),
        )

    def _fill(self, inputs: Sequence[ModelInputs], noise: Sequence[npt.NDArray[np.float32]]) -> None:
        self.slot.guidance.fill([sample.guidance for sample in inputs])
        images, tokens, lengths, state, noise_buffer = (host.numpy() for host, _ in self._host_inputs)
        cameras = self.key.cameras
        for index, (sample, sample_noise) in enumerate(zip(inputs, noise, strict=True)):
            count = int(sample.token_mask.sum())
            images[index * cameras : (index + 1) * cameras] = sample.images
            tokens[index, :count] = sample.tokens[:count]
            tokens[index, count:] = 0
            lengths[index] = self.slot.image_rows + count
            state[index] = sample.state
            noise_buffer[index] = sample_noise

    def _upload(self) -> None:
        for host, buffer in self._host_inputs:
            buffer.copy_(host, non_blocking=True)
        self.slot.guidance.upload()

    def _download(self) -> None:
        for host, buffer in self._outputs:
            host.copy_(buffer, non_blocking=True)

    def _capture(self) -> list[torch.cuda.CUDAGraph]:
        """Run each stage on a side stream, so that kernels are compiled, then capture it."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                self._upload()
                self.vision()
                self.prefix()
                self.denoise()
        stream.synchronize()
        graphs = [torch.cuda.CUDAGraph() for _ in STAGES]
        with torch.cuda.graph(graphs[0], stream=stream):
            self._upload()
            self.vision()
        with torch.cuda.graph(graphs[1], stream=stream, pool=self._prefix_pool):
            self.prefix()
        with torch.cuda.graph(graphs[2], stream=stream):
            self.denoise()
            self._download()
        return graphs


def _seen(cache: Tensor, rows: int, seen: int) -> Tensor:
    """The first sample's rows of a cache, zeros for those that nobody sees."""
    first = cache[:, :1, :rows].clone()
    first[:, :, seen:] = 0.0
    return first


def _host(tensor: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.float().cpu().numpy().copy()
    return array
