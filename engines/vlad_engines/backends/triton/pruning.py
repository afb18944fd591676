"""Token pruning between vision and prefix: torch operations that a graph records with the prefix.

Everything stays on the device, and shapes follow from the slot's key alone.
"""

from __future__ import annotations

import torch

from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.triton.slot import Slot
from vlad_engines.model.token_pruner import importance_scores, lay_out, select_tokens


def prune_slot(slot: Slot, pruning: TokenPruning) -> None:
    """Choose the rows of `slot.embeddings` from those of `slot.unpruned`. Enqueues only.

    Also writes `visible`, `selected` and, where there are any, `positions`.
    """
    assert slot.selected is not None
    words = slot.lengths - slot.image_rows
    prompt = slot.prompt_embeddings
    real = torch.arange(prompt.shape[1], device=words.device) < words[:, None]
    selection = select_tokens(importance_scores(slot.image_tokens, prompt, real), pruning)
    places = torch.arange(slot.prefix, dtype=torch.int32, device=words.device)
    slots = places[: selection.indices.shape[1]]
    source = lay_out(selection, slots, words, slot.image_rows, places)
    rows = source.long()[:, :, None].expand(-1, -1, slot.embeddings.shape[2])
    torch.gather(slot.unpruned, 1, rows, out=slot.embeddings)
    torch.add(selection.kept, words, out=slot.visible)
    slot.selected.copy_(torch.stack((selection.kept, selection.union), dim=1))
    if slot.positions is not None:
        slot.positions.copy_(source)
