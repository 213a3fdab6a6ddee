"""The environment variables that workers get from the driver."""

import os
from collections.abc import Mapping

from mtgen.config import Config
from mtgen.errors import ConfigError


def worker_environment(config: Config, here: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of `launch.env` with their values in `here`.

    Raises:
        ConfigError: one that is given by its whole name is not set.
    """
    found: dict[str, str] = {}
    for name in config.launch.env:
        if name.endswith("*"):
            found |= {own: value for own, value in here.items() if own.startswith(name[:-1])}
        elif name in here:
            found[name] = here[name]
        elif "env" in config.launch.model_fields_set:
            raise ConfigError(f"launch.env: {name} is not set in this process; export it, or remove it from the list")
    return found
