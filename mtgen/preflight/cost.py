"""The cost of a configuration without running it: parameters, operations, memory and traffic.

Networks and steps run on torch's meta device, whose tensors have shapes and no values: any size is counted in seconds
and takes no memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mtgen.config import Config
from mtgen.models.model import Model, Networks, build
from mtgen.preflight.synthetic_batch import synthetic_batch
from mtgen.schema import DatasetCard, Prompt
from mtgen.tasks.alignment import Alignment, contrast
from mtgen.training.step import frozen
from mtgen.training.steps import build_steps

_NO_KERNEL_OPS = {
    torch.ops.aten.detach.default,
    torch.ops.aten.empty.memory_format,
    torch.ops.aten._unsafe_view.default,
}
"""Operations besides views that launch no kernel."""


@dataclass(frozen=True)
class Cost:
    """The cost of a configuration.

    Attributes:
        parameters: part ("generator", "trunk", "decoder", "conditions", "head: TASK") -> number of parameters.
        step: floating-point operations per image of both steps, forward and backward; a multiply-add counts as two.
        sampling: floating-point operations to generate one image.
        prediction: floating-point operations to predict everything for one image.
        activations: bytes per image that the larger of the two steps keeps for its backward.
        kernels: kernels that both steps launch for one micro-batch in eager mode, whatever its size; with the casts of
            mixed precision.
        gates: gates that sum a Gramian over the workers, once per micro-batch.
        waits: gates among them whose weighting computes on the CPU, so that the host waits for its GPU.
        contrasts: `[n,N]` matrices that the alignment task compares n rows of a worker with N of all workers in.
        contrast_bytes: bytes that all contrasts together keep for the backward per pair of samples.
        embeddings: numbers per sample that the alignment task gathers from all workers.
    """

    parameters: dict[str, int]
    step: float
    sampling: float
    prediction: float
    activations: float
    kernels: int
    gates: int = 0
    waits: int = 0
    contrasts: int = 0
    contrast_bytes: float = 0.0
    embeddings: int = 0

    @property
    def generator(self) -> int:
        """Parameters of the generator."""
        return self.parameters["generator"]

    @property
    def total(self) -> int:
        """Parameters of both networks."""
        return sum(self.parameters.values())

    def state_bytes(self, stage: int, workers: int) -> float:
        """Bytes per worker of parameters, gradients, Adam's moments and averaged weights, fp32, in ZeRO stage 0 to 2.

        Source: Rajbhandari et al. 2020, plus the averaged weights, of which every worker holds all.
        """
        gradients = 4 / (workers if stage == 2 else 1)
        moments = 8 / (workers if stage >= 1 else 1)
        return self.total * (4 + gradients + moments + 4)

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint: parameters, Adam's second moments and averaged weights, fp32."""
        return 12 * self.total

    def traffic(self, workers: int) -> float:
        """Bytes that a worker sends per step: ring reduce-scatter and all-gather of fp32 gradients, any ZeRO stage."""
        return 2 * 4 * self.total * (workers - 1) / workers


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def parameters(networks: Networks) -> dict[str, int]:
    """Part -> number of its parameters; the parts cover both networks."""
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
    """The networks on the meta device, without memory for their parameters."""
    with torch.device("meta"):
        return build(config, card)


class _Operations(TorchDispatchMode):
    """Counts floating-point operations with torch's formulas.

    torch's own counter (`FlopCounterMode`) fails in steps that compute gradients themselves.
    """

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
    """Counts operations that launch kernels: all but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func in _NO_KERNEL_OPS)
        return func(*args, **(kwargs or {}))


class _FusedAttention(TorchFunctionMode):
    """Attention without a mask as GPUs compute it, in one kernel that keeps no matrix of all pairs.

    On the meta device torch would take it apart. Source: Dao et al. 2022.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is None:
            fused = torch.ops.aten._scaled_dot_product_flash_attention.default
            return fused(*args, scale=kwargs.get("scale"))[0]
        return func(*args, **kwargs)


class _Saved:
    """Bytes that autograd keeps for the backward; counts each storage once and leaves out parameters."""

    def __init__(self, networks: Networks) -> None:
        self.known = {p.untyped_storage()._cdata for n in (networks.generator, networks.side) for p in n.parameters()}
        self.kept: list[Tensor] = []
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.kept.append(tensor)  # so that no other storage gets its address
            self.bytes += storage.nbytes()
        return tensor


def _gates(config: Config, card: DatasetCard) -> tuple[int, int]:
    """How many gates sum a Gramian over the workers, and how many of these compute weights on the CPU."""
    gates = build_steps(config, build_on_meta(config, card))[2].values()
    summing = [gate for gate in gates if gate.weighting is not None and len(gate.tasks) > 1]
    return len(summing), sum(
        not gate.is_plain_sum and not getattr(gate.weighting, "on_device", False) for gate in summing
    )


def _contrasts(networks: Networks) -> tuple[int, float, int]:
    """The alignment task's contrasts, bytes that they keep per pair of samples, and numbers gathered per sample."""
    task = next((task for task in networks.tasks if isinstance(task, Alignment)), None)
    if task is None:
        return 0, 0.0, 0
    conditions = networks.side.conditions
    modalities = sum(conditions.modality(name).component is not None for name in conditions.names)
    pairs = modalities * (modalities - 1) // 2 if task.settings.between else 0
    rows, columns, size = 8, 64, task.sizes.embedding
    own, every = (torch.empty(count, size, device="meta", requires_grad=True) for count in (rows, columns))
    positive, part, parts = (
        torch.empty(shape, dtype=torch.bool, device="meta") for shape in ((rows, columns), (rows,), (columns,))
    )
    saved = _Saved(networks)
    saved.known |= {tensor.untyped_storage()._cdata for tensor in (own, every)}
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        contrast(torch.ones(1, device="meta", requires_grad=True) * (own @ every.T), positive, part, parts)
    contrasts = 2 * (modalities + pairs)
    return contrasts, contrasts * saved.bytes / (rows * columns), (modalities + 1) * size


def cost(config: Config, card: DatasetCard, rows: int = 32) -> Cost:
    """Count the cost of a configuration: of both steps on `rows` images, and of sampling and prediction on one.

    Raises:
        ConfigError: as `mtgen.models.model.build`.
    """
    precision = "fp32" if config.precision == "auto" else config.precision
    config = config.model_copy(update={"precision": precision, "workers": 0, "batch_size": rows})
    gates, waits = _gates(config, card)
    if waits:  # there are no values on the meta device for a weighting on the CPU to compute with
        equal = {"weighting": "equal", "discriminator": None, "generator": None, "canvas": "equal"}
        balancing = config.balancing.model_copy(update=equal)
        config = config.model_copy(update={"balancing": balancing})
    networks = build_on_meta(config, card)
    d_step, g_step, _ = build_steps(config, networks)
    steps = [(d_step, networks.generator), (g_step, networks.side)]
    total, kept, kernels = 0.0, 0, _Kernels()
    for step, other in steps if config.generates else steps[:1]:
        saved = _Saved(networks)

        def work(step: Any = step, other: Any = other, saved: _Saved = saved) -> None:
            with frozen(other), torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
                step(synthetic_batch(config, card, rows, "meta"), (other,))[0].backward()

        with kernels, _FusedAttention():
            total, kept = total + flops(work), max(kept, saved.bytes)
    model = Model(networks, config, card, "meta")
    image = torch.empty(1, model.channels, *config.size, device="meta")
    unconditional = Prompt(1, {}, {})
    sampling = flops(lambda: model.sample(unconditional, torch.empty(1, model.latent_size, device="meta")))
    prediction = flops(lambda: model.predict(image))
    contrasts, contrast_bytes, embeddings = _contrasts(networks)
    return Cost(
        parameters=parameters(networks),
        step=total / rows,
        sampling=sampling,
        prediction=prediction,
        activations=kept / rows,
        kernels=kernels.count,
        gates=gates,
        waits=waits,
        contrasts=contrasts,
        contrast_bytes=contrast_bytes,
        embeddings=embeddings,
    )
