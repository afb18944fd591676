"""Compiles every kernel that the Triton stages of a network launch, for a Hopper GPU, on any machine.

`python -m tests.support.triton_compilation NETWORK`, NETWORK being a name in `NETWORKS`, without
TRITON_INTERPRET; or `gated_products` for what only a GPU's stages launch, at full and at small size.
Nothing is launched: this finds what the compiler refuses and the interpreter does not. Prints a line for
each kernel.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from tests.support.triton_comparison import random_weights, small_config
from vlad_configs.models import ModelConfig
from vlad_configs.training import LIBERO_SMALL_MODEL
from vlad_engines.backends.triton.kernels import skinny, suffix_attention
from vlad_engines.backends.triton.kernels.gated_product import TILINGS, gated_product
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.stages import DenoiseStage, PrefixStage, VisionStage
from vlad_engines.backends.triton.weights import fuse_weights
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.float8.scales import FLOAT8

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
    FLOAT8: "fp8e4nv",
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
        is_one = type(value) is int and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or is_one:
            signature[parameter.name] = "constexpr"
            constants[place] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{_TYPES[value.dtype]}"
            attributes[place] = [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            signature[parameter.name] = f"tensordesc<{_TYPES[value.base.dtype]}{list(value.block_shape)}>"
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[place] = [["tt.divisibility", 16]]
    key = f"{kernel.__name__} {signature} {constants} {attributes} {keywords}"
    if key in _compiled:
        return
    _compiled.add(key)
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=_HOPPER, options=keywords)
    line = {"kernel": kernel.__name__, "shared_bytes": compiled.metadata.shared}
    print(json.dumps(line | registers(compiled.asm["cubin"])))


def registers(cubin: bytes) -> dict[str, int]:
    """What a kernel takes for each thread: registers, and bytes of those that did not fit."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump", "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {"registers": used["REG"], "spilled_bytes": used["STACK"] + used["LOCAL"]}


def compile_gated_products(rows: int, hidden: int, depth: int) -> None:
    """Each of the tilings that are measured on a GPU."""
    for dtype, tilings in TILINGS.items():
        x, weight, out = (
            torch.empty(shape, dtype=dtype) for shape in ((rows, depth), (2 * hidden, depth), (rows, hidden))
        )
        quantising = {"scale": torch.empty(2 * hidden), "factor": 1.0} if dtype == FLOAT8 else {}
        for tiling in tilings:
            gated_product(x, weight, out, tiling, **quantising)


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
    if sys.argv[1] == "gated_products":
        JITFunction.run = compile_launch
        for model in (ModelConfig("pi05"), LIBERO_SMALL_MODEL):
            compile_gated_products(532, model.vlm.mlp_dim, model.vlm.width)
    else:
        main(sys.argv[1])
