"""A text encoder that was trained elsewhere, from a TorchScript file; it is read, never trained."""

import functools
import io

import torch
from torch import Tensor

from mtgen.errors import ConfigError, last_line
from mtgen.networks.torchscript import read_torchscript
from mtgen.storage.source import read_file

ENCODER_KEY = "conditions.caption.encoder"

PROBE_SHAPE = (2, 4)
"""Rows and tokens that a file is tried with."""


class FrozenText:
    """Tokens of captions -> a vector each, by somebody else's network.

    It is no module of ours: nothing of it is trained, averaged or kept in checkpoints; its file goes with the model (`mtgen.models.assets`).

    Args:
        path: the file, or its URL. Its `forward` takes `[B,T]` int64 numbers of the tokenizer, 0 after a caption's end, and `[B,T]` bool,
            which of them are there, and gives `[B,T,D]`.

    Attributes:
        width: D.

    Raises:
        DataError: the file is not there, or cannot be read.
        ConfigError: it is no such network.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.network = read_torchscript(io.BytesIO(read_file(path, ENCODER_KEY)), f"{ENCODER_KEY}={path}")
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        self.width = self._tried()

    def _tried(self) -> int:
        try:
            found = self(torch.ones(PROBE_SHAPE, dtype=torch.int64), torch.ones(PROBE_SHAPE, dtype=torch.bool))
        except Exception as error:  # whatever a network of somebody else's raises
            raise ConfigError(
                f"{ENCODER_KEY}={self.path}: cannot be used on tokens [B,T] int64 and [B,T] bool ({last_line(error)})"
            ) from error
        if found.shape[:2] != PROBE_SHAPE or found.dim() != 3 or not found.isfinite().all():
            raise ConfigError(
                f"{ENCODER_KEY}={self.path}: gives {list(found.shape)} for 2 captions of 4 tokens; it has to be finite, [2, 4, D]"
            )
        return found.shape[2]

    @torch.no_grad()
    def __call__(self, tokens: Tensor, present: Tensor) -> Tensor:
        """`[B,T]` numbers of the tokenizer and which are there -> `[B,T,D]` float32, on their device."""
        if tokens.is_meta:  # counted, not computed
            return torch.empty(*tokens.shape, self.width, device="meta")
        if next(self.network.parameters(), tokens).device != tokens.device:
            self.network.to(tokens.device)
        return self.network(tokens, present).float()


@functools.lru_cache(maxsize=1)
def frozen_text(path: str) -> FrozenText:
    """The encoder in a file; read once, however often networks are built."""
    return FrozenText(path)
