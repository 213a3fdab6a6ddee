"""A pretrained, frozen text encoder from a TorchScript file."""

import functools
import io

import torch
from torch import Tensor

from mtgen.errors import ConfigError, last_line
from mtgen.networks.torchscript import read_torchscript
from mtgen.storage.source import read_file

ENCODER_KEY = "conditions.caption.encoder"

PROBE_SHAPE = (2, 4)
"""Rows and tokens of the input that a file is tested with."""


class FrozenText:
    """Embeddings of caption tokens from a third-party network.

    It is not a `nn.Module`, so nothing of it is trained, averaged or checkpointed. Its file is copied with the model
    (`mtgen.models.assets`).

    Args:
        path: the file, or its URL. Its `forward` takes `[B,T]` int64 token numbers of the tokenizer, 0 after a
            caption's end, and `[B,T]` bool: which tokens are there. It returns `[B,T,D]`.

    Attributes:
        width: D.

    Raises:
        DataError: the file does not exist or cannot be read.
        ConfigError: it does not have this interface.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.network = read_torchscript(io.BytesIO(read_file(path, ENCODER_KEY)), f"{ENCODER_KEY}={path}")
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        self.width = self._probe()

    def _probe(self) -> int:
        """Return the width of the network's output for a small input."""
        try:
            found = self(torch.ones(PROBE_SHAPE, dtype=torch.int64), torch.ones(PROBE_SHAPE, dtype=torch.bool))
        except Exception as error:  # a third-party network may raise anything
            raise ConfigError(
                f"{ENCODER_KEY}={self.path}: fails on tokens [B,T] int64 and [B,T] bool ({last_line(error)}); "
                "give a network that takes these inputs"
            ) from error
        if found.shape[:2] != PROBE_SHAPE or found.dim() != 3 or not found.isfinite().all():
            raise ConfigError(
                f"{ENCODER_KEY}={self.path}: returns {list(found.shape)} for 2 captions of 4 tokens; "
                "it must return finite values of shape [2, 4, D]"
            )
        return found.shape[2]

    @torch.no_grad()
    def __call__(self, tokens: Tensor, present: Tensor) -> Tensor:
        """`[B,T]` token numbers and which tokens are there -> `[B,T,D]` float32, on their device."""
        if tokens.is_meta:  # costs are counted without computing anything
            return torch.empty(*tokens.shape, self.width, device="meta")
        if next(self.network.parameters(), tokens).device != tokens.device:
            self.network.to(tokens.device)
        return self.network(tokens, present).float()


@functools.lru_cache(maxsize=1)
def frozen_text(path: str) -> FrozenText:
    """Load an encoder once per process, however often networks are built."""
    return FrozenText(path)
