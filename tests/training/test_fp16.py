"""Half precision with a loss scale: both steps train, and their gradients are those of fp32."""

import pytest
import torch
from helpers import toy
from helpers.devices import DEVICES

from mtgen.preflight.step_speed import StepLoop

STEPS = 16


@pytest.mark.parametrize("device", DEVICES)
def test_both_steps_find_a_loss_scale_and_train(device: str) -> None:
    norms = {}
    for precision in ("fp32", "fp16"):
        config = toy.config(precision=precision, tasks__generation__penalty_sigma=0.1, augment__probability=0.0)
        torch.manual_seed(0)  # of the random batch
        loop = StepLoop(config, toy.CARD, torch.device(device))
        start = [p.detach().clone() for _, _, optimizer in loop._sides for p in optimizer.param_groups[0]["params"]]
        optimizers = [optimizer for _, _, optimizer in loop._sides]
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-7  # the gradients stay comparable after different numbers of steps
        for _ in range(STEPS):
            loop.step()
        end = [p.detach() for optimizer in optimizers for p in optimizer.param_groups[0]["params"]]
        assert all(bool(p.isfinite().all()) for p in end)
        assert sum(not torch.equal(a, b) for a, b in zip(start, end, strict=True)) > len(end) / 2
        norms[precision] = [optimizer.norm.item() for optimizer in optimizers]
    for optimizer in optimizers:
        skipped, scale = int(optimizer.skipped), optimizer.loss_scale
        assert scale is not None and scale.item() == 2.0 ** (16 - skipped)
        assert skipped < STEPS - 4 and int(optimizer.in_a_row) == 0
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.05)
