"""Reads the golden numbers: made by running openpi 15a9616, which these tests never import.

The folder is the repository's own copy unless the environment variable VLAD_GOLDEN_DIR names another one of
the same layout. Nothing here knows a case by name: cases, geometries and the weight salt come from its
`index.json`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from vlad_configs.models import GemmaConfig, ModelConfig, SiglipConfig
from vlad_engines.model import openpi_names
from vlad_engines.model.observation import Observation

FOLDER = pathlib.Path(
    os.environ.get("VLAD_GOLDEN_DIR") or pathlib.Path(__file__).resolve().parents[1] / "golden" / "model"
)

Array = npt.NDArray[Any]


@functools.cache
def index() -> Mapping[str, Any]:
    """The folder's `index.json`."""
    content: Mapping[str, Any] = json.loads((FOLDER / "index.json").read_text())
    return content


def require_file(name: str) -> pathlib.Path:
    """A file of the folder; skips the test, visibly, where the folder has none of this name."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{FOLDER} holds no {name}")
    return path


@functools.cache
def load_arrays(name: str) -> Mapping[str, Array]:
    """All arrays of a npz file of the folder, which must exist."""
    with np.load(FOLDER / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def model_config(
    geometry: str, *, pi05: bool, action_horizon: int, action_dim: int, max_token_len: int
) -> ModelConfig:
    """The network of a geometry of `index.json`."""
    sizes = index()["geometries"][geometry]
    siglip = sizes["siglip"]
    return ModelConfig(
        family="pi05" if pi05 else "pi0",
        siglip=SiglipConfig(
            width=siglip["hidden_size"],
            depth=siglip["num_hidden_layers"],
            mlp_dim=siglip["intermediate_size"],
            num_heads=siglip["num_attention_heads"],
            patch_size=siglip["patch_size"],
            image_size=siglip["image_size"],
        ),
        vlm=GemmaConfig(**sizes["vlm"]),
        expert=GemmaConfig(**sizes["expert"]),
        vocab_size=sizes["vocab_size"],
        action_dim=action_dim,
        action_horizon=action_horizon,
        max_token_len=max_token_len,
    )


def scale_and_offset(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Spread and centre that the weight rule gives to the tensor of this openpi name."""
    if name.endswith(("embed_tokens.weight", "lm_head.weight")):
        return 1.0 / np.sqrt(shape[1]), 0.0
    if name.endswith("position_embedding.weight"):
        return 0.3, 0.0
    if name.endswith(".bias"):
        return 0.1, 0.0
    if len(shape) == 1:
        return 0.1, 1.0 if "layer_norm" in name or name.endswith("post_layernorm.weight") else 0.0
    fan_in = int(np.prod(shape[1:]))
    sharp = [f".self_attn.{kind}_proj." for kind in ("q", "k", "o", "out")] + [".dense."]
    return (1.5 if any(part in name for part in sharp) else 1.0) / np.sqrt(fan_in), 0.0


def make_weight(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A tensor of a tiny model by the folder's weight rule."""
    seed = zlib.crc32((index()["salt"] + name).encode())
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    scale, offset = scale_and_offset(name, shape)
    return normal * np.float32(scale) + np.float32(offset)


def make_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """All tensors of a tiny model by their openpi names."""
    shapes = openpi_names.expected_tensors(config)
    return {name: torch.from_numpy(make_weight(name, shape)) for name, shape in shapes.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class ModelCase:
    """One model case: its entry in `index.json` and its arrays."""

    name: str
    entry: Mapping[str, Any]

    @property
    def arrays(self) -> Mapping[str, Array]:
        return load_arrays(f"{self.name}.npz")

    @property
    def config(self) -> ModelConfig:
        keys = ("pi05", "action_horizon", "action_dim", "max_token_len")
        return model_config(self.entry["geometry"], **{key: self.entry[key] for key in keys})

    def tensor(self, key: str) -> torch.Tensor:
        """An array of the case as a tensor of its own."""
        return torch.from_numpy(self.arrays[key].copy())

    def pixels(self) -> torch.Tensor:
        """`[B, 3, 3, 224, 224]` float32 in [-1, 1], masked cameras included."""
        bank = load_arrays("images.npz")["bank"]
        bank = np.concatenate((bank, np.zeros_like(bank[:1])))  # id -1: the black image
        images = torch.from_numpy(bank[self.arrays["image_ids"]])
        return images.permute(0, 1, 4, 2, 3).float() / 255.0 * 2.0 - 1.0

    def observation(self) -> Observation:
        """The case as the network takes it."""
        return Observation.from_padded(
            self.pixels(), *(self.tensor(key) for key in ("image_masks", "tokens", "token_mask", "state"))
        )


@functools.cache
def model_cases() -> list[ModelCase]:
    """Every case that the folder lists."""
    return [ModelCase(name, entry) for name, entry in index()["cases"].items()]


def each_model_case(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run a test once per case; it takes an argument `case`. A module's tests run case by case."""
    cases = model_cases()
    parametrize = pytest.mark.parametrize("case", cases, ids=[case.name for case in cases], scope="module")
    decorated: Callable[..., Any] = parametrize(test)
    return decorated
