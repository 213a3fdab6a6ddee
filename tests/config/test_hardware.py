"""One decision about devices: from the hardware that trains, whatever the system of the driver has."""

import os
import stat
from pathlib import Path

import pytest
import torch
from helpers import toy

from mtgen.config import Hardware, decide, decide_here, resolve_device
from mtgen.config.hardware import unused_gpus, use_device
from mtgen.errors import ConfigError, TrainingError

CPU = Hardware(("cpu",), (), "in the Ray cluster")
CPU_WITH_BF16 = Hardware(("cpu",), ("cpu",))
V100 = Hardware(("cpu", "cuda"), ("cpu",))
H100 = Hardware(("cpu", "cuda"), ("cpu", "cuda"))
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


@pytest.mark.parametrize(
    ("device", "precision", "hardware", "decided"),
    [
        ("auto", "auto", CPU, ("cpu", "fp32")),
        ("auto", "auto", CPU_WITH_BF16, ("cpu", "bf16")),
        ("auto", "auto", H100, ("cuda", "bf16")),
        ("auto", "auto", V100, ("cuda", "fp32")),  # it only emulates bfloat16
        ("auto", "fp16", V100, ("cuda", "fp16")),
        ("cuda", "bf16", V100, ("cuda", "bf16")),
        ("cpu", "auto", V100, ("cpu", "bf16")),
        ("cpu", "fp32", H100, ("cpu", "fp32")),
    ],
)
def test_device_and_precision_are_those_of_the_hardware(
    device: str, precision: str, hardware: Hardware, decided: tuple[str, str]
) -> None:
    config, found = decide(toy.config(device=device, precision=precision), hardware)
    assert (found, config.precision) == decided
    assert config.device == device


@pytest.mark.parametrize(
    ("changes", "hardware", "message"),
    [
        (
            {"device": "cuda"},
            CPU,
            "device=cuda: torch finds no CUDA device in the Ray cluster; possible in the Ray clus",
        ),
        ({"precision": "fp16"}, CPU_WITH_BF16, "precision=fp16: a CPU cannot train in fp16; possible here: fp32, bf16"),
        (
            {"precision": "fp16", "device": "cpu"},
            H100,
            "precision=fp16: a CPU cannot train in fp16; possible with device=cpu: fp32, bf16",
        ),
    ],
)
def test_what_the_hardware_cannot_do_is_refused(changes: dict[str, str], hardware: Hardware, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        decide(toy.config(**changes), hardware)
    assert str(error.value).startswith(message)


def test_a_configuration_for_other_hardware_is_valid_here() -> None:
    config = toy.config(device="cuda", precision="fp16")
    assert (config.device, config.precision) == ("cuda", "fp16")


@without_gpu
@pytest.mark.parametrize(
    ("changes", "remedy"), [({"precision": "fp16"}, ": fp32, bf16"), ({"device": "cuda"}, ": cpu, auto")]
)
def test_what_only_a_gpu_can_do_is_refused_where_there_is_none(changes: dict[str, str], remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"possible here{remedy}$"):
        decide_here(toy.config(**changes))


@without_gpu
def test_a_worker_without_its_gpu_says_so() -> None:
    use_device("cpu", 3)
    with pytest.raises(TrainingError, match=r"torch does not see GPU 3 of .*: it sees 0"):
        use_device("cuda", 3)


def nvidia_smi(folder: Path, cuda: str) -> None:
    """A program of that name, which prints what the real one prints."""
    program = folder / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'if [ $# = 1 ]; then for n in 0 1; do echo "GPU $n: NVIDIA H100 80GB HBM3 (UUID: GPU-$n)"; done\n'
        f"else echo '| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: {cuda} |'; fi\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@without_gpu
def test_gpus_that_torch_does_not_see_are_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, "12.4")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    text = unused_gpus()
    assert text.startswith("nvidia-smi lists 2 x NVIDIA H100 80GB HBM3, but torch ")
    assert text.endswith("rm -r .venv && make setup CUDA=12")
    with pytest.raises(ConfigError, match=r"finds no CUDA device here \(nvidia-smi lists 2 x NVIDIA H100"):
        resolve_device(toy.config(device="cuda"))


@without_gpu
def test_a_system_without_gpus_has_nothing_to_warn_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unused_gpus() == ""
