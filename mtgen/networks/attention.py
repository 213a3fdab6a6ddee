"""Attention: within a sequence (captions, sounds), and from a feature map to the tokens of a condition."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.networks.blocks import activate

HEAD_WIDTH = 32
"""Dimensions of a head."""


class Attention(nn.Module):
    """Scaled dot-product attention of several heads from queries to keys. Source: Vaswani et al. 2017."""

    def __init__(self, queries: int, keys: int, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        # A bias of the keys moves all of a query's products alike, which softmax does not see: its gradient would be rounding noise.
        self.query = nn.Linear(queries, width)
        self.key = nn.Linear(keys, width, bias=False)
        self.value = nn.Linear(keys, width)
        self.out = nn.Linear(width, queries)

    def forward(self, x: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """`[B,Q,C]`, `[B,T,d]` and which of the T are there, `[B,T]` (one at least in each row) -> `[B,Q,C]`."""
        query = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in (self.key, self.value)
        )
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=present[:, None, None])
        return self.out(read.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Self-attention and a layer of four times the width, each after a layer norm and beside a skip. Source: Xiong et al. 2020."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.before_layer = nn.LayerNorm(width)
        self.attention = Attention(width, width, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """`[B,T,d]` and which of them are there -> `[B,T,d]`."""
        normal = self.before_attention(x)
        x = x + self.attention(normal, normal, present)
        return x + self.narrow(F.gelu(self.wide(self.before_layer(x))))


class Sequence(nn.Module):
    """Transformer over a sequence of bounded length, with learned positions; its mean is the sequence as a whole."""

    def __init__(self, width: int, length: int, layers: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.ModuleList(TransformerBlock(width) for _ in range(layers))
        self.last = nn.LayerNorm(width)

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """`[B,T,d]` and which of them are there, `[B,T]` -> tokens `[B,T,d]` and their mean `[B,d]`."""
        x = x + self.position
        some = present | ~present.any(1, keepdim=True)  # a row without any attends to all, and is not read
        for block in self.blocks:
            x = block(x, some)
        x = self.last(x)
        share = some.to(x.dtype) / some.sum(1, keepdim=True)
        return x, (x * share[..., None]).sum(1)


class CrossAttention(nn.Module):
    """A feature map that reads the tokens of a condition; it begins as the identity. Source: Rombach et al. 2022."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.attention = Attention(channels, tokens, max(HEAD_WIDTH, channels // HEAD_WIDTH * HEAD_WIDTH))

    def forward(self, x: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """`[B,C,H,W]`, `[B,T,d]`, `[B,T]` -> `[B,C,H,W]`."""
        read = self.attention(activate(x).flatten(2).transpose(1, 2), tokens, present)
        return x + read.transpose(1, 2).unflatten(2, x.shape[2:])
