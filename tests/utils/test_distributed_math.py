"""Rows of all workers: gathered in the order of ranks, with gradients that are summed over the workers."""

from pathlib import Path

import torch
from helpers import toy
from torch import Tensor

from mtgen.utils.distributed_math import gather_rows, rank, world_size

ROWS = 6


def test_without_a_process_group_there_is_one_worker_and_rows_are_its_own() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert (world_size(), rank()) == (1, 0)
    assert torch.equal(gather_rows(x), x)
    (gather_rows(x) * 2).sum().backward()
    assert x.grad is not None and bool((x.grad == 2).all())


def rows_and_gradients() -> dict[str, Tensor]:
    """Rows of all workers, and the gradient of this one's in losses that differ from worker to worker."""
    mine = (torch.arange(ROWS * 2).view(ROWS, 2).double() + 100 * rank()).requires_grad_()
    gathered = gather_rows(mine)
    ((rank() + 1) * gathered.square()).sum().backward()
    assert mine.grad is not None
    return {"gathered": gathered.detach(), "gradient": mine.grad}


def test_a_row_gets_the_sum_of_the_gradients_of_all_workers(tmp_path: Path) -> None:
    for number, found in enumerate(toy.spawn(2, rows_and_gradients, tmp_path)):
        blocks = found["gathered"].view(2, ROWS, 2)
        assert torch.equal(blocks[1], blocks[0] + 100)
        assert torch.equal(found["gradient"], 2 * blocks[number] * (1 + 2))
