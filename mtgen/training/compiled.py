"""Compiled networks (`train.compile`): fewer kernels and less Python per step."""

from typing import Any

import torch
from torch import nn

from mtgen.config import Config
from mtgen.models.model import Networks
from mtgen.training.static_shapes import pad_decoder


def prepare_networks(config: Config, networks: Networks, backend: Any = "inductor") -> None:
    """Pad and compile the parts of the networks that hold nearly all kernels: their pyramids and the decoder.

    The modules stay in place, and so do the names of their parameters. Heads, losses and random numbers stay eager:
    tasks are Python that anyone may write.

    Args:
        backend: of `torch.compile`; graphs choose their own.
    """
    discriminator = networks.side.discriminator
    parts: list[nn.Module] = [networks.generator.climb, discriminator.descent]
    if discriminator.game is not None:
        parts.append(discriminator.game.descent)
    if discriminator.decoder is not None:
        parts.append(discriminator.decoder)
    if config.train.compile != "off":
        options: dict[str, Any] = (
            {"mode": "reduce-overhead"} if config.train.compile == "graphs" else {"backend": backend}
        )
        for part in parts:
            # without static shapes, one program serves all numbers of rows
            dynamic = None if config.train.static_shapes else True
            part.forward = torch.compile(part.forward, dynamic=dynamic, **options)
    if config.train.static_shapes and discriminator.decoder is not None:
        pad_decoder(discriminator.decoder, config.micro_batch)


def begin_step(config: Config) -> None:
    """Tell CUDA graphs that the tensors of the step before are no longer used."""
    if config.train.compile == "graphs":
        torch.compiler.cudagraph_mark_step_begin()
