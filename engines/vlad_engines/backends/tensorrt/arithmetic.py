"""How the components compute, by the names that people use."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

from vlad_configs.errors import ConfigError
from vlad_configs.precision import parse_precision
from vlad_configs.pruning import TokenPruning
from vlad_engines.export.spec import COMPONENTS, Component, DenoiseForm, GraphDtype, GraphForm

Arithmetic = Literal["fp32", "tf32", "fp16", "bf16"]

_GRAPH_DTYPES: Mapping[Arithmetic, GraphDtype] = {
    "fp32": "float32",
    "tf32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}


@dataclasses.dataclass(frozen=True)
class ComponentArithmetic:
    """What each component's matrix products use; norms, softmax and the like are float32 everywhere.

    `tf32` is float32 whose products may round their factors to ten bits of mantissa. `fp16` is not for the
    prefix, and its other uses have to pass the fidelity check.
    """

    vision: Arithmetic
    prefix: Arithmetic
    denoise: Arithmetic

    def __post_init__(self) -> None:
        for component in COMPONENTS:
            name = self.of(component)
            if name not in get_args(Arithmetic):
                raise ConfigError(
                    f"precision of {component} must be one of {', '.join(get_args(Arithmetic))}, not {name!r}"
                )
        if self.prefix == "fp16":
            raise ConfigError("the prefix cannot be computed in fp16: its activations exceed the range")

    def of(self, component: Component) -> Arithmetic:
        """That of one component."""
        arithmetic: Arithmetic = getattr(self, component)
        return arithmetic

    def form(
        self, num_steps: int, denoise_form: DenoiseForm, pruning: TokenPruning | None = None
    ) -> GraphForm:
        """The graphs that compute so."""
        dtypes = {component: _GRAPH_DTYPES[self.of(component)] for component in COMPONENTS}
        return GraphForm(num_steps, **dtypes, denoise_form=denoise_form, pruning=pruning)


def parse_arithmetic(text: str) -> ComponentArithmetic:
    """Read `fp32`, `tf32`, `bf16`, or one for each component: `vision=fp16,prefix=fp32,denoise=fp32`.

    Raises:
        ConfigError: for anything else.
    """
    return ComponentArithmetic(**parse_precision(text))  # type: ignore[arg-type]
