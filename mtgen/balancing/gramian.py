"""What the Gramian sees of K gradients at P shared tensors: all of them, what they have in common over samples, or a layer's weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

Gradients = list[list[Tensor | None]]
"""By tensor, by task; `None` where a task does not use a tensor."""

CPU_CHUNK_ELEMENTS = 1 << 15
"""Numbers of each gradient that are multiplied at once on a CPU: K times as many stay in its cache."""


def accumulation_dtype(kind: torch.dtype) -> torch.dtype:
    """The type that products of gradients of type `kind` are summed in: float32, or float64 of float64."""
    return torch.float64 if kind == torch.float64 else torch.float32


def gramian(gradients: Gradients) -> Tensor:
    """Inner products of K tasks' gradients over P tensors: `[K,K]` float32, or float64 of float64."""
    first = next(g for of_tasks in gradients for g in of_tasks if g is not None)
    kind = accumulation_dtype(first.dtype)
    products = torch.zeros(len(gradients[0]), len(gradients[0]), dtype=kind, device=first.device)
    for of_tasks in gradients:
        here = [task for task, gradient in enumerate(of_tasks) if gradient is not None]
        if not here:
            continue
        flat = _flat([g for g in of_tasks if g is not None])
        chunk = CPU_CHUNK_ELEMENTS if first.device.type == "cpu" else len(flat[0])
        found = torch.zeros(len(here), len(here), dtype=kind, device=first.device)
        for begin in range(0, len(flat[0]), max(chunk, 1)):
            rows = torch.stack([gradient[begin : begin + chunk] for gradient in flat]).to(kind)
            found += rows @ rows.T
        place = torch.tensor(here, device=first.device)
        products[place[:, None], place] += found
    lower = products.tril()
    return lower + lower.tril(-1).T


def _flat(gradients: list[Tensor]) -> list[Tensor]:
    """Every gradient as a vector, all in one order of their elements; without a copy where all lie channels-last in memory."""
    if all(g.dim() == 4 and g.is_contiguous(memory_format=torch.channels_last) for g in gradients):
        return [g.permute(0, 2, 3, 1).reshape(-1) for g in gradients]
    return [g.flatten() for g in gradients]


@dataclass(frozen=True)
class TensorSlice:
    """Where a shared tensor's rows come from: `group` numbers the whole tensors (or channels of one), `first` is the row in its own."""

    group: int
    first: int
    channels: int


def find_slices(shared: Sequence[Tensor]) -> list[TensorSlice]:
    """Which of the shared tensors are rows of the same channels of one tensor (slices along the batch): they belong together."""
    found: list[TensorSlice] = []
    groups: dict[tuple[int, ...], int] = {}
    for tensor in shared:
        base, whole, first, within = tensor._base, tensor, 0, 0
        if base is not None and base.stride() == tensor.stride() and base.stride(0):
            whole = base
            first, within = divmod(int(tensor.storage_offset() - base.storage_offset()), base.stride(0))
        group = groups.setdefault((id(whole), within, *tensor.shape[1:]), len(groups))
        found.append(TensorSlice(group, first, tensor.shape[1] if tensor.dim() > 1 else 1))
    return found


class InputHooks:
    """The inputs of the last shared layers (convolutions with `kernel` and `padding`) in the latest forward that records gradients.

    Args:
        layers: one a level of features, the lowest first.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)
        self.inputs: list[Tensor | None] = [None] * len(self.layers)
        for number, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(lambda _, inputs, number=number: self._keep(number, inputs[0]))

    def _keep(self, number: int, x: Tensor) -> None:
        if torch.is_grad_enabled():
            self.inputs[number] = x.detach()


class FeatureGramian:
    """Full gradients. Tasks that read different samples are orthogonal here by construction."""

    def __init__(self, shared: Sequence[Tensor], taps: InputHooks | None) -> None:
        pass

    def products(self, gradients: Gradients, workers: int, group: Any) -> Tensor:
        """The `[K,K]` Gramian, summed over the workers."""
        products = gramian(gradients)
        if workers > 1:
            dist.all_reduce(products, group=group)
        return products


class PooledGramian(FeatureGramian):
    """Gradients summed over samples and space, a number a channel: what a task asks of the shared layer on the whole."""

    def __init__(self, shared: Sequence[Tensor], taps: InputHooks | None) -> None:
        self.parts = find_slices(shared)
        self.sizes = self._sizes()
        self.kind = accumulation_dtype(shared[0].dtype)
        self.device = shared[0].device

    def _sizes(self) -> list[int]:
        sizes: dict[int, int] = {part.group: part.channels for part in self.parts}
        return [sizes[group] for group in range(len(sizes))]

    def products(self, gradients: Gradients, workers: int, group: Any) -> Tensor:
        """The `[K,K]` Gramian of the vectors, which are summed over the workers first."""
        begins = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        vectors = torch.zeros(len(gradients[0]), begins[-1], dtype=self.kind, device=self.device)
        for number, (part, of_tasks) in enumerate(zip(self.parts, gradients, strict=True)):
            for task, gradient in enumerate(of_tasks):
                if gradient is not None:
                    vectors[task, begins[part.group] : begins[part.group + 1]] += self._vector(
                        number, gradient.to(self.kind)
                    )
        if workers > 1:
            dist.all_reduce(vectors, group=group)
        return gramian([list(vectors)])

    def _vector(self, part: int, gradient: Tensor) -> Tensor:
        if gradient.dim() < 2:
            return gradient.sum()
        return gradient.sum(dim=[d for d in range(gradient.dim()) if d != 1])


class LayerGramian(PooledGramian):
    """Gradients of the last shared layer's weights, from the gradient that arrives behind it and from what went into it."""

    def __init__(self, shared: Sequence[Tensor], taps: InputHooks | None) -> None:
        assert taps is not None
        self.taps = taps
        self.inputs = list(taps.inputs)
        super().__init__(shared, taps)
        for tensor, part in zip(shared, self.parts, strict=True):
            x = self.inputs[part.group] if part.group < len(self.inputs) else None
            if x is None or x.shape[-2:] != tensor.shape[-2:] or len(x) < part.first + len(tensor):
                raise RuntimeError(
                    f"balancing.gramian_source=layer: no layer's input fits shared features of shape {tuple(tensor.shape)}"
                )

    def _sizes(self) -> list[int]:
        return [layer.kernel.numel() for layer in self.taps.layers]  # type: ignore[operator]

    def _vector(self, part: int, gradient: Tensor) -> Tensor:
        group, first = self.parts[part].group, self.parts[part].first
        layer, x = self.taps.layers[group], self.inputs[group]
        assert x is not None
        rows = x[first : first + len(gradient)].to(gradient.dtype)
        return conv2d_weight(rows, layer.kernel.shape, gradient, padding=layer.padding).flatten()


GRAMIAN_SOURCES: dict[str, type[FeatureGramian]] = {
    "features": FeatureGramian,
    "pooled": PooledGramian,
    "layer": LayerGramian,
}
