"""Somebody else's network, from a TorchScript file."""

from pathlib import Path
from typing import IO, Any

import torch

from mtgen.errors import ConfigError


def read_torchscript(file: Path | IO[bytes], named: str) -> Any:
    """The network in a file, on the CPU, set to evaluation; called like a module.

    A TorchScript file is a program of torch's own operators; torch reads it with a reader of its own, not with Python's pickle.

    Args:
        named: what it was asked for by, as `key=path`.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        return torch.jit.load(file, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{named}: is no TorchScript file ({str(error).splitlines()[0][:200]})") from None
