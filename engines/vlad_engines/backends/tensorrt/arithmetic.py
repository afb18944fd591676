"""How the components compute, by the names that people use."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal, get_args

from vlad_configs.errors import ConfigError
from vlad_configs.precision import parse_precision
from vlad_configs.pruning import TokenPruning
from vlad_engines.export.spec import COMPONENTS, Component, DenoiseForm, GraphDtype, GraphForm

Arithmetic = Literal["fp32", "tf32", "fp16", "bf16", "fp8"]

_GRAPH_DTYPES: Mapping[Arithmetic, GraphDtype] = {
    "fp32": "float32",
    "tf32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "bfloat16",
}

_FLOAT8_SINCE = (8, 9)
"""Compute capability of the first GPUs that multiply float8."""


@dataclasses.dataclass(frozen=True)
class ComponentArithmetic:
    """What each component's matrix products use; norms, softmax and the like are float32 everywhere.

    `tf32` is float32 whose products may round their factors to ten bits of mantissa. `fp16` is not for the
    prefix, and its other uses have to pass the fidelity check. `fp8` is bf16 whose large
    products multiply float8, with scales from a calibration; only the prefix has it, whose time is products.
    Vision would gain little, and all the rest reads what it gets wrong; denoising multiplies few rows, waits
    for memory, and adds its errors up over the steps.
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
            if name == "fp8" and component != "prefix":
                raise ConfigError(
                    f"{component} cannot be computed in fp8, only the prefix can: fp8 alone means "
                    "vision=bf16,prefix=fp8,denoise=bf16"
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
        return GraphForm(
            num_steps,
            **dtypes,
            denoise_form=denoise_form,
            prefix_float8=self.prefix == "fp8",
            pruning=pruning,
        )

    def check_gpu(self, name: str, compute_capability: str) -> None:
        """Refuse a GPU that cannot compute so.

        Args:
            compute_capability: such as `9.0`.

        Raises:
            ConfigError: says what to choose instead.
        """
        found = tuple(int(number) for number in re.findall(r"\d+", compute_capability))
        if self.prefix == "fp8" and found < _FLOAT8_SINCE:
            raise ConfigError(
                f"fp8, which prefix shall use, needs a GPU of compute capability 8.9 or newer; {name} has "
                f"{compute_capability}: choose --precision bf16"
            )


def parse_arithmetic(text: str) -> ComponentArithmetic:
    """Read `fp32`, `tf32`, `bf16`, or one for each component: `vision=fp16,prefix=fp32,denoise=fp32`.

    `fp8` is bf16 with the prefix in fp8.

    Raises:
        ConfigError: for anything else.
    """
    if text == "fp8":
        return ComponentArithmetic(vision="bf16", prefix="fp8", denoise="bf16")
    return ComponentArithmetic(**parse_precision(text))  # type: ignore[arg-type]
