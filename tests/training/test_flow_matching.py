"""The loss against openpi's own numbers, and what it must not depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.support.golden import ModelCase, load_arrays, make_weights, model_cases
from tests.support.tiny_networks import tiny_config
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_configs.training import LearningRate, PruningTraining, TrainConfig
from vlad_training.batch import Batch
from vlad_training.draws import Draws, draw
from vlad_training.flow_matching import FlowMatchingLoss
from vlad_training.initial_weights import scratch_weights, trainable_network
from vlad_training.layer_checkpointing import checkpoint_layers

CPU = torch.device("cpu")
TOLERANCE = 2e-5

WITH_LOSS = [
    (case, sample)
    for case in model_cases()
    if case.entry["has_train_loss"]
    for sample in range(len(case.arrays["image_masks"]))
]


def config_for(model: ModelConfig, **changes: object) -> TrainConfig:
    config = TrainConfig(
        openpi_config=f"{model.family}_libero",
        model=model,
        from_scratch=True,
        num_steps=10,
        batch_size=4,
        learning_rate=LearningRate(1, 1e-3, 10, 0.0),
        augmentation=None,
        precision="fp32",
        gradient_checkpointing=False,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def random_batch(model: ModelConfig, size: int = 4, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    side = model.siglip.image_size
    counts = torch.randint(2, model.max_token_len + 1, (size,), generator=generator)
    tokens = torch.randint(1, model.vocab_size, (size, model.max_token_len), generator=generator)
    return Batch(
        images=torch.randint(0, 256, (size, 2, side, side, 3), generator=generator).to(torch.uint8),
        tokens=tokens * (torch.arange(model.max_token_len) < counts[:, None]),
        token_counts=counts,
        state=torch.randn(size, model.action_dim, generator=generator),
        actions=torch.randn(size, model.action_horizon, model.action_dim, generator=generator),
        inside=torch.arange(model.action_horizon) < torch.tensor([[5], [3], [5], [1]])[:size],
    )


def loss_module(config: TrainConfig) -> FlowMatchingLoss:
    network = trainable_network(config.model, scratch_weights(config.model, seed=3), CPU)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".dense." in name:  # open the gates, so that every part of the network matters
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    return FlowMatchingLoss(network, config, CAMERA_SLOTS[:2])


@pytest.mark.parametrize(("case", "sample"), WITH_LOSS, ids=lambda value: getattr(value, "name", value))
def test_elements_are_those_of_the_original(case: ModelCase, sample: int) -> None:
    def row(key: str) -> torch.Tensor:
        return case.tensor(key)[sample : sample + 1]

    mask = case.arrays["image_masks"][sample]
    bank = load_arrays("images.npz")["bank"]
    config = config_for(case.config, batch_size=1)
    model = trainable_network(case.config, make_weights(case.config), CPU)
    cameras = tuple(camera for camera, real in zip(CAMERA_SLOTS, mask, strict=True) if real)
    real = row("token_mask")
    batch = Batch(
        images=torch.from_numpy(bank[case.arrays["image_ids"][sample, mask]])[None],
        tokens=row("tokens").long() * real,
        token_counts=real.sum(1),
        state=row("state"),
        actions=row("train_actions"),
        inside=torch.ones(1, case.config.action_horizon, dtype=torch.bool),
    )
    draws = Draws(row("noise"), row("train_time"), torch.zeros(1).long(), None, 0)
    loss = FlowMatchingLoss(model, config, cameras)
    elements, golden = loss.elements(batch, draws).detach(), row("train_loss")
    np.testing.assert_allclose(elements, golden, rtol=0, atol=TOLERANCE * golden.max().item())
    np.testing.assert_allclose(loss(batch, draws).item(), golden.mean().item(), rtol=TOLERANCE)


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_every_trained_parameter_gets_a_gradient(family: str) -> None:
    config = config_for(tiny_config(family))  # type: ignore[arg-type]
    loss = loss_module(config)
    loss(random_batch(config.model), draw(config, 0, 2)).backward()
    without = [
        name
        for name, parameter in loss.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert without == []


def test_gradient_checkpointing_changes_no_gradient() -> None:
    config = config_for(tiny_config("pi05"))
    batch, draws = random_batch(config.model), draw(config, 0, 2)
    plain, checkpointed = loss_module(config), loss_module(config)
    checkpoint_layers(checkpointed.model)
    for loss in (plain, checkpointed):
        loss(batch, draws).backward()
    for one, other in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0)


def test_bf16_stays_near_float32_with_float32_gradients() -> None:
    batch = random_batch(tiny_config("pi05"))
    losses = []
    for precision in ("fp32", "bf16"):
        config = config_for(tiny_config("pi05"), precision=precision)
        loss = loss_module(config)
        value = loss(batch, draw(config, 0, 2))
        value.backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in loss.parameters())
        losses.append(value.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_given_actions_are_clean_and_do_not_count() -> None:
    config = config_for(tiny_config("pi05"), rtc_max_delay=3)
    loss, batch, draws = loss_module(config), random_batch(config.model), draw(config, 0, 2)
    draws = dataclasses.replace(draws, given=torch.full((4,), 2))
    value = loss(batch, draws)
    louder = draws.noise.clone()
    louder[:, :2] += 10
    assert loss(batch, dataclasses.replace(draws, noise=louder)).item() == value.item()
    others = batch.actions.clone()
    others[:, :2] += 10
    assert loss(dataclasses.replace(batch, actions=others), draws).item() != value.item()


def test_padding_of_episodes_counts_only_where_it_shall() -> None:
    draws = draw(config_for(tiny_config("pi05")), 0, 2)
    batch = random_batch(tiny_config("pi05"))
    for masked in (True, False):
        config = config_for(tiny_config("pi05"), mask_padding=masked)
        loss = loss_module(config)
        elements = loss.elements(batch, draws).mean(-1).detach()
        counts = batch.inside if masked else torch.ones_like(batch.inside)
        expected = ((elements * counts).sum(1) / counts.sum(1)).mean()
        torch.testing.assert_close(loss(batch, draws).detach(), expected)


def test_padded_prompt_tokens_change_nothing() -> None:
    config = config_for(tiny_config("pi05"))
    loss, batch, draws = loss_module(config), random_batch(config.model), draw(config, 0, 2)
    padding = torch.arange(config.model.max_token_len) >= batch.token_counts[:, None]
    other = dataclasses.replace(batch, tokens=torch.where(padding, 7, batch.tokens))
    torch.testing.assert_close(loss(batch, draws), loss(other, draws), rtol=0, atol=1e-6)


def test_training_with_pruning_has_gradients_into_the_images_and_keeps_every_shape() -> None:
    config = config_for(tiny_config("pi05"), pruning=PruningTraining())
    loss, batch, draws = loss_module(config), random_batch(config.model), draw(config, 0, 2)
    noisy, again, quiet = (loss(batch, draws, noise) for noise in (1.0, 1.0, 0.0))
    assert noisy.item() == again.item()
    assert noisy.item() != quiet.item()
    noisy.backward()
    assert loss.model.vision_tower.patch_embedding.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_draws_of_processes_are_parts_of_those_of_one() -> None:
    config = config_for(tiny_config("pi05"), rtc_max_delay=2)
    whole = draw(config, 7, 2)
    parts = [draw(config, 7, 2, rank, 2) for rank in range(2)]
    for name in ("noise", "time", "given"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert not torch.equal(draw(config, 8, 2).noise, whole.noise)


def test_times_are_beta_distributed() -> None:
    config = config_for(tiny_config("pi05"), batch_size=20_000)
    time = draw(config, 0, 2).time
    assert time.min() >= 0.001
    assert time.max() <= 1
    # Beta(1.5, 1) has mean 0.6 and variance 0.0686.
    assert time.mean().item() == pytest.approx(0.6 * 0.999 + 0.001, abs=0.01)
    assert time.var().item() == pytest.approx(0.0686, abs=0.003)
