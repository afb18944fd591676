"""The whole denoise loop as one kernel; see `cuda/denoise_loop.cu`. For one short chunk of pi0.5."""

from __future__ import annotations

import ctypes
import functools
import math
import pathlib
from collections.abc import Iterator

import torch
from torch import Tensor

from vlad_configs.models import GemmaConfig, ModelConfig
from vlad_engines.backends.triton.cuda.kernel import CudaKernel
from vlad_engines.backends.triton.cuda.packing import BLOCKS, UNIT
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.weights import FusedWeights
from vlad_engines.backends.triton.workspace import Workspace

_SOURCE = pathlib.Path(__file__).parent / "cuda" / "denoise_loop.cu"
_MOST_ROWS = 16
_THREADS = 384
_TILE = 16  # query rows of a block
_KEYS = 64  # of a block


def supports(config: ModelConfig, key: SlotKey) -> bool:
    """True where the kernel is made for this model, this shape and the present device."""
    expert, rows = config.expert, key.batch * config.action_horizon
    return (
        config.family == "pi05"
        and (expert.width, expert.mlp_dim, expert.num_heads) == (BLOCKS * UNIT, 4096, 8)
        and (expert.head_dim, expert.num_kv_heads, config.action_dim % 8) == (256, 1, 0)
        and key.batch == 1
        and rows <= _MOST_ROWS
        and _groups(rows, expert) * _splits(key.prefix(config), rows) <= BLOCKS
        and torch.cuda.get_device_capability() == (9, 0)
        and torch.cuda.get_device_properties().multi_processor_count >= BLOCKS
    )


class _Arguments(ctypes.Structure):
    """`struct Arguments` of the kernel."""

    POINTERS = (
        *("weights", "scale", "shift", "gate", "rope_cos", "rope_sin"),
        *("length", "start", "noise", "actions"),
        *("in_weight", "in_bias", "out_weight", "out_bias", "keys", "values"),
        *("times", "guide", "target", "gains", "exchange"),
    )
    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        ("prefix", ctypes.c_int),
        ("first_step", ctypes.c_int),
        ("end_step", ctypes.c_int),
        ("time_step", ctypes.c_float),
    )


class DenoiseLoop:
    """Noise of a slot to actions, in one launch. The same interface as `stages.DenoiseStage`."""

    def __init__(self, config: ModelConfig, weights: FusedWeights, slot: Slot, workspace: Workspace) -> None:
        expert, rows = config.expert, slot.suffix
        assert weights.expert_loop is not None
        self._kernel = _kernel(
            torch.cuda.current_device(),
            ROWS=rows,
            LAYERS=expert.depth,
            HEADS=expert.num_heads,
            MLP=expert.mlp_dim,
            ACTION_DIM=config.action_dim,
        )
        self._slot, self._steps = slot, len(weights.schedule.times)
        words, counters = _exchange_words(slot.prefix, rows, expert)
        exchange = workspace.get("loop.exchange", words, dtype=torch.int32)
        self._counters = exchange[:counters]
        constants, action_in, action_out = weights.constants, weights.action_in, weights.action_out
        tensors = {
            "weights": weights.expert_loop,
            "scale": constants.scale,
            "shift": constants.shift,
            "gate": constants.gate,
            "rope_cos": weights.rope_cos,
            "rope_sin": weights.rope_sin,
            "length": slot.visible,
            "start": slot.suffix_start,
            "noise": slot.noise,
            "actions": slot.actions,
            "in_weight": action_in.project,
            "in_bias": action_in.step_bias,
            "out_weight": action_out.weight,
            "out_bias": action_out.bias,
            "keys": slot.keys,
            "values": slot.values,
            "times": torch.tensor(weights.schedule.times, device=slot.actions.device),
            "guide": slot.guidance.device.weights,
            "target": slot.guidance.device.target,
            "gains": slot.guidance.device.gains,
            "exchange": exchange,
        }
        assert all(tensor.is_contiguous() for tensor in tensors.values())
        self._tensors = tensors  # the kernel knows them by address only
        self._arguments = _Arguments(
            *(tensors[name].data_ptr() for name in _Arguments.POINTERS),
            slot.prefix,
            0,
            self._steps,
            weights.schedule.step,
        )

    def __call__(self) -> None:
        """Enqueue."""
        self._launch(0, self._steps)

    def path(self) -> Iterator[Tensor]:
        """Enqueue step by step; yields the slot's actions, `[B, H, A]`, after each Euler step."""
        for step in range(self._steps):
            self._launch(step, step + 1)
            yield self._slot.actions

    def _launch(self, first: int, end: int) -> None:
        self._counters.zero_()
        self._arguments.first_step, self._arguments.end_step = first, end
        self._kernel.launch(BLOCKS, _THREADS, self._arguments)


def _groups(rows: int, expert: GemmaConfig) -> int:
    """Tiles of query rows: a row and a head each."""
    return math.ceil(rows * expert.num_heads / _TILE)


def _splits(prefix: int, rows: int) -> int:
    """Parts of the keys."""
    return math.ceil((prefix + rows) / _KEYS)


def _exchange_words(prefix: int, rows: int, expert: GemmaConfig) -> tuple[int, int]:
    """Words of 4 bytes that the kernel's exchange takes, and how many of them are counters."""
    groups = _groups(rows, expert)
    counters = 32 * (1 + groups)
    queries = expert.num_heads * expert.head_dim
    columns = expert.width + 2 * queries + 2 * expert.head_dim + expert.mlp_dim
    parts = groups * _splits(prefix, rows) * _TILE
    return counters + rows * columns // 2 + parts * (expert.head_dim + 2), counters


@functools.cache
def _kernel(device: int, **definitions: int) -> CudaKernel:
    # Loaded into the context of the current device, `device`; no other one can launch it.
    return CudaKernel(_SOURCE, definitions)
