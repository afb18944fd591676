"""Networks of full size against openpi on a GPU: `fullsize_*.npz`.

Their weights and inputs come from a hash rule instead of a file; that rule is held against stored values
on the CPU. The rest needs a GPU with 24 GB.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.golden import FOLDER, Array, load_arrays
from tests.support.hash_weights import (
    hash_images,
    hash_noise,
    hash_tokens,
    hash_units,
    hash_weight,
    hash_weights,
    torch_hash_units,
)
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_engines.backends.base import BackendOptions, Precision
from vlad_engines.backends.registry import create_backend
from vlad_engines.model import openpi_names
from vlad_engines.model.observation import Observation
from vlad_engines.model.pi0 import Pi0
from vlad_engines.processing.model_inputs import ModelInputs

CPU = torch.device("cpu")
FLOAT32 = 1e-4
"""Of float32 numbers on a GPU without TF32, whole loop included."""
BF16_TO_FLOAT32 = (0.02, 0.12)
"""Mean and maximum of bfloat16 actions against float32 ones."""

CHECK_VALUES = {
    "action_in_proj.weight": (
        "0.5322293043136597 -0.7008875608444214 -0.6018058061599731 0.013559818267822266"
    ),
    "input.noise": "0.4625948667526245 0.9030096530914307 0.9678357839584351 -0.8172421455383301",
    "paligemma_with_expert.paligemma.model.language_model.layers.0.self_attn.q_proj.weight": (
        "0.14767563343048096 -0.16405975818634033 -0.370036244392395 -0.948954701423645"
    ),
}
"""First four values of u, from the definition of the rule."""


@dataclasses.dataclass(frozen=True, eq=False)
class FullsizeCase:
    """One stored network and one number of cameras."""

    file: str
    num_cameras: int

    @property
    def arrays(self) -> Mapping[str, Array]:
        return load_arrays(self.file)

    def input(self, name: str) -> Array:
        """A stored input, without its batch axis."""
        return self.arrays[f"cams{self.num_cameras}.{name}"][0]

    def golden(self, variant: str, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"{variant}.cams{self.num_cameras}.{name}"].copy())

    @property
    def config(self) -> ModelConfig:
        horizon, action_dim = self.input("noise").shape
        return ModelConfig(
            family="pi05" if self.file.startswith("fullsize_pi05") else "pi0",
            action_dim=action_dim,
            action_horizon=horizon,
            max_token_len=len(self.input("tokens")),
        )

    def model_inputs(self) -> ModelInputs:
        return ModelInputs(
            cameras=CAMERA_SLOTS[: self.num_cameras],
            images=hash_images(self.num_cameras, self.config.siglip.image_size),
            tokens=self.input("tokens"),
            token_mask=self.input("token_mask"),
            state=self.input("state").astype(np.float64),
            robot_state=np.zeros(0),
        )

    def observation(self, device: torch.device) -> Observation:
        inputs = self.model_inputs()
        pixels = torch.from_numpy(inputs.images).to(device).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        return Observation(
            pixels=pixels,
            camera_counts=(self.num_cameras,),
            tokens=torch.from_numpy(inputs.tokens)[None].to(device),
            token_counts=(int(inputs.token_mask.sum()),),
            state=torch.from_numpy(inputs.state)[None].float().to(device),
        )

    def packed_indices(self) -> Array:
        """Places of the stored tokens once masked cameras and padding are left out."""
        tokens_per_camera = self.config.siglip.num_tokens
        cameras = np.repeat(np.arange(len(CAMERA_SLOTS)) < self.num_cameras, tokens_per_camera)
        valid = np.concatenate((cameras, self.input("token_mask")))
        stored = self.arrays[f"cams{self.num_cameras}.token_index"]
        assert valid[stored].all()
        return (np.cumsum(valid) - 1)[stored]


def stored_files() -> list[pathlib.Path]:
    return sorted(FOLDER.glob("fullsize_*.npz"))


def each_file() -> list[object]:
    files = [pytest.param(path.name, id=path.stem) for path in stored_files()]
    reason = f"{FOLDER} holds no fullsize_*.npz"
    return files or [pytest.param("", marks=pytest.mark.skip(reason=reason), id="fullsize")]


def cases_of(file: str) -> list[FullsizeCase]:
    counts = {int(key[4]) for key in load_arrays(file) if key.startswith("cams")}
    return [FullsizeCase(file, count) for count in sorted(counts)]


@pytest.mark.parametrize("name", CHECK_VALUES)
def test_hash_has_its_check_values(name: str) -> None:
    assert hash_units(name, 4).tolist() == [float(value) for value in CHECK_VALUES[name].split()]


@pytest.mark.parametrize("start", [0, 12345, 526_647_000])
def test_hash_on_a_device_is_bitwise_that_of_numpy(start: int) -> None:
    ours = torch_hash_units("some.weight", 5000, start, CPU)
    np.testing.assert_array_equal(ours.numpy(), hash_units("some.weight", 5000, start))


def test_weights_do_not_depend_on_the_chunks_they_are_made_in() -> None:
    name, shape = "vision_tower.encoder.layers.0.layer_norm1.weight", (1000,)
    whole = hash_weight(name, shape, CPU)
    assert torch.equal(whole, hash_weight(name, shape, CPU, chunk=7))
    expected = hash_units(name, 1000) * np.float32(np.sqrt(3) * 0.1) + np.float32(1)
    np.testing.assert_array_equal(whole.numpy(), expected)


@pytest.mark.parametrize("file", each_file())
def test_weights_and_inputs_are_those_behind_the_stored_numbers(file: str) -> None:
    for case in cases_of(file):
        config = case.config
        noise = hash_noise(config.action_horizon, config.action_dim)
        np.testing.assert_array_equal(noise, case.input("noise"))
        np.testing.assert_array_equal(hash_units("input.state", config.action_dim), case.input("state"))
        prompt_len = int(case.input("token_mask").sum())
        tokens = hash_tokens(config.max_token_len, prompt_len, config.vocab_size)
        np.testing.assert_array_equal(tokens, case.input("tokens"))
        shapes = openpi_names.expected_tensors(config)
        checks = [key for key in case.arrays if key.startswith("weight_check.")]
        assert checks
        for key in checks:
            name = key.removeprefix("weight_check.")
            first = hash_weight(name, shapes[name], CPU).flatten()[: len(case.arrays[key])]
            np.testing.assert_array_equal(first.numpy(), case.arrays[key])


@functools.lru_cache(maxsize=1)
def weights_on_gpu(file: str) -> Mapping[str, Tensor]:
    return hash_weights(cases_of(file)[0].config, torch.device("cuda"))


@pytest.fixture(autouse=True)
def _free_the_gpu_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if request.node.get_closest_marker("gpu"):
        gc.collect()
        torch.cuda.empty_cache()


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU with 24 GB")


def assert_within(ours: Tensor, golden: Tensor, limits: tuple[float, float], label: str) -> None:
    difference = (ours.detach().cpu().double() - golden).abs()
    print(f"{label}: mean {difference.mean():.2e} max {difference.max():.2e}")
    assert difference.mean() <= limits[0], label
    assert difference.max() <= limits[1], label


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("file", each_file())
@pytest.mark.parametrize(
    ("precision", "variant", "limits", "prefix_limits", "rms_limit"),
    [
        ("fp32", "float32", (FLOAT32, FLOAT32), (FLOAT32, FLOAT32), 1e-5),
        ("bf16", "float32", BF16_TO_FLOAT32, (0.03, 0.15), 5e-3),
        ("bf16", "bfloat16_f32rope", (0.012, 0.06), (0.03, 0.15), 5e-3),
    ],
    ids=["fp32", "bf16-against-fp32", "bf16-against-bf16"],
)
@torch.inference_mode()
def test_prefix_velocity_and_actions(
    file: str,
    precision: Precision,
    variant: str,
    limits: tuple[float, float],
    prefix_limits: tuple[float, float],
    rms_limit: float,
) -> None:
    device = torch.device("cuda")
    weights = weights_on_gpu(file)
    for case in cases_of(file):
        model = Pi0.from_openpi_weights(case.config, weights, precision, device)
        observation, noise = case.observation(device), torch.from_numpy(case.input("noise"))[None].to(device)
        packed = torch.from_numpy(case.packed_indices()).to(device)
        prefix = model.embed_prefix(observation)
        label = f"{file} {precision} cams{case.num_cameras}"
        embeddings = prefix.embeddings[0, packed]
        golden = case.golden(variant, "prefix_embs")
        assert_within(embeddings, golden, prefix_limits, f"{label} prefix_embs")

        cache = model.compute_prefix_kv_cache(prefix)
        layers = case.arrays["layers"].tolist()
        for name, numbers in (("k", cache.keys), ("v", cache.values)):
            ours = numbers[layers, 0][:, :, packed]
            golden = case.golden(variant, f"prefix_{name}")
            assert_within(ours, golden, prefix_limits, f"{label} prefix_{name}")
            rms = numbers.double().square().mean(dim=(1, 2, 3, 4)).sqrt()
            golden = case.golden(variant, f"{name}_rms_per_layer")
            assert_within(rms, golden, (rms_limit, rms_limit), f"{label} {name}_rms_per_layer")

        conditioning = model.as_conditioning(model.time_conditioning(torch.ones(1, device=device)))
        suffix = model.place_suffix(prefix.embeddings.shape[1])
        ours = model.denoise_step_with_cache(noise, conditioning, observation.state, cache, suffix)
        # No sum over steps evens out the errors of a single velocity.
        velocity_limits = (1.5 * limits[0], 1.5 * limits[1])
        assert_within(ours, case.golden(variant, "v_t1"), velocity_limits, f"{label} v_t1")
        for num_steps in (10, 3):
            ours = model.sample_actions(observation, noise, num_steps)
            assert_within(
                ours, case.golden(variant, f"actions_{num_steps}"), limits, f"{label} {num_steps} steps"
            )


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("file", each_file())
@pytest.mark.parametrize(("precision", "limits"), [("fp32", (FLOAT32, FLOAT32)), ("bf16", BF16_TO_FLOAT32)])
def test_actions_of_the_backend(file: str, precision: Precision, limits: tuple[float, float]) -> None:
    first = cases_of(file)[0]
    options = BackendOptions(num_steps=10, precision=precision, device="cuda")
    backend = create_backend("pytorch", first.config, weights_on_gpu(file), options)
    backend.warm_up(lambda stage, fraction: None)
    for case in cases_of(file):
        results = [backend.infer(case.model_inputs(), case.input("noise")) for _ in range(3)]
        label = f"{file} {precision} cams{case.num_cameras} backend"
        golden = case.golden("float32", "actions_10")[0]
        assert_within(torch.from_numpy(results[-1].actions), golden, limits, label)
        np.testing.assert_array_equal(results[0].actions, results[1].actions)
        seconds = results[-1].stage_seconds
        assert set(seconds) == {"vision", "prefix", "denoise"}
        assert all(value > 0 for value in seconds.values())
        print(label, {stage: f"{value * 1e3:.2f} ms" for stage, value in seconds.items()})
    backend.close()
