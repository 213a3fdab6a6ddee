"""Both training steps on random data in memory: their speed, what bounds it, and whether they let the host wait."""

import time
from dataclasses import dataclass, replace

import torch

from mtgen.config import Config
from mtgen.errors import UserError
from mtgen.models.model import build
from mtgen.preflight.gpu_specs import GPUS, Gpu
from mtgen.preflight.synthetic_batch import synthetic_batch
from mtgen.schema import DatasetCard
from mtgen.training.compiled import prepare_networks
from mtgen.training.optimizer import GuardedAdam
from mtgen.training.step import frozen
from mtgen.training.steps import build_steps

WARMUP_STEPS = 4
"""Steps before the measurement: cuDNN chooses its kernels, and the allocator gets its memory."""


@dataclass(frozen=True)
class StepSpeed:
    """What a plain loop over both steps reaches, with Adam and without data loading.

    Attributes:
        images_per_second: images that are trained on per second.
        host: fraction of a step in which Python launches its kernels; near 1, the device waits for Python.
        memory: largest number of bytes allocated on the device; 0 on a CPU.
    """

    images_per_second: float
    host: float
    memory: int

    def __str__(self) -> str:
        memory = f", {self.memory / 2**30:.1f} GiB" if self.memory else ""
        return f"{self.images_per_second:,.0f} images/s, {self.host:.0%} of the time launching kernels{memory}"


class StepLoop:
    """Both steps of a run on one device, on the same random micro-batch at ever new positions.

    Args:
        config: with a resolved precision.
        card: its classes size the heads.
    """

    def __init__(self, config: Config, card: DatasetCard, device: torch.device) -> None:
        self.config = config.model_copy(
            update={"workers": 0, "batch_size": config.micro_batch, "train": config.train.model_copy(update=_ALONE)}
        )
        self.device = device
        networks = build(self.config, card)
        for network in (networks.generator, networks.side):
            network.to(device)
        prepare_networks(self.config, networks)
        d_step, g_step, gates = build_steps(self.config, networks)
        sides = [(d_step, networks.side, networks.generator), (g_step, networks.generator, networks.side)]
        self._sides = [
            (step, other, GuardedAdam(own.parameters(), 1e-5, 0.99, False, config.precision == "fp16", 3.0))
            for step, own, other in (sides if config.generates else sides[:1])
        ]
        for (_, _, optimizer), gate in zip(self._sides, gates.values(), strict=False):
            optimizer.create_state()
            gate.loss_scale = optimizer.loss_scale
        self._batch = synthetic_batch(self.config, card, self.config.batch_size, device)
        self._steps = 0

    def step(self) -> None:
        """Train both networks on one micro-batch."""
        position = self._batch.step_position + self._steps * len(self._batch)
        batch = replace(self._batch, position=position, step_position=position)
        self._steps += 1
        for step, other, optimizer in self._sides:
            with frozen(other):
                loss, _ = step(batch, (other,))
                (loss if optimizer.loss_scale is None else loss * optimizer.loss_scale).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def measure(self, steps: int) -> StepSpeed:
        """Measure `steps` steps after a warm-up."""
        for _ in range(WARMUP_STEPS):
            self.step()
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        begin = time.monotonic()
        for _ in range(steps):
            self.step()
        launched = time.monotonic() - begin
        self._wait()
        seconds = time.monotonic() - begin
        memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        return StepSpeed(steps * len(self._batch) / seconds, launched / seconds, memory)

    def check_syncs(self) -> str:
        """Run one step in which torch raises an error wherever the host waits for the GPU.

        Raises:
            UserError: it waits; the message is torch's.
        """
        self.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.step()
        except RuntimeError as error:
            raise UserError(f"a step lets the host wait for the GPU: {error}") from error
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return "neither step lets the host wait for the GPU"

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


_ALONE = {"accumulation": 1}


def this_gpu() -> Gpu | None:
    """The data sheet of the current GPU; `None` if it is not among the known ones."""
    name = torch.cuda.get_device_name().lower()
    return next((gpu for key, gpu in GPUS.items() if key in name), None)
