"""Attention: in a sequence (captions, sounds), within a feature map, and from a feature map to tokens."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtgen.networks.blocks import activate

HEAD_WIDTH = 32
"""Dimensions of an attention head."""

MIN_NORM = 1e-4
"""Least length of a query or key that is divided by it; fp16 can represent it."""


class Attention(nn.Module):
    """Multi-head scaled dot-product attention. Source: Vaswani et al. 2017.

    Args:
        normalize: give queries and keys the root mean square 1, so that attention cannot saturate where nothing else
            bounds the features. Source: Henry et al. 2020.
    """

    def __init__(self, queries: int, keys: int, width: int, normalize: bool = False) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.normalize = normalize
        # No bias for keys: it shifts all products of a query alike and softmax ignores it, so its gradient would be
        # noise.
        self.query = nn.Linear(queries, width)
        self.key = nn.Linear(keys, width, bias=False)
        self.value = nn.Linear(keys, width)
        self.out = nn.Linear(width, queries)

    def forward(self, x: Tensor, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Attend from `x` to the present tokens: `[B,Q,C]` -> `[B,Q,C]`.

        Args:
            x: `[B,Q,C]` queries.
            tokens: `[B,T,d]`.
            present: `[B,T]` bool: which tokens are there; at least one per row; `None`: all.
        """
        query = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = (
            project(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in (self.key, self.value)
        )
        scale = None
        if self.normalize:
            query, key = (F.normalize(part, dim=-1, eps=MIN_NORM) for part in (query, key))
            scale = math.sqrt(query.shape[-1])
        mask = None if present is None else present[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
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
        self.attention = Attention(channels, tokens, _width(channels))

    def forward(self, x: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """Feature map `[B,C,H,W]`, tokens `[B,T,d]`, which are present `[B,T]` bool -> `[B,C,H,W]`."""
        attended = self.attention(_pixels(x), tokens, present)
        return x + attended.transpose(1, 2).unflatten(2, x.shape[2:])


class SelfAttention(nn.Module):
    """Attention of every pixel of a feature map to all of them. Source: Zhang et al. 2019 (SAGAN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = Attention(channels, channels, _width(channels), normalize=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[B,C,H,W]` -> `[B,C,H,W]`."""
        pixels = _pixels(x)
        return x + self.attention(pixels, pixels).transpose(1, 2).unflatten(2, x.shape[2:])


def _width(channels: int) -> int:
    return max(HEAD_WIDTH, channels // HEAD_WIDTH * HEAD_WIDTH)


def _pixels(x: Tensor) -> Tensor:
    """`[B,C,H,W]` -> `[B,H*W,C]`, activated."""
    return activate(x).flatten(2).transpose(1, 2)


def start_as_identity(network: nn.Module) -> None:
    """Let all attention of feature maps in a network add nothing at first."""
    for module in network.modules():
        if isinstance(module, CrossAttention | SelfAttention):
            module.attention.out.weight.data.zero_()
