"""Compiles every kernel that the Triton stages of a network launch, for a Hopper GPU, on any machine.

`python -m tests.support.triton_compilation NETWORK`, NETWORK being a name in `NETWORKS`, without
TRITON_INTERPRET. Nothing is launched: this finds what the compiler refuses and the interpreter does not.
Prints a line for each kernel.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tests.support.triton_comparison import random_weights, small_config
from vlad_configs.models import ModelConfig
from vlad_configs.training import LIBERO_SMALL_MODEL
from vlad_engines.backends.triton.kernels import skinny, suffix_attention
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.stages import DenoiseStage, PrefixStage, VisionStage
from vlad_engines.backends.triton.weights import fuse_weights
from vlad_engines.backends.triton.workspace import Workspace

NETWORKS: dict[str, ModelConfig] = {
    "libero_small": LIBERO_SMALL_MODEL,
    "pi05": small_config("pi05"),
    "pi0": small_config("pi0"),
}

_HOPPER = GPUTarget("cuda", 90, 32)
_MULTIPROCESSORS = 132
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
_compiled: set[str] = set()


def compile_launch(
    kernel: JITFunction[Any], *arguments: Any, grid: Any, warmup: bool, **keywords: Any
) -> None:
    """Stands for `JITFunction.run`: as that would specialise the kernel, without a device."""
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    given |= {name: keywords.pop(name) for name in list(keywords) if name in kernel.arg_names}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for parameter in kernel.params:
        value, place = given[parameter.name], (parameter.num,)
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[place] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{_TYPES[value.dtype]}"
            attributes[place] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[place] = [["tt.divisibility", 16]]
    key = f"{kernel.__name__} {signature} {constants} {attributes} {keywords}"
    if key in _compiled:
        return
    _compiled.add(key)
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=_HOPPER, options=keywords)
    print(json.dumps({"kernel": kernel.__name__, "shared_bytes": compiled.metadata.shared}))


@torch.inference_mode()
def main(network: str) -> None:
    JITFunction.run = compile_launch
    for module in (skinny, suffix_attention):
        module.run_together = lambda blocks: blocks <= _MULTIPROCESSORS
    config, device, steps = NETWORKS[network], torch.device("cpu"), 2
    weights = fuse_weights(config, random_weights(config), num_steps=steps, device=device, precision="bf16")
    for batch in (1, 8):
        workspace = Workspace(device)
        slot = Slot(config, SlotKey(batch, 2, 16), torch.bfloat16, workspace, steps)
        for values in (slot.images, slot.tokens, slot.state, slot.noise, slot.lengths):
            values.zero_()
        for alone in (True, False):
            VisionStage(config, weights, slot, workspace)()
            PrefixStage(config, weights, slot, workspace)()
            DenoiseStage(config, weights, slot, workspace, alone=alone)()


if __name__ == "__main__":
    main(sys.argv[1])
