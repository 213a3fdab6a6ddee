"""The device and the precision of a run: one decision, made from the hardware that trains it.

A configuration says "auto", or what has to be there. It is decided where training happens: in the process that trains,
or by the driver of a Ray cluster from the cluster's own resources, since the driver's system may have no GPU. Workers
get the decision and do not ask again.
"""

import re
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mtgen.config.run import Config
from mtgen.errors import ConfigError, TrainingError

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Hardware:
    """What a run can compute with.

    Attributes:
        devices: those that torch sees.
        native_bf16: those of them that compute bfloat16 natively, not by emulation in fp32.
        place: where they are, for messages.
    """

    devices: Sequence[Device] = ("cpu",)
    native_bf16: Sequence[Device] = ()
    place: str = "here"


def local_hardware() -> Hardware:
    """The hardware of this process."""
    import torch

    without = hardware_without_gpus(Hardware.place)
    if not torch.cuda.is_available():
        return without
    native: list[Device] = ["cuda"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
    return Hardware(("cpu", "cuda"), [*without.native_bf16, *native])


def hardware_without_gpus(place: str) -> Hardware:
    """The hardware of a place without GPUs, whose CPUs are taken to be like this system's."""
    import torch

    return Hardware(("cpu",), ("cpu",) if torch.cpu._is_avx512_bf16_supported() else (), place)


def decide_device(config: Config, hardware: Hardware) -> Device:
    """The device that `config.device` means on this hardware.

    Raises:
        ConfigError: `device=cuda` without a GPU.
    """
    if config.device == "cuda" and "cuda" not in hardware.devices:
        unused = unused_gpus() if hardware.place == Hardware.place else ""
        why = unused and f" ({unused})"
        raise ConfigError(
            f"device=cuda: torch finds no CUDA device {hardware.place}{why}; possible {hardware.place}: cpu, auto"
        )
    return "cuda" if config.device != "cpu" and "cuda" in hardware.devices else "cpu"


def decide(config: Config, hardware: Hardware) -> tuple[Config, Device]:
    """Decide what a run trains with: the configuration with its precision resolved, and the device.

    Raises:
        ConfigError: the hardware does not have the device, or the device cannot train in the precision.
    """
    device = decide_device(config, hardware)
    if config.precision == "fp16" and device == "cpu":
        where = "with device=cpu" if "cuda" in hardware.devices else hardware.place
        raise ConfigError(f"precision=fp16: a CPU cannot train in fp16; possible {where}: fp32, bf16")
    if config.precision != "auto":
        return config, device
    precision = "bf16" if device in hardware.native_bf16 else "fp32"
    return config.model_copy(update={"precision": precision}), device


def decide_here(config: Config) -> tuple[Config, Device]:
    """Decide for a run that trains on this system.

    Raises:
        ConfigError: as `decide`.
    """
    return decide(config, local_hardware())


def resolve_device(config: Config) -> Device:
    """The device that `config.device` means in this process.

    Raises:
        ConfigError: `device=cuda` without a GPU.
    """
    return decide_device(config, local_hardware())


def use_device(device: Device, local_rank: int) -> None:
    """Make a worker's GPU torch's current device, before anything is built on it.

    Raises:
        TrainingError: torch does not see the GPU on this worker's node.
    """
    if device == "cuda":
        import torch

        if not local_rank < torch.cuda.device_count():
            why = unused_gpus() or f"it sees {torch.cuda.device_count()}"
            raise TrainingError(f"torch does not see GPU {local_rank} of {socket.gethostname()}: {why}")
        torch.cuda.set_device(local_rank)


def unused_gpus() -> str:
    """Which GPUs of this system torch does not see, why, and the remedy; "" if there are none."""
    import torch

    if torch.cuda.is_available():
        return ""
    names = re.findall(r"^GPU \d+: (.*?)(?: \(UUID|$)", _nvidia_smi("-L"), re.MULTILINE)
    if not names:
        return ""
    built, driver = torch.version.cuda, re.search(r"CUDA Version: *(\d+)", _nvidia_smi())
    why = "is built for CPUs only" if built is None else f"is built for CUDA {built}"
    able = f", the driver supports CUDA {driver[1]}" if driver and built is not None else ""
    fits = f" CUDA={driver[1]}" if driver else ""
    return (
        f"nvidia-smi lists {len(names)} x {names[0]}, but torch {torch.__version__} {why}{able}; "
        f"install the build that fits: rm -r .venv && make setup{fits}"
    )


def _nvidia_smi(*words: str) -> str:
    """Output of nvidia-smi; "" where it does not exist, fails or does not answer in ten seconds."""
    try:
        return subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
