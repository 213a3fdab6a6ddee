"""The K x K Gramian of K tasks' gradients at shared tensors.

It is formed from one of three sources: whole gradients, gradients pooled over samples and space, or weight gradients of
the last layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from mtgen.networks.device_constants import constant

Gradients = list[list[Tensor | None]]
"""Gradients by tensor, then by task; `None` where a task does not use a tensor."""

CPU_CHUNK_ELEMENTS = 1 << 15
"""Elements of each gradient that are multiplied at once on a CPU, so that K chunks stay in its cache."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type that products of gradients are summed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gramian(gradients: Gradients) -> Tensor:
    """Inner products of K tasks' gradients over P tensors: `[K,K]` float32, or float64 for float64 gradients."""
    first = next(g for of_tasks in gradients for g in of_tasks if g is not None)
    dtype = accumulation_dtype(first.dtype)
    total = torch.zeros(len(gradients[0]), len(gradients[0]), dtype=dtype, device=first.device)
    for of_tasks in gradients:
        tasks = [task for task, gradient in enumerate(of_tasks) if gradient is not None]
        if not tasks:
            continue
        flat = _flat([g for g in of_tasks if g is not None])
        chunk = CPU_CHUNK_ELEMENTS if first.device.type == "cpu" else len(flat[0])
        products = torch.zeros(len(tasks), len(tasks), dtype=dtype, device=first.device)
        for begin in range(0, len(flat[0]), max(chunk, 1)):
            rows = torch.stack([gradient[begin : begin + chunk] for gradient in flat]).to(dtype)
            products += rows @ rows.T
        if len(tasks) == len(total):
            total += products
        else:
            index = constant(tuple(tasks), torch.int64, first.device)
            total[index[:, None], index] += products
    lower = total.tril()
    return lower + lower.tril(-1).T


def _flat(gradients: list[Tensor]) -> list[Tensor]:
    """Flatten gradients, all in the same element order; without a copy where all are channels-last."""
    if all(g.dim() == 4 and g.is_contiguous(memory_format=torch.channels_last) for g in gradients):
        return [g.permute(0, 2, 3, 1).reshape(-1) for g in gradients]
    return [g.flatten() for g in gradients]


@dataclass(frozen=True)
class RowSlice:
    """Which rows of a whole tensor a shared tensor holds.

    Attributes:
        group: number of the whole tensor, counted from 0 in the order of first appearance.
        first: number of the first row.
    """

    group: int
    first: int = 0


class InputHooks:
    """The inputs of the last shared layers in the latest forward that records gradients.

    Args:
        layers: convolutions with `kernel` and `padding`, one per feature level, lowest resolution first.
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
    """Gramian of the whole gradients. Tasks that use different samples are orthogonal in it by construction.

    Args:
        shared: P shared tensors.
        slices: which rows of which whole tensor each of them holds.
        input_hooks: inputs of the last shared layers; only `LayerGramian` uses them.
    """

    def __init__(
        self, shared: Sequence[Tensor], slices: Sequence[RowSlice], input_hooks: InputHooks | None = None
    ) -> None:
        pass

    def compute(self, gradients: Gradients, workers: int, process_group: Any) -> Tensor:
        """Return the `[K,K]` Gramian, summed over the workers."""
        total = gramian(gradients)
        if workers > 1:
            dist.all_reduce(total, group=process_group)
        return total


class PooledGramian(FeatureGramian):
    """Gramian of gradients summed over samples and space, one number per channel: a task's net pull on each channel."""

    def __init__(
        self, shared: Sequence[Tensor], slices: Sequence[RowSlice], input_hooks: InputHooks | None = None
    ) -> None:
        self.slices = list(slices)
        self.channels = [tensor.shape[1] if tensor.dim() > 1 else 1 for tensor in shared]
        self.sizes = self._sizes()
        self.dtype = accumulation_dtype(shared[0].dtype)
        self.device = shared[0].device

    def _sizes(self) -> list[int]:
        """Return the length of each group's vector."""
        sizes = {part.group: channels for part, channels in zip(self.slices, self.channels, strict=True)}
        return [sizes[group] for group in range(len(sizes))]

    def compute(self, gradients: Gradients, workers: int, process_group: Any) -> Tensor:
        """Return the `[K,K]` Gramian of the tasks' vectors, which are summed over the workers first."""
        begins = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        vectors = torch.zeros(len(gradients[0]), begins[-1], dtype=self.dtype, device=self.device)
        for part, of_tasks in zip(self.slices, gradients, strict=True):
            for task, gradient in enumerate(of_tasks):
                if gradient is not None:
                    place = slice(begins[part.group], begins[part.group + 1])
                    vectors[task, place] += self._vector(part, gradient.to(self.dtype))
        if workers > 1:
            dist.all_reduce(vectors, group=process_group)
        return gramian([list(vectors)])

    def _vector(self, part: RowSlice, gradient: Tensor) -> Tensor:
        """Reduce the gradient of one shared tensor to its part of the group's vector."""
        if gradient.dim() < 2:
            return gradient.sum()
        return gradient.sum(dim=[d for d in range(gradient.dim()) if d != 1])


class LayerGramian(PooledGramian):
    """Gramian of the last shared layers' weight gradients, computed from their inputs and their outputs' gradients.

    Raises:
        RuntimeError: a shared tensor does not fit the input of any layer.
    """

    def __init__(
        self, shared: Sequence[Tensor], slices: Sequence[RowSlice], input_hooks: InputHooks | None = None
    ) -> None:
        assert input_hooks is not None
        self.layers = input_hooks.layers
        self.inputs = list(input_hooks.inputs)
        super().__init__(shared, slices)
        for tensor, part in zip(shared, self.slices, strict=True):
            x = self.inputs[part.group] if part.group < len(self.inputs) else None
            if x is None or x.shape[-2:] != tensor.shape[-2:] or len(x) < part.first + len(tensor):
                raise RuntimeError(
                    "balancing.gramian_source=layer: no layer's input fits shared features of shape "
                    f"{tuple(tensor.shape)}; use features or pooled"
                )

    def _sizes(self) -> list[int]:
        return [layer.kernel.numel() for layer in self.layers]  # type: ignore[operator]

    def _vector(self, part: RowSlice, gradient: Tensor) -> Tensor:
        layer, x = self.layers[part.group], self.inputs[part.group]
        assert x is not None
        rows = x[part.first : part.first + len(gradient)].to(gradient.dtype)
        return conv2d_weight(rows, layer.kernel.shape, gradient, padding=layer.padding).flatten()


GRAMIAN_SOURCES: dict[str, type[FeatureGramian]] = {
    "features": FeatureGramian,
    "pooled": PooledGramian,
    "layer": LayerGramian,
}
