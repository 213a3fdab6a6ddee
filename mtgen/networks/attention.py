"""Attention: self-attention in a sequence (captions, sounds), and cross-attention from a feature map to tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.networks.blocks import activate

HEAD_WIDTH = 32
"""Dimensions of an attention head."""


class Attention(nn.Module):
    """Multi-head scaled dot-product attention. Source: Vaswani et al. 2017."""

    def __init__(self, queries: int, keys: int, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        # No bias for keys: it shifts all products of a query alike and softmax ignores it, so its gradient would be
        # noise.
        self.query = nn.Linear(queries, width)
        self.key = nn.Linear(keys, width, bias=False)
        self.value = nn.Linear(keys, width)
        self.out = nn.Linear(width, queries)

    def forward(self, x: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """Attend from `x` to the present tokens: `[B,Q,C]` -> `[B,Q,C]`.

        Args:
            x: `[B,Q,C]` queries.
            tokens: `[B,T,d]`.
            present: `[B,T]` bool: which tokens are there; at least one per row.
        """
        query = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in (self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=present[:, None, None])
        return self.out(attended.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: self-attention and an MLP of four times the width. Source: Xiong et al. 2020."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.before_layer = nn.LayerNorm(width)
        self.attention = Attention(width, width, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Tokens `[B,T,d]` and which are present, `[B,T]` bool -> `[B,T,d]`."""
        normalized = self.before_attention(x)
        x = x + self.attention(normalized, normalized, present)
        return x + self.narrow(F.gelu(self.wide(self.before_layer(x))))


class Sequence(nn.Module):
    """Transformer over a sequence of bounded length, with learned positions and the mean of tokens as pooled output."""

    def __init__(self, width: int, length: int, layers: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.ModuleList(TransformerBlock(width) for _ in range(layers))
        self.last = nn.LayerNorm(width)

    def forward(self, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `[B,T,d]` and which are present, `[B,T]` bool -> tokens `[B,T,d]` and their mean `[B,d]`."""
        x = x + self.position
        # a row without tokens attends to all, so that nothing is NaN; its output is not used
        attended = present | ~present.any(1, keepdim=True)
        for block in self.blocks:
            x = block(x, attended)
        x = self.last(x)
        weight = attended.to(x.dtype) / attended.sum(1, keepdim=True)
        return x, (x * weight[..., None]).sum(1)


class CrossAttention(nn.Module):
    """Cross-attention from a feature map to the tokens of a condition. Source: Rombach et al. 2022."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.attention = Attention(channels, tokens, max(HEAD_WIDTH, channels // HEAD_WIDTH * HEAD_WIDTH))

    def forward(self, x: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """Feature map `[B,C,H,W]`, tokens `[B,T,d]`, which are present `[B,T]` bool -> `[B,C,H,W]`."""
        attended = self.attention(activate(x).flatten(2).transpose(1, 2), tokens, present)
        return x + attended.transpose(1, 2).unflatten(2, x.shape[2:])
