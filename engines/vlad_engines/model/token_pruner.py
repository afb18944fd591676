"""LightVLA's choice of image tokens: no weights, only image tokens and prompt, both already embedded.

Every image token asks the prompt, the answer votes for the image token that resembles it most, and tokens
without a vote may go (arXiv 2509.12594). Unlike the published code, the order among equally voted tokens is
defined, so that the same scores always keep the same tokens, on every device. All in float32: scores differ
by less than bfloat16 can tell. Choosing is comparing and counting, and nothing else: graphs record it, and
ONNX knows it, where the order in which sorts and top-k leave equal numbers is up to whoever runs them. Even
counts are float32, exact here: TensorRT 8.6 adds up no integers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vlad_configs.pruning import PruningMode, TokenPruning
from vlad_engines.model.attention import MASK_FILL
from vlad_engines.model.pi0 import Prefix

_EPSILON = 1e-6
_RANK_STEPS = (1 << 10) - 1
_NOBODY = float(1 << 30)
_MOST_TOKENS = (1 << 24) // (_RANK_STEPS + 1) - 1
"""For more, votes and rank do not fit into float32's integers."""


class Selection(NamedTuple):
    """Which image tokens are kept.

    Attributes:
        indices: `[B, K]` int32 in the pool of all cameras, ascending; those that do not count come last.
        kept: `[B]` int32, how many of the K count.
        union: `[B]` int32, how many tokens had a vote, more than K perhaps.
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
        logits = logits.masked_fill(~prompt_mask[:, None], MASK_FILL)
        # Where no token of a prompt is real, all are equally masked, and must have no say all the same.
        words = words * prompt_mask[:, :, None]
    queries = _normalize(torch.matmul(torch.softmax(logits, dim=-1), words))
    return torch.matmul(queries, tokens.transpose(1, 2)) * scale


def select_tokens(scores: Tensor, pruning: TokenPruning) -> Selection:
    """Choose from `[B, N, N]` scores. Enqueues only: shapes follow from N, never from the scores.

    Raises:
        ValueError: for more than 16383 image tokens.
    """
    count = scores.shape[-1]
    if count > _MOST_TOKENS:
        raise ValueError(f"at most {_MOST_TOKENS} image tokens can be ranked, not {count}")
    numbers = torch.arange(count, dtype=torch.int32, device=scores.device)
    return fill_slots(scores, numbers, numbers[: pruning.slots(count)], pruning.mode)


def fill_slots(scores: Tensor, index: Tensor, slots: Tensor, mode: PruningMode) -> Selection:
    """Choose from `[B, N, N]` scores for as many slots as there are.

    The order is that of the votes, then of the best score in 1024 steps, then of the index.

    Args:
        index: `[N]` int32, the numbers 0 to N - 1.
        slots: `[K]` int32, the numbers 0 to K - 1; K is at most N.
    """
    index, slots = index.float(), slots.float()
    best = scores.amax(dim=-1, keepdim=True)
    # argmax does not promise the first of equal scores.
    choice = index.expand_as(scores).masked_fill(scores != best, _NOBODY).amin(dim=-1)
    votes = _count(choice[:, :, None] == index, 1)
    peak = scores.amax(dim=1)
    low, high = peak.amin(dim=1, keepdim=True), peak.amax(dim=1, keepdim=True)
    rank = ((peak - low) / (high - low + _EPSILON) * _RANK_STEPS).round()
    key = votes * (_RANK_STEPS + 1) + rank
    ahead = (key[:, :, None] > key[:, None]) | (
        (key[:, :, None] == key[:, None]) & (index[:, None] < index[None])
    )
    holds = _count(ahead, 1)[:, None] == slots[:, None]  # [B, K, N]
    token = _pick(holds, index)
    union = _count(votes > 0, 1)
    if mode == "fixed":
        before = token[:, :, None] < token[:, None]
        kept = _count(token > -1, 1)  # each of them
    else:
        # Tokens without a vote go behind the others and are masked there.
        voted = _count(holds & (votes > 0)[:, None], 2)
        before = (voted[:, :, None] > voted[:, None]) | (
            (voted[:, :, None] == voted[:, None]) & (token[:, :, None] < token[:, None])
        )
        kept = _count(voted > 0, 1)
    indices = _pick(_count(before, 1)[:, None] == slots[:, None], token[:, None])
    return Selection(indices.to(torch.int32), kept.to(torch.int32), union.to(torch.int32))


def lay_out(selection: Selection, slots: Tensor, words: Tensor, pool: int, places: Tensor) -> Tensor:
    """Where each token of the pruned prefix stood in the unpruned one.

    Kept image tokens come first and the prompt right behind them, so that only the end is masked.

    Args:
        slots: `[K]` int32, the numbers 0 to K - 1.
        words: `[B]` int32, real prompt tokens.
        pool: N, image tokens of the unpruned prefix, behind which its prompt follows.
        places: `[P]` int32, the numbers 0 to P - 1; P is K and room for the longest prompt.

    Returns:
        `[B, P]` int32; 0 for places that do not count.
    """
    end = selection.kept[:, None]
    indices = _pick(places[:, None] == slots, selection.indices[:, None].float()).to(torch.int32)
    prompt = (places - end + pool).masked_fill(~(places < end + words[:, None]), 0)
    return torch.where(places < end, indices, prompt)


def prune_prefix(images: Tensor, prompt: Tensor, pruning: TokenPruning) -> PrunedPrefix:
    """The prefix of one or several samples with fewer image tokens.

    Args:
        images: `[B, N, W]`, tokens of all cameras of a sample.
        prompt: `[B, n, W]`, real prompt tokens only.

    Returns:
        A prefix of K + n tokens, in which those that do not count come last.
    """
    samples, pool, width = images.shape
    words, device = prompt.shape[1], images.device
    selection = select_tokens(importance_scores(images, prompt), pruning)
    places = torch.arange(selection.indices.shape[1] + words, dtype=torch.int32, device=device)
    lengths = torch.full((samples,), words, dtype=torch.int32, device=device)
    slots = places[: selection.indices.shape[1]]
    source = lay_out(selection, slots, lengths, pool, places).long()
    unpruned = torch.cat((images, prompt.to(images.dtype)), dim=1)
    embeddings = torch.gather(unpruned, 1, source[:, :, None].expand(-1, -1, width))
    visible = None if pruning.mode == "fixed" else (selection.kept + lengths).long()
    if pruning.positions == "compact":
        return PrunedPrefix(Prefix(embeddings, visible), selection)
    start = torch.full((samples,), pool + words, device=device)
    return PrunedPrefix(Prefix(embeddings, visible, source, start), selection)


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
    wide = x.float()
    return wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + _EPSILON)


def _count(holds: Tensor, dim: int) -> Tensor:
    return holds.float().sum(dim=dim)


def _pick(holds: Tensor, numbers: Tensor) -> Tensor:
    """The one of `numbers` in the last axis for which `holds` is true."""
    return (holds.float() * numbers).sum(dim=-1)
