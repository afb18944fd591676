"""LightVLA's choice of image tokens: no weights, only image tokens and prompt, both already embedded.

Every image token asks the prompt, the answer votes for the image token that resembles it most, and tokens
without a vote may go (arXiv 2509.12594). Unlike the published code, the order among equally voted tokens is
defined, so that the same scores always keep the same tokens, on every device. All in float32: scores differ
by less than bfloat16 can tell.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vlad_configs.pruning import TokenPruning
from vlad_engines.model.attention import additive_mask
from vlad_engines.model.pi0 import Prefix

_EPSILON = 1e-6
_MAX_TOKENS = 1 << 11
_RANK_STEPS = (1 << 10) - 1
_VOTE = _MAX_TOKENS * (_RANK_STEPS + 1)
"""A token's key, an int64: votes, then its best score in 1024 steps, then the lower index; each is unique."""


class Selection(NamedTuple):
    """Which image tokens are kept.

    Attributes:
        indices: `[B, K]` int64 in the pool of all cameras, ascending; those that do not count come last.
        kept: `[B]` int64, how many of the K count.
        union: `[B]` int64, how many tokens had a vote, more than K perhaps.
    """

    indices: Tensor
    kept: Tensor
    union: Tensor


class PrunedPrefix(NamedTuple):
    """A prefix of fewer image tokens, and what was selected for it."""

    prefix: Prefix
    selection: Selection


def importance_scores(images: Tensor, prompt: Tensor, prompt_mask: Tensor | None = None) -> Tensor:
    """How much each image token's query resembles each image token.

    Args:
        images: `[B, N, W]`, tokens of all cameras behind the projector.
        prompt: `[B, L, W]`, embedded and scaled.
        prompt_mask: `[B, L]` bool, False for padding; None where there is none.

    Returns:
        `[B, N, N]` float32; row i is the query of token i.
    """
    scale = 1.0 / math.sqrt(images.shape[-1])
    tokens, words = _normalize(images), _normalize(prompt)
    logits = torch.matmul(tokens, words.transpose(1, 2)) * scale
    if prompt_mask is not None:
        logits = logits + additive_mask(prompt_mask)[:, None]
    queries = _normalize(torch.matmul(torch.softmax(logits, dim=-1), words))
    return torch.matmul(queries, tokens.transpose(1, 2)) * scale


def select_tokens(scores: Tensor, pruning: TokenPruning) -> Selection:
    """Choose from `[B, N, N]` scores. Enqueues only: shapes follow from N, never from the scores.

    Raises:
        ValueError: for more than 2048 image tokens.
    """
    count = scores.shape[-1]
    if count > _MAX_TOKENS:
        raise ValueError(f"at most {_MAX_TOKENS} image tokens can be ranked, not {count}")
    index = torch.arange(count, device=scores.device)
    best = scores.amax(dim=-1, keepdim=True)
    # argmax does not promise the first of equal scores.
    choice = torch.where(scores == best, index, count).amin(dim=-1)
    votes = (choice[:, :, None] == index).sum(dim=1)
    peak = scores.amax(dim=1)
    low, high = peak.amin(dim=1, keepdim=True), peak.amax(dim=1, keepdim=True)
    rank = ((peak - low) / (high - low + _EPSILON) * _RANK_STEPS).round().long()
    key = votes * _VOTE + rank * _MAX_TOKENS + (count - 1 - index)
    slots = pruning.slots(count)
    chosen = key.topk(slots, dim=1).indices
    union = (votes > 0).sum(dim=1)
    if pruning.mode == "fixed":
        return Selection(chosen.sort(dim=1).values, torch.full_like(union, slots), union)
    voted = votes.gather(1, chosen) > 0
    # Tokens without a vote go behind the others and are masked there.
    order = torch.where(voted, chosen, chosen + count).sort(dim=1).values % count
    return Selection(order, union.clamp(max=slots), union)


def prune_prefix(images: Tensor, prompt: Tensor, pruning: TokenPruning) -> PrunedPrefix:
    """The prefix of one or several samples with fewer image tokens.

    Args:
        images: `[B, N, W]`, tokens of all cameras of a sample.
        prompt: `[B, n, W]`, real prompt tokens only.

    Returns:
        A prefix of K + n tokens, in which those that do not count come last.
    """
    samples, pool, width = images.shape
    words = prompt.shape[1]
    selection = select_tokens(importance_scores(images, prompt), pruning)
    slots = selection.indices.shape[1]
    kept = torch.gather(images, 1, selection.indices[:, :, None].expand(-1, -1, width))
    packed = torch.cat((kept, prompt.to(kept.dtype)), dim=1)
    original = torch.cat(
        (selection.indices, torch.arange(pool, pool + words, device=images.device).expand(samples, -1)), dim=1
    )
    if pruning.mode == "fixed":
        if pruning.positions == "compact":
            return PrunedPrefix(Prefix(packed, None), selection)
        start = torch.full((samples,), pool + words, device=images.device)
        return PrunedPrefix(Prefix(packed, None, original, start), selection)
    # The prompt moves up to the last token that counts, so that only the end of the prefix is masked.
    place = torch.arange(slots + words, device=images.device).expand(samples, -1)
    end = selection.kept[:, None]
    source = torch.where(
        place < end, place, torch.where(place < end + words, place - end + slots, place - words)
    )
    embeddings = torch.gather(packed, 1, source[:, :, None].expand(-1, -1, width))
    lengths = selection.kept + words
    if pruning.positions == "compact":
        return PrunedPrefix(Prefix(embeddings, lengths), selection)
    start = torch.full((samples,), pool + words, device=images.device)
    return PrunedPrefix(Prefix(embeddings, lengths, original.gather(1, source), start), selection)


def straight_through(
    images: Tensor, prompt: Tensor, prompt_mask: Tensor, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace each image token by the one it votes for; gradients flow as through a softmax.

    Args:
        images: `[B, N, W]`.
        prompt: `[B, L, W]`.
        prompt_mask: `[B, L]` bool, False for padding.
        noise: height of the uniform noise that is added to the scores.

    Returns:
        `[B, N, W]` in the dtype of `images`, and `[B, N]` int64: where each token came from.
    """
    with torch.autocast(images.device.type, enabled=False):
        scores = importance_scores(images, prompt, prompt_mask)
        if noise:
            scores = scores + noise * torch.rand(scores.shape, generator=generator, device=scores.device)
        choice = scores.argmax(dim=-1)
        soft = torch.softmax(scores, dim=-1)
        hard = torch.nn.functional.one_hot(choice, scores.shape[-1]).float()
        mixed = torch.matmul(hard + soft - soft.detach(), images.float())
    return mixed.to(images.dtype), choice


def _normalize(x: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x.float(), x.shape[-1:], eps=_EPSILON)
