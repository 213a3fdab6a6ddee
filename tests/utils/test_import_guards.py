"""Guarded imports do not happen, and everything else is as without the guards."""

import subprocess
import sys

import pytest
import torch

from mtgen.utils.import_guards import Adam, hide_module

TRAIN = """
import sys, torch
from mtgen.utils.import_guards import Adam
{change}
parameter = torch.nn.Parameter(torch.ones(3))
optimizer = Adam([parameter], lr=0.1)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
for _ in range(3):
    parameter.square().sum().backward()
    optimizer.step()
    schedule.step()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules, *parameter.tolist())
"""
PLAIN = "Adam = torch.optim.Adam"
NO_DECORATOR = """
def add_param_group(self, group, inner=torch.optim.Optimizer.add_param_group.__wrapped__):
    inner(self, group)
torch.optim.Optimizer.add_param_group = add_param_group
"""
OTHER_CACHE = """
import mtgen.utils.import_guards
mtgen.utils.import_guards.DISABLE_ATTRIBUTE = "__renamed"
"""


def trained(change: str = "") -> tuple[bool, list[str]]:
    """Whether three steps in a new process import torch's compiler, and the parameter after them."""
    program = TRAIN.format(change=change)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported, *values = ended.stdout.split()
    return imported == "True", values


def test_an_optimizer_does_not_import_torchs_compiler() -> None:
    assert trained()[0] is False


@pytest.mark.parametrize(("change", "imported"), [(NO_DECORATOR, False), (OTHER_CACHE, True), (PLAIN, True)])
def test_a_torch_without_the_decorators_trains_the_same(change: str, imported: bool) -> None:
    assert trained(change) == (imported, trained()[1])


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


def test_a_hidden_module_cannot_be_imported_and_can_be_afterwards() -> None:
    assert "tabnanny" not in sys.modules
    with hide_module("tabnanny"), pytest.raises(ImportError):
        import tabnanny
    import tabnanny

    with hide_module("tabnanny"):
        import tabnanny as again
    assert again is tabnanny
