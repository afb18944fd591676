"""What a network from scratch needs: shifts without scaling, several draws a frame, numbers as tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.training.test_runs import ALONE, tiny_training
from vlad_configs.errors import ConfigError
from vlad_configs.training import Augmentation, train_config
from vlad_engines.model.openpi_names import TOKEN_EMBEDDING
from vlad_engines.processing.processor import Processor
from vlad_engines.processing.tokenizer import SentencePieceTokenizer, encode_prompt
from vlad_training.augmentation import augment
from vlad_training.draws import Draws, draw
from vlad_training.flow_matching import FlowMatchingLoss
from vlad_training.frames import Frames
from vlad_training.initial_weights import patch_waves, scratch_weights, trainable_network
from vlad_training.invented_frames import InventedFrames
from vlad_training.prepared_frames import prepare_all
from vlad_training.statistics import compute_norm_stats
from vlad_training.task import (
    first_weights,
    number_tokens,
    task_contract,
    task_environment,
    task_tokenizer,
)
from vlad_training.train import Args, _scheduled

LONGEST = "pick up the black bowl between the plate and the ramekin and place it on the plate"


def small_frames() -> Frames:
    config = tiny_training()
    contract, source = task_contract(config), InventedFrames(task_environment(config), episodes=2, side=28)
    tokenizer = SentencePieceTokenizer(task_tokenizer(config, None, None), config.model.vocab_size)
    processor = Processor(contract, compute_norm_stats(source, contract), tokenizer)
    return Frames(source, processor, config.model.action_horizon, config.model.action_dim)


def test_a_shift_moves_whole_pixels_and_its_middle_changes_nothing() -> None:
    images = torch.rand(3, 3, 20, 20) * 0.8 + 0.1
    still = Augmentation(crop=1, rotation_degrees=0, shift=0.1, brightness=0, contrast=0, saturation=0)
    changes = torch.zeros(3, 6)
    changes[:, :2] = torch.tensor([[0.5, 0.5], [1.0, 0.5], [0.5, 0.0]])
    moved = augment(images, changes, torch.tensor([True, False, True]), still)
    torch.testing.assert_close(moved[0], images[0])
    torch.testing.assert_close(moved[1, :, :18], images[1, :, 2:])  # The wrists' too.
    assert moved[1, :, 18:].abs().max() < 1e-6
    torch.testing.assert_close(moved[2, :, :, 2:], images[2, :, :, :18])


def test_a_shift_goes_with_neither_crop_nor_rotation() -> None:
    with pytest.raises(ConfigError, match="crop 1 and rotation_degrees 0"):
        Augmentation(shift=0.03)


def test_several_draws_cost_what_each_alone_costs_on_average() -> None:
    config = tiny_training(augmentation=None, draws_per_sample=3, mask_padding=True)
    model = trainable_network(config.model, scratch_weights(config.model, 0), torch.device("cpu"))
    frames = small_frames()
    batch = frames.__getitems__([0, 21, 30, 47])  # Two of them with actions past their episode's end.
    draws = draw(config, 0, cameras=2)
    together = FlowMatchingLoss(model, config, frames.cameras)(batch, draws)
    alone = FlowMatchingLoss(model, dataclasses.replace(config, draws_per_sample=1), frames.cameras)
    losses = [
        alone(batch, Draws(draws.noise[k::3], draws.time[k::3], draws.given[k::3], None, 0)) for k in range(3)
    ]
    torch.testing.assert_close(together, torch.stack(losses).mean())
    assert len({round(loss.item(), 6) for loss in losses}) == 3


def test_prepared_frames_are_the_frames() -> None:
    frames = small_frames()
    prepared = prepare_all(frames, 0, ALONE.device, quiet=True)
    assert len(prepared) == len(frames) == 48
    assert prepared.cameras == frames.cameras
    wanted, got = frames.__getitems__([40, 3]), prepared.batch([40, 3])
    for field in dataclasses.fields(wanted):
        torch.testing.assert_close(getattr(got, field.name), getattr(wanted, field.name))


def test_numbers_of_the_state_are_one_token_each_and_every_prompt_fits() -> None:
    config = train_config("pi05_libero_small")
    tokenizer = SentencePieceTokenizer(task_tokenizer(config, None, None), config.model.vocab_size)
    low, high = np.full(8, -2.0), np.full(8, 2.0)
    ids = [encode_prompt(tokenizer, "task_state_action", LONGEST, state) for state in (low, high)]
    assert len(ids[0]) == len(ids[1]) <= config.model.max_token_len
    assert sum(a != b for a, b in zip(*ids, strict=True)) == 8
    values = [
        encode_prompt(tokenizer, "task_state_action", "", np.array([value]))
        for value in np.linspace(-1, 1, 256, endpoint=False)
    ]
    assert len({len(one) for one in values}) == 1
    assert len({tuple(one) for one in values}) == 256


def test_numbers_begin_in_order_where_each_is_a_token() -> None:
    config = train_config("pi05_libero_small")
    tokenizer = SentencePieceTokenizer(task_tokenizer(config, None, None), config.model.vocab_size)
    numbers = number_tokens(tokenizer)
    assert len(numbers) == 257
    table = first_weights(config, None, tokenizer)[TOKEN_EMBEDDING][numbers]
    assert torch.cdist(table[:-1], table[1:]).diagonal().mean() < torch.cdist(table[:1], table[128:]).mean()
    half = config.model.vlm.width // 2
    values = torch.linspace(-1, 1, 257).double()[:, None]
    waves = torch.cat((table[:, :half], torch.ones(257, 1)), dim=1).double()
    assert (waves @ torch.linalg.lstsq(waves, values).solution - values).abs().max() < 0.01
    digits = tiny_training()
    tokenizer = SentencePieceTokenizer(task_tokenizer(digits, None, None), digits.model.vocab_size)
    assert number_tokens(tokenizer) == []


def test_places_of_patches_begin_all_different() -> None:
    waves = patch_waves(8, 193)
    assert waves.shape == (64, 193)
    distances = torch.cdist(waves, waves) + 9 * torch.eye(64)
    assert distances.min() > 0.5


def test_a_stretched_schedule_keeps_its_shape() -> None:
    config = train_config("pi05_libero_small")
    args = Args("pi05_libero_small", "invented", schedule_steps=600, output=None)  # type: ignore[arg-type]
    short = _scheduled(config, args)
    assert (short.num_steps, short.learning_rate.decay_steps, short.learning_rate.warmup_steps) == (
        600,
        600,
        25,
    )
    with pytest.raises(ConfigError, match="exclude each other"):
        _scheduled(config, dataclasses.replace(args, steps=10))
