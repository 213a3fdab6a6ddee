"""The gates of a run as its configuration asks for them, and their state in checkpoints."""

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
    """A weighting of its own for the gate that `balancing.KEY` configures; `None` for no gate.

    Raises:
        ConfigError: a class of the user's own cannot be loaded, or does not take its parameters.
    """
    name: str = getattr(config.balancing, key) or config.balancing.weighting
    if name == "none":
        return None
    try:
        kind = WEIGHTINGS[name] if name in WEIGHTINGS else by_path(name)
        rule: WeightingFunction = kind(**config.balancing.parameters.get(name, {})) if isinstance(kind, type) else kind
    except (ImportError, AttributeError, OSError, SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(
            f"balancing.{key}={name}: cannot be loaded ({error}); give FILE.CLASS or PACKAGE.MODULE:CLASS, importable by every worker"
        ) from error
    if not callable(rule):
        raise ConfigError(f"balancing.{key}={name}: cannot be called; a weighting takes a Gramian and returns weights")
    return rule


def build_gates(
    config: Config, tasks: list[str], drawing: list[str], layers: Sequence[nn.Module] = ()
) -> dict[str, Gate]:
    """The gates by name: "discriminator" and "generator" at the trunk's features in either step, and "canvas".

    Args:
        tasks: names of all tasks.
        drawing: those that ask the generator for canvases of their own.
        layers: the trunk's last shared layers, one a level, the lowest first; only for `balancing.gramian_source=layer`.
    """
    settings = config.balancing
    shared: dict[str, Any] = {
        "preference": settings.preference,
        "images": config.micro_batch * config.max_workers,
        "warmup": settings.warmup,
        "average": settings.ema_half_life,
    }
    trunk = {
        **shared,
        "groups": settings.groups,
        "sight": settings.gramian_source,
        "taps": InputHooks(layers) if settings.gramian_source == "layer" else None,
    }
    # A canvas is the last layer's output: seen through a layer's weights it would be the layer's input, which differs by sample.
    pixels = "features" if settings.gramian_source == "features" else "pooled"
    return {
        "discriminator": Gate(tasks, weighting(config, "discriminator"), **trunk),
        "generator": Gate(tasks, weighting(config, "generator"), **trunk),
        "canvas": Gate(["discriminator", *drawing], weighting(config, "canvas"), sight=pixels, **shared),
    }


def gates_state_dict(gates: Mapping[str, Gate]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint keeps of the gates: tensors, and what they are about."""
    tensors = {f"{name}/{key}": tensor for name, gate in gates.items() for key, tensor in gate.state().items()}
    return tensors, {name: _about(gate) for name, gate in gates.items()}


def load_gates_state_dict(
    gates: Mapping[str, Gate], tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> list[str]:
    """Take back what `gates_state_dict` gave; returns the gates that begin anew, since their tasks or their weighting are others now."""
    fresh = []
    for name, gate in gates.items():
        if about.get(name) != _about(gate):
            fresh.append(name)
            continue
        gate.load(
            {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
        )
    return fresh


def _about(gate: Gate) -> dict[str, Any]:
    return {"tasks": gate.tasks, "weighting": type(gate.weighting).__name__}
