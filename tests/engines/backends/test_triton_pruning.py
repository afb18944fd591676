"""Token pruning in the slot of the triton backends: torch operations, which need neither GPU nor Triton."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from tests.support.tiny_networks import tiny_config
from vlad_configs.pruning import Positions, PruningMode, TokenPruning
from vlad_engines.backends.triton.pruning import prune_slot
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.model.token_pruner import PrunedPrefix, prune_prefix

BUCKET = 9
WORDS = (9, 4, 1, 0)


def filled_slot(cameras: int, pruning: TokenPruning, seed: int = 0) -> Slot:
    """Random image tokens and prompts with a common direction; what lies behind a prompt is random too."""
    config = tiny_config("pi05")
    key = SlotKey(len(WORDS), cameras, BUCKET, pruning)
    slot = Slot(config, key, torch.float32, Workspace(torch.device("cpu")), 2)
    generator = torch.Generator().manual_seed(seed)
    common = 2 * torch.randn(config.vlm.width, generator=generator)
    slot.unpruned.copy_(torch.randn(slot.unpruned.shape, generator=generator) + common)
    slot.lengths.copy_(slot.image_rows + torch.tensor(WORDS))
    return slot


def expected(slot: Slot, sample: int, pruning: TokenPruning) -> PrunedPrefix:
    """What the network does with a single request whose prompt is not padded."""
    prompt = slot.prompt_embeddings[sample : sample + 1, : WORDS[sample]]
    return prune_prefix(slot.image_tokens[sample : sample + 1], prompt, pruning)


@pytest.mark.parametrize("cameras", [1, 2, 3])
@pytest.mark.parametrize("keep_tokens", [1, 3, 5, 999])
@pytest.mark.parametrize("positions", get_args(Positions))
@pytest.mark.parametrize("mode", get_args(PruningMode))
def test_each_sample_of_a_batch_gets_the_prefix_it_would_get_alone(
    mode: PruningMode, positions: Positions, keep_tokens: int, cameras: int
) -> None:
    pruning = TokenPruning(keep_tokens, mode=mode, positions=positions)
    slot = filled_slot(cameras, pruning)
    prune_slot(slot, pruning)
    assert slot.selected is not None
    assert slot.prefix == min(keep_tokens, 4 * cameras) + BUCKET
    for sample, words in enumerate(WORDS):
        prefix, selection = expected(slot, sample, pruning)
        seen = int(selection.kept) + words
        assert slot.selected[sample].tolist() == [int(selection.kept), int(selection.union)]
        assert int(slot.visible[sample]) == seen
        assert torch.equal(slot.embeddings[sample, :seen], prefix.embeddings[0, :seen])
        if positions == "compact":
            assert slot.positions is None
            assert int(slot.suffix_start[sample]) == seen
        else:
            assert slot.positions is not None
            assert prefix.positions is not None
            assert torch.equal(slot.positions[sample, :seen], prefix.positions[0, :seen].int())
            assert int(slot.suffix_start[sample]) == 4 * cameras + words


def test_what_lies_behind_a_prompt_changes_nothing() -> None:
    pruning = TokenPruning(5, mode="union")
    slot, other = filled_slot(2, pruning), filled_slot(2, pruning)
    for sample, words in enumerate(WORDS):
        other.prompt_embeddings[sample, words:] = 7.0
    for each in (slot, other):
        prune_slot(each, pruning)
    assert slot.selected is not None
    assert other.selected is not None
    assert torch.equal(slot.selected, other.selected)
    for sample in range(len(WORDS)):
        seen = int(slot.visible[sample])
        assert torch.equal(slot.embeddings[sample, :seen], other.embeddings[sample, :seen])


def test_selection_is_the_same_every_time() -> None:
    pruning = TokenPruning(5, mode="union")
    slot = filled_slot(3, pruning)
    prune_slot(slot, pruning)
    first = slot.embeddings.clone(), slot.visible.clone()
    for _ in range(100):
        slot.embeddings.zero_()
        prune_slot(slot, pruning)
        assert torch.equal(slot.embeddings, first[0])
        assert torch.equal(slot.visible, first[1])


def test_shapes_depend_on_what_is_kept() -> None:
    config = tiny_config("pi05")
    keys = [SlotKey(1, 2, 8, TokenPruning(k)) for k in (3, 4)]
    assert keys[0] != keys[1]
    assert keys[0] != SlotKey(1, 2, 8, TokenPruning(3, positions="compact"))
    assert keys[0] != SlotKey(1, 2, 8)
    assert [key.prefix(config) for key in (*keys, SlotKey(1, 2, 8))] == [11, 12, 16]
