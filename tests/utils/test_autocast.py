"""Mixed precision is torch's own where torch has it, and the same casts on the meta device."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtgen.utils.autocast import autocast


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_product_has_the_type_that_torch_gives_it(enabled: bool, dtype: torch.dtype) -> None:
    x = torch.ones(2, 2)
    with autocast(x.device, torch.bfloat16, enabled=enabled):
        assert (x @ x).dtype == dtype


def test_a_region_that_is_switched_off_is_off_within_one_that_is_on() -> None:
    x = torch.ones(2, 2)
    with autocast(x.device, torch.bfloat16), autocast(x.device, enabled=False):
        assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ x,
        lambda x: F.linear(x, x),
        lambda x: F.conv2d(x[None, None], x[None, None]),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
        lambda x: (x @ x).softmax(0),
        lambda x: F.log_softmax(x @ x, 0),
        lambda x: F.cross_entropy(x @ x, torch.zeros(2, dtype=torch.int64, device=x.device)),
        lambda x: F.softplus(x @ x),
        lambda x: F.normalize(x @ x),
        lambda x: F.silu(x @ x),
        lambda x: (x @ x) + x,
        lambda x: (x @ x).sum(),
    ],
)
def test_the_meta_device_has_the_types_of_a_gpu(function: Callable[[Tensor], Tensor]) -> None:
    """Except for `sum`, normalize's norm and softplus, which a CPU leaves in half precision, they are a CPU's too."""
    own, meta = torch.ones(2, 2), torch.ones(2, 2, device="meta")
    with autocast(own.device, torch.bfloat16):
        expected = function(own).dtype
    with autocast(meta.device, torch.bfloat16):
        found = function(meta).dtype
    assert found == expected or (expected, found) == (torch.bfloat16, torch.float32)
    with autocast(meta.device, torch.bfloat16), autocast(meta.device, enabled=False):
        assert function(meta).dtype == torch.float32
