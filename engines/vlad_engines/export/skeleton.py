"""A network without values: shapes and dtypes on the meta device, enough to trace a graph of any size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlad_configs.models import ModelConfig
from vlad_engines.export.spec import GraphDtype
from vlad_engines.model import openpi_names
from vlad_engines.model.pi0 import Pi0
from vlad_engines.model.precision import parameter_dtype

_DTYPES: Mapping[GraphDtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def make_skeleton(config: ModelConfig, dtype: GraphDtype) -> Pi0:
    """The network with the matrices of SigLIP and both Gemma stacks in `dtype`.

    What openpi keeps in float32 stays float32; see `vlad_engines.model.precision`.
    """
    with torch.device("meta"):
        model = Pi0(config).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        kept = parameter_dtype(openpi_names.openpi_name(name), "bf16") == torch.float32
        parameter.data = parameter.data.to(torch.float32 if kept else _DTYPES[dtype])
    return model


def step_conditioning(config: ModelConfig, weights: Mapping[str, Tensor], num_steps: int) -> Tensor:
    """`Pi0.step_conditioning` in float32 from the few weights that it needs, on the CPU."""
    model = make_skeleton(config, "float32")
    needed = [name for name, _ in model.named_parameters() if _conditions(name)]
    values = {name: weights[openpi_names.openpi_name(name)].to("cpu", torch.float32) for name in needed}
    model.load_state_dict(values, strict=False, assign=True)
    with torch.no_grad():
        return model.step_conditioning(num_steps)


def _conditions(parameter: str) -> bool:
    return parameter.startswith(("time_mlp_", "expert.")) and (
        parameter.startswith("time_mlp_") or ".dense." in parameter
    )
