"""Loading of third-party networks from TorchScript files."""

from pathlib import Path
from typing import IO, Any

import torch

from mtgen.errors import ConfigError


def read_torchscript(file: Path | IO[bytes], named: str) -> Any:
    """Load a network on the CPU, in evaluation mode; it is called like a module.

    A TorchScript file is a program of torch's operators, which torch reads without Python's pickle.

    Args:
        named: how the user named the file, as `key=path`; for messages.

    Raises:
        ConfigError: it is not a TorchScript file.
    """
    try:
        return torch.jit.load(file, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(f"{named}: not a TorchScript file ({reason}); save one with torch.jit.script") from None
