"""Tests of what a GPU may do otherwise: the same body runs on the CPU everywhere, and on a GPU where there is one."""

import pytest
import torch

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


def on_gpu(count: int = 1) -> tuple[pytest.MarkDecorator, ...]:
    """Marks of a test that needs GPUs: `pytest -m gpu` selects it, and it is skipped where there are too few."""
    reason = f"{GPUS} of {count} CUDA devices" if GPUS else "no CUDA device"
    return pytest.mark.gpu, pytest.mark.skipif(count > GPUS, reason=reason)


DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu())]
"""For `pytest.mark.parametrize("device", DEVICES)`."""
