"""XRD_Transformer: every reflection is a token that looks at those that were measured. The whole model is in this file.

Pre-norm transformer: Vaswani et al. (2017), arXiv:1706.03762; Xiong et al. (2020), arXiv:2002.04745; token embedding
as in github.com/blackwood168/xrd_phase_ml, but only the voxels inside d_target are tokens: the others hold nothing.
In the published form each token looks at all: six times the work, and the wanted ones hold nothing but what is made of the
measured ones.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as nnf

from .base import NormalizedModel


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after a LayerNorm and around a residual."""

    def __init__(self, dim, n_heads, mlp_ratio, dropout):
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.project = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Dropout(dropout),
                                 nn.Linear(mlp_ratio * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, lengths, known, n_known):
        """x (N, dim), the tokens of all crystals one after the other; lengths, how many belong to each; known, the numbers of
        those that are looked at, and n_known, how many of these belong to each."""
        q, k, v = self.qkv(self.norm1(x)).view(len(x), 3, self.n_heads, -1).permute(1, 2, 0, 3)  # (heads, N, dim / heads)
        # a crystal at a time: no padding to the largest one, and no mask. No dropout on the attention weights either:
        # fused kernels for CPUs have none, and without them T × T weights would have to be stored
        parts = zip(q.split(lengths, dim=1), *(t[:, known].split(n_known, dim=1) for t in (k, v)))
        attended = torch.cat([nnf.scaled_dot_product_attention(*(t[None] for t in part))[0] for part in parts], dim=1)
        x = x + self.dropout(self.project(attended.transpose(0, 1).reshape(x.shape)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class XRDTransformer(NormalizedModel):
    """Value projection plus one-hot embeddings of h, k and l, blocks, and a linear head."""

    title = "XRD_Transformer"

    @dataclass
    class Config:
        shape: tuple[int, int, int] = (26, 18, 23)  # voxels of the box along h, k, l
        dim: int = 32
        depth: int = 2
        n_heads: int = 4
        mlp_ratio: int = 2
        dropout: float = 0.0
        published: bool = False

    PUBLISHED = dict(dim=128, depth=5, mlp_ratio=4, dropout=0.1, published=True)

    def __init__(self, config=None):
        super().__init__(config)
        c = self.config
        third = c.dim // 3
        # a linear layer on a one-hot index is a look-up in its weights: one row an index
        self.index = nn.ModuleList(nn.Linear(n, width) for n, width in zip(c.shape, (third, third, c.dim - 2 * third)))
        self.value = nn.Linear(self.n_inputs, c.dim)
        self.blocks = nn.ModuleList(Block(c.dim, c.n_heads, c.mlp_ratio, c.dropout) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim)
        self.head = self.started(nn.Linear(c.dim, 1))

    @classmethod
    def config_for(cls, box, d_target):
        return cls.Config(shape=box.shape)

    def raw(self, x, boxes):
        target = boxes.target
        known = target if self.published else target & boxes.measured & ~boxes.absent
        hkl = target.nonzero()[:, 1:].unbind(1)                                   # index in the box, 3 × (N,)
        index = torch.cat([layer.weight.t()[i] + layer.bias for layer, i in zip(self.index, hkl)], dim=-1)
        tokens = self.value(x.movedim(1, -1)[target]) + index                     # (N, dim)
        lengths, n_known = (mask.flatten(1).sum(dim=1).tolist() for mask in (target, known))
        known = known[target].nonzero()[:, 0]
        for block in self.blocks:
            tokens = block(tokens, lengths, known, n_known)
        raw = torch.zeros_like(boxes.F_in)
        raw[target] = self.head(self.norm(tokens))[:, 0].to(raw.dtype)
        return raw
