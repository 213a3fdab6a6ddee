"""What the driver says before a run starts."""

import pytest
import torch
from helpers import toy

from mtgen.launchers import driver


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device, which torch sees")
@pytest.mark.parametrize(("device", "warned"), [("auto", True), ("cpu", False)])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_gpu_that_torch_does_not_see_is_a_warning_before_training_on_the_cpu(
    device: str, warned: bool, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "unused_gpus", lambda: "nvidia-smi lists 1 x H100; install the build that fits")
    said: list[str] = []
    config = driver._decided_here(toy.config(device=device, workers=workers, precision="auto"), said.append)
    assert config.precision != "auto"
    text = (
        "WARNING: training on the CPU, although this system has a GPU: nvidia-smi lists 1 x H100; install the build "
        "that fits; device=cpu silences this"
    )
    assert said == ([text] if warned else [])


def test_a_cluster_elsewhere_decides_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "unused_gpus", lambda: "one here")
    config = toy.config(device="auto", precision="auto", address="10.0.0.1:6379", workers=1)
    said: list[str] = []
    assert driver._decided_here(config, said.append) is config and not said
