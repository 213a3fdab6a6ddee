"""How fast a run would be on GPUs that are not at hand, what fits on them, and what holds it up: a model on paper, from counted costs."""

from dataclasses import dataclass

from mtgen.config import Config
from mtgen.preflight.cost import Cost
from mtgen.preflight.gpu_specs import Gpu

RESERVED_BYTES = 3 * 2**30
"""Bytes of a GPU that are not the networks': CUDA's context, NCCL's and DALI's buffers, kernels' work space. An assumption."""
USABLE_MEMORY_FRACTION = 0.92
"""Share of the rest that can be filled before the allocator finds no piece that is large enough. An assumption."""
KERNEL_LAUNCH_SECONDS = 6e-6
"""Seconds that Python, autograd and the driver take to start a kernel in eager mode. An assumption; CUDA graphs avoid most of it."""
ACTIVATION_PASSES = 4
"""How often what is kept for the backward crosses the memory: written, read, and its gradient written and read. An assumption."""


@dataclass(frozen=True)
class Forecast:
    """Of a run on so many GPUs; everything is an estimate.

    Attributes:
        rows: images that a GPU has in a micro-batch.
        memory, capacity: bytes that a GPU needs, and that it can give.
        most_rows: the most images that would fit in a micro-batch; 0: not even the state does.
        arithmetic, traffic, launches, reduction: seconds of a step that each part would take alone, on every GPU: operations,
            memory, starting kernels, and reducing gradients. The first three go on at once, the last after them.
        images_per_second: of all GPUs.
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
        """What holds a step up."""
        parts = {
            "arithmetic": self.arithmetic,
            "memory": self.traffic,
            "starting kernels": self.launches,
            "reducing gradients": self.reduction,
        }
        return max(parts, key=lambda part: parts[part])

    def days(self, images: int) -> float:
        """Days of training alone, without start-up, pictures, evaluation and checkpoints."""
        return images / self.images_per_second / 86400


def forecast(config: Config, cost: Cost, gpu: Gpu, gpus: int, utilization: float) -> Forecast:
    """Predict a run.

    Args:
        config: its batch is shared evenly by the GPUs, in `train.accumulation` micro-batches each.
        utilization: share of the GPU's peak arithmetic that convolutions of these sizes reach, 0 to 1.

    Source: the roofline model (Williams et al. 2009), and a ring's reduction (Patarasuk and Yuan 2009).
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
