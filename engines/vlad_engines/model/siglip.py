"""SigLIP So400m/14 without pooling head: an image becomes one token per patch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vlad_configs.models import SiglipConfig

_EPSILON = 1e-6


class PatchEmbedding(nn.Conv2d):
    """Cut images into patches and project each: a convolution whose stride is its kernel size.

    Runs as one matrix product. cuDNN would by default use TF32 for a float32 convolution.
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """`[N, 3, size, size]` to `[N, patches, width]`, patches row by row."""
        count, channels, size, _ = pixels.shape
        patch = self.kernel_size[0]
        grid = size // patch
        patches = pixels.reshape(count, channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        rows = patches.reshape(count, grid * grid, channels * patch * patch)
        return F.linear(rows, self.weight.flatten(1), self.bias)


class SiglipAttention(nn.Module):
    """Full attention over the tokens of one image."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.heads = (num_heads, width // num_heads)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, width]` to the same shape."""
        count, length, width = x.shape
        queries, keys, values = (
            projection(x).view(count, length, *self.heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        projected: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(count, length, width))
        return projected


class SiglipMlp(nn.Module):
    """Two layers with a tanh-GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to the same shape."""
        projected: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return projected


class SiglipLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=_EPSILON)
        self.self_attn = SiglipAttention(config.width, config.num_heads)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=_EPSILON)
        self.mlp = SiglipMlp(config.width, config.mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, width]` to the same shape."""
        x = x + self.self_attn(self.layer_norm1(x))
        after_mlp: Tensor = x + self.mlp(self.layer_norm2(x))
        return after_mlp


class SiglipTower(nn.Module):
    """Images to patch features. Images never see each other, so cameras may share a batch."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config.width, config.patch_size)
        self.position_embedding = nn.Embedding(config.num_tokens, config.width)
        self.layers = nn.ModuleList(SiglipLayer(config) for _ in range(config.depth))
        self.post_layernorm = nn.LayerNorm(config.width, eps=_EPSILON)

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """`[N, 3, size, size]` float32 to the `[N, T, width]` that enter the first layer."""
        patches: Tensor = self.patch_embedding(pixels) + self.position_embedding.weight
        return patches.to(self.post_layernorm.weight.dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """`[N, 3, size, size]` float32 in [-1, 1] to `[N, T, width]` in the tower's dtype."""
        x = self.embed_patches(pixels)
        for layer in self.layers:
            x = layer(x)
        normed: Tensor = self.post_layernorm(x)
        return normed
