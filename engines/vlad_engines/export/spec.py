"""The graphs that are exported: their names, inputs, outputs, dtypes and shapes. Neither torch nor onnx here.

One graph per component, and the same tensors that `vlad_engines.components` names:

| graph | inputs | outputs |
|---|---|---|
| vision  | `pixels` | `image_tokens` |
| prefix  | `image_tokens`, `prompt_tokens`, `prefix_lengths` | `keys_0`, `values_0`, ... of each layer |
| denoise | `x_t`, `state` (pi0), `prefix_lengths`, `step`, `keys_0`, `values_0`, ... | `x_next` |
| denoise, unrolled | the same without `step` | `x_path` |
| prefix with pruning | also `slots` | also `visible_lengths`, `selected` |
| denoise with pruning | also `visible_lengths`; `prefix_lengths` only with original positions | |

| tensor | shape | |
|---|---|---|
| `pixels` | (B*C, 224, 224, 3) | float32 in [-1, 1] |
| `image_tokens` | (B*C, T, W), for the prefix (B, C*T, W): the same bytes | dtype of the prefix |
| `prompt_tokens`, `prefix_lengths`, `step` | (B, n), (B), (1) | int32 |
| `state`, `x_t`, `x_next`, `x_path` | (B, A), (B, H, A), (B, H, A), (N, B, H, A) | float32 |
| `keys_i`, `values_i` | (B, kv_heads, P, head_dim) | dtype of denoise |
| `slots` | (K) | int32: the numbers 0 to K - 1 |
| `visible_lengths`, `selected` | (B), (B, 2) | int32 |

B batch, C real cameras of every sample, T tokens per camera, n prompt bucket, P = C*T + n, W width of the
VLM, H horizon, A action width, N Euler steps.
`prefix_lengths` counts the real tokens of each sample: those between it and P are padding, are masked, and
change nothing. With pruning P = K + n, `prefix_lengths` still counts those of C*T + n, `visible_lengths`
those of the prefix that are not masked, and `selected` the image tokens kept and voted for.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from vlad_configs.errors import ConfigError
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_configs.pruning import TokenPruning

Component = Literal["vision", "prefix", "denoise"]
COMPONENTS: tuple[Component, ...] = get_args(Component)

Dtype = Literal["float32", "float16", "bfloat16", "int32"]
GraphDtype = Literal["float32", "float16", "bfloat16"]
DenoiseForm = Literal["step", "unrolled"]

ITEM_BYTES: Mapping[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4}


@dataclasses.dataclass(frozen=True)
class GraphForm:
    """How the network is cut and computed.

    Attributes:
        num_steps: Euler steps N, 1 or more.
        vision, prefix, denoise: dtype of the matrix products of each graph. Norms, softmax, RoPE and the
            integration are float32 in every form. The prefix may not be float16: its activations exceed
            float16's range in trained networks.
        denoise_form: `step` for one Euler step, run N times, or `unrolled` for all N in one graph.
        prefix_float8: the large products of the prefix multiply float8 (see `vlad_engines.float8`); what
            goes into and comes out of them, and everything else, is as `prefix` says.
        pruning: which image tokens the prefix keeps; None for all.
    """

    num_steps: int
    vision: GraphDtype = "float32"
    prefix: GraphDtype = "float32"
    denoise: GraphDtype = "float32"
    denoise_form: DenoiseForm = "step"
    prefix_float8: bool = False
    pruning: TokenPruning | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"num_steps must be at least 1, not {self.num_steps}")
        for component in COMPONENTS:
            dtype = getattr(self, component)
            if dtype not in get_args(GraphDtype):
                raise ConfigError(
                    f"{component} must be one of {', '.join(get_args(GraphDtype))}, not {dtype!r}"
                )
        if self.prefix == "float16":
            raise ConfigError("the prefix cannot be computed in float16: its activations exceed the range")
        if self.denoise_form not in get_args(DenoiseForm):
            raise ConfigError(f"denoise_form must be 'step' or 'unrolled', not {self.denoise_form!r}")
        if not isinstance(self.prefix_float8, bool):
            raise ConfigError(f"prefix_float8 must be true or false, not {self.prefix_float8!r}")

    def dtype(self, component: Component) -> GraphDtype:
        """The dtype of a component's matrix products."""
        dtype: GraphDtype = getattr(self, component)
        return dtype

    def float8(self, component: Component) -> bool:
        """Whether a component's graph has products in float8, and so depends on a calibration."""
        return component == "prefix" and self.prefix_float8

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads them back."""
        values = dataclasses.asdict(self)
        if self.pruning is None:
            del values["pruning"]  # so that what was exported and built without keeps its digest
        return values

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphForm:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: for unknown, missing or contradictory values.
        """
        try:
            pruning = data.get("pruning")
            return cls(**{**data, "pruning": None if pruning is None else TokenPruning.from_json(pruning)})
        except TypeError as error:
            raise ConfigError(f"unreadable graph form: {error}") from error


@dataclasses.dataclass(frozen=True, order=True)
class ShapeKey:
    """The shape of a batch.

    Attributes:
        batch: requests computed together.
        cameras: images of each request, 1 to 3.
        prompt: prompt tokens of each request, padding included.
    """

    batch: int
    cameras: int
    prompt: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.prompt < 1 or not 1 <= self.cameras <= len(CAMERA_SLOTS):
            raise ConfigError(
                f"a shape needs a batch and a prompt of 1 or more, and 1 to {len(CAMERA_SLOTS)} cameras: "
                f"{self}"
            )

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.cameras} cameras, prompts of at most {self.prompt} tokens"

    def axes(self, config: ModelConfig, pruning: TokenPruning | None = None) -> dict[str, int]:
        """Size of every axis that differs between keys, by the names that `TensorSpec.shape` uses."""
        image_tokens = self.cameras * config.siglip.num_tokens
        slots = image_tokens if pruning is None else pruning.slots(image_tokens)
        return {
            "batch": self.batch,
            "images": self.batch * self.cameras,
            "image_tokens": image_tokens,
            "prompt": self.prompt,
            "slots": slots,
            "prefix": slots + self.prompt,
        }


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; axes that differ between keys are named."""

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]

    def sizes(self, axes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for one `ShapeKey.axes`."""
        return tuple(axes[axis] if isinstance(axis, str) else axis for axis in self.shape)


@dataclasses.dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs of a graph, in the order of the exported graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


_VISIBLE_LENGTHS = TensorSpec("visible_lengths", "int32", ("batch",))


def graph_spec(component: Component, config: ModelConfig, form: GraphForm) -> GraphSpec:
    """What goes into and comes out of a component's graph; see the head of this module."""
    siglip, vlm = config.siglip, config.vlm
    lengths = TensorSpec("prefix_lengths", "int32", ("batch",))
    if component == "vision":
        pixels = TensorSpec("pixels", "float32", ("images", siglip.image_size, siglip.image_size, 3))
        tokens = TensorSpec("image_tokens", form.prefix, ("images", siglip.num_tokens, vlm.width))
        return GraphSpec((pixels,), (tokens,))
    if component == "prefix":
        tokens = TensorSpec("image_tokens", form.prefix, ("batch", "image_tokens", vlm.width))
        prompt = TensorSpec("prompt_tokens", "int32", ("batch", "prompt"))
        if form.pruning is None:
            return GraphSpec((tokens, prompt, lengths), cache_specs(config, form))
        slots, selected = (
            TensorSpec("slots", "int32", ("slots",)),
            TensorSpec("selected", "int32", ("batch", 2)),
        )
        return GraphSpec(
            (tokens, prompt, lengths, slots), (*cache_specs(config, form), _VISIBLE_LENGTHS, selected)
        )
    actions: tuple[int | str, ...] = ("batch", config.action_horizon, config.action_dim)
    inputs = [TensorSpec("x_t", "float32", actions)]
    if config.family == "pi0":
        inputs.append(TensorSpec("state", "float32", ("batch", config.action_dim)))
    if form.pruning is None or form.pruning.positions == "original":
        inputs.append(lengths)
    if form.pruning is not None:
        inputs.append(_VISIBLE_LENGTHS)
    if form.denoise_form == "step":
        inputs.append(TensorSpec("step", "int32", (1,)))
        output = TensorSpec("x_next", "float32", actions)
    else:
        output = TensorSpec("x_path", "float32", (form.num_steps, *actions))
    return GraphSpec((*inputs, *cache_specs(config, form)), (output,))


def cache_specs(config: ModelConfig, form: GraphForm) -> tuple[TensorSpec, ...]:
    """K and V of every layer, as the prefix writes and denoise reads them: in the dtype of denoise."""
    vlm = config.vlm
    shape = ("batch", vlm.num_kv_heads, "prefix", vlm.head_dim)
    return tuple(
        TensorSpec(f"{part}_{layer}", form.denoise, shape)
        for layer in range(vlm.depth)
        for part in ("keys", "values")
    )


def prompt_buckets(max_token_len: int) -> tuple[int, ...]:
    """Lengths to which prompts are padded. Few, because each costs time when engines are built."""
    return (*itertools.takewhile(lambda size: size < max_token_len, (32, 64, 128)), max_token_len)


def shape_keys(
    config: ModelConfig, camera_counts: Iterable[int], batch_sizes: Iterable[int]
) -> tuple[ShapeKey, ...]:
    """Every combination, the largest first."""
    keys = itertools.product(batch_sizes, camera_counts, prompt_buckets(config.max_token_len))
    return tuple(sorted((ShapeKey(*key) for key in keys), reverse=True))


def shape_profiles(
    component: Component, config: ModelConfig, form: GraphForm, keys: Sequence[ShapeKey]
) -> tuple[dict[str, tuple[int, ...]], ...]:
    """The distinct input shapes of a graph over `keys`: name -> shape, in the order of first appearance."""
    profiles: list[dict[str, tuple[int, ...]]] = []
    for key in keys:
        profile = input_shapes(component, config, form, key)
        if profile not in profiles:
            profiles.append(profile)
    return tuple(profiles)


def input_shapes(
    component: Component, config: ModelConfig, form: GraphForm, key: ShapeKey
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a graph's inputs for one key."""
    axes = key.axes(config, form.pruning)
    return {tensor.name: tensor.sizes(axes) for tensor in graph_spec(component, config, form).inputs}
