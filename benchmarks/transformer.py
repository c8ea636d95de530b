"""The Transformer that Mamba is measured against: pre-norm, grouped-query attention by PyTorch's kernels, gated MLP.

One block (attention and MLP) has the weights of two Mamba-2 layers of the same width. It is kept as fast as plain
PyTorch makes it: no rotary positions (they would only add to it), one product for queries, keys and values, and in
decoding the queries of a group side by side, so that keys and values are read once for all of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.floors import projection_weights

HEADDIM = 64
KV_HEADS = {"gqa": 4, "mha": 16}  # of 16 at d_model 1,024


def mlp_width(d_model: int, kv_heads: int) -> int:
    """So that a block has the weights of two Mamba-2 layers; a multiple of 64."""
    attention = d_model * (d_model + 2 * kv_heads * HEADDIM) + d_model * d_model
    return round((2 * projection_weights("mamba2", d_model) - attention) / (3 * d_model) / 64) * 64


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, d_model: int, kind: str = "gqa"):
        super().__init__()
        self.heads = d_model // HEADDIM
        self.kv_heads = max(1, KV_HEADS[kind] * self.heads // 16)
        self.width = mlp_width(d_model, self.kv_heads)
        self.norms = nn.ParameterList(torch.ones(d_model) for _ in range(2))
        self.qkv = nn.Linear(d_model, (self.heads + 2 * self.kv_heads) * HEADDIM, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.up = nn.Linear(d_model, 2 * self.width, bias=False)
        self.down = nn.Linear(self.width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence (b, l, d_model), causal."""
        q, k, v = (t.transpose(1, 2) for t in self._split(x))
        shared = self.kv_heads < self.heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        return self._mlp(x + self.out(y.transpose(1, 2).flatten(2)))

    def step(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One token (b, d_model) behind a full cache (b, kv_heads, length, HEADDIM), whose last entry is its own."""
        q, k, v = self._split(x)
        keys[:, :, -1] = k
        values[:, :, -1] = v
        q = q.unflatten(1, (self.kv_heads, -1))  # the queries of a group in the place of a sequence
        y = F.scaled_dot_product_attention(q, keys, values)
        return self._mlp(x + self.out(y.flatten(1)))

    def _split(self, x: Tensor) -> list[Tensor]:
        """q, k, v (..., heads, HEADDIM)."""
        projected = self.qkv(F.rms_norm(x, x.shape[-1:], self.norms[0], 1e-5)).unflatten(-1, (-1, HEADDIM))
        return list(projected.split([self.heads, self.kv_heads, self.kv_heads], dim=-2))

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = self.up(F.rms_norm(x, x.shape[-1:], self.norms[1], 1e-5)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """Blocks with the weights of ``layers`` Mamba-2 layers, and caches full of random keys and values."""

    def __init__(self, vocabulary: int, d_model: int, layers: int, batch: int, length: int, kind: str, device: str):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, d_model)
        blocks = [Block(d_model, kind) for _ in range(layers // 2)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.Parameter(torch.ones(d_model))
        self.head = nn.Linear(d_model, vocabulary, bias=False)
        self.to(device, torch.bfloat16)
        shape = (batch, blocks[0].kv_heads, length, HEADDIM)
        self.caches = [[torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(2)] for _ in blocks]

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (b, vocabulary) of one token of each row (b,)."""
        x = self.embedding(tokens)
        for block, (keys, values) in zip(self.blocks, self.caches, strict=True):
            assert isinstance(block, Block)
            x = block.step(x, keys, values)
        return self.head(F.rms_norm(x, x.shape[-1:], self.norm, 1e-5))
