"""What a configuration costs, before anything of it runs: parameters, arithmetic, memory and traffic.

Networks and steps are built and run on torch's meta device, which has shapes and no numbers: any size is counted in seconds, in no memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mtgen.config import Config
from mtgen.models.model import Model, Networks, build
from mtgen.schema import Batch, DatasetCard, Prompt
from mtgen.training.steps import build_steps, frozen

_NO_KERNEL_OPS = {
    torch.ops.aten.detach.default,
    torch.ops.aten.empty.memory_format,
    torch.ops.aten._unsafe_view.default,
}
"""Operations that start no kernel, beside views."""

BYTES_PER_VALUE = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of an activation."""


@dataclass(frozen=True)
class Cost:
    """Of one configuration.

    Attributes:
        parameters: part ("generator", "trunk", "decoder", "conditions", "head: TASK") -> their number.
        step: floating-point operations an image of a whole step, both sides, forward and backward; a multiply-add is two.
        drawing, reading: of drawing one image, and of reading everything in one.
        activations: bytes an image that the larger of both steps keeps for its backward.
        kernels: that both steps start for one micro-batch in eager mode, whatever its size.
    """

    parameters: dict[str, int]
    step: float
    drawing: float
    reading: float
    activations: float
    kernels: int

    @property
    def generator(self) -> int:
        """Parameters of the generator."""
        return self.parameters["generator"]

    @property
    def total(self) -> int:
        """Parameters of both sides."""
        return sum(self.parameters.values())

    def state_bytes(self, stage: int, workers: int) -> float:
        """Bytes a worker of parameters, gradients, Adam's two moments and the averaged weights, all fp32, in ZeRO stage 0 to 2.

        Source: Rajbhandari et al. 2020, with the average, which every worker holds whole, beside it.
        """
        gradients = 4 / (workers if stage == 2 else 1)
        moments = 8 / (workers if stage >= 1 else 1)
        return self.total * (4 + gradients + moments + 4)

    def traffic(self, workers: int) -> float:
        """Bytes that a worker sends in a step: a ring's reduction and gathering of every gradient, fp32, whatever the ZeRO stage."""
        return 2 * 4 * self.total * (workers - 1) / workers


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def parameters(networks: Networks) -> dict[str, int]:
    """Part -> number of its parameters; together they are all of both sides."""
    side, discriminator = networks.side, networks.side.discriminator
    found = {
        "generator": _count(networks.generator),
        "conditions": _count(side.conditions),
        "decoder": _count(discriminator.decoder),
    }
    found |= {f"head: {name}": _count(head) for name, head in discriminator.heads.items()}
    found["trunk"] = _count(networks.generator) + _count(side) - sum(found.values())
    return found


def build_on_meta(config: Config, card: DatasetCard) -> Networks:
    """The networks without memory for their parameters."""
    with torch.device("meta"):
        return build(config, card)


def _batch(config: Config, card: DatasetCard, size: int) -> Batch:
    """A batch of shapes alone, every label present."""
    position, (height, width) = torch.arange(size), config.size
    sound = config.data.sound
    channels = 1 if config.data.channels == "gray" else 3

    def shape(*sides: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, *sides, dtype=kind, device="meta")

    return Batch(
        position=position,
        image=shape(channels, height, width),
        label=shape(kind=torch.int64),
        mask=shape(height, width, kind=torch.int64),
        present={name: shape(kind=torch.bool) for name in config.components},
        step_position=position,
        step_present={name: torch.ones(size, dtype=torch.bool) for name in config.components},
        boxes=shape(config.data.max_boxes, 5),
        labels=shape(len(card.classes), kind=torch.bool),
        caption=shape(config.caption_tokens, kind=torch.int64),
        sound=shape(sound.mels, sound.frames),
        domain=shape(kind=torch.int64),
    )


class _Operations(TorchDispatchMode):
    """Counts floating-point operations by torch's own formulas; its counter cannot be used where a step asks for gradients itself."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=found)
        return found


def flops(work: Any) -> float:
    """Floating-point operations of `work()`: convolutions, matrix products and attention, forward and backward."""
    with _Operations() as counter:
        work()
    return float(counter.count)


class _Kernels(TorchDispatchMode):
    """Counts the operations that compute: views and allocations start nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func in _NO_KERNEL_OPS)
        return func(*args, **(kwargs or {}))


class _Saved:
    """Bytes that autograd keeps for the backward, each storage once, parameters left out."""

    def __init__(self, networks: Networks) -> None:
        self.known = {p.untyped_storage()._cdata for n in (networks.generator, networks.side) for p in n.parameters()}
        self.kept: list[Tensor] = []
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.kept.append(tensor)  # so that no other storage takes its place
            self.bytes += storage.nbytes()
        return tensor


def cost(config: Config, card: DatasetCard, rows: int = 32) -> Cost:
    """Count a configuration by running both steps on `rows` images, and drawing and reading on one, without numbers.

    Raises:
        ConfigError: as `model.build`.
    """
    fp32 = config.model_copy(update={"precision": "fp32", "workers": 0, "batch_size": rows})
    networks = build_on_meta(fp32, card)
    d_step, g_step, _ = build_steps(fp32, networks)
    sides = [(d_step, networks.generator), (g_step, networks.side)]
    total, kept, kernels = 0.0, 0, _Kernels()
    for step, other in sides if config.generates else sides[:1]:
        saved = _Saved(networks)

        def work(step: Any = step, other: Any = other, saved: _Saved = saved) -> None:
            with frozen(other), torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
                step(_batch(fp32, card, rows), (other,))[0].backward()

        with kernels:
            total, kept = total + flops(work), max(kept, saved.bytes)
    model = Model(networks, fp32, card, "meta")
    image = torch.empty(1, model.channels, *config.size, device="meta")
    nothing = Prompt(1, {}, {})
    drawing = flops(lambda: model.sample(nothing, torch.empty(1, model.latent_size, device="meta")))
    reading = flops(lambda: model.predict(image))
    word = BYTES_PER_VALUE.get(config.precision, 4) / 4
    return Cost(parameters(networks), total / rows, drawing, reading, kept * word / rows, kernels.count)
