"""The gates of a run, built from its configuration, and their state in checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mtgen.balancing.gate import Gate
from mtgen.balancing.gramian import InputHooks
from mtgen.balancing.weighting import WeightingFunction
from mtgen.config import WEIGHTINGS, Config
from mtgen.errors import ConfigError
from mtgen.registry import by_path


def weighting(config: Config, key: str) -> WeightingFunction | None:
    """Build a new weighting for the gate that `balancing.KEY` configures; `None` for no gate.

    Raises:
        ConfigError: a user's class cannot be loaded or does not take its parameters.
    """
    name: str = getattr(config.balancing, key) or config.balancing.weighting
    if name == "none":
        return None
    try:
        found = WEIGHTINGS[name] if name in WEIGHTINGS else by_path(name)
        parameters = config.balancing.parameters.get(name, {})
        made: WeightingFunction = found(**parameters) if isinstance(found, type) else found
    except (ImportError, AttributeError, OSError, SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(
            f"balancing.{key}={name}: cannot be loaded ({error}); give FILE.CLASS or PACKAGE.MODULE:CLASS, "
            "importable by every worker"
        ) from error
    if not callable(made):
        raise ConfigError(
            f"balancing.{key}={name}: is not callable; a weighting takes a Gramian and returns one weight per task"
        )
    return made


def build_gates(
    config: Config, tasks: list[str], requesting: list[str], layers: Sequence[nn.Module] = ()
) -> dict[str, Gate]:
    """Build the gates by name: "discriminator" and "generator" at the trunk's features in either step, and "canvas".

    Args:
        tasks: names of all tasks.
        requesting: names of the tasks that request canvases from the generator.
        layers: the trunk's last shared layers, one per level, lowest resolution first; only for
            `balancing.gramian_source=layer`.
    """
    settings = config.balancing
    common: dict[str, Any] = {
        "preference": settings.preference,
        "images": config.micro_batch * config.max_workers,
        "warmup": settings.warmup,
        "average": settings.ema_half_life,
    }
    trunk = {
        **common,
        "groups": settings.groups,
        "gramian_source": settings.gramian_source,
        "input_hooks": InputHooks(layers) if settings.gramian_source == "layer" else None,
    }
    # The canvas is the output of the last layer, whose input differs from sample to sample: "layer" means "pooled"
    # there.
    canvas_source = "features" if settings.gramian_source == "features" else "pooled"
    return {
        "discriminator": Gate(tasks, weighting(config, "discriminator"), **trunk),
        "generator": Gate(tasks, weighting(config, "generator"), **trunk),
        "canvas": Gate(
            ["discriminator", *requesting], weighting(config, "canvas"), gramian_source=canvas_source, **common
        ),
    }


def gates_state_dict(gates: Mapping[str, Gate]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the gates' tensors for a checkpoint, and what identifies each gate: its tasks and its weighting."""
    tensors = {f"{name}/{key}": tensor for name, gate in gates.items() for key, tensor in gate.state().items()}
    return tensors, {name: _identity(gate) for name, gate in gates.items()}


def load_gates_state_dict(
    gates: Mapping[str, Gate], tensors: Mapping[str, Tensor], identities: Mapping[str, Any]
) -> list[str]:
    """Restore what `gates_state_dict` returned.

    Returns the names of the gates that start from scratch, since their tasks or weighting changed.
    """
    fresh = []
    for name, gate in gates.items():
        if identities.get(name) != _identity(gate):
            fresh.append(name)
            continue
        prefix = f"{name}/"
        gate.load({key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)})
    return fresh


def _identity(gate: Gate) -> dict[str, Any]:
    return {"tasks": gate.tasks, "weighting": type(gate.weighting).__name__}
