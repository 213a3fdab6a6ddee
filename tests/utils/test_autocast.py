"""Mixed precision is torch's own where torch has it, and nothing on the meta device."""

import pytest
import torch

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


@pytest.mark.parametrize("enabled", [True, False])
def test_the_meta_device_computes_in_the_type_of_its_tensors(enabled: bool) -> None:
    x = torch.ones(2, 2, device="meta")
    with autocast(x.device, torch.bfloat16, enabled=enabled):
        assert (x @ x).dtype == torch.float32
