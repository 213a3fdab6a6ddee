"""What is left out of imports is left out, and nothing else is other for it."""

import subprocess
import sys

import pytest
import torch

from mtgen.utils.import_guards import Adam, hide_module

LEAN = """
import sys, torch
from mtgen.utils.import_guards import Adam
parameter = torch.nn.Parameter(torch.ones(3))
optimizer = Adam([parameter], lr=0.1)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
for _ in range(3):
    parameter.square().sum().backward()
    optimizer.step()
    schedule.step()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def test_an_optimizer_leaves_torchs_compiler_alone() -> None:
    ended = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False"]


def test_its_steps_are_torchs_bit_for_bit() -> None:
    ends = []
    for kind in (Adam, torch.optim.Adam):
        random = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(4, 3, generator=random)) for _ in range(2)]
        optimizer = kind(
            [{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:]}],
            lr=0.01,
            betas=(0.0, 0.99),
            weight_decay=0.1,
        )
        for _ in range(5):
            optimizer.zero_grad()
            sum((p * torch.randn(p.shape, generator=random)).sin().sum() for p in parameters).backward()  # type: ignore[union-attr]
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in parameters]))
    assert torch.equal(*ends)


def test_a_module_is_not_there_within_and_is_afterwards() -> None:
    assert "tabnanny" not in sys.modules
    with hide_module("tabnanny"), pytest.raises(ImportError):
        import tabnanny
    import tabnanny

    with hide_module("tabnanny"):
        import tabnanny as again
    assert again is tabnanny
