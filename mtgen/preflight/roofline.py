"""A roofline model of runs on GPUs, from counted costs: speed, memory and bottleneck, without such a GPU."""

from dataclasses import dataclass

from mtgen.config import Config
from mtgen.preflight.cost import Cost
from mtgen.preflight.gpu_specs import Gpu

RESERVED_BYTES = 3 * 2**30
"""Bytes of a GPU for CUDA's context, buffers of NCCL and DALI, and work space of kernels. An assumption."""
USABLE_MEMORY_FRACTION = 0.92
"""Fraction of the rest that can be used before fragmentation prevents further allocations. An assumption."""
KERNEL_LAUNCH_SECONDS = 14e-6
"""Seconds of the host per kernel in eager mode: Python, autograd and torch's dispatcher. Measured on one CPU core, with
arithmetic made tiny: 12 to 16 us; the driver's part is not in it. `torch.compile` and CUDA graphs avoid most."""
ACTIVATION_PASSES = 4
"""Passes of activations through memory: they are written and read, and so are their gradients. An assumption."""


@dataclass(frozen=True)
class Forecast:
    """Estimates for a run on a number of GPUs.

    The first three times overlap; `reduction` follows them.

    Attributes:
        rows: images per GPU in a micro-batch.
        memory: bytes that a GPU needs.
        capacity: bytes that a GPU can provide.
        most_rows: the most images that would fit in a micro-batch; 0: not even the state fits.
        arithmetic: seconds per step for operations.
        traffic: seconds per step for memory accesses.
        launches: seconds per step to launch kernels.
        reduction: seconds per step to reduce gradients.
        images_per_second: speed of all GPUs together.
    """

    rows: int
    memory: float
    capacity: float
    most_rows: int
    arithmetic: float
    traffic: float
    launches: float
    reduction: float
    images_per_second: float

    @property
    def fits(self) -> bool:
        """Whether a micro-batch fits."""
        return self.rows <= self.most_rows

    @property
    def bound(self) -> str:
        """The bottleneck of a step."""
        parts = {
            "arithmetic": self.arithmetic,
            "memory": self.traffic,
            "kernel launches": self.launches,
            "gradient reduction": self.reduction,
        }
        return max(parts, key=lambda part: parts[part])

    def days(self, images: int) -> float:
        """Days of training for `images` images, without startup, pictures, evaluation and checkpoints."""
        return images / self.images_per_second / 86400


def forecast(config: Config, cost: Cost, gpu: Gpu, gpus: int, utilization: float) -> Forecast:
    """Estimate a run's speed and memory.

    Args:
        config: configuration, whose batch is divided evenly among GPUs and `train.accumulation` micro-batches.
        cost: cost of the configuration.
        gpu: the GPU.
        gpus: number of GPUs.
        utilization: fraction of the GPU's peak arithmetic that convolutions of these sizes reach, 0 to 1.

    Source: roofline model (Williams et al. 2009); ring reduction (Patarasuk and Yuan 2009).
    """
    each = config.batch_size / gpus
    rows = max(1, round(each / config.train.accumulation))
    capacity = (gpu.memory - RESERVED_BYTES) * USABLE_MEMORY_FRACTION
    state = cost.state_bytes(config.zero_stage, gpus)
    peak = gpu.single if config.precision == "fp32" else gpu.half
    arithmetic = each * cost.step / (peak * utilization)
    traffic = ACTIVATION_PASSES * each * cost.activations / gpu.bandwidth
    launches = config.train.accumulation * cost.kernels * KERNEL_LAUNCH_SECONDS
    reduction = cost.traffic(gpus) / (gpu.link if gpus <= gpu.node else gpu.network)
    return Forecast(
        rows,
        state + rows * cost.activations,
        capacity,
        max(0, int((capacity - state) / cost.activations)),
        arithmetic,
        traffic,
        launches,
        reduction,
        config.batch_size / (max(arithmetic, traffic, launches) + reduction),
    )
