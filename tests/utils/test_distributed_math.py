"""Losses over a gathered batch: averaged over workers, values and gradients are those of one process with all rows."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import toy
from torch import Tensor

from mtgen.utils.distributed_math import (
    divide_gradient,
    divide_value,
    gather_rows,
    gather_rows_with_gradient,
    world_size,
)

ROWS = 6


@pytest.mark.parametrize("divisor", [1, 2, 3, 8])
def test_divide_gradient_keeps_the_value(divisor: int) -> None:
    x = torch.tensor([3.0, -0.5], dtype=torch.float64, requires_grad=True)
    scaled = divide_gradient(x, divisor)
    (2 * scaled).sum().backward()
    assert x.grad is not None
    assert scaled.tolist() == pytest.approx(x.tolist(), rel=1e-12)
    assert x.grad.tolist() == pytest.approx([2 / divisor] * 2, rel=1e-12)


@pytest.mark.parametrize("divisor", [1, 2, 3, 8])
def test_divide_value_keeps_the_gradient(divisor: int) -> None:
    x = torch.tensor([3.0, -0.5], dtype=torch.float64, requires_grad=True)
    scaled = divide_value(x, divisor)
    (2 * scaled).sum().backward()
    assert x.grad is not None
    assert scaled.tolist() == pytest.approx((x / divisor).tolist(), rel=1e-12)
    assert x.grad.tolist() == pytest.approx([2.0] * 2, rel=1e-12)


def test_without_a_process_group_there_is_one_worker_and_rows_are_its_own() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert world_size() == 1
    assert torch.equal(gather_rows(x), x)
    (gather_rows_with_gradient(x) * 2).sum().backward()
    assert x.grad is not None and bool((x.grad == 2).all())


def joint_loss() -> dict[str, Tensor]:
    """A contrastive loss over the joint batch: its value and gradients, averaged over the workers."""
    workers, rank = world_size(), dist.get_rank() if dist.is_initialized() else 0
    random = torch.Generator().manual_seed(0)
    data = torch.randn(ROWS, 4, generator=random, dtype=torch.float64)
    weight = torch.randn(4, 4, generator=random, dtype=torch.float64).requires_grad_()
    log_scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    mine = data[rank * ROWS // workers : (rank + 1) * ROWS // workers]
    rows = gather_rows_with_gradient(mine @ weight)
    logits = divide_gradient(log_scale, workers).exp() * rows @ rows.T
    loss = divide_value(workers * -logits.log_softmax(1).diagonal().mean(), workers)
    loss.backward()
    assert weight.grad is not None and log_scale.grad is not None
    found = {"loss": loss.detach(), "weight": weight.grad, "scale": log_scale.grad}
    for value in found.values():
        if workers > 1:
            dist.all_reduce(value)
            value /= workers
    return found


@pytest.mark.parametrize("workers", [2, 3])
def test_the_average_over_workers_is_the_loss_and_the_gradient_of_one_process(tmp_path: Path, workers: int) -> None:
    alone = joint_loss()
    for found in toy.spawn(workers, joint_loss, tmp_path):
        assert all(torch.allclose(found[name], value, rtol=1e-10) for name, value in alone.items())
